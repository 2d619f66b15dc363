"""What the fused kernels are called with: for each neuron its tensors, its options and its results, by name.

An argument is declared here and nowhere else in Python. Derived from these records are the operators' schemas, checks,
shapes and gradients (:mod:`.operators`) and the C structs of ``csrc/args.h`` (:mod:`.arguments`); a backend is handed
the records themselves, as a :class:`Call`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

SURROGATES = (
    "triangle",
    "sigmoid",
    "atan",
    "piecewise_exp",
    "soft_sign",
    "super_spike",
    "erf",
    "leaky_k_relu",
    "piecewise_leaky_relu",
    "fast_sigmoid",
    "straight_through",
    "given",
)
"""In the order of ``enum Surrogate``: the rows of :data:`pmsn_plugins.functional.SURROGATES` that are fused, and slopes
that come as a tensor."""

RESETS = ("modulo", "cumulative", "memoryless", "serial")
"""In the order of ``enum Reset``."""

FIRES = ("spike", "strict", "burst", "membrane")
"""What a kernel sends out, in the order of ``enum Fire``."""


class Role(NamedTuple):
    """What a tensor is.

    Attributes:
        shape: in words. ``T``, ``N``, ``C``, ``k``: time steps, samples, channels, hidden compartments; ``T+1``: the
            steps and the state before them; ``step``: the axes of one time step, whatever the input has; ``kept``: the
            checkpoints, and ``state``: the numbers of each; ``T+kept``: the steps and the checkpoints; ``C16``: the
            channels, filled up to a multiple of 16; ``number``: one number, of any shape.
        dtype: ``'real'``: that of the arithmetic, float32 or float64; ``'memory'``: that of the input; ``'sent'``: that
            of what is sent out, which is ``'real'`` if it is the membrane.
        gradient: of an argument: ``'always'`` computed, ``'wanted'`` (a state's, if somebody asks) or ``'never'``. Of a
            result: ``'needed'`` by the backward operator, ``'optional'`` or ``'never'``.
        wanted: of a result: the flag of :class:`Wanted` that asks for it; without it the result is empty.
        read_back: of an argument: whether the backward kernel reads it; if not, it is not kept until then, and only its
            shape and dtype are handed on.
    """

    shape: str
    dtype: str = "real"
    gradient: str = "never"
    wanted: str | None = None
    read_back: bool = True


Input = Annotated[Tensor, Role("T step", "memory", "always")]
InputOnce = Annotated[Tensor, Role("T step", "memory", "always", read_back=False)]
Modes = Annotated[Tensor, Role("C k", gradient="always")]
Feedback = Annotated[Tensor, Role("C C", gradient="always")]
PerChannel = Annotated[Tensor, Role("C", gradient="always")]
State = Annotated[Tensor | None, Role("step", gradient="wanted")]
HiddenState = Annotated[Tensor | None, Role("k step", gradient="wanted")]
Number = Annotated[Tensor | None, Role("number")]

Final = Annotated[Tensor, Role("step", gradient="optional", wanted="with_state")]
FinalMembrane = Annotated[Tensor, Role("step", gradient="optional", wanted="with_v")]
FinalHidden = Annotated[Tensor, Role("k step", gradient="optional", wanted="with_state")]
Recorded = Annotated[Tensor, Role("T step", gradient="optional", wanted="with_v_seq")]
Checkpoints = Annotated[Tensor, Role("kept state step", wanted="save")]
Coefficient = Annotated[Tensor, Role("C k", gradient="needed")]


class Sizes(NamedTuple):
    """How a call is laid out: a step is N samples of C channels (sets of parameters) of S neighbouring elements.

    A record of tensors makes them of the shape of its first tensor and of its ``arrangement``, the numbers that this
    does not tell.

    Attributes:
        k: hidden compartments.
        state: numbers of the state of one element.
        sums: gradients that are summed up for each channel.
        adjoint: numbers that the adjoint of one element carries where time is cut.
    """

    N: int
    C: int
    S: int
    k: int = 0
    state: int = 0
    sums: int = 0
    adjoint: int = 0


def _pmsn_sizes(x_shape: tuple[int, ...], modes: tuple[int, ...]) -> Sizes:
    if len(x_shape) < 3 or len(modes) != 2 or 0 in modes:
        raise ValueError(f"x must be [T, N, C, *] and what belongs to its channels [C, k], got {x_shape} and {modes}")
    _, N, C, *inner = x_shape
    _, k = modes
    return Sizes(N, C, math.prod(inner), k, state=1 + 2 * k, sums=1 + 4 * k, adjoint=1 + 4 * k)


def _check_slopes(surrogate: str, slopes: Tensor | None) -> None:
    if surrogate == "given" and slopes is None:
        raise ValueError("slopes must be a tensor with surrogate 'given', got None")


class PmsnTensors(NamedTuple):
    """PMSN on coefficients: see :class:`pmsn_plugins.functional.PMSNCoefficients`, :class:`~.functional.PMSNState`.

    ``decisive`` are the fields that say what all others must look like; so in the other records.
    """

    x: Input
    E_real: Modes
    E_imag: Modes
    K_real: Modes
    K_imag: Modes
    D: PerChannel
    v: State = None
    h_real: HiddenState = None
    h_imag: HiddenState = None
    theta_tensor: Number = None
    slopes: Annotated[Tensor | None, Role("T step")] = None

    @property
    def decisive(self) -> tuple[str, ...]:
        return ("x", "E_real", "D")

    @property
    def real(self) -> torch.dtype:
        return self.D.dtype

    def arrangement(self, options: PmsnOptions) -> tuple[int, ...]:
        return self.E_real.shape

    @staticmethod
    def sizes(x_shape: tuple[int, ...], arrangement: tuple[int, ...]) -> Sizes:
        return _pmsn_sizes(x_shape, arrangement)


class LayerTensors(NamedTuple):
    """PMSN on the parameters of a layer: see :class:`pmsn_plugins.functional.PMSNParameters`."""

    x: Input
    log_dt: PerChannel
    log_decay: Modes
    freq: Modes
    B_real: Modes
    B_imag: Modes
    R_real: Modes
    R_imag: Modes
    D: PerChannel
    v: State = None
    h_real: HiddenState = None
    h_imag: HiddenState = None
    theta_tensor: Number = None
    slopes: Annotated[Tensor | None, Role("T step")] = None

    @property
    def decisive(self) -> tuple[str, ...]:
        return ("x", "log_decay", "D")

    @property
    def real(self) -> torch.dtype:
        return self.D.dtype

    def arrangement(self, options: PmsnOptions) -> tuple[int, ...]:
        return self.log_decay.shape

    @staticmethod
    def sizes(x_shape: tuple[int, ...], arrangement: tuple[int, ...]) -> Sizes:
        return _pmsn_sizes(x_shape, arrangement)


class PmsnOptions(NamedTuple):
    """``theta`` is the threshold where ``theta_tensor`` is not given; a, b, c are the surrogate's parameters."""

    reset: Annotated[str, RESETS]
    fire: Annotated[str, FIRES]
    surrogate: Annotated[str, SURROGATES]
    theta: float
    surrogate_a: float
    surrogate_b: float
    surrogate_c: float

    @property
    def sends_membrane(self) -> bool:
        return self.fire == "membrane"

    @property
    def constant(self) -> tuple[str, ...]:
        """Results that no gradient flows through."""
        return ("v_after", "v_seq") if self.reset == "modulo" else ()

    def carried(self, direction: str) -> tuple[str, ...] | None:
        """What is carried from segment to segment where time is cut; None: it cannot be cut."""
        if self.reset == "serial":
            return None
        if direction == "forward":
            return ("hidden", "membrane")
        return ("grad_v", "adjoint") if self.reset == "cumulative" else ("adjoint",)

    def check(self) -> None:
        if self.fire == "membrane" and self.reset == "serial":
            raise ValueError("fire must not be 'membrane' with reset 'serial': the reset needs the spikes")

    def check_backward(self, tensors: PmsnTensors | LayerTensors) -> None:
        _check_slopes(self.surrogate, tensors.slopes)

    def folded(self, batch: int) -> PmsnOptions:
        """With ``batch`` times as many channels; None: such a call would be another one."""
        return self


class PmsnResults(NamedTuple):
    """What PMSN sends, its final state, its membranes after reset, and checkpoints of v, h_real, h_imag."""

    out: Annotated[Tensor, Role("T step", "sent", "optional")]
    v_after: FinalMembrane
    h_real_after: FinalHidden
    h_imag_after: FinalHidden
    v_seq: Recorded
    checkpoints: Checkpoints


class TclifTensors(NamedTuple):
    """TC-LIF: its input, its couplings, and its state, soma and dendrite."""

    x: Input
    b1: PerChannel
    b2: PerChannel
    v: State = None
    d: State = None
    theta_tensor: Number = None
    slopes: Annotated[Tensor | None, Role("T+1 step")] = None

    @property
    def decisive(self) -> tuple[str, ...]:
        return ("x", "b1")

    @property
    def real(self) -> torch.dtype:
        return self.b1.dtype

    def arrangement(self, options: TclifOptions) -> tuple[int, ...]:
        return options.channels, options.inner

    @staticmethod
    def sizes(x_shape: tuple[int, ...], arrangement: tuple[int, ...]) -> Sizes:
        C, S = arrangement
        if not x_shape:
            raise ValueError("x must be [T, *], got shape ()")
        _, *step = x_shape
        elements = math.prod(step)
        if C < 1 or S < 1 or elements % (C * S):
            raise ValueError(
                f"channels * inner must divide the {elements} elements of a step, got channels={C}, inner={S}"
            )
        return Sizes(elements // (C * S), C, S, state=2, sums=2)


class TclifOptions(NamedTuple):
    """``channels`` couplings, each for ``inner`` neighbouring elements; the rest as in :class:`PmsnOptions`."""

    channels: int
    inner: int
    pre_reset: bool
    detach: bool
    strict: bool
    surrogate: Annotated[str, SURROGATES]
    theta: float
    surrogate_a: float
    surrogate_b: float
    surrogate_c: float
    gamma: float
    a1: float
    a2: float

    @property
    def sends_membrane(self) -> bool:
        return False

    @property
    def constant(self) -> tuple[str, ...]:
        return ()

    def carried(self, direction: str) -> None:
        """Every step needs the one before: time cannot be cut."""

    def check(self) -> None:
        """Any combination makes sense."""

    def check_backward(self, tensors: TclifTensors) -> None:
        _check_slopes(self.surrogate, tensors.slopes)

    def folded(self, batch: int) -> TclifOptions:
        """With ``batch`` times as many channels."""
        return self._replace(channels=batch * self.channels)


class TclifResults(NamedTuple):
    """What TC-LIF sends, its final state, its soma after every step, and checkpoints of v, d."""

    out: Annotated[Tensor, Role("T step", "memory", "optional")]
    v_after: Final
    d_after: Final
    v_seq: Recorded
    checkpoints: Checkpoints


class TclifRecurrentTensors(NamedTuple):
    """A recurrent layer of TC-LIF: its input, weights and bias of the feedback, couplings, and its state, with the last
    spikes."""

    x: InputOnce
    weight: Feedback
    bias: PerChannel
    b1: PerChannel
    b2: PerChannel
    v: State = None
    d: State = None
    s: State = None
    theta_tensor: Number = None
    slopes: Annotated[Tensor | None, Role("T+1 step")] = None

    @property
    def decisive(self) -> tuple[str, ...]:
        return ("x", "weight")

    @property
    def real(self) -> torch.dtype:
        return self.weight.dtype

    def arrangement(self, options: TclifRecurrentOptions) -> tuple[int, ...]:
        return self.weight.shape

    @staticmethod
    def sizes(x_shape: tuple[int, ...], arrangement: tuple[int, ...]) -> Sizes:
        if len(x_shape) != 3 or arrangement != (x_shape[2], x_shape[2]):
            raise ValueError(f"x must be [T, N, C] and weight [C, C], got {x_shape} and {arrangement}")
        _, N, C = x_shape
        return Sizes(N, C, 1, state=1)


class TclifRecurrentOptions(NamedTuple):
    """As in :class:`TclifOptions`, without its layout."""

    pre_reset: bool
    detach: bool
    strict: bool
    surrogate: Annotated[str, SURROGATES]
    theta: float
    surrogate_a: float
    surrogate_b: float
    surrogate_c: float
    gamma: float
    a1: float
    a2: float

    @property
    def sends_membrane(self) -> bool:
        return False

    @property
    def constant(self) -> tuple[str, ...]:
        return ()

    def carried(self, direction: str) -> None:
        """Every step needs the one before: time cannot be cut."""

    def check(self) -> None:
        """Any combination makes sense."""

    def check_backward(self, tensors: TclifRecurrentTensors) -> None:
        _check_slopes(self.surrogate, tensors.slopes)

    def folded(self, batch: int) -> None:
        """Weights between channels: several calls are not one with as many times the channels."""


class TclifRecurrentResults(NamedTuple):
    """What a recurrent layer sends, its final state, its soma after every step, and checkpoints: the dendrites of all
    steps, and some of the somata, before reset."""

    out: Annotated[Tensor, Role("T step", "memory", "optional")]
    v_after: Final
    d_after: Final
    s_after: Final
    v_seq: Recorded
    checkpoints: Annotated[Tensor, Role("T+kept N C16", wanted="save")]


class DiscretizeTensors(NamedTuple):
    """The parameters that PMSN's coefficients are made of."""

    log_dt: PerChannel
    log_decay: Modes
    freq: Modes
    B_real: Modes
    B_imag: Modes
    R_real: Modes
    R_imag: Modes

    @property
    def decisive(self) -> tuple[str, ...]:
        return ("log_dt", "log_decay")

    @property
    def real(self) -> torch.dtype:
        return self.log_decay.dtype

    def arrangement(self, options: NoOptions) -> tuple[int, ...]:
        return self.log_decay.shape

    @staticmethod
    def sizes(log_dt_shape: tuple[int, ...], arrangement: tuple[int, ...]) -> Sizes:
        if len(arrangement) != 2 or 0 in arrangement:
            raise ValueError(f"log_decay must be [C, k], got {arrangement}")
        C, k = arrangement
        return Sizes(1, C, 1, k)


class NoOptions(NamedTuple):
    """The discretisation has none."""

    @property
    def sends_membrane(self) -> bool:
        return False

    @property
    def constant(self) -> tuple[str, ...]:
        return ()

    def check(self) -> None:
        """Nothing to check."""

    def check_backward(self, tensors: DiscretizeTensors) -> None:
        """Nothing to check."""

    def folded(self, batch: int) -> NoOptions:
        """With ``batch`` times as many channels."""
        return self


class DiscretizeResults(NamedTuple):
    """PMSN's coefficients, without D."""

    E_real: Coefficient
    E_imag: Coefficient
    K_real: Coefficient
    K_imag: Coefficient


class Wanted(NamedTuple):
    """Which results a forward operator returns besides what is sent, and who computes it."""

    with_state: bool
    with_v_seq: bool
    save: bool
    backend: str
    as_steps: bool = False
    """Round as if the state was wanted: of PMSN's then at least v is."""

    @property
    def with_v(self) -> bool:
        return self.with_state or self.as_steps

    def saving(self) -> Wanted:
        """With the checkpoints."""
        return self._replace(save=True)

    def gradients(self, state_gradients: bool) -> WantedGradients:
        """Of the backward operator."""
        return WantedGradients(state_gradients, self.backend)


class WantedGradients(NamedTuple):
    """Whether a backward operator returns gradients of the initial state, and who computes it."""

    state_gradients: bool
    backend: str


class Where(NamedTuple):
    """Who computes it."""

    backend: str

    def saving(self) -> Where:
        """Nothing is kept but the arguments."""
        return self

    def gradients(self, state_gradients: bool) -> Where:
        """Of the backward operator."""
        return self


class Geometry(NamedTuple):
    """The numbers behind the words of :class:`Role`; T = 0 where there is no time."""

    T: int
    step: tuple[int, ...]
    sizes: Sizes
    interval: int
    kept: int

    def shape(self, words: str) -> tuple[int, ...] | None:
        """None for one number, of any shape."""
        if words == "number":
            return None
        numbers = {
            "T": (self.T,),
            "T+1": (self.T + 1,),
            "T+kept": (self.T + self.kept,),
            "step": self.step,
            "N": (self.sizes.N,),
            "C": (self.sizes.C,),
            "C16": (-(-self.sizes.C // 16) * 16,),
            "k": (self.sizes.k,),
            "kept": (self.kept,),
            "state": (self.sizes.state,),
        }
        return tuple(size for word in words.split() for size in numbers[word])


class Call(NamedTuple):
    """One call of a kernel, for a device: everything is checked and contiguous, and what is written is allocated.

    Attributes:
        neuron, direction: ``'pmsn'``, ``'tclif'``, ``'tclif_recurrent'`` or ``'discretize'``; ``'forward'`` or
            ``'backward'``.
        tensors, options: records of this module.
        results: a record; backward all is None but the checkpoints.
        gradients: backward: of the results that can have one, in their order; None is zero.
        tensor_gradients: backward: of the tensors that can have one, in their order; to be written.
        geometry: how it is laid out.
        has_state: whether an initial state is given.
    """

    neuron: str
    direction: str
    tensors: Any
    options: Any
    results: Any
    gradients: Sequence[Tensor | None]
    tensor_gradients: Sequence[Tensor]
    geometry: Geometry
    has_state: bool

    @property
    def name(self) -> str:
        """Of the kernel."""
        return f"{self.neuron}_{self.direction}"

    @property
    def first(self) -> Tensor:
        """The input, or what there is in its place."""
        return self.tensors[0]
