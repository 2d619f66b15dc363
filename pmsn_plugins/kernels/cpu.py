"""The CPU kernels: a C library without Python or PyTorch inside, called through ctypes."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .arguments import STRUCTURES, fill, head
from .calls import Call, Geometry
from .plan import cpu_layout
from .sources import sources_stamp

_LIBRARY = Path(__file__).with_name("_cpu.so")
_SOURCES = Path(__file__).with_name("csrc")


def _load() -> tuple[ctypes.CDLL | None, str]:
    if not _LIBRARY.exists():
        return None, (
            "the CPU kernels were not built when pmsn_plugins was installed; install again where a C++ compiler (g++, "
            "clang++) is found: pip install --force-reinstall --no-deps --no-cache-dir pmsn_plugins"
        )
    try:
        library = ctypes.CDLL(str(_LIBRARY))
        misfit = _declare(library)
    except OSError as error:
        return None, f"the CPU kernels cannot be loaded: {error}"
    if misfit:
        return None, (
            f"the CPU kernels do not fit the Python beside them ({misfit}); rebuild them: pip install -e . --no-deps "
            "in a clone, or install pmsn_plugins again"
        )
    return library, f"fused kernels ({library.pmsn_instruction_set().decode()})"


def _declare(library: ctypes.CDLL) -> str | None:
    """Declare what is called, or say why the library is not the one that belongs to this package."""
    try:
        library.pmsn_sources.restype = library.pmsn_instruction_set.restype = ctypes.c_char_p
        library.pmsn_argument_bytes.argtypes = (ctypes.c_char_p,)
        library.pmsn_argument_bytes.restype = ctypes.c_longlong
        for neuron in STRUCTURES:
            for direction in ("forward", "backward"):
                getattr(library, f"{neuron}_{direction}").argtypes = (ctypes.c_void_p, ctypes.c_int)
        library.pmsn_surrogate.argtypes = (ctypes.c_longlong, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p)
    except AttributeError as error:  # it names the function
        return str(error)
    if library.pmsn_sources().decode() != sources_stamp(_SOURCES):
        return "they were compiled from other sources"
    for arguments in STRUCTURES.values():
        if library.pmsn_argument_bytes(arguments.__name__.encode()) != ctypes.sizeof(arguments):
            return f"{arguments.__name__} has another size there"
    return None


library, reason = _load()
"""The library, or None, and what there is to say about it."""


_CARRIED = frozenset(("hidden", "membrane", "adjoint"))
"""What the library can carry from one segment of time to the next."""


class CpuDevice:
    """The CPU, with as many threads as PyTorch has."""

    name = "cpu"
    device_type = "cpu"

    def status(self) -> tuple[bool, str]:
        return library is not None, reason

    def run(self, call: Call) -> None:
        threads = torch.get_num_threads()
        memory = call.first.dtype
        args = fill(_head(call.neuron, call.options, call.geometry, memory, call.tensors.real, threads), call)
        if getattr(library, call.name)(ctypes.addressof(args), threads):
            raise MemoryError(f"{call.name}: out of memory")


@lru_cache(1024)
def _head(
    neuron: str, options: Any, geometry: Geometry, memory: torch.dtype, real: torch.dtype, threads: int
) -> tuple[int | float, ...]:
    T, _, sizes, interval, _ = geometry
    layout = None
    if T:
        forward, backward = (options.carried(direction) for direction in ("forward", "backward"))
        cut_time = forward is not None and {*forward, *backward} <= _CARRIED
        layout = cpu_layout(T, sizes.N, sizes.C, sizes.S, interval, threads, cut_time)
    return head(neuron, layout, options, sizes, memory, real)
