"""Surrogate gradients of the Heaviside step: one table for the papers and for all frameworks.

A spike is ``S = Heaviside(x)`` of ``x = u - v_threshold``. Its true derivative is zero almost everywhere; training
replaces it by ``g(x)``. Each row of :data:`.SURROGATES` is one ``g`` with the names and defaults of its parameters.

Frameworks fire at ``x >= 0`` or at ``x > 0``: that is ``strict``. Which of their functions is which row, they say
themselves, with :func:`.register_surrogates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._checks import check_choice
from .._compiler import assume_constant_result

SpikeFunction = Callable[[Tensor], Tensor]
"""Maps ``u - v_threshold`` to spikes, with a surrogate gradient: what both frameworks call a surrogate function."""


class SurrogateRow(NamedTuple):
    """One surrogate gradient ``derivative(x, *parameters)``.

    Attributes:
        derivative: the formula.
        defaults: of its parameters.
        above, least: bounds of parameters, exclusive and inclusive, outside of which the formula makes no sense.
    """

    derivative: Callable[..., Tensor]
    defaults: dict[str, float]
    above: Mapping[str, float] = {}
    least: Mapping[str, float] = {}


class SurrogateSpec(NamedTuple):
    """A surrogate function that is known: its slope and where it fires.

    Attributes:
        name: a key of :data:`.SURROGATES`, or :data:`.OWN`.
        parameters: values in the order of the row's ``defaults``; none for :data:`.OWN`.
        strict: True fires at ``x > 0`` (snnTorch), False at ``x >= 0`` (SpikingJelly, the papers).
    """

    name: str
    parameters: tuple[float, ...]
    strict: bool


OWN = "own"
"""Instead of a row: the function is a step, and its slope is in no row. Only the function itself can tell it."""


def _sigmoid(x: Tensor, alpha: float) -> Tensor:
    s = torch.sigmoid(alpha * x)
    return alpha * s * (1.0 - s)


def _s2nn(x: Tensor, alpha: float, beta: float) -> Tensor:
    # the right branch is evaluated at |x| so that its pole at x = -1 never meets the mask as inf * 0
    return torch.where(x < 0.0, _sigmoid(x, alpha), beta / (x.abs() + 1.0))


def _alpha(derivative: Callable[[Tensor, float], Tensor], default: float) -> SurrogateRow:
    """A row whose one parameter scales x: zero would flatten the function, and a negative one turn it round."""
    return SurrogateRow(derivative, {"alpha": default}, above={"alpha": 0.0})


# pi / 2 and 1 / sqrt(pi) are literals: with dynamic=True torch.compile makes a symbol of math.pi, and then gives up
SURROGATES: dict[str, SurrogateRow] = {
    "triangle": _alpha(lambda x, alpha: (alpha - alpha**2 * x.abs()).clamp(min=0.0), 1.0),
    "sigmoid": _alpha(_sigmoid, 4.0),
    "atan": _alpha(lambda x, alpha: alpha / 2 / (1 + (1.5707963267948966 * alpha * x).square()), 2.0),
    "piecewise_exp": _alpha(lambda x, alpha: alpha / 2 * torch.exp(-alpha * x.abs()), 1.0),
    "soft_sign": _alpha(lambda x, alpha: alpha / 2 / (1 + alpha * x.abs()).square(), 2.0),
    "super_spike": _alpha(lambda x, alpha: alpha / (1 + x.abs()).square(), 1.0),
    "erf": _alpha(lambda x, alpha: alpha * 0.5641895835477563 * torch.exp(-(alpha * x).square()), 2.0),
    "rect": _alpha(lambda x, alpha: alpha * (x.abs() < 0.5 / alpha).to(x), 1.0),
    "leaky_k_relu": SurrogateRow(
        lambda x, leak, k: torch.where(x >= 0.0, k * torch.ones_like(x), leak), {"leak": 0.0, "k": 1.0}
    ),
    "piecewise_leaky_relu": SurrogateRow(
        lambda x, slope, w, c: torch.where(x.abs() < w, slope * torch.ones_like(x), c),
        {"slope": 0.5, "w": 1.0, "c": 0.01},
        above={"w": 0.0},
    ),
    "nonzero_sign_log_abs": _alpha(lambda x, alpha: 1 / (1 / alpha + x.abs()), 1.0),
    "log_tailed_relu": SurrogateRow(
        lambda x, alpha: torch.where(x <= 0.0, alpha * torch.ones_like(x), 1 / x.clamp(min=1.0)), {"alpha": 0.0}
    ),
    "s2nn": SurrogateRow(_s2nn, {"alpha": 4.0, "beta": 1.0}, above={"alpha": 0.0, "beta": 0.0}),
    "q_pseudo_spike": SurrogateRow(
        lambda x, alpha: (1 + 2 / (alpha - 1) * x.abs()).pow(-alpha), {"alpha": 2.0}, above={"alpha": 1.0}
    ),
    "fast_sigmoid": SurrogateRow(
        lambda x, slope: 1 / (1 + slope * x.abs()).square(), {"slope": 25.0}, least={"slope": 0.0}
    ),
    "spike_rate_escape": SurrogateRow(
        lambda x, beta, slope: slope * torch.exp(-beta * (x - 1).abs()),
        {"beta": 1.0, "slope": 25.0},
        above={"slope": 0.0},
        least={"beta": 0.0},
    ),
    "straight_through": SurrogateRow(torch.ones_like, {}),
}


_NO_ROW = SurrogateRow(torch.zeros_like, {})
"""Of :data:`.OWN`: nobody asks for its derivative."""


class _Spike(torch.autograd.Function):
    """Heaviside forward, a row of :data:`.SURROGATES` backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, strict: bool, *parameters: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.row = name, parameters
        return _step(x, strict)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        name, parameters = ctx.row
        return grad_output * SURROGATES[name].derivative(x, *parameters), None, None, *(None for _ in parameters)


