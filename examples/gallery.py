"""Draw the figures of the README's gallery.

python examples/gallery.py impulse_response
python examples/gallery.py                      # all but the last two: of trainings, and of a benchmark
python examples/gallery.py reset_ablation       # trains for minutes, and continues if it is stopped
python examples/gallery.py acceleration --benchmark examples/figures/benchmark_cpu.json
python examples/gallery.py --output examples/figures                         # the README's own
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pmsn_plugins import analysis
from pmsn_plugins.spikingjelly import PMSNNode


def impulse_response() -> Figure:
    """What the four hidden compartments of one PMSN neuron answer to one unit of input, and what they add up to."""
    torch.manual_seed(3)
    response = analysis.impulse_response(PMSNNode(8, preset="sequential"), T=300)
    return analysis.plot_impulse_response(next(iter(response.values())), channel=0)


def gradient_over_time() -> Figure:
    """How far the gradient of a loss at the last step reaches back."""
    return analysis.plot_gradient_over_time(analysis.compare_gradients())


def norm_plane() -> Figure:
    """The infinity norm of TC-LIF's Jacobian over its two couplings."""
    return analysis.plot_norm_plane(analysis.norm_plane())


def reset_ablation() -> Figure:
    """Pixel-by-pixel digits with each reset of the PMSN, five seeds."""
    return analysis.plot_reset_ablation(analysis.reset_ablation(seeds=range(5), folder=Path("runs/reset_ablation")))


def acceleration(benchmark: Path) -> Figure:
    """What a time step costs in each layer, over the length of the sequence."""
    record = json.loads(benchmark.read_text())
    return analysis.plot_acceleration(record["results"], record["copy_bandwidth"])


FIGURES = {f.__name__: f for f in (impulse_response, gradient_over_time, norm_plane)}
NAMES = (*FIGURES, "reset_ablation", "acceleration")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("figure", nargs="*", help=f"among {', '.join(NAMES)}; default: all but the last two")
    parser.add_argument("--benchmark", type=Path, help="JSON written by python -m pmsn_plugins.bench --json")
    parser.add_argument("--output", type=Path, default=Path("runs/figures"), help="folder for the figures")
    args = parser.parse_args()
    figures, drawn = {**FIGURES, "reset_ablation": reset_ablation}, args.figure or list(FIGURES)
    if args.benchmark:
        if not args.benchmark.is_file():
            parser.error(f"argument --benchmark: no such file, got {str(args.benchmark)!r}")
        figures["acceleration"] = lambda: acceleration(args.benchmark)
        drawn += [] if args.figure else ["acceleration"]
    for name in args.figure:
        if name == "acceleration" and not args.benchmark:
            parser.error("acceleration is drawn from a benchmark: give --benchmark")
        if name not in figures:
            parser.error(f"argument figure: must be among {', '.join(NAMES)}, got {name!r}")
    args.output.mkdir(parents=True, exist_ok=True)
    for name in drawn:
        path = args.output / f"{name}.png"
        figures[name]().savefig(path, dpi=110)
        print(path)


if __name__ == "__main__":
    main()
