"""From settings to data and network: the tables of what a run can be made of."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import datasets
from .._checks import check_choice
from ..datasets import DataSource
from ..models import column_cifar, feedforward, neuron_factory, pixel_cifar, residual, sew_resnet_static
from ..models.neurons import NeuronFactory
from .presets import Settings


class DatasetEntry(NamedTuple):
    """How a data set is opened, and the shape of its samples for a dry run.

    ``open`` takes the data folder, those of the run's keywords that ``takes`` names, and the ``dataset_options``.
    """

    open: Callable[..., DataSource]
    sample_shape: Callable[..., tuple[int, ...]]
    num_classes: int
    to_sequence: Callable[[Tensor], Tensor] = datasets.time_first
    takes: tuple[str, ...] = ("download",)


def _digits(root: Path | None, **options: Any) -> DataSource:
    return datasets.digits_source(**options)


def _events_shape(T: int = 250, channels: int = 140, **options: Any) -> tuple[int, int]:
    return T, channels


def _fixed(*shape: int) -> Callable[..., tuple[int, ...]]:
    return lambda **options: shape


_PERMUTED = ("download", "permutation", "seed")

DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(_digits, _fixed(1, 8, 8), 10, datasets.pixels, ("permutation", "seed")),
    "smnist": DatasetEntry(datasets.mnist_source, _fixed(1, 28, 28), 10, datasets.pixels),
    "psmnist": DatasetEntry(
        partial(datasets.mnist_source, permute=True), _fixed(1, 28, 28), 10, datasets.pixels, _PERMUTED
    ),
    "cifar10-pixels": DatasetEntry(datasets.cifar_source, _fixed(3, 32, 32), 10, datasets.pixels),
    "cifar10-columns": DatasetEntry(
        partial(datasets.cifar_source, by="column", augment=True), _fixed(3, 32, 32), 10, datasets.columns
    ),
    "cifar100-columns": DatasetEntry(
        partial(datasets.cifar_source, num_classes=100, by="column", augment=True),
        _fixed(3, 32, 32),
        100,
        datasets.columns,
    ),
    "shd": DatasetEntry(partial(datasets.spoken_source, "shd"), _events_shape, 20),
    "ssc": DatasetEntry(partial(datasets.spoken_source, "ssc"), _events_shape, 35),
    "gsc": DatasetEntry(datasets.speech_commands_source, _fixed(101, 40), 12, takes=("download", "seed")),
    "imagenet": DatasetEntry(
        datasets.imagenet_source, _fixed(3, 224, 224), 1000, partial(datasets.repeated, T=4), takes=()
    ),
}
"""Data sets by name."""


def _feedforward(
    neuron: NeuronFactory, inputs: int, num_classes: int, hidden: tuple[int, ...], **options: Any
) -> nn.Module:
    return feedforward((inputs, *hidden, num_classes), neuron, **options)


def _residual(
    neuron: NeuronFactory, inputs: int, num_classes: int, width: int, blocks: int, **options: Any
) -> nn.Module:
    return residual(inputs, width, blocks, num_classes, neuron, **options)


def _ignoring_inputs(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    return lambda neuron, inputs, num_classes, **options: build(neuron, num_classes=num_classes, **options)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "feedforward": _feedforward,
    "residual": _residual,
    "pixel-cifar": _ignoring_inputs(pixel_cifar),
    "column-cifar": _ignoring_inputs(column_cifar),
    "sew18": _ignoring_inputs(partial(sew_resnet_static, 18)),
    "sew34": _ignoring_inputs(partial(sew_resnet_static, 34)),
}
"""Networks by name: functions of the neuron factory, the number of inputs and classes, and ``network_options``."""


def open_source(
    settings: Settings,
    data_dir: Path | None = None,
    *,
    download: bool = False,
    dry_run: bool = False,
    permutation: Tensor | None = None,
) -> DataSource:
    """The data of a run.

    Args:
        settings: which data set, with what options.
        data_dir: folder of the data set; the digits need none.
        download: let the data set's library download what is missing.
        dry_run: synthetic data of the same shape instead.
        permutation: the order of time steps that a checkpoint was trained with.
    """
    check_choice("dataset", settings.dataset, DATASETS)
    entry = DATASETS[settings.dataset]
    if dry_run:
        shape = entry.sample_shape(**settings.dataset_options)
        return datasets.synthetic_source(
            shape, entry.num_classes, samples=4 * settings.batch_size, to_sequence=entry.to_sequence, seed=settings.seed
        )
    if data_dir is None and settings.dataset != "digits":
        raise ValueError(f"data_dir must name the folder of {settings.dataset!r} (or use a dry run)")
    provided = {"download": download, "permutation": permutation, "seed": settings.seed}
    return entry.open(data_dir, **{key: provided[key] for key in entry.takes}, **settings.dataset_options)


def build_network(settings: Settings, source: DataSource) -> nn.Module:
    """The network of a run, its widths from the shape of the data. Initial values depend on ``settings.seed`` alone."""
    check_choice("network", settings.network, NETWORKS)
    x, _ = source.train[0]
    if source.eval_transform is not None:
        x = source.eval_transform(x)
    T, _, inputs = source.to_sequence(x[None]).shape[:3]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        neuron = neuron_factory(settings.neuron, framework=settings.framework, T=T, **settings.neuron_options)
        try:
            return NETWORKS[settings.network](neuron, inputs, source.num_classes, **settings.network_options)
        except TypeError as error:
            raise TypeError(f"network {settings.network!r} with options {settings.network_options}: {error}") from error