class _TransformableSpike(_Spike):
    """The same for ``torch.func`` and forward-mode differentiation: this form costs twice as much per call, and
    torch.compile does not take it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(  # type: ignore[override]  # without ctx: the form that torch.func asks for
        x: Tensor, name: str, strict: bool, *parameters: float
    ) -> Tensor:
        return _step(x, strict)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, name, _, *parameters = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.row = name, parameters

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (x,) = ctx.saved_tensors
        name, parameters = ctx.row
        return tangent * SURROGATES[name].derivative(x, *parameters)


def _step(x: Tensor, strict: bool) -> Tensor:
    return (x > 0 if strict else x >= 0).to(x.dtype)


def transforming() -> bool:
    """Whether ``torch.func`` is at work."""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def transformed() -> bool:
    """Whether ``torch.func`` or forward-mode differentiation is at work."""
    return transforming() or (not torch.compiler.is_compiling() and forward_ad._current_level >= 0)


def _spike(x: Tensor, spec: SurrogateSpec) -> Tensor:
    if torch.compiler.is_compiling():
        # a number that PyTorch 2.14 first meets inside a function's backward is lost to the function's next call
        return _Spike.apply(x, spec.name, spec.strict, *[float(parameter) for parameter in spec.parameters])
    if torch.jit.is_tracing():
        return _traced_spike(x, spec)
    function = _TransformableSpike if transformed() else _Spike
    return function.apply(x, spec.name, spec.strict, *spec.parameters)


def _traced_spike(x: Tensor, spec: SurrogateSpec) -> Tensor:
    """The same in PyTorch's own operations: a trace with a function of Python cannot be saved."""
    spikes = _step(x, spec.strict)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return spikes
    slope = SURROGATES[spec.name].derivative(x.detach(), *spec.parameters)
    # nothing is added, unless x is not finite: then NaN, which is taken away
    return spikes + torch.nan_to_num(slope * (x - x.detach()), 0.0, 0.0, 0.0)


