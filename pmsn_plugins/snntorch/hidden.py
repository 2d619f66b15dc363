"""Resetting and detaching the hidden states of all spiking layers inside a net."""

from __future__ import annotations

from collections.abc import Iterator

import snntorch as snn
from torch import nn

from .._checks import check_module
from .layer import MultiCompartmentLayer


def _spiking_layers(net: nn.Module) -> Iterator[snn.SpikingNeuron]:
    return (module for module in net.modules() if isinstance(module, snn.SpikingNeuron))


def reset(net: nn.Module) -> None:
    """Put every spiking layer inside ``net``, ours and snnTorch's, back to its initial state, without a graph.

    Unlike ``snntorch.utils.reset`` it looks at all depths and touches no layer outside ``net``.

    Example:
        >>> import torch
        >>> from pmsn_plugins.snntorch import TCLIF
        >>> net = nn.Sequential(nn.Linear(2, 3), TCLIF(init_hidden=True))
        >>> spk = net(torch.rand(8, 2))
        >>> reset(net)
    """
    check_module("net", net)
    for layer in _spiking_layers(net):
        if hasattr(layer, "reset_mem"):  # snnTorch's time-parallel layers keep no state
            layer.reset_mem()


def detach(net: nn.Module) -> None:
    """Cut the hidden state of every spiking layer inside ``net``, ours and snnTorch's, from its graph."""
    for layer in _spiking_layers(net):
        if isinstance(layer, MultiCompartmentLayer):
            layer.detach_mem()
            continue
        for name, state in list(layer.named_buffers(recurse=False)):
            if state.requires_grad:
                setattr(layer, name, state.detach())
