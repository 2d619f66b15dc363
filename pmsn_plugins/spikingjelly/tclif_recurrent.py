"""A recurrent layer of TC-LIF as a SpikingJelly neuron."""

from __future__ import annotations

from collections.abc import Callable

from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from .. import kernels
from .._checks import check_flag, check_int_at_least
from ..functional import TCLIFRecurrentState
from ..kernels.calls import Call
from ..neuron_cost import NeuronCost
from ..parameters import RecurrentTCLIFParametersMixin
from ..unseen import States
from .tclif import TCLIFNode


class RecurrentTCLIFNode(RecurrentTCLIFParametersMixin, TCLIFNode):
    r"""TC-LIF neurons that also receive their own last spikes, through a Linear (Zhang et al., AAAI 2024).

    .. math::

        I[t] &= x[t] + W S[t-1] + \mathtt{bias}

        U_D[t] &= U_D[t-1] + b_1 U_S[t-1] + I[t] - \gamma S[t-1]

        U_S[t] &= U_S[t-1] + b_2 U_D[t] - \theta S[t-1]

        S[t] &= \operatorname{Heaviside}(U_S[t] - \theta)

    It computes what ``layer.ElementWiseRecurrentContainer`` around a :class:`TCLIFNode` does, in one kernel over the
    sequence: many times faster, and linear in T. A state_dict of such a container is taken as well.

    Input [N, C] in single-step, [T, N, C] in multi-step mode, float16 to float64; spikes have its shape and dtype.

    Args:
        channels: number of neurons C.
        bias: whether the feedback has a bias.
        beta, gamma, v_threshold, soma_feedback, surrogate_function, detach_reset: as in :class:`TCLIFNode`.
        step_mode, backend, store_v_seq, keep_state, leak, beta_range: as there.
        per_channel: one pair of couplings per neuron instead of one per layer.

    Parameters ``c1``, ``c2``, scalars or [C], and those of ``recurrent``, an ``nn.Linear``: ``weight`` [C, C] (row i
    holds what neuron i receives) and ``bias`` [C]. Memories: the soma ``v``, ``v_dendrite`` and the last ``spikes``,
    [N, C], float32 or wider.

    Raises:
        TypeError: channels is not an integer, beta not two numbers, a flag not a bool, or the input is not dense and
            real floating point.
        ValueError: an argument is outside its allowed values; the input does not fit the channels or the state.

    Example:
        >>> node = RecurrentTCLIFNode(128, step_mode="m")
        >>> node(torch.randn(100, 8, 128)).shape, node.recurrent.weight.shape
        (torch.Size([100, 8, 128]), torch.Size([128, 128]))
    """

    _hidden_states = ("v_dendrite", "spikes")

    channels: int

    def __init__(
        self,
        channels: int,
        bias: bool = True,
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
        per_channel: bool = False,
        keep_state: bool = True,
        leak: tuple[float, float] = (1.0, 1.0),
        beta_range: tuple[float, float] | None = None,
    ) -> None:
        check_int_at_least("channels", channels, 1)
        check_flag("bias", bias)
        check_flag("per_channel", per_channel)
        super().__init__(
            beta=beta,
            gamma=gamma,
            v_threshold=v_threshold,
            soma_feedback=soma_feedback,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend=backend,
            store_v_seq=store_v_seq,
            channels=channels if per_channel else None,
            keep_state=keep_state,
            leak=leak,
            beta_range=beta_range,
        )
        self.channels = channels
        self.recurrent = nn.Linear(channels, channels, bias=bool(bias))

    @classmethod
    def around(cls, node: TCLIFNode, channels: int, bias: bool = True) -> RecurrentTCLIFNode:
        """A recurrent layer of ``node``'s neurons, with its settings and its parameters themselves."""
        layer = cls(
            channels,
            bias,
            gamma=node.gamma,
            v_threshold=node.v_threshold,
            soma_feedback=node.soma_feedback,
            surrogate_function=node.surrogate_function,
            detach_reset=node.detach_reset,
            step_mode=node.step_mode,
            backend=node.backend,
            store_v_seq=node.store_v_seq,
            per_channel=node.c1.ndim > 0,
            keep_state=node.keep_state,
            leak=node.leak,
        )
        layer.recurrent.to(node.c1)
        layer.c1, layer.c2 = node.c1, node.c2
        return layer.train(node.training)

    @property
    def step_operations(self) -> NeuronCost:
        own = super().step_operations
        return own._replace(ac_per_spike=own.ac_per_spike + self.fan_out)

    def _state_shapes(self, step_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return (tuple(step_shape),) * 3

    def _step(self, x: Tensor, states: States | None, overwrite: list[Call] | None = None) -> tuple[Tensor, States]:
        return kernels.tclif_recurrent_step(x, *self._learned(), _state(states), **self._options())

    def _sequence(
        self, x_seq: Tensor, states: States | None, return_v_seq: bool, with_state: bool = True
    ) -> tuple[Tensor, States | None, Tensor | None]:
        return kernels.tclif_recurrent_sequence(
            x_seq,
            *self._learned(),
            _state(states),
            return_v_seq=return_v_seq,
            return_state=self.keep_state and with_state,
            **self._options(),
        )

    def _learned(self) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        return *self.feedback(self.channels), *self.couplings(2)

    def _check_input(self, x: Tensor, step_mode: str) -> None:
        super()._check_input(x, step_mode)
        layout = "[N, C]" if step_mode == "s" else "[T, N, C]"
        if x.ndim != len(layout.split()):
            raise ValueError(
                f"{self._get_name()} with step_mode={step_mode!r} takes {layout}, got shape {tuple(x.shape)}"
            )


def _state(states: States | None) -> TCLIFRecurrentState | None:
    return None if states is None else TCLIFRecurrentState(*states)
