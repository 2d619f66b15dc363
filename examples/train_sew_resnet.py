"""SEW ResNet with PMSN against IF: does the loss fall, and what does a step cost? Synthetic images, T = 4.

python examples/train_sew_resnet.py                                    # SEW ResNet-18, CIFAR-shaped images
python examples/train_sew_resnet.py --size 224 --batch-size 4 --context global
torchrun --nproc-per-node 4 -m pmsn_plugins.train imagenet-sew18 --data-dir data/imagenet --sync-batchnorm
                                                                       # the paper's run on ImageNet folders
"""

import argparse
import statistics
import time

import torch
from torch.utils.data import DataLoader

from pmsn_plugins import param_groups
from pmsn_plugins.datasets import repeated, synthetic_source
from pmsn_plugins.models import count_parameters, neuron_factory, reset_states, sew_resnet_static
from pmsn_plugins.training import loss_of


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, choices=(18, 34), default=18)
    parser.add_argument("--size", type=at_least_one, default=32, help="height and width of the images")
    parser.add_argument("--batch-size", type=at_least_one, default=16)
    parser.add_argument("--steps", type=at_least_one, default=10)
    parser.add_argument("--time-steps", type=at_least_one, default=4)
    parser.add_argument("--context", choices=("local", "global"), default="local")
    parser.add_argument("--init-from", help="'torchvision', or a file with a torchvision ResNet's state_dict")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    # every image starts from rest, so no state is kept
    pmsn = neuron_factory("pmsn", preset="static", context=args.context, keep_state=False)
    neurons = {"IF": neuron_factory("if"), "PMSN": pmsn}
    source = synthetic_source((3, args.size, args.size), 10, samples=max(4, args.batch_size))
    images, target = next(iter(DataLoader(source.train, args.batch_size)))
    images, target = images.to(device), target.to(device)
    x_seq = repeated(images, args.time_steps)
    seconds = {}
    for name, neuron in neurons.items():
        torch.manual_seed(0)
        net = sew_resnet_static(args.depth, neuron, num_classes=10, init_from=args.init_from).to(device)
        optimizer = torch.optim.SGD(param_groups(net, lr=0.02, neuron_lr=1e-3), momentum=0.9)
        losses, times = [], []
        for _ in range(args.steps):
            began = time.perf_counter()
            loss = loss_of(net(x_seq), target, readout="mean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            reset_states(net)
            losses.append(loss.item())  # also waits for the device
            times.append(time.perf_counter() - began)
        seconds[name] = statistics.median(times)
        print(f"{name:5}{count_parameters(net):>12,} parameters, loss " + " ".join(f"{value:.2f}" for value in losses))
    ratio = seconds["PMSN"] / seconds["IF"]
    print(
        f"step time: PMSN {1e3 * seconds['PMSN']:.0f} ms, IF {1e3 * seconds['IF']:.0f} ms, ratio {ratio:.2f} ({device})"
    )


if __name__ == "__main__":
    main()
