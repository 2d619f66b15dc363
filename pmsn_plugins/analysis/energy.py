"""Operations and energy of one inference, from measured spikes or from the papers' formulas.

An accumulate (AC) is one addition, a multiply-accumulate (MAC) one product with its addition; in 45 nm CMOS they cost
0.9 and 4.6 pJ (32-bit floating point, Horowitz 2014), the values of both papers. Memory traffic is not included.

Counted: a spike that meets a weight (AC), an input that is no spike and meets a weight (MAC), and what each neuron
model computes per step (:class:`NeuronCost`). Not counted, as in the papers: biases and batch normalisation (folded
into the weights for inference), pooling, additions of shortcuts, comparisons with the threshold.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .._checks import (
    check_choice,
    check_finite,
    check_flag,
    check_int_at_least,
    check_items,
    check_mapping,
    check_named,
    check_not_negative,
    check_positive,
    check_type,
    pairs,
)
from ..functional import RESET_MODES
from ..neuron_cost import NeuronCost
from ..parameters import PMSNParametersMixin, RecurrentTCLIFParametersMixin, TCLIFParametersMixin
from .nets import OurLayer, evaluating, named_spiking_layers, no_samples, only_output, warn_if_untrained
from .style import COLORS, MARKERS, new_figure

E_AC = 0.9
"""Energy of one accumulate, pJ."""
E_MAC = 4.6
"""Energy of one multiply-accumulate, pJ."""


LIF_COST = NeuronCost(mac=1, ac=0, ac_per_spike=1)
"""Leak (with the addition of the current); reset. TC-LIF paper."""
TCLIF_COST = NeuronCost(mac=2, ac=0, ac_per_spike=2)
"""The two couplings; the two resets. TC-LIF paper."""
IF_COST = NeuronCost(mac=0, ac=1, ac_per_spike=1)
"""Addition of the current; reset."""
SYNAPTIC_COST = NeuronCost(mac=2, ac=0, ac_per_spike=1)
"""Two leaks, of the synaptic current and the membrane; reset."""


def pmsn_cost(n_compartments: int, reset_mode: str = "modulo") -> NeuronCost:
    """PMSN run step by step, k = n_compartments - 1 complex modes; derived from its equations.

    ``A h``: 4 k MAC; ``K x``: 2 k MAC; ``D x``: 1 MAC; sum of the k real parts and the membrane: k + 1 AC, or k without
    a membrane (``'memoryless'``); reset, where there is one: 1 AC per spike.

    Example:
        >>> cost = pmsn_cost(5)
    """
    check_int_at_least("n_compartments", n_compartments, 2)
    check_choice("reset_mode", reset_mode, RESET_MODES)
    k = n_compartments - 1
    resets = reset_mode in ("modulo", "serial")
    return NeuronCost(mac=6 * k + 1, ac=k + (reset_mode != "memoryless"), ac_per_spike=int(resets))


def psn_cost(T: int) -> NeuronCost:
    """PSN, ``H = W X`` with W [T, T]: T MAC per step, no reset. Derived.

    Example:
        >>> psn_cost(T=4).mac
        4
    """
    check_int_at_least("T", T, 1)
    return sliding_psn_cost(T)


def sliding_psn_cost(k: int) -> NeuronCost:
    """SlidingPSN of order k, a weighted sum of the last k inputs: k MAC per step, no reset. Derived.

    The masked PSN of order k costs the same.

    Example:
        >>> sliding_psn_cost(k=32).mac
        32
    """
    check_int_at_least("k", k, 1)
    return NeuronCost(mac=k, ac=0, ac_per_spike=0)


def step_energy(
    fan_in: int, neurons: int, rate_in: float, rate_out: float, cost: NeuronCost, *, recurrent: bool = False
) -> float:
    """Energy of one layer in one time step, pJ (TC-LIF paper, Table 2), m = fan_in, n = neurons:

        m n Fr_in E_AC + (n n + n ac_per_spike) Fr_out E_AC + n (mac E_MAC + ac E_AC)

    ``n n`` only if the layer is recurrent. For LIF and TC-LIF these are the paper's formulas. Its Table 3 is the sum
    over the hidden layers of 1-64-256-256-10, the first two recurrent, the input not counted (Fr_in = 0): energies
    *per time step*; one inference on 784 pixels takes 784 times as much.

    Args:
        rate_in, rate_out: spikes per neuron and time step, of the layer before and of this one.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a size below 1, or a rate or cost below 0 or not finite.

    Example:
        >>> energy = step_energy(fan_in=64, neurons=32, rate_in=0.1, rate_out=0.1, cost=psn_cost(T=4))
    """
    check_int_at_least("fan_in", fan_in, 1)
    check_int_at_least("neurons", neurons, 1)
    check_not_negative("rate_in", rate_in)
    check_not_negative("rate_out", rate_out)
    _check_cost("cost", cost)
    check_flag("recurrent", recurrent)
    feedback = neurons * neurons if recurrent else 0
    ac = fan_in * neurons * rate_in + (feedback + neurons * cost.ac_per_spike) * rate_out + neurons * cost.ac
    return ac * E_AC + neurons * cost.mac * E_MAC


def lstm_step_energy(fan_in: int, neurons: int, *, recurrent: bool = True) -> float:
    """Energy of one LSTM layer in one time step, pJ (TC-LIF paper, Table 2): ``(4 (m n + n n) + 17 n) E_MAC``.

    ``recurrent=False`` leaves out ``n n``, as the paper's Table 3 does for its third layer.

    Example:
        >>> lstm_step_energy(64, 32) > lstm_step_energy(64, 32, recurrent=False)
        True
    """
    check_int_at_least("fan_in", fan_in, 1)
    check_int_at_least("neurons", neurons, 1)
    check_flag("recurrent", recurrent)
    return (4 * neurons * (fan_in + (neurons if recurrent else 0)) + 17 * neurons) * E_MAC


def _check_cost(name: str, cost: NeuronCost) -> None:
    check_named(name, cost, NeuronCost)
    for field, value in zip(cost._fields, cost, strict=True):
        check_not_negative(f"{name}.{field}", value)


class LayerEnergy(NamedTuple):
    """Operations of one layer per inference (one sample, all its time steps).

    Attributes:
        name: of the module.
        kind: class of the module.
        ac, mac: mean number of operations per sample.
        rate: of a neuron layer, spikes per neuron and time step; None for weights.
    """

    name: str
    kind: str
    ac: float
    mac: float
    rate: float | None

    @property
    def energy_nj(self) -> float:
        """Energy per inference, nJ."""
        return (self.ac * E_AC + self.mac * E_MAC) * 1e-3


class EnergyReport(NamedTuple):
    """Operations of a net per inference, layer by layer, averaged over ``samples`` samples."""

    layers: tuple[LayerEnergy, ...]
    samples: int

    @property
    def ac(self) -> float:
        """Accumulates per inference."""
        return sum(layer.ac for layer in self.layers)

    @property
    def mac(self) -> float:
        """Multiply-accumulates per inference."""
        return sum(layer.mac for layer in self.layers)

    @property
    def energy_nj(self) -> float:
        """Energy per inference, nJ."""
        return sum(layer.energy_nj for layer in self.layers)


@torch.no_grad()
def measure_energy(
    net: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    costs: Mapping[type[nn.Module], NeuronCost] | None = None,
) -> EnergyReport:
    """Count the operations of any net of either framework while it classifies, and what they cost.

    Linear and convolution layers: an input of non-negative integers is taken for spikes (2 is two of them: shortcuts
    that add spikes make such), one AC per spike and weight it meets; any other input, and its zeros, costs one MAC
    per weight it meets. For binary inputs these are the numbers of SpikingJelly's ``SynOpCounter`` and
    ``MACCounter``.
    Neurons: :class:`NeuronCost` per neuron and step, for a recurrent TC-LIF layer with its weights. An image repeated
    at each of T steps is paid for T times.

    Args:
        net: in evaluation mode during the count; its state is reset before and after.
        batches: pairs (what ``net`` takes, target); ``len(target)`` is the number of samples.
        costs: of neuron classes this module does not know.

    Raises:
        TypeError: an argument is of another type.
        ValueError: no sample, no neuron layer, a compiled net, a layer whose operations are not known, or no spike.

    Warns:
        UserWarning: a layer does not fire, or the neuron parameters are those of an untrained net.

    Example:
        >>> import torch
        >>> from pmsn_plugins.models import feedforward, neuron_factory
        >>> net = feedforward((3, 8, 2), neuron_factory("tclif"))
        >>> report = measure_energy(net, [(torch.rand(10, 8, 3), torch.zeros(8, dtype=torch.long))])
    """
    neurons = named_spiking_layers(net)
    costs = {} if costs is None else costs
    check_mapping("costs", costs, NeuronCost, "a mapping of neuron classes to NeuronCosts, or None")
    for kind, cost in costs.items():
        check_type("a key of costs", kind, type, "a class of neurons")
        _check_cost(f"costs of {kind.__name__}", cost)
    warn_if_untrained({name: layer for name, layer in neurons.items() if isinstance(layer, OurLayer)})
    owned = {id(part) for layer in neurons.values() for part in layer.modules() if not isinstance(part, _WEIGHTS)}
    counts: dict[str, list[float]] = {}
    spikes: dict[str, list[float]] = {}
    handles = []
    try:
        for name, layer in neurons.items():
            cost = _neuron_cost(name, layer, costs)
            handles.append(layer.register_forward_hook(_neuron_hook(name, cost, counts, spikes)))
        for name, layer in net.named_modules():
            if isinstance(layer, _WEIGHTS):
                handles.append(layer.register_forward_hook(_weight_hook(name or type(layer).__name__, counts)))
            elif (
                id(layer) not in owned
                and not isinstance(layer, _FOLDED)
                and any(True for _ in layer.parameters(recurse=False))
            ):
                raise ValueError(
                    f"the operations of {name or 'net'} ({type(layer).__name__}) are not known: it "
                    "has parameters but is no Linear, "
                    "convolution, batch normalisation or neuron layer"
                )
        samples = 0
        for x, target in pairs("batches", batches):
            with evaluating(net):
                net(x)
            samples += len(target)
    finally:
        for handle in handles:
            handle.remove()
    if not samples:
        raise no_samples()
    silent = [name for name, (fired, _) in spikes.items() if not fired]
    if len(silent) == len(spikes):
        raise ValueError(
            f"not one spike in {samples} samples: the energy of a silent net says nothing (is it trained, x scaled?)"
        )
    if silent:
        warnings.warn(f"{', '.join(silent)}: no neuron of the layer fires", stacklevel=2)
    modules = {**dict(net.named_modules()), **neurons}
    rows = []
    for name, (ac, mac) in counts.items():
        rate = spikes[name][0] / spikes[name][1] if name in spikes else None
        rows.append(LayerEnergy(name, type(modules.get(name, net)).__name__, ac / samples, mac / samples, rate))
    return EnergyReport(tuple(rows), samples)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_WEIGHTS = (nn.Linear, *_CONVOLUTIONS)
_FOLDED = (nn.modules.batchnorm._BatchNorm,)

# by class name, so that neither framework has to be imported
_KNOWN_COSTS: dict[str, Callable[[Any], NeuronCost]] = {
    "LIFNode": lambda layer: LIF_COST,
    "ParametricLIFNode": lambda layer: LIF_COST,
    "IFNode": lambda layer: IF_COST,
    "PSN": lambda layer: psn_cost(layer.T),
    "MaskedPSN": lambda layer: sliding_psn_cost(layer.k),
    "SlidingPSN": lambda layer: sliding_psn_cost(layer.k),
    "Leaky": lambda layer: LIF_COST,
    "Lapicque": lambda layer: LIF_COST,
    "RLeaky": lambda layer: LIF_COST,
    "StateLeaky": lambda layer: LIF_COST,
    "Synaptic": lambda layer: SYNAPTIC_COST,
    "RSynaptic": lambda layer: SYNAPTIC_COST,
}


def _neuron_cost(name: str, layer: nn.Module, costs: Mapping[type[nn.Module], NeuronCost]) -> NeuronCost:
    for kind, cost in costs.items():
        if isinstance(layer, kind):
            return cost
    if isinstance(layer, PMSNParametersMixin):
        return pmsn_cost(layer.n_compartments, layer.reset_mode)
    if isinstance(layer, TCLIFParametersMixin):
        # a leak is one more multiplication; the spikes of a recurrent layer meet its own weights
        mac = TCLIF_COST.mac + sum(a != 1.0 for a in layer.leak)
        own = layer.fan_out if isinstance(layer, RecurrentTCLIFParametersMixin) else 0
        return TCLIF_COST._replace(mac=mac, ac_per_spike=TCLIF_COST.ac_per_spike + own)
    own_cost = getattr(layer, "step_operations", None)  # MultiCompartmentNode
    if isinstance(own_cost, NeuronCost):
        return own_cost
    known = _KNOWN_COSTS.get(type(layer).__name__)
    if known is None:
        raise ValueError(
            f"the operations of neuron layer {name} ({type(layer).__name__}) are not known; pass "
            f"costs={{{type(layer).__name__}: NeuronCost(mac=..., ac=..., ac_per_spike=...)}}"
        )
    return known(layer)


def _neuron_hook(
    name: str, cost: NeuronCost, counts: dict[str, list[float]], spikes: dict[str, list[float]]
) -> Callable:
    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        out = only_output(output)
        # graded spikes are still one spike each
        fired = number if (number := _spike_count(out)) is not None else out.count_nonzero().item()
        _add(spikes, name, fired, out.numel())
        _add(counts, name, cost.ac * out.numel() + cost.ac_per_spike * fired, cost.mac * out.numel())

    return hook


def _weight_hook(name: str, counts: dict[str, list[float]]) -> Callable:
    def hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        (x,) = inputs
        number = _spike_count(x)
        if isinstance(module, nn.Linear):
            if number is None:
                _add(counts, name, 0.0, x.numel() * module.out_features)
            else:
                _add(counts, name, number * module.out_features, 0.0)
        elif number is None:
            _add(counts, name, 0.0, output.numel() * module.weight[0].numel())
        else:
            _add(counts, name, _convolution_uses(module, x), 0.0)

    return hook


def _convolution_uses(module: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> float:
    """How often a spike of ``x`` meets a weight: a convolution with weights of 1, one output channel per group."""
    if getattr(module, "step_mode", "s") == "m":
        x = x.flatten(0, 1)
    ones = torch.ones_like(module.weight[: module.groups])
    uses = module._conv_forward(x.to(ones), ones, None).sum(dtype=torch.float64).item()
    return uses * (module.out_channels // module.groups)


def _spike_count(x: Tensor) -> float | None:
    """Number of spikes in ``x``, or None if it is no spike tensor."""
    if x.dtype == torch.bool or not (x.is_floating_point() and ((x < 0) | (x != x.round())).any()):
        return x.sum(dtype=torch.float64).item()
    return None


def _add(totals: dict[str, list[float]], name: str, first: float, second: float) -> None:
    total = totals.setdefault(name, [0.0, 0.0])
    total[0] += first
    total[1] += second


class EnergyPoint(NamedTuple):
    """One net in the accuracy-energy plane: label, accuracy in percent, energy per inference in nJ."""

    label: str
    accuracy: float
    energy_nj: float


def plot_accuracy_energy(points: Sequence[EnergyPoint]) -> Figure:
    """Accuracy against energy per inference (PMSN paper, Fig. 6): up and to the left is better.

    Raises:
        TypeError: ``points`` are no EnergyPoints, or one of them holds no numbers.
        ValueError: no point, an accuracy that is no percentage, or an energy that is not above 0.

    Example:
        >>> figure = plot_accuracy_energy([EnergyPoint("PMSN", 97.0, 12.5), EnergyPoint("LIF", 90.0, 8.0)])
    """
    check_items("points", points, EnergyPoint, "a series of EnergyPoints")
    for point in points:
        check_type("label", point.label, str, "a string")
        check_finite(f"accuracy of {point.label!r}", point.accuracy)
        if not 0.0 <= point.accuracy <= 100.0:
            raise ValueError(f"accuracy of {point.label!r} must be a percentage, got {point.accuracy}")
        check_positive(f"energy_nj of {point.label!r}", point.energy_nj)
    if not points:
        raise ValueError("points is empty: there must be at least one EnergyPoint")
    figure, axes = new_figure(3.8)
    ax = axes[0, 0]
    labels = list(dict.fromkeys(point.label for point in points))
    for i, label in enumerate(labels):
        mine = [point for point in points if point.label == label]
        ax.plot(
            [point.energy_nj for point in mine],
            [point.accuracy for point in mine],
            linestyle="",
            marker=MARKERS[i % len(MARKERS)],
            color=COLORS[i % len(COLORS)],
            markersize=9,
            label=label,
        )
    ax.set_xscale("log")
    ax.margins(0.12)
    ax.set_xlabel("energy per inference (nJ, 45 nm, arithmetic only)")
    ax.set_ylabel("test accuracy (%)")
    figure.legend(loc="outside right upper", frameon=False)
    return figure
