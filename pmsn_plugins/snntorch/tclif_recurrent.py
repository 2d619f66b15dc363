"""A recurrent layer of TC-LIF as an snnTorch layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import snntorch as snn
import torch
from torch import Tensor, nn

from .. import kernels
from .._checks import check_choice, check_finite, check_flag, check_floating, check_int_at_least, shown
from ..functional import SOMA_FEEDBACK, TCLIFRecurrentState
from ..functional.surrogate import SpikeFunction
from ..parameters import RecurrentTCLIFParametersMixin
from .layer import (
    NAMES_OF_SYNAPTIC,
    STEP_MODES,
    MultiCompartmentLayer,
    check_step,
    fit_state,
    in_words_of_snntorch,
    renamed,
)
from .tclif import TCLIF


class RTCLIF(RecurrentTCLIFParametersMixin, MultiCompartmentLayer, snn.RSynaptic):
    r"""TC-LIF neurons that also receive their own last spikes. Replaces ``snn.RSynaptic`` line for line.

    .. math::

        I[t] &= x[t] + W \mathtt{spk}[t-1] + \mathtt{bias}

        \mathtt{dend}[t] &= \mathtt{dend}[t-1] + b_1 \mathtt{mem}[t-1] + I[t] - \gamma \, \mathtt{spk}[t-1]

        \mathtt{mem}[t] &= \mathtt{mem}[t-1] + b_2 \mathtt{dend}[t] - \theta \, \mathtt{spk}[t-1]

        \mathtt{spk}[t] &= \operatorname{Heaviside}(\mathtt{mem}[t] - \theta)

    Zhang et al., TC-LIF (AAAI 2024), the recurrent networks; the neuron is :class:`TCLIF`. In a loop over time::

        rtclif = RTCLIF(linear_features=128)
        spk, dend, mem = rtclif.reset_mem()
        for t in range(T):
            spk, dend, mem = rtclif(x[t], spk, dend, mem)    # x[t]: [B, 128]

    or, many times faster, the whole sequence at once::

        rtclif = RTCLIF(linear_features=128, step_mode="m")
        spk_seq, dend, mem = rtclif(x)                       # x, spk_seq: [T, B, 128]; dend, mem: of the last step

    As in snnTorch, a call without states continues from the last one, and with ``init_hidden=True`` a call takes no
    states and returns the spikes alone, or everything with ``output=True``. An empty state, or zeros of any shape, is
    the initial state. ``snntorch.utils.reset`` and ``snntorch.backprop`` work with ``init_hidden=True`` unchanged.

    Spikes have the dtype of ``x``; ``dend`` and ``mem`` are float32 or wider.

    Args:
        beta: initial couplings (b1, b2), b1 in (-1, 0) and b2 in (0, 1).
        gamma: reset of the dendrite.
        threshold: firing threshold and reset of the soma, one number above 0.
        spike_grad: called on ``mem - threshold``, any function of ``snntorch.surrogate``; default the paper's
            ``triangle(strict=True)``.
        linear_features: number of neurons C, where every neuron receives the spikes of all.
        all_to_all: False: every neuron receives only its own spike, times ``V``.
        V: with ``all_to_all=False``, one number or one per neuron [C].
        bias: whether the all-to-all feedback has a bias.
        learn_recurrent: whether the feedback is learned.
        soma_feedback, detach_reset, leak, beta_range, backend: as in :class:`TCLIF`.
        surrogate_disable, init_hidden, output, learn_threshold: as in :class:`TCLIF`.
        per_channel: one pair of couplings per neuron, with ``linear_features``; default one pair per layer.
        step_mode: what a call takes: ``'s'``, one step [B, C], or ``'m'``, a sequence [T, B, C].
        inhibition, state_quant, reset_mechanism: snnTorch's; only their defaults make sense for this neuron.

    Parameters ``c1``, ``c2``, scalars or [C], and ``recurrent.weight`` [C, C], ``recurrent.bias`` [C], or ``V``: those
    of :class:`pmsn_plugins.spikingjelly.RecurrentTCLIFNode`.

    Raises:
        TypeError: ``x`` is not dense and real floating point; linear_features is missing, or given with
            ``all_to_all=False``; a flag is not a bool; a state is no tensor, or passed while ``init_hidden=True``.
        ValueError: an option outside its allowed values; wrong number of axes or channels; a state of another shape
            (the batch changed without a reset); a part of the kept state changed.
        RuntimeError: gradient checkpointing repeats a call of a neuron that has gone on from a kept state.

    Example:
        >>> lif = RTCLIF(linear_features=128)
        >>> spk, dend, mem = lif.reset_mem()
        >>> for x in torch.randn(25, 8, 128):  # [T, B, C]
        ...     spk, dend, mem = lif(x, spk, dend, mem)
        >>> spk.shape
        torch.Size([8, 128])
    """

    spk: Tensor
    syn: Tensor
    mem: Tensor
    _hidden = ("spk", "syn", "mem")  # RSynaptic's names
    _reset_advice = "TC-LIF takes the threshold off its soma and gamma off its dendrite (gamma=0 for no reset there)"

    def __init__(
        self,
        beta: Iterable[float] = (-0.5, 0.5),
        gamma: float = 0.5,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeFunction | None = None,
        *,
        linear_features: int | None = None,
        all_to_all: bool = True,
        V: float | Tensor = 1.0,
        bias: bool = True,
        learn_recurrent: bool = True,
        soma_feedback: str = "post_reset",
        detach_reset: bool = False,
        per_channel: bool = False,
        leak: tuple[float, float] = (1.0, 1.0),
        beta_range: tuple[float, float] | None = None,
        backend: str = "auto",
        step_mode: str = "s",
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: bool = False,
        output: bool = False,
    ) -> None:
        check_finite("gamma", gamma)
        check_choice("soma_feedback", soma_feedback, SOMA_FEEDBACK)
        check_choice("step_mode", step_mode, STEP_MODES)
        flags = dict(all_to_all=all_to_all, bias=bias, learn_recurrent=learn_recurrent, detach_reset=detach_reset)
        for name, flag in (flags | dict(per_channel=per_channel)).items():
            check_flag(name, flag)
        if all_to_all and linear_features is None:
            raise TypeError("linear_features must be the number of neurons, got None; or use all_to_all=False")
        if not all_to_all and (linear_features is not None or per_channel):
            raise TypeError(
                "linear_features and per_channel are for all_to_all=True: with all_to_all=False the feedback is V, got "
                f"linear_features={linear_features!r}, per_channel={per_channel!r}"
            )
        if linear_features is not None:
            check_int_at_least("linear_features", linear_features, 1)

        def create_parameters() -> None:
            self._create_parameters(beta, linear_features if per_channel else None, beta_range)
            self.channels = linear_features
            if all_to_all:
                assert linear_features is not None
                self.recurrent = nn.Linear(linear_features, linear_features, bias=bool(bias))
            else:
                self.V = nn.Parameter(_feedback(V))
            for parameter in (*self.recurrent.parameters(),) if all_to_all else (self.V,):
                parameter.requires_grad_(bool(learn_recurrent))

        super().__init__(
            create_parameters,
            channels=linear_features,
            threshold=threshold,
            spike_grad=spike_grad,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            inhibition=inhibition,
            learn_threshold=learn_threshold,
            reset_mechanism=reset_mechanism,
            state_quant=state_quant,
            output=output,
            graded_spikes_factor=1.0,
            learn_graded_spikes_factor=False,
            backend=backend,
            single_state=False,
        )
        self.gamma = gamma
        self._set_leak(leak)
        self.all_to_all = all_to_all
        self.soma_feedback = soma_feedback
        self.detach_reset = detach_reset
        self.step_mode = step_mode

    init_rsynaptic = MultiCompartmentLayer.reset_mem

    @classmethod
    def around(cls, neuron: TCLIF, linear_features: int, *, bias: bool = True, step_mode: str = "s") -> RTCLIF:
        """A recurrent layer of ``neuron``'s neurons, with its settings and its parameters themselves.

        Raises:
            ValueError: the neuron grades its spikes: it is not said whether those that come back would be graded too.
        """
        if neuron.graded_spikes_factor is not None:
            raise ValueError("a neuron with graded_spikes_factor has no recurrent form: scale the weights that follow")
        learned = isinstance(neuron.threshold, nn.Parameter)
        layer = cls(
            gamma=neuron.gamma,
            leak=neuron.leak,
            threshold=neuron.threshold.detach() if isinstance(neuron.threshold, nn.Parameter) else neuron.threshold,
            spike_grad=neuron.spike_grad,
            linear_features=linear_features,
            bias=bias,
            soma_feedback=neuron.soma_feedback,
            detach_reset=neuron.detach_reset,
            per_channel=neuron.c1.ndim > 0,
            backend=neuron.backend,
            step_mode=step_mode,
            init_hidden=neuron.init_hidden,
            learn_threshold=learned,
            output=neuron.output,
        )
        layer.recurrent.to(neuron.c1)
        layer.c1, layer.c2 = neuron.c1, neuron.c2
        if learned:
            layer.threshold = neuron.threshold
        return layer.train(neuron.training)

    def forward(
        self,
        x: Any = None,
        spk: Tensor | None = None,
        dend: Tensor | None = None,
        mem: Tensor | None = None,
        **names_of_rsynaptic: Any,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Run one time step ``x`` [B, C], or with ``step_mode='m'`` a sequence [T, B, C]; see the class. By their names
        in ``snn.RSynaptic``, ``input_`` and ``syn``, the arguments are taken too."""
        if names_of_rsynaptic:
            ours = dict(x=x, spk=spk, dend=dend, mem=mem)
            return self.forward(**renamed(ours, names_of_rsynaptic, NAMES_OF_SYNAPTIC))
        if self.init_hidden and not (spk is dend is mem is None):
            raise TypeError("spk, dend and mem must not be passed while init_hidden=True: the layer keeps them")
        sequence = self.step_mode == "m"
        check_floating("x", x)
        if x.ndim != 2 + sequence:
            raise ValueError(
                f"x must be {'a sequence [T, B, C]' if sequence else 'one time step [B, C]'} with "
                f"step_mode={self.step_mode!r}, got shape {tuple(x.shape)}"
            )
        if sequence and len(x) == 0:
            raise ValueError(f"x must have at least one time step, got shape {tuple(x.shape)}")
        if sequence and self.channels not in (None, x.shape[2]):
            raise ValueError(
                f"x must be a sequence [T, B, C] with {self.channels} channels on axis 2, got shape {tuple(x.shape)}"
            )
        step = x[0] if sequence else x
        check_step(step, self.channels)
        before: dict[str, Any] = {"spk": spk, "syn": dend, "mem": mem}
        keep = not self.in_backward()
        if any(state is None for state in before.values()):
            x, kept, keep = self._begin(x)
            before = {
                name: last if state is None else state for (name, state), last in zip(before.items(), kept, strict=True)
            }
        spk, dend, mem = (
            fit_state("dend" if name == "syn" else name, state, step.shape, step) for name, state in before.items()
        )
        run: Any = kernels.tclif_recurrent_sequence if sequence else kernels.tclif_recurrent_step
        spikes, state, *_ = in_words_of_snntorch(
            run,
            x,
            *self.feedback(x.shape[-1]),
            *self.couplings(2),
            TCLIFRecurrentState(v=mem, v_dendrite=dend, spikes=spk),
            gamma=self.gamma,
            v_threshold=self.threshold,
            surrogate_function=self.spike_grad,
            soma_feedback=self.soma_feedback,
            detach_reset=self.detach_reset,
            leak=self.leak,
            backend=self.backend,
        )
        assert state is not None  # asked for by default
        if keep:
            self._set_states((state.spikes, state.v_dendrite, state.v))
        if self.init_hidden and not self.output:
            return spikes
        return spikes, state.v_dendrite, state.v

    def feedback(self, channels: int) -> tuple[Tensor, Tensor | None]:
        """Weights [C, C], row i holding what neuron i receives, and bias [C] or None."""
        if self.all_to_all:
            return super().feedback(channels)
        if self.V.ndim and len(self.V) != channels:
            raise ValueError(f"V must be one number or one per neuron ({channels}), got shape {tuple(self.V.shape)}")
        return torch.diag(self.V.expand(channels)), None

    @property
    def fan_out(self) -> int:
        """Weights that a spike is multiplied with in the feedback."""
        return super().fan_out if self.all_to_all else 1

    def extra_repr(self) -> str:
        """Shown when the layer is printed."""
        return (
            f"gamma={self.gamma}, leak={self.leak}, soma_feedback={self.soma_feedback!r}, step_mode={self.step_mode!r}"
        )


def _feedback(V: float | Tensor) -> Tensor:
    if isinstance(V, Tensor):
        check_floating("V", V)
        if V.ndim > 1:
            raise ValueError(f"V must be one number or one per neuron [C], got {shown(V)}")
        return V.detach().clone()
    check_finite("V", V)
    return torch.tensor(float(V))
