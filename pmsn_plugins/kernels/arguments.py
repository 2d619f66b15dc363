"""The arguments of the C++ and CUDA kernels: the structs of ``csrc/args.h``, derived from the records of :mod:`.calls`
and filled from a call."""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from typing import Any, get_args, get_type_hints

import torch

from .calls import (
    Call,
    DiscretizeResults,
    DiscretizeTensors,
    NoOptions,
    PmsnOptions,
    PmsnResults,
    PmsnTensors,
    Role,
    Sizes,
    TclifOptions,
    TclifRecurrentOptions,
    TclifRecurrentResults,
    TclifRecurrentTensors,
    TclifResults,
    TclifTensors,
)
from .plan import Layout

STORAGE = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
"""The values of ``enum Storage``."""

_KINDS = {bool: ctypes.c_longlong, str: ctypes.c_longlong, float: ctypes.c_double}


@cache
def roles(record: type) -> dict[str, Role]:
    """The tensors of a record, in order."""
    return {name: get_args(hint)[1] for name, hint in get_type_hints(record, include_extras=True).items()}


@cache
def kinds(record: type) -> dict[str, type]:
    """The Python types of a record's fields, in order."""
    return get_type_hints(record)


@cache
def choices(record: type) -> dict[str, tuple[str, ...]]:
    """What each option that is a word can be."""
    hints = get_type_hints(record, include_extras=True)
    return {name: get_args(hints[name])[1] for name, kind in kinds(record).items() if kind is str}


def gradient_names(record: type) -> tuple[str, ...]:
    """``grad_*`` of the tensors that have a gradient."""
    return tuple(f"grad_{name}" for name, role in roles(record).items() if role.gradient != "never")


def _structure(
    name: str, head: tuple[str, ...], tensors: type, options: type, results: type, temporary: tuple[str, ...] = ()
) -> type[ctypes.Structure]:
    # whole numbers before fractions; an int is part of the layout
    numbers_ = [(field, _KINDS[kind]) for field, kind in kinds(options).items() if kind is not int]
    numbers_.sort(key=lambda field: field[1] is ctypes.c_double)
    pointers = (
        *(*roles(tensors), *roles(results)),
        *(*gradient_names(results), *gradient_names(tensors), *temporary),
    )
    fields = [*((field, ctypes.c_longlong) for field in head), *numbers_, *((f, ctypes.c_void_p) for f in pointers)]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


HEADS = {
    "pmsn": ("is_double", "k", "x_storage", "out_storage"),
    "tclif": ("is_double", "x_storage"),
    "tclif_recurrent": ("is_double", "x_storage"),
    "discretize": ("C", "k", "is_double"),
}
"""The numbers that a struct begins with, after the layout if it has one."""

STRUCTURES = {
    "pmsn": _structure(
        *("PmsnArgs", (*Layout._fields, *HEADS["pmsn"]), PmsnTensors, PmsnOptions, PmsnResults),
        temporary=("partials", "carries"),
    ),
    "tclif": _structure(
        *("TclifArgs", (*Layout._fields, *HEADS["tclif"]), TclifTensors, TclifOptions, TclifResults),
        temporary=("partials",),
    ),
    "tclif_recurrent": _structure(
        *("TclifRecurrentArgs", (*Layout._fields, *HEADS["tclif_recurrent"])),
        *(TclifRecurrentTensors, TclifRecurrentOptions, TclifRecurrentResults),
    ),
    "discretize": _structure("DiscretizeArgs", HEADS["discretize"], DiscretizeTensors, NoOptions, DiscretizeResults),
}
"""The structs by neuron: sizes, options (whole numbers, then fractions), tensors, results, the results' gradients, the
tensors' gradients, memory between the kernels of one call."""


def numbers(options: Any) -> tuple[int | float, ...]:
    """Options as the structs have them.

    Raises:
        ValueError: a word that is not among its choices, or words that exclude each other.
    """
    options.check()
    record: type = type(options)
    whole, fractions = [], []
    for (name, kind), value in zip(kinds(record).items(), options, strict=True):
        if kind is str:
            allowed = choices(record)[name]
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
            whole.append(allowed.index(value))
        elif kind is bool:
            whole.append(int(value))
        elif kind is float:
            fractions.append(value)
    return (*whole, *fractions)


def head(
    neuron: str, layout: Layout | None, options: Any, sizes: Sizes, memory: torch.dtype, real: torch.dtype
) -> bytes:
    """What a struct has before its tensors; ``memory`` is the dtype of the input. Kernels that know no time have no
    layout."""
    known = {
        "is_double": real == torch.float64,
        "C": sizes.C,
        "k": sizes.k,
        "x_storage": STORAGE[memory],
        "out_storage": STORAGE[real if options.sends_membrane else memory],
    }
    values = (*(layout or ()), *(known[name] for name in HEADS[neuron]), *numbers(options))
    fields: Any = STRUCTURES[neuron]._fields_  # pairs, of a simple type each
    return struct.pack("".join(kind._type_ for _, kind in fields[: len(values)]), *values)


def packed(head: bytes, call: Call) -> bytes:
    """The struct of a call, as it lies in memory: pointers and numbers all take eight bytes."""
    tensors = (*call.tensors, *call.results, *call.gradients, *call.tensor_gradients)
    # the address of an empty tensor is null; some are known by their address alone
    addresses = [0 if t is None else t if type(t) is int else t.data_ptr() for t in tensors]
    pointers = struct.pack(f"{len(tensors)}P", *addresses)
    return (head + pointers).ljust(ctypes.sizeof(STRUCTURES[call.neuron]), b"\0")


def fill(head: bytes, call: Call) -> ctypes.Structure:
    """The same, to be changed."""
    return STRUCTURES[call.neuron].from_buffer_copy(packed(head, call))
