"""The CPU kernels: a C library without Python or PyTorch inside, called through ctypes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from .arguments import STRUCTURES, fill
from .calls import Call
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
    for neuron in STRUCTURES:
        for direction in ("forward", "backward"):
            getattr(library, f"{neuron}_{direction}").argtypes = (ctypes.c_void_p, ctypes.c_int)
    library.pmsn_surrogate.argtypes = (ctypes.c_longlong, ctypes.c_void_p, ctypes.c_longlong, ctypes.c_void_p)
    return library, f"fused kernels ({library.pmsn_instruction_set().decode()})"


library, reason = _load()
"""The library, or None, and what there is to say about it."""


class CpuDevice:
    """The CPU, with as many threads as PyTorch has."""

    name = "cpu"
    device_type = "cpu"

    _CARRIED = frozenset(("hidden", "membrane", "adjoint"))
    """What the library can carry from one segment of time to the next."""

    def status(self) -> tuple[bool, str]:
        return library is not None, reason

    def run(self, call: Call) -> None:
        layout = self._layout(call) if call.geometry.T else None
        args = fill(call, layout)
        if getattr(library, call.name)(ctypes.addressof(args), torch.get_num_threads()):
            raise MemoryError(f"{call.name}: out of memory")

    def _layout(self, call: Call) -> Layout:
        T, _, sizes, interval, _ = call.geometry
        forward, backward = (call.options.carried(direction) for direction in ("forward", "backward"))
        cut_time = forward is not None and {*forward, *backward} <= self._CARRIED
        return cpu_layout(T, sizes.N, sizes.C, sizes.S, interval, torch.get_num_threads(), cut_time)