class TableSurrogate:
    """A surrogate function made from a row of :data:`.SURROGATES`; usable wherever snnTorch takes ``spike_grad``.

    Args:
        name: a key of :data:`.SURROGATES`.
        strict: fire at ``x > 0`` instead of ``x >= 0``.
        **parameters: overrides of the row's defaults.

    Raises:
        TypeError: ``strict`` is not a bool, or a parameter is not a real number.
        ValueError: unknown name or parameter, or a value outside its bounds.
    """

    def __init__(self, name: str, strict: bool = False, **parameters: float) -> None:
        check_choice("surrogate name", name, SURROGATES)
        if not isinstance(strict, bool):
            raise TypeError(f"strict must be True or False, got {strict!r}")
        defaults = SURROGATES[name].defaults
        for parameter, value in parameters.items():
            check_choice(f"parameter of surrogate {name!r}", parameter, defaults)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{parameter} of surrogate {name!r} must be a real number, got {value!r}")
        spec = _specify(name, {**defaults, **parameters}, strict, self)
        assert spec is not None  # all parameters are numbers
        self.spec: SurrogateSpec = spec

    def __call__(self, x: Tensor) -> Tensor:
        return _spike(x, self.spec)

    def __repr__(self) -> str:
        name, parameters, strict = self.spec
        shown = [f"{key}={value}" for key, value in zip(SURROGATES[name].defaults, parameters, strict=True)]
        return f"{name}({', '.join([*shown, f'strict={strict}'])})"


def triangle(alpha: float = 1.0, strict: bool = False) -> TableSurrogate:
    """The papers' surrogate ``g(x) = alpha max(0, 1 - alpha |x|)`` (PMSN Eq. 19; TC-LIF's code, ``alpha = 1``).

    It equals SpikingJelly's ``surrogate.PiecewiseQuadratic(alpha)``. snnTorch has no such function
    (``surrogate.triangular`` is another one); pass ``triangle(strict=True)`` as its ``spike_grad``.

    Example:
        >>> x = torch.tensor([-0.5, 0.0, 2.0], requires_grad=True)
        >>> spikes = triangle()(x)
        >>> spikes
        tensor([0., 1., 1.], grad_fn=<_SpikeBackward>)
        >>> torch.autograd.grad(spikes.sum(), x)
        (tensor([0.5000, 1.0000, 0.0000]),)
    """
    return TableSurrogate("triangle", strict, alpha=alpha)


def straight_through(strict: bool = False) -> TableSurrogate:
    """The step with the gradient of the identity, ``g(x) = 1``: with ``burst=True`` the plain straight-through one.

    Example:
        >>> x = torch.tensor([-0.5, 2.0], requires_grad=True)
        >>> torch.autograd.grad(straight_through()(x).sum(), x)
        (tensor([1., 1.]),)
    """
    return TableSurrogate("straight_through", strict)


Known = tuple[str, Mapping[str, object], bool]
"""What a framework says of one of its functions: its row or :data:`OWN`, all its parameters by name, and ``strict``."""

_frameworks: dict[str, Callable[[Any], Known | None]] = {}


def register_surrogates(module: str, known: Callable[[Any], Known | None]) -> None:
    """Teach :func:`describe` the surrogate functions of a framework.

    Args:
        module: dotted name of the module that they (or their classes) are defined in: their ``__module__``.
        known: called with an object of that module; says what it is, or None unless it is sure that the object is a
            step at zero whose gradient is linear in the one that comes in.

    Example:
        >>> class Ramp:
        ...     alpha = 1.0
        >>> def known(function):
        ...     return ("rect", {"alpha": function.alpha}, False) if type(function) is Ramp else None
        >>> register_surrogates(Ramp.__module__, known)
        >>> describe(Ramp())
        SurrogateSpec(name='rect', parameters=(1.0,), strict=False)
    """
    _frameworks[module] = known


