"""The parallel multi-compartment spiking neuron (PMSN) as an snnTorch layer."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from torch import Tensor

from .. import kernels
from .._checks import check_choice, check_flag, check_floating, check_named
from ..channel_axis import Fold, check_channel_axis
from ..functional import CONTEXTS, RESET_MODES, PMSNOutput, PMSNState
from ..functional.surrogate import SpikeFunction
from ..kernels.calls import Call
from ..kernels.unwatched import unwatched
from ..membrane_loss import refusing_gradient
from ..parameters import PMSNParametersMixin
from ..unseen import Later, States, can_wait
from .layer import STEP_MODES, MultiCompartmentLayer, check_step, fit_state, in_words_of_snntorch, renamed
from .membrane import Membrane


class PMSN(PMSNParametersMixin, MultiCompartmentLayer, snn.Leaky):
    r"""Parallel multi-compartment spiking neuron: n - 1 hidden compartments and one that fires.

    .. math::

        h_j[t] &= A_j h_j[t-1] + K_j x[t], \quad j = 1, \dots, n-1

        u[t] &= \mathtt{mem}[t-1] + \max(\operatorname{Re} \sum_j h_j[t] + D x[t], 0)

        \mathtt{spk}[t] &= \operatorname{Heaviside}(u[t] - \theta)

        \mathtt{mem}[t] &= u[t] - \theta \lfloor u[t] / \theta \rfloor

    The h are complex modes of the hidden compartments, :math:`\theta` is ``threshold``.
    Chen et al., PMSN (arXiv 2408.14917), Eq. 6-18; see :mod:`pmsn_plugins.functional.pmsn`.

    Like ``snn.StateLeaky`` it takes the whole sequence at once::

        pmsn = PMSN(channels=128)
        spk, mem = pmsn(x)                     # x, spk, mem: [T, B, C, *]

    In a loop over time, with the state in the user's hands::

        state = pmsn.reset_mem()
        for t in range(T):
            spk, state = pmsn.step(x[t], state)    # x[t], spk, state.v: [B, C, *]

    A loop written for ``snn.Leaky`` runs unchanged with ``PMSN(128, step_mode='s', single_state=True)``: the ``mem``
    that it returns, and takes back, carries the hidden compartments along (:class:`pmsn_plugins.snntorch.Membrane`).
    With ``step_mode='s'`` a call without a state goes on from the last one, as snnTorch's layers do; with ``'m'`` every
    sequence, and a step without a state, begins at rest.

    With ``init_hidden=True`` the layer keeps the state: every call continues the sequence, in chunks or steps of any
    length, until ``reset_mem()``, ``PMSN.reset_hidden()``, ``pmsn_plugins.snntorch.reset(net)`` or
    ``snntorch.utils.reset(net)``. With ``step_mode='s'`` as well, ``snntorch.backprop`` trains it.

    ``layer.mem`` is the membrane after the last step, where a call can go on from it or a forward hook watches the
    layer (a monitor of ``snntorch.functional.probe``). Set to zeros or to an empty tensor it resets all compartments;
    set to anything else, or changed in place, while the others are left as they were, it makes the next call that goes
    on from it a ValueError.

    Spikes have the dtype of ``x``; the membrane and all states are float32 or wider. With ``reset_mode='modulo'`` no
    gradient flows through ``mem``: train on spikes. For a loss on the membrane (``ce_max_membrane_loss``,
    ``mse_membrane_loss``, regression) use ``reset_mode='memoryless'`` or ``'cumulative'`` in the last layer, or a
    linear readout. The default ``spike_grad`` is strict like snnTorch's: the neuron fires at ``u > threshold``.

    Args:
        channels: C, axis 2 of a sequence and axis 1 of one step.
        n_compartments: compartments per neuron including the one that fires, at least 2.
        preset: initial values, ``'general'``, or those of the paper's experiments, ``'sequential'``, ``'shd'`` and
            ``'static'`` (:data:`pmsn_plugins.functional.PRESETS`).
        threshold: firing threshold, one number above 0.
        spike_grad: called on ``u - threshold``, any function of ``snntorch.surrogate``; default the paper's
            ``triangle(strict=True)``.
        dt_range: (low, high) of the initial time steps ``dt``, log-uniform; None takes the preset's.
        coupling: s, strength of the initial couplings between the hidden compartments; None takes the preset's.
        time_scale: chooses both for sequences of about so many time steps, see
            :func:`pmsn_plugins.functional.pmsn_initial_parameters`.
        reset_mode: ``'modulo'`` as above. On the signed current, without a reset: ``'cumulative'``,
            ``mem[t] = mem[t-1] + I[t]``, and ``'memoryless'``, ``mem[t] = I[t]``; ``'serial'`` subtracts the threshold
            once per spike. See :func:`pmsn_plugins.functional.pmsn_sequence`.
        burst: several spikes per step, ``floor(u / threshold)``, with the gradient of ``spike_grad`` around the last
            multiple of the threshold that u has passed (the first, below it), as in the authors' scripts; with
            ``surrogate.straight_through_estimator()`` it is 1 wherever u > 0.
        context: ``'global'`` shows every step the time-average of the sequence; whole sequences only.
        backend: who computes it, see :func:`pmsn_plugins.backends`.
        step_mode: what a call takes: ``'m'``, sequences [T, B, C, *], or ``'s'``, one step [B, C, *] (then ``forward``
            is :meth:`step`), as snnTorch's time loops and ``snntorch.backprop`` need.
        single_state: a step returns ``(spk, mem)`` with a ``mem`` that is the whole state, see above; needs
            ``step_mode='s'``.
        channel_axis: axis of the channels in one step [B, C, *], counted from either end: -1 for tokens [B, L, C] and
            [T, B, L, C], 0 for [C, B, *]. It costs no copy of a contiguous input.
        init_hidden: the layer keeps its state between calls.
        output: return ``(spk, mem)`` rather than ``spk`` alone. Default: True like StateLeaky, but False with
            ``init_hidden`` like snnTorch's other neurons. (StateLeaky returns ``mem`` alone for False; a PMSN's
            membrane alone tells nothing, its spikes do.)
        learn_threshold: make ``threshold`` a parameter.
        graded_spikes_factor: multiplies the output spikes (not the reset): one number, or one per channel [C].
        learn_graded_spikes_factor: make it a parameter.
        surrogate_disable: fire without gradient.
        inhibition, state_quant, reset_mechanism: snnTorch's; only their defaults make sense for this neuron.

    Raises:
        TypeError: ``x`` is not dense and real floating point; a flag is not a bool, or an option of another wrong type;
            a state is no PMSNState, or passed where the layer keeps its own.
        ValueError: an option outside its allowed values, or options that exclude each other; wrong number of axes or
            channels; a state of another shape (the batch changed without a reset); a part of the kept state changed.
        RuntimeError: gradient checkpointing repeats a call of a neuron that has gone on from a kept state.

    Example:
        >>> lif = PMSN(channels=128)
        >>> x = torch.randn(25, 8, 128)  # [T, B, C]
        >>> spk, mem = lif(x)  # all steps at once
        >>> state = lif.reset_mem()
        >>> for step in range(25):  # or one after the other: the same spikes
        ...     spk_now, state = lif.step(x[step], state)
        >>> torch.equal(spk_now, spk[-1])
        True
    """

    mem: Tensor
    h_real: Tensor
    h_imag: Tensor
    _hidden = ("mem", "h_real", "h_imag")
    _reset_advice = (
        "PMSN takes whole multiples of the threshold off its membrane; use reset_mode='cumulative' or 'memoryless' for "
        "no reset"
    )

    def __init__(
        self,
        channels: int,
        n_compartments: int = 5,
        preset: str = "general",
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeFunction | None = None,
        *,
        dt_range: tuple[float, float] | None = None,
        coupling: float | None = None,
        time_scale: float | None = None,
        reset_mode: str = "modulo",
        burst: bool = False,
        context: str = "local",
        backend: str = "auto",
        step_mode: str = "m",
        channel_axis: int = 1,
        single_state: bool = False,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: bool = False,
        output: bool | None = None,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
    ) -> None:
        check_choice("reset_mode", reset_mode, RESET_MODES)
        check_choice("context", context, CONTEXTS)
        check_choice("step_mode", step_mode, STEP_MODES)
        for name, flag in (
            ("burst", burst),
            ("single_state", single_state),
            ("init_hidden", init_hidden),
            ("surrogate_disable", surrogate_disable),
        ):
            check_flag(name, flag)
        check_channel_axis(channel_axis)
        if context == "global" and (init_hidden or step_mode == "s"):
            raise ValueError(
                "context='global' averages over the whole sequence and cannot run in chunks or steps: "
                f"use init_hidden=False and step_mode='m', got init_hidden={init_hidden} and step_mode={step_mode!r}"
            )
        if single_state and step_mode != "s":
            raise ValueError("single_state=True is for loops over time steps: use step_mode='s'")
        super().__init__(
            lambda: self._create_parameters(channels, n_compartments, preset, dt_range, coupling, time_scale),
            channels=channels,
            threshold=threshold,
            spike_grad=spike_grad,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            inhibition=inhibition,
            learn_threshold=learn_threshold,
            reset_mechanism=reset_mechanism,
            state_quant=state_quant,
            output=not init_hidden if output is None else output,
            graded_spikes_factor=graded_spikes_factor,
            learn_graded_spikes_factor=learn_graded_spikes_factor,
            backend=backend,
            single_state=single_state,
        )
        self.reset_mode = reset_mode
        self.burst = burst
        self.context = context
        self.step_mode = step_mode
        self.channel_axis = channel_axis

    def reset_mem(self) -> PMSNState | Membrane:
        """Go back to the initial state and return it: empty tensors, which fit any batch."""
        state = super().reset_mem()
        return PMSNState(*state) if isinstance(state, tuple) else state

    def forward(
        self, x: Any = None, state: PMSNState | Membrane | None = None, **names_of_leaky: Any
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, PMSNState]:
        """Run a sequence [T, B, C, *], or with ``step_mode='s'`` one step; see the class. By their names in
        ``snn.Leaky``, ``input_`` and ``mem``, the arguments are taken too."""
        if names_of_leaky:
            return self.forward(**renamed(dict(x=x, state=state), names_of_leaky, {"input_": "x", "mem": "state"}))
        if self.step_mode == "s":
            return self.step(x, state)
        if state is not None:
            raise TypeError("a sequence takes no state: use step(x, state), or init_hidden=True to continue in chunks")
        check_floating("x", x)
        kept, keep, later = None, False, None
        if self.init_hidden:
            x, kept, keep = self._begin(x)
            if not (self.output or self._forward_hooks or any(state.numel() for state in kept)):
                kept = None
                later = Later(self, x, _final_state) if can_wait(x, 2 * self.n_compartments - 1) else None
        fold = self._fold(x, 1)
        output = self._sequence(x, kept, fold, with_state=later is None)
        if keep and later is not None:
            self._hide(later)
        elif keep and output.state is not None:
            self._set_states(fold.unfolded_state(output.state))
        elif output.state is not None and not self.init_hidden:
            self._show("mem", fold.unfolded(output.state.v, 0))  # for a monitor
        spk = self._grade(fold.unfolded(output.spikes, 1), self._axis_after(1))
        return spk if output.v_seq is None else (spk, refusing_gradient(fold.unfolded(output.v_seq, 1), spk))

    def _sequence(self, x: Tensor, kept: States | None, fold: Fold, with_state: bool) -> PMSNOutput:
        return in_words_of_snntorch(
            kernels.pmsn_sequence,
            fold.folded(x, 1),
            self.neuron_parameters(),
            None if kept is None else self._fitted(PMSNState(*kept), fold, x),
            v_threshold=self.threshold,
            surrogate_function=self.spike_grad,
            reset_mode=self.reset_mode,
            burst=self.burst,
            context=self.context,
            return_v_seq=self.output,
            # also in a repeated call, which must round as the first one did
            return_state=with_state and (self.init_hidden or bool(self._forward_hooks)),
            as_steps=self.init_hidden,
            backend=self.backend,
        )

    def step(
        self, x: Tensor, state: PMSNState | Membrane | None = None
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, PMSNState]:
        """Run one time step ``x`` [B, C, *].

        Returns:
            ``(spk, state)``; ``state.v`` is the membrane, and with ``single_state=True`` ``state`` itself is. With
            ``init_hidden=True`` the layer keeps the state and returns ``spk``, or ``(spk, mem)`` with ``output=True``.
            Without a state it begins at rest, or with ``step_mode='s'`` where the last step ended.
        """
        if unwatched():
            if state is None:
                if (spk := self._prepared_step(x)) is not None:
                    return spk
            elif type(state) is PMSNState and (made := self._prepared_step_with_states(x, state)) is not None:
                after = PMSNState(*made[1:])
                if self.step_mode == "s":
                    own = self.__dict__
                    own["mem"], own["h_real"], own["h_imag"] = after
                return made[0], after
        if self.context == "global":
            raise ValueError("context='global' averages over the whole sequence and has no single step; call the layer")
        check_floating("x", x)
        if self.init_hidden and state is not None:
            raise TypeError("state must not be passed while init_hidden=True: the layer keeps it")
        keep = self.step_mode == "s" and not self.in_backward()
        calls: list[Call] | None = None
        kept: States = ()
        before: PMSNState | None = None
        if self.init_hidden or (state is None and self.step_mode == "s"):
            x, kept, keep = self._begin(x)
            before = PMSNState(*kept)
            if self.init_hidden and kept is self._unseen:
                calls = []
        elif state is not None and self.single_state:
            before = PMSNState(*self._compartments(state).values())
        elif state is not None:
            check_named("state", state, PMSNState)
            assert isinstance(state, PMSNState)
            before = state
        if self.channel_axis == 1:
            check_step(x, self.channels)
        fold = self._fold(x, 0)
        with_states = None if state is None else self._calls_with_states()
        spk, state = in_words_of_snntorch(
            kernels.pmsn_step,
            fold.folded(x, 0),
            self.neuron_parameters(),
            None if before is None else self._fitted(before, fold, x),
            v_threshold=self.threshold,
            surrogate_function=self.spike_grad,
            reset_mode=self.reset_mode,
            burst=self.burst,
            backend=self.backend,
            overwrite=calls,
            calls=with_states,
        )
        state = fold.unfolded_state(state)
        spk = self._grade(fold.unfolded(spk, 0), self._axis_after(0))
        mem = refusing_gradient(state.v, spk)
        if keep:
            seen = self.output or not self.init_hidden
            self._keep_states((mem, state.h_real, state.h_imag), kept, seen, x, calls)
        if self.init_hidden:
            return (spk, mem) if self.output else spk
        if self._forward_hooks and not keep:
            self._show("mem", state.v)  # for a monitor
        if self.single_state:
            return spk, Membrane.of(mem, dict(zip(self._hidden, state, strict=True)))
        after = PMSNState(mem, state.h_real, state.h_imag)
        self._prepare_with_states(with_states, x, before or (), after)
        return spk, after

    def _fold(self, x: Tensor, leading: int) -> Fold:
        fold = Fold(tuple(x.shape[leading:]), self.channel_axis)
        if self.channel_axis != 1:
            check_floating("x", x)
            fold.check(self.channels, tuple(x.shape))
        return fold

    def _axis_after(self, leading: int) -> int:
        return self.channel_axis if self.channel_axis < 0 else self.channel_axis + leading

    def _fitted(self, state: PMSNState, fold: Fold, x: Tensor) -> PMSNState:
        """The state, in steps like ``x``, as the kernels take it."""
        hidden_shape = (self.n_compartments - 1, *fold.step)
        shapes = (fold.step, hidden_shape, hidden_shape)
        state = PMSNState(*(fit_state(*named, x) for named in zip(PMSNState._fields, state, shapes, strict=True)))
        if self.reset_mode == "modulo":
            # it passes no gradient, see refusing_gradient
            state = PMSNState(state.v.detach(), state.h_real, state.h_imag)
        return fold.folded_state(state)

    def extra_repr(self) -> str:
        """Shown when the layer is printed."""
        return (
            f"channels={self.channels}, n_compartments={self.n_compartments}, {self.initial_repr()}, "
            f"reset_mode={self.reset_mode!r}"
        )


def _final_state(layer: PMSN, x: Tensor) -> States:
    fold = layer._fold(x, 1)
    state = layer._sequence(x, None, fold, with_state=True).state
    assert state is not None
    return tuple(fold.unfolded_state(state))
