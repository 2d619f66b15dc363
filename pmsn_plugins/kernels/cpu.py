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

_LIBRARY = Path(__file__).with_name("_cpu.so")


def _load() -> tuple[ctypes.CDLL | None, str]:
    if not _LIBRARY.exists():
        return None, (
            "the CPU kernels were not built when pmsn_plugins was installed; install again where a C++ compiler (g++, "
            "clang++) is found: pip install --force-reinstall --no-deps --no-cache-dir pmsn_plugins"
        )
    try:
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        return None, f"the CPU kernels cannot be loaded: {error}"
    library.pmsn_instruction_set.restype = ctypes.c_char_p
    for neuron in STRUCTURES:
        for direction in ("forward", "backward"):
            getattr(library, f"{neuron}_{direction}").argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.pmsn_surrogate.argtypes = (ctypes.c_longlong, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p)
    return library, f"fused kernels ({library.pmsn_instruction_set().decode()})"


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
