"""The two-compartment leaky integrate-and-fire neuron (TC-LIF) as an snnTorch layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import snntorch as snn
from torch import Tensor

from .. import kernels
from .._checks import check_choice, check_finite, check_flag
from ..functional import SOMA_FEEDBACK, TCLIFState
from ..functional.surrogate import SpikeFunction
from ..kernels.calls import Call
from ..kernels.unwatched import unwatched
from ..parameters import TCLIFParametersMixin
from .layer import NAMES_OF_SYNAPTIC, MultiCompartmentLayer, check_step, fit_state, in_words_of_snntorch, renamed
from .membrane import Membrane


class TCLIF(TCLIFParametersMixin, MultiCompartmentLayer, snn.Synaptic):
    r"""Two-compartment LIF, dendrite and soma coupled with opposite signs. Replaces ``snn.Synaptic`` line for line.

    .. math::

        \mathtt{dend}[t] &= \mathtt{dend}[t-1] + b_1 \mathtt{mem}[t-1] + x[t] - \gamma \, \mathtt{spk}[t-1]

        \mathtt{mem}[t] &= \mathtt{mem}[t-1] + b_2 \mathtt{dend}[t] - \theta \, \mathtt{spk}[t-1]

        \mathtt{spk}[t] &= \operatorname{Heaviside}(\mathtt{mem}[t] - \theta)

    Zhang et al., TC-LIF (AAAI 2024), Eq. 7-9; :math:`\theta` is ``threshold``, and ``b1 = -sigmoid(c1)`` and
    ``b2 = sigmoid(c2)`` are learned. By default both resets are subtracted right after the spike, as in the authors'
    code, and the returned ``dend`` and ``mem`` are those after reset; with ``soma_feedback='pre_reset'`` (Eq. 7 as
    printed) they are those before it, as in
    ``snn.Synaptic``::

        tclif = TCLIF()
        dend, mem = tclif.reset_mem()
        for t in range(T):
            spk, dend, mem = tclif(x[t], dend, mem)    # x[t]: [B, *]

    As in snnTorch, a call without states continues from the last one; ``reset_mem()``, ``TCLIF.reset_hidden()``,
    ``snntorch.utils.reset`` and ``pmsn_plugins.snntorch.reset`` go back to the initial state. With ``init_hidden=True``
    a call takes no states and returns ``spk`` alone, or everything with ``output=True``. An empty state, or zeros of
    any shape, is the initial state. ``snntorch.backprop`` works with ``init_hidden=True`` unchanged.

    With ``single_state=True`` it takes the place of ``snn.Leaky``: the soma returned as ``mem`` carries the dendrite
    along (:class:`pmsn_plugins.snntorch.Membrane`)::

        tclif = TCLIF(single_state=True)
        mem = tclif.init_leaky()
        for t in range(T):
            spk, mem = tclif(x[t], mem)

    It is an ``snn.Leaky`` then, to ``isinstance`` and to ``snntorch.backprop``.

    ``layer.mem`` set to zeros or to an empty tensor resets both compartments. One of them set to anything else, or
    changed in place, while the other is left as it was makes the next call that goes on from them a ValueError.

    Spikes have the dtype of ``x``; both states are float32 or wider. The default ``spike_grad`` is strict like
    snnTorch's: the neuron fires at ``mem > threshold``.

    Args:
        beta: initial couplings (b1, b2), b1 in (-1, 0) and b2 in (0, 1).
        gamma: reset of the dendrite.
        threshold: firing threshold and reset of the soma, one number above 0.
        spike_grad: called on ``mem - threshold``, any function of ``snntorch.surrogate``; default the paper's
            ``triangle(strict=True)``.
        soma_feedback: ``'post_reset'`` or ``'pre_reset'``, see above.
        detach_reset: let no gradient flow through the resets (``snn.Synaptic`` never does).
        channels: give every channel, axis 1 of ``x``, its own pair of couplings; default one pair per layer.
        leak: (a1, a2), what dendrite and soma keep of their potential from step to step: ``a1 dend[t-1]`` and
            ``a2 mem[t-1]`` in place of the first terms above. 1 in the paper; 0.9 helps where sequences are noisy.
        beta_range: (low, high): with couplings per channel, their initial ``-b1`` and ``b2`` are drawn from it,
            uniformly on a logarithmic scale, in place of ``beta``.
        backend: who computes it, see :func:`pmsn_plugins.backends`.
        init_hidden: the layer keeps its state, see above.
        output: with ``init_hidden``, return ``(spk, dend, mem)`` rather than ``spk``.
        single_state: take and return one state, ``(spk, mem)``, see above.
        learn_threshold: make ``threshold`` a parameter.
        graded_spikes_factor: multiplies the output spikes (not the resets): one number, or with ``channels`` one each.
        learn_graded_spikes_factor: make it a parameter.
        surrogate_disable: fire without gradient.
        inhibition, state_quant, reset_mechanism: snnTorch's; only their defaults make sense for this neuron.

    Raises:
        TypeError: ``x`` is not dense and real floating point; a flag is not a bool, or an option of another wrong type;
            a state is no tensor, or passed while ``init_hidden=True``.
        ValueError: an option outside its allowed values; wrong number of channels; a state of another shape (the batch
            changed without a reset); a part of the kept state changed.
        RuntimeError: gradient checkpointing repeats a call of a neuron that has gone on from a kept state.

    Example:
        >>> lif = TCLIF(beta=(-0.5, 0.5))
        >>> dend, mem = lif.reset_mem()
        >>> for x in torch.randn(25, 8, 128):  # [T, B, C]
        ...     spk, dend, mem = lif(x, dend, mem)
        >>> spk.shape
        torch.Size([8, 128])
    """

    syn: Tensor
    mem: Tensor
    _hidden = ("syn", "mem")  # Synaptic's names, so that its resets reach the dendrite as well
    _reset_advice = "TC-LIF takes the threshold off its soma and gamma off its dendrite (gamma=0 for no reset there)"

    def __init__(
        self,
        beta: Iterable[float] = (-0.5, 0.5),
        gamma: float = 0.5,
        threshold: float | Tensor = 1.0,
        spike_grad: SpikeFunction | None = None,
        *,
        soma_feedback: str = "post_reset",
        detach_reset: bool = False,
        channels: int | None = None,
        leak: tuple[float, float] = (1.0, 1.0),
        beta_range: tuple[float, float] | None = None,
        backend: str = "auto",
        single_state: bool = False,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_threshold: bool = False,
        reset_mechanism: str = "subtract",
        state_quant: bool = False,
        output: bool = False,
        graded_spikes_factor: float | Tensor = 1.0,
        learn_graded_spikes_factor: bool = False,
    ) -> None:
        check_finite("gamma", gamma)
        check_choice("soma_feedback", soma_feedback, SOMA_FEEDBACK)
        check_flag("detach_reset", detach_reset)
        check_flag("single_state", single_state)
        if single_state and type(self) is TCLIF:
            object.__setattr__(self, "__class__", _TCLIFInPlaceOfLeaky)
        super().__init__(
            lambda: self._create_parameters(beta, channels, beta_range),
            channels=channels,
            threshold=threshold,
            spike_grad=spike_grad,
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            inhibition=inhibition,
            learn_threshold=learn_threshold,
            reset_mechanism=reset_mechanism,
            state_quant=state_quant,
            output=output,
            graded_spikes_factor=graded_spikes_factor,
            learn_graded_spikes_factor=learn_graded_spikes_factor,
            backend=backend,
            single_state=single_state,
        )
        self.gamma = gamma
        self._set_leak(leak)
        self.soma_feedback = soma_feedback
        self.detach_reset = detach_reset

    def forward(
        self, x: Any = None, dend: Tensor | None = None, mem: Tensor | None = None, **names_of_synaptic: Any
    ) -> Tensor | tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]:
        """Run one time step ``x`` [B, *] (or a single number, as in snnTorch's first tutorials); see the class. By
        their names in ``snn.Synaptic``, ``input_`` and ``syn``, the arguments are taken too."""
        if names_of_synaptic:
            return self.forward(**renamed(dict(x=x, dend=dend, mem=mem), names_of_synaptic, NAMES_OF_SYNAPTIC))
        if unwatched():
            if dend is None and mem is None:
                if (spk := self._prepared_step(x)) is not None:
                    return spk
            elif (made := self._prepared_step_with_states(x, (mem, dend))) is not None:
                spk, mem, dend = made
                self.__dict__.update(zip(self._hidden, (dend, mem), strict=True))
                return spk, dend, mem
        if self.init_hidden and (dend is not None or mem is not None):
            raise TypeError("dend and mem must not be passed while init_hidden=True: the layer keeps them")
        if self.single_state and (dend is not None or mem is not None):
            if None not in (dend, mem):
                raise TypeError("with single_state=True there is one state, mem; got two")
            dend, mem = self._compartments(mem if dend is None else dend).values()
        check_step(x, self.channels)
        keep = not self.in_backward()
        before: tuple[Tensor, ...] = ()
        if dend is None or mem is None:
            x, before, keep = self._begin(x)
            dend, mem = before[0] if dend is None else dend, before[1] if mem is None else mem
        given = dend, mem
        calls: list[Call] | None = [] if self.init_hidden and before is self._unseen else None
        with_states = None if before or x.ndim == 0 else self._calls_with_states()
        dend, mem = fit_state("dend", dend, x.shape, x), fit_state("mem", mem, x.shape, x)
        if x.ndim == 0:
            # clone: snnTorch detaches states in place, which a view refuses
            spk, dend, mem = (out[0].clone() for out in self._step(x[None], dend[None], mem[None]))
        else:
            spk, dend, mem = self._step(x, dend, mem, calls, with_states)
        if keep:
            seen = self.output or not self.init_hidden or x.ndim == 0
            self._keep_states((dend, mem), before or given, seen, x, calls)
            self._prepare_with_states(with_states, x, given[::-1], (mem, dend))
        if self.init_hidden and not self.output:
            return spk
        if not self.single_state:
            return spk, dend, mem
        return spk, mem if self.init_hidden else Membrane.of(mem, {"syn": dend, "mem": mem})

    def _step(
        self,
        x: Tensor,
        dend: Tensor,
        mem: Tensor,
        overwrite: list[Call] | None = None,
        calls: list[Call] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        spk, state = in_words_of_snntorch(
            kernels.tclif_step,
            x,
            *self._couplings_of_step(x.ndim),
            TCLIFState(v=mem, v_dendrite=dend),
            gamma=self.gamma,
            v_threshold=self.threshold,
            surrogate_function=self.spike_grad,
            soma_feedback=self.soma_feedback,
            detach_reset=self.detach_reset,
            leak=self.leak,
            backend=self.backend,
            overwrite=overwrite,
            calls=calls,
        )
        return self._grade(spk, channel_axis=1), state.v_dendrite, state.v

    def extra_repr(self) -> str:
        """Shown when the layer is printed."""
        return f"gamma={self.gamma}, leak={self.leak}, soma_feedback={self.soma_feedback!r}, channels={self.channels}"


class _TCLIFInPlaceOfLeaky(TCLIF, snn.Lapicque, snn.Leaky):
    """With one state it is to snnTorch and its users' nets what it stands for: a Leaky, whose reset reaches it, and by
    its first base a layer that returns two values (``snntorch.backprop`` asks for Lapicque before Synaptic)."""


_TCLIFInPlaceOfLeaky.__name__ = TCLIF.__name__  # what printing shows; pickles go by the qualified name
