"""Where time is in the input of a module of no framework: the axis along which its output remembers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .references import copied

STRENGTHS = (0.3, 1.0, 3.0)
"""Of the inputs, each enough for other thresholds and leaks."""


def memory_axis(module: nn.Module, args: Sequence[Any]) -> int | None:
    """0 or 1, whichever axis it is along which the module remembers earlier inputs; None where neither is seen.

    Copies of the module are run on random inputs of the shape of the first argument, with and without a strong
    inhibition at the first place, and at the last. What remembers returns something else after the first, and nothing
    else before the last: neurons that compete along an axis do that too.
    """
    x = args[0] if args else None
    if not isinstance(x, Tensor) or not x.is_floating_point() or type(module).__module__.startswith("torch.nn."):
        return None
    return next(
        (axis for axis in range(min(2, x.ndim)) if any(_remembers(module, args, axis, s) for s in STRENGTHS)), None
    )


def _remembers(module: nn.Module, args: Sequence[Any], axis: int, strength: float) -> bool:
    x = args[0]
    if x.shape[axis] < 2:
        return False
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    inputs = (strength * (0.5 + noise)).to(x)

    def run(place: int | None = None, factor: float = 1.0) -> Tensor:
        changed = inputs.clone()
        if place is not None:
            changed.select(axis, place).mul_(factor)
        twin = copied(module).eval()
        for part in twin.modules():
            for hooks in (part._forward_hooks, part._forward_pre_hooks):
                hooks.clear()  # they may be of others, who count calls
        torch.manual_seed(0)
        return twin(changed, *args[1:]).movedim(axis, 0)

    try:
        with torch.no_grad():
            plain = run()
            if plain.shape[0] != x.shape[axis] or plain.numel() != x.numel() or torch.equal(plain[1:], run(0, -10)[1:]):
                return False
            return torch.equal(plain, run()) and all(torch.equal(plain[:-1], run(-1, f)[:-1]) for f in (-10, 10))
    except Exception:  # whatever is wrong with it is said by the run of the net
        return False
