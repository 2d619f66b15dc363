"""Sequences of pixels (digits, S-MNIST, PS-MNIST, CIFAR-10) with any neuron, in a loop written out to copy from.

python examples/train_sequential.py                                             # scikit-learn's digits
python examples/train_sequential.py --task psmnist --data-dir data --download --neuron tclif
python -m pmsn_plugins.train smnist --data-dir data --download                  # the paper's run, resumable
"""

import argparse
from functools import partial

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from pmsn_plugins import datasets, param_groups
from pmsn_plugins.models import NEURONS, count_parameters, neuron_factory, pixel_cifar, reset_states, residual
from pmsn_plugins.training import evaluate

TASKS = {
    "digits": lambda args: datasets.digits_source(),
    "smnist": lambda args: datasets.mnist_source(args.data_dir, download=args.download),
    "psmnist": lambda args: datasets.mnist_source(args.data_dir, permute=True, download=args.download),
    "cifar10": lambda args: datasets.cifar_source(args.data_dir, download=args.download),
}


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, default="digits")
    parser.add_argument("--neuron", choices=NEURONS["spikingjelly"], default="pmsn")
    parser.add_argument("--width", type=at_least_one, default=64, help="channels per layer, except for cifar10")
    parser.add_argument("--epochs", type=at_least_one, default=20)
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--download", action="store_true")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)

    try:
        source = TASKS[args.task](args)
    except OSError as error:  # says which files are expected where
        parser.error(str(error))
    train, validation = datasets.validation_split(source, 0.1)
    loaders = {
        "train": DataLoader(datasets.View(source.train, train, source.train_transform), batch_size=64, shuffle=True),
        "validation": DataLoader(datasets.View(source.train, validation, source.eval_transform), batch_size=64),
    }

    image, _ = next(iter(loaders["validation"]))
    T, _, channels = source.to_sequence(image).shape
    neuron = neuron_factory(args.neuron, T=T)
    net = (
        pixel_cifar(neuron) if args.task == "cifar10" else residual(channels, args.width, 2, source.num_classes, neuron)
    )
    net.to(device)
    print(f"{source.name}: T = {T}, {count_parameters(net):,} parameters")

    optimizer = torch.optim.AdamW(param_groups(net, lr=1e-2, neuron_lr=1e-3, weight_decay=1e-2))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs)
    measure = partial(evaluate, net, to_sequence=source.to_sequence, device=device)
    for epoch in range(args.epochs):
        for x, target in tqdm(loaders["train"], leave=False):
            x_seq = source.to_sequence(x.to(device))  # [T, N, C]
            logits = net(x_seq).mean(0)  # the network reads out every step: [T, N, classes]
            loss = F.cross_entropy(logits, target.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            reset_states(net)
        scheduler.step()
        result = measure(loaders["validation"])
        print(f"epoch {epoch + 1:3}  loss {loss.item():.3f}  validation accuracy {100 * result.accuracy:.1f} %")

    test = measure(DataLoader(datasets.View(source.load_test(), None, source.eval_transform), batch_size=64))
    rates = ", ".join(f"{rate:.3f}" for rate in test.firing_rates.values())
    print(f"test accuracy {100 * test.accuracy:.1f} %, spikes per neuron and step: {rates}")


if __name__ == "__main__":
    main()
