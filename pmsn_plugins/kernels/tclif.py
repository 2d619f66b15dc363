"""TC-LIF with a choice of backend; its equations are in :mod:`pmsn_plugins.functional.tclif`."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional
from ..functional import TCLIFOutput, TCLIFState
from ..functional.surrogate import SpikeFunction, spike_function, transforming
from ..functional.tclif import check_tclif_inputs
from .backend import Choice, choose, is_compiled_here, is_settled, proven
from .calls import Call, TclifOptions, TclifTensors, Wanted
from .firing import Firing, contiguous, converted, firing, in_one_piece, recorded, slopes, threshold
from .operators import TCLIF
from .unwatched import Known, intercepted, known, look, not_converted, remember
from .variants import TclifVariant


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
    overwrite: list[Call] | None = None,
    calls: list[Call] | None = None,
) -> TCLIFOutput:
    """:func:`pmsn_plugins.functional.tclif_sequence` on the chosen backend.

    Args:
        overwrite: if not None, the final state of a single step may take the place of ``state`` in memory, whose values
            are lost; a call that did so is put into this list, and can be repeated (``kernels/prepared.py``).
        calls: if not None, a call that was not looked at closely, because one like it has passed all checks, is put
            into this list, and can be repeated with other states.

    Raises:
        ValueError: also for an unknown backend, or one that cannot take tensors of this device.
        RuntimeError: the backend was asked for by name and is not available here.

    Example:
        >>> tclif_sequence(torch.ones(4, 1, 1), b1=-0.5, b2=0.5).spikes.flatten()
        tensor([0., 1., 1., 1.])
    """
    given, appearance = (x_seq,), None
    if not intercepted() and type(leak) is tuple and (state is None or type(state) is TCLIFState):
        given = x_seq, b1, b2, *(state or ())
        words = gamma, soma_feedback, detach_reset, *leak, return_v_seq, return_state, backend, recorded(given)
        appearance = look("tclif", given, v_threshold, surrogate_function, words)
        if (call := known(appearance)) is not None:
            return _known_sequence(call, given, state, overwrite, calls)
    dtype = check_tclif_inputs(
        x_seq,
        b1,
        b2,
        state,
        v_threshold,
        soma_feedback,
        gamma=gamma,
        leak=leak,
        surrogate_function=surrogate_function,
        detach_reset=detach_reset,
        return_v_seq=return_v_seq,
        return_state=return_state,
    )
    fires = firing(surrogate_function, v_threshold, burst=False, through_reset=True)
    choice = choose_tclif(x_seq, b1, b2, state, gamma, v_threshold, leak, backend, fires)
    variant = None
    if is_compiled_here(choice):
        variant = TclifVariant(
            *(x_seq.dtype, dtype, soma_feedback, detach_reset, fires.fire == "strict", fires.surrogate),
            *(state is not None, return_v_seq),
            recorded((x_seq, b1, b2, *(state or ()))),
        )
        choice = proven(choice, backend, x_seq.device, variant, surrogate_function)
    if choice.backend == "torch":
        return functional.tclif_sequence(
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
            return_state=return_state,
        )
    couplings = _couplings(b1, b2, x_seq.shape[1:])
    assert couplings is not None and not isinstance(gamma, Tensor)  # (the fused kernels are not chosen then)
    theta_tensor, theta = threshold(v_threshold, dtype)
    flat = _flat(b1, couplings, dtype, x_seq), _flat(b2, couplings, dtype, x_seq)
    v, d = (None, None) if state is None else converted(dtype, state)
    x = contiguous(x_seq.to(dtype) if dtype == torch.float64 else x_seq)
    tensors = TclifTensors(x, *flat, v, d, theta_tensor)
    pre_reset = soma_feedback == "pre_reset"
    a1, a2 = leak
    options = TclifOptions(
        *(couplings.channels, couplings.inner, pre_reset, detach_reset, fires.fire == "strict", fires.surrogate),
        *(theta, fires.a, fires.b, fires.c, gamma, a1, a2),
    )
    if fires.surrogate == "given" and recorded(tensors):
        with torch.no_grad():
            results = TCLIF(tensors, options, Wanted(False, True, False, choice.backend))
        before = torch.zeros_like(results.v_seq[0]) if v is None else v.detach()
        soma = results.v_seq if pre_reset else results.v_seq + v_threshold * results.out
        u = torch.cat([before[None], soma])
        tensors = tensors._replace(slopes=slopes(spike_function(surrogate_function), u - v_threshold))
    wanted = Wanted(return_state, return_v_seq, False, choice.backend)
    may_be_known = appearance is not None and tensors.slopes is None and is_settled(choice, x.device, variant)
    if may_be_known and not_converted((x_seq, *flat, *(state or ())), tensors):
        remember(appearance, Known(TCLIF, options, wanted, TCLIF.expected(tensors, options), (couplings, dtype)))
    results = TCLIF(tensors, options, wanted)
    final = TCLIFState(results.v_after, results.d_after) if return_state else None
    return TCLIFOutput(results.out.to(x_seq.dtype), final, results.v_seq if return_v_seq else None)


def _known_sequence(
    call: Known,
    given: tuple[Any, ...],
    state: TCLIFState | None,
    overwrite: list[Call] | None,
    calls: list[Call] | None,
) -> TCLIFOutput:
    x, b1, b2, *before = given
    couplings, dtype = call.more
    tensors = TclifTensors(x, *(_flat(b, couplings, dtype, x) for b in (b1, b2)), *before)
    wanted, into = call.wanted, None
    if recorded(given):
        results = TCLIF.record_known(tensors, call.options, wanted)
    else:
        if overwrite is not None and state is not None and len(x) == 1 and in_one_piece(state):
            into = None, *state, None, None
        done = TCLIF.compute_unwatched(tensors, call.options, wanted, call.expected, into)
        if overwrite is not None and into is not None:
            overwrite.append(done)
        elif calls is not None:
            calls.append(done)
        results = done.results
    final = TCLIFState(results.v_after, results.d_after) if wanted.with_state else None
    return TCLIFOutput(results.out, final, results.v_seq if wanted.with_v_seq else None)


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
    overwrite: list[Call] | None = None,
    calls: list[Call] | None = None,
) -> tuple[Tensor, TCLIFState]:
    """:func:`pmsn_plugins.functional.tclif_step` on the chosen backend; arguments and errors as in
    :func:`tclif_sequence`.

    Example:
        >>> spikes, state = tclif_step(torch.rand(8, 3), b1=-0.5, b2=0.5)
        >>> spikes.shape
        torch.Size([8, 3])
    """
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
        overwrite=overwrite,
        calls=calls,
    )
    assert output.state is not None  # asked for by default
    return output.spikes.squeeze(0), output.state


class Couplings(NamedTuple):
    """How the couplings lie over one step: ``channels`` of them, each for ``inner`` neighbouring elements."""

    shape: tuple[int, ...]
    channels: int
    inner: int


def _couplings(b1: float | Tensor, b2: float | Tensor, step: torch.Size) -> Couplings | None:
    """None if they do not broadcast over one step."""
    shapes = [b.shape for b in (b1, b2) if isinstance(b, Tensor)]
    if all(math.prod(shape) == 1 for shape in shapes):
        return Couplings((), 1, math.prod(step))
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
    return Couplings(tuple(step), math.prod(step), 1)


def _flat(b: float | Tensor, couplings: Couplings, dtype: torch.dtype, x_seq: Tensor) -> Tensor:
    if not isinstance(b, Tensor):
        return torch.full((couplings.channels,), b, dtype=dtype, device=x_seq.device)
    if b.dtype != dtype:
        b = b.to(dtype)
    if couplings.channels == 1:  # a number may have any shape, and to make it [1] would be recorded
        return b.reshape(1) if transforming() or torch.compiler.is_compiling() else b
    if b.shape != couplings.shape:
        b = b.expand(couplings.shape)
    return b if b.ndim == 1 else b.reshape(-1)


def choose_tclif(
    x_seq: Tensor,
    b1: float | Tensor,
    b2: float | Tensor,
    state: TCLIFState | None,
    gamma: float | Tensor,
    v_threshold: float | Tensor,
    leak: tuple[float, float],
    backend: str,
    fires: Firing,
) -> Choice:
    """The backend of a call of :func:`tclif_sequence`, and why."""
    obstacle = None
    if fires.fire == "membrane":
        obstacle = "the gradient passes through this surrogate function or learnable threshold"
    elif not all(isinstance(number, (int, float)) for number in (gamma, *leak)):
        obstacle = "gamma and leak are not numbers"
    elif _couplings(b1, b2, x_seq.shape[1:]) is None:
        obstacle = "b1 and b2 do not broadcast over one step"
    return choose(backend, (x_seq, b1, b2, *(state or ()), v_threshold), obstacle)
