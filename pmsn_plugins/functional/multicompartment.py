r"""The generalised multi-compartment spiking neuron: a chain of n compartments, serial in time.

In continuous time (PMSN paper, Eq. 4-5), compartment n being the output one:

.. math::

    dv_i / dt &= -v_i / \tau_i + b_{i-1,i} v_{i-1} + b_{i+1,i} v_{i+1} + g_i I(t) - r_i S(t)

    S(t) &= \operatorname{Heaviside}(v_n - \theta), \quad r_n = \theta

One time step updates the chain from the input end to the output end, each compartment seeing its lower neighbour's new
value and its upper neighbour's old one (all coefficients absorb dt):

.. math::

    v_i[t] &= \mathtt{leak}_i v_i[t-1] + \mathtt{up}_{i-1} v_{i-1}[t] + \mathtt{down}_i v_{i+1}[t-1]
    + \mathtt{gain}_i I[t], \quad i = 1, \dots, n

    S[t] &= \operatorname{Heaviside}(v_n[t] - \theta)

    v_i[t] &\leftarrow v_i[t] - \mathtt{reset}_i S[t], \quad \mathtt{reset}_n = \theta

:math:`\theta` is ``v_threshold``.

n = 1, ``leak = 1 - 1/tau``, ``gain = 1/tau`` is LIF; n = 2, ``leak = (1, 1)``, ``up = b2``, ``down = b1``,
``gain = (1, 0)``, ``reset = (gamma,)`` is TC-LIF. Nothing here can be parallelised over time: it is the serial
baseline ("serial MSN") that the PMSN is measured against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import (
    check_broadcasts,
    check_callable,
    check_coefficient,
    check_flag,
    check_floating,
    check_state,
    check_threshold,
    compute_dtype,
    shown,
)
from .surrogate import SpikeFunction, spike_function


class MultiCompartmentOutput(NamedTuple):
    """Spikes ``[T, N, *]``, the final state ``[n, N, *]``, and (on request) the membranes ``[T, n, N, *]``."""

    spikes: Tensor
    state: Tensor
    v_seq: Tensor | None


Coefficients = Sequence[float] | Sequence[Tensor] | Tensor
"""One entry per compartment (or coupling): a number, or a tensor that broadcasts over one step."""


def multicompartment_sequence(
    x_seq: Tensor,
    *,
    leak: Coefficients,
    up: Coefficients = (),
    down: Coefficients = (),
    gain: Coefficients = (1.0,),
    reset: Coefficients = (),
    state: Tensor | None = None,
    v_threshold: float | Tensor = 1.0,
    surrogate_function: SpikeFunction | None = None,
    detach_reset: bool = False,
    return_v_seq: bool = False,
) -> MultiCompartmentOutput:
    """Run a chain of n = len(leak) compartments over a sequence.

    Args:
        x_seq: input current [T, N, *], floating point.
        leak: n factors kept from the last step.
        up: n - 1 couplings from compartment i to i + 1, towards the output.
        down: n - 1 couplings from compartment i + 1 to i.
        gain: n input gains.
        reset: n - 1 amounts a spike takes from the compartments before the output one.
        state: [n, N, *] after the previous chunk, or None to start from zero.
        v_threshold: firing threshold and reset of the output compartment, above 0.
        surrogate_function: maps ``v_n - v_threshold`` to spikes; default :func:`triangle`.
        detach_reset: let no gradient flow through the reset terms.
        return_v_seq: also return all membranes after every step.

    Raises:
        TypeError: ``x_seq``, the state or another tensor is not dense and real floating point, or an option is of
            another type.
        ValueError: coefficient lengths do not fit n, coefficients that are not finite or do not broadcast over one
            step, wrong number of axes, or state of another shape.

    Example:
        >>> x_seq = torch.ones(3, 1, 2)
        >>> multicompartment_sequence(x_seq, leak=(0.5,), gain=(0.5,)).spikes.sum()  # LIF, tau = 2
        tensor(0.)
        >>> multicompartment_sequence(2 * x_seq, leak=(0.5,), gain=(0.5,)).spikes.sum()
        tensor(6.)
    """
    check_floating("x_seq", x_seq)
    check_flag("detach_reset", detach_reset)
    check_flag("return_v_seq", return_v_seq)
    if surrogate_function is not None:
        check_callable("surrogate_function", surrogate_function, "a function of (v_n - v_threshold) or None")
    coefficients = {"leak": leak, "up": up, "down": down, "gain": gain, "reset": reset}
    for name, series in coefficients.items():
        if not (isinstance(series, (tuple, list)) or (isinstance(series, Tensor) and series.ndim > 0)):
            raise TypeError(f"{name} must be a series of numbers or tensors, got {shown(series)}")
    n = len(leak)
    lengths = {"up": n - 1, "down": n - 1, "gain": n, "reset": n - 1}
    for name, length in lengths.items():
        given = len(coefficients[name])
        if n < 1 or given != length:
            raise ValueError(f"{name} must have {length} entries for the {n} compartments of leak, got {given}")
    if x_seq.ndim < 2 or x_seq.shape[0] == 0:
        raise ValueError(f"x_seq must be [T, N, *] with at least one time step, got shape {tuple(x_seq.shape)}")
    tensors: list[Tensor] = []
    for name, group in coefficients.items():
        if isinstance(group, Tensor):
            check_floating(name, group)
            check_broadcasts(name, group.shape[1:], x_seq.shape[1:])
            tensors.append(group)
            continue
        for value in group:
            check_coefficient(name, value, x_seq.shape[1:])
        tensors += [value for value in group if isinstance(value, Tensor)]
    x_all = x_seq.to(compute_dtype(x_seq, *tensors))
    check_threshold("v_threshold", v_threshold, x_all.dtype)
    if state is None:
        state = torch.zeros((n, *x_all.shape[1:]), dtype=x_all.dtype, device=x_all.device)
    check_state("v", state, (n, *x_all.shape[1:]))
    v = list(state.to(x_all.dtype).unbind())
    surrogate_function = spike_function(surrogate_function)
    reset = (*reset, v_threshold)

    spikes, v_seq = [], []
    for x in x_all.add(x_all.detach(), alpha=0):  # infinity becomes NaN: it stays, and fires nothing
        for i in range(n):
            new = leak[i] * v[i] + gain[i] * x
            if i > 0:
                new = new + up[i - 1] * v[i - 1]
            if i < n - 1:
                new = new + down[i] * v[i + 1]
            v[i] = new
        spike = surrogate_function(v[-1] - v_threshold)
        taken = spike.detach() if detach_reset else spike
        v = [v_i - r * taken for v_i, r in zip(v, reset, strict=True)]
        spikes.append(spike)
        if return_v_seq:
            v_seq.append(torch.stack(v))
    v_all = torch.stack(v_seq) if return_v_seq else None
    return MultiCompartmentOutput(torch.stack(spikes).to(x_seq.dtype), torch.stack(v), v_all)
