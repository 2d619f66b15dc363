"""Neurons by name. A network is built from a factory, channels -> neuron."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_finite, check_flag, check_int_at_least, check_module, check_options
from ..layers import reset_states, spiking_layers

NeuronFactory = Callable[[int], nn.Module]
"""Makes a neuron layer for a number of channels; it maps input currents [T, N, C, *] to spikes of the same shape."""

Maker = Callable[[str, int | None, dict[str, Any]], NeuronFactory]


def neuron_factory(
    name: str, *, framework: str = "spikingjelly", T: int | None = None, **options: Any
) -> NeuronFactory:
    """A factory of neurons that take whole sequences.

    Args:
        name: one of :data:`.NEURONS`.
        framework: whose neurons, ``'spikingjelly'`` or ``'snntorch'``.
        T: number of time steps; only the PSN, the masked PSN and GLIF need it.
        options: go to the neuron's class; the threshold is ``v_threshold`` in both frameworks. For the PMSN also
            ``input_scale``, a factor on its input current; for the TC-LIF also ``per_channel``: True gives it one pair
            of couplings per channel.

    ``'lif'`` is the framework's with its own defaults (but for the reset, see below), ``'authors-lif'`` the baseline of
    the TC-LIF authors' scripts: ``v = 0.8 v + x``, soft reset with its gradient, the triangle as surrogate. ``'glif'``
    is SpikingJelly's, one set of parameters per channel. ``'gru'`` and ``'lstm'`` are PyTorch's layers in a neuron's
    place, of as many units as channels: their output is no spikes, and they have more parameters than neurons have.

    Defaults beside the classes' own: soft reset for LIF, PLIF and IF, order 32 and a complete mask for the masked PSN,
    order 32 for the sliding PSN.

    Raises:
        TypeError: T is not an integer, ``input_scale`` no number, or ``per_channel`` no bool.
        ValueError: unknown name, framework or option, or T missing.
        ImportError: the framework, or this neuron in its installed release, is missing.

    Example:
        >>> neuron = neuron_factory("tclif", framework="spikingjelly")
        >>> neuron(128)(torch.rand(10, 8, 128)).shape  # [T, N, C]
        torch.Size([10, 8, 128])
    """
    check_choice("framework", framework, NEURONS)
    check_choice("name", name, NEURONS[framework])
    if T is not None:
        check_int_at_least("T", T, 1)
    return _MAKERS[framework][name](name, T, options)


def _checked(name: str, neuron: Callable[..., nn.Module], options: dict[str, Any], *own: str) -> dict[str, Any]:
    """The options as ``neuron`` calls them; ValueError for one that is neither its nor the factory's ``own``."""
    arguments = inspect.signature(neuron).parameters
    provided = ("channels", "inplane", "kind", "T", "step_mode", "init_hidden", "output")
    allowed = ["v_threshold" if a == "threshold" else a for a in arguments if a not in provided]
    check_options(f"neuron {name!r}", options, (*allowed, *own))
    theirs = {"v_threshold": "threshold"} if "threshold" in arguments else {}
    return {theirs.get(option, option): value for option, value in options.items()}


def _pmsn(name: str, pmsn: Callable[..., nn.Module], options: dict[str, Any], **fixed: Any) -> NeuronFactory:
    scale = options.pop("input_scale", 1.0)
    check_finite("input_scale", scale)
    options = _checked(name, pmsn, options, "input_scale")
    if scale == 1.0:
        return lambda channels: pmsn(channels, **fixed, **options)
    return lambda channels: nn.Sequential(Scale(scale), pmsn(channels, **fixed, **options))


def _tclif(name: str, tclif: Callable[..., nn.Module], options: dict[str, Any], **fixed: Any) -> NeuronFactory:
    per_channel = options.pop("per_channel", False)
    check_flag("per_channel", per_channel)
    options = _checked(name, tclif, options, "per_channel")
    return lambda channels: tclif(channels=channels if per_channel else None, **fixed, **options)


