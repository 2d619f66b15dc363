r"""The two-compartment leaky integrate-and-fire neuron (TC-LIF), on tensors with explicit states.

.. math::

    U_D[t] &= a_1 U_D[t-1] + b_1 U_S[t-1] + I[t] - \gamma S[t-1]

    U_S[t] &= a_2 U_S[t-1] + b_2 U_D[t] - \theta S[t-1]

    S[t] &= \operatorname{Heaviside}(U_S[t] - \theta)

Dendrite :math:`U_D` and soma :math:`U_S`; :math:`\theta` is ``v_threshold``.

Zhang et al., TC-LIF (AAAI 2024), Eq. 7-9, where a1 = a2 = 1; with leaks a1, a2 < 1 it is the generalised
two-compartment LIF (Eq. 3-5). In the paper ``b1 = -sigmoid(c1)`` and ``b2 = sigmoid(c2)``.

The authors' code subtracts both resets right after the spike, so b1 multiplies the soma *after* its reset:
``soma_feedback='post_reset'``, the default. ``'pre_reset'`` is Eq. 7 as printed: b1 multiplies the soma before it.

Shapes: sequences ``[T, N, *]``, steps ``[N, *]``. Half precision is accepted; states are float32 or wider.

NaN and infinity. An input that is not finite stays with its neuron and its future: from that step on soma and dendrite
are NaN, and the neuron sends no spikes (what a spike function of your own makes of a NaN soma is its affair). Earlier
steps and other neurons are as if it were not there. Gradients by the input of this neuron, at any step, are NaN (finite
at most where the surrogate gradient does not look at the soma, such as ``'straight_through'``), and so are those by its
couplings; the others are as if it were not there. A potential that overflows is infinite and obeys the rules of
floating-point numbers from there on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import (
    check_callable,
    check_choice,
    check_coefficient,
    check_flag,
    check_floating,
    check_floating_dtype,
    check_named,
    check_state,
    check_threshold,
    check_type,
    compute_dtype,
    shown,
)
from .surrogate import SpikeFunction, spike_function

SOMA_FEEDBACK = ("post_reset", "pre_reset")


class TCLIFState(NamedTuple):
    """State between two time steps: soma ``v`` and ``v_dendrite``, each [N, *].

    After the resets of the last step with ``soma_feedback='post_reset'``, before them with ``'pre_reset'`` (the
    potentials U_S and U_D of the equations).
    """

    v: Tensor
    v_dendrite: Tensor


class TCLIFOutput(NamedTuple):
    """Spikes ``[T, N, *]``, the final state, and the soma after each step ``[T, N, *]``; the last two on request, else
    None."""

    spikes: Tensor
    state: TCLIFState | None
    v_seq: Tensor | None


def tclif_initial_state(x: Tensor, dtype: torch.dtype = torch.float32) -> TCLIFState:
    """The zero state for one step ``x`` of shape [N, *].

    Raises:
        TypeError: ``x`` is no tensor, or ``dtype`` no real floating-point dtype.

    Example:
        >>> tclif_initial_state(torch.zeros(8, 3)).v.shape
        torch.Size([8, 3])
    """
    check_type("x", x, Tensor, "a torch.Tensor")
    check_floating_dtype("dtype", dtype)
    v = torch.zeros(x.shape, dtype=dtype, device=x.device)
    return TCLIFState(v, v.clone())


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
) -> tuple[Tensor, TCLIFState]:
    """One time step; ``x`` is [N, *]. Same arguments and errors as :func:`tclif_sequence`.

    Returns:
        Spikes [N, *] in the dtype of ``x`` and the new state.

    Example:
        >>> state = None
        >>> for x in torch.rand(10, 8, 3):  # [T, N, *]
        ...     spikes, state = tclif_step(x, -0.5, 0.5, state)
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
    )
    assert output.state is not None  # asked for by default
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
) -> TCLIFOutput:
    """Run a TC-LIF layer over a sequence.

    Args:
        x_seq: input current [T, N, *], floating point.
        b1, b2: couplings soma -> dendrite and dendrite -> soma; numbers or tensors that broadcast over one step
            (e.g. [C, 1, 1] for [N, C, H, W]). The paper needs b1 < 0 < b2; other signs are allowed for analysis.
        state: state after the previous chunk, or None to start from zero.
        gamma: reset of the dendrite; a number or a tensor like the couplings.
        v_threshold: firing threshold and reset of the soma, above 0; it and its inverse must be normal numbers of the
            dtype that is computed in (1.18e-38 to 8.51e37 in float32).
        surrogate_function: maps ``U_S - v_threshold`` to spikes; default :func:`triangle`, the paper's one.
        soma_feedback: ``'post_reset'`` or ``'pre_reset'``, see above.
        detach_reset: let no gradient flow through the two reset terms.
        leak: (a1, a2), 1 in the paper; numbers or tensors like the couplings.
        return_v_seq: also return the soma of every step, as in the state.
        return_state: False leaves out the final state (None).

    Raises:
        TypeError: ``x_seq``, the state or another tensor is not dense and real floating point, ``state`` is no
            TCLIFState, or an option is of another type.
        ValueError: no batch axis, state of another shape, couplings that do not broadcast over one step, or an option
            outside its allowed values.

    Example:
        >>> output = tclif_sequence(torch.ones(4, 1, 1), b1=-0.5, b2=0.5)
        >>> output.spikes.flatten()
        tensor([0., 1., 1., 1.])
        >>> output.state.v.shape
        torch.Size([1, 1])
    """
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
    v, v_dendrite = tclif_initial_state(x_seq[0], dtype) if state is None else (s.to(dtype) for s in state)
    surrogate_function = spike_function(surrogate_function)
    pre_reset = soma_feedback == "pre_reset"
    a1, a2 = leak

    spikes, v_seq = [], []
    # the potentials before reset determine their own spike, so the pre-reset state needs no third tensor
    if pre_reset:
        spike = surrogate_function(v - v_threshold)
    x_all = x_seq.to(dtype)
    for x in x_all.add(x_all.detach(), alpha=0):  # infinity becomes NaN
        if pre_reset:
            reset = spike.detach() if detach_reset else spike
            v_dendrite = a1 * v_dendrite + b1 * v + x - gamma * reset
            v = a2 * v + b2 * v_dendrite - v_threshold * reset
            spike = surrogate_function(v - v_threshold)
        else:
            v_dendrite = a1 * v_dendrite + b1 * v + x
            v = a2 * v + b2 * v_dendrite
            spike = surrogate_function(v - v_threshold)
            reset = spike.detach() if detach_reset else spike
            v_dendrite = v_dendrite - gamma * reset
            v = v - v_threshold * reset
        spikes.append(spike)
        v_seq.append(v)
    v_all = torch.stack(v_seq) if return_v_seq else None
    final = TCLIFState(v, v_dendrite) if return_state else None
    return TCLIFOutput(torch.stack(spikes).to(x_seq.dtype), final, v_all)


