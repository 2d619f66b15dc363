"""The CUDA kernels: compiled by CuPy (NVRTC) for the device, dtype and options at hand, and kept."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import re
import threading
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import fill, head, numbers
from .calls import Call, DiscretizeResults, DiscretizeTensors, Geometry, NoOptions, PmsnTensors, Sizes
from .plan import GPU_BLOCK, GPU_REDUCERS, Launch, Layout, gpu_launches, gpu_layout, gpu_takes_response

_SOURCES = Path(__file__).with_name("csrc")
_REAL = {torch.float32: "float", torch.float64: "double"}
_MEMORY = {torch.float16: "Half", torch.bfloat16: "Bfloat16"}
_RECORDED = ("v_seq", "grad_v_seq")
_HIDDEN = ("h_real_after", "h_imag_after", "grad_h_real_after", "grad_h_imag_after")
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

        compiler = "{}.{}".format(*cupy.cuda.nvrtc.getVersion())
        cupy.cuda.runtime.getDeviceCount()
        driver = cupy.cuda.runtime.driverGetVersion()
    except Exception as error:  # CuPy raises many kinds for a missing library or a driver of another CUDA version
        return False, f"CuPy does not work here ({type(error).__name__}: {error}); {_INSTALL}"
    versions = f"CuPy {cupy.__version__}, NVRTC {compiler}, a driver for CUDA {driver // 1000}.{driver % 1000 // 10}"
    return True, f"fused CUDA kernels ({versions})"


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


class Program(NamedTuple):
    """What is compiled for a call.

    Attributes:
        name: of the source, without ``gpu_`` and ``.cu``.
        constants: what it is compiled for: of all that is fixed for a layer, what its source asks for.
    """

    name: str
    constants: tuple[tuple[str, Any], ...]

    @property
    def source(self) -> str:
        return source(f"gpu_{self.name}.cu")

    @property
    def options(self) -> tuple[str, ...]:
        """For NVRTC."""
        return ("-std=c++17", "-default-device", *(f"-DPMSN_{name}={value}" for name, value in self.constants))


class Work(NamedTuple):
    """What computes a call: a program, its kernels in order, and the sums that backward leaves for each channel."""

    program: Program
    launches: list[Launch]
    sums: int


class Kind(NamedTuple):
    """All of a call that its work depends on, besides its layout."""

    neuron: str
    direction: str
    options: Any
    sizes: Sizes
    memory: torch.dtype
    real: torch.dtype
    has_state: bool
    recorded: bool
    """Whether the membranes after every step are asked for, or their gradients given."""
    hidden: bool
    """Whether hidden states are asked for, or their gradients given."""


@lru_cache(1024)
def work(kind: Kind, layout: Layout | None) -> Work:
    """What computes a call."""
    neuron, direction, options, sizes, memory, real, has_state, recorded, hidden = kind
    known = {"REAL": _REAL[real], "K": sizes.k, "THREADS": GPU_BLOCK, "REDUCERS": GPU_REDUCERS}
    words = (name for name, value in zip(options._fields, options, strict=True) if isinstance(value, (str, bool)))
    known.update(zip((word.upper() for word in words), numbers(options), strict=False))
    if layout is None:
        launches = [Launch(f"{neuron}_{direction}", (-(-sizes.C // GPU_BLOCK), 1, 1), GPU_BLOCK)]
        return Work(_program(neuron, known), launches, 0)
    known["MEMORY"] = _MEMORY.get(memory, "Plain")
    known.update(INTERVAL=layout.interval, STATE=int(has_state), RECORDED=int(recorded), HIDDEN=int(hidden), T=layout.T)
    known["STEPS"] = min(layout.T, layout.interval)
    sums = sizes.sums
    from_rest = not has_state and not hidden
    if from_rest and gpu_takes_response(layout.T, sizes.k, real == torch.float64, direction):
        neuron, sums = f"{neuron}_short", layout.T
    launches = gpu_launches(neuron, direction, layout, options.carried(direction) or (), sizes.k)
    return Work(_program(f"{neuron}_{direction}", known), launches, sums)


def _program(name: str, known: dict[str, Any]) -> Program:
    asked = _macros(f"gpu_{name}.cu")
    return Program(name, tuple((word, value) for word, value in known.items() if word in asked))


_head = lru_cache(1024)(head)


@cache
def _macros(name: str) -> frozenset[str]:
    """The constants that a source and its headers leave to the compiler's options."""
    return frozenset(re.findall(r"\bPMSN_(\w+)", source(name)))


