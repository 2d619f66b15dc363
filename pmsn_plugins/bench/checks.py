"""Are the kernels right: every available backend against the float64 reference, before anything is timed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional, kernels
from ..functional import PMSNParameters

TOLERANCES = {torch.float64: (0.0, 1e-9), torch.float32: (1e-5, 1e-4)}
"""Share of spikes that may differ, and relative error of the gradients. In float32 a membrane within rounding of the
threshold may fall on either side, and the gradient of that neuron jumps: the more often, the longer the sequence."""
LONGEST_FLOAT32 = 1000


class Check(NamedTuple):
    """One kernel on one shape: share of spikes that differ from the float64 reference, relative error of the gradients
    (the worst of all parameters and the input; of their channels the median)."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    spikes: float
    gradient: float

    @property
    def passed(self) -> bool:
        spikes, gradient = TOLERANCES[self.dtype]
        return self.spikes <= spikes and self.gradient <= gradient


def run_checks(device: torch.device, quick: bool) -> list[Check]:
    """Check every variant of PMSN and TC-LIF on every backend that is available for ``device``."""
    shapes = [(4, 3, 7, 5, 5), (250, 8, 33)] if quick else [(4, 3, 7, 5, 5), (250, 8, 33), (4096, 4, 64)]
    available = [b for b in ("torch", {"cpu": "cpu", "cuda": "cupy"}[device.type]) if kernels.backends()[b].available]
    variants: dict[str, Callable[..., Tensor]] = {
        "PMSN": _pmsn,
        "PMSN, burst": partial(_pmsn, burst=True),
        "PMSN, cumulative": partial(_pmsn, reset_mode="cumulative"),
        "PMSN, memoryless": partial(_pmsn, reset_mode="memoryless"),
        "PMSN, serial reset": partial(_pmsn, reset_mode="serial"),
        "TC-LIF": _tclif,
        "TC-LIF, pre-reset": partial(_tclif, soma_feedback="pre_reset"),
        "TC-LIF, recurrent": _recurrent,
    }
    checks = []
    for shape in shapes:
        x, weight, *parameters = _case(shape)
        for name, run in variants.items():
            if run is _recurrent and len(shape) != 3:
                continue
            expected = _evaluate(run, functional, x, weight, parameters)
            for backend in available:
                for dtype in TOLERANCES if shape[0] <= LONGEST_FLOAT32 else (torch.float64,):
                    here = [t.to(device, dtype) for t in (x, weight, *parameters)]
                    actual = _evaluate(run, kernels, here[0], here[1], here[2:], backend=backend)
                    checks.append(Check(f"{name} ({backend})", dtype, shape, *_errors(actual, expected)))
    return checks


def _case(shape: tuple[int, ...]) -> list[Tensor]:
    """Input, weight of the outputs, two couplings, feedback and the parameters of PMSN: float64, but of float32's
    numbers."""
    generator = torch.Generator().manual_seed(len(shape) + shape[0])
    drawn = [torch.randn(shape, generator=generator) for _ in range(2)]
    couplings = torch.tensor([-0.4, 0.6])
    feedback = torch.randn(shape[2], shape[2], generator=generator) / shape[2] ** 0.5
    return [
        t.double()
        for t in (*drawn, couplings, feedback, *functional.pmsn_initial_parameters(shape[2], generator=generator))
    ]


def _pmsn(room: ModuleType, x: Tensor, parameters: list[Tensor], options: dict[str, str], **variant: object) -> Tensor:
    return room.pmsn_sequence(x, PMSNParameters(*parameters[2:]), **variant, **options).spikes


def _tclif(room: ModuleType, x: Tensor, parameters: list[Tensor], options: dict[str, str], **variant: object) -> Tensor:
    return room.tclif_sequence(x, *parameters[0], **variant, **options).spikes


def _recurrent(room: ModuleType, x: Tensor, parameters: list[Tensor], options: dict[str, str]) -> Tensor:
    couplings, feedback, *_ = parameters
    return room.tclif_recurrent_sequence(x, feedback, None, *couplings, **options).spikes


def _evaluate(
    run: Callable[..., Tensor],
    room: ModuleType,
    x: Tensor,
    weight: Tensor,
    parameters: list[Tensor],
    **options: str,
) -> tuple[Tensor, list[Tensor]]:
    leaves = [t.detach().requires_grad_() for t in (x, *parameters)]
    spikes = run(room, leaves[0], leaves[1:], options)
    grads = torch.autograd.grad((spikes * weight).sum(), leaves, allow_unused=True)
    return spikes.detach().cpu().double(), [g.cpu().double() for g in grads if g is not None]


def _errors(actual: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> tuple[float, float]:
    gradient = 0.0
    for value, want in zip(actual[1], expected[1], strict=True):
        error = (value - want).abs() / want.abs().max()
        by_channel = error.movedim(2 if want.ndim > 2 else 0, 0).flatten(1) if want.ndim > 1 else error[:, None]
        gradient = max(gradient, by_channel.amax(1).median().item())
    return (actual[0] != expected[0]).double().mean().item(), gradient
