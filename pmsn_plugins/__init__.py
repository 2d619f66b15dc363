"""PMSN and TC-LIF, two multi-compartment spiking neurons, as plugins for SpikingJelly and snnTorch.

Importing this package imports neither framework: use ``pmsn_plugins.spikingjelly`` or ``pmsn_plugins.snntorch``.
"""

from . import functional
from .kernels import backends
from .parameters import param_groups
from .registration import register, unregister
from .swap import swap_neurons

__version__ = "0.2.0"
__all__ = [
    "__version__",
    "backends",
    "functional",
    "param_groups",
    "register",
    "swap_neurons",
    "unregister",
]
