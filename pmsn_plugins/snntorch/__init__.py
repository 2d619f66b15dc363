"""PMSN and TC-LIF as snnTorch layers, for snnTorch 1.0 and 0.9.4.

snnTorch fires at ``u > threshold``, SpikingJelly and the papers at ``u >= threshold``: with default surrogates that is
the one difference between a layer here and the node of the same weights in :mod:`pmsn_plugins.spikingjelly`.
"""

try:
    import snntorch  # noqa: F401  (the framework: imports are absolute)
except ImportError as error:
    raise ImportError(
        'pmsn_plugins.snntorch needs snnTorch: pip install "pmsn_plugins[snntorch]"', name=error.name
    ) from error

from torch.serialization import add_safe_globals

from ..functional import PMSNState
from . import surrogates  # noqa: F401  (says which of snnTorch's surrogate functions are known)
from .hidden import reset
from .membrane import Membrane
from .pmsn import PMSN
from .registration import register, unregister
from .tclif import TCLIF
from .tclif_recurrent import RTCLIF

add_safe_globals([Membrane, PMSNState])  # tensors and their names: torch.load reads states with weights_only=True

__all__ = ["PMSN", "RTCLIF", "TCLIF", "Membrane", "register", "reset", "unregister"]
