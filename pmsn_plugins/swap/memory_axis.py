"""Where time is in the input of a module of no framework: the axis along which its output remembers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

STRENGTHS = (0.3, 1.0, 3.0)
"""Of constant inputs, each enough for other thresholds and leaks."""


def memory_axis(module: nn.Module, args: Sequence[Any]) -> int | None:
    """0 or 1, whichever axis it is along which the module remembers its first input; None where neither is seen.

    Copies of the module are run on constant inputs of the shape of the first argument, with and without a strong
    inhibition at the beginning, and what they return of the rest is compared.
    """
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    for axis in range(min(2, x.ndim)):
        if x.shape[axis] > 1 and any(_remembers(module, x, args[1:], axis, strength) for strength in STRENGTHS):
            return axis
    return None


def _remembers(module: nn.Module, x: Tensor, others: Sequence[Any], axis: int, strength: float) -> bool:
    constant = torch.full_like(x, strength)
    inhibited = constant.clone()
    inhibited.select(axis, 0).fill_(-10 * strength)
    try:
        with torch.no_grad():
            first, again, other = (copy.deepcopy(module).eval()(c, *others) for c in (constant, constant, inhibited))
    except Exception:  # whatever is wrong with it is said by the run of the net
        return False
    if not isinstance(first, Tensor) or first.shape != x.shape or not torch.equal(first, again):
        return False
    rest = slice(1, None)
    return not torch.equal(first.movedim(axis, 0)[rest], other.movedim(axis, 0)[rest])
