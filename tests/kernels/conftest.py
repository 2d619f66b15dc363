"""Comparisons run on the CPU kernels, on the CUDA kernels emulated on the CPU, and on a GPU where there is one."""

import ctypes
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from pmsn_plugins import kernels
from pmsn_plugins.functional import (
    PMSNCoefficients,
    PMSNState,
    TCLIFRecurrentState,
    TCLIFState,
    discretize,
    pmsn_initial_parameters,
)
from pmsn_plugins.kernels import cpu, gpu


class Backend(NamedTuple):
    name: str
    device: str
    emulated: bool


class EmulatedDevice(gpu.CupyDevice):
    """The CUDA kernels as C++: compiled by g++ and run thread by thread."""

    multiprocessors = 1

    def __init__(self, folder: Path):
        self.folder = folder
        self.libraries = {}

    def launch(self, program, launches, args, device):
        library = self.library(program, type(args).__name__)
        for name, grid, threads in launches:
            kernel = ctypes.cast(getattr(library, name), ctypes.c_void_p)
            library.emulate(kernel, ctypes.c_void_p(ctypes.addressof(args)), *grid, threads)

    def library(self, program, arguments):
        if program not in self.libraries:
            emulator = (Path(__file__).parent / "cuda_emulator.h").read_text()
            text = f"{emulator}\n{program.source}\nEMULATE({arguments})\n"
            path = self.folder / (hashlib.sha1(f"{text}{program.options}".encode()).hexdigest() + ".so")
            if not path.exists():
                unfinished = path.with_suffix(f".{os.getpid()}")
                # where it is fortified, longjmp must not lead to another stack
                options = "-Og", "-U_FORTIFY_SOURCE", "-w", "-shared", "-fPIC", "-std=c++17", *program.options[2:]
                command = ["g++", "-x", "c++", *options, "-", "-o", str(unfinished)]
                subprocess.run(command, input=text, text=True, check=True, capture_output=True)
                unfinished.replace(path)
            self.libraries[program] = ctypes.CDLL(str(path))
        return self.libraries[program]


@pytest.fixture(scope="session")
def emulated_device(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to emulate the CUDA kernels with")
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # what one worker has compiled the others load
        folder = folder.parent
    folder = folder / "emulated"
    folder.mkdir(exist_ok=True)
    return EmulatedDevice(folder)


def needs_cpu_kernels():
    if cpu.library is None:  # one that is there and does not fit is a fault, not a machine without a compiler
        (pytest.fail if cpu._LIBRARY.exists() else pytest.skip)(cpu.reason)


@pytest.fixture
def cpu_kernels():
    needs_cpu_kernels()


@pytest.fixture
def emulated(monkeypatch, emulated_device):
    """The CPU operators run the CUDA kernels."""
    monkeypatch.setattr(cpu, "library", cpu.library or object())
    monkeypatch.setattr(cpu.CpuDevice, "run", lambda self, call: emulated_device.run(call))
    monkeypatch.setattr(cpu.CpuDevice, "takes_layers", True)
    return emulated_device


@pytest.fixture(params=["cpu", "emulated", pytest.param("cupy", marks=pytest.mark.gpu)])
def backend(request):
    if request.param == "cupy":
        if not gpu.status()[0]:
            pytest.skip(gpu.status()[1])
        return Backend("cupy", "cuda", False)
    if request.param == "cpu":
        needs_cpu_kernels()
        return Backend("cpu", "cpu", False)
    request.getfixturevalue("emulated")
    return Backend("cpu", "cpu", True)


@pytest.fixture(params=["torch", "baseline", "avx2", "avx512", "emulated", "emulated, time cut"])
def every_backend(request, monkeypatch):
    """Every one that there is without a GPU: also the reference, and the CPU kernels in all instruction sets."""
    if request.param == "torch":
        yield Backend("torch", "cpu", False)
    elif request.param.startswith("emulated"):
        device = request.getfixturevalue("emulated")
        if request.param != "emulated":
            monkeypatch.setattr(type(device), "multiprocessors", 1000)
        yield Backend("cpu", "cpu", True)
    else:
        needs_cpu_kernels()
        if cpu.library.pmsn_use_instruction_set(request.param.encode()):
            pytest.skip(f"this processor has no {request.param}")
        yield Backend("cpu", "cpu", False)
        cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())


def pmsn_case(shape, k, dtype, with_state, device="cpu"):
    """(x_seq, coefficients, state) of random numbers, where slow and fast modes both matter."""
    generator = torch.Generator().manual_seed(sum(shape) + k)
    coefficients = discretize(pmsn_initial_parameters(shape[2], k + 1, generator=generator, dtype=torch.float64))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    shapes = (shape[1:], (k, *shape[1:]), (k, *shape[1:]))
    state = tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def put(tensors):
        return (t.to(device, dtype) for t in tensors)

    return x.to(device, dtype), PMSNCoefficients(*put(coefficients)), PMSNState(*put(state)) if with_state else None