class CupyDevice:
    """A CUDA device, on PyTorch's current stream."""

    name = "cupy"
    device_type = "cuda"
    takes_layers = True

    multiprocessors: int | None = None
    """For tests; None: as many as the device has."""

    def status(self) -> tuple[bool, str]:
        return status()

    def run(self, call: Call) -> None:
        for part in _parts(call):
            self._run(part)

    def _run(self, call: Call) -> None:
        sizes, memory, real = call.geometry.sizes, call.first.dtype, call.tensors.real
        layout = self._layout(call) if call.geometry.T else None
        args = fill(_head(call.neuron, layout, call.options, sizes, memory, real), call)
        recorded, hidden = (any([getattr(args, name, None) for name in names]) for names in (_RECORDED, _HIDDEN))
        kind = Kind(call.neuron, call.direction, call.options, sizes, memory, real, call.has_state, recorded, hidden)
        program, launches, sums = work(kind, layout)
        buffers = _temporary(call, args, layout, sums) if layout is not None else []
        self.launch(program, launches, args, call.first.device)
        del buffers  # their memory is not reused before the kernels have run: both follow the same stream

    def launch_once(self, device: torch.device) -> None:
        """The smallest kernel there is."""
        zero = torch.zeros(1, 1, device=device)
        parameters = DiscretizeTensors(zero[0], *(zero for _ in range(6)))
        results = DiscretizeResults(*(torch.empty_like(zero) for _ in range(4)))
        geometry = Geometry(0, (), Sizes(1, 1, 1, 1), 0, 0)
        self.run(Call("discretize", "forward", parameters, NoOptions(), results, (), (), geometry, False))
        change = results.E_real.item()  # waits
        if abs(change - math.expm1(-1)) > 1e-4:
            raise RuntimeError(f"exp(-1) - 1 came out as {change}")

    def _layout(self, call: Call) -> Layout:
        T, _, sizes, interval, _ = call.geometry
        multiprocessors = self.multiprocessors or _multiprocessors(call.first.device)
        cut_time = call.options.carried(call.direction) is not None
        return gpu_layout(T, sizes.N, sizes.C, sizes.S, interval, multiprocessors, cut_time)

    def launch(self, program: Program, launches: list[Launch], args: ctypes.Structure, device: torch.device) -> None:
        """Launch the kernels one after the other, with the arguments by value."""
        if torch.cuda.current_device() != device.index:
            with torch.cuda.device(device):
                return self.launch(program, launches, args, device)
        launch = _launch_function()
        stream = torch._C._cuda_getCurrentRawStream(device.index)
        parameters = ctypes.c_void_p(ctypes.addressof(args))  # a kernel has one
        for name, (x, y, z), threads in launches:
            address = _kernel(program, name, device.index)
            launch(address, x, y, z, threads, 1, 1, 0, stream, ctypes.addressof(parameters), 0)


class _Thread(threading.local):
    """Whether the driver knows the thread: what PyTorch does leaves that to its first launch."""

    is_known = False


_thread = _Thread()


def _launch_function() -> Any:
    """The driver's own, without CuPy's arrays and streams around it: they take longer than the launch."""
    driver, runtime = _cupy_interfaces()
    if not _thread.is_known:
        runtime.setDevice(runtime.getDevice())
        _thread.is_known = True
    return driver.launchKernel


@cache
def _cupy_interfaces() -> tuple[Any, Any]:
    from cupy.cuda import driver, runtime

    return driver, runtime


def _parts(call: Call) -> Iterator[Call]:
    """A call of a layer as calls on coefficients, and on the parameters that these are made of. What lies between is
    given by its address: to make tensors of it would take longer than to compute it."""
    if call.neuron != "pmsn_layer":
        yield call
        return
    modes, rest = call.tensors.log_decay, call.tensors[8:]
    is_forward = call.direction == "forward"
    memory = modes.new_empty((4 if is_forward else 8) * modes.numel())
    start, size = memory.data_ptr(), modes.nbytes
    coefficients = DiscretizeResults(start, start + size, start + 2 * size, start + 3 * size)
    parameters = DiscretizeTensors._make(call.tensors[1:8])
    timeless = Geometry(0, (), call.geometry.sizes, 0, 0)
    yield Call("discretize", "forward", parameters, NoOptions(), coefficients, (), (), timeless, False)
    inner = call._replace(neuron="pmsn", tensors=PmsnTensors._make((call.first, *coefficients, *rest)))
    if is_forward:
        yield inner
        return
    gradients = [address + 4 * size for address in coefficients]
    grad_x, *made = call.tensor_gradients
    yield inner._replace(tensor_gradients=(grad_x, *gradients, *made[7:]))
    yield Call("discretize", "backward", parameters, NoOptions(), _NOTHING, gradients, made[:7], timeless, False)


_NOTHING: Any = (None,) * len(DiscretizeResults._fields)


def _temporary(call: Call, args: ctypes.Structure, layout: Layout, sums: int) -> list[Tensor]:
    """Memory between the launches of one call, entered into ``args``; ``sums`` are made for each channel."""
    sizes, buffers = call.geometry.sizes, []

    def give(field: str, *shape: int) -> None:
        buffers.append(torch.empty(shape, dtype=call.tensors.real, device=call.first.device))
        setattr(args, field, buffers[-1].data_ptr())

    if call.direction == "backward":
        if args.grad_out is None:
            dtype = call.tensors.real if call.options.sends_membrane else call.first.dtype
            buffers.append(torch.zeros(call.first.shape, dtype=dtype, device=call.first.device))
            args.grad_out = buffers[-1].data_ptr()
        give("partials", layout.items, layout.slots, sums)
        if layout.segments > 1:
            give("carries", layout.segments - 1, sizes.adjoint, layout.M)
    elif layout.segments > 1 and args.checkpoints is None:
        give("checkpoints", (layout.T - 1) // layout.interval, sizes.state, layout.M)
    return buffers


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def _module(program: Program, device: int) -> Any:
    """Compiled at its first use (CuPy keeps the binary on disk too); a module belongs to one device."""
    import cupy

    return cupy.RawModule(code=program.source, options=program.options)


@cache
def _kernel(program: Program, name: str, device: int) -> int:
    """Its address for the driver."""
    return _module(program, device).get_function(name).kernel.ptr
