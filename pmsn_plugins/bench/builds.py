"""Two builds of the CPU kernel library against each other: ``python -m pmsn_plugins.bench.builds OLD.so NEW.so``.

Made for noisy machines. Both libraries are called in turns, in one process, on the same buffers, which are allocated
before and used again; a ratio is taken of each such pair, and the median of the ratios is printed with its quartiles.
Cycles are those of a chain of dependent multiplications that is timed beside each pair, so that a processor that
changes its clock does not change them.
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional import PRESETS, discretize, pmsn_initial_parameters
from ..kernels import cpu
from ..kernels.arguments import STRUCTURES
from ..kernels.calls import (
    Call,
    PmsnOptions,
    PmsnTensors,
    TclifOptions,
    TclifTensors,
)
from ..kernels.operators import PMSN, TCLIF, Operator
from .shape import given_shape

SHAPES = {
    "pmsn": [(4, 32, 6272), (32, 128, 512), (32, 127, 520), (250, 40, 352), (784, 64, 128), (1024, 64, 128)],
    "tclif": [(4, 32, 6272), (32, 128, 512), (32, 127, 520), (250, 40, 352), (784, 64, 128)],
}
COMPARTMENTS = 4

MULTIPLY_CYCLES = 3
"""Latency of a multiplication of 64-bit integers: x86-64 since 2008, and most 64-bit ARM cores."""

_CHAIN = "unsigned long chain(unsigned long x, unsigned long m, long n) { while (n--) x *= m; return x; }"


class Job(NamedTuple):
    """A sequence of calls on preallocated buffers.

    Attributes:
        elements: numbers of the input.
        names: of the calls.
        arguments: of each call, a struct; what it points to is kept alive by ``calls``.
        calls: as the package makes them.
        written: by each call, without what is only kept from forward to backward.
    """

    elements: int
    names: list[str]
    arguments: list[bytes]
    calls: list[Call]
    written: list[tuple[Tensor, ...]]


def main(argv: list[str] | None = None) -> int:
    """Compare two libraries; returns 1 if they do not agree."""
    parser = argparse.ArgumentParser("python -m pmsn_plugins.bench.builds", description=__doc__)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--neuron", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--shape", nargs="+", type=given_shape, metavar="T,N,C,*", help="default: some of each neuron")
    parser.add_argument(
        "--isa",
        nargs="+",
        choices=cpu.INSTRUCTION_SETS,
        default=cpu.INSTRUCTION_SETS,
        help="those that there are not are left out",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default="sequential",
        help="of PMSN's parameters; 'general' and 'static' have fast oscillations, which are computed in another way",
    )
    parser.add_argument("--threads", nargs="+", type=_above_zero(int), default=[1, 2])
    parser.add_argument(
        "--seconds", type=_above_zero(float), default=1.0, help="for each neuron, shape, instruction set and threads"
    )
    arguments = parser.parse_args(argv)
    libraries = [load(arguments.old), load(arguments.new)]
    clock = _clock()
    wrong = False
    print(
        f"old / new: median (quartiles) of ratios; in brackets {'cycles' if clock else 'nanoseconds'} per element-step"
    )
    for isa in arguments.isa:
        if any(library.pmsn_use_instruction_set(isa.encode()) for library in libraries):
            print(f"{isa}: not in both libraries, or not on this processor")
            continue
        for neuron in arguments.neuron:
            for shape in arguments.shape or SHAPES[neuron]:
                difference = _disagreement(libraries, neuron, shape, arguments.preset)
                if difference:
                    print(f"{isa} {neuron} {list(shape)}: THE LIBRARIES DISAGREE: {difference}")
                    wrong = True
                    continue
                for threads in arguments.threads:
                    job = make_job(neuron, shape, torch.float32, threads, arguments.preset)
                    _compare(
                        libraries, job, f"{isa:8} {neuron:5} {list(shape)!s:18}", threads, arguments.seconds, clock
                    )
    return int(wrong)


def _above_zero(kind: Callable[[str], float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(
                f"must be {'a whole' if kind is int else 'a'} number above 0, got {text!r}"
            )
        return value

    return number


def load(path: Path) -> ctypes.CDLL:
    """A library that takes this package's arguments; SystemExit says why another one cannot be compared."""
    try:
        library = ctypes.CDLL(str(path.resolve()))
    except OSError as error:
        raise SystemExit(f"{path} cannot be loaded: {error}") from None
    try:
        misfit = _misfit(library)
    except AttributeError as error:  # it names the function
        misfit = str(error)
    if misfit:
        raise SystemExit(
            f"{path} cannot be compared: {misfit}. Both libraries must take the arguments of the Python that this runs "
            "from; between builds with other arguments compare in two processes, each with its own clone"
        )
    return library


