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
    """0 or 1, whichever axis it is along which the module remembers earlier inputs; None where neither is seen.

    Copies of the module are run on constant inputs of the shape of the first argument, with and without a strong
    inhibition at the first place and at the last. What remembers returns something else after the first, and nothing
    else before the last: neurons that inhibit each other along an axis do that too.
    """
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    for axis in range(min(2, x.ndim)):
        if x.shape[axis] > 1 and any(_remembers(module, x, args[1:], axis, strength) for strength in STRENGTHS):
            return axis
    return None


def _remembers(module: nn.Module, x: Tensor, others: Sequence[Any], axis: int, strength: float) -> bool:
    def run(inhibited: int | None) -> Any:
        inputs = torch.full_like(x, strength)
        if inhibited is not None:
            inputs.select(axis, inhibited).fill_(-10 * strength)
        return copy.deepcopy(module).eval()(inputs, *others)

    try:
        with torch.no_grad():
            plain, again, after_first, before_last = run(None), run(None), run(0), run(-1)
    except Exception:  # whatever is wrong with it is said by the run of the net
        return False
    if not isinstance(plain, Tensor) or plain.shape != x.shape or not torch.equal(plain, again):
        return False
    plain, after_first, before_last = (y.movedim(axis, 0) for y in (plain, after_first, before_last))
    return not torch.equal(plain[1:], after_first[1:]) and torch.equal(plain[:-1], before_last[:-1])
