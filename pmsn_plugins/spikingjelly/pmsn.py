"""The PMSN as a SpikingJelly neuron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spikingjelly.activation_based import surrogate
from torch import Tensor

from .. import kernels
from .._checks import check_choice, check_flag, check_floating
from ..channel_axis import Fold, check_channel_axis
from ..functional import CONTEXTS, RESET_MODES, PMSNState
from ..functional.pmsn import default_surrogate
from ..kernels.calls import Call
from ..membrane_loss import refusing_gradient
from ..neuron_cost import NeuronCost
from ..parameters import PMSNParametersMixin
from ..unseen import States
from ._compat import StatefulNode
from .needs_channels import NeedsChannels


class PMSNNode(PMSNParametersMixin, StatefulNode, metaclass=NeedsChannels):
    r"""Parallel multi-compartment spiking neuron, one per channel (Chen et al., arXiv 2408.14917, Eq. 6-18).

    With k = ``n_compartments`` - 1 hidden compartments h, and :math:`\theta` for ``v_threshold``

    .. math::

        h_j[t] &= A_j h_j[t-1] + K_j x[t]

        u[t] &= v[t-1] + \max(\operatorname{Re} \sum_j h_j[t] + D x[t], 0)

        S[t] &= \operatorname{Heaviside}(u[t] - \theta)

        v[t] &= u[t] - \theta \lfloor u[t] / \theta \rfloor

    A and K are discretised from the parameters as in :mod:`pmsn_plugins.functional.pmsn`.

    Input [N, C, *] in single-step, [T, N, C, *] in multi-step mode, float16 to float64; spikes have its shape and
    dtype. Sequence, steps and any chunks of the sequence give the same spikes. With ``reset_mode='modulo'`` no gradient
    flows through ``v`` and ``v_seq``: for a loss on the membrane use ``reset_mode='memoryless'`` or ``'cumulative'`` in
    that layer, or a linear readout of its spikes.

    Args:
        channels: number of channels C.
        n_compartments: compartments per neuron including the output one, at least 2.
        preset: initial values: ``'general'``, for 4 to 1000 time steps, or those of the paper's experiments,
            ``'sequential'`` (S-MNIST, sequential CIFAR), ``'shd'`` (spoken digits) and ``'static'`` (SEW ResNet on
            images).
        v_threshold: firing threshold, above 0.
        reset_mode: ``'modulo'`` (above). On the signed current ``I[t] = Re(sum_j h_j[t]) + D x[t]``, without a reset:
            ``'cumulative'``, ``v[t] = v[t-1] + I[t]``, and ``'memoryless'``, ``v[t] = I[t]``. ``'serial'`` takes it
            too, and subtracts the threshold once per spike.
        context: ``'global'`` shows every step the time-average of the given sequence (static images); it needs
            ``step_mode='m'`` and the whole sequence in one call.
        surrogate_function: the default is the paper's triangle ``max(0, 1 - |u - v_threshold|)``. As in the authors'
            script, it fires at ``u > v_threshold`` with ``'cumulative'`` and ``'memoryless'``, else at
            ``u >= v_threshold``.
        step_mode: ``'s'`` or ``'m'``.
        backend: ``'auto'`` or one of :func:`pmsn_plugins.backends`.
        store_v_seq: record the membrane after reset in ``v_seq`` [T, N, C, *].
        burst: several spikes per step, ``S = floor(u / v_threshold)``, with the surrogate gradient around the last
            multiple of the threshold that u has passed (the first, below it), as in the authors' scripts; with
            ``surrogate_function=pmsn_plugins.functional.straight_through()`` it is 1 wherever u > 0.
        keep_state: False starts every sequence from rest and keeps no memories: nothing to reset, and faster for a few
            steps, where the final state is larger than the sequence. It needs ``step_mode='m'``.
        channel_axis: axis of the channels in one step, counted from either end: -1 for tokens [N, L, C] and
            [T, N, L, C], 0 for [C, N, *] and [T, C, N, *]. It costs no copy of a contiguous input.
        dt_range: (low, high) of the initial time steps ``dt``, log-uniform; None takes the preset's.
        coupling: s, strength of the initial couplings between the hidden compartments; None takes the preset's.
        time_scale: chooses both for sequences of about so many time steps, see
            :func:`pmsn_plugins.functional.pmsn_initial_parameters`.

    Parameters ``log_dt`` [C], ``log_decay``, ``freq``, ``B_real``, ``B_imag``, ``R_real``, ``R_imag`` [C, k] and ``D``
    [C]: see :class:`pmsn_plugins.functional.PMSNParameters`. Memories: ``v`` [N, C, *] and ``h_real``, ``h_imag``
    [k, N, C, *], float32 or wider.

    Raises:
        TypeError: channels or n_compartments is not an integer, a flag not a bool, or the input is not dense and real
            floating point.
        ValueError: an argument is outside its allowed values; the input does not fit the channels or the state.
        RuntimeError: gradient checkpointing repeats a call of a neuron that has gone on from a kept state.

    Example:
        >>> node = PMSNNode(128, step_mode="m")
        >>> spikes = node(torch.randn(100, 8, 128))  # [T, N, C]
        >>> spikes.shape, node.v.shape, node.h_real.shape
        (torch.Size([100, 8, 128]), torch.Size([8, 128]), torch.Size([4, 8, 128]))
        >>> node.reset()  # before the next batch; functional.reset_net(net) for all neurons of a net
    """

    _state_may_wait = True

    channels: int

    def __init__(
        self,
        channels: int,
        n_compartments: int = 5,
        preset: str = "general",
        v_threshold: float = 1.0,
        reset_mode: str = "modulo",
        context: str = "local",
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        burst: bool = False,
        keep_state: bool = True,
        channel_axis: int = 1,
        dt_range: tuple[float, float] | None = None,
        coupling: float | None = None,
        time_scale: float | None = None,
    ) -> None:
        check_choice("reset_mode", reset_mode, RESET_MODES)
        check_choice("context", context, CONTEXTS)
        check_flag("burst", burst)
        check_channel_axis(channel_axis)
        super().__init__(
            hidden_states=("h_real", "h_imag"),
            v_threshold=v_threshold,
            surrogate_function=_default(reset_mode) if surrogate_function is None else surrogate_function,
            detach_reset=False,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
            keep_state=keep_state,
        )
        self._create_parameters(channels, n_compartments, preset, dt_range, coupling, time_scale)
        self.reset_mode = reset_mode
        self.context = context
        self.burst = burst
        self.channel_axis = channel_axis

    def extra_repr(self) -> str:
        return (
            f"{self.channels}, n_compartments={self.n_compartments}, {self.initial_repr()}, "
            f"reset_mode={self.reset_mode}, context={self.context}, burst={self.burst}, "
            f"keep_state={self.keep_state}, channel_axis={self.channel_axis}, {super().extra_repr()}"
        )

    def _without_gradient(self, states: States, spikes: Tensor) -> States:
        if self.reset_mode != "modulo":
            return states
        v, h_real, h_imag = states  # torch.compile of torch 2.6 slices no named tuple
        return refusing_gradient(v, spikes), h_real, h_imag

    @property
    def step_operations(self) -> NeuronCost:
        k = self.n_compartments - 1
        # A h and K x are complex: 6 k; D x: 1. Sum of the k currents and the membrane: k + 1. A reset: 1
        resets = self.reset_mode in ("modulo", "serial")
        return NeuronCost(6 * k + 1, ac=k + (self.reset_mode != "memoryless"), ac_per_spike=int(resets))

    def _check_input(self, x: Tensor, step_mode: str) -> None:
        if self.channel_axis == 1:
            return super()._check_input(x, step_mode)
        check_floating("x" if step_mode == "s" else "x_seq", x)
        step = x.shape if step_mode == "s" else x.shape[1:]
        Fold(tuple(step), self.channel_axis).check(self.channels, tuple(x.shape))

    def _state_shapes(self, step_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        hidden = (self.n_compartments - 1, *step_shape)
        return tuple(step_shape), hidden, hidden

    def _step(self, x: Tensor, states: States | None, overwrite: list[Call] | None = None) -> tuple[Tensor, States]:
        if self.context == "global":
            raise ValueError(
                "context='global' averages the input over time and needs the whole sequence: use step_mode='m', "
                "e.g. functional.set_step_mode(net, 'm')"
            )
        fold = Fold(tuple(x.shape), self.channel_axis)
        spikes, states = kernels.pmsn_step(
            fold.folded(x, 0), self.neuron_parameters(), _folded(states, fold), overwrite=overwrite, **self._options()
        )
        return fold.unfolded(spikes, 0), fold.unfolded_state(states)

    def _sequence(
        self, x_seq: Tensor, states: States | None, return_v_seq: bool, with_state: bool = True
    ) -> tuple[Tensor, States | None, Tensor | None]:
        fold = Fold(tuple(x_seq.shape[1:]), self.channel_axis)
        spikes, states, v_seq = kernels.pmsn_sequence(
            fold.folded(x_seq, 1),
            self.neuron_parameters(),
            _folded(states, fold),
            context=self.context,
            return_v_seq=return_v_seq,
            return_state=self.keep_state and with_state,
            as_steps=self.keep_state,
            **self._options(),
        )
        v_seq = v_seq if v_seq is None else fold.unfolded(v_seq, 1)
        return fold.unfolded(spikes, 1), _unfolded(states, fold), v_seq

    def _options(self) -> dict[str, Any]:
        return {
            "v_threshold": self.v_threshold,
            "surrogate_function": self.surrogate_function,
            "reset_mode": self.reset_mode,
            "burst": self.burst,
            "backend": self.backend,
        }


def _default(reset_mode: str) -> Callable[[Tensor], Tensor]:
    default = default_surrogate(reset_mode)
    return default if default.spec.strict else surrogate.PiecewiseQuadratic(alpha=1.0)  # the same, as SpikingJelly's


def _folded(states: States | None, fold: Fold) -> PMSNState | None:
    return None if states is None else fold.folded_state(PMSNState(*states))


def _unfolded(state: PMSNState | None, fold: Fold) -> PMSNState | None:
    return None if state is None else fold.unfolded_state(state)
