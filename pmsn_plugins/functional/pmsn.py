r"""The parallel multi-compartment spiking neuron (PMSN), on tensors with explicit states.

.. math::

    h_j[t] &= A_j h_j[t-1] + K_j x[t], \quad j = 1, \dots, k

    I[t] &= \operatorname{Re} \sum_j h_j[t] + D x[t]

    u[t] &= v[t-1] + \max(I[t], 0)

    S[t] &= \operatorname{Heaviside}(u[t] - \theta)

    v[t] &= u[t] - \theta \lfloor u[t] / \theta \rfloor

The hidden compartments h are in their eigenbasis, I is the current into the output compartment, u its membrane before
reset, v after it, and :math:`\theta` the ``v_threshold``. With a zero-order hold

.. math::

    A_j = \exp(\Delta t \, \lambda_j), \quad K_j = R_j B_j (A_j - 1) / \lambda_j, \quad
    \lambda_j = -\exp(\mathtt{log\_decay}_j) + i \, \mathtt{freq}_j, \quad \Delta t = \exp(\mathtt{log\_dt})

(only the product K of readout and input matters for the output).

Chen et al., PMSN (arXiv 2408.14917), Eq. 6-18. The paper writes v as a cumulative sum; carrying it modulo the
threshold gives the same number and keeps float32 exact enough for long sequences.

Gradient (Eq. 19, 38-43): straight-through for the floor, so nothing flows through v; the surrogate for the spike.

Without a reset (the two neurons of the authors' script for sequential CIFAR, by column) the current keeps its sign, the
neuron fires at u > v_threshold, and the gradient is the plain one but for the spike:

.. math::

    \text{'cumulative'}: \quad u[t] = v[t] &= v[t-1] + I[t]

    \text{'memoryless'}: \quad u[t] = v[t] &= I[t]

Shapes: sequences ``[T, N, C, *]``, steps ``[N, C, *]``. Half precision is accepted; states are float32 or wider.

NaN and infinity. An input that is not finite stays with its neuron and its future: from that step on the neuron's
membrane and hidden compartments are not finite, and it sends no spikes (what a spike function of your own makes of a
NaN membrane is its affair). Earlier steps and other neurons are as if it were not there. Gradients by the input of this
neuron, at any step, are NaN (finite at most where the surrogate gradient does not look at the membrane, such as
``'straight_through'``), and so are those by the parameters of its channel; the others are as if it were not there. With
``context='global'`` every step sees it. A current that overflows counts as an input that is not finite (a hidden
compartment that overflows makes one, at this step or a later one; ``method='fft'`` overflows earlier, and for the whole
sequence). A membrane that overflows, as it can without a reset, is infinite: it lies above the threshold.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import (
    check_callable,
    check_choice,
    check_flag,
    check_floating,
    check_floating_dtype,
    check_int_at_least,
    check_named,
    check_state,
    check_threshold,
    check_type,
    compute_dtype,
    is_floating,
)
from .pmsn_init import PMSNParameters
from .surrogate import SpikeFunction, TableSurrogate, spike_function, triangle

RESET_MODES = ("modulo", "cumulative", "memoryless", "serial")
CONTEXTS = ("local", "global")
METHODS = ("auto", "recurrence", "chunked", "fft")

_CHUNK = 64
"""Time steps per causal matrix product: below it the product is cheap, above it the carry costs nothing."""


class PMSNCoefficients(NamedTuple):
    """Discrete-time coefficients of a PMSN layer, all real.

    ``E = A - 1`` is kept instead of ``A``: slow modes have A close to 1, where float32 would lose their decay.

    Attributes:
        E_real, E_imag: [C, k], ``exp(dt lam) - 1``.
        K_real, K_imag: [C, k], ``R B (A - 1) / lam``.
        D: [C], direct gain.
    """

    E_real: Tensor
    E_imag: Tensor
    K_real: Tensor
    K_imag: Tensor
    D: Tensor


class PMSNState(NamedTuple):
    """State between two time steps.

    Attributes:
        v: [N, C, *], membrane of the output compartment after reset.
        h_real, h_imag: [k, N, C, *], hidden compartments in their eigenbasis, already multiplied by the readout R.
    """

    v: Tensor
    h_real: Tensor
    h_imag: Tensor


class PMSNOutput(NamedTuple):
    """Spikes ``[T, N, C, *]``, the final state, and the membrane after reset ``[T, N, C, *]``; the last two on request,
    else None."""

    spikes: Tensor
    state: PMSNState | None
    v_seq: Tensor | None


_DEFAULT_SURROGATES = {mode: triangle(strict=mode in ("cumulative", "memoryless")) for mode in RESET_MODES}


def default_surrogate(reset_mode: str) -> TableSurrogate:
    """The authors' spike function: :func:`triangle`, which fires only above the threshold where there is no reset."""
    return _DEFAULT_SURROGATES[reset_mode]


