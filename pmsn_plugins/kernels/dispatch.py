"""Which backend computes a call, and the call itself."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional
from .._checks import check_choice
from ..functional import (
    PMSNCoefficients,
    PMSNOutput,
    PMSNParameters,
    PMSNState,
    SurrogateSpec,
    TCLIFOutput,
    TCLIFState,
    describe,
    triangle,
)
from ..functional.pmsn import check_pmsn_inputs, check_pmsn_parameters, fire
from ..functional.surrogate import SpikeFunction
from ..functional.tclif import check_tclif_inputs
from . import cpu, gpu, ops
from .plan import SURROGATES

BACKENDS = ("auto", "torch", "cpu", "cupy")

_DEVICE_BACKEND = {"cpu": "cpu", "cuda": "cupy"}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class BackendStatus(NamedTuple):
    """Whether a backend can be used here, and why (or why not)."""

    available: bool
    reason: str


class Choice(NamedTuple):
    """The backend of one call, and why."""

    backend: str
    reason: str


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, with whether it can be used on this machine and why."""
    return {name: _status(name) for name in BACKENDS[1:]}


@torch.compiler.assume_constant_result
def _status(backend: str) -> BackendStatus:
    if backend == "torch":
        return BackendStatus(True, "PyTorch operations, any device")
    if backend == "cpu":
        return BackendStatus(cpu.library is not None, cpu.reason)
    return BackendStatus(*gpu.status())


def check_backend(backend: str) -> None:
    """Raise ValueError for an unknown backend."""
    check_choice("backend", backend, BACKENDS)


def explain(function: Callable, *args: Any, **kwargs: Any) -> str:
    """Which backend a call of ``pmsn_sequence`` or ``tclif_sequence`` would use, and why, without computing it.

    Example:
        ``explain(kernels.pmsn_sequence, x_seq, coefficients)``
    """
    choosers = {"pmsn_sequence": _choose_pmsn, "tclif_sequence": _choose_tclif}
    check_choice("function", function.__name__, choosers)
    choose = choosers[function.__name__]
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    through_reset = given.get("reset_mode", "serial") == "serial"
    firing = _firing(given["surrogate_function"], given["v_threshold"], given.get("burst", False), through_reset)
    relevant = {name: given[name] for name in inspect.signature(choose).parameters if name in given}
    choice = choose(**relevant, firing=firing)
    return f"{choice.backend}: {choice.reason}"


def pmsn_sequence(
    x_seq: Tensor,
    coefficients: PMSNCoefficients | PMSNParameters,
    state: PMSNState | None = None,
    *,
    v_threshold: float | Tensor = 1.0,
    surrogate_function: SpikeFunction | None = None,
    reset_mode: str = "modulo",
    burst: bool = False,
    context: str = "local",
    return_v_seq: bool = False,
    return_state: bool = True,
    backend: str = "auto",
) -> PMSNOutput:
    """:func:`pmsn_plugins.functional.pmsn_sequence` on the chosen backend.

    On the CPU a sequence that starts from rest (``state=None``) takes a shorter way, which rounds otherwise, while
    gradients are recorded or when the final state is not wanted. Without gradients and with states, steps, chunks and
    the whole sequence agree to the last bit.

    Args:
        return_state: False leaves out the final state (None). For a few steps of many neurons it is larger than the
            sequence.

    Raises:
        ValueError: also for an unknown backend, or one that cannot take tensors of this device.
        RuntimeError: the backend was asked for by name and is not available here.
    """
    dtype = check_pmsn_inputs(x_seq, coefficients, state, v_threshold, reset_mode, context)
    firing = _firing(surrogate_function, v_threshold, burst, reset_mode == "serial")
    choice = _choose_pmsn(x_seq, coefficients, state, v_threshold, reset_mode, backend, firing)
    if choice.backend == "torch":
        output = functional.pmsn_sequence(
            x_seq,
            coefficients,
            state,
            v_threshold=v_threshold,
            surrogate_function=surrogate_function,
            reset_mode=reset_mode,
            burst=burst,
            context=context,
            return_v_seq=return_v_seq,
        )
        return output if return_state else output._replace(state=None)
    x = x_seq.to(dtype) if dtype == torch.float64 else x_seq
    if context == "global":
        x = x.to(dtype).mean(0, keepdim=True).expand(x.shape)
    forward = ops.pmsn_forward
    if isinstance(coefficients, PMSNParameters):
        if all(p.dtype == dtype for p in coefficients):
            forward = ops.pmsn_layer_forward
        else:  # the reference rounds coefficients to the parameters' dtype before they are converted
            coefficients = functional.discretize(coefficients)
    threshold, theta = _threshold(v_threshold, dtype)
    tensors = (
        x,
        *_in(dtype, coefficients),
        *((None, None, None) if state is None else _in(dtype, state)),
        threshold,
    )
    options = theta, reset_mode, *firing
    slopes = None
    if firing.surrogate == "given" and _recorded(tensors):
        with torch.no_grad():
            out, *_, v_seq, _ = forward(*tensors, None, *options, False, True, False)
        slopes = _slopes(surrogate_function, v_seq + v_threshold * out - v_threshold)
    out, v, h_real, h_imag, v_seq, _ = forward(*tensors, slopes, *options, return_state, return_v_seq, False)
    if firing.fire == "membrane":
        with torch.autocast(x.device.type, enabled=False):
            out = fire(out, v_threshold, surrogate_function or triangle(), burst)
    final = PMSNState(v, h_real, h_imag) if return_state else None
    return PMSNOutput(out.to(x_seq.dtype), final, v_seq if return_v_seq else None)


