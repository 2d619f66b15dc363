"""What a spike function becomes in a kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import describe
from ..functional.surrogate import SpikeFunction, transforming
from .calls import SURROGATES


class Firing(NamedTuple):
    """What the kernel sends out (``calls.FIRES``), and the fused surrogate with its parameters."""

    fire: str
    surrogate: str = "triangle"
    a: float = 1.0
    b: float = 0.0
    c: float = 0.0


def firing(
    surrogate_function: SpikeFunction | None, v_threshold: float | Tensor, burst: bool, through_reset: bool
) -> Firing:
    """What the kernel sends out.

    Only a function that the table knows is fused. Any other is called as it is, on the membrane that the kernel sends.
    Where the gradient passes through the reset, the kernel has to fire by itself: a known step whose slope is not fused
    is then asked for its slopes (``'given'``).
    """
    if learnable(v_threshold):
        return Firing("membrane")
    if surrogate_function is None:
        return Firing("burst" if burst else "spike")  # triangle()
    spec = describe(surrogate_function)
    if spec is None:
        return Firing("membrane")
    fire = "burst" if burst else "strict" if spec.strict else "spike"
    if spec.name in SURROGATES:
        return Firing(fire, spec.name, *spec.parameters)
    # slopes are taken by autograd, outside of any graph or transformation
    given = through_reset and not torch.compiler.is_compiling() and not transforming()
    return Firing(fire, "given") if given else Firing("membrane")


def recorded(tensors: Iterable[Tensor | float | None]) -> bool:
    """Whether autograd will ask for gradients, and so for slopes."""
    return torch.is_grad_enabled() and any([isinstance(t, Tensor) and t.requires_grad for t in tensors])


def slopes(spikes: SpikeFunction, x: Tensor) -> Tensor:
    """The derivative that ``spikes`` pretend to have at ``x`` [T, *]."""
    # a few steps at a time on the CPU: its many intermediate results stay in the cache
    steps = max(1, 2**16 // x[0].numel()) if x.device.type == "cpu" else len(x)
    parts: list[Tensor] = []
    with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
        for part in x.detach().split(steps):
            part.requires_grad_()
            parts += torch.autograd.grad(spikes(part).sum(), part)
    return torch.cat(parts)


def threshold(v_threshold: float | Tensor, dtype: torch.dtype) -> tuple[Tensor | None, float]:
    """As a tensor that the kernel reads, or as a number."""
    if isinstance(v_threshold, Tensor):
        return v_threshold.detach().to(dtype), 0.0
    return None, float(v_threshold)


def learnable(v_threshold: float | Tensor) -> bool:
    return isinstance(v_threshold, Tensor) and v_threshold.requires_grad and torch.is_grad_enabled()


def converted(dtype: torch.dtype, tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t if t.dtype == dtype else t.to(dtype) for t in tensors]  # asking is a tenth of what .to() costs


def contiguous(x: Tensor) -> Tensor:
    """As the kernels read it, forward and backward: one that lies otherwise (channels_last) is copied once."""
    return x if x.is_contiguous() else x.contiguous()


def in_one_piece(tensors: Iterable[Tensor]) -> bool:
    """Whether all are contiguous."""
    return all([t.is_contiguous() for t in tensors])