def describe(surrogate_function: object) -> SurrogateSpec | None:
    """Find a user's surrogate function in the table.

    Args:
        surrogate_function: one made here, or one of a framework whose adapter (:mod:`pmsn_plugins.spikingjelly`,
            :mod:`pmsn_plugins.snntorch`) has been imported.

    Returns:
        Its row, parameters and firing rule; for :data:`.OWN` only the firing rule. None when it is anything else (a
        subclass, a lambda, a relaxed or a stochastic function, one with learnable parameters, ...): then only the
        function itself knows what it does.

    Raises:
        ValueError: a known function with a parameter that makes its gradient meaningless.

    Example:
        >>> describe(triangle(alpha=2.0))
        SurrogateSpec(name='triangle', parameters=(2.0,), strict=False)
        >>> describe(torch.relu) is None
        True
    """
    if type(surrogate_function) is TableSurrogate:
        return surrogate_function.spec
    look_up = _look_up_function if isinstance(surrogate_function, FunctionType) else _look_up
    return look_up(surrogate_function)


def _look_up(surrogate_function: object) -> SurrogateSpec | None:
    known = _frameworks.get(getattr(surrogate_function, "__module__", None) or "")
    found = None if known is None else known(surrogate_function)
    return None if found is None else _specify(*found, surrogate_function)


def spike_function(surrogate_function: SpikeFunction | None) -> SpikeFunction:
    """What the neurons call for ``surrogate_function``; its spikes have the dtype of its argument.

    The default :func:`triangle` for None, its row for a function of the table (snnTorch's own spikes are always
    float32, and so are the gradients that pass through them), and any other function as it is. What that one returns
    is checked: TypeError unless it is a floating-point tensor, ValueError unless it has the shape of the argument.

    Example:
        >>> spike_function(None)(torch.tensor([-1.0, 1.0]))
        tensor([0., 1.])
    """
    if surrogate_function is None:
        return _DEFAULT
    spec = describe(surrogate_function)
    if spec is not None and spec.name != OWN:
        return partial(_spike, spec=spec)
    return partial(_checked, surrogate_function)


def _checked(surrogate_function: SpikeFunction, x: Tensor) -> Tensor:
    spikes = surrogate_function(x)
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        got = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"surrogate_function must return a floating-point tensor of spikes, got {got}")
    if spikes.shape != x.shape:
        raise ValueError(
            f"surrogate_function must return spikes of the shape of its argument, {tuple(x.shape)}, "
            f"got {tuple(spikes.shape)}"
        )
    return spikes.to(x.dtype)


@assume_constant_result
def _look_up_function(surrogate_function: object) -> SurrogateSpec | None:
    """For torch.compile, which cannot look into a closure."""
    return _look_up(surrogate_function)


def _specify(name: str, values: Mapping[str, object], strict: bool, function: object) -> SurrogateSpec | None:
    """None if a parameter is no number: a learnable (tensor) one needs autograd through the function itself."""
    row = SURROGATES.get(name, _NO_ROW)
    numbers: dict[str, float] = {}
    for parameter, value in values.items():
        if not isinstance(value, (int, float)):
            return None
        above, least = row.above.get(parameter, -math.inf), row.least.get(parameter, -math.inf)
        if not (above < value < math.inf and value >= least):
            kind = getattr(function, "__qualname__", type(function).__name__).partition(".")[0]
            kind = name if isinstance(function, TableSurrogate) else kind
            bound = f" above {above:g}" if parameter in row.above else ""
            bound = f" of at least {least:g}" if parameter in row.least else bound
            raise ValueError(f"surrogate function {kind}: {parameter} must be a finite number{bound}, got {value!r}")
        numbers[parameter] = float(value)
    return SurrogateSpec(name, tuple(numbers[parameter] for parameter in row.defaults), strict)


_DEFAULT = triangle()
