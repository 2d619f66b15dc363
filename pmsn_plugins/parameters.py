"""What the layers of both frameworks share: their parameters, checkpoint checks and optimiser groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ._checks import (
    check_finite,
    check_int_at_least,
    check_module,
    check_not_negative,
    check_options,
    check_positive,
    check_range,
    check_type,
    shown,
)
from .functional import PMSNCoefficients, PMSNParameters, pmsn_initial_parameters
from .kernels import discretize
from .kernels.unwatched import unwatched


def param_groups(
    module: nn.Module,
    lr: float,
    neuron_lr: float,
    weight_decay: float = 0.0,
    *,
    neuron_lr_scales: Mapping[str, float] | None = None,
    neuron_weight_decays: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Optimiser groups of a net (or one neuron), as the papers' accuracies need them.

    Weights, biases and the neurons' direct gain ``D`` get ``lr`` and ``weight_decay``. The other neuron parameters get
    no weight decay and ``neuron_lr`` (PMSN's ``log_dt``, ``log_decay``; TC-LIF's ``c1``, ``c2``) or ``10 * neuron_lr``
    (PMSN's ``freq``, ``B_*``, ``R_*``).

    Args:
        neuron_lr_scales: by name, the factor of ``neuron_lr`` where it is to be another one (the PMSN authors' ImageNet
            script has 1 for ``B_*`` and ``R_*``).
        neuron_weight_decays: by name, the weight decay where there is to be one (their scripts for S-MNIST, PS-MNIST
            and CIFAR by pixel have 0.01 for ``B_real``).

    Raises:
        TypeError: ``module`` is no module, or a rate no number.
        ValueError: a rate is not above 0, or a weight decay below 0; or one of them is not finite. No neuron in
            ``module`` has a parameter of such a name.

    Example:
        >>> from pmsn_plugins.spikingjelly import PMSNNode
        >>> net = nn.Sequential(nn.Linear(2, 3), PMSNNode(3, step_mode="m"))
        >>> optimizer = torch.optim.AdamW(param_groups(net, lr=1e-2, neuron_lr=1e-3, weight_decay=0.01))
        >>> [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        [(0.01, 0.01), (0.001, 0.0), (0.01, 0.0)]
    """
    check_module("module", module)
    check_positive("lr", lr)
    check_positive("neuron_lr", neuron_lr)
    check_not_negative("weight_decay", weight_decay)
    scales = _by_name("neuron_lr_scales", neuron_lr_scales, check_positive)
    decays = _by_name("neuron_weight_decays", neuron_weight_decays, check_not_negative)
    of_neurons: dict[int, tuple[float, float]] = {}
    known: set[str] = set()
    for child in module.modules():
        for name, scale in getattr(child, "neuron_lr_scale", {}).items():
            known.add(name)
            of_neurons[id(getattr(child, name))] = float(scales.get(name, scale)), float(decays.get(name, 0.0))
    for option, values in (("neuron_lr_scales", scales), ("neuron_weight_decays", decays)):
        check_options(option, values, sorted(known))
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():  # each shared parameter once
        if parameter.requires_grad:
            groups.setdefault(of_neurons.get(id(parameter), (0.0, 0.0)), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": scale * neuron_lr if scale else lr,
            "weight_decay": decay if scale else weight_decay,
        }
        for (scale, decay), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def _by_name(
    option: str, values: Mapping[str, float] | None, check: Callable[[str, float], None]
) -> Mapping[str, float]:
    values = {} if values is None else values
    check_type(option, values, Mapping, "a mapping of names to numbers")
    for name, value in values.items():
        check(f"{option}[{name!r}]", value)
    return values


class NeuronParameters(nn.Module):
    """Mixin for a layer that owns neuron parameters."""

    neuron_lr_scale: ClassVar[dict[str, float]]
    """Learning rate of each parameter in units of ``neuron_lr``; the parameters not listed go with the weights."""

    def param_groups(
        self, lr: float, neuron_lr: float, weight_decay: float = 0.0, **by_name: Mapping[str, float] | None
    ) -> list[dict[str, Any]]:
        """Optimiser groups of this neuron alone; see :func:`pmsn_plugins.param_groups` for a whole net."""
        return param_groups(self, lr, neuron_lr, weight_decay, **by_name)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Refuse a checkpoint with NaN or infinite values and keep this neuron's parameters as they are."""
        broken = [
            prefix + name
            for name, _ in self.named_parameters()
            if isinstance(value := state_dict.get(prefix + name), Tensor) and not value.isfinite().all()
        ]
        if broken:
            errors.append(f"NaN or infinite values in {', '.join(broken)}: the checkpoint is broken, none was loaded")
            state_dict.update((prefix + name, value.detach()) for name, value in self.named_parameters())
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)


