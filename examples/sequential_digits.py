"""Read handwritten digits one pixel at a time, with PMSN, TC-LIF and LIF neurons in the same network.

    python examples/sequential_digits.py                        # SpikingJelly, all three neurons
    python examples/sequential_digits.py --framework snntorch
    python examples/sequential_digits.py --neuron pmsn --permute --epochs 60

The 1797 digits of 8 x 8 pixels come with scikit-learn. A network sees T = 64 time steps of one pixel each, so it has to
remember the first rows until the end; ``--permute`` shuffles the pixels, the same way for all digits. One fifth of the
digits is held out for the test. Nothing is selected on it: the table shows the last epoch, whatever it is.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from tqdm import tqdm

import pmsn_plugins

# name in table and figure, line style, colour that colour-blind readers can tell from the others
NEURONS = {"pmsn": ("PMSN", "-", "#0072B2"), "tclif": ("TC-LIF", "--", "#D55E00"), "lif": ("LIF", ":", "#009E73")}

Makers = dict[str, Callable[[int], nn.Module]]
Reset = Callable[[nn.Module], Any]


def spikingjelly_neurons() -> tuple[Makers, Reset]:
    """How SpikingJelly makes each neuron for a number of channels, and how it resets a net between two batches."""
    from spikingjelly.activation_based import functional, neuron

    from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode

    makers = {
        "pmsn": lambda channels: PMSNNode(channels, step_mode="m"),
        "tclif": lambda channels: TCLIFNode(step_mode="m"),
        # v[t] = 0.9 v[t-1] + x[t]; with the framework's default, tau=2, LIF forgets faster and stays far behind
        "lif": lambda channels: neuron.LIFNode(tau=10.0, decay_input=False, v_reset=None, step_mode="m"),
    }
    return makers, functional.reset_net


def snntorch_neurons() -> tuple[Makers, Reset]:
    """The same for snnTorch, where PMSN takes the whole sequence, TC-LIF and Leaky one time step per call."""
    import snntorch as snn

    from pmsn_plugins.snntorch import PMSN, TCLIF, reset

    makers = {
        "pmsn": lambda channels: PMSN(channels, output=False),
        "tclif": lambda channels: TimeLoop(TCLIF(init_hidden=True)),
        "lif": lambda channels: TimeLoop(snn.Leaky(beta=0.9, init_hidden=True)),
    }
    return makers, reset


FRAMEWORKS = {"spikingjelly": spikingjelly_neurons, "snntorch": snntorch_neurons}


class TimeLoop(nn.Module):
    """snnTorch's loop over time, around one layer that keeps its state: [T, N, C] to [T, N, C]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_seq: Tensor) -> Tensor:
        return torch.stack([self.layer(x) for x in x_seq])


class Block(nn.Module):
    """Linear - BatchNorm - neuron, [T, N, inputs] to spikes [T, N, outputs]."""

    def __init__(self, inputs: int, outputs: int, make_neuron: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.current = nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs))
        self.neuron = make_neuron(outputs)

    def forward(self, x_seq: Tensor) -> Tensor:
        # to the first two layers, time steps are only more samples
        return self.neuron(self.current(x_seq.flatten(0, 1)).unflatten(0, x_seq.shape[:2]))


