"""The layers that are timed: ours on every backend, the papers' own methods, and both frameworks' neurons."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import kernels
from ..functional import pmsn_impulse_response, triangle
from ..parameters import PMSNParametersMixin, TCLIFParametersMixin

COMPILED_LIMIT = 4
"""Longest sequence given to torch.compile as a whole: it unrolls a loop, and compiles for minutes where it is long."""

LOOP_LIMIT = 1024
"""Longest sequence given to the layers that loop over time in Python; beyond it they only cost minutes."""


FUSED = {"cpu": "cpu", "cuda": "cupy"}
"""The backend with our kernels for each device."""


class Contender(NamedTuple):
    """One layer of the table.

    Attributes:
        name: as printed.
        make: builds the layer for an input of shape [T, N, C, *]; its forward maps such an input to spikes.
        longest: longest sequence it is run on.
        fused: whether it is one of our kernels, which have no excuse.
    """

    name: str
    make: Callable[[tuple[int, ...]], nn.Module]
    longest: int = 1 << 30
    fused: bool = False


class PMSN(PMSNParametersMixin, nn.Module):
    """PMSN layer with n = 5 compartments on one backend, without its final state (as training on whole sequences)."""

    def __init__(self, shape: tuple[int, ...], backend: str, reset_mode: str = "modulo") -> None:
        super().__init__()
        self._create_parameters(shape[2], 5, "sequential")
        self.backend, self.reset_mode = backend, reset_mode

    def forward(self, x: Tensor) -> Tensor:
        parameters = self.neuron_parameters()
        output = kernels.pmsn_sequence(
            x, parameters, reset_mode=self.reset_mode, return_state=False, backend=self.backend
        )
        return output.spikes


class TCLIF(TCLIFParametersMixin, nn.Module):
    """TC-LIF layer on one backend, without its final state too."""

    def __init__(self, shape: tuple[int, ...], backend: str) -> None:
        super().__init__()
        self._create_parameters((-0.5, 0.5), None)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        return kernels.tclif_sequence(x, *self.couplings(x.ndim - 1), return_state=False, backend=self.backend).spikes


class FFTPMSN(PMSNParametersMixin, nn.Module):
    """The PMSN paper's own method in its leanest arrangement: FFT convolution, then a cumulative sum for the membrane.

    It is a baseline, not a reference: in float32 its cumulative sum loses spike times on long sequences.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._create_parameters(shape[2], 5, "sequential")

    def forward(self, x: Tensor) -> Tensor:
        T = len(x)
        response = pmsn_impulse_response(self.coefficients(), T)
        rows = x.flatten(3).permute(1, 2, 3, 0).contiguous() if x.ndim > 3 else x.permute(1, 2, 0).contiguous()
        response = response[:, None] if x.ndim > 3 else response
        current = torch.fft.irfft(torch.fft.rfft(rows, 2 * T) * torch.fft.rfft(response, 2 * T), 2 * T)[..., :T].relu()
        with torch.no_grad():
            charge = current.cumsum(-1)
            before = charge.floor() - charge  # what the resets took away before this step, minus the charge itself
            before = torch.nn.functional.pad(-before[..., :-1], (1, 0))
        spikes = triangle()(current + before - 1.0)
        return spikes.permute(2, 0, 1) if x.ndim == 3 else spikes.permute(3, 0, 1, 2).reshape(x.shape)


class PlainTCLIF(TCLIFParametersMixin, nn.Module):
    """TC-LIF in the loop that a script writes, through torch.compile: a short one whole, else each of its steps."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self._create_parameters((-0.5, 0.5), None)
        self._whole = shape[0] <= COMPILED_LIMIT
        self._compiled: Callable[..., Any] = torch.compile(_tclif_loop if self._whole else _tclif_step, dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        b1, b2 = self.couplings(x.ndim - 1)
        return self._compiled(x, b1, b2) if self._whole else _tclif_loop(x, b1, b2, self._compiled)


def _tclif_step(x: Tensor, v: Tensor, d: Tensor, b1: Tensor, b2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    d = d + b1 * v + x
    v = v + b2 * d
    spike = triangle()(v - 1.0)
    return spike, v - spike, d - 0.5 * spike


def _tclif_loop(x: Tensor, b1: Tensor, b2: Tensor, step: Callable[..., Any] = _tclif_step) -> Tensor:
    v = d = torch.zeros_like(x[0])
    spikes = []
    for x_t in x.unbind(0):
        spike, v, d = step(x_t, v, d, b1, b2)
        spikes.append(spike)
    return torch.stack(spikes)


class Loop(nn.Module):
    """An snnTorch layer in the loop its tutorials write."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        mem, spikes = self.layer.reset_mem(), []
        for x_t in x:
            spike, mem = self.layer(x_t, mem)
            spikes.append(spike)
        return torch.stack(spikes)


