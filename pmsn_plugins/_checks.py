"""Argument checks shared by every room: each error names the argument, its value and what is allowed.

A wrong type is a TypeError, a wrong value a ValueError.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_INF = float("inf")
_LEAST_NORMAL = {dtype: torch.finfo(dtype).tiny for dtype in (torch.float32, torch.float64)}


def shown(value: object) -> str:
    """A value as an error shows it: of tensors and long values only what they are."""
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and dtype {value.dtype}"
    text = repr(value)
    return text if len(text) <= 80 and "\n" not in text else type(value).__name__


def check_type(name: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Raise TypeError unless ``value`` is of ``kind``, which ``what`` puts into words."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")


def check_items(name: str, values: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raise TypeError unless ``values`` is a series that can be gone through again, all of it of ``kind``."""
    wrong = isinstance(values, str | bytes | Tensor | Mapping | Iterator) or not isinstance(values, Iterable)
    if wrong or (isinstance(values, np.ndarray) and values.ndim == 0):
        raise TypeError(f"{name} must be {what}, got {shown(values)}")
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {what}, got {shown(value)} among them")


def check_mapping(name: str, values: Any, kind: type | tuple[type, ...], what: str) -> None:
    """Raise TypeError unless ``values`` is a mapping, all its values of ``kind``."""
    check_type(name, values, Mapping, what)
    for key, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {what}, got {shown(value)} for {key!r}")


def pairs(name: str, batches: Iterable[Any]) -> Iterator[tuple[Any, Tensor]]:
    """Go through ``batches``, each a pair (input, target), where ``len(target)`` is the number of samples.

    Raises TypeError where it is anything else.
    """
    what = "a series of pairs (input, target), target a tensor of one entry per sample"
    if isinstance(batches, str | bytes | Tensor | Mapping) or not hasattr(batches, "__iter__"):
        raise TypeError(f"{name} must be {what}, got {shown(batches)}")
    for batch in batches:
        if not (isinstance(batch, tuple | list) and len(batch) == 2):
            raise TypeError(f"{name} must be {what}, got {shown(batch)} among them")
        if not (isinstance(batch[1], Tensor) and batch[1].ndim > 0):
            raise TypeError(f"{name} must be {what}, got the target {shown(batch[1])}")
        yield batch[0], batch[1]


