"""Recurrent TC-LIF with a choice of backend; its equations are in :mod:`pmsn_plugins.functional.tclif_recurrent`."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import functional
from ..functional import TCLIFRecurrentOutput, TCLIFRecurrentState
from ..functional.surrogate import SpikeFunction, spike_function
from ..functional.tclif_recurrent import check_tclif_recurrent_inputs
from .backend import Choice, choose
from .calls import TclifRecurrentOptions, TclifRecurrentTensors, Wanted
from .firing import Firing, converted, firing, recorded, slopes, threshold
from .operators import TCLIF_RECURRENT


def tclif_recurrent_sequence(
    x_seq: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    b1: float | Tensor,
    b2: float | Tensor,
    state: TCLIFRecurrentState | None = None,
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
) -> TCLIFRecurrentOutput:
    """:func:`pmsn_plugins.functional.tclif_recurrent_sequence` on the chosen backend. There is a fused kernel for the
    CPU.

    Raises:
        ValueError: also for an unknown backend, or one that cannot take tensors of this device.
        RuntimeError: the backend was asked for by name and is not available here.

    Example:
        >>> tclif_recurrent_sequence(torch.rand(10, 8, 3), torch.zeros(3, 3), None, b1=-0.5, b2=0.5).spikes.shape
        torch.Size([10, 8, 3])
    """
    dtype = check_tclif_recurrent_inputs(
        x_seq,
        weight,
        bias,
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
    choice = choose_tclif_recurrent(x_seq, weight, bias, b1, b2, state, gamma, v_threshold, leak, backend, fires)
    if choice.backend == "torch":
        return functional.tclif_recurrent_sequence(
            x_seq,
            weight,
            bias,
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
    if bias is None:
        bias = weight.new_zeros(len(weight))
    theta_tensor, theta = threshold(v_threshold, dtype)
    v, d, s = (None, None, None) if state is None else converted(dtype, state)
    tensors = TclifRecurrentTensors(
        x_seq.to(dtype) if dtype == torch.float64 else x_seq,
        weight if weight.dtype == dtype else weight.to(dtype),
        bias if bias.dtype == dtype else bias.to(dtype),
        _of_channels(b1, weight, dtype),
        _of_channels(b2, weight, dtype),
        *(v, d, s, theta_tensor),
    )
    pre_reset = soma_feedback == "pre_reset"
    a1, a2 = leak
    assert not isinstance(gamma, Tensor)  # (the fused kernels are not chosen then)
    options = TclifRecurrentOptions(
        *(pre_reset, detach_reset, fires.fire == "strict", fires.surrogate),
        *(theta, fires.a, fires.b, fires.c, gamma, a1, a2),
    )
    if fires.surrogate == "given" and recorded(tensors):
        with torch.no_grad():
            results = TCLIF_RECURRENT(tensors, options, Wanted(False, True, False, choice.backend))
        before = torch.zeros_like(results.v_seq[0]) if v is None else v.detach()
        soma = results.v_seq if pre_reset else results.v_seq + v_threshold * results.out
        u = torch.cat([before[None], soma])
        tensors = tensors._replace(slopes=slopes(spike_function(surrogate_function), u - v_threshold))
    results = TCLIF_RECURRENT(tensors, options, Wanted(return_state, return_v_seq, False, choice.backend))
    final = TCLIFRecurrentState(results.v_after, results.d_after, results.s_after) if return_state else None
    return TCLIFRecurrentOutput(results.out.to(x_seq.dtype), final, results.v_seq if return_v_seq else None)


def tclif_recurrent_step(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    b1: float | Tensor,
    b2: float | Tensor,
    state: TCLIFRecurrentState | None = None,
    *,
    gamma: float | Tensor = 0.5,
    v_threshold: float | Tensor = 1.0,
    surrogate_function: SpikeFunction | None = None,
    soma_feedback: str = "post_reset",
    detach_reset: bool = False,
    leak: tuple[float, float] = (1.0, 1.0),
    backend: str = "auto",
) -> tuple[Tensor, TCLIFRecurrentState]:
    """:func:`pmsn_plugins.functional.tclif_recurrent_step` on the chosen backend; errors as in
    :func:`tclif_recurrent_sequence`.

    Example:
        >>> spikes, state = tclif_recurrent_step(torch.rand(8, 3), torch.zeros(3, 3), None, b1=-0.5, b2=0.5)
        >>> spikes.shape
        torch.Size([8, 3])
    """
    output = tclif_recurrent_sequence(
        x.unsqueeze(0) if isinstance(x, Tensor) else x,
        weight,
        bias,
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
    assert output.state is not None  # asked for by default
    return output.spikes.squeeze(0), output.state


def _of_channels(b: float | Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A coupling of each channel, [C]."""
    if not isinstance(b, Tensor):
        return torch.full((len(weight),), b, dtype=dtype, device=weight.device)
    (b,) = converted(dtype, (b,))
    return (b[0] if b.ndim == 2 else b).expand(len(weight))


def choose_tclif_recurrent(
    x_seq: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    b1: float | Tensor,
    b2: float | Tensor,
    state: TCLIFRecurrentState | None,
    gamma: float | Tensor,
    v_threshold: float | Tensor,
    leak: tuple[float, float],
    backend: str,
    fires: Firing,
) -> Choice:
    """The backend of a call of :func:`tclif_recurrent_sequence`, and why."""
    obstacle = None
    if fires.fire == "membrane":
        obstacle = "the gradient passes through this surrogate function or learnable threshold"
    elif not all(isinstance(number, (int, float)) for number in (gamma, *leak)):
        obstacle = "gamma and leak are not numbers"
    elif any(isinstance(b, Tensor) and b.ndim == 2 and len(b) > 1 for b in (b1, b2)):
        obstacle = "b1 and b2 are not the same for all samples"
    elif x_seq.device.type != "cpu":
        obstacle = "recurrent layers have a fused kernel for the CPU only"
    return choose(backend, (x_seq, weight, bias, b1, b2, *(state or ()), v_threshold), obstacle)
