"""The TC-LIF as a SpikingJelly neuron."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from spikingjelly.activation_based import surrogate
from torch import Tensor

from .. import kernels
from .._checks import check_choice, check_finite
from ..functional import SOMA_FEEDBACK, TCLIFState
from ..kernels.calls import Call
from ..neuron_cost import NeuronCost
from ..parameters import TCLIFParametersMixin
from ..unseen import States
from ._compat import StatefulNode


class TCLIFNode(TCLIFParametersMixin, StatefulNode):
    r"""Two-compartment leaky integrate-and-fire neuron (Zhang et al., AAAI 2024, Eq. 7-9).

    Dendrite :math:`U_D` and soma :math:`U_S`, coupled by the learnable ``b1 = -sigmoid(c1)`` and ``b2 = sigmoid(c2)``;
    :math:`\theta` is ``v_threshold``:

    .. math::

        U_D[t] &= U_D[t-1] + b_1 U_S[t-1] + x[t] - \gamma S[t-1]

        U_S[t] &= U_S[t-1] + b_2 U_D[t] - \theta S[t-1]

        S[t] &= \operatorname{Heaviside}(U_S[t] - \theta)

    Input [N, *] in single-step, [T, N, *] in multi-step mode (with ``channels``: [N, C, *] and [T, N, C, *]), float16
    to float64; spikes have its shape and dtype.

    Args:
        beta: initial (b1, b2), in (-1, 0) and (0, 1).
        gamma: reset of the dendrite.
        v_threshold: firing threshold and reset of the soma, above 0.
        soma_feedback: ``'post_reset'`` (b1 multiplies the soma after its reset, as the authors' code does) or
            ``'pre_reset'`` (Eq. 7 as printed).
        surrogate_function: the default is the paper's triangle ``max(0, 1 - |U_S - v_threshold|)``.
        detach_reset: let no gradient flow through the two resets.
        step_mode: ``'s'`` or ``'m'``.
        backend: ``'auto'`` or one of :func:`pmsn_plugins.backends`.
        store_v_seq: record the soma in ``v_seq`` [T, N, *], as it is in the memory ``v``.
        channels: one pair of couplings per channel instead of one per layer.
        keep_state: False starts every sequence from rest and keeps no memories: nothing to reset, and faster for a few
            steps. It needs ``step_mode='m'``.
        leak: (a1, a2), what dendrite and soma keep of their potential from step to step: ``a1 U_D[t-1]`` and
            ``a2 U_S[t-1]`` in place of the first terms above. 1 in the paper; 0.9 helps where sequences are noisy.
        beta_range: (low, high): with couplings per channel, their initial ``-b1`` and ``b2`` are drawn from it,
            uniformly on a logarithmic scale, in place of ``beta``.

    Parameters ``c1``, ``c2``, scalars or [C]. Memories: the soma ``v`` and ``v_dendrite``, [N, *], float32 or wider:
    after the resets with ``soma_feedback='post_reset'``, before them with ``'pre_reset'``.

    Raises:
        TypeError: channels is not an integer, beta not two numbers, a flag not a bool, or the input is not dense and
            real floating point.
        ValueError: an argument is outside its allowed values; the input does not fit the channels or the state.
        RuntimeError: gradient checkpointing repeats a call of a neuron that has gone on from a kept state.

    Example:
        >>> node = TCLIFNode(beta=(-0.5, 0.5), v_threshold=1.0)  # step_mode="s": one step
        >>> spikes = torch.stack([node(x) for x in torch.randn(100, 8, 128)])
        >>> node.v.shape, node.v_dendrite.shape
        (torch.Size([8, 128]), torch.Size([8, 128]))
    """

    _hidden_states: tuple[str, ...] = ("v_dendrite",)

    def __init__(
        self,
        beta: tuple[float, float] = (-0.5, 0.5),
        gamma: float = 0.5,
        v_threshold: float = 1.0,
        soma_feedback: str = "post_reset",
        surrogate_function: Callable[[Tensor], Tensor] = surrogate.PiecewiseQuadratic(alpha=1.0),  # noqa: B008
        detach_reset: bool = False,
        step_mode: str = "s",
        backend: str = "auto",
        store_v_seq: bool = False,
        *,
        channels: int | None = None,
        keep_state: bool = True,
        leak: tuple[float, float] = (1.0, 1.0),
        beta_range: tuple[float, float] | None = None,
    ) -> None:
        check_choice("soma_feedback", soma_feedback, SOMA_FEEDBACK)
        check_finite("gamma", gamma)
        super().__init__(
            hidden_states=self._hidden_states,
            v_threshold=v_threshold,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
            keep_state=keep_state,
        )
        self._create_parameters(beta, channels, beta_range)
        self._set_leak(leak)
        self.gamma = float(gamma)
        self.soma_feedback = soma_feedback

    def extra_repr(self) -> str:
        channels = "" if self.channels is None else f"channels={self.channels}, "
        return (
            f"{channels}gamma={self.gamma}, leak={self.leak}, soma_feedback={self.soma_feedback}, "
            f"detach_reset={self.detach_reset}, keep_state={self.keep_state}, {super().extra_repr()}"
        )

    @property
    def step_operations(self) -> NeuronCost:
        # two couplings, two resets: the count of the paper's energy table; a leak is one more multiplication
        return NeuronCost(mac=2 + sum(a != 1.0 for a in self.leak), ac=0, ac_per_spike=2)

    def _state_shapes(self, step_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(step_shape), tuple(step_shape)

    def _step(self, x: Tensor, states: States | None, overwrite: list[Call] | None = None) -> tuple[Tensor, States]:
        state = None if states is None else TCLIFState(*states)
        return kernels.tclif_step(x, *self._couplings_of_step(x.ndim), state, overwrite=overwrite, **self._options())

    def _sequence(
        self, x_seq: Tensor, states: States | None, return_v_seq: bool, with_state: bool = True
    ) -> tuple[Tensor, States | None, Tensor | None]:
        return kernels.tclif_sequence(
            x_seq,
            *self.couplings(x_seq.ndim - 1),
            None if states is None else TCLIFState(*states),
            return_v_seq=return_v_seq,
            return_state=self.keep_state and with_state,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        return {
            "gamma": self.gamma,
            "v_threshold": self.v_threshold,
            "surrogate_function": self.surrogate_function,
            "soma_feedback": self.soma_feedback,
            "detach_reset": self.detach_reset,
            "leak": self.leak,
            "backend": self.backend,
        }
