"""MNIST-1D, a public benchmark of short sequences (T = 40): spiking neurons and a GRU at equal numbers of parameters.

    python examples/mnist1d.py                                        # all neurons, three seeds
    python examples/mnist1d.py --neuron pmsn,gru --seeds 1 --epochs 20
    python examples/mnist1d.py --neuron pmsn --option pmsn:time_scale=40 --option pmsn:n_compartments=9

``pip install mnist1d`` brings the data set (Greydanus and Kobak, 2020), which is computed here, not downloaded: 4000
sequences for training, 1000 for the test, ten classes. Spiking neurons sit in the network of the PMSN paper's
sequential MNIST (FC-BN-neuron, two residual blocks, mean over time, linear readout), the GRU is one layer with a linear
readout of its last state, and widths are chosen so that all have about ``--parameters`` parameters. One recipe for all
of them. Nothing is selected on the test sequences: the table shows the last epoch, whatever it is.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from pmsn_plugins import param_groups
from pmsn_plugins.models import count_parameters, neuron_factory, reset_states, residual

T, CLASSES = 40, 10
LEAKY = {"leak": (0.9, 0.9), "per_channel": True, "beta_range": (0.03, 0.9)}

# name in table and figure, line style, colour that colour-blind readers can tell from the others, options
NEURONS: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "pmsn": ("PMSN", "-", "#0072B2", {}),
    # several spikes per step
    "pmsn-burst": ("PMSN, burst", "--", "#0072B2", {"burst": True}),
    "tclif": ("TC-LIF", "-", "#D55E00", {}),
    "tclif-leaky": ("TC-LIF, leaky", "--", "#D55E00", LEAKY),
    # v[t] = 0.9 v[t-1] + x[t]; with the framework's default, tau = 2, LIF forgets faster
    "lif": ("LIF", ":", "#009E73", {"tau": 10.0, "decay_input": False}),
    "plif": ("PLIF", "-.", "#CC79A7", {"init_tau": 10.0, "decay_input": False}),
    "psn": ("PSN", "--", "#56B4E9", {}),
    "slidingpsn": ("SlidingPSN", "-.", "#E69F00", {}),
    "gru": ("GRU", "-", "black", {}),
}


class Spiking(nn.Module):
    """[T, N, 1] to class scores [N, 10], read from the mean over time."""

    def __init__(self, width: int, name: str, steps: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.layers = residual(1, width, 2, CLASSES, neuron_factory(name, T=steps, **options))

    def forward(self, x_seq: Tensor) -> Tensor:
        return self.layers(x_seq).mean(0)


class GRU(nn.Module):
    """[T, N, 1] to class scores [N, 10], read from the last state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(1, width)
        self.readout = nn.Linear(width, CLASSES)

    def forward(self, x_seq: Tensor) -> Tensor:
        return self.readout(self.gru(x_seq)[0][-1])


def build(name: str, width: int, steps: int, options: dict[str, Any]) -> nn.Module:
    return GRU(width, **options) if name == "gru" else Spiking(width, name.partition("-")[0], steps, options)


def width_for(name: str, parameters: int, steps: int, options: dict[str, Any]) -> int:
    """The width with which the net comes nearest to a number of parameters; that number grows with the width."""

    def count(width: int) -> int:
        return count_parameters(build(name, width, steps, options))

    width = 1
    if count(width) > parameters:  # PSN's weights are those between all steps
        raise SystemExit(
            f"--parameters {parameters}: with {steps} steps {name} has {count(1)} at width 1, leave it out"
        )
    while count(width + 1) <= parameters:
        width += 1
    return min(width, width + 1, key=lambda w: abs(count(w) - parameters))


class Run(NamedTuple):
    neuron: str
    seed: int
    width: int
    parameters: int
    seconds_per_epoch: float
    accuracies: list[float]  # on the test sequences, after every epoch