def check_tclif_inputs(
    x_seq: Tensor,
    b1: float | Tensor,
    b2: float | Tensor,
    state: TCLIFState | None,
    v_threshold: float | Tensor,
    soma_feedback: str,
    *,
    gamma: float | Tensor = 0.5,
    leak: tuple[float, float] = (1.0, 1.0),
    surrogate_function: SpikeFunction | None = None,
    **flags: bool,
) -> torch.dtype:
    """Raise what :func:`tclif_sequence` raises; returns the dtype it computes in."""
    check_floating("x_seq", x_seq)
    check_choice("soma_feedback", soma_feedback, SOMA_FEEDBACK)
    for name, value in flags.items():
        if value is not True and value is not False:  # a call for each would be felt
            check_flag(name, value)
    if surrogate_function is not None:
        check_callable("surrogate_function", surrogate_function, "a function of (U_S - v_threshold) or None")
    if x_seq.ndim < 2 or x_seq.shape[0] == 0:
        raise ValueError(f"x_seq must be [T, N, *] with at least one time step, got shape {tuple(x_seq.shape)}")
    step = x_seq.shape[1:]
    if not (isinstance(leak, (tuple, list)) and len(leak) == 2):
        raise TypeError(f"leak must be two numbers (a1, a2), got {shown(leak)}")
    for name, number in (("b1", b1), ("b2", b2), ("gamma", gamma), ("leak", leak[0]), ("leak", leak[1])):
        if type(number) is not float or not -math.inf < number < math.inf:
            check_coefficient(name, number, step)
    if state is not None:
        check_named("state", state, TCLIFState)
        for name, part in zip(TCLIFState._fields, state, strict=True):
            check_state(name, part, step)
    dtype = compute_dtype(x_seq, *(b for b in (b1, b2) if isinstance(b, Tensor)))
    check_threshold("v_threshold", v_threshold, dtype)
    return dtype
