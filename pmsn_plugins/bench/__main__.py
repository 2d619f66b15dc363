"""Command line of the benchmark: checks, then times, then (on request) JSON and the acceleration figure."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

import torch

from .. import __version__, kernels
from ..report import processor
from .checks import run_checks
from .contenders import FUSED, Contender, contenders
from .measure import LEAST_BYTES, Measurement, copy_bandwidth, measure
from .recurrent import run_recurrent
from .shape import given_shape
from .steps import run_steps
from .variants import check_variants

QUICK_SHAPES = [(4, 32, 64, 8, 8), (32, 64, 128), (250, 40, 352), (1024, 64, 128)]
SHAPES = [
    (4, 32, 64, 56, 56),  # SEW ResNet-18, first stage
    (32, 128, 128, 32),  # sequential CIFAR by columns
    (128, 64, 128),
    (250, 40, 352),  # spoken digits
    (512, 64, 128),
    (1024, 64, 128),  # sequential CIFAR by pixels
    (4096, 16, 128),
    (16384, 1, 64),
]


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 if a kernel is wrong."""
    arguments = _parse(argv)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: PyTorch sees no CUDA GPU here; use --device cpu")
    if device.type != "cpu" and arguments.steps:
        raise SystemExit("--steps: only with --device cpu")
    for path in (arguments.json, arguments.plot):
        if path and not path.parent.is_dir():
            raise SystemExit(f"{path}: the folder {path.parent} does not exist")

    if arguments.check:
        return check_variants(device)
    _chosen(contenders(device), arguments.only)  # a wrong word is said before anything runs
    checks = run_checks(device, arguments.quick)
    print(f"{'kernel':26} {'type':8} {'shape':14} spikes that differ   gradient error")
    for check in checks:
        verdict = "" if check.passed else "   WRONG"
        size, dtype = "x".join(map(str, check.shape)), str(check.dtype).removeprefix("torch.")
        print(f"{check.name:26} {dtype:8} {size:14} {check.spikes:18.1e} {check.gradient:16.1e}{verdict}")
    if not all(check.passed for check in checks):
        print("a kernel is wrong: nothing was timed", file=sys.stderr)
        return 1

    bandwidth = copy_bandwidth(device)
    machine = _machine(device)
    print("\n" + ", ".join(str(machine[name]) for name in ("device", "kernels", "date")), end=", ")
    print(f"{machine['threads']} threads, torch {machine['torch']}")
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s (read + write)")
    if arguments.recurrent:
        times = run_recurrent(device, arguments.quick)
        if arguments.json:
            arguments.json.write_text(json.dumps({**machine, "recurrent": times}, indent=1))
        return 0
    if arguments.steps:
        times = run_steps(arguments.quick)
        if arguments.json:
            arguments.json.write_text(json.dumps({**machine, "steps": times}, indent=1))
        return 0
    results: list[Measurement] = []
    for shape in arguments.shape or (QUICK_SHAPES if arguments.quick else SHAPES):
        rows = _measure_shape(shape, device, 0.4 if arguments.quick else 0.8, arguments.only)
        _print_shape(shape, rows, bandwidth)
        results += rows
        if arguments.json:  # after every shape: an interrupted run keeps what it has measured
            record = {**machine, "copy_bandwidth": bandwidth, "results": [row._asdict() for row in results]}
            arguments.json.write_text(json.dumps(record, indent=1))
    if arguments.plot:
        from ..analysis.acceleration import plot_acceleration

        plot_acceleration([row._asdict() for row in results], bandwidth).savefig(arguments.plot, dpi=150)
    return 0