def load_sequences() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test sequences [T, N, 1], training and test labels [N]."""
    here, path = Path(__file__).resolve().parent, sys.path[:]
    # the package has this file's name, and the folder of a script comes first on its path
    sys.path[:] = [folder for folder in path if Path(folder or ".").resolve() != here]
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError as error:
        raise SystemExit(f"examples/mnist1d.py needs the data set's package ({error}): pip install mnist1d") from None
    finally:
        sys.path[:] = path
    data = make_dataset(get_dataset_args())
    x_train, x_test = (torch.from_numpy(data[key]).float().T[..., None].contiguous() for key in ("x", "x_test"))
    y_train, y_test = (torch.from_numpy(data[key]).long() for key in ("y", "y_test"))
    return x_train, x_test, y_train, y_test


def train(name: str, seed: int, width: int, data: tuple[Tensor, ...], args: argparse.Namespace) -> Run:
    x_train, x_test, y_train, y_test = data
    torch.manual_seed(seed)
    net = build(name, width, T * args.repeat, args.options[name])
    # neuron parameters need their own rates and no weight decay; a net without such parameters gets one group
    groups = param_groups(net, lr=args.lr, neuron_lr=args.neuron_lr, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups)
    steps = args.epochs * math.ceil(len(y_train) / args.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracies, seconds = [], []
    progress = tqdm(range(args.epochs), desc=f"{NEURONS[name][0]:13} seed {seed}", unit="epoch")
    for epoch in progress:
        start, total_loss = time.perf_counter(), 0.0
        net.train()
        for batch in torch.randperm(len(y_train)).split(args.batch_size):
            reset_states(net)
            loss = F.cross_entropy(net(x_train[:, batch]), y_train[batch], label_smoothing=args.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(batch)
        seconds.append(time.perf_counter() - start)
        if not math.isfinite(total_loss):
            raise FloatingPointError(f"the loss of {name} is {total_loss} in epoch {epoch + 1}: use a smaller --lr")
        net.eval()
        reset_states(net)
        with torch.no_grad():
            accuracies.append((net(x_test).argmax(1) == y_test).float().mean().item())
        progress.set_postfix(loss=f"{total_loss / len(y_train):.3f}", test_accuracy=f"{accuracies[-1]:.1%}")
    return Run(name, seed, width, count_parameters(net), statistics.median(seconds), accuracies)


def of_neuron(runs: list[Run], name: str) -> list[Run]:
    return [run for run in runs if run.neuron == name]


def print_table(runs: list[Run]) -> None:
    print(f"\n{'neuron':15}{'test accuracy':>20}{'parameters':>12}{'s / epoch':>11}")
    for name in dict.fromkeys(run.neuron for run in runs):
        own = of_neuron(runs, name)
        percent = [100 * run.accuracies[-1] for run in own]
        deviation = f" ± {statistics.stdev(percent):.1f}" if len(percent) > 1 else ""
        seconds = statistics.median(run.seconds_per_epoch for run in own)
        accuracy = f"{statistics.mean(percent):.1f}{deviation} %"
        print(f"{NEURONS[name][0]:15}{accuracy:>20}{own[0].parameters:>12,}{seconds:>11.2f}")
    print("(after the last epoch; mean and standard deviation over the seeds)")


def save_curves(runs: list[Run], args: argparse.Namespace) -> None:
    """Accuracies after every epoch: all of them as JSON, their mean and range over the seeds as a figure."""
    settings = {
        key: getattr(args, key)
        for key in ("repeat", "epochs", "batch_size", "label_smoothing", "lr", "neuron_lr", "options")
    }
    results = {**settings, "runs": [run._asdict() for run in runs]}
    (args.output / "mnist1d.json").write_text(json.dumps(results, indent=1) + "\n")
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(run.neuron for run in runs):
        shown, line, color, _ = NEURONS[name]
        curves = 100 * torch.tensor([run.accuracies for run in of_neuron(runs, name)])
        epochs = range(1, curves.shape[1] + 1)
        axes.plot(epochs, curves.mean(0), line, color=color, linewidth=2, label=shown)
        axes.fill_between(epochs, curves.amin(0), curves.amax(0), color=color, alpha=0.15, linewidth=0)
    repeated = f", each step {args.repeat} times" if args.repeat > 1 else ""
    axes.set(title=f"MNIST-1D, T = {T}{repeated}", xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(args.output / "mnist1d.png", dpi=120)


def positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"must be a positive {kind.__name__}, got {text!r}")
        return value

    return parse


def fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def neuron_names(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in NEURONS:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(NEURONS)}, joined by commas, got {name!r}")
    return names


def neuron_option(text: str) -> tuple[str, str, Any]:
    name, colon, setting = text.partition(":")
    key, equals, value = setting.partition("=")
    if name not in NEURONS or not (colon and key and equals):
        raise argparse.ArgumentTypeError(f"must be NEURON:NAME=VALUE, NEURON among {', '.join(NEURONS)}, got {text!r}")
    try:
        return name, key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, key, value


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--neuron", type=neuron_names, default=",".join(NEURONS), help="joined by commas")
    parser.add_argument("--seeds", type=positive(int), default=3, help="runs of every neuron, seeds 0, 1, ...")
    parser.add_argument("--parameters", type=positive(int), default=14_300, help="about so many in every net")
    parser.add_argument("--repeat", type=positive(int), default=1, help="show every time step so many times")
    parser.add_argument("--epochs", type=positive(int), default=40, help="passes over the training sequences")
    parser.add_argument("--batch-size", type=positive(int), default=64, help="sequences per training step")
    parser.add_argument("--label-smoothing", type=fraction, default=0.0, help="of the loss, from 0 to 1")
    parser.add_argument("--lr", type=positive(float), default=2e-2, help="learning rate of the weights")
    parser.add_argument("--neuron-lr", type=positive(float), default=1e-3, help="learning rate inside the neurons")
    parser.add_argument(
        "--option", type=neuron_option, action="append", default=[], metavar="NEURON:NAME=VALUE",
        help="an argument of a neuron, e.g. pmsn:time_scale=40",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder for the curves")
    args = parser.parse_args()
    args.options = {name: dict(NEURONS[name][3]) for name in NEURONS}
    for name, key, value in args.option:
        args.options[name][key] = value
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: cannot be made a folder, got {str(args.output)!r} ({error.strerror})")
    return args


def main() -> int:
    args = parse_arguments()
    torch.set_num_threads(1)  # layers this small gain little from more, and lose much where cores are shared
    x_train, x_test, *labels = load_sequences()
    data = (x_train.repeat_interleave(args.repeat, 0), x_test.repeat_interleave(args.repeat, 0), *labels)
    widths = {name: width_for(name, args.parameters, T * args.repeat, args.options[name]) for name in args.neuron}
    runs: list[Run] = []
    try:
        for name, width in widths.items():
            for seed in range(args.seeds):
                runs.append(train(name, seed, width, data, args))
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
    if runs:
        print_table(runs)
        save_curves(runs, args)
        print(f"learning curves: {args.output / 'mnist1d.png'}, {args.output / 'mnist1d.json'}")
    return 0 if len(runs) == len(args.neuron) * args.seeds else 1


if __name__ == "__main__":
    sys.exit(main())