def pmsn_step(
    x: Tensor,
    coefficients: PMSNCoefficients | PMSNParameters,
    state: PMSNState | None = None,
    *,
    v_threshold: float | Tensor = 1.0,
    surrogate_function: SpikeFunction | None = None,
    reset_mode: str = "modulo",
    burst: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, PMSNState]:
    """:func:`pmsn_plugins.functional.pmsn_step` on the chosen backend; errors as in :func:`pmsn_sequence`."""
    output = pmsn_sequence(
        x.unsqueeze(0) if isinstance(x, Tensor) else x,
        coefficients,
        state,
        v_threshold=v_threshold,
        surrogate_function=surrogate_function,
        reset_mode=reset_mode,
        burst=burst,
        backend=backend,
    )
    return output.spikes.squeeze(0), output.state


def tclif_sequence(
    x_seq: Tensor,
    b1: float | Tensor,
    b2: float | Tensor,
    state: TCLIFState | None = None,
    *,
    gamma: float | Tensor = 0.5,
    v_threshold: float | Tensor = 1.0,
    surrogate_function: SpikeFunction | None = None,
    soma_feedback: str = "post_reset",
    detach_reset: bool = False,
    leak: tuple[float, float] = (1.0, 1.0),
    return_v_seq: bool = False,
    return_state: bool = True,
    backend: str = "auto",
) -> TCLIFOutput:
    """:func:`pmsn_plugins.functional.tclif_sequence` on the chosen backend; ``return_state`` and errors as in
    :func:`pmsn_sequence`."""
    dtype = check_tclif_inputs(x_seq, b1, b2, state, v_threshold, soma_feedback)
    firing = _firing(surrogate_function, v_threshold, False, True)
    choice = _choose_tclif(x_seq, b1, b2, state, gamma, v_threshold, leak, backend, firing)
    if choice.backend == "torch":
        output = functional.tclif_sequence(
            x_seq,
            b1,
            b2,
            state,
            gamma=gamma,
            v_threshold=v_threshold,
            surrogate_function=surrogate_function,
            soma_feedback=soma_feedback,
            detach_reset=detach_reset,
            leak=leak,
            return_v_seq=return_v_seq,
        )
        return output if return_state else output._replace(state=None)
    couplings = _couplings(b1, b2, x_seq.shape[1:])
    threshold, theta = _threshold(v_threshold, dtype)
    tensors = (
        x_seq.to(dtype) if dtype == torch.float64 else x_seq,
        *(_flat(b, couplings, x_seq, dtype) for b in (b1, b2)),
        *((None, None) if state is None else _in(dtype, state)),
        threshold,
    )
    pre_reset = soma_feedback == "pre_reset"
    options = theta, couplings.channels, couplings.inner, gamma, *leak, pre_reset, detach_reset
    options += firing.fire == "strict", *tuple(firing)[1:]  # (dynamo of torch 2.6 cannot slice a named tuple)
    slopes = None
    if firing.surrogate == "given" and _recorded(tensors):
        with torch.no_grad():
            out, *_, v_seq, _ = ops.tclif_forward(*tensors, None, *options, False, True, False)
        before = torch.zeros_like(v_seq[0]) if state is None else state.v.detach().to(dtype)
        soma = v_seq if pre_reset else v_seq + v_threshold * out
        slopes = _slopes(surrogate_function, torch.cat([before[None], soma]) - v_threshold)
    out, v, v_dendrite, v_seq, _ = ops.tclif_forward(*tensors, slopes, *options, return_state, return_v_seq, False)
    final = TCLIFState(v, v_dendrite) if return_state else None
    return TCLIFOutput(out.to(x_seq.dtype), final, v_seq if return_v_seq else None)