class FirstOutput(nn.Module):
    """A layer that returns (spikes, membrane)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Reset(nn.Module):
    """A SpikingJelly node, reset before each sequence."""

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.node = node

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self.node, "reset"):
            self.node.reset()
        return self.node(x)


def contenders(device: torch.device) -> list[Contender]:
    """Everything that can run on ``device`` with what is installed; ours first, fastest backend first."""
    fused = FUSED[device.type]
    ours = [b for b in (fused, "torch") if (status := kernels.backends().get(b)) and status.available]
    found = [Contender(f"PMSN ({b})", partial(PMSN, backend=b), fused=b == fused) for b in ours]
    for b in ours:
        longest = LOOP_LIMIT if b == "torch" else 1 << 30
        found.append(Contender(f"TC-LIF ({b})", partial(TCLIF, backend=b), longest, b == fused))
    if device.type == "cuda":
        found.append(Contender("PMSN (torch.compile)", _compiled_pmsn))
    found.append(Contender("PMSN, FFT (the paper's method)", FFTPMSN))
    found += [
        Contender(f"PMSN, serial reset ({b})", partial(PMSN, backend=b, reset_mode="serial"), LOOP_LIMIT, b == fused)
        for b in ours
    ]
    found.append(Contender("TC-LIF, plain loop, torch.compile", PlainTCLIF, LOOP_LIMIT))
    return found + _spikingjelly() + _snntorch()


def _compiled_pmsn(shape: tuple[int, ...]) -> nn.Module:
    layer = PMSN(shape, "torch")
    layer.compile()
    return layer


def _spikingjelly() -> list[Contender]:
    try:
        from spikingjelly.activation_based import neuron
    except ImportError:
        return []
    flexible = []
    if hasattr(neuron, "FlexSN"):  # since 2.0
        flexible = [Contender("SpikingJelly FlexSN, TC-LIF", lambda shape: Reset(_flexible_tclif()), LOOP_LIMIT)]
    return [
        *flexible,
        Contender("SpikingJelly LIFNode", lambda shape: Reset(neuron.LIFNode(v_reset=None, step_mode="m"))),
        Contender("SpikingJelly PSN", lambda shape: Reset(neuron.PSN(shape[0])), 4096),
        Contender(
            "SpikingJelly SlidingPSN, k = 32", lambda shape: Reset(neuron.SlidingPSN(32, step_mode="m")), LOOP_LIMIT
        ),
    ]


def _flexible_tclif() -> nn.Module:
    """TC-LIF's equations for SpikingJelly's FlexSN, which takes its parameters as they are multiplied."""
    from spikingjelly.activation_based import neuron

    couplings = tuple(nn.Parameter(torch.tensor(b)) for b in (-0.5, 0.5))
    return neuron.FlexSN(_tclif_step, num_states=2, static_inputs=couplings, step_mode="m")


def _factors(C: int) -> tuple[int, int]:
    """Rows and columns of a state of C numbers, about as many."""
    rows = max(d for d in range(1, math.isqrt(C) + 1) if C % d == 0)
    return rows, C // rows


def _snntorch() -> list[Contender]:
    try:
        import snntorch
    except ImportError:
        return []
    found = [Contender("snnTorch Leaky, loop", lambda shape: Loop(snntorch.Leaky(0.9)), LOOP_LIMIT)]
    if hasattr(snntorch, "StateLeaky"):  # since 1.0.0; [T, N, C] only
        found.append(
            Contender("snnTorch StateLeaky", lambda shape: FirstOutput(snntorch.StateLeaky(0.9, shape[2])), 4096)
        )
    if hasattr(snntorch, "LeakyParallel"):  # with a matrix before the neurons
        found.append(
            Contender("snnTorch LeakyParallel", lambda shape: snntorch.LeakyParallel(shape[2], shape[2]), LOOP_LIMIT)
        )
    if hasattr(snntorch, "AssociativeLeaky"):  # with several
        found.append(
            Contender(
                "snnTorch AssociativeLeaky",
                lambda shape: snntorch.AssociativeLeaky(shape[2], *_factors(shape[2]), shape[2], False),
                LOOP_LIMIT,
            )
        )
    return found
