"""PMSN with a choice of backend; its equations are in :mod:`pmsn_plugins.functional.pmsn`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import functional
from ..functional import PMSNCoefficients, PMSNOutput, PMSNParameters, PMSNState
from ..functional.pmsn import check_pmsn_inputs, check_pmsn_parameters, default_surrogate, fire
from ..functional.surrogate import SpikeFunction, spike_function
from .backend import Choice, check_backend, choose, fused_for, is_compiled_here, is_settled, launched, proven
from .calls import Call, DiscretizeTensors, LayerTensors, NoOptions, PmsnOptions, PmsnTensors, Wanted, Where
from .firing import Firing, contiguous, converted, firing, in_one_piece, recorded, slopes, threshold
from .operators import DISCRETIZE, PMSN, PMSN_LAYER, Operator
from .unwatched import Known, intercepted, known, look, not_converted, remember
from .variants import PmsnVariant

_RECORDS = (PMSNParameters, PMSNCoefficients)


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
    method: str = "auto",
    return_v_seq: bool = False,
    return_state: bool = True,
    backend: str = "auto",
    overwrite: list[Call] | None = None,
    calls: list[Call] | None = None,
    as_steps: bool = False,
) -> PMSNOutput:
    """:func:`pmsn_plugins.functional.pmsn_sequence` on the chosen backend.

    Backends round differently. On the CPU kernels steps, chunks and the whole sequence agree to the last bit as long as
    no gradients are recorded, the final state is wanted, and time is not cut between threads (which happens with few
    neurons, more than eight threads and thousands of steps). Otherwise a sequence that starts from rest takes a shorter
    way, with another rounding.

    Args:
        method: of the PyTorch backend; naming one other than ``'auto'`` chooses that backend.
        overwrite: if not None, the final state of a single step may take the place of ``state`` in memory, whose values
            are lost; a call that did so is put into this list, and can be repeated (``kernels/prepared.py``).
        calls: if not None, a call that was not looked at closely, because one like it has passed all checks, is put
            into this list, and can be repeated with other states.
        as_steps: round as if the final state was wanted, although it is not.

    Raises:
        ValueError: also for an unknown backend, or one that cannot take tensors of this device.
        RuntimeError: the backend was asked for by name and is not available here.

    Example:
        >>> from pmsn_plugins.functional import pmsn_initial_parameters
        >>> x_seq, parameters = torch.rand(10, 8, 3), pmsn_initial_parameters(channels=3)
        >>> pmsn_sequence(x_seq, parameters, backend="torch").spikes.shape
        torch.Size([10, 8, 3])
    """
    given, appearance = (x_seq,), None
    if not intercepted() and type(coefficients) in _RECORDS and (state is None or type(state) is PMSNState):
        given = x_seq, *coefficients, *(state or ())
        words = reset_mode, burst, context, method, return_v_seq, return_state, backend, as_steps, recorded(given)
        appearance = look(type(coefficients), given, v_threshold, surrogate_function, words)
        if (call := known(appearance)) is not None:
            return _known_sequence(call, given, state, overwrite, calls)
    dtype = check_pmsn_inputs(
        x_seq,
        coefficients,
        state,
        v_threshold,
        reset_mode,
        context,
        surrogate_function=surrogate_function,
        burst=burst,
        return_v_seq=return_v_seq,
        return_state=return_state,
        as_steps=as_steps,
    )
    if surrogate_function is None:
        surrogate_function = default_surrogate(reset_mode)
    fires = firing(surrogate_function, v_threshold, burst, reset_mode == "serial")
    choice = choose_pmsn(x_seq, coefficients, state, v_threshold, reset_mode, method, backend, fires)
    variant = None
    if is_compiled_here(choice):
        k = coefficients[1].shape[-1]
        variant = PmsnVariant(
            *(PmsnVariant.steps_for(len(x_seq), k, x_seq.dtype, dtype), x_seq.dtype, dtype, k, reset_mode, burst),
            *(fires.fire, fires.surrogate, state is not None, return_v_seq, return_state),
            recorded((x_seq, *coefficients, *(state or ()))),
        )
        choice = proven(choice, backend, x_seq.device, variant, surrogate_function)
    if choice.backend == "torch":
        return functional.pmsn_sequence(
            x_seq,
            coefficients,
            state,
            v_threshold=v_threshold,
            surrogate_function=surrogate_function,
            reset_mode=reset_mode,
            burst=burst,
            context=context,
            method=method,
            return_v_seq=return_v_seq,
            return_state=return_state,
        )
    x = x_seq.to(dtype) if dtype == torch.float64 else x_seq
    if context == "global":
        x = x.to(dtype).mean(0, keepdim=True).expand(x.shape)
    x = contiguous(x)
    compute: Operator
    record: Any
    modes: Sequence[Tensor]
    if isinstance(coefficients, PMSNParameters) and all([p.dtype == dtype for p in coefficients]):
        compute, record, modes = PMSN_LAYER, LayerTensors, coefficients
    else:
        if isinstance(coefficients, PMSNParameters):
            # the reference rounds coefficients to the parameters' dtype before they are converted
            coefficients = functional.discretize(coefficients)
        compute, record, modes = PMSN, PmsnTensors, converted(dtype, coefficients)
    theta_tensor, theta = threshold(v_threshold, dtype)
    states = (None, None, None) if state is None else converted(dtype, state)
    tensors = record(x, *modes, *states, theta_tensor)
    options = PmsnOptions(reset_mode, fires.fire, fires.surrogate, theta, fires.a, fires.b, fires.c)
    if fires.surrogate == "given" and recorded(tensors):
        with torch.no_grad():
            results = compute(tensors, options, Wanted(False, True, False, choice.backend))
        u = results.v_seq + v_threshold * results.out
        function = spike_function(surrogate_function)
        spikes = partial(fire, v_threshold=v_threshold, surrogate_function=function, burst=burst)
        tensors = tensors._replace(slopes=slopes(spikes, u))
    wanted = Wanted(return_state, return_v_seq, False, choice.backend, as_steps)
    own = fires.fire != "membrane" and tensors.slopes is None
    if appearance is not None and own and not_converted(given, tensors) and is_settled(choice, x.device, variant):
        remember(appearance, Known(compute, options, wanted, compute.expected(tensors, options)))
    results = compute(tensors, options, wanted)
    out = results.out
    if fires.fire == "membrane":
        with torch.autocast(x.device.type, enabled=False):
            out = fire(out, v_threshold, spike_function(surrogate_function), burst)
    final = PMSNState(results.v_after, results.h_real_after, results.h_imag_after) if return_state else None
    return PMSNOutput(out.to(x_seq.dtype), final, results.v_seq if return_v_seq else None)


def _known_sequence(
    call: Known,
    given: tuple[Tensor, ...],
    state: PMSNState | None,
    overwrite: list[Call] | None,
    calls: list[Call] | None,
) -> PMSNOutput:
    tensors, wanted = call.operator.tensors(*given), call.wanted
    into = None
    if recorded(given):
        results = call.operator.record_known(tensors, call.options, wanted)
    else:
        if overwrite is not None and state is not None and len(given[0]) == 1 and in_one_piece(state):
            into = None, *state, None, None
        done = call.operator.compute_unwatched(tensors, call.options, wanted, call.expected, into)
        if overwrite is not None and into is not None:
            overwrite.append(done)
        elif calls is not None:
            calls.append(done)
        results = done.results
    final = PMSNState(results.v_after, results.h_real_after, results.h_imag_after) if wanted.with_state else None
    return PMSNOutput(results.out, final, results.v_seq if wanted.with_v_seq else None)


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
    overwrite: list[Call] | None = None,
    calls: list[Call] | None = None,
) -> tuple[Tensor, PMSNState]:
    """:func:`pmsn_plugins.functional.pmsn_step` on the chosen backend; arguments and errors as in
    :func:`pmsn_sequence`.

    Example:
        >>> from pmsn_plugins.functional import pmsn_initial_parameters
        >>> spikes, state = pmsn_step(torch.rand(8, 3), pmsn_initial_parameters(channels=3))
        >>> spikes.shape
        torch.Size([8, 3])
    """
    output = pmsn_sequence(
        x.unsqueeze(0) if isinstance(x, Tensor) else x,
        coefficients,
        state,
        v_threshold=v_threshold,
        surrogate_function=surrogate_function,
        reset_mode=reset_mode,
        burst=burst,
        backend=backend,
        overwrite=overwrite,
        calls=calls,
    )
    assert output.state is not None  # asked for by default
    return output.spikes.squeeze(0), output.state


def discretize(parameters: PMSNParameters, backend: str = "auto") -> PMSNCoefficients:
    """:func:`pmsn_plugins.functional.discretize` on the chosen backend: one operator instead of forty.

    A backend that was asked for by name and is not available here is not an error yet: the sequence will say so.

    Example:
        >>> from pmsn_plugins.functional import pmsn_initial_parameters
        >>> discretize(pmsn_initial_parameters(channels=3)).K_real.shape
        torch.Size([3, 4])
    """
    check_backend(backend)
    check_pmsn_parameters(parameters)
    like = parameters.log_decay
    name, reason = fused_for(like.device.type)
    if name is not None and is_compiled_here(Choice(name, reason)):
        name = launched(Choice(name, reason), like.device).backend
    fused = (
        backend != "torch"
        and name != "torch"
        and like.dtype in (torch.float32, torch.float64)
        and all(p.dtype == like.dtype and p.device == like.device for p in parameters)
        and like.numel() > 0
    )
    if name is None or not fused:
        return functional.discretize(parameters)
    log_dt, log_decay, freq, B_real, B_imag, R_real, R_imag, D = parameters
    tensors = DiscretizeTensors(log_dt, log_decay, freq, B_real, B_imag, R_real, R_imag)
    E_real, E_imag, K_real, K_imag = DISCRETIZE(tensors, NoOptions(), Where(name))
    return PMSNCoefficients(E_real, E_imag, K_real, K_imag, D)


def choose_pmsn(
    x_seq: Tensor,
    coefficients: PMSNCoefficients | PMSNParameters,
    state: PMSNState | None,
    v_threshold: float | Tensor,
    reset_mode: str,
    method: str,
    backend: str,
    fires: Firing,
) -> Choice:
    """The backend of a call of :func:`pmsn_sequence`, and why."""
    obstacle = None
    if method != "auto":
        obstacle = f"method={method!r} is one of PyTorch's"
    elif fires.fire == "membrane" and reset_mode == "serial":
        obstacle = "with reset_mode='serial' the gradient passes through this surrogate function or learnable threshold"
    return choose(backend, (x_seq, *coefficients, *(state or ()), v_threshold), obstacle)
