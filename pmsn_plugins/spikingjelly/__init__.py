"""PMSN and TC-LIF as SpikingJelly neurons, for SpikingJelly 2.0.0 and 0.0.0.0.14."""

try:
    import spikingjelly
except ImportError as error:
    raise ImportError(
        'pmsn_plugins.spikingjelly needs SpikingJelly: pip install "pmsn_plugins[spikingjelly]"'
    ) from error
try:
    import spikingjelly.activation_based  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "spikingjelly.activation_based":
        raise
    raise ImportError(
        "pmsn_plugins.spikingjelly needs SpikingJelly 0.0.0.0.14 or newer, this release has no "
        'spikingjelly.activation_based: pip install -U "pmsn_plugins[spikingjelly]". Code written for '
        "spikingjelly.clock_driven runs there after pmsn_plugins.spikingjelly.clock_driven.install()"
    ) from error

from . import surrogates  # noqa: F401  (says which of SpikingJelly's surrogate functions are known)
from .companions import warn_of_companions
from .multicompartment import MultiCompartmentNode
from .pmsn import PMSNNode
from .registration import register, unregister
from .resnet import sew_resnet  # noqa: F401
from .tclif import TCLIFNode
from .tclif_recurrent import RecurrentTCLIFNode

warn_of_companions()

# not sew_resnet: `import *` would hide spikingjelly.activation_based.model.sew_resnet
__all__ = [
    "MultiCompartmentNode",
    "PMSNNode",
    "RecurrentTCLIFNode",
    "TCLIFNode",
    "register",
    "unregister",
]
