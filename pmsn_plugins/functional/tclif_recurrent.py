r"""A layer of two-compartment LIF neurons (TC-LIF) that also receives its own last spikes.

.. math::

    I[t] &= x[t] + W S[t-1] + \mathtt{bias}

    U_D[t] &= a_1 U_D[t-1] + b_1 U_S[t-1] + I[t] - \gamma S[t-1]

    U_S[t] &= a_2 U_S[t-1] + b_2 U_D[t] - \theta S[t-1]

    S[t] &= \operatorname{Heaviside}(U_S[t] - \theta)

Dendrite :math:`U_D` and soma :math:`U_S`; :math:`\theta` is ``v_threshold``.

Zhang et al., TC-LIF (AAAI 2024), the recurrent networks; the neuron is that of :mod:`.tclif`, with all its options.

Shapes: sequences ``[T, N, C]``, steps ``[N, C]``, ``W`` ``[C, C]``. Half precision is accepted; states are float32 or
wider, and so is the product with W, under autocast too.

The gradient, for the default ``soma_feedback='post_reset'``, where v and d are soma and dendrite after the resets and g
is the surrogate's derivative: from the last step to the first

.. math::

    dS[t] &= \partial L / \partial S[t] + W^T dI[t+1] - \gamma \, dd[t] - \theta \, dv[t]

    dU_S[t] &= dv[t] + g(U_S[t] - \theta) \, dS[t]

    dI[t] &= dU_D[t] = dd[t] + b_2 \, dU_S[t]

    dv[t-1] &= a_2 \, dU_S[t] + b_1 \, dI[t], \quad dd[t-1] = a_1 \, dI[t]

    dW &= \sum_t dI[t] \, S[t-1]^T, \quad db_1 = \sum_t dI[t] \, v[t-1], \quad db_2 = \sum_t dU_S[t] \, U_D[t]

(with ``detach_reset`` the first line without the two resets).

Autograd of the loop would find the same with some twenty nodes and one product for dW at every step.

NaN and infinity, forward, as in :mod:`.tclif`: such an input stays with its neuron and its future, and the neuron sends
no spikes. In the backward pass the NaN of one neuron goes through W^T to all neurons of its sample.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._checks import check_floating, check_named, check_state
from .pmsn import without_autocast
from .surrogate import OWN, SURROGATES, SpikeFunction, SurrogateSpec, describe, spike_function, transformed, triangle
from .tclif import check_tclif_inputs


class TCLIFRecurrentState(NamedTuple):
    """State between two time steps: soma ``v``, ``v_dendrite`` and the last ``spikes``, each [N, C].

    ``v`` and ``v_dendrite`` as in :class:`.TCLIFState`. What is fed back is ``spikes``; with
    ``soma_feedback='pre_reset'`` it is still ``v`` that decides whether the next step resets.
    """

    v: Tensor
    v_dendrite: Tensor
    spikes: Tensor


class TCLIFRecurrentOutput(NamedTuple):
    """Spikes ``[T, N, C]``, the final state, and the soma after each step ``[T, N, C]``; the last two on request, else
    None."""

    spikes: Tensor
    state: TCLIFRecurrentState | None
    v_seq: Tensor | None


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
) -> tuple[Tensor, TCLIFRecurrentState]:
    """One time step; ``x`` is [N, C]. Same arguments and errors as :func:`tclif_recurrent_sequence`.

    Returns:
        Spikes [N, C] in the dtype of ``x`` and the new state.

    Example:
        >>> weight, state = torch.eye(3), None
        >>> for x in torch.rand(10, 8, 3):  # [T, N, C]
        ...     spikes, state = tclif_recurrent_step(x, weight, None, -0.5, 0.5, state)
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
    )
    assert output.state is not None  # asked for by default
    return output.spikes.squeeze(0), output.state


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
) -> TCLIFRecurrentOutput:
    """Run a recurrent TC-LIF layer over a sequence.

    Args:
        x_seq: input current [T, N, C], floating point.
        weight: feedback [C, C], as in ``nn.Linear``: row i holds what neuron i receives.
        bias: [C], added at every step, or None.
        b1, b2, gamma, v_threshold, surrogate_function, soma_feedback, detach_reset, leak: as in
            :func:`.tclif_sequence`; b1 and b2 are numbers or tensors that broadcast over one step (e.g. [C]).
        state: state after the previous chunk, or None to start from zero.
        return_v_seq: also return the soma of every step, as in the state.
        return_state: False leaves out the final state (None).

    A surrogate function that is in no row of the table (:func:`.describe`), a threshold, ``gamma`` or leak that is a
    tensor, and the transformations of ``torch.func`` are differentiated through the loop: several times slower.

    Raises:
        TypeError: ``x_seq``, ``weight``, ``bias``, the state or another tensor is not dense and real floating point,
            ``state`` is no TCLIFRecurrentState, or an option is of another type.
        ValueError: wrong number of axes, a shape that does not fit, or an option outside its allowed values.

    Example:
        >>> x_seq, weight = torch.rand(10, 8, 3), torch.zeros(3, 3)
        >>> alone = tclif_recurrent_sequence(x_seq, weight, None, b1=-0.5, b2=0.5).spikes
        >>> alone.shape
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
    spec = describe(triangle() if surrogate_function is None else surrogate_function)
    fire = spike_function(surrogate_function)
    numbers = _Numbers(gamma, v_threshold, *leak)
    pre_reset = soma_feedback == "pre_reset"
    with without_autocast(x_seq):
        if state is None:
            # three tensors: torch.compile takes none twice
            parts = (torch.zeros(x_seq.shape[1:], dtype=dtype, device=x_seq.device) for _ in range(3))
            state = TCLIFRecurrentState(*parts)
        x = x_seq.to(dtype)
        x = x.add(x.detach(), alpha=0)  # infinity becomes NaN
        if bias is not None:
            x = x + bias
        v, v_dendrite, spike = (part.to(dtype) for part in state)
        before = v, v_dendrite, spike
        # the potentials before reset determine their own spike, so the pre-reset state needs no further tensor for it
        reset = fire(v - v_threshold) if pre_reset else None
        by_hand = spec is not None and spec.name != OWN and not any(isinstance(n, Tensor) for n in numbers)
        if by_hand and not transformed():
            b1, b2 = (torch.as_tensor(b, dtype=dtype, device=x.device) for b in (b1, b2))
            spikes, soma, dendrite = _Recurrent.apply(
                x, weight.to(dtype), b1, b2, *before, reset, numbers, spec, detach_reset
            )
            if spikes.requires_grad:  # backward needs its own, for what is returned may be changed in place
                spikes, soma = spikes.clone(), soma.clone() if return_v_seq else soma
        else:
            spikes, soma, dendrite = _loop(x, weight.to(dtype), b1, b2, *before, reset, numbers, fire, detach_reset)
        v_seq, taken = soma, spikes.detach() if detach_reset else spikes
        if return_v_seq and not pre_reset:
            v_seq = soma - v_threshold * taken
        final = None
        if return_state:
            v, v_dendrite = soma[-1].clone(), dendrite[-1].clone()  # a view would keep the whole sequence alive
            if not pre_reset:
                v, v_dendrite = v - v_threshold * taken[-1], v_dendrite - gamma * taken[-1]
            final = TCLIFRecurrentState(v, v_dendrite, spikes[-1].clone())
    return TCLIFRecurrentOutput(spikes.to(x_seq.dtype), final, v_seq if return_v_seq else None)


class _Numbers(NamedTuple):
    """What multiplies spikes and potentials, the same for all neurons."""

    gamma: float | Tensor
    v_threshold: float | Tensor
    a1: float | Tensor
    a2: float | Tensor


def _loop(
    x_seq: Tensor,
    weight: Tensor,
    b1: float | Tensor,
    b2: float | Tensor,
    v: Tensor,
    v_dendrite: Tensor,
    spike: Tensor,
    reset: Tensor | None,
    numbers: _Numbers,
    fire: SpikeFunction,
    detach_reset: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Spikes, soma and dendrite of every step, the potentials before their reset; ``reset`` is the spike that the
    first step takes off, None where the resets follow the spike at once."""
    gamma, v_threshold, a1, a2 = numbers
    outputs = []
    for x in x_seq.unbind(0):
        current = x + torch.nn.functional.linear(spike, weight)
        if reset is not None:
            taken = reset.detach() if detach_reset else reset
            v_dendrite = a1 * v_dendrite + b1 * v + current - gamma * taken
            v = a2 * v + b2 * v_dendrite - v_threshold * taken
        else:
            v_dendrite = a1 * v_dendrite + b1 * v + current
            v = a2 * v + b2 * v_dendrite
        spike = fire(v - v_threshold)
        outputs.append((spike, v, v_dendrite))
        if reset is not None:
            reset = spike
        else:
            taken = spike.detach() if detach_reset else spike
            v, v_dendrite = v - v_threshold * taken, v_dendrite - gamma * taken
    spikes, soma, dendrite = map(torch.stack, zip(*outputs, strict=True))
    return spikes, soma, dendrite


