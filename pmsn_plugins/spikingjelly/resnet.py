"""SpikingJelly's SEW ResNets with neurons that know their number of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spikingjelly.activation_based import functional, neuron
from torch import nn

from .._checks import check_callable, check_choice, check_int_at_least
from ..swap import swap_neurons

DEPTHS = (18, 34, 50, 101, 152)
CONNECTIONS = ("ADD", "AND", "IAND")


def sew_resnet(
    depth: int,
    neuron_factory: Callable[[int], nn.Module],
    cnf: str = "ADD",
    num_classes: int = 1000,
    step_mode: str = "m",
    **kwargs: Any,
) -> nn.Module:
    """A SpikingJelly SEW ResNet (Fang et al., NeurIPS 2021) with a neuron of the right width after every norm.

    Input [T, N, 3, H, W] (``step_mode='m'``) or [N, 3, H, W] (``'s'``), output [T, N, num_classes] or [N, num_classes].

    Args:
        depth: 18, 34, 50, 101 or 152.
        neuron_factory: makes a neuron for a number of channels, e.g. ``lambda C: PMSNNode(C, preset='static')``.
        cnf: how a block joins its two branches: ``'ADD'``, ``'AND'`` or ``'IAND'``.
        num_classes: width of the last layer.
        step_mode: ``'s'`` or ``'m'``.
        **kwargs: passed to SpikingJelly's builder: ``pretrained``, ``zero_init_residual``, ``norm_layer``, ...

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is outside its allowed values.

    Example:
        >>> from pmsn_plugins.spikingjelly import TCLIFNode
        >>> net = sew_resnet(18, lambda channels: TCLIFNode(), num_classes=10)
        >>> sum(isinstance(module, TCLIFNode) for module in net.modules())
        20
    """
    from spikingjelly.activation_based.model import sew_resnet as models  # imports torchvision

    check_int_at_least("depth", depth, 1)
    check_callable("neuron_factory", neuron_factory, "a function that makes a neuron for a number of channels")
    check_int_at_least("num_classes", num_classes, 1)
    if depth not in DEPTHS:
        raise ValueError(f"depth must be one of {', '.join(map(str, DEPTHS))}, got {depth!r}")
    check_choice("cnf", cnf, CONNECTIONS)
    check_choice("step_mode", step_mode, ("s", "m"))
    # SpikingJelly calls spiking_neuron() without the width, but builds a norm of that width right before each neuron
    build = getattr(models, f"sew_resnet{depth}")
    net = build(cnf=cnf, spiking_neuron=neuron.IFNode, num_classes=num_classes, **kwargs)
    functional.set_step_mode(net, step_mode)  # before the swap: a PSN has no single-step mode to begin in
    swap_neurons(net, lambda channels: neuron_factory(channels))  # nothing of the stand-ins is to be taken over
    return net
