"""Argument checks shared by every room: each error names the argument, its value and what is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Real

import torch
from torch import Tensor


def check_choice(name: str, value: object, allowed: Iterable[str]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_options(what: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ValueError unless all names of ``options`` are among those that ``what`` takes."""
    allowed = tuple(allowed)
    for option in options:
        if option not in allowed:
            raise ValueError(f"{what} has no option {option!r}; its options are: {', '.join(allowed) or 'none'}")


def check_positive(name: str, value: float | Tensor) -> None:
    """Raise unless ``value`` is a positive finite real number (a scalar tensor counts as one)."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
        if torch.compiler.is_compiling() or value.is_cuda:
            return  # reading the value would break the graph or synchronise with the device
        value = value.detach().item()
    elif isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def check_finite(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    if not -float("inf") < value < float("inf"):
        raise ValueError(f"{name} must be finite, got {value!r}")


def check_int_at_least(name: str, value: int, least: int) -> None:
    """Raise unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a real floating-point tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(
            f"{name} must be a real floating-point tensor (float16, bfloat16, float32 or float64), got {tensor.dtype}; "
            f"convert it first, e.g. {name}.float()"
        )


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype states are kept in: the widest of the arguments, never narrower than float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_state(name: str, state: Tensor, expected: torch.Size | tuple[int, ...]) -> None:
    """Raise ValueError unless ``state`` has the ``expected`` shape."""
    if tuple(state.shape) != tuple(expected):
        raise ValueError(
            f"state {name} has shape {tuple(state.shape)}, but the input asks for {tuple(expected)}; "
            "reset the state when the batch size or the feature size changes"
        )
