"""The neuron layers inside a net, whichever framework they come from. Imports neither framework itself."""

from __future__ import annotations

import sys

from torch import nn

from ._checks import check_module
from .parameters import NeuronParameters


def spiking_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The neuron layers of a net by name, in order: ours, SpikingJelly's and snnTorch's.

    Example:
        >>> from pmsn_plugins.spikingjelly import TCLIFNode
        >>> list(spiking_layers(nn.Sequential(nn.Linear(2, 3), TCLIFNode())))
        ['1']
    """
    check_module("net", net)
    kinds: tuple[type[nn.Module], ...] = (
        NeuronParameters,
        *_classes("spikingjelly.activation_based.neuron", "BaseNode", "PSN", "MaskedPSN", "SlidingPSN", "GatedLIFNode"),
        *_classes("snntorch", "SpikingNeuron"),
    )
    return {name: module for name, module in net.named_modules() if isinstance(module, kinds)}


def _classes(module_name: str, *names: str) -> list[type[nn.Module]]:
    """Those classes of a module that exist in its release; none if nothing imported it, for then no net uses it."""
    module = sys.modules.get(module_name)
    return [getattr(module, name) for name in names if hasattr(module, name)]


def reset_states(net: nn.Module) -> None:
    """Forget the state of every neuron (and SpikingJelly's dropout masks), so that a new sequence can begin.

    Example:
        >>> from pmsn_plugins.spikingjelly import TCLIFNode
        >>> reset_states(nn.Sequential(nn.Linear(2, 3), TCLIFNode()))
    """
    check_module("net", net)
    if "snntorch" in sys.modules:
        from . import snntorch

        snntorch.reset(net)
    if "spikingjelly.activation_based" in sys.modules:
        from spikingjelly.activation_based import base

        # functional.reset_net calls everything named reset, which in snnTorch 0.9.4's Leaky is a tensor
        for module in net.modules():
            if isinstance(module, base.MemoryModule):
                module.reset()