class PMSNParametersMixin(NeuronParameters):
    """The parameters of a PMSN layer: ``log_dt`` [C], six of [C, k], and ``D`` [C]; k = n_compartments - 1."""

    neuron_lr_scale: ClassVar[dict[str, float]] = {
        "log_dt": 1.0,
        "log_decay": 1.0,
        "freq": 10.0,
        "B_real": 10.0,
        "B_imag": 10.0,
        "R_real": 10.0,
        "R_imag": 10.0,
    }

    log_dt: Tensor
    log_decay: Tensor
    freq: Tensor
    B_real: Tensor
    B_imag: Tensor
    R_real: Tensor
    R_imag: Tensor
    D: Tensor
    channels: int
    reset_mode: str
    context: str
    burst: bool
    backend: str

    def _create_parameters(
        self,
        channels: int,
        n_compartments: int,
        preset: str,
        dt_range: tuple[float, float] | None = None,
        coupling: float | None = None,
        time_scale: float | None = None,
    ) -> None:
        self.channels = channels
        self.n_compartments = n_compartments
        self.preset = preset
        self.dt_range = dt_range
        self.coupling = coupling
        self.time_scale = time_scale
        initial = self._initial_parameters()
        for name, value in zip(initial._fields, initial, strict=True):
            setattr(self, name, nn.Parameter(value))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the initial values again, in place."""
        initial = self._initial_parameters()
        for name, value in zip(initial._fields, initial, strict=True):
            getattr(self, name).copy_(value)

    def _initial_parameters(self) -> PMSNParameters:
        return pmsn_initial_parameters(self.channels, self.n_compartments, self.preset, **self._changes_of_preset())

    def _changes_of_preset(self) -> dict[str, Any]:
        return {"dt_range": self.dt_range, "coupling": self.coupling, "time_scale": self.time_scale}

    def initial_repr(self) -> str:
        """Where the initial values come from, as ``extra_repr`` shows it."""
        given = {name: value for name, value in self._changes_of_preset().items() if value is not None}
        return ", ".join(f"{name}={value}" for name, value in {"preset": self.preset, **given}.items())

    def neuron_parameters(self) -> PMSNParameters:
        """The parameters, as the functions take them."""
        if torch.compiler.is_compiling():
            return PMSNParameters(*(getattr(self, name) for name in PMSNParameters._fields))
        own = self._parameters.get  # an eighth of what asking a module takes
        return PMSNParameters(*[getattr(self, f) if (p := own(f)) is None else p for f in PMSNParameters._fields])

    def _parameters_of_kernels(self) -> dict[str, Tensor | None]:
        if type(self).neuron_parameters is not PMSNParametersMixin.neuron_parameters:
            return {}
        return {name: self._parameters.get(name) for name in PMSNParameters._fields}

    def coefficients(self) -> PMSNCoefficients:
        """The discrete-time coefficients of the present parameters."""
        return discretize(self.neuron_parameters(), getattr(self, "backend", "auto"))


class TCLIFParametersMixin(NeuronParameters):
    """The couplings of a TC-LIF layer, ``b1 = -sigmoid(c1)`` and ``b2 = sigmoid(c2)``: one each, or one per channel."""

    neuron_lr_scale: ClassVar[dict[str, float]] = {"c1": 1.0, "c2": 1.0}

    c1: Tensor
    c2: Tensor
    channels: int | None
    gamma: float
    soma_feedback: str
    leak: tuple[float, float]
    """What dendrite and soma keep of their potential from step to step; (1, 1) in the paper."""

    def _set_leak(self, leak: tuple[float, float]) -> None:
        if not (isinstance(leak, tuple | list) and len(leak) == 2):
            raise TypeError(f"leak must be two numbers (a1, a2), got {shown(leak)}")
        for a in leak:
            check_finite("leak", a)
        a1, a2 = map(float, leak)
        if not (0.0 <= a1 <= 1.0 and 0.0 <= a2 <= 1.0):
            raise ValueError(f"leak must be (a1, a2), both from 0 to 1 (nothing leaks), got ({a1}, {a2})")
        self.leak = (a1, a2)

    def _create_parameters(
        self, beta: Iterable[float], channels: int | None, beta_range: tuple[float, float] | None = None
    ) -> None:
        if isinstance(beta, str | Tensor) or not isinstance(beta, Iterable):
            raise TypeError(f"beta must be two numbers (b1, b2), got {shown(beta)}")
        beta = tuple(beta)
        if len(beta) != 2:
            raise ValueError(f"beta must be two numbers (b1, b2), got {shown(beta)}")
        for b in beta:
            check_finite("beta", b)
        b1, b2 = map(float, beta)
        if not (-1.0 < b1 < 0.0 < b2 < 1.0):
            raise ValueError(f"beta must be (b1, b2) with b1 in (-1, 0) and b2 in (0, 1), got ({b1}, {b2})")
        if channels is not None:
            check_int_at_least("channels", channels, 1)
        shape: tuple[int, ...] = () if channels is None else (channels,)
        self.channels = channels
        if beta_range is None:
            self.c1 = nn.Parameter(torch.full(shape, math.log(-b1 / (1.0 + b1))))
            self.c2 = nn.Parameter(torch.full(shape, math.log(b2 / (1.0 - b2))))
            return
        check_range("beta_range", beta_range)
        low, high = map(float, beta_range)
        if high >= 1.0:
            raise ValueError(f"beta_range must be (low, high) with 0 < low <= high < 1, got ({low}, {high})")
        if channels is None:
            raise ValueError(
                f"beta_range is for one pair of couplings per channel, got ({low}, {high}) without channels"
            )
        for name in ("c1", "c2"):
            size = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * torch.rand(shape, dtype=torch.float32))
            setattr(self, name, nn.Parameter(torch.logit(size).to(torch.get_default_dtype())))

    def _couplings_of_step(self, step_ndim: int) -> tuple[Tensor, Tensor]:
        """:meth:`couplings`, not to be written to: without gradients those of a layer's two numbers are kept."""
        c1, c2 = self.c1, self.c2
        own = type(self).couplings is TCLIFParametersMixin.couplings
        if not (own and unwatched() and type(c1) is nn.Parameter and c1.ndim == 0 and c1.is_cpu and c2.is_cpu):
            return self.couplings(step_ndim)
        return _couplings(c1.item(), c2.item(), c1.dtype, c2.dtype)

    def _parameters_of_kernels(self) -> dict[str, Tensor | None]:
        if type(self).couplings is not TCLIFParametersMixin.couplings:
            return {}
        return {name: self._parameters.get(name) for name in ("c1", "c2")}

    def couplings(self, step_ndim: int) -> tuple[Tensor, Tensor]:
        """(b1, b2), shaped to broadcast over one step [N, *] or, per channel, [N, C, *] of ``step_ndim`` axes."""
        c1 = self.c1
        b1, b2 = -torch.sigmoid(c1), torch.sigmoid(self.c2)
        if c1.ndim == 0:
            return b1, b2
        shape = (-1,) + (1,) * (step_ndim - 2)
        return b1.view(shape), b2.view(shape)