def tclif_case(shape, coupling_shape, dtype, with_state, device="cpu"):
    """(x_seq, b1, b2, state) of random numbers."""
    generator = torch.Generator().manual_seed(sum(shape))

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    state = TCLIFState(draw(shape[1:]), draw(shape[1:])) if with_state else None
    return draw(shape), -torch.sigmoid(draw(coupling_shape)), torch.sigmoid(draw(coupling_shape)), state


def recurrent_case(shape, dtype, with_state, per_channel=False):
    """(x_seq, weight, bias, b1, b2, state) of random numbers, with which a sixth to a third of the neurons fires."""
    generator = torch.Generator().manual_seed(sum(shape))
    _, N, C = shape

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    couplings = (C,) if per_channel else ()
    state = TCLIFRecurrentState(draw(N, C), draw(N, C), (draw(N, C) > 0).to(dtype)) if with_state else None
    x, weight, bias = draw(*shape) + 0.2, draw(C, C) / C**0.5, draw(C) / 4
    return x, weight, bias, -torch.sigmoid(draw(*couplings)), torch.sigmoid(draw(*couplings)), state


class Result(NamedTuple):
    """Spikes, other outputs (state, v_seq), and the gradients of a random linear function of all of them."""

    spikes: torch.Tensor
    others: tuple
    gradients: tuple


def run(function, *arguments, final_state=True, **options):
    """Call a sequence function on fresh leaves and differentiate; without the final state if it is not wanted."""
    leaves = []
    if function in (kernels.pmsn_sequence, kernels.tclif_sequence, kernels.tclif_recurrent_sequence):
        options["return_state"] = final_state

    def leaf(value):
        if isinstance(value, torch.Tensor):
            leaves.append(value.detach().clone().requires_grad_())
            return leaves[-1]
        if isinstance(value, tuple):
            return type(value)(*map(leaf, value))
        return value

    output = function(*map(leaf, arguments), return_v_seq=True, **options)
    outputs = (output.spikes, *(output.state if final_state else ()), output.v_seq)
    generator = torch.Generator().manual_seed(1)
    loss = 0.0
    for tensor in outputs:
        weight = torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
        loss = loss + (tensor * weight).sum() if tensor.requires_grad else loss
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return Result(output.spikes.detach(), tuple(o.detach() for o in outputs[1:]), gradients)


def relative_error(actual, expected):
    error, scale = (actual.double() - expected.double()).abs().max(), expected.double().abs().max()
    return (error / scale if scale > 0 else error).item()


def assert_equal(actual: Result, expected: Result, tolerance: float, complex_state: bool = False):
    """Spikes exactly, everything else to a relative tolerance; with ``complex_state`` that of real and imaginary parts
    (outputs 1 and 2, and their gradients, 7 and 8) is of both together: the imaginary part of a real compartment dies
    away."""
    assert torch.equal(actual.spikes, expected.spikes)
    for name, values, wanted in zip(("output", "gradient"), actual[1:], expected[1:], strict=True):
        for i, (value, want) in enumerate(zip(values, wanted, strict=True)):
            assert value.shape == want.shape and value.dtype == want.dtype
            both = {"output": [1, 2], "gradient": [7, 8]}[name]
            if complex_state and i in both:
                value, want = (torch.stack([part[j] for j in both]) for part in (values, wanted))
            assert relative_error(value, want) <= tolerance, f"{name} {i}: {relative_error(value, want)}"


class Tools(NamedTuple):
    """What the test modules share (they cannot import one another)."""

    pmsn_case = staticmethod(pmsn_case)
    tclif_case = staticmethod(tclif_case)
    recurrent_case = staticmethod(recurrent_case)
    run = staticmethod(run)
    relative_error = staticmethod(relative_error)
    assert_equal = staticmethod(assert_equal)


@pytest.fixture(scope="session")
def tools():
    return Tools()


@pytest.fixture
def poisoned(monkeypatch):
    """Fresh memory is NaN: what a kernel forgets to write is seen."""
    new_empty, empty, empty_like = torch.Tensor.new_empty, torch.empty, torch.empty_like

    def poison(tensor):
        return tensor.fill_(float("nan")) if tensor.is_floating_point() and tensor.device.type != "meta" else tensor

    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *args, **kwargs: poison(new_empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: poison(empty(*args, **kwargs)))
    monkeypatch.setattr(torch, "empty_like", lambda *args, **kwargs: poison(empty_like(*args, **kwargs)))