def discretize(parameters: PMSNParameters) -> PMSNCoefficients:
    """Zero-order-hold discretisation (PMSN Eq. 10-11) with the readout folded in.

    Raises:
        TypeError: a parameter is not real floating point.
        ValueError: shapes do not agree.

    Example:
        >>> coefficients = discretize(pmsn_initial_parameters(channels=3))
        >>> coefficients.K_real.shape  # [C, k]
        torch.Size([3, 4])
    """
    check_pmsn_parameters(parameters)
    D = parameters.D
    log_dt, log_decay, freq, B_real, B_imag, R_real, R_imag = (p.to(_precise(p)) for p in tuple(parameters)[:-1])
    dt = log_dt.exp()[:, None]
    decay = log_decay.exp()
    growth, phase = -dt * decay, dt * freq
    # exp(a + ib) - 1 without cancellation: cos(b) - 1 = -2 sin^2(b/2)
    scale = _expm1(growth)
    E_real = scale * torch.cos(phase) - 2.0 * torch.sin(phase / 2).square()
    E_imag = growth.exp() * torch.sin(phase)
    gain_real, gain_imag = _complex_product(B_real, B_imag, R_real, R_imag)
    # E / lam = E conj(lam) / |lam|^2
    norm = decay.square() + freq.square()
    ratio_real, ratio_imag = _complex_product(E_real, E_imag, -decay / norm, -freq / norm)
    K_real, K_imag = _complex_product(gain_real, gain_imag, ratio_real, ratio_imag)
    dtype = compute_dtype(D)  # half-precision parameters must not round the coefficients as well
    return PMSNCoefficients(*(c.to(dtype) for c in (E_real, E_imag, K_real, K_imag, D)))


def pmsn_impulse_response(coefficients: PMSNCoefficients, T: int) -> Tensor:
    """Response of the output current to a unit impulse at t = 0: ``Re(sum_j K_j A_j^t) + D [t = 0]``, shape [C, T].

    Raises:
        TypeError: ``coefficients`` are no PMSNCoefficients, or T is not an integer.
        ValueError: shapes do not agree, or T < 1.

    Example:
        >>> pmsn_impulse_response(discretize(pmsn_initial_parameters(channels=3)), T=50).shape
        torch.Size([3, 50])
    """
    check_int_at_least("T", T, 1)
    check_pmsn_coefficients(coefficients)
    return _impulse_response(coefficients, *_powers(coefficients, T))


def pmsn_initial_state(x: Tensor, k: int, dtype: torch.dtype = torch.float32) -> PMSNState:
    """The zero state for one step ``x`` of shape [N, C, *] and k hidden compartments.

    Raises:
        TypeError: ``x`` is no tensor, ``k`` no integer, or ``dtype`` no real floating-point dtype.
        ValueError: k < 1.

    Example:
        >>> pmsn_initial_state(torch.zeros(8, 3), k=4).h_real.shape  # [k, N, C]
        torch.Size([4, 8, 3])
    """
    check_type("x", x, Tensor, "a torch.Tensor")
    check_int_at_least("k", k, 1)
    check_floating_dtype("dtype", dtype)
    return _rest(x, k, dtype)


