"""What PMSN and TCLIF share as snnTorch layers: options, graded spikes, and hidden states kept by the layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import snntorch as snn
import torch
from torch import Tensor

from .._checks import (
    check_choice,
    check_finite,
    check_flag,
    check_floating,
    check_not_escaped,
    check_state,
    check_threshold,
    compute_dtype,
    is_from_inference,
    is_transformed,
    shown,
)
from ..functional import triangle
from ..functional.surrogate import SpikeFunction
from ..kernels import check_backend
from ..kernels.calls import Call
from ..kernels.prepared import PreparedStep, prepared_step, prepared_step_with_states
from ..kernels.unwatched import unwatched
from ..recomputation import KeepsState
from ..unseen import Later, States
from .instances import enlist, enlisted
from .membrane import Membrane, version

Result = TypeVar("Result")

STEP_MODES = ("m", "s")
NAMES_OF_SYNAPTIC = {"input_": "x", "syn": "dend"}


class MultiCompartmentLayer(KeepsState, snn.SpikingNeuron):
    """Base of the two layers; not a neuron of its own."""

    spike_grad: SpikeFunction
    init_hidden: bool
    output: bool
    threshold: float | Tensor
    """A number as the user gave it; a tensor if it is learned or was given as one."""

    _without_kept_state = "Use init_hidden=False and pass the state explicitly"

    _hidden: tuple[str, ...]
    """Names of the tensors that make up the hidden state; an empty tensor stands for the initial state."""

    _set_by_user: tuple[str, ...] = ()
    """Those names whose tensors the layer did not set last. After a reset all: it has lost nothing."""

    _versions: tuple[int | None, ...] = ()
    """How often they had been changed in place when the layer set them."""

    _unseen: States | Later | None = None
    """The hidden state, as long as nobody has looked at it: its names are not there until somebody asks for one."""

    _prepared: PreparedStep | None = None
    """For a step that goes on from it."""

    _prepared_with_states: PreparedStep | None = None
    """For a step that is given its states."""

    _reset_advice: str
    """How this neuron resets, and what to do instead of choosing another ``reset_mechanism``."""

    def __init__(
        self,
        create_parameters: Callable[[], None],
        *,
        channels: int | None,
        threshold: float | Tensor,
        spike_grad: SpikeFunction | None,
        surrogate_disable: bool,
        init_hidden: bool,
        inhibition: bool,
        learn_threshold: bool,
        reset_mechanism: str,
        state_quant: object,
        output: bool,
        graded_spikes_factor: float | Tensor,
        learn_graded_spikes_factor: bool,
        backend: str,
        single_state: bool,
    ) -> None:
        check_threshold("threshold", threshold)
        check_backend(backend)
        self._reset_cases(reset_mechanism)
        if spike_grad is not None and not callable(spike_grad):
            raise TypeError(f"spike_grad must be a function of (u - threshold) or None, got {spike_grad!r}")
        for name, flag in (
            ("surrogate_disable", surrogate_disable),
            ("init_hidden", init_hidden),
            ("inhibition", inhibition),
            ("learn_threshold", learn_threshold),
            ("output", output),
            ("single_state", single_state),
            ("learn_graded_spikes_factor", learn_graded_spikes_factor),
        ):
            check_flag(name, flag)
        if inhibition:
            raise ValueError(
                "inhibition must be False: a spike removed by its neighbours would already have reset its neuron. "
                "Take the winner from the spikes or membranes that the layer returns"
            )
        if state_quant is not False:
            raise ValueError(
                "state_quant must be False: the compartments are kept in float32 or wider, because rounding them at "
                "every step breaks their dynamics. Quantise the weights or the input current instead"
            )
        if isinstance(graded_spikes_factor, Tensor):
            check_floating("graded_spikes_factor", graded_spikes_factor)
        else:
            check_finite("graded_spikes_factor", graded_spikes_factor)
        factor = torch.as_tensor(graded_spikes_factor)
        if factor.ndim and tuple(factor.shape) != (channels,):
            raise ValueError(
                f"graded_spikes_factor must be one number or one per channel (channels={channels}), "
                f"got shape {tuple(factor.shape)}"
            )
        if not factor.isfinite().all():
            raise ValueError("graded_spikes_factor must be finite, got NaN or infinite values")

        # not super(): between this class and SpikingNeuron stands Synaptic when the layer is a TCLIF
        snn.SpikingNeuron.__init__(
            self,
            threshold=_as_floating(threshold),
            spike_grad=triangle(strict=True) if spike_grad is None else spike_grad,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            learn_threshold=learn_threshold,
            output=output,
            graded_spikes_factor=_as_floating(factor),
            learn_graded_spikes_factor=learn_graded_spikes_factor,
        )
        snn.SpikingNeuron.instances.pop()  # the layer itself: it would live for ever
        create_parameters()
        # options, like SpikingJelly's v_threshold: the state_dict holds what is learned and fits both frameworks
        for name, value in list(self.named_buffers(recurse=False)):
            self.register_buffer(name, value, persistent=False)
        if not learn_threshold and not isinstance(threshold, Tensor):
            del self.threshold
            self.threshold = float(threshold)  # exactly SpikingJelly's number: snnTorch's buffer rounds it to float32
        if not learn_graded_spikes_factor and factor.ndim == 0 and factor == 1:
            self.register_buffer("graded_spikes_factor", None, persistent=False)  # spares a product over all spikes
        self.backend = backend
        self.single_state = single_state
        self._set_states(torch.zeros(0) for _ in self._hidden)
        self._set_by_user = self._hidden
        enlist(self)

    def fire(self, mem: Tensor) -> Tensor:
        """Spikes of a membrane, as snnTorch's layers have it."""
        return self._grade(self.spike_grad(mem - self.threshold), getattr(self, "channel_axis", 1))

    def _reset_cases(self, reset_mechanism: str) -> None:
        """Called by snnTorch whenever ``reset_mechanism`` is set."""
        if reset_mechanism != "subtract":
            raise ValueError(f"reset_mechanism must be 'subtract', got {reset_mechanism!r}: {self._reset_advice}")

    def _grade(self, spk: Tensor, channel_axis: int) -> Tensor:
        """Spikes times ``graded_spikes_factor``, which is None, one number, or one per channel on ``channel_axis``."""
        if self.graded_spikes_factor is None:
            return spk
        factor = self.graded_spikes_factor.to(spk.dtype)
        if factor.ndim:
            factor = factor.view(-1, *(1,) * (spk.ndim - channel_axis % spk.ndim - 1))
        return spk * factor

    def _begin(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...], bool]:
        """The input, the kept state that a call starts from, and whether to keep the one that it ends with."""
        self._look_for_changes()
        x = self._checked_when_run(x)
        kept = self._unseen
        if type(kept) is not tuple or x.shape != kept[0].shape:
            kept = tuple(getattr(self, name) for name in self._hidden)
        if self._repeated(continues=any(state.numel() for state in kept)):
            return x, tuple(x.new_zeros(0) for _ in kept), False
        return x, kept, True

    def reset_mem(self) -> tuple[Tensor, ...] | Membrane:
        """Go back to the initial state and return it: empty tensors, which fit any batch."""
        unseen = self._unseen
        if isinstance(unseen, Later):
            x = unseen.x_seq
            last = (x.new_empty(0, dtype=compute_dtype(x)),) * len(self._hidden)
        else:
            last = tuple(getattr(self, name) for name in self._hidden) if unseen is None else unseen
        # only asked what they are: they may be left from a transformation of torch.func
        states = tuple(torch.zeros(0, dtype=state.dtype, device=state.device) for state in last)
        self._set_states(states)
        self._set_by_user = self._hidden
        # not what the layer keeps: other threads may reset it as well
        hidden = dict(zip(self._hidden, states, strict=True))
        return Membrane.of(hidden["mem"], hidden) if self.single_state else states

    def init_leaky(self) -> Membrane:
        """``snn.Leaky``'s name of :meth:`reset_mem`, for its loops."""
        if not self.single_state:
            raise TypeError(
                f"init_leaky is for loops written for snn.Leaky, with one state: {type(self).__name__}(..., "
                "single_state=True); else use reset_mem"
            )
        state = self.reset_mem()
        assert not isinstance(state, tuple)
        return state

    init_lapicque = init_leaky

    def _keep_states(self, states: States, before: States, seen: bool, x: Tensor, calls: list[Call] | None) -> None:
        """Keep the state after a step.

        Args:
            before: what it began with.
            seen: whether it is handed out as well.
            x: its input.
            calls: the call that has overwritten ``before``, if one did.
        """
        if not seen and unwatched() and (before is self._unseen or not _shared(states, before)):
            self._hide(states)
            if calls and self.graded_spikes_factor is None:
                learned = self._parameters_of_kernels()
                self.__dict__["_prepared"] = prepared_step(calls, x, states, learned, self.spike_grad)
            return
        self._set_states(states)

    def _set_states(self, states: Iterable[Tensor]) -> None:
        """Keep a state that may be seen, as the layer itself does."""
        states = tuple(states)
        if torch.compiler.is_compiling():
            self._unseen, self._set_by_user, self._versions = None, (), (None,) * len(states)
            for name, state in zip(self._hidden, states, strict=True):
                self._show(name, state)
            return
        # what setting one by one would do, many times faster
        self.__dict__.update(zip(self._hidden, states, strict=True))
        versions = tuple([None if state.is_inference() else state._version for state in states])
        self.__dict__.update(
            _unseen=None, _set_by_user=(), _versions=versions, _prepared=None, _prepared_with_states=None
        )

    def _show(self, name: str, state: Tensor) -> None:
        super().__setattr__(name, state)

    def _change_states(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change what they are, but not their values."""
        self._note_changes()
        whose, states = self._set_by_user, [getattr(self, name) for name in self._hidden]
        self._set_states([state if _escaped(state) else change(state) for state in states])
        self._set_by_user = whose

    def _prepared_step(self, x: Tensor) -> Tensor | None:
        """The spikes of a step that is like the last one; None if it is not, and nothing was done."""
        prepared = self._prepared
        if prepared is None or self._repeated(continues=True):
            return None
        made = prepared(x, self._parameters, self.spike_grad)
        return None if made is None else made[0]

    def _prepared_step_with_states(self, x: Tensor, states: Sequence[Any]) -> list[Tensor] | None:
        """The spikes and the next states of a step, given its states, that is like the last one; None if it is not, and
        nothing was done. In the order of the kernel."""
        prepared = self._prepared_with_states
        if prepared is None or self._forward_hooks or self._unseen is not None or self.in_backward():
            return None
        return prepared(x, self._parameters, self.spike_grad, states)

    def _calls_with_states(self) -> list[Call] | None:
        """Where the call of a step that is given its states is kept, if the next one can be prepared with it."""
        plain = not self.init_hidden and not self.single_state and self.graded_spikes_factor is None
        return [] if plain and unwatched() and not self.in_backward() else None

    def _prepare_with_states(
        self, calls: list[Call] | None, x: Tensor, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> None:
        if calls:
            learned = self._parameters_of_kernels()
            step = prepared_step_with_states(calls, x, before, after, learned, self.spike_grad)
            self.__dict__["_prepared_with_states"] = step

    def _parameters_of_kernels(self) -> dict[str, Tensor | None]:
        """By name, those that alone say what the kernels of a step are called with; none: it cannot be told."""
        return {}

    def _hide(self, states: States | Later) -> None:
        """Keep a state that nobody has looked at."""
        for name in self._hidden:
            self.__dict__.pop(name, None)
        self.__dict__.update(_unseen=states, _prepared=None, _set_by_user=())

    def _reveal(self) -> None:
        states = self._unseen
        if isinstance(states, Later):
            states = states()
        assert states is not None
        self._set_states(states)

    def __setattr__(self, name: str, value: Any) -> None:
        # anything that is set may be a setting that they were not prepared for
        if self._prepared is not None:
            self.__dict__["_prepared"] = None
        if self._prepared_with_states is not None:
            self.__dict__["_prepared_with_states"] = None
        if name in self._hidden:
            self._take(name, value)
            return
        if name == "step_mode":
            check_choice("step_mode", value, STEP_MODES)
        super().__setattr__(name, value)

    def _take(self, name: str, value: Any) -> None:
        """Go on from what a user has set ``layer.mem`` to, say: zeros reset the layer, as they would a Leaky."""
        whole = list(getattr(value, "compartments", {}).values()) or (value if isinstance(value, tuple) else ())
        if len(whole) == len(self._hidden) and all(isinstance(state, Tensor) for state in whole):
            self._set_states(whole)
            self._set_by_user = self._hidden
            return
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be set to a tensor or to what reset_mem() returned, got {shown(value)}")
        if self._unseen is None and _same_memory(value, now := getattr(self, name)):
            if name == "mem" and value is not now and not value.requires_grad:
                self._change_states(torch.Tensor.detach)  # as of a Leaky, nothing is left of the graph
        elif name == "mem" and _is_plain_zero(value):
            self.reset_mem()
        else:
            self._set_by_user_too(name)
        self._show(name, value)

    def _set_by_user_too(self, name: str) -> None:
        if self._unseen is not None:
            self._reveal()
        self._set_by_user = tuple(n for n in self._hidden if n == name or n in self._set_by_user)

    def _note_changes(self) -> None:
        """What was changed in place is as if it had been set."""
        if self._unseen is not None:
            return
        for name, before in zip(self._hidden, self._versions, strict=True):
            state = getattr(self, name)
            if before is None or version(state) in (None, before):
                continue
            if name == "mem" and not state.any():
                self.reset_mem()
                return
            self._set_by_user_too(name)

    def _look_for_changes(self) -> None:
        """Before a call goes on from the kept state: raise if the user has changed a part of it alone."""
        self._note_changes()
        if self._set_by_user and self._set_by_user != self._hidden:
            raise ValueError(
                f"{', '.join(self._set_by_user)} of {type(self).__name__} was changed, and its other states were not: "
                f"they would go on from before. Use reset_mem() to start anew, or set all of {', '.join(self._hidden)}"
            )

    def _compartments(self, state: object) -> dict[str, Tensor]:
        """What a loop with one state hands back: a :class:`Membrane` of this kind of layer, or its initial state."""
        if not isinstance(state, Tensor):
            raise TypeError(f"mem must be the state that the layer returned, got {type(state).__name__}")
        compartments = getattr(state, "compartments", {})
        changed = isinstance(state, Membrane) and state.was_changed()
        if compartments.keys() == set(self._hidden) and not changed:
            return compartments
        if state is self.mem and not changed:
            return {name: getattr(self, name) for name in self._hidden}
        if (compartments and not changed) or not (_is_plain_zero(state) or (changed and not state.any())):
            raise TypeError(
                f"mem must be the state that this {type(self).__name__} returned (its detach() is one too), or zeros; "
                "a tensor computed from it, or changed in place, has lost the other compartments"
            )
        if not changed and self._may_come_from_last(state):
            raise ValueError(
                f"mem is zeros, and so was the membrane that this {type(self).__name__} returned last: it cannot be "
                "told whether they are the initial state or computed from that one, which has lost the other "
                "compartments. Begin with mem = layer.reset_mem(), and go on with the mem that the layer returns"
            )
        return {name: state.new_zeros(0) for name in self._hidden}

    def _may_come_from_last(self, zeros: Tensor) -> bool:
        """Whether they may be a copy of the last membrane, say, while other compartments are not at rest."""
        last = self.mem
        if zeros.numel() == 0 or last.shape != zeros.shape or is_transformed(last) or last.any():
            return False
        return any(bool(getattr(self, name).any()) for name in self._hidden)

    def detach_mem(self) -> None:
        """Cut the hidden state from the graph that computed it; in place like snnTorch, for loops hold it as well."""
        self._change_states(lambda state: state.detach() if state._is_view() else state.detach_())

    @classmethod
    def detach_hidden(cls) -> None:
        """Detach the hidden states of all layers of this class (truncated back-propagation through time)."""
        for layer in enlisted(cls):
            layer.detach_mem()

    @classmethod
    def reset_hidden(cls) -> None:
        """Reset the hidden states of all layers of this class."""
        for layer in enlisted(cls):
            layer.reset_mem()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> MultiCompartmentLayer:
        """Move the hidden state along with ``.to()``. It is no buffer, for DDP would broadcast it between processes."""
        super()._apply(fn, *args, **kwargs)
        self._change_states(fn)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which get states of their own: torch cannot copy one that is part of a graph."""
        self._note_changes()
        found = {name: getattr(self, name) for name in self._hidden}
        states = {n: torch.zeros(0) if _escaped(state) else state.detach().clone() for n, state in found.items()}
        fresh = {"_has_continued": False, "_prepared_with_states": None, "_versions": (None,) * len(states)}
        return {**self.__dict__, **states, **fresh}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        enlist(self)

    def __getattr__(self, name: str) -> Any:
        """snnTorch's monitors ask here for states, which it keeps in buffers, and its NIR export for decay rates."""
        if name in self._hidden:
            if self._unseen is not None:
                self._reveal()
            if name in vars(self):
                return vars(self)[name]
        if name in ("alpha", "beta"):
            raise AttributeError(
                f"{type(self).__name__} has no decay rate {name}; to export it to NIR use "
                "pmsn_plugins.nir.to_nir(layer, features)"
            )
        return super().__getattr__(name)


def _shared(states: States, before: States) -> bool:
    """Whether a state may lie where an earlier one does, which somebody has seen."""
    places = {state.data_ptr() for state in before if state.numel()}
    return any(state.data_ptr() in places for state in states)


def renamed(ours: dict[str, Any], theirs: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """Arguments of a forward, of which some were given by snnTorch's names.

    Args:
        names: ours by theirs.
    """
    for name, value in theirs.items():
        if (own := names.get(name)) is None:
            raise TypeError(f"forward() got an unexpected keyword argument {name!r}")
        if ours[own] is not None:
            raise TypeError(f"{own} and {name} are one argument, got both")
        ours[own] = value
    return ours


def in_words_of_snntorch(kernel: Callable[..., Result], *args: Any, **options: Any) -> Result:
    """Call a kernel. Its errors name ``threshold`` and ``spike_grad`` as they are named here."""
    if torch.compiler.is_compiling():
        return kernel(*args, **options)
    try:
        return kernel(*args, **options)
    except (TypeError, ValueError) as error:
        words = (str(word).replace("v_threshold", "threshold") for word in error.args)
        error.args = tuple(word.replace("surrogate_function", "spike_grad") for word in words)
        raise


def _escaped(state: Tensor) -> bool:
    """Whether it was left behind by a transformation of ``torch.func``, and has no values any more."""
    return is_transformed(state) and not torch._C._are_functorch_transforms_active()


def _is_plain_zero(value: Tensor) -> bool:
    """Whether it is zeros, or empty, and no result of a computation that is recorded."""
    if value.numel() == 0:
        return True
    if value.requires_grad or value.is_meta or is_transformed(value):
        return False
    return not value.any()


def _same_memory(value: Tensor, state: Tensor) -> bool:
    """Whether ``value`` is ``state``, or its detached form."""
    if value is state or is_transformed(value) or is_transformed(state):
        return value is state
    return value.data_ptr() == state.data_ptr() and value.shape == state.shape and value.stride() == state.stride()


def check_step(x: Tensor, channels: int | None) -> None:
    """Raise unless ``x`` is a floating-point time step, with ``channels`` on axis 1 if they are given."""
    check_floating("x", x)
    if channels is not None and (x.ndim < 2 or x.shape[1] != channels):
        raise ValueError(
            f"x must be one time step [B, C, *] with {channels} channels on axis 1, got shape {tuple(x.shape)}"
        )


def fit_state(name: str, state: Tensor, shape: torch.Size | tuple[int, ...], like: Tensor) -> Tensor:
    """Zeros of ``shape`` if ``state`` stands for the initial state, else ``state``, which must have that shape.

    The initial state is an empty tensor, or zeros of any shape: that is what snnTorch's own resets leave behind.
    """
    if not isinstance(state, Tensor):
        check_floating(f"state {name}", state)
    if state.numel() == 0:
        return like.new_zeros(shape)
    check_not_escaped(name, state)
    if state.shape == shape:
        return state.clone() if is_from_inference(state) else state
    # zeros that the user made, or an error to be raised here: worth waiting for a GPU. Our resets leave empty tensors.
    if is_transformed(state) or state.any():
        check_state(name, state, shape)
    return like.new_zeros(shape)


def _as_floating(value: float | Tensor) -> Tensor:
    """snnTorch takes tensors as they are, and an integer one could not be learned."""
    value = torch.as_tensor(value)
    return value if value.is_floating_point() else value.to(torch.get_default_dtype())
