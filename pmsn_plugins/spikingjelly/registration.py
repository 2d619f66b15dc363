"""Put our names into SpikingJelly's own namespaces."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

from spikingjelly.activation_based import neuron

from .multicompartment import MultiCompartmentNode
from .pmsn import PMSNNode
from .tclif import TCLIFNode
from .tclif_recurrent import RecurrentTCLIFNode


def register() -> None:
    """Make our names available in SpikingJelly. Idempotent.

    ``neuron.PMSNNode``, ``neuron.TCLIFNode``, ``neuron.RecurrentTCLIFNode``, ``neuron.MultiCompartmentNode`` and, from
    SpikingJelly 2.0 on, ``op_counter.NeuronOpCounter`` with its rules for these neurons.

    Raises:
        RuntimeError: SpikingJelly already has something else of that name; nothing was registered.

    Example:
        >>> register()
        >>> hasattr(neuron, "PMSNNode")
        True
        >>> unregister()
    """
    places = _places()
    for module, ours in places:
        if getattr(module, ours.__name__, ours) is not ours:
            raise RuntimeError(f"{module.__name__}.{ours.__name__} exists and is not ours")
    for module, ours in places:
        setattr(module, ours.__name__, ours)


def unregister() -> None:
    """Undo :func:`register`. Idempotent.

    Example:
        >>> unregister()
        >>> hasattr(neuron, "PMSNNode")
        False
    """
    for module, ours in _places():
        if getattr(module, ours.__name__, None) is ours:
            delattr(module, ours.__name__)


def _places() -> list[tuple[ModuleType, type]]:
    nodes = (PMSNNode, TCLIFNode, RecurrentTCLIFNode, MultiCompartmentNode)
    places: list[tuple[ModuleType, type]] = [(neuron, node) for node in nodes]
    if find_spec("spikingjelly.activation_based.op_counter"):
        from spikingjelly.activation_based import op_counter

        from .op_counter import NeuronOpCounter

        places.append((op_counter, NeuronOpCounter))
    return places