def _pmsn_node(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
    from ..spikingjelly import PMSNNode

    return _pmsn(name, PMSNNode, options, step_mode="m")


def _tclif_node(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
    from ..spikingjelly import TCLIFNode

    return _tclif(name, TCLIFNode, options, step_mode="m")


def _node(class_name: str, every_step: bool = False, **defaults: Any) -> Maker:
    """Of SpikingJelly's own; ``every_step``: it has parameters for each."""

    def make(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
        from spikingjelly.activation_based import neuron

        length = {"T": _length(name, T)} if every_step else {}
        if not hasattr(neuron, class_name):
            raise ImportError(f"the installed SpikingJelly has no {class_name}: pip install 'spikingjelly>=2.0.0'")
        node = getattr(neuron, class_name)
        options = {**defaults, **length, **_checked(name, node, options)}
        return lambda channels: node(**options)

    return make


def _length(name: str, T: int | None) -> int:
    if T is None:
        raise ValueError(f"{name} has parameters for every time step: T must be given")
    return T


def _authors_lif(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
    from spikingjelly.activation_based import surrogate

    triangle = surrogate.PiecewiseQuadratic(1.0)
    return _node("LIFNode", tau=5.0, decay_input=False, surrogate_function=triangle, **_SOFT_RESET)(name, T, options)


def _glif(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
    _node("GatedLIFNode", every_step=True)(name, T, options)  # what is wrong with them is said here
    from .peers import GatedLIF

    return lambda channels: GatedLIF(channels, _length(name, T), **options)


def _recurrent(kind: type[nn.GRU | nn.LSTM]) -> Maker:
    def make(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
        from .peers import Recurrent

        options = _checked(name, Recurrent, options)
        return lambda channels: Recurrent(channels, kind, **options)

    return make


def _pmsn_layer(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
    from ..snntorch import PMSN

    keeps_state = options.get("context", "local") == "local"
    return _pmsn(name, PMSN, options, init_hidden=keeps_state, output=False)


def _tclif_layer(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
    from ..snntorch import TCLIF

    make = _tclif(name, TCLIF, options, init_hidden=True)
    return lambda channels: OverTime(make(channels))


def _leaky(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
    from snntorch import Leaky

    options = {"beta": 0.5, **_checked(name, Leaky, options)}
    return lambda channels: OverTime(Leaky(init_hidden=True, **options))


_SOFT_RESET: dict[str, Any] = {"v_reset": None, "step_mode": "m"}

_MAKERS: dict[str, dict[str, Maker]] = {
    "spikingjelly": {
        "pmsn": _pmsn_node,
        "tclif": _tclif_node,
        "lif": _node("LIFNode", **_SOFT_RESET),
        "authors-lif": _authors_lif,
        "plif": _node("ParametricLIFNode", **_SOFT_RESET),
        "glif": _glif,
        "if": _node("IFNode", **_SOFT_RESET),
        "psn": _node("PSN", every_step=True),
        "slidingpsn": _node("SlidingPSN", k=32, step_mode="m"),
        "maskedpsn": _node("MaskedPSN", every_step=True, k=32, lambda_init=1.0, step_mode="m"),
        "gru": _recurrent(nn.GRU),
        "lstm": _recurrent(nn.LSTM),
    },
    "snntorch": {
        "pmsn": _pmsn_layer,
        "tclif": _tclif_layer,
        "lif": _leaky,
        "gru": _recurrent(nn.GRU),
        "lstm": _recurrent(nn.LSTM),
    },
}
"""For each name what makes a factory of (name, T, options): what is special about a neuron is written there."""

NEURONS = {framework: tuple(makers) for framework, makers in _MAKERS.items()}
"""Names that :func:`neuron_factory` knows, per framework."""


class OverTime(nn.Module):
    """A stepwise snnTorch neuron with hidden state, run over [T, N, *] one step after the other.

    With ``step_mode = 's'`` (as SpikingJelly calls it) it takes one step [N, *]: what a layer with feedback needs.
    """

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron
        self.step_mode = "m"

    def supported_step_mode(self) -> tuple[str, str]:
        return "s", "m"

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x) if self.step_mode == "s" else torch.stack([self.neuron(x_t) for x_t in x])


class Scale(nn.Module):
    """Multiplies its input by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


def count_parameters(net: nn.Module) -> int:
    """Number of learnable scalars, each shared parameter once.

    Example:
        >>> count_parameters(nn.Linear(2, 3))
        9
    """
    check_module("net", net)
    return sum(math.prod(p.shape) for p in net.parameters() if p.requires_grad)


__all__ = ["NEURONS", "NeuronFactory", "count_parameters", "neuron_factory", "reset_states", "spiking_layers"]