def tclif_step(
    x: Tensor,
    b1: float | Tensor,
    b2: float | Tensor,
    state: TCLIFState | None = None,
    *,
    gamma: float | Tensor = 0.5,
    v_threshold: float | Tensor = 1.0,
    surrogate_function: SpikeFunction | None = None,
    soma_feedback: str = "post_reset",
    detach_reset: bool = False,
    leak: tuple[float, float] = (1.0, 1.0),
    backend: str = "auto",
) -> tuple[Tensor, TCLIFState]:
    """:func:`pmsn_plugins.functional.tclif_step` on the chosen backend; errors as in :func:`pmsn_sequence`."""
    output = tclif_sequence(
        x.unsqueeze(0) if isinstance(x, Tensor) else x,
        b1,
        b2,
        state,
        gamma=gamma,
        v_threshold=v_threshold,
        surrogate_function=surrogate_function,
        soma_feedback=soma_feedback,
        detach_reset=detach_reset,
        leak=leak,
        backend=backend,
    )
    return output.spikes.squeeze(0), output.state


def discretize(parameters: PMSNParameters, backend: str = "auto") -> PMSNCoefficients:
    """:func:`pmsn_plugins.functional.discretize` on the chosen backend: one operator instead of forty.

    A backend that was asked for by name and is not available here is not an error yet: the sequence will say so.
    """
    check_pmsn_parameters(parameters)
    log_decay, name = parameters.log_decay, _DEVICE_BACKEND.get(parameters.log_decay.device.type)
    fused = (
        backend != "torch"
        and name is not None
        and _status(name).available
        and log_decay.dtype in (torch.float32, torch.float64)
        and all(p.dtype == log_decay.dtype and p.device == log_decay.device for p in parameters)
        and log_decay.numel() > 0
    )
    if not fused:
        return functional.discretize(parameters)
    return PMSNCoefficients(*ops.discretize(*tuple(parameters)[:-1]), parameters.D)


class Firing(NamedTuple):
    """What the kernel sends out (``plan.FIRES``), and the fused surrogate with its parameters."""

    fire: str
    surrogate: str = "triangle"
    a: float = 1.0
    b: float = 0.0
    c: float = 0.0


def _learnable(v_threshold: float | Tensor) -> bool:
    return isinstance(v_threshold, Tensor) and v_threshold.requires_grad and torch.is_grad_enabled()


def _firing(
    surrogate_function: SpikeFunction | None, v_threshold: float | Tensor, burst: bool, through_reset: bool
) -> Firing:
    """What the kernel sends out. A function that is not fused is applied to the membrane afterwards; but where the
    gradient passes through the reset, the kernel has to fire itself and is given the slopes."""
    if _learnable(v_threshold):
        return Firing("membrane")
    if burst:
        return Firing("burst")
    if surrogate_function is None:
        return Firing("spike")  # triangle()
    is_function = isinstance(surrogate_function, FunctionType)
    spec = _describe_function(surrogate_function) if is_function else describe(surrogate_function)
    if spec is None or spec.name not in SURROGATES:
        given = through_reset and not torch.compiler.is_compiling()  # its derivative is taken outside of any graph
        at_zero = _spikes_at_zero(surrogate_function) if given else None
        return Firing("membrane") if at_zero is None else Firing("spike" if at_zero else "strict", "given")
    return Firing("strict" if spec.strict else "spike", spec.name, *spec.parameters)


@torch.compiler.assume_constant_result
def _describe_function(surrogate_function: FunctionType) -> SurrogateSpec | None:
    """For torch.compile, which cannot look into a closure."""
    return describe(surrogate_function)


def _spikes_at_zero(surrogate_function: SpikeFunction) -> bool | None:
    """Whether a spike function fires at exactly the threshold; None if it is no step with a slope of its own, or has
    parameters that learn."""
    x = torch.tensor([-2.0, -1e-3, 0.0, 1e-3, 2.0])
    with torch.enable_grad():
        try:
            spikes, sloped = surrogate_function(x), surrogate_function(x.clone().requires_grad_())
        except Exception:  # it may hold tensors on another device; if it is broken, the reference will say so
            return None
    if spikes.requires_grad or not sloped.requires_grad:
        return None
    return {(0, 0, 1, 1, 1): True, (0, 0, 0, 1, 1): False}.get(tuple(spikes.tolist()))