def _misfit(library: ctypes.CDLL) -> str:
    """Declare what is timed, or say why it cannot be; what else the library has does not matter."""
    library.pmsn_use_instruction_set.argtypes = library.pmsn_argument_bytes.argtypes = (ctypes.c_char_p,)
    library.pmsn_argument_bytes.restype = ctypes.c_longlong
    for neuron in SHAPES:
        for direction in ("forward", "backward"):
            getattr(library, f"{neuron}_{direction}").argtypes = (ctypes.c_void_p, ctypes.c_int)
        arguments = STRUCTURES[neuron]
        if library.pmsn_argument_bytes(arguments.__name__.encode()) != ctypes.sizeof(arguments):
            return f"{arguments.__name__} has another size there"
    return ""


def _pmsn(x: Tensor, preset: str, generator: torch.Generator) -> tuple[Operator, PmsnTensors, PmsnOptions]:
    parameters = pmsn_initial_parameters(x.shape[2], COMPARTMENTS + 1, preset, generator=generator)
    tensors = PmsnTensors(x, *(c.to(x.dtype) for c in discretize(parameters)))
    return PMSN, tensors, PmsnOptions("modulo", "spike", "triangle", 1.0, 1.0, 0.0, 0.0)


def _tclif(x: Tensor, preset: str, generator: torch.Generator) -> tuple[Operator, TclifTensors, TclifOptions]:
    b1, b2 = (torch.full((1,), coupling, dtype=x.dtype) for coupling in (-0.5, 0.5))
    options = TclifOptions(1, x[0].numel(), False, True, False, "triangle", 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0)
    return TCLIF, TclifTensors(x, b1, b2), options


_NEURONS: dict[str, Callable[..., tuple[Operator, Any, Any]]] = {"pmsn": _pmsn, "tclif": _tclif}


def make_job(neuron: str, shape: tuple[int, ...], dtype: torch.dtype, threads: int, preset: str = "sequential") -> Job:
    """Forward alone, forward that keeps what backward needs, and backward."""
    generator = torch.Generator().manual_seed(len(shape) + shape[0])
    x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    operator, tensors, options = _NEURONS[neuron](x, preset, generator)
    geometry = operator.geometry(tensors, options)
    names, calls, written = [], [], []
    for save in (False, True):
        wanted = [role.wanted is None or (save and role.wanted == "save") for role in operator.result_roles]
        shapes = [
            geometry.shape(role.shape) or () if asked else (0,)
            for role, asked in zip(operator.result_roles, wanted, strict=True)
        ]
        results = operator.results(*(torch.zeros(shape, dtype=dtype) for shape in shapes))
        calls.append(Call(neuron, "forward", tensors, options, results, (), (), geometry, False))
        names.append("forward, keeping" if save else "forward")
        written.append((results.out,))
    gradients = (grad, *(None for _ in operator.gradients._fields[2:]))
    made = tuple(
        torch.zeros_like(tensor) if role.gradient == "always" else torch.empty(0)
        for tensor, role in zip(tensors, operator.differentiated, strict=False)
    )
    kept = operator.nothing._replace(checkpoints=results.checkpoints)
    calls.append(Call(neuron, "backward", tensors, options, kept, gradients, made, geometry, False))
    structs = [cpu.arguments(call, threads) for call in calls]
    return Job(x.numel(), [*names, "backward"], structs, calls, [*written, made])


def _run(library: ctypes.CDLL, job: Job, index: int, threads: int) -> None:
    if getattr(library, job.calls[index].name)(job.arguments[index], threads):
        raise MemoryError("the library ran out of memory")


