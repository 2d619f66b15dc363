"""Take SpikingJelly's own SEW ResNet-18, replace every IF neuron by a PMSN, and train both for some steps.

    python examples/swap_sew_resnet.py
    python examples/swap_sew_resnet.py --steps 100 --batch-size 64

The two lines to copy are the ones with ``sew_resnet18`` and ``swap_neurons``. The data are the handwritten digits that
come with scikit-learn, scaled to 3 x 32 x 32 and shown for T = 4 time steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from spikingjelly.activation_based import functional, neuron, surrogate
from spikingjelly.activation_based.model.sew_resnet import sew_resnet18
from torch import Tensor, nn
from tqdm import tqdm

import pmsn_plugins
from pmsn_plugins import swap_neurons
from pmsn_plugins.spikingjelly import PMSNNode

T = 4


def if_resnet() -> nn.Module:
    """SEW ResNet-18 as SpikingJelly makes it; in multi-step mode it takes [T, N, 3, H, W]."""
    net = sew_resnet18(
        cnf="ADD",
        spiking_neuron=neuron.IFNode,
        surrogate_function=surrogate.ATan(),
        detach_reset=True,
        num_classes=10,
    )
    functional.set_step_mode(net, "m")
    return net


def pmsn_resnet() -> nn.Module:
    """The same network with PMSN neurons, initialised for static images."""
    net = if_resnet()
    print(swap_neurons(net, partial(PMSNNode, preset="static")))
    return net


def load_images() -> tuple[Tensor, Tensor]:
    """Images [N, 3, 32, 32], standardised, and labels [N]."""
    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
    images = (images - images.mean()) / images.std()
    return F.interpolate(images, size=32, mode="bilinear").expand(-1, 3, -1, -1), torch.tensor(labels)


def train(
    name: str, net: nn.Module, images: Tensor, labels: Tensor, steps: int, batch_size: int
) -> tuple[float, float]:
    """Train on random batches. Returns the mean loss of the last ten steps and the median seconds per step."""
    optimizer = torch.optim.AdamW(pmsn_plugins.param_groups(net, lr=1e-3, neuron_lr=1e-3))
    losses, seconds = [], []
    progress = tqdm(range(steps), desc=f"{name:4}", unit="step")
    for _ in progress:
        start = time.perf_counter()
        batch = torch.randint(len(labels), (batch_size,))
        functional.reset_net(net)
        scores = net(images[batch].expand(T, -1, -1, -1, -1)).mean(0)
        loss = F.cross_entropy(scores, labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
        progress.set_postfix(loss=f"{losses[-1]:.3f}")
    return statistics.mean(losses[-10:]), statistics.median(seconds)


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=at_least_one, default=30, help="default: %(default)s")
    parser.add_argument("--batch-size", type=at_least_one, default=32, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    torch.set_num_threads(1)  # steadier times to compare: with more, they depend on what else is running
    images, labels = load_images()
    rows = []
    for name, make in (("IF", if_resnet), ("PMSN", pmsn_resnet)):
        torch.manual_seed(args.seed)
        net = make()
        parameters = sum(p.numel() for p in net.parameters())
        rows.append((name, parameters, *train(name, net, images, labels, args.steps, args.batch_size)))
    print(f"\n{'neuron':8}{'parameters':>12}{'loss, last 10 steps':>21}{'ms / step':>11}")
    for name, parameters, loss, seconds in rows:
        print(f"{name:8}{parameters:>12,}{loss:>21.3f}{1000 * seconds:>11.0f}")


if __name__ == "__main__":
    main()
