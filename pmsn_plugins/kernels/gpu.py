"""The CUDA kernels: compiled by CuPy (NVRTC) for the device, dtype and options at hand, and kept."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import STORAGE
from .plan import GPU_BLOCK, RESETS, Launch, Layout, gpu_launches, gpu_layout

_SOURCES = Path(__file__).with_name("csrc")
_MEMORY = {STORAGE[torch.float16]: "Half", STORAGE[torch.bfloat16]: "Bfloat16"}
_INSTALL = 'pip install "pmsn_plugins[cuda13]" (or "pmsn_plugins[cuda12]" for a CUDA 12 driver)'


@cache
def status() -> tuple[bool, str]:
    """Whether CUDA tensors can be computed by CuPy here, and why."""
    if not torch.cuda.is_available():
        built = "was built without CUDA" if torch.version.cuda is None else "finds no CUDA device"
        return False, f"PyTorch {built}; with an NVIDIA GPU: {_INSTALL}"
    if torch.version.hip is not None:
        return False, "CuPy kernels are for NVIDIA GPUs, this PyTorch is built for ROCm"
    if importlib.util.find_spec("cupy") is None:
        return False, f"CuPy is not installed: {_INSTALL}"
    try:
        import cupy

        cupy.cuda.nvrtc.getVersion()
        cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy raises many kinds for a missing library or a driver of another CUDA version
        return False, f"CuPy does not work here ({type(error).__name__}: {error}); {_INSTALL}"
    return True, f"fused CUDA kernels (CuPy {cupy.__version__})"


@cache
def source(name: str) -> str:
    """A CUDA source of ``csrc`` with its headers written out, each once."""
    seen = set()

    def inline(file: str) -> str:
        if file in seen:
            return ""
        seen.add(file)
        text = (_SOURCES / file).read_text(encoding="utf-8").replace("#pragma once\n", "")
        return re.sub(r'#include "(\w+\.h)"\n', lambda match: inline(match[1]), text)

    return inline(name)


def constants(kernel: str, args: ctypes.Structure) -> dict[str, Any]:
    """What a kernel is compiled for."""
    if kernel.startswith("discretize"):
        return {"REAL": "double" if args.is_double else "float"}
    common = {
        "REAL": "double" if args.is_double else "float",
        "MEMORY": _MEMORY.get(args.x_storage, "Plain"),
        "SURROGATE": args.surrogate,
        "INTERVAL": args.interval,
    }
    if kernel.startswith("pmsn"):
        return {**common, "K": args.k, "RESET": args.reset, "FIRE": args.fire, "STATE": int(args.h_real is not None)}
    return {**common, "PRE_RESET": args.pre_reset, "DETACH": args.detach_reset, "STRICT": args.strict}


class CupyDevice:
    """A CUDA device, on PyTorch's current stream."""

    def layout(self, x: Tensor, N: int, C: int, S: int, interval: int, reset_mode: str) -> Layout:
        cut_time = reset_mode in ("modulo", "none")
        return gpu_layout(len(x), N, C, S, interval, _multiprocessors(x.device), cut_time)

    def run(self, kernel: str, args: ctypes.Structure, layout: Layout | None, x: Tensor) -> None:
        neuron = kernel.split("_")[0]
        compiled_for = tuple(constants(kernel, args).items())
        if layout is None:
            launches, buffers = [Launch(kernel, (-(-args.C // GPU_BLOCK), 1, 1), GPU_BLOCK)], []
        else:
            sums = 1 + 4 * args.k if neuron == "pmsn" else 2
            launches = gpu_launches(kernel, layout, RESETS[args.reset] if neuron == "pmsn" else None, sums)
            buffers = _temporary(kernel, args, layout, sums, x)
        self.launch(neuron, compiled_for, launches, args, x.device)
        del buffers  # their memory is not reused before the kernels have run: both follow the same stream

    def launch(
        self, neuron: str, compiled_for: tuple, launches: list[Launch], args: ctypes.Structure, device: torch.device
    ) -> None:
        """Launch the kernels one after the other, with the arguments by value."""
        by_value = np.frombuffer(bytes(args), dtype=f"V{ctypes.sizeof(args)}")
        with torch.cuda.device(device), _cupy_stream(torch.cuda.current_stream(device).cuda_stream):
            module = _module(neuron, compiled_for, device.index)
            for name, grid, threads in launches:
                module.get_function(name)(grid, (threads, 1, 1), (by_value,))


class _TorchStream:
    """PyTorch's stream in the protocol that CuPy 14 asks for."""

    def __init__(self, address: int) -> None:
        self.address = address

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.address


def _cupy_stream(address: int) -> Any:
    import cupy

    if hasattr(cupy.cuda.Stream, "from_external"):
        return cupy.cuda.Stream.from_external(_TorchStream(address))
    return cupy.cuda.ExternalStream(address)


def _temporary(kernel: str, args: ctypes.Structure, layout: Layout, sums: int, x: Tensor) -> list[Tensor]:
    """Memory between the launches of one call, entered into ``args``."""
    dtype = torch.float64 if args.is_double else torch.float32
    buffers = []

    def give(field: str, *shape: int) -> None:
        buffers.append(torch.empty(shape, dtype=dtype, device=x.device))
        setattr(args, field, buffers[-1].data_ptr())

    if kernel.endswith("backward"):
        give("partials", layout.items, layout.slots, sums)
        if layout.segments > 1:
            give("carries", layout.segments - 1, 1 + 4 * args.k, layout.M)
    elif layout.segments > 1 and args.checkpoints is None:
        give("checkpoints", (layout.T - 1) // layout.interval, 1 + 2 * args.k, layout.M)
    return buffers


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _module(neuron: str, compiled_for: tuple, device: int) -> Any:
    """Compiled at its first use (CuPy keeps the binary on disk too); a module belongs to one device."""
    import cupy

    return cupy.RawModule(code=source(f"gpu_{neuron}.cu"), options=compile_options(compiled_for))


def compile_options(compiled_for: tuple) -> tuple[str, ...]:
    """NVRTC options for the constants of a kernel."""
    return ("-std=c++17", *(f"-DPMSN_{name}={value}" for name, value in compiled_for))
