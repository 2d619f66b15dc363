"""A time step without gradients that is like the last one: nothing of it is looked at but what can have changed.

For a few thousand neurons everything that leads to a kernel would take several times as long as the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..functional import describe
from ..functional.surrogate import SpikeFunction
from .calls import Call
from .cpu import Repeated, compare


class PreparedStep:
    """Called with an input, it writes the next state in the place of the last one, and returns the spikes. One that is
    prepared with states takes such states, and returns the next ones too.

    It sees whether the input, the parameters (their values too), what the spike function does or the number of threads
    are not as they were, and then does nothing. What else the neuron is set to, its caller has to know.
    """

    __slots__ = ("_call", "_dtype", "_learned", "_shape", "_spec", "_states")

    def __init__(
        self,
        call: Call,
        x: Tensor,
        learned: Mapping[str, Tensor],
        function: SpikeFunction,
        states: Sequence[Tensor] = (),
    ) -> None:
        self._call = Repeated(call, len(states))
        self._spec, self._shape, self._dtype = describe(function), x.shape, x.dtype
        self._states = [(s.shape, s.dtype) for s in states]
        copies = [(name, p, p.detach().clone(), p.data_ptr()) for name, p in learned.items()]
        self._learned = [(name, p, p.shape, p.dtype, at, c, c.data_ptr(), c.nbytes) for name, p, c, at in copies]

    def __call__(
        self,
        x: Tensor,
        learned: Mapping[str, Tensor | None],
        function: SpikeFunction,
        states: Sequence[Any] = (),
    ) -> list[Tensor] | None:
        """The spikes and the next states; None if anything is not as it was, and nothing was done.

        Args:
            x: the input, a step.
            learned: the neuron's parameters by name.
            function: its spike function.
            states: as many as it was prepared with, in the order of the kernel.

        Raises:
            ValueError: ``function`` has a parameter that makes no sense.
            MemoryError: there is none left.
        """
        if type(x) is not Tensor or x.shape != self._shape or x.dtype is not self._dtype or not _as_in_memory(x):
            return None
        for state, (shape, dtype) in zip(states, self._states, strict=True):
            if (
                type(state) is not Tensor
                or state.shape != shape
                or state.dtype is not dtype
                or not _as_in_memory(state)
            ):
                return None
        for name, parameter, shape, dtype, address, _, copy, size in self._learned:
            p = learned.get(name)
            if p is not parameter or p.data_ptr() != address or p.dtype is not dtype or p.shape != shape:
                return None
            if not p.is_contiguous() or p.is_neg() or compare(address, copy, size):
                return None
        if describe(function) != self._spec or torch.get_num_threads() != self._call.threads:
            return None
        made = [torch.empty_like(t) for t in (x, *states)]
        self._call.run(x, made[0], states, made[1:])
        return made


def prepared_step(
    calls: Sequence[Call],
    x: Tensor,
    states: Sequence[Tensor],
    learned: Mapping[str, Tensor | None],
    function: SpikeFunction,
) -> PreparedStep | None:
    """For the steps after this one, if they can be prepared.

    Args:
        calls: the call of the kernel, if it was made, has passed all checks and has overwritten the state.
        x, states: input and state of the neuron, to be those of the call.
        learned: the parameters that the call's coefficients were made of; none: it cannot be told.
        function: the spike function.
    """
    if len(calls) != 1:
        return None
    _, *written = calls[0].results
    if {s.data_ptr() for s in states} != {s.data_ptr() for s in written if s is not None}:
        return None
    return _prepared(calls[0], x, (), learned, function)


def prepared_step_with_states(
    calls: Sequence[Call],
    x: Tensor,
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    learned: Mapping[str, Tensor | None],
    function: SpikeFunction,
) -> PreparedStep | None:
    """For steps like this one that are given their states, if they can be prepared.

    Args:
        calls: the call of the kernel, if it was made, has passed all checks and has overwritten nothing.
        x, before, after: input and states of the neuron, in the order of the kernel, to be those of the call.
        learned, function: as above.
    """
    if len(calls) != 1:
        return None
    _, *written = calls[0].results
    if any(more is not None and more.numel() for more in written[len(after) :]):
        return None
    first = calls[0].tensors._fields.index("v")
    given = calls[0].tensors[first : first + len(before)]
    for one, other, state, made in zip(before, after, given, written, strict=False):
        if not (type(one) is type(other) is Tensor and one.shape == other.shape and one.dtype == other.dtype):
            return None
        if not (_as_in_memory(one) and _as_in_memory(other)):
            return None
        if one.data_ptr() != state.data_ptr() or other.data_ptr() != made.data_ptr():
            return None
    return _prepared(calls[0], x, before, learned, function)


def _prepared(
    call: Call, x: Tensor, states: Sequence[Tensor], learned: Mapping[str, Tensor | None], function: SpikeFunction
) -> PreparedStep | None:
    if not learned or describe(function) is None:
        return None
    if not (type(x) is Tensor and _as_in_memory(x) and x.data_ptr() == call.first.data_ptr()):
        return None
    parameters = {name: p for name, p in learned.items() if type(p) is Parameter and p.is_cpu and _as_in_memory(p)}
    return PreparedStep(call, x, parameters, function, states) if len(parameters) == len(learned) else None


def _as_in_memory(x: Tensor) -> bool:
    """Whether what lies in memory, one after the other, is what it holds."""
    return (
        x.is_cpu
        and x.layout is torch.strided
        and not x.is_nested
        and x.is_contiguous()
        and not x.is_neg()
        and not x._is_zerotensor()
    )
