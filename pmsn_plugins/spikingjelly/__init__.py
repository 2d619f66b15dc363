"""PMSN and TC-LIF as SpikingJelly neurons, for SpikingJelly 2.0.0 and 0.0.0.0.14."""

try:
    import spikingjelly  # noqa: F401
except ImportError as error:
    raise ImportError(
        'pmsn_plugins.spikingjelly needs SpikingJelly: pip install "pmsn_plugins[spikingjelly]"'
    ) from error

from ..swap import swap_neurons
from . import surrogates  # noqa: F401  (says which of SpikingJelly's surrogate functions are known)
from .multicompartment import MultiCompartmentNode
from .pmsn import PMSNNode
from .registration import register, unregister
from .resnet import sew_resnet
from .tclif import TCLIFNode

__all__ = [
    "MultiCompartmentNode",
    "PMSNNode",
    "TCLIFNode",
    "register",
    "sew_resnet",
    "swap_neurons",
    "unregister",
]