@lru_cache(256)
def _couplings(c1: float, c2: float, *dtypes: torch.dtype) -> tuple[Tensor, Tensor]:
    """What torch makes of these numbers, [1]."""
    first, second = (torch.tensor([c], dtype=dtype) for c, dtype in zip((c1, c2), dtypes, strict=True))
    return -torch.sigmoid(first), torch.sigmoid(second)


class RecurrentTCLIFParametersMixin(TCLIFParametersMixin):
    """The couplings of a recurrent TC-LIF layer, and ``recurrent``, the Linear that its last spikes come back through.

    A state_dict of SpikingJelly's ``ElementWiseRecurrentContainer`` around a TC-LIF, whose function adds a Linear of
    the spikes named ``linear``, is taken as well: that is what these layers were before.
    """

    recurrent: nn.Linear

    _CONTAINER: ClassVar[dict[str, str]] = {
        "sub_module.neuron.": "",
        "sub_module.": "",
        "element_wise_function.linear.": "recurrent.",
    }

    def feedback(self, channels: int) -> tuple[Tensor, Tensor | None]:
        """Weights [C, C], row i holding what neuron i receives, and bias [C] or None."""
        return self.recurrent.weight, self.recurrent.bias

    @property
    def fan_out(self) -> int:
        """Weights that a spike is multiplied with in the feedback."""
        return self.recurrent.out_features

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            for theirs, ours in self._CONTAINER.items():
                if key.startswith(prefix + theirs):
                    state_dict[prefix + ours + key.removeprefix(prefix + theirs)] = state_dict.pop(key)
                    break
        super()._load_from_state_dict(state_dict, prefix, *arguments)


__all__ = [
    "NeuronParameters",
    "PMSNParametersMixin",
    "RecurrentTCLIFParametersMixin",
    "TCLIFParametersMixin",
    "param_groups",
]