def _recorded(tensors: Iterable[Tensor | None]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _slopes(surrogate_function: SpikeFunction, x: Tensor) -> Tensor:
    """The derivative that ``surrogate_function`` pretends to have at ``x`` [T, *]."""
    # a few steps at a time on the CPU: its many intermediate results stay in the cache
    steps = max(1, 2**16 // x[0].numel()) if x.device.type == "cpu" else len(x)
    slopes = []
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for part in x.detach().split(steps):
            part.requires_grad_()
            slopes += torch.autograd.grad(surrogate_function(part).sum(), part)
    return torch.cat(slopes)


def _in(dtype: torch.dtype, tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t if t.dtype == dtype else t.to(dtype) for t in tensors]  # asking is a tenth of what .to() costs


def _threshold(v_threshold: float | Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """As a tensor that the kernel reads, or as a number."""
    if isinstance(v_threshold, Tensor):
        return v_threshold.detach().to(dtype), 0.0
    return None, float(v_threshold)


class Couplings(NamedTuple):
    """How the couplings of TC-LIF lie over one step: ``channels`` of them, each for ``inner`` neighbouring elements."""

    shape: tuple[int, ...]
    channels: int
    inner: int


def _couplings(b1: float | Tensor, b2: float | Tensor, step: torch.Size) -> Couplings | None:
    """None if they do not broadcast over one step."""
    shapes = [b.shape for b in (b1, b2) if isinstance(b, Tensor)]
    if all(math.prod(shape) == 1 for shape in shapes):
        return Couplings((), 1, step.numel())
    try:
        shape = torch.broadcast_shapes(*shapes)
        if torch.broadcast_shapes(shape, step) != step:
            return None
    except RuntimeError:
        return None
    shape = (1,) * (len(step) - len(shape)) + tuple(shape)
    axes = [axis for axis, size in enumerate(shape) if size > 1]
    if len(axes) == 1:
        return Couplings(shape, shape[axes[0]], math.prod(step[axes[0] + 1 :]))
    return Couplings(tuple(step), step.numel(), 1)


def _flat(b: float | Tensor, couplings: Couplings, x_seq: Tensor, dtype: torch.dtype) -> Tensor:
    if not isinstance(b, Tensor):
        return torch.full((couplings.channels,), b, dtype=dtype, device=x_seq.device)
    shape = couplings.shape if couplings.channels > 1 else (1,) * b.ndim
    return b.to(dtype).expand(shape).reshape(-1)


def _choose(backend: str, tensors: Iterable[Any], obstacle: str | None) -> Choice:
    """The first tensor is the input. Raises for a backend asked for by name that cannot run here."""
    check_backend(backend)
    if backend == "torch":
        return Choice("torch", "asked for")
    x, *others = tensors
    native = _DEVICE_BACKEND.get(x.device.type)
    name = native if backend == "auto" else backend
    if name is None:
        return Choice("torch", f"no fused kernels for {x.device.type} tensors")
    status = _status(name)
    reason = status.reason
    if not status.available:
        if backend != "auto":
            raise RuntimeError(f"backend {backend!r} cannot be used: {reason}")
        _announce_once(f"running on PyTorch operations, many times slower than the fused kernels: {reason}")
        return Choice("torch", reason)
    if name != native:
        needed = next(device for device, b in _DEVICE_BACKEND.items() if b == name)
        raise ValueError(f"backend {name!r} needs tensors on a {needed} device, x_seq is on {x.device}")
    if any(isinstance(t, Tensor) and t.device != x.device for t in others):
        return Choice("torch", "the tensors are on different devices")
    if x.dtype not in _DTYPES:
        return Choice("torch", f"no fused kernels for {x.dtype}")
    if x.numel() == 0:
        return Choice("torch", "the input is empty")
    return Choice("torch", obstacle) if obstacle else Choice(name, reason)


@torch.compiler.assume_constant_result
@cache
def _announce_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)


def _choose_pmsn(x_seq, coefficients, state, v_threshold, reset_mode, backend, firing) -> Choice:
    obstacle = None
    if firing.fire == "membrane" and reset_mode == "serial":
        obstacle = "with reset_mode='serial' the gradient passes through this surrogate function or learnable threshold"
    return _choose(backend, (x_seq, *coefficients, *(state or ()), v_threshold), obstacle)


def _choose_tclif(x_seq, b1, b2, state, gamma, v_threshold, leak, backend, firing) -> Choice:
    obstacle = None
    if firing.fire == "membrane":
        obstacle = "the gradient passes through this surrogate function or learnable threshold"
    elif not all(isinstance(number, (int, float)) for number in (gamma, *leak)):
        obstacle = "gamma and leak are not numbers"
    elif _couplings(b1, b2, x_seq.shape[1:]) is None:
        obstacle = "b1 and b2 do not broadcast over one step"
    return _choose(backend, (x_seq, b1, b2, *(state or ()), v_threshold), obstacle)