def check_module(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a module."""
    check_type(name, value, nn.Module, "a torch.nn.Module")


def check_callable(name: str, value: object, what: str) -> None:
    """Raise TypeError unless ``value`` can be called; ``what`` says as what."""
    if not callable(value):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")


def check_path(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` names a file or folder."""
    check_type(name, value, (str, os.PathLike), "a path")


def check_choice(name: str, value: object, allowed: Collection[str]) -> None:
    """Raise unless ``value`` is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        error = ValueError if isinstance(value, str) else TypeError
        raise error(f"{name} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")


def check_options(what: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise ValueError unless all names of ``options`` are among those that ``what`` takes."""
    allowed = tuple(allowed)
    for option in options:
        if option not in allowed:
            raise ValueError(f"{what} has no option {option!r}; its options are: {', '.join(allowed) or 'none'}")


def check_flag(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is True or False (also of NumPy).

    The numbers 0 and 1 are refused: where a flag is expected they are more often an argument in the wrong place.
    """
    if value is not True and value is not False and not isinstance(value, np.bool_):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")


def check_positive(name: str, value: float | Tensor) -> None:
    """Raise unless ``value`` is a positive finite real number (a scalar tensor counts as one)."""
    _positive_number(name, value)


def check_threshold(name: str, value: float | Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise unless ``value`` is a positive number that every backend can compute with in ``dtype``.

    Both it and its inverse must be normal numbers. The default dtype is the one that a new layer computes in.
    """
    number = _positive_number(name, value)
    dtype = torch.promote_types(torch.float32, torch.get_default_dtype()) if dtype is None else dtype
    least = _LEAST_NORMAL[dtype]
    if number is not None and not least <= number <= 1.0 / least:
        raise ValueError(f"{name} must be from {least:.3g} to {1.0 / least:.3g} in {dtype}, got {number!r}")


def _positive_number(name: str, value: float | Tensor) -> float | None:
    """The number, unless it is in a tensor that cannot be read here."""
    if isinstance(value, Tensor):
        check_floating(name, value)
        if value.numel() != 1 or value.ndim > 1:
            raise ValueError(f"{name} must be one number, got a tensor of shape {tuple(value.shape)}")
        if torch.compiler.is_compiling() or value.device.type != "cpu" or is_transformed(value):
            return None  # reading the value would break the graph or synchronise with the device, or is impossible
        value = value.detach().item()
    elif type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a real number, got {shown(value)}")
    if not 0 < value < _INF:
        raise ValueError(f"{name} must be a finite number above 0, got {value!r}")
    return value


def check_finite(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite real number."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name} must be a real number, got {shown(value)}")
    if not -_INF < value < _INF:
        raise ValueError(f"{name} must be finite, got {value!r}")


def check_not_negative(name: str, value: float) -> None:
    """Raise unless ``value`` is a finite real number of at least 0."""
    check_finite(name, value)
    if value < 0:
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}")


def check_range(name: str, value: tuple[float, float]) -> None:
    """Raise unless ``value`` is a pair (low, high) of finite numbers, 0 < low <= high."""
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise TypeError(f"{name} must be two numbers (low, high), got {shown(value)}")
    for bound in value:
        check_positive(name, bound)
    low, high = value
    if low > high:
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high, got {shown(value)}")


def check_rate(name: str, value: float) -> None:
    """Raise unless ``value`` is a rate of dropout."""
    check_finite(name, value)
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{name} must be at least 0 and below 1, got {value!r}")


def check_int_at_least(name: str, value: int, least: int) -> None:
    """Raise unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {shown(value)}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_ints_at_least(name: str, values: Any, least: int) -> None:
    """Raise unless ``values`` is a series of integers of at least ``least`` that can be gone through again."""
    if isinstance(values, str | bytes | Tensor | Iterator) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a series of integers, got {shown(values)}")
    for value in values:
        check_int_at_least(name, value, least)


def is_floating(value: object) -> bool:
    """Whether :func:`check_floating` lets ``value`` pass."""
    return (
        isinstance(value, Tensor) and value.dtype in _FLOATING and value.layout is torch.strided and not value.is_nested
    )


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise TypeError unless ``tensor`` is a dense tensor of real floating-point numbers."""
    if is_floating(tensor):
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in _FLOATING:
        convert = "dequantize()" if tensor.is_quantized else "float()"
        raise TypeError(
            f"{name} must be a real floating-point tensor (float16, bfloat16, float32 or float64), got {tensor.dtype}; "
            f"convert it first, e.g. {name}.{convert}"
        )
    kind = "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
    convert = "to_padded_tensor(0.0)" if tensor.is_nested else "to_dense()"
    raise TypeError(f"{name} must be a dense tensor, got {kind}; convert it first, e.g. {name}.{convert}")


def check_floating_dtype(name: str, dtype: object) -> None:
    """Raise TypeError unless ``dtype`` is one of the dtypes that :func:`check_floating` takes."""
    if not isinstance(dtype, torch.dtype) or dtype not in _FLOATING:
        raise TypeError(f"{name} must be one of {', '.join(map(str, _FLOATING))}, got {dtype!r}")


def check_device(name: str, device: Any) -> None:
    """Raise unless torch knows ``device``; it need not exist on this machine."""
    check_type(name, device, (str, torch.device), "a torch.device or its name")
    try:
        torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{name} must be a torch.device or its name, got {device!r} ({error})") from None


def check_coefficient(name: str, value: float | Tensor, step: torch.Size) -> None:
    """Raise unless ``value`` is a finite number, or a real floating-point tensor that broadcasts over one step.

    The values inside a tensor are not looked at: that would break graphs and synchronise with the device.
    """
    if not isinstance(value, Tensor):
        check_finite(name, value)
        return
    check_floating(name, value)
    check_broadcasts(name, value.shape, step)


def check_broadcasts(name: str, shape: torch.Size, step: torch.Size) -> None:
    """Raise ValueError unless a tensor of this shape broadcasts over one step without making it larger."""
    if shape and (
        len(shape) > len(step)
        or any(size not in (1, n) for size, n in zip(reversed(shape), reversed(step), strict=False))
    ):
        raise ValueError(f"{name} must broadcast over one step of shape {tuple(step)}, got shape {tuple(shape)}")


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype states are kept in: the widest of the arguments, never narrower than float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def check_named(name: str, value: object, *kinds: type[Any]) -> None:
    """Raise TypeError unless ``value`` is one of these named tuples.

    A plain tuple of the right tensors is refused: its order would be a guess.
    """
    if not isinstance(value, kinds):
        fields = " or ".join(f"a {kind.__name__}({', '.join(kind._fields)})" for kind in kinds)
        remedy = f"; {kinds[0].__name__}(*{name}) makes one" if type(value) in (tuple, list) and len(kinds) == 1 else ""
        raise TypeError(f"{name} must be {fields}, got {shown(value)}{remedy}")


def check_state(name: str, state: Tensor, expected: torch.Size | tuple[int, ...]) -> None:
    """Raise unless ``state`` is a floating-point tensor of the ``expected`` shape."""
    if not is_floating(state):
        check_floating(f"state {name}", state)
    if state.shape != expected:
        raise ValueError(
            f"state {name} has shape {tuple(state.shape)}, but the input asks for {tuple(expected)}; "
            "reset the state when the batch size or the feature size changes"
        )


def is_transformed(tensor: Tensor) -> bool:
    """Whether ``tensor`` belongs to a transformation of ``torch.func`` (vmap, grad, ...): its values cannot be read."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def is_from_inference(state: Tensor) -> bool:
    """Whether ``state`` was made in inference mode, which has ended: autograd takes a copy only."""
    if torch.compiler.is_compiling():
        return False
    return state.is_inference() and not torch.is_inference_mode_enabled()


def check_not_escaped(name: str, state: Tensor) -> None:
    """Raise RuntimeError if ``state`` was left behind by a transformation of ``torch.func`` that has ended."""
    if is_transformed(state) and not torch._C._are_functorch_transforms_active():
        raise RuntimeError(
            f"state {name} was computed inside a function that torch.func transformed (vmap, grad, ...) and has no "
            "values outside of it: reset the net at the end of that function"
        )
