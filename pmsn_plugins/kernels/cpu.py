"""The CPU kernels: a C library without Python or PyTorch inside, called through ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from .plan import Layout, cpu_layout

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
    for name in ("pmsn_forward", "pmsn_backward", "tclif_forward", "tclif_backward"):
        getattr(library, name).argtypes = (ctypes.c_void_p, ctypes.c_int)
    for name in ("pmsn_discretize", "pmsn_discretize_backward"):
        getattr(library, name).argtypes = (ctypes.c_void_p,)
        getattr(library, name).restype = None
    library.pmsn_surrogate.argtypes = (ctypes.c_longlong, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p)
    return library, f"fused kernels ({library.pmsn_instruction_set().decode()})"


library, reason = _load()
"""The library, or None, and what there is to say about it."""


class CpuDevice:
    """The CPU, with as many threads as PyTorch has."""

    def layout(self, x: Tensor, N: int, C: int, S: int, interval: int, reset_mode: str) -> Layout:
        cut_time = reset_mode == "modulo"
        return cpu_layout(len(x), N, C, S, interval, torch.get_num_threads(), cut_time)

    def run(self, kernel: str, args: ctypes.Structure, layout: Layout | None, x: Tensor) -> None:
        address = ctypes.addressof(args)
        if layout is None:
            getattr(library, f"pmsn_{kernel}")(address)
        elif getattr(library, kernel)(address, torch.get_num_threads()):
            raise MemoryError(f"{kernel}: out of memory")
