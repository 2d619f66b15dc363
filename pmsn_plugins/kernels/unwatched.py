"""Calls that only the kernels need to see: nobody traces, transforms or intercepts them.

They go past PyTorch's dispatcher; and a call that looks like one that has passed all checks is not checked again. For a
time step of a few thousand neurons dispatch and checks would take ten times as long as the kernel, and on a GPU they
would for whole sequences.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ..functional import describe
from ..functional.surrogate import SpikeFunction
from .backend import FUSED, fused_for


class Known(NamedTuple):
    """What came of the checks of a call: its operator, the arguments of that one besides tensors, what its tensors and
    results look like, and how its tensors are made of the given ones."""

    operator: Any
    options: Any
    wanted: Any
    expected: Any
    more: Any = None


_known: dict[Hashable, Known] = {}
_MOST = 1024


def unwatched() -> bool:
    """Whether an operator that is called now would only be called: not recorded either."""
    return not (torch.is_grad_enabled() or intercepted())


def intercepted() -> bool:
    """Whether somebody traces, transforms, counts or replaces operators that are called now."""
    return bool(
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    )


def look(
    function: type | str,
    tensors: Iterable[Tensor | float | None],
    v_threshold: float | Tensor,
    surrogate_function: SpikeFunction | None,
    words: Iterable[Hashable],
) -> Hashable | None:
    """All that the checks of a call of ``function`` look at: equal for calls that they treat alike.

    None where the values of a tensor would be looked at, or one is not plain, or on another device than the first.
    """
    if isinstance(v_threshold, Tensor):
        return None
    spikes: Hashable = None
    if surrogate_function is not None:
        spikes = describe(surrogate_function) or surrogate_function
    seen: list[Any] = [function]
    device: torch.device | None = None
    value: Any  # (a type checker does not see what `kind` says of it)
    for value in tensors:
        kind = type(value)
        if kind is Tensor or kind is Parameter:
            if device is None:
                device = value.device
                seen += device, fused_for(device.type)
            if not (is_plain(value) and value.device == device):
                return None
            seen += value.shape, value.dtype
        elif isinstance(value, Tensor):
            return None
        else:
            seen += kind, value
    for word in (v_threshold, spikes, *words):
        seen += type(word), word  # 1 and True are equal
    return tuple(seen)


def is_plain(tensor: Tensor) -> bool:
    """Whether what lies in memory is what it holds, and only a kernel of its device would be called with it: not where
    it is sparse, nested, to be negated, part of a batch of ``torch.func``, ..."""
    return torch._C._dispatch_keys(tensor).raw_repr() in _plain_keys(tensor.device.type)


@cache
def _plain_keys(device_type: str) -> frozenset[int]:
    if all(backend.device_type != device_type for backend in FUSED):
        return frozenset()
    tensors = [torch.empty(0, device=device_type)]
    with torch.inference_mode():
        tensors.append(torch.empty(0, device=device_type))
    return frozenset(torch._C._dispatch_keys(tensor).raw_repr() for tensor in tensors)


def known(appearance: Hashable | None) -> Known | None:
    """A call that looks like this one and has passed all checks."""
    try:
        return _known.get(appearance)
    except TypeError:  # an argument that no check lets pass
        return None


def remember(appearance: Hashable, call: Known) -> None:
    """For :func:`known`."""
    if len(_known) >= _MOST:
        _known.clear()
    _known[appearance] = call


def not_converted(given: Iterable[Tensor | float | None], tensors: Iterable[Tensor | None]) -> bool:
    """Whether the operator takes the tensors as they were given; it may take more."""
    return all(a is b for a, b in zip(given, tensors, strict=False))