def _measure_shape(
    shape: tuple[int, ...], device: torch.device, budget_s: float, only: list[str] | None = None
) -> list[Measurement]:
    """Every contender twice, one after the other: a machine that is slow for a while is not slow for one alone."""
    from tqdm import tqdm

    rows: dict[str, Measurement] = {}
    left_out = set()
    torch.compiler.reset()  # it gives up on a function that it has compiled for many shapes
    able = [c for c in _chosen(contenders(device), only) if shape[0] <= c.longest]
    for contender in tqdm(able + able, desc=f"{list(shape)}", leave=False, disable=None):
        name, first = contender.name, rows.get(contender.name)
        if name in left_out or (first and first.forward_backward_s > budget_s / 4):  # too slow for a second time
            continue
        try:
            row = measure(name, contender.make(shape), shape, device, budget_s / 2)
        except Exception as error:  # e.g. StateLeaky takes [T, N, C] only; Triton's are of many kinds
            if contender.fused:  # ours: a fault, not a limit of others
                raise
            print(f"  {name}: left out, {f'{type(error).__name__}: {error}'.splitlines()[0][:90]}")
            left_out.add(name)
            continue
        rows[name] = row.faster(first) if first else row
    return list(rows.values())


def _chosen(found: list[Contender], only: list[str] | None) -> list[Contender]:
    """The first, which all are compared with, and those whose names contain one of the words."""
    if only is None:
        return found
    for word in only:
        if not any(word in contender.name for contender in found):
            raise SystemExit(f"--only {word!r}: in the name of no contender ({', '.join(c.name for c in found)})")
    return found[:1] + [c for c in found[1:] if any(word in c.name for word in only)]


def _print_shape(shape: tuple[int, ...], rows: list[Measurement], bandwidth: float) -> None:
    elements = torch.Size(shape).numel()
    fastest = rows[0]  # ours, on the fused backend where there is one
    header = f"\n{list(shape)!s:32} {'forward':>10} {'fwd + bwd':>10} {'ratio':>7} {'kept':>6} {'peak':>6}"
    print(header + "   ratio: to the first line; kept between forward and backward, and most memory, over the input's")
    for row in rows:
        graph = ""
        if row.launches is not None:
            times = (row.forward_graph_s, row.forward_backward_graph_s)
            shown = (f"{1e3 * t:.2f}" if t is not None else "-" for t in times)
            graph = f"   as CUDA graphs {', '.join(shown)} ms, {row.launches} launches"
        print(
            f"  {row.name:30} {row.forward_s * 1e3:7.2f} ms {row.forward_backward_s * 1e3:7.2f} ms "
            f"{row.forward_backward_s / fastest.forward_backward_s:7.1f} {row.kept_bytes / (4 * elements):6.1f} "
            f"{row.peak_bytes / (4 * elements):6.1f}{graph}"
        )
    share = LEAST_BYTES["forward_backward_s"] * elements / fastest.forward_backward_s / bandwidth
    print(f"  {fastest.name} moves its data at {100 * share:.0f} % of the copy bandwidth")


def _machine(device: torch.device) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "device": name,
        "kernels": kernels.backends()[FUSED[device.type]].reason,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pmsn_plugins": __version__,
        "date": date.today().isoformat(),
    }


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m pmsn_plugins.bench", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and runs: under a minute on two cores")
    parser.add_argument(
        "--shape", nargs="+", type=given_shape, metavar="T,N,C,*", help="of the input, in place of ours"
    )
    parser.add_argument("--only", nargs="+", metavar="WORD", help="contenders with such a word in their name, and ours")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--check", action="store_true", help="compare every variant of the kernels with the reference")
    instead.add_argument("--recurrent", action="store_true", help="time recurrent layers, on one thread and two")
    instead.add_argument("--steps", action="store_true", help="time single time steps")
    parser.add_argument("--json", type=Path, help="write machine and measurements here")
    parser.add_argument("--plot", type=Path, help="write the acceleration figure (PMSN paper, Fig. 5) here")
    arguments = parser.parse_args(argv)
    meaningless = {
        "check": ("quick", "shape", "only", "json", "plot"),
        "recurrent": ("shape", "only", "plot"),
        "steps": ("shape", "only", "plot"),
    }
    for mode, options in meaningless.items():
        for option in options:
            if getattr(arguments, mode) and getattr(arguments, option):
                parser.error(f"argument --{option}: says nothing about what --{mode} runs, leave it out")
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