def _rest(x: Tensor, k: int, dtype: torch.dtype) -> PMSNState:
    """Without checks, for k is a tensor while jit traces."""
    v = torch.zeros(x.shape, dtype=dtype, device=x.device)
    return PMSNState(v, v.new_zeros((k, *x.shape)), v.new_zeros((k, *x.shape)))


def pmsn_step(
    x: Tensor,
    coefficients: PMSNCoefficients | PMSNParameters,
    state: PMSNState | None = None,
    *,
    v_threshold: float | Tensor = 1.0,
    surrogate_function: SpikeFunction | None = None,
    reset_mode: str = "modulo",
    burst: bool = False,
) -> tuple[Tensor, PMSNState]:
    """One time step; ``x`` is [N, C, *]. Same arguments and errors as :func:`pmsn_sequence`.

    Returns:
        Spikes [N, C, *] in the dtype of ``x`` and the new state.

    Example:
        >>> parameters, state = pmsn_initial_parameters(channels=3), None
        >>> for x in torch.rand(10, 8, 3):  # [T, N, C]
        ...     spikes, state = pmsn_step(x, parameters, state)
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
        method="recurrence",
    )
    assert output.state is not None  # asked for by default
    return output.spikes.squeeze(0), output.state


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
) -> PMSNOutput:
    """Run a PMSN layer over a sequence.

    Args:
        x_seq: input current [T, N, C, *], floating point.
        coefficients: from :func:`discretize`, or the parameters themselves, which are then discretised here.
        state: state after the previous chunk, or None to start from zero.
        v_threshold: firing threshold, above 0; it and its inverse must be normal numbers of the dtype that is computed
            in (1.18e-38 to 8.51e37 in float32).
        surrogate_function: maps ``u - v_threshold`` to spikes; default :func:`triangle`, the papers' one; without a
            reset it fires only above the threshold, as in the authors' script.
        reset_mode: ``'modulo'`` (Eq. 16). No reset, on the signed current: ``'cumulative'``, ``v[t] = v[t-1] + I[t]``
            (its gradient flows through v), and ``'memoryless'``, ``v[t] = I[t]``. ``'serial'`` takes the signed current
            and subtracts the threshold once per spike, with back-propagation through the reset (Section VII-F2); it
            cannot be parallelised in time.
        burst: several spikes per step, ``S = max(floor(u / v_threshold), 0)``. Their gradient is that of
            ``surrogate_function`` around the last multiple of the threshold that u has passed, or before it the first:
            ``dS/du = g(u - v_threshold max(S, 1))`` where u > 0, as in the authors' scripts; with
            :func:`straight_through` it is 1 wherever u > 0.
        context: ``'global'`` shows every step the time-average of the input sequence (static images). The paper's
            exact formula cannot be recovered from its text; this is our reading.
        method: how the hidden compartments are computed, always to the same numbers: ``'recurrence'`` step by step,
            ``'chunked'`` by causal matrix products over 64 steps with the state carried between them, ``'fft'`` by one
            convolution (the authors' way); ``'auto'`` takes the recurrence for one step and chunks otherwise.
        return_v_seq: also return the membrane after reset.
        return_state: False leaves out the final state (None). For a few steps of many neurons it is larger than the
            sequence.

    Raises:
        TypeError: ``x_seq``, the coefficients, the state or a tensor threshold are not dense and real floating point,
            ``coefficients`` or ``state`` are not the named tuples above, or an option is of another type.
        ValueError: wrong number of axes or channels, coefficients or state of another shape, or an option outside its
            allowed values.

    Example:
        >>> x_seq, parameters = torch.rand(10, 8, 3), pmsn_initial_parameters(channels=3)
        >>> whole = pmsn_sequence(x_seq, parameters).spikes
        >>> first = pmsn_sequence(x_seq[:4], parameters)
        >>> rest = pmsn_sequence(x_seq[4:], parameters, first.state)  # streaming
        >>> torch.equal(whole, torch.cat([first.spikes, rest.spikes]))
        True
    """
    check_choice("method", method, METHODS)
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
    )
    if isinstance(coefficients, PMSNParameters):
        coefficients = discretize(coefficients)
    x = x_seq.to(dtype)
    coefficients = PMSNCoefficients(*(c.to(dtype) for c in coefficients))
    if state is None:
        state = _rest(x[0], coefficients.K_real.shape[1], dtype)
    else:
        state = PMSNState(*(s.to(dtype) for s in state))
    if context == "global":
        x = x.mean(0, keepdim=True).expand_as(x)
    if x.numel() == 0:
        method = "recurrence"  # there is no FFT of nothing
    elif method == "auto":
        method = "recurrence" if len(x) == 1 else "chunked"
    with without_autocast(x):
        # where no gradient flows through v, it passes on at most that it is not a number
        h_real = state.h_real + state.v * 0.0 if reset_mode in ("modulo", "memoryless") else state.h_real
        current, h_real, h_imag = _HIDDEN[method](x, coefficients, h_real, state.h_imag)
        if surrogate_function is None:
            surrogate_function = default_surrogate(reset_mode)
        surrogate_function = spike_function(surrogate_function)
        if reset_mode == "serial":
            spikes, v_seq = _fire_serial(current, state.v, v_threshold, surrogate_function, burst)
        else:
            if reset_mode == "modulo":
                u, v_seq = _modulo_scan(current.relu(), state.v, v_threshold)
            else:
                u = v_seq = state.v + current.cumsum(0) if reset_mode == "cumulative" else current
            spikes = fire(u, v_threshold, surrogate_function, burst)
    final = PMSNState(v_seq[-1].clone(), h_real, h_imag) if return_state else None
    return PMSNOutput(spikes.to(x_seq.dtype), final, v_seq if return_v_seq else None)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Under autocast a matrix product would silently drop to half precision."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def check_pmsn_parameters(parameters: PMSNParameters) -> None:
    """Raise what :func:`discretize` raises."""
    check_named("parameters", parameters, PMSNParameters)
    _check_per_channel(parameters, "log_decay", ("log_dt", "D"))


def check_pmsn_coefficients(coefficients: PMSNCoefficients) -> None:
    """Raise unless these are coefficients whose shapes agree."""
    check_named("coefficients", coefficients, PMSNCoefficients)
    _check_per_channel(coefficients, "E_real", ("D",))


def _check_per_channel(values: PMSNParameters | PMSNCoefficients, modes: str, vectors: tuple[str, ...]) -> None:
    """Every field must have the shape [C, k] of the field ``modes``, those in ``vectors`` the shape [C]."""
    leading = getattr(values, modes)
    check_floating(modes, leading)
    shape = leading.shape
    if len(shape) != 2:
        raise ValueError(f"{modes} must have shape [C, k], got {tuple(shape)}")
    for name, value in zip(type(values)._fields, values, strict=True):
        if not is_floating(value):
            check_floating(name, value)
        expected = shape[:1] if name in vectors else shape
        if value.shape != expected:
            raise ValueError(f"{name} must have shape {tuple(expected)} like {modes}'s, got {tuple(value.shape)}")


def check_pmsn_inputs(
    x_seq: Tensor,
    coefficients: PMSNCoefficients | PMSNParameters,
    state: PMSNState | None,
    v_threshold: float | Tensor,
    reset_mode: str,
    context: str,
    *,
    surrogate_function: SpikeFunction | None = None,
    **flags: bool,
) -> torch.dtype:
    """Raise what :func:`pmsn_sequence` raises; returns the dtype it computes in."""
    check_floating("x_seq", x_seq)
    check_choice("reset_mode", reset_mode, RESET_MODES)
    check_choice("context", context, CONTEXTS)
    for name, value in flags.items():
        if value is not True and value is not False:  # a call for each would be felt
            check_flag(name, value)
    if surrogate_function is not None:
        check_callable("surrogate_function", surrogate_function, "a function of (u - v_threshold) or None")
    if isinstance(coefficients, PMSNParameters):
        check_pmsn_parameters(coefficients)
    elif isinstance(coefficients, PMSNCoefficients):
        check_pmsn_coefficients(coefficients)
    else:
        check_named("coefficients", coefficients, PMSNCoefficients, PMSNParameters)
    channels, k = coefficients[1].shape  # log_decay or E_imag
    check_sequence_shape(x_seq, channels)
    if state is not None:
        check_named("state", state, PMSNState)
        step = x_seq.shape[1:]
        check_state("v", state.v, step)
        check_state("h_real", state.h_real, (k, *step))
        check_state("h_imag", state.h_imag, (k, *step))
    dtype = compute_dtype(x_seq, coefficients.D)
    check_threshold("v_threshold", v_threshold, dtype)
    return dtype


def check_sequence_shape(x_seq: Tensor, channels: int) -> None:
    """Raise ValueError unless ``x_seq`` is [T, N, C, *] with at least one step and C = ``channels``."""
    shape = tuple(x_seq.shape)
    if x_seq.ndim < 3:
        raise ValueError(
            f"x_seq must be [T, N, C, *] (time first, channels on axis 2), got shape {shape}; is the time axis missing?"
        )
    if x_seq.shape[2] != channels:
        raise ValueError(f"x_seq must have {channels} channels on axis 2 of [T, N, C, *], got shape {shape}")
    if x_seq.shape[0] == 0:
        raise ValueError(f"x_seq must have at least one time step, got shape {shape}")


def _precise(tensor: Tensor) -> torch.dtype:
    """float64 where the device has it: coefficients are tiny, and their rounding adds up over thousands of steps."""
    return tensor.dtype if tensor.device.type == "mps" else torch.float64


def _expm1(x: Tensor) -> Tensor:
    if torch.jit.is_tracing():  # perhaps for ONNX, whose older exporter does not know expm1
        return torch.tanh(x / 2) * (torch.exp(x) + 1.0)
    return torch.expm1(x)


def _complex_product(a_real: Tensor, a_imag: Tensor, b_real: Tensor, b_imag: Tensor) -> tuple[Tensor, Tensor]:
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real


def _powers(c: PMSNCoefficients, length: int) -> tuple[Tensor, Tensor]:
    """``A^t`` for t = 0..length-1, real and imaginary part [C, k, length], by doubling."""
    real, imag = torch.ones_like(c.E_real)[..., None], torch.zeros_like(c.E_imag)[..., None]
    step_real, step_imag = 1.0 + c.E_real[..., None], c.E_imag[..., None]  # A^(number of powers so far)
    while real.shape[-1] < length:
        more_real, more_imag = _complex_product(real, imag, step_real, step_imag)
        real, imag = torch.cat([real, more_real], -1), torch.cat([imag, more_imag], -1)
        step_real, step_imag = _complex_product(step_real, step_imag, step_real, step_imag)
    return real[..., :length], imag[..., :length]


def _hidden_recurrence(x: Tensor, c: PMSNCoefficients, h_real: Tensor, h_imag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Step by step, as the equations are written."""
    axes = (-1, 1, len(c.D)) + (1,) * (x.ndim - 3)  # [C, k] -> [k, 1, C, 1...]
    E_real, E_imag, K_real, K_imag = (p.T.reshape(axes) for p in tuple(c)[:4])
    D = c.D.reshape(axes[2:])
    currents = []
    x = x.clone()  # its steps are kept for backward, and x is the caller's: x += f(spikes) changes it
    for x_t in x:
        h_real, h_imag = (
            h_real + (E_real * h_real - E_imag * h_imag + K_real * x_t),
            h_imag + (E_real * h_imag + E_imag * h_real + K_imag * x_t),
        )
        currents.append(h_real.sum(0) + D * x_t)
    current = torch.stack(currents)
    return current * _sound(x, current, 0), h_real, h_imag


def _impulse_response(c: PMSNCoefficients, powers_real: Tensor, powers_imag: Tensor) -> Tensor:
    response = (c.K_real[..., None] * powers_real - c.K_imag[..., None] * powers_imag).sum(1)
    return response + F.pad(c.D[:, None], (0, response.shape[-1] - 1))


def _chunk_operator(c: PMSNCoefficients, powers_real: Tensor, powers_imag: Tensor) -> Tensor:
    """The matrix [C, L+2k, L+2k] that maps (x[0..L-1], Re h, Im h) of one chunk to (I[0..L-1], Re dh, Im dh).

    The powers are ``A^t`` for t = 0..L.

    dh is the change of the hidden state over the chunk: like E for one step, it keeps slow modes exact in float32.
    """
    response = _impulse_response(c, powers_real[..., :-1], powers_imag[..., :-1])
    lag = torch.arange(response.shape[-1], device=response.device)
    lag = lag[:, None] - lag
    toeplitz = torch.where(lag >= 0, response[:, lag.clamp(min=0)], 0.0)
    current = torch.cat([toeplitz, powers_real[..., 1:].transpose(-1, -2), -powers_imag[..., 1:].transpose(-1, -2)], -1)
    mode = torch.arange(powers_real.shape[1], device=powers_real.device)
    diagonal = mode[:, None] == mode
    last_real, last_imag = (
        torch.where(diagonal, p[..., None], 0.0) for p in (powers_real[..., -1] - 1.0, powers_imag[..., -1])
    )
    into_real, into_imag = _complex_product(
        c.K_real[..., None], c.K_imag[..., None], powers_real[..., :-1].flip(-1), powers_imag[..., :-1].flip(-1)
    )
    real = torch.cat([into_real, last_real, -last_imag], -1)
    imag = torch.cat([into_imag, last_imag, last_real], -1)
    return torch.cat([current, real, imag], 1)


def _sound(x: Tensor, current: Tensor, time: int, before: float | Tensor = 1.0) -> Tensor:
    """1 up to the first step whose input or current is not finite, NaN from there on: what is multiplied by it is NaN
    for good, and so is its gradient. ``before`` is the same of the step before."""
    with torch.no_grad():
        sound = torch.add(x * 0.0, current, alpha=0)
        sound.select(time, 0).add_(before)
        return sound.cumsum(time)


def _clean_(x: Tensor) -> None:
    """Put zeros in place of NaN and infinity, which a matrix product would mix into other steps: in the copy at hand,
    so that the gradient passes as if they were still there."""
    with torch.no_grad():
        x.nan_to_num_(0.0, 0.0, 0.0)


def _hidden_chunked(x: Tensor, c: PMSNCoefficients, h_real: Tensor, h_imag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One batched matrix product per 64 steps, the hidden state carried from each to the next."""
    T, step_shape, k = len(x), x.shape[1:], len(h_real)
    chunks = x.movedim(2, 0).flatten(2).split(_CHUNK, 1)
    h = torch.cat([h.movedim(2, 0).flatten(2) for h in (h_real, h_imag)], 1)
    precise = PMSNCoefficients(*(p.to(_precise(p)) for p in c))
    powers_real, powers_imag = _powers(precise, min(_CHUNK, T) + 1)
    lengths = [min(_CHUNK, T - start) for start in range(0, T, _CHUNK)]  # numbers, also where sizes are traced
    operators = {
        length: _chunk_operator(precise, powers_real[..., : length + 1], powers_imag[..., : length + 1]).to(x.dtype)
        for length in set(lengths)
    }
    current = []
    sound: float | Tensor = 1.0
    for length, chunk in zip(lengths, chunks, strict=True):
        columns = torch.cat([chunk, h], 1)
        _clean_(columns[:, :length])
        out = operators[length] @ columns
        steps = _sound(chunk, out[:, :length], 1, sound)
        sound = steps[:, -1]
        current.append(out[:, :length] * steps)
        h = (h + out[:, length:]) * sound[:, None]

    def back(columns: Tensor) -> Tensor:
        return columns.unflatten(2, (step_shape[0], *step_shape[2:])).movedim(0, 2)

    return back(torch.cat(current, 1)).contiguous(), back(h[:, :k]), back(h[:, k:])


def _hidden_fft(x: Tensor, c: PMSNCoefficients, h_real: Tensor, h_imag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One FFT convolution over the whole sequence (the authors' way, the baseline of the benchmark)."""
    T, tail = len(x), (1,) * (x.ndim - 3)
    given, x = x, x.clone()
    _clean_(x)
    response = _impulse_response(c, *_powers(c, T)).transpose(-1, -2).reshape(T, 1, len(c.D), *tail)
    current = torch.fft.irfft(torch.fft.rfft(x, 2 * T, 0) * torch.fft.rfft(response, 2 * T, 0), 2 * T, 0)[:T]
    powers_real, powers_imag = _powers(c, T + 1)
    current = current + torch.einsum("ckt,knc...->tnc...", powers_real[..., 1:], h_real)
    current = current - torch.einsum("ckt,knc...->tnc...", powers_imag[..., 1:], h_imag)
    last = (p[..., -1].T.reshape(-1, 1, len(c.D), *tail) for p in (powers_real, powers_imag))
    h_real, h_imag = _complex_product(h_real, h_imag, *last)
    into = _complex_product(c.K_real[..., None], c.K_imag[..., None], powers_real[..., :-1], powers_imag[..., :-1])
    driven_real, driven_imag = (torch.einsum("ckt,tnc...->knc...", i.flip(-1), x) for i in into)
    sound = _sound(given, current, 0)
    return current * sound, (h_real + driven_real) * sound[-1], (h_imag + driven_imag) * sound[-1]


_HIDDEN = {"recurrence": _hidden_recurrence, "chunked": _hidden_chunked, "fft": _hidden_fft}


def fire(u: Tensor, v_threshold: float | Tensor, surrogate_function: SpikeFunction, burst: bool) -> Tensor:
    """Spikes of the membrane before reset, with their surrogate gradient."""
    if not burst:
        return surrogate_function(u - v_threshold)
    number = (torch.where(u > 0.0, u, 0.0) / v_threshold).floor().detach()  # NaN sends nothing
    x = torch.where(number.isinf(), 0.0, u - v_threshold * number.clamp(min=1.0))
    one = torch.where(u <= 0.0, 0.0, surrogate_function(x))
    return number + (one - one.detach())


def _modulo_scan(drive: Tensor, v: Tensor, v_threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    """``u`` and ``v`` of Eq. 16 for all steps at once. ``v`` carries no gradient (straight-through floor).

    v / v_threshold is summed as a 62-bit fraction in int64, whose overflow is the modulo: exact and associative, so
    neither the length of a sequence nor where it is cut changes a spike.
    """
    with torch.no_grad():
        theta = v_threshold.detach() if isinstance(v_threshold, Tensor) else v_threshold
        bits = 24 if drive.dtype == torch.float32 else 53
        turns = torch.cat([v[None], drive]) / theta
        turns = turns.clamp(-(2.0**bits), 2.0**bits)  # beyond there is no fraction, and a quotient may overflow
        ticks = turns.sub_(turns.floor()).mul_(2.0**62).to(torch.int64).cumsum(0)
        # keep as many bits as the dtype holds: rounding up to a full threshold would fire without input
        ticks = ticks & ((1 << 62) - (1 << 62 - bits))
        v_seq = ticks.to(drive.dtype).mul_(2.0**-62) * theta
        v_seq[1:].add_(drive, alpha=0)  # NaN where the drive is, which is for good
    return drive + v_seq[:-1], v_seq[1:]


def _fire_serial(
    current: Tensor, v: Tensor, v_threshold: float | Tensor, surrogate_function: SpikeFunction, burst: bool
) -> tuple[Tensor, Tensor]:
    """Signed current, threshold subtracted once per spike, back-propagation through both."""
    spikes, v_seq = [], []
    for current_t in current:
        u = v + current_t
        s = fire(u, v_threshold, surrogate_function, burst)
        v = u - v_threshold * s
        spikes.append(s)
        v_seq.append(v)
    return torch.stack(spikes), torch.stack(v_seq)
