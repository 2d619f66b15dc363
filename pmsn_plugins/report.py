"""What a maintainer needs to know of a machine: ``python -m pmsn_plugins.report``.

Versions, whether each framework's neurons can be imported, the processor and its threads, every backend and what small
calls would take, and each available backend checked against the float64 reference. Nothing leaves the machine. The exit
status is 1 if a check fails.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import __version__, functional, kernels
from .bench.checks import run_checks

PACKAGES = ("torch", "numpy", "spikingjelly", "torchaudio", "torchvision", "snntorch", "cupy-cuda12x", "cupy-cuda13x")


def main() -> int:
    """Print the report; returns the exit status."""
    for line in environment():
        print(line)
    failed = False
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        verdict, wrong = _self_check(torch.device(device))
        print(f"self-check on {device}: {verdict}")
        failed |= wrong
    return int(failed)


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def environment() -> Iterator[str]:
    """Versions, processor, GPUs and backends, line by line."""
    yield f"pmsn_plugins {__version__} in {Path(__file__).parent}"
    yield f"Python {platform.python_version()}, {platform.platform()}"
    for package in PACKAGES:
        yield f"{package} {_version(package)}"
    for framework in ("spikingjelly", "snntorch"):
        yield f"pmsn_plugins.{framework}: {_import(f'pmsn_plugins.{framework}')}"
    variables = (f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in os.environ)
    yield f"processor: {processor()}, {os.cpu_count()} cores"
    yield ", ".join((f"PyTorch {torch.__version__}, threads: {torch.get_num_threads()}", *variables))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            yield f"cuda:{i}: {torch.cuda.get_device_name(i)}, sm_{major}{minor}, CUDA {torch.version.cuda}"
    for name, status in kernels.backends().items():
        yield f"backend {name}: {'available' if status.available else 'not available'}, {status.reason}"
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        x = torch.zeros(2, 1, 3, device=device)
        parameters = functional.PMSNParameters(*(p.to(device) for p in functional.pmsn_initial_parameters(3)))
        yield f"auto on {device}, PMSN: {kernels.explain(kernels.pmsn_sequence, x, parameters)}"
        yield f"auto on {device}, TC-LIF: {kernels.explain(kernels.tclif_sequence, x, -0.5, 0.5)}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _import(module: str) -> str:
    try:
        importlib.import_module(module)
    except Exception as error:  # a framework that does not fit its torch raises anything; the report goes on
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return "can be imported"


def _self_check(device: torch.device) -> tuple[str, bool]:
    """What the checks say in words, and whether any backend is wrong or fails."""
    try:
        checks = run_checks(device, quick=True)
    except Exception as error:  # what a broken backend raises is what the report is for
        return f"{type(error).__name__}: {' '.join(str(error).split())}", True
    wrong = [check for check in checks if not check.passed]
    verdict = f"{len(checks) - len(wrong)} of {len(checks)} comparisons with the reference passed"
    return "\n  ".join((verdict, *map(str, wrong))), bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