class _Recurrent(torch.autograd.Function):
    """:func:`_loop` without a graph of every step, and its gradient by the equations above.

    Soma and dendrite are outputs so that autograd knows them: second derivatives go through them as well.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x_seq: Tensor,
        weight: Tensor,
        b1: Tensor,
        b2: Tensor,
        v: Tensor,
        v_dendrite: Tensor,
        spike: Tensor,
        reset: Tensor | None,
        numbers: tuple[float, float, float, float],
        spec: SurrogateSpec,
        detach_reset: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.numbers, ctx.spec, ctx.detach_reset, ctx.pre_reset = numbers, spec, detach_reset, reset is not None
        saved = weight, b1, b2, v, spike
        gamma, v_threshold, a1, a2 = numbers
        fires = torch.gt if spec.strict else torch.ge
        outputs = []
        for x in x_seq.unbind(0):
            v_dendrite = torch.add(torch.addmm(x, spike, weight.t()), v_dendrite, alpha=a1).addcmul_(b1, v)
            if reset is not None:
                v_dendrite.sub_(reset, alpha=gamma)
            v = torch.addcmul(v if a2 == 1 else a2 * v, b2, v_dendrite)
            if reset is not None:
                v.sub_(reset, alpha=v_threshold)
            spike = fires(v, v_threshold).to(x.dtype)
            outputs.append((spike, v, v_dendrite))
            if reset is not None:
                reset = spike
            else:
                v, v_dendrite = v.sub(spike, alpha=v_threshold), v_dendrite.sub(spike, alpha=gamma)
        spikes, soma, dendrite = map(torch.stack, zip(*outputs, strict=True))
        ctx.save_for_backward(*saved, spikes, soma, dendrite)
        ctx.set_materialize_grads(False)
        return spikes, soma, dendrite

    @staticmethod
    def backward(
        ctx: Any, grad_spikes: Tensor | None, grad_soma: Tensor | None, grad_dendrite: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        weight, b1, b2, first_v, first_spike, spikes, soma, dendrite = ctx.saved_tensors
        gamma, v_threshold, a1, a2 = ctx.numbers
        name, parameters, _ = ctx.spec
        slopes = SURROGATES[name].derivative(soma - v_threshold, *parameters)
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(spikes)
        # of U_S and I, and of the state; all of the step after the one at hand
        to_soma = to_current = to_v = to_d = torch.zeros_like(first_v)
        to_somas, to_currents = [], []
        for t in reversed(range(len(soma))):
            to_spike = torch.addmm(grad_spikes[t], to_current, weight)
            if not ctx.detach_reset:
                through_d, through_v = (to_current, to_soma) if ctx.pre_reset else (to_d, to_v)
                to_spike = to_spike.sub(through_d, alpha=gamma).sub(through_v, alpha=v_threshold)
            to_soma = torch.addcmul(to_v, to_spike, slopes[t])
            if grad_soma is not None:
                to_soma = to_soma + grad_soma[t]
            to_current = torch.addcmul(to_d, b2, to_soma)
            if grad_dendrite is not None:
                to_current = to_current + grad_dendrite[t]
            to_v = (to_soma if a2 == 1 else a2 * to_soma).addcmul(b1, to_current)
            to_d = to_current if a1 == 1 else a1 * to_current
            to_somas.append(to_soma)
            to_currents.append(to_current)
        to_reset = None
        if ctx.pre_reset and not ctx.detach_reset:
            to_reset = -(gamma * to_current + v_threshold * to_soma)
        somas, currents = torch.stack(to_somas[::-1]), torch.stack(to_currents[::-1])
        v = soma[:-1]
        if not ctx.pre_reset:
            v = v - v_threshold * (spikes[:-1].detach() if ctx.detach_reset else spikes[:-1])
        rest = currents[1:]
        return (
            currents,
            rest.flatten(0, 1).t() @ spikes[:-1].flatten(0, 1) + to_current.t() @ first_spike,
            ((rest * v).sum(0) + to_current * first_v).sum_to_size(b1.shape),
            (somas * dendrite).sum(0).sum_to_size(b2.shape),
            to_v,
            to_d,
            to_current @ weight,
            to_reset,
            None,
            None,
            None,
        )


def check_tclif_recurrent_inputs(
    x_seq: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    b1: float | Tensor,
    b2: float | Tensor,
    state: TCLIFRecurrentState | None,
    v_threshold: float | Tensor,
    soma_feedback: str,
    **options: Any,
) -> torch.dtype:
    """Raise what :func:`tclif_recurrent_sequence` raises; returns the dtype it computes in."""
    check_floating("x_seq", x_seq)
    if x_seq.ndim != 3 or x_seq.shape[0] == 0:
        raise ValueError(f"x_seq must be [T, N, C] with at least one time step, got shape {tuple(x_seq.shape)}")
    dtype = check_tclif_inputs(x_seq, b1, b2, None, v_threshold, soma_feedback, **options)
    C = x_seq.shape[2]
    check_floating("weight", weight)
    if weight.shape != (C, C):
        raise ValueError(f"weight must be [C, C] with the {C} channels of x_seq, got shape {tuple(weight.shape)}")
    dtype = torch.promote_types(dtype, weight.dtype)
    if bias is not None:
        check_floating("bias", bias)
        if bias.shape != (C,):
            raise ValueError(f"bias must be [C] with the {C} channels of x_seq, got shape {tuple(bias.shape)}")
        dtype = torch.promote_types(dtype, bias.dtype)
    if state is not None:
        check_named("state", state, TCLIFRecurrentState)
        for name, value in zip(TCLIFRecurrentState._fields, state, strict=True):
            check_state(name, value, x_seq.shape[1:])
    return dtype
