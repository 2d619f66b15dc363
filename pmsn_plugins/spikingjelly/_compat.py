"""One base class that makes our neurons native in SpikingJelly 2.0.0 and in 0.0.0.0.14.

2.0 asks a neuron for functional forwards with explicit states; 0.14 for forwards that read and write its memories, and
for a ``backend``. :class:`StatefulNode` offers both, from two methods that a neuron implements.
"""

from __future__ import annotations

import math
from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from .._checks import (
    check_callable,
    check_choice,
    check_finite,
    check_flag,
    check_floating,
    check_not_escaped,
    check_threshold,
    compute_dtype,
    is_from_inference,
)
from ..kernels import BACKENDS, check_backend
from ..kernels.calls import Call
from ..kernels.prepared import PreparedStep, prepared_step
from ..kernels.unwatched import unwatched
from ..membrane_loss import refusing_gradient
from ..neuron_cost import NeuronCost
from ..recomputation import KeepsState
from ..unseen import Later, States, can_wait


class Kept:
    """The memories of a neuron, and as long as nobody has looked at its states, these in their place."""

    def __init__(self, memories: dict[str, Any]) -> None:
        self.memories = memories
        self.unseen: States | Later | None = None
        self.prepared: PreparedStep | None = None  # for a step that goes on from them


