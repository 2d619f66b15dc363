"""The CPU kernels: a C library without Python or PyTorch inside, called through ctypes."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .arguments import STRUCTURES, head, packed
from .calls import Call, Geometry
from .plan import cpu_layout
from .sources import sources_stamp

_LIBRARY = Path(__file__).with_name("_cpu.so")
_SOURCES = Path(__file__).with_name("csrc")

INSTRUCTION_SETS = ("avx512", "avx2", "baseline")
"""What the library may be compiled for, the widest lanes first; it takes the first that the processor has."""


def _load() -> tuple[ctypes.CDLL | None, str]:
    if not _LIBRARY.exists():
        return None, (
            "the CPU kernels were not built when pmsn_plugins was installed; install again where a C++ compiler (g++, "
            "clang++) is found: pip install --force-reinstall --no-deps --no-cache-dir pmsn_plugins"
        )
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        misfit = declare(library)
    except OSError as error:
        return None, f"the CPU kernels cannot be loaded: {error}"
    if not misfit and library.pmsn_sources().decode() != sources_stamp(_SOURCES):
        misfit = "they were compiled from other sources"
    if misfit:
        return None, (
            f"the CPU kernels do not fit the Python beside them ({misfit}); rebuild them: pip install -e . --no-deps "
            "in a clone, or install pmsn_plugins again"
        )
    _force_instruction_set(library)
    return library, f"fused kernels ({library.pmsn_instruction_set().decode()})"


def _force_instruction_set(library: ctypes.CDLL) -> None:
    """Take the one that the environment variable PMSN_ISA names, if there is one.

    Raises:
        ValueError: the library or the processor does not have it.
    """
    wanted = os.environ.get("PMSN_ISA")
    if not wanted or library.pmsn_use_instruction_set(wanted.encode()) == 0:
        return
    there = [repr(name) for name in INSTRUCTION_SETS if library.pmsn_use_instruction_set(name.encode()) == 0]
    raise ValueError(f"the environment variable PMSN_ISA must be {' or '.join(there)} on this machine, got {wanted!r}")


def declare(library: ctypes.CDLL) -> str | None:
    """Declare what is called, or say why the library cannot be called from here."""
    try:
        library.pmsn_sources.restype = library.pmsn_instruction_set.restype = ctypes.c_char_p
        library.pmsn_argument_bytes.argtypes = (ctypes.c_char_p,)
        library.pmsn_argument_bytes.restype = ctypes.c_longlong
        for neuron in STRUCTURES:
            for direction in ("forward", "backward"):
                getattr(library, f"{neuron}_{direction}").argtypes = (ctypes.c_void_p, ctypes.c_int)
        library.pmsn_use_instruction_set.argtypes = (ctypes.c_char_p,)
        library.pmsn_surrogate.argtypes = (ctypes.c_longlong, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p)
    except AttributeError as error:  # it names the function
        return str(error)
    for arguments in STRUCTURES.values():
        if library.pmsn_argument_bytes(arguments.__name__.encode()) != ctypes.sizeof(arguments):
            return f"{arguments.__name__} has another size there"
    return None


compare = ctypes.PyDLL("msvcrt" if os.name == "nt" else None).memcmp
"""Of the C library. It keeps the interpreter's lock: for a few bytes, to let it go would take as long."""
compare.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


def same_bits(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether contiguous tensors, alike in pairs, hold the same."""
    return all([compare(a.data_ptr(), b.data_ptr(), a.nbytes) == 0 for a, b in zip(first, second, strict=True)])


library, reason = _load()
"""The library, or None, and what there is to say about it."""


_CARRIED = frozenset(("hidden", "membrane", "adjoint"))
"""What the library can carry from one segment of time to the next."""


class CpuDevice:
    """The CPU, with as many threads as PyTorch has."""

    name = "cpu"
    device_type = "cpu"
    takes_layers = False

    def status(self) -> tuple[bool, str]:
        return library is not None, reason

    def run(self, call: Call) -> None:
        threads = torch.get_num_threads()
        if getattr(library, call.name)(arguments(call, threads), threads):
            raise MemoryError(f"{call.name}: out of memory")


class Repeated:
    """A call, to be repeated with another input and another output, and ``states`` other states before and after."""

    __slots__ = ("_addresses", "_function", "_kept", "_name", "_parts", "threads")

    def __init__(self, call: Call, states: int = 0) -> None:
        self.threads, self._name, self._function = torch.get_num_threads(), call.name, getattr(library, call.name)
        whole, structure = arguments(call, self.threads), STRUCTURES[call.neuron]
        # the states before lie behind one another, and so do what is sent and the states after
        x, v, out = structure.x.offset, structure.v.offset, structure.out.offset
        self._parts = whole[:x], whole[x + 8 : v], whole[v + 8 * states : out], whole[out + 8 + 8 * states :]
        self._addresses = struct.Struct(f"{states}P").pack, struct.Struct(f"{1 + states}P").pack
        # whose addresses are there
        self._kept = call.tensors[1:], call.results[1:]
        if states:
            first = call.tensors._fields.index("v")
            self._kept = (*call.tensors[1:first], *call.tensors[first + states :]), call.results[1 + states :]

    def run(self, x: Tensor, out: Tensor, before: Sequence[Tensor] = (), after: Sequence[Tensor] = ()) -> None:
        """All contiguous, and as large as the call's."""
        first, second, third, last = self._parts  # and not one buffer: two threads may call at once
        states, results = self._addresses
        given = states(*[s.data_ptr() for s in before]), results(out.data_ptr(), *[s.data_ptr() for s in after])
        if self._function(
            b"".join((first, _address(x.data_ptr()), second, given[0], third, given[1], last)), self.threads
        ):
            raise MemoryError(f"{self._name}: out of memory")


_address = struct.Struct("P").pack


def arguments(call: Call, threads: int) -> bytes:
    """The struct that the library is called with."""
    head = _head(call.neuron, call.options, call.geometry, call.first.dtype, call.tensors.real, threads)
    return packed(head, call)


@lru_cache(1024)
def _head(neuron: str, options: Any, geometry: Geometry, memory: torch.dtype, real: torch.dtype, threads: int) -> bytes:
    T, _, sizes, interval, _ = geometry
    layout = None
    if T:
        forward, backward = (options.carried(direction) for direction in ("forward", "backward"))
        cut_time = forward is not None and {*forward, *backward} <= _CARRIED
        # few neurons: every lane counts, but TC-LIF takes as long for four of them as for one
        narrowest = 64 if neuron == "tclif" else 16
        layout = cpu_layout(T, sizes.N, sizes.C, sizes.S, interval, threads, cut_time, narrowest)
    return head(neuron, layout, options, sizes, memory, real)
