"""Neurons by name. A network is built from a factory, channels -> neuron."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_finite, check_flag, check_int_at_least, check_module, check_options
from ..layers import reset_states, spiking_layers

NeuronFactory = Callable[[int], nn.Module]
"""Makes a neuron layer for a number of channels; it maps input currents [T, N, C, *] to spikes of the same shape."""

NEURONS = {
    "spikingjelly": (
        *("pmsn", "tclif", "lif", "authors-lif", "plif", "glif", "if", "psn", "slidingpsn", "maskedpsn"),
        *("gru", "lstm"),
    ),
    "snntorch": ("pmsn", "tclif", "lif", "gru", "lstm"),
}
"""Names that :func:`neuron_factory` knows, per framework."""


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
    if name in ("psn", "maskedpsn", "glif") and T is None:
        raise ValueError(f"{name} has parameters for every time step: T must be given")
    if T is not None:
        check_int_at_least("T", T, 1)
    scale = options.pop("input_scale", 1.0) if name == "pmsn" else 1.0
    check_finite("input_scale", scale)
    per_channel = options.pop("per_channel", False) if name == "tclif" else False
    check_flag("per_channel", per_channel)
    build: Callable[..., nn.Module]
    if name in ("gru", "lstm"):
        build = _recurrent(name, options)
    elif framework == "snntorch":
        build = _snntorch(name, options, per_channel)
    elif name in ("pmsn", "tclif"):
        from .. import spikingjelly as ours

        nodes: dict[str, type[nn.Module]] = {"pmsn": ours.PMSNNode, "tclif": ours.TCLIFNode}
        node = nodes[name]
        _check_options(name, node, options)
        takes_channels = name == "pmsn" or per_channel
        build = partial(_with_channels(node) if takes_channels else _without_channels(node), step_mode="m", **options)
    else:
        build = _spikingjelly(name, T, options)
    return build if scale == 1.0 else lambda channels: nn.Sequential(Scale(scale), build(channels))


def _spikingjelly(name: str, T: int | None, options: dict[str, Any]) -> NeuronFactory:
    """The framework's own neurons."""
    from spikingjelly.activation_based import neuron, surrogate

    soft_reset = {"v_reset": None, "step_mode": "m"}
    classes: dict[str, tuple[str, dict[str, Any]]] = {
        "lif": ("LIFNode", soft_reset),
        "authors-lif": (
            "LIFNode",
            {"tau": 5.0, "decay_input": False, "surrogate_function": surrogate.PiecewiseQuadratic(1.0), **soft_reset},
        ),
        "plif": ("ParametricLIFNode", soft_reset),
        "glif": ("GatedLIFNode", {}),
        "if": ("IFNode", soft_reset),
        "psn": ("PSN", {"T": T}),
        "slidingpsn": ("SlidingPSN", {"k": 32, "step_mode": "m"}),
        "maskedpsn": ("MaskedPSN", {"k": 32, "T": T, "lambda_init": 1.0, "step_mode": "m"}),
    }
    class_name, defaults = classes[name]
    if not hasattr(neuron, class_name):
        raise ImportError(f"the installed SpikingJelly has no {class_name}: pip install 'spikingjelly>=2.0.0'")
    _check_options(name, getattr(neuron, class_name), options)
    if name == "glif":
        from .peers import GatedLIF

        assert T is not None  # checked above
        return partial(GatedLIF, T=T, **options)
    return _without_channels(partial(getattr(neuron, class_name), **{**defaults, **options}))


def _recurrent(name: str, options: dict[str, Any]) -> NeuronFactory:
    from .peers import Recurrent

    _check_options(name, Recurrent, options)
    return partial(Recurrent, kind={"gru": nn.GRU, "lstm": nn.LSTM}[name], **options)


def _check_options(name: str, neuron: type[nn.Module], options: dict[str, Any]) -> None:
    """Raise ValueError for an option that ``neuron`` does not take."""
    arguments = inspect.signature(neuron).parameters
    provided = ("channels", "inplane", "kind", "T", "step_mode", "init_hidden", "output")
    allowed = ["v_threshold" if a == "threshold" else a for a in arguments if a not in provided]
    allowed += {"pmsn": ["input_scale"], "tclif": ["per_channel"]}.get(name, [])
    check_options(f"neuron {name!r}", options, allowed)


def _with_channels(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda channels, **options: build(channels=channels, **options)


def _without_channels(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda channels, **options: build(**options)


def _snntorch(name: str, options: dict[str, Any], per_channel: bool) -> NeuronFactory:
    import snntorch

    from .. import snntorch as ours

    neuron = {"pmsn": ours.PMSN, "tclif": ours.TCLIF, "lif": snntorch.Leaky}[name]
    _check_options(name, neuron, options)
    if "v_threshold" in options:
        options["threshold"] = options.pop("v_threshold")
    if name == "pmsn":
        keeps_state = options.get("context", "local") == "local"
        return partial(ours.PMSN, init_hidden=keeps_state, output=False, **options)
    if name == "tclif":
        build = _with_channels(ours.TCLIF) if per_channel else _without_channels(ours.TCLIF)
        return lambda channels: OverTime(build(channels, init_hidden=True, **options))
    return lambda channels: OverTime(snntorch.Leaky(init_hidden=True, **{"beta": 0.5, **options}))


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