class StatefulNode(KeepsState, neuron.BaseNode, metaclass=ABCMeta):
    """A spiking neuron with several state variables, soft reset, and its own multi-step path.

    The memories are 0.0 after a reset and tensors, never views, after a forward. The first one is the membrane ``v``
    of the output compartment after reset, which ``store_v_seq`` records in ``v_seq`` [T, N, *] in both step modes.
    """

    _without_kept_state = (
        "Use keep_state=False and step_mode='m', which starts every sequence from rest, or SpikingJelly 2.0's "
        "memopt.checkpoint_module, which hands the states over"
    )
    v_threshold: float
    surrogate_function: Callable[[Tensor], Tensor]
    detach_reset: bool
    step_mode: str

    channels: int | None = None
    """Channels the neuron is made for, or None if it takes any input."""

    _state_may_wait = False
    """Whether ``_sequence`` has an option ``with_state``, for it takes long to write a state that nobody looks at."""

    v_seq: Tensor | None
    """Membranes [T, N, *] recorded since the last reset (single-step) or in the last call (multi-step)."""

    def __init__(
        self,
        *,
        hidden_states: tuple[str, ...],
        v_threshold: float,
        surrogate_function: Callable[[Tensor], Tensor],
        detach_reset: bool,
        step_mode: str,
        backend: str,
        store_v_seq: bool,
        keep_state: bool = True,
    ) -> None:
        check_threshold("v_threshold", v_threshold)
        check_callable("surrogate_function", surrogate_function, "a function of (v - v_threshold)")
        check_flag("detach_reset", detach_reset)
        check_flag("keep_state", keep_state)
        super().__init__(
            v_threshold=float(v_threshold),
            v_reset=None,
            surrogate_function=surrogate_function,
            detach_reset=bool(detach_reset),  # SpikingJelly takes no bool of NumPy
            step_mode=step_mode,
            store_v_seq=store_v_seq,
        )
        self.state_names = ("v", *hidden_states)
        for name in hidden_states:
            self.register_memory(name, 0.0)
        self.backend = backend
        self.keep_state = keep_state

    @neuron.BaseNode.store_v_seq.setter
    def store_v_seq(self, value: bool) -> None:
        check_flag("store_v_seq", value)
        neuron.BaseNode.store_v_seq.fset(self, value)

    @abstractmethod
    def _state_shapes(self, step_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Shape of each state for one step of the given shape, in the order of ``state_names``."""

    @abstractmethod
    def _step(self, x: Tensor, states: States | None, overwrite: list[Call] | None = None) -> tuple[Tensor, States]:
        """One step [N, *]; ``states`` is None after a reset. Returns spikes and new states, which may take the place of
        the old ones in memory if ``overwrite`` is not None: see :func:`pmsn_plugins.kernels.pmsn_sequence`."""

    @abstractmethod
    def _sequence(
        self, x_seq: Tensor, states: States | None, return_v_seq: bool, with_state: bool = True
    ) -> tuple[Tensor, States | None, Tensor | None]:
        """A sequence [T, N, *]. Returns spikes, final states (None: the memories stay as they are) and (on request) the
        membrane after each step."""

    def _without_gradient(self, states: States, spikes: Tensor) -> States:
        """The states to keep, of which one that passes no gradient refuses it where the spikes have one."""
        return states

    def _parameters_of_kernels(self) -> dict[str, Tensor | None]:
        """By name, those that alone say what the kernels of a step are called with; none: it cannot be told."""
        return {}

    @property
    @abstractmethod
    def step_operations(self) -> NeuronCost:
        """What the equations cost; the input current itself is counted with the synapses."""

    @property
    def supported_backends(self) -> tuple[str, ...]:
        return BACKENDS

    @property
    def backend(self) -> str:
        return self._backend

    @backend.setter
    def backend(self, value: str) -> None:
        check_choice("backend", value, self.supported_backends)
        check_backend(value)
        self._backend = value

    def extra_repr(self) -> str:
        return (
            f"v_threshold={self.v_threshold}, step_mode={self.step_mode}, backend={self.backend}, "
            f"store_v_seq={self.store_v_seq}"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which get states of their own: torch cannot copy one that is part of a graph."""
        memories = _detached(self._memories)  # first, for it is then that they are looked at
        return {**_detached(self.__dict__), "_memories": memories, "_kept": Kept(memories), "_has_continued": False}

    @property
    def _memories(self) -> dict[str, Any]:
        """SpikingJelly's dictionary: whoever asks for it looks at the states."""
        if self._kept.unseen is not None:
            self._reveal()
        return self._kept.memories

    @_memories.setter
    def _memories(self, value: dict[str, Any]) -> None:
        self.__dict__["_kept"] = Kept(value)
        self.__dict__["_memories"] = value  # where SpikingJelly looks up names; to torch.compile it is this property

    def __getattr__(self, name: str) -> Any:
        if (kept := self.__dict__.get("_kept")) is not None and kept.unseen is not None and name in self.state_names:
            self._reveal()
        return super().__getattr__(name)

    def _reveal(self) -> None:
        states = self._kept.unseen
        if isinstance(states, Later):
            states = states()
        self._kept.unseen = self._kept.prepared = None
        for name, value in zip(self.state_names, states, strict=True):
            self._kept.memories[name] = value

    def _hide(self, states: States | Later) -> None:
        """Keep states that nobody has looked at."""
        kept = self._kept
        kept.unseen, kept.prepared = states, None
        for name in self.state_names:
            kept.memories[name] = 0.0

    def reset(self) -> None:
        """Go back to the state after construction."""
        self._kept.unseen = self._kept.prepared = None
        super().reset()

    def __setattr__(self, name: str, value: Any) -> None:
        """Also notes when memories are set, as SpikingJelly's ``memopt`` does before it repeats a call; and anything
        that is set may be a setting that the next step was not prepared for."""
        if (kept := self.__dict__.get("_kept")) is not None:
            kept.prepared = None
        if name in self.__dict__.get("state_names", ()):
            if self._kept.unseen is not None:
                self._reveal()
            if not torch.compiler.is_compiling():
                self.__dict__["_given_in"] = torch._C._current_graph_task_id()
        super().__setattr__(name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """One step or a sequence."""
        if self._step_mode == "s":  # the property of that name takes as long as ten such lines
            return self.single_step_forward(*args, **kwargs)
        return self.multi_step_forward(*args, **kwargs)

    def single_step_forward(self, x: Tensor) -> Tensor:
        """Spikes [N, *] of one step [N, *]; reads and writes the memories."""
        if unwatched() and (spike := self._prepared_step(x)) is not None:
            return spike
        x, before, keep = self._begin(x, "s")
        hidden = before is not None and before is self._kept.unseen
        calls: list[Call] | None = [] if hidden else None
        spike, states = self._step(x, before, calls)
        if not keep:
            return spike
        states = self._without_gradient(states, spike)
        if unwatched() and (hidden or not _shared(states, before)):
            states = tuple(map(_own, states))
            self._hide(states)
            if calls:
                learned = self._parameters_of_kernels()
                self._kept.prepared = prepared_step(calls, x, states, learned, self.surrogate_function)
        else:
            self._remember(states)
        if self.store_v_seq:
            past, v = self.v_seq, self.v
            if past is None or past.shape[1:] != v.shape:
                self.v_seq = torch.stack([v])
            else:
                self.v_seq = torch.cat([past, v.unsqueeze(0)])
        return spike

    def _prepared_step(self, x: Tensor) -> Tensor | None:
        """The spikes of a step that is like the last one; None if it is not, and nothing was done."""
        prepared = self._kept.prepared
        if prepared is None or self._repeated(continues=True):
            return None
        function = self._modules.get("surrogate_function") or self.__dict__.get("surrogate_function")
        made = prepared(x, self._parameters, function)
        return None if made is None else made[0]

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        """Spikes [T, N, *] of a sequence [T, N, *]; reads and writes the memories."""
        x_seq, states, keep = self._begin(x_seq, "m")
        if states is None and self._can_wait(x_seq):
            later = Later(self, x_seq, _final_states)
            spikes, _, v_seq = self._sequence(x_seq, None, self.store_v_seq, with_state=False)
        else:
            later = None
            spikes, states, v_seq = self._sequence(x_seq, states, self.store_v_seq)
        if not keep:
            return spikes
        if later is not None:
            self._hide(later)
        elif states is not None:
            self._remember(self._without_gradient(states, spikes))
        if v_seq is not None:
            self.v_seq = _own(refusing_gradient(v_seq, spikes))
        return spikes

    def _begin(self, x: Tensor, step_mode: str) -> tuple[Tensor, States | None, bool]:
        """The input, what the call starts from, and whether to keep what it ends with."""
        unseen = self._kept.unseen
        own = type(unseen) is tuple and step_mode == "s" and type(x) is Tensor and x.shape == unseen[0].shape
        own = own and not is_from_inference(unseen[0])
        if own and not self._repeated(continues=True):  # from a step of this shape: the kernels check the rest
            check_floating("x", x)
            return self._checked_when_run(x), unseen, True
        states = self._states()
        if not self.keep_state:
            return x, self._ready(x, states, step_mode), True
        x = self._checked_when_run(x)
        if self._repeated(continues=not _at_rest(states)):
            self._check_input(x, step_mode)
            return x, None, False
        return x, self._ready(x, states, step_mode), True

    def materialize_states(self, inputs: tuple[Tensor, ...], states: tuple, step_mode: str) -> tuple:
        """Check ``states`` against the input (2.0's interface). All 0.0, the state after a reset, is left as it is."""
        ready = self._ready(inputs[0], states, step_mode)
        return states if ready is None else ready

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple, **kwargs: object
    ) -> tuple[tuple[Tensor], tuple]:
        """``((spikes,), new states)`` of one step (2.0's interface); the memories stay untouched."""
        spike, states = self._step(inputs[0], self._ready(inputs[0], states, "s"))
        return (spike,), tuple(map(_own, states))

    def multi_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: tuple, **kwargs: object
    ) -> tuple[tuple[Tensor], tuple]:
        """``((spikes,), final states)`` of a sequence (2.0's interface); the memories stay untouched."""
        spikes, final, _ = self._sequence(inputs[0], self._ready(inputs[0], states, "m"), False)
        return (spikes,), states if final is None else tuple(map(_own, final))

    def _can_wait(self, x_seq: Tensor) -> bool:
        """Whether the final state can be left for later."""
        if not (self._state_may_wait and self.keep_state):
            return False
        step = tuple(x_seq.shape[1:])
        numbers = sum(math.prod(shape) for shape in self._state_shapes(step)) // max(math.prod(step), 1)
        return can_wait(x_seq, numbers)

    def _states(self) -> tuple:
        # not all memories: 0.14 keeps v_seq among them
        return tuple(self._memories[name] for name in self.state_names)

    def _remember(self, states: States) -> None:
        memories = self._memories
        for name, value in zip(self.state_names, states, strict=True):
            memories[name] = _own(value)

    def _ready(self, x: Tensor, states: tuple, step_mode: str) -> States | None:
        """Tensors for ``states`` that fit the input, or None if all of them are 0.0."""
        self._check_input(x, step_mode)
        if step_mode == "s" and not self.keep_state:
            raise ValueError(
                "keep_state=False has no state to go on from in step_mode='s': use keep_state=True, or "
                "functional.set_step_mode(net, 'm')"
            )
        if _at_rest(states):
            return None
        if not self.keep_state:
            names = " or ".join((", ".join(self.state_names[:-1]), self.state_names[-1]))
            raise ValueError(f"keep_state=False starts from rest, but {names} was set: use keep_state=True")
        step_shape = x.shape[1:] if step_mode == "m" else x.shape
        ready = []
        for name, value, shape in zip(self.state_names, states, self._state_shapes(step_shape), strict=True):
            if not isinstance(value, Tensor):
                check_finite(f"state {name}", value)
                value = torch.full(shape, value, dtype=compute_dtype(x), device=x.device)
            elif value.shape != shape:
                raise ValueError(
                    f"state {name} of {self._get_name()} has shape {tuple(value.shape)}, but the input of shape "
                    f"{tuple(x.shape)} asks for {tuple(shape)}; call functional.reset_net(net) before the batch or "
                    "feature size changes"
                )
            else:
                check_not_escaped(name, value)
                if is_from_inference(value):
                    value = value.clone()
                if not value.is_floating_point():
                    check_floating(f"state {name}", value)
            ready.append(value)
        return tuple(ready)

    def _check_input(self, x: Tensor, step_mode: str) -> None:
        check_floating("x" if step_mode == "s" else "x_seq", x)
        axis, layout = (1, "[N, C, *]") if step_mode == "s" else (2, "[T, N, C, *]")
        if self.channels is None:
            axis, layout = (0, "[N, *]") if step_mode == "s" else (1, "[T, N, *]")
        if x.ndim <= axis:
            raise ValueError(
                f"{self._get_name()} with step_mode={step_mode!r} takes {layout}, got shape {tuple(x.shape)}; "
                "is the time or the batch axis missing?"
            )
        if self.channels is not None and x.shape[axis] != self.channels:
            raise ValueError(
                f"{self._get_name()} expected {self.channels} channels, got {x.shape[axis]} on axis {axis} of the "
                f"input of shape {tuple(x.shape)}; step_mode='s' reads axis 1 of [N, C, *], step_mode='m' axis 2 of "
                f"[T, N, C, *], and this neuron has step_mode={step_mode!r}"
            )


def _final_states(node: StatefulNode, x_seq: Tensor) -> States:
    spikes, states, _ = node._sequence(x_seq, None, False)
    assert states is not None  # asked for by default
    return tuple(map(_own, node._without_gradient(states, spikes)))


def _shared(states: States, before: States | None) -> bool:
    """Whether a state may lie where an earlier one does, which somebody has seen."""
    places = {state.data_ptr() for state in before or ()}
    return any(state.data_ptr() in places for state in states)


def _at_rest(states: tuple) -> bool:
    return all(isinstance(value, (float, int)) and value == 0.0 for value in states)


def _detached(values: dict[str, Any]) -> dict[str, Any]:
    return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in values.items()}


def _own(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if it is a view: ``functional.detach_net`` works in place, which views refuse."""
    return tensor.clone() if torch.compiler.is_compiling() or tensor._is_view() else tensor
