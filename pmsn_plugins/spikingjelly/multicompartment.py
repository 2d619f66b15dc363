"""The generalised multi-compartment neuron as a SpikingJelly neuron."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

from .._checks import check_finite, check_int_at_least
from ..functional import multicompartment_sequence
from ..kernels.calls import Call
from ..neuron_cost import NeuronCost
from ..parameters import NeuronParameters
from ..unseen import States
from ._compat import StatefulNode


class MultiCompartmentNode(NeuronParameters, StatefulNode):
    r"""A chain of n compartments with learnable couplings, serial in time ("serial MSN", PMSN paper, Eq. 4-5).

    .. math::

        v_i[t] &= \mathtt{leak}_i v_i[t-1] + \mathtt{up}_{i-1} v_{i-1}[t] + \mathtt{down}_i v_{i+1}[t-1]
        + \mathtt{gain}_i x[t], \quad i = 1, \dots, n

        S[t] &= \operatorname{Heaviside}(v_n[t] - \theta)

        v_i[t] &\leftarrow v_i[t] - \mathtt{reset}_i S[t], \quad \mathtt{reset}_n = \theta

    It is the baseline that :class:`PMSNNode` is measured against, and contains

    - LIF: ``MultiCompartmentNode(1)`` is ``neuron.LIFNode(tau=2.0, v_reset=None)``; other time constants by
      ``leak=1 - 1 / tau, gain=1 / tau``;
    - TC-LIF: ``MultiCompartmentNode(2, leak=1.0, up=b2, down=b1, gain=(1.0, 0.0), reset=gamma)``.

    Input [N, *] in single-step, [T, N, *] in multi-step mode, float16 to float64; spikes have its shape and dtype.
    Always computed by PyTorch operations, one step after the other.

    Args:
        n_compartments: number of compartments n, at least 1; the last one fires.
        leak, gain: initial values [n], or one number for all compartments.
        up, down: initial couplings [n - 1] towards the output and back, or one number for all.
        reset: amounts [n - 1] that a spike takes from the other compartments, or one number for all; fixed like
            ``v_threshold``.
        v_threshold: firing threshold and reset of the output compartment, above 0.
        surrogate_function: the default is the papers' triangle ``max(0, 1 - |v_n - v_threshold|)``.
        detach_reset: let no gradient flow through the resets.
        step_mode: ``'s'`` or ``'m'``.
        store_v_seq: record the output compartment after reset in ``v_seq`` [T, N, *].

    Parameters ``leak``, ``gain`` [n], ``up``, ``down`` [n - 1] (None for n = 1). Memories: the output compartment ``v``
    [N, *] and the others ``v_hidden`` [n - 1, N, *], float32 or wider.

    Raises:
        TypeError: n_compartments is not an integer, a coefficient not a number, a flag not a bool, or the input is not
            dense and real floating point.
        ValueError: an argument is outside its allowed values or has the wrong length; the input does not fit the state.
        RuntimeError: gradient checkpointing repeats a call of a neuron that has gone on from a kept state.

    Example:
        >>> node = MultiCompartmentNode(n_compartments=3, step_mode="m")
        >>> node(torch.randn(100, 8, 128)).shape, node.v_hidden.shape
        (torch.Size([100, 8, 128]), torch.Size([2, 8, 128]))
    """

    leak: Tensor
    up: Tensor | None
    down: Tensor | None
    gain: Tensor

    neuron_lr_scale = {"leak": 1.0, "up": 1.0, "down": 1.0, "gain": 1.0}  # noqa: RUF012

    def __init__(
        self,
        n_compartments: int = 2,
        leak: float | Sequence[float] = 0.5,
        up: float | Sequence[float] = 0.5,
        down: float | Sequence[float] = -0.5,
        gain: float | Sequence[float] = 0.5,
        reset: float | Sequence[float] = 0.0,
        v_threshold: float = 1.0,
        surrogate_function: Callable[[Tensor], Tensor] = surrogate.PiecewiseQuadratic(alpha=1.0),  # noqa: B008
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
    ) -> None:
        check_int_at_least("n_compartments", n_compartments, 1)
        super().__init__(
            hidden_states=("v_hidden",),
            v_threshold=v_threshold,
            surrogate_function=surrogate_function,
            detach_reset=detach_reset,
            step_mode=step_mode,
            backend="torch",
            store_v_seq=store_v_seq,
        )
        n = n_compartments
        self.n_compartments = n
        dtype = torch.get_default_dtype()
        for name, value, length in (("leak", leak, n), ("up", up, n - 1), ("down", down, n - 1), ("gain", gain, n)):
            values = torch.tensor(_coefficients(name, value, length), dtype=dtype)
            # an empty parameter would never get a gradient
            self.register_parameter(name, nn.Parameter(values) if length else None)
        self.reset_amounts = _coefficients("reset", reset, n - 1)

    @property
    def supported_backends(self) -> tuple[str, ...]:
        return ("torch",)

    def extra_repr(self) -> str:
        return f"{self.n_compartments}, detach_reset={self.detach_reset}, {super().extra_repr()}"

    @property
    def step_operations(self) -> NeuronCost:
        n = self.n_compartments
        # n leaks, n gains, n - 1 couplings each way; n resets
        return NeuronCost(mac=4 * n - 2, ac=0, ac_per_spike=n)

    def _state_shapes(self, step_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        return tuple(step_shape), (self.n_compartments - 1, *step_shape)

    def _step(self, x: Tensor, states: States | None, overwrite: list[Call] | None = None) -> tuple[Tensor, States]:
        spikes, after, _ = self._sequence(x.unsqueeze(0), states, False)
        assert after is not None
        return spikes.squeeze(0), after

    def _sequence(
        self, x_seq: Tensor, states: States | None, return_v_seq: bool, with_state: bool = True
    ) -> tuple[Tensor, States | None, Tensor | None]:
        state = None
        if states is not None:
            v, v_hidden = states
            state = torch.cat([v_hidden, v.unsqueeze(0)])
        output = multicompartment_sequence(
            x_seq,
            leak=self.leak,
            up=() if self.up is None else self.up,
            down=() if self.down is None else self.down,
            gain=self.gain,
            reset=self.reset_amounts,
            state=state,
            v_threshold=self.v_threshold,
            surrogate_function=self.surrogate_function,
            detach_reset=self.detach_reset,
            return_v_seq=return_v_seq,
        )
        v_seq = None if output.v_seq is None else output.v_seq[:, -1]
        return output.spikes, (output.state[-1], output.state[:-1]) if with_state else None, v_seq


def _coefficients(name: str, value: float | Sequence[float], length: int) -> tuple[float, ...]:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * length
    if len(values) != length:
        raise ValueError(f"{name} must be one number or {length} of them, got {value!r}")
    for entry in values:
        check_finite(name, entry)
    return tuple(map(float, values))
