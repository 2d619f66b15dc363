"""Are the kernels right: every available backend against the float64 reference, before anything is timed."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from .. import functional, kernels
from ..functional import PMSNParameters

SPIKES_TOLERANCE = 1e-5
"""Share of spikes that may differ in float32: a membrane within rounding of the threshold may fall on either side."""
GRADIENT_TOLERANCE = 1e-4


class Check(NamedTuple):
    """One kernel on one shape: share of spikes that differ from float64, largest relative error of any gradient."""

    name: str
    shape: tuple[int, ...]
    spikes: float
    gradient: float

    @property
    def passed(self) -> bool:
        return self.spikes <= SPIKES_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


def run_checks(device: torch.device, quick: bool) -> list[Check]:
    """Check PMSN and TC-LIF on every backend that is available for ``device``."""
    shapes = [(4, 3, 7, 5, 5), (250, 8, 33)] if quick else [(4, 3, 7, 5, 5), (250, 8, 33), (4096, 4, 64)]
    backends = {"cpu": ("torch", "cpu"), "cuda": ("torch", "cupy")}[device.type]
    checks = []
    for backend in backends:
        if not kernels.backends()[backend].available:
            continue
        for shape in shapes:
            checks.append(_check(f"PMSN ({backend})", _pmsn, shape, device, backend))
            checks.append(_check(f"TC-LIF ({backend})", _tclif, shape, device, backend))
    return checks


def _pmsn(room: ModuleType, x: Tensor, parameters: list[Tensor], **backend: str) -> Tensor:
    return room.pmsn_sequence(x, room.discretize(PMSNParameters(*parameters), **backend), **backend).spikes


def _tclif(room: ModuleType, x: Tensor, parameters: list[Tensor], **backend: str) -> Tensor:
    c1, c2 = parameters[0][:2]
    return room.tclif_sequence(x, -torch.sigmoid(c1), torch.sigmoid(c2), **backend).spikes


def _check(name, run, shape, device, backend) -> Check:
    generator = torch.Generator().manual_seed(len(shape) + shape[0])
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(shape, generator=generator)
    parameters = functional.pmsn_initial_parameters(shape[2], generator=generator)

    def evaluate(
        dtype: torch.dtype, device: torch.device, room: ModuleType, **backend: str
    ) -> tuple[Tensor, list[Tensor]]:
        leaves = [t.to(device=device, dtype=dtype).requires_grad_() for t in (x, *parameters)]
        spikes = run(room, leaves[0], leaves[1:], **backend)
        grads = torch.autograd.grad((spikes * weight.to(spikes)).sum(), leaves, allow_unused=True)
        return spikes.detach().cpu().double(), [g.cpu().double() for g in grads if g is not None]

    spikes, grads = evaluate(torch.float32, device, kernels, backend=backend)
    expected, expected_grads = evaluate(torch.float64, torch.device("cpu"), functional)
    errors = [((g - e).norm() / e.norm()).item() for g, e in zip(grads, expected_grads, strict=True)]
    return Check(name, shape, (spikes != expected).double().mean().item(), max(errors))