def _disagreement(libraries: Sequence[ctypes.CDLL], neuron: str, shape: tuple[int, ...], preset: str) -> str:
    """Empty if both compute the same: in float64 equal spikes, and gradients within 1e-9 of the largest."""
    small = (shape[0], min(shape[1], 3), *shape[2:])
    job = make_job(neuron, small, torch.float64, 1, preset)
    outcomes = []
    for library in libraries:
        for index in range(len(job.names)):
            for tensor in job.written[index]:
                tensor.fill_(float("nan"))
            _run(library, job, index, 1)
        outcomes.append([[t.clone() for t in written] for written in job.written])
    for name, olds, news in zip(job.names, *outcomes, strict=True):
        for old, new in zip(olds, news, strict=True):
            if name != "backward" and not torch.equal(old, new):
                return f"{(old != new).sum().item()} spikes of {name}"
            error, largest = ((old - new).abs().max().item(), old.abs().max().item()) if old.numel() else (0.0, 0.0)
            if not error <= 1e-9 * largest:
                return f"gradients as large as {largest:.1e}, by {error:.1e}"
    return ""


def _compare(
    libraries: Sequence[ctypes.CDLL],
    job: Job,
    title: str,
    threads: int,
    seconds: float,
    clock: Callable[[], float] | None,
) -> None:
    rounds = _rounds(libraries, job, threads, seconds, clock)
    parts = {"forward": [0], "backward": [2], "both": [1, 2]}
    columns = []
    for name, indices in parts.items():
        old, new = ([sum(times[which][i] for i in indices) for times, _ in rounds] for which in (0, 1))
        low, middle, high = quantiles([a / b for a, b in zip(old, new, strict=True)], n=4)
        units = [
            median(t / unit for t, (_, unit) in zip(times, rounds, strict=True)) / job.elements for times in (old, new)
        ]
        columns.append(f"{name} {middle:.2f} ({low:.2f}-{high:.2f}) [{units[0]:.2f} {units[1]:.2f}]")
    print(
        f"{title} {threads} thread{'s' * (threads > 1)}  " + "  ".join(columns),
        flush=True,
    )


def _rounds(
    libraries: Sequence[ctypes.CDLL], job: Job, threads: int, seconds: float, clock: Callable[[], float] | None
) -> list[tuple[list[list[float]], float]]:
    """Of each round: seconds by library and call, and the seconds of one cycle (without a clock, of a nanosecond)."""
    repeats = [1] * len(job.names)
    rounds: list[tuple[list[list[float]], float]] = []
    end = None
    while end is None or time.perf_counter() < end or len(rounds) < 5:
        times = [[0.0] * len(job.names) for _ in libraries]
        unit = clock() if clock else 1e-9
        for index in range(len(job.names)):
            for which in (0, 1) if len(rounds) % 2 else (1, 0):
                start = time.perf_counter()
                for _ in range(repeats[index]):
                    _run(libraries[which], job, index, threads)
                times[which][index] = (time.perf_counter() - start) / repeats[index]
        if end is None:  # the first round warms up, and says how often a short call is repeated
            repeats = [max(1, round(2e-3 / t)) for t in times[0]]
            end = time.perf_counter() + seconds
        else:
            rounds.append((times, unit))
    return rounds


def _clock() -> Callable[[], float] | None:
    """Measures the seconds of a cycle; None where there is no C compiler to make the chain with."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "chain.so")
        command = [compiler, "-x", "c", "-O1", "-shared", "-fPIC", "-o", str(path), "-"]
        subprocess.run(command, input=_CHAIN, text=True, check=True)
        chain = ctypes.CDLL(str(path)).chain
    chain.argtypes = (ctypes.c_ulong, ctypes.c_ulong, ctypes.c_long)

    def cycle() -> float:
        best, steps = float("inf"), 20_000
        for _ in range(3):
            start = time.perf_counter()
            chain(3, 5, steps)
            best = min(best, time.perf_counter() - start)
        return best / (MULTIPLY_CYCLES * steps)

    return cycle


if __name__ == "__main__":
    raise SystemExit(main())
