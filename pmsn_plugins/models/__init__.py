"""The papers' networks, for any neuron. They are built on SpikingJelly's layers and run in multi-step mode."""

try:
    import spikingjelly  # noqa: F401
except ImportError as error:
    raise ImportError('pmsn_plugins.models needs SpikingJelly: pip install "pmsn_plugins[spikingjelly]"') from error

from ..layers import reset_states, spiking_layers
from .neurons import NEURONS, NeuronFactory, count_parameters, neuron_factory
from .sequence import column_cifar, feedforward, pixel_cifar, residual
from .sew_resnet import load_torchvision_resnet, sew_resnet_static

__all__ = [
    "NEURONS",
    "NeuronFactory",
    "column_cifar",
    "count_parameters",
    "feedforward",
    "load_torchvision_resnet",
    "neuron_factory",
    "pixel_cifar",
    "reset_states",
    "residual",
    "sew_resnet_static",
    "spiking_layers",
]
