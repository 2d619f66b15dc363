"""What kernels are compiled for, and the tiny sequences that each is tried on (:mod:`.first_contact`)."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import functional
from ..functional import PMSNParameters, PMSNState, TCLIFState, triangle
from ..functional.surrogate import SpikeFunction
from .first_contact import disagreement
from .plan import checkpoint_interval, gpu_takes_response

_N, _C = 2, 3


class PmsnVariant(NamedTuple):
    """One of PMSN's; ``steps`` is the length of the sequence that it is tried on."""

    steps: int
    memory: torch.dtype
    real: torch.dtype
    k: int
    reset_mode: str
    burst: bool
    fire: str
    surrogate: str
    with_state: bool
    return_v_seq: bool
    return_state: bool
    gradients: bool

    @staticmethod
    def steps_for(T: int, k: int, memory: torch.dtype, real: torch.dtype) -> int:
        """As short as a sequence of T steps; or beyond a checkpoint; or, few neurons as it has, cut in time."""
        interval = checkpoint_interval(1 + 2 * k, real.itemsize, memory.itemsize)
        if any(gpu_takes_response(T, k, real == torch.float64, direction) for direction in ("forward", "backward")):
            return T
        is_cut = 4 * interval < T
        return (4 * interval if is_cut else interval) + 3

    def trial(self, backend: str, device: torch.device, surrogate_function: SpikeFunction | None) -> str | None:
        """How it differs from the reference, if it does."""
        from .pmsn import pmsn_sequence

        def arguments(seed: int) -> dict[str, Any]:
            generator = torch.Generator().manual_seed(seed)
            # not coefficients: so the kernels that make these are tried too
            drawn = functional.pmsn_initial_parameters(_C, self.k + 1, generator=generator)
            parameters = PMSNParameters(*(p.to(device, self.real) for p in drawn))
            shapes = ((_N, _C), (self.k, _N, _C), (self.k, _N, _C))
            state = PMSNState(*(_draw(generator, shape, device, self.real) for shape in shapes))
            x = _draw(generator, (self.steps, _N, _C), device, self.memory)
            return dict(x_seq=x, coefficients=parameters, state=state if self.with_state else None)

        options: dict[str, Any] = dict(reset_mode=self.reset_mode, burst=self.burst, v_threshold=0.7)
        options |= dict(return_v_seq=self.return_v_seq, return_state=self.return_state)
        options["surrogate_function"] = _unknown if self.fire == "membrane" else surrogate_function
        ours, reference = (
            partial(pmsn_sequence, backend=backend, **options),
            partial(functional.pmsn_sequence, **options),
        )
        return disagreement(ours, reference, arguments, self.gradients)


class TclifVariant(NamedTuple):
    """One of TC-LIF's."""

    memory: torch.dtype
    real: torch.dtype
    soma_feedback: str
    detach_reset: bool
    strict: bool
    surrogate: str
    with_state: bool
    return_v_seq: bool
    gradients: bool

    def trial(self, backend: str, device: torch.device, surrogate_function: SpikeFunction | None) -> str | None:
        """How it differs from the reference, if it does."""
        from .tclif import tclif_sequence

        steps = checkpoint_interval(2, self.real.itemsize, self.memory.itemsize) + 3

        def arguments(seed: int) -> dict[str, Any]:
            generator = torch.Generator().manual_seed(seed)
            couplings = torch.rand(2, _C, generator=generator).to(device, self.real)
            state = TCLIFState(*(_draw(generator, (_N, _C), device, self.real) for _ in range(2)))
            x = _draw(generator, (steps, _N, _C), device, self.memory)
            return dict(x_seq=x, b1=-couplings[0], b2=couplings[1], state=state if self.with_state else None)

        options: dict[str, Any] = dict(soma_feedback=self.soma_feedback, detach_reset=self.detach_reset)
        options |= dict(v_threshold=0.7, return_v_seq=self.return_v_seq, surrogate_function=surrogate_function)
        ours = partial(tclif_sequence, backend=backend, **options)
        return disagreement(ours, partial(functional.tclif_sequence, **options), arguments, self.gradients)


def _draw(generator: torch.Generator, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=generator).to(device, dtype)


def _unknown(u: Tensor) -> Tensor:
    """A spike function that no kernel knows, so that the membrane is sent."""
    return triangle()(u)
