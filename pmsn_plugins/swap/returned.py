"""What a neuron returns: a new one has to return as much, and of the same kind."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ENOUGH = 20_000
"""Values of a large output that are looked at."""

ROUNDING = 1e-5

SPIKES, GRADED, OTHER, UNKNOWN = "spikes of 0 and 1", "spikes of other sizes", "no spikes", "unknown values"


@dataclass(frozen=True)
class Returned:
    """The outcome of one call."""

    given: tuple[int, ...]
    """Shape of the input."""
    form: str
    """A tensor's shape, or that of the first of several values; how many is for the net to say."""
    values: str
    """SPIKES, GRADED, OTHER or UNKNOWN: of the first tensor."""
    examples: tuple[float, ...]
    """Some of its values."""

    @classmethod
    def of(cls, x: Tensor, output: Any) -> Returned:
        parts = tuple(output.values()) if isinstance(output, dict) else output
        many = isinstance(parts, tuple | list)
        first = next((part for part in parts if isinstance(part, Tensor)), None) if many else parts
        form = f"shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        if many:
            form = f"several values, the first of {form}"
        values, examples = UNKNOWN, tuple[float, ...]()
        if isinstance(first, Tensor) and first.layout is torch.strided:
            with suppress(RuntimeError, NotImplementedError, TypeError):  # on "meta", quantised
                values, examples = _kind(first.detach())
        return cls(tuple(x.shape), form, values, examples)


def _kind(tensor: Tensor) -> tuple[str, tuple[float, ...]]:
    numbers = tensor.flatten()
    numbers = numbers[:: numbers.numel() // ENOUGH + 1]
    if numbers.dtype not in (torch.float32, torch.float64):
        numbers = numbers.float()
    numbers = numbers[numbers.isfinite()]
    whole = numbers.round()  # a straight-through spike is 1 within rounding
    numbers = torch.where((numbers - whole).abs() < ROUNDING, whole, numbers)
    if ((numbers == 0) | (numbers == 1)).all():
        return SPIKES, ()
    numbers = torch.unique(numbers)
    graded = numbers.abs().unique().count_nonzero() <= 1 or (numbers == numbers.round()).all()
    return (GRADED if graded else OTHER), tuple(numbers[:4].tolist())


def describe_call(args: tuple, kwargs: dict[str, Any]) -> str:
    """The arguments of a call, in a few words."""
    words = [f"a tensor {tuple(a.shape)}" if isinstance(a, Tensor) else f"a {type(a).__name__}" for a in args]
    words += [f"{name}=" for name in kwargs]
    return ", ".join(words) or "nothing"
