"""Surrogate gradients of the Heaviside step, one table for SpikingJelly, snnTorch and the two papers.

A spike is ``S = Heaviside(x)`` of ``x = u - v_threshold``. Its true derivative is zero almost everywhere; training
replaces it by ``g(x)``. Each row of :data:`SURROGATES` is one ``g`` with the names and defaults of its parameters.

SpikingJelly fires at ``x >= 0``, snnTorch at ``x > 0``: that is ``strict``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import check_choice, check_positive

SpikeFunction = Callable[[Tensor], Tensor]
"""Maps ``u - v_threshold`` to spikes, with a surrogate gradient: what both frameworks call a surrogate function."""


class SurrogateRow(NamedTuple):
    """One surrogate gradient ``derivative(x, *parameters)`` and the defaults of its parameters."""

    derivative: Callable[..., Tensor]
    defaults: dict[str, float]


class SurrogateSpec(NamedTuple):
    """A surrogate function that the table knows: its row, the parameter values, and where it fires.

    Attributes:
        name: a key of :data:`SURROGATES`.
        parameters: values in the order of the row's ``defaults``.
        strict: True fires at ``x > 0`` (snnTorch), False at ``x >= 0`` (SpikingJelly, the papers).
    """

    name: str
    parameters: tuple[float, ...]
    strict: bool


def _sigmoid(x: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * x)
    return alpha * s * (1.0 - s)


def _s2nn(x: Tensor, alpha: float, beta: float) -> Tensor:
    # the right branch is evaluated at |x| so that its pole at x = -1 never meets the mask as inf * 0
    return torch.where(x < 0.0, _sigmoid(x, alpha), beta / (x.abs() + 1.0))


SURROGATES: dict[str, SurrogateRow] = {
    "triangle": SurrogateRow(lambda x, alpha: (alpha - alpha**2 * x.abs()).clamp(min=0.0), {"alpha": 1.0}),
    "sigmoid": SurrogateRow(_sigmoid, {"alpha": 4.0}),
    "atan": SurrogateRow(lambda x, alpha: alpha / 2 / (1 + (math.pi / 2 * alpha * x).square()), {"alpha": 2.0}),
    "piecewise_exp": SurrogateRow(lambda x, alpha: alpha / 2 * torch.exp(-alpha * x.abs()), {"alpha": 1.0}),
    "soft_sign": SurrogateRow(lambda x, alpha: alpha / 2 / (1 + alpha * x.abs()).square(), {"alpha": 2.0}),
    "super_spike": SurrogateRow(lambda x, alpha: alpha / (1 + x.abs()).square(), {"alpha": 1.0}),
    "erf": SurrogateRow(lambda x, alpha: alpha / math.sqrt(math.pi) * torch.exp(-(alpha * x).square()), {"alpha": 2.0}),
    "rect": SurrogateRow(lambda x, alpha: alpha * (x.abs() < 0.5 / alpha).to(x), {"alpha": 1.0}),
    "leaky_k_relu": SurrogateRow(
        lambda x, leak, k: torch.where(x >= 0.0, k * torch.ones_like(x), leak), {"leak": 0.0, "k": 1.0}
    ),
    "piecewise_leaky_relu": SurrogateRow(
        lambda x, slope, w, c: torch.where(x.abs() < w, slope * torch.ones_like(x), c),
        {"slope": 0.5, "w": 1.0, "c": 0.01},
    ),
    "nonzero_sign_log_abs": SurrogateRow(lambda x, alpha: 1 / (1 / alpha + x.abs()), {"alpha": 1.0}),
    "log_tailed_relu": SurrogateRow(
        lambda x, alpha: torch.where(x <= 0.0, alpha * torch.ones_like(x), 1 / x.clamp(min=1.0)), {"alpha": 0.0}
    ),
    "s2nn": SurrogateRow(_s2nn, {"alpha": 4.0, "beta": 1.0}),
    "q_pseudo_spike": SurrogateRow(lambda x, alpha: (1 + 2 / (alpha - 1) * x.abs()).pow(-alpha), {"alpha": 2.0}),
    "fast_sigmoid": SurrogateRow(lambda x, slope: 1 / (1 + slope * x.abs()).square(), {"slope": 25.0}),
    "spike_rate_escape": SurrogateRow(
        lambda x, beta, slope: slope * torch.exp(-beta * (x - 1).abs()), {"beta": 1.0, "slope": 25.0}
    ),
    "straight_through": SurrogateRow(torch.ones_like, {}),
}

_SPIKINGJELLY = {
    "PiecewiseQuadratic": "triangle",
    "Sigmoid": "sigmoid",
    "ATan": "atan",
    "PiecewiseExp": "piecewise_exp",
    "SoftSign": "soft_sign",
    "SuperSpike": "super_spike",
    "Erf": "erf",
    "Rect": "rect",
    "LeakyKReLU": "leaky_k_relu",
    "PiecewiseLeakyReLU": "piecewise_leaky_relu",
    "NonzeroSignLogAbs": "nonzero_sign_log_abs",
    "LogTailedReLU": "log_tailed_relu",
    "S2NN": "s2nn",
    "QPseudoSpike": "q_pseudo_spike",
}

# snnTorch's own names; each is a closure `<name>.<locals>.inner`. Its sigmoid is not here: it overflows to NaN
# below x = -4, its SSO draws random numbers in backward and its LSO raises, so those run as the user's own code.
_SNNTORCH = {
    "atan": "atan",
    "fast_sigmoid": "fast_sigmoid",
    "spike_rate_escape": "spike_rate_escape",
    "straight_through_estimator": "straight_through",
}


class _Spike(torch.autograd.Function):
    """Heaviside forward, a row of :data:`SURROGATES` backward."""

    @staticmethod
    def forward(ctx, x: Tensor, name: str, parameters: tuple[float, ...], strict: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.row = name, parameters
        return (x > 0 if strict else x >= 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        (x,) = ctx.saved_tensors
        name, parameters = ctx.row
        return grad_output * SURROGATES[name].derivative(x, *parameters), None, None, None


class TableSurrogate:
    """A surrogate function made from a row of :data:`SURROGATES`; usable wherever snnTorch takes ``spike_grad``.

    Args:
        name: a key of :data:`SURROGATES`.
        strict: fire at ``x > 0`` instead of ``x >= 0``.
        **parameters: overrides of the row's defaults.

    Raises:
        ValueError: unknown name or parameter.
    """

    def __init__(self, name: str, strict: bool = False, **parameters: float) -> None:
        check_choice("surrogate name", name, SURROGATES)
        defaults = SURROGATES[name].defaults
        for parameter in parameters:
            check_choice(f"parameter of surrogate {name!r}", parameter, defaults)
        self.spec = SurrogateSpec(name, tuple(float(v) for v in {**defaults, **parameters}.values()), strict)

    def __call__(self, x: Tensor) -> Tensor:
        return _Spike.apply(x, *self.spec)

    def __repr__(self) -> str:
        name, parameters, strict = self.spec
        shown = [f"{key}={value}" for key, value in zip(SURROGATES[name].defaults, parameters, strict=True)]
        return f"{name}({', '.join([*shown, f'strict={strict}'])})"


def triangle(alpha: float = 1.0, strict: bool = False) -> TableSurrogate:
    """The papers' surrogate ``g(x) = alpha max(0, 1 - alpha |x|)`` (PMSN Eq. 19; TC-LIF's code, ``alpha = 1``).

    It equals SpikingJelly's ``surrogate.PiecewiseQuadratic(alpha)``. snnTorch has no such function
    (``surrogate.triangular`` is another one); pass ``triangle(strict=True)`` as its ``spike_grad``.
    """
    check_positive("alpha", alpha)
    return TableSurrogate("triangle", strict, alpha=alpha)


def describe(surrogate_function: object) -> SurrogateSpec | None:
    """Find a user's surrogate function in the table.

    Args:
        surrogate_function: an object of ``spikingjelly.activation_based.surrogate`` or ``snntorch.surrogate``, or one
            made here.

    Returns:
        Its row, parameters and firing rule, or None when it is anything else (a subclass, a lambda, a relaxed
        ``spiking=False`` function, ...): then only the function itself knows what it does.
    """
    if isinstance(surrogate_function, TableSurrogate):
        return surrogate_function.spec
    kind = type(surrogate_function)
    if kind.__module__ == "spikingjelly.activation_based.surrogate":
        name = _SPIKINGJELLY.get(kind.__name__)
        if name is None or not surrogate_function.spiking:
            return None
        values = {p: getattr(surrogate_function, p, None) for p in SURROGATES[name].defaults}
        if name == "piecewise_leaky_relu":  # SpikingJelly 2.0 halved the slope that 0.0.0.0.14 has
            w = surrogate_function.w
            values = {**values, "slope": 1 / (2 * w) if hasattr(surrogate_function, "_sg_params") else 1 / w}
        strict = False
    elif getattr(surrogate_function, "__module__", None) == "snntorch.surrogate":
        maker, _, rest = getattr(surrogate_function, "__qualname__", "").partition(".")
        name = _SNNTORCH.get(maker)
        if name is None or rest != "<locals>.inner":
            return None
        values = inspect.getclosurevars(surrogate_function).nonlocals
        strict = True
    else:
        return None
    parameters = tuple(values.get(p) for p in SURROGATES[name].defaults)
    if not all(isinstance(p, (int, float)) for p in parameters):
        return None  # a learnable (tensor) parameter needs autograd through the function itself
    return SurrogateSpec(name, tuple(float(p) for p in parameters), strict)