class Net(nn.Module):
    """1 - width - width - width - 10, where the second and third block add their spikes to what they were given."""

    def __init__(self, width: int, make_neuron: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.first = Block(1, width, make_neuron)
        self.residual = nn.ModuleList(Block(width, width, make_neuron) for _ in range(2))
        self.readout = nn.Linear(width, 10)

    def forward(self, x_seq: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[T, N, 1] to class scores [N, 10], read from the mean over time, and each block's spikes [T, N, width]."""
        x_seq = self.first(x_seq)
        spikes = [x_seq]
        for block in self.residual:
            spikes.append(block(x_seq))
            x_seq = x_seq + spikes[-1]
        return self.readout(x_seq.mean(0)), spikes


class Result(NamedTuple):
    accuracies: list[float]  # on the test digits, after every epoch
    firing_rate: float  # spikes per neuron and time step, on the test digits
    parameters: int
    seconds_per_epoch: float
    raster: Tensor  # [T, width], spikes of the first block for the first test digit


def load_sequences(permute: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test sequences [T = 64, N, 1] with grey values in [0, 1], training and test labels [N]."""
    pixels, labels = load_digits(return_X_y=True)
    if permute:
        pixels = pixels[:, torch.randperm(64, generator=torch.Generator().manual_seed(0)).numpy()]
    # permutation and split are the same for every --seed, so that results compare
    x_train, x_test, y_train, y_test = map(
        torch.from_numpy, train_test_split(pixels / 16.0, labels, test_size=0.2, stratify=labels, random_state=0)
    )
    return x_train.float().T[..., None], x_test.float().T[..., None], y_train, y_test


def train(name: str, net: Net, reset: Reset, data: tuple[Tensor, ...], args: argparse.Namespace) -> Result:
    x_train, x_test, y_train, y_test = data
    # neuron parameters need their own rates and no weight decay; a net without such parameters gets one group
    groups = pmsn_plugins.param_groups(net, lr=args.lr, neuron_lr=args.neuron_lr, weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups)
    steps = args.epochs * math.ceil(len(y_train) / args.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    accuracies, seconds = [], []
    progress = tqdm(range(args.epochs), desc=f"{NEURONS[name][0]:6}", unit="epoch")
    for epoch in progress:
        start, total_loss = time.perf_counter(), 0.0
        net.train()
        for batch in torch.randperm(len(y_train)).split(args.batch_size):
            reset(net)
            scores, _ = net(x_train[:, batch])
            loss = F.cross_entropy(scores, y_train[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(batch)
        seconds.append(time.perf_counter() - start)
        if not math.isfinite(total_loss):
            raise FloatingPointError(f"the loss of {name} is {total_loss} in epoch {epoch + 1}: use a smaller --lr")
        net.eval()
        reset(net)
        with torch.no_grad():
            scores, spikes = net(x_test)
        accuracies.append((scores.argmax(1) == y_test).float().mean().item())
        progress.set_postfix(loss=f"{total_loss / len(y_train):.3f}", test_accuracy=f"{accuracies[-1]:.1%}")
    return Result(
        accuracies=accuracies,
        firing_rate=torch.stack(spikes).mean().item(),
        parameters=sum(p.numel() for p in net.parameters()),
        seconds_per_epoch=statistics.median(seconds),  # the first epoch may also compile something
        raster=spikes[0][:, 0],
    )


def print_table(results: dict[str, Result]) -> None:
    print(f"\n{'neuron':8}{'test accuracy':>15}{'firing rate':>13}{'parameters':>12}{'s / epoch':>11}")
    for name, r in results.items():
        cells = f"{r.accuracies[-1]:>15.1%}{r.firing_rate:>13.3f}{r.parameters:>12,}{r.seconds_per_epoch:>11.2f}"
        print(f"{NEURONS[name][0]:8}{cells}")
    print("(after the last epoch; firing rate in spikes per neuron and time step, on the test digits)")


def save_figure(results: dict[str, Result], digit: Tensor, label: int, title: str, path: Path) -> None:
    """Learning curves of all neurons; pixels [T] of one test digit and what the first neuron's first layer fires."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplot_mosaic([["curves", "input"], ["curves", "raster"]], height_ratios=(1, 5))
    curves, pixels, raster = axes["curves"], axes["input"], axes["raster"]
    for name, r in results.items():
        shown, line, color = NEURONS[name]
        percent = [100 * a for a in r.accuracies]
        curves.plot(range(1, len(percent) + 1), percent, line, color=color, linewidth=2, label=shown)
    curves.axhline(10, color="grey", linewidth=1, zorder=0, label="chance")
    curves.set(xlabel="epoch", ylabel="test accuracy (%)", ylim=(0, 100))
    curves.grid(alpha=0.3)
    curves.legend(loc="lower right")

    name, first = next(iter(results.items()))
    shown, _, color = NEURONS[name]
    pixels.bar(range(len(digit)), digit.numpy(), width=1.0, color="black")
    pixels.set(title=f"a test digit ({label}), one pixel per time step", ylabel="pixel", ylim=(0, 1))
    pixels.tick_params(labelbottom=False)
    pixels.sharex(raster)
    raster.scatter(*first.raster.numpy().nonzero(), s=12, marker="|", color=color)
    raster.set(xlabel="time step", ylabel=f"{shown} neuron of the first layer", xlim=(-1, len(digit)))
    raster.set_ylim(-1, first.raster.shape[1])
    figure.savefig(path, dpi=120)


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


def neuron_names(text: str) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in NEURONS:
            raise argparse.ArgumentTypeError(f"must be among {', '.join(NEURONS)}, joined by commas, got {name!r}")
    return names


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--framework", choices=FRAMEWORKS, default="spikingjelly", help="whose neurons to use")
    parser.add_argument("--neuron", type=neuron_names, default="pmsn,tclif,lif", help="one or more, joined by commas")
    parser.add_argument("--permute", action="store_true", help="shuffle the pixels, the same way for all digits")
    parser.add_argument("--epochs", type=positive(int), default=40, help="passes over the training digits")
    parser.add_argument("--width", type=positive(int), default=64, help="neurons per layer")
    parser.add_argument("--batch-size", type=positive(int), default=64, help="digits per training step")
    parser.add_argument("--lr", type=positive(float), default=2e-2, help="learning rate of the weights")
    parser.add_argument("--neuron-lr", type=positive(float), default=1e-3, help="learning rate inside the neurons")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and the order of the digits")
    parser.add_argument("--output", type=Path, default=Path("runs"), help="folder for the figure")
    args = parser.parse_args()
    try:
        args.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"argument --output: cannot be made a folder, got {str(args.output)!r} ({error.strerror})")
    return args


def main() -> int:
    args = parse_arguments()
    torch.set_num_threads(1)  # layers this small gain little from more, and lose much where cores are shared
    makers, reset = FRAMEWORKS[args.framework]()
    data = load_sequences(args.permute)
    results: dict[str, Result] = {}
    for name in args.neuron:
        torch.manual_seed(args.seed)
        try:
            results[name] = train(name, Net(args.width, makers[name]), reset, data, args)
        except KeyboardInterrupt:
            print(f"\ninterrupted during {name}", file=sys.stderr)
            break
        except Exception:  # the other neurons' results are still wanted
            traceback.print_exc()
    if results:
        print_table(results)
        path = args.output / f"sequential_digits_{args.framework}{'_permuted' if args.permute else ''}.png"
        title = f"{'Permuted' if args.permute else 'Sequential'} digits, {args.framework}"
        save_figure(results, data[1][:, 0, 0], data[3][0].item(), title, path)
        print(f"learning curves and a spike raster: {path}")
    return 0 if len(results) == len(args.neuron) else 1


if __name__ == "__main__":
    sys.exit(main())
