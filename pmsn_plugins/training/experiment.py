"""From settings to data and network: the tables of what a run can be made of."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import datasets
from .._checks import check_choice, check_flag, check_options, check_path, check_type
from ..datasets import DataSource
from ..models import NEURONS, column_cifar, feedforward, neuron_factory, pixel_cifar, residual, sew_resnet_static
from ..models.neurons import NeuronFactory
from .settings import Settings


class DatasetEntry(NamedTuple):
    """How a data set is opened, and what a dry run takes in its place.

    ``open`` takes the data folder, those of the run's keywords that ``takes`` names, and the ``dataset_options``;
    ``synthetic`` turns the same options into arguments of :func:`pmsn_plugins.datasets.synthetic_source`.
    """

    open: Callable[..., DataSource]
    synthetic: Callable[..., dict[str, Any]]
    takes: tuple[str, ...] = ("download",)


def _like(
    sample_shape: tuple[int, ...], num_classes: int, to_sequence: Callable[[Tensor], Tensor] = datasets.time_first
) -> Callable[..., dict[str, Any]]:
    arguments = {"sample_shape": sample_shape, "num_classes": num_classes, "to_sequence": to_sequence}
    return lambda **options: arguments


def _like_events(
    num_classes: int, T: int = 250, time_span: float = 1.4, channels: int = 140, binning: str = "equal"
) -> dict[str, Any]:
    datasets.check_binning(T, time_span, channels, binning)
    return _like((T, channels), num_classes)()


def _like_imagenet(T: int = 4, num_classes: int = 1000) -> dict[str, Any]:
    return _like((3, 224, 224), num_classes, partial(datasets.repeated, T=T))()


def _digits(
    root: Path | None, *, permute: bool = False, permutation: Tensor | None = None, seed: int = 0
) -> DataSource:
    return datasets.digits_source(permute=permute, permutation=permutation, seed=seed)


_PERMUTED = ("download", "permutation", "seed")
_MNIST = _like((1, 28, 28), 10, datasets.pixels)

DATASETS: dict[str, DatasetEntry] = {
    "digits": DatasetEntry(_digits, _like((1, 8, 8), 10, datasets.pixels), ("permutation", "seed")),
    "smnist": DatasetEntry(partial(datasets.mnist_source, permute=False), _MNIST, _PERMUTED),
    "psmnist": DatasetEntry(partial(datasets.mnist_source, permute=True), _MNIST, _PERMUTED),
    "cifar10-pixels": DatasetEntry(
        partial(datasets.cifar_source, num_classes=10, by="pixel"), _like((3, 32, 32), 10, datasets.pixels)
    ),
    "cifar10-columns": DatasetEntry(
        partial(datasets.cifar_source, num_classes=10, by="column", augment=True),
        _like((3, 32, 32), 10, datasets.columns),
    ),
    "cifar100-columns": DatasetEntry(
        partial(datasets.cifar_source, num_classes=100, by="column", augment=True),
        _like((3, 32, 32), 100, datasets.columns),
    ),
    "shd": DatasetEntry(partial(datasets.spoken_source, "shd"), partial(_like_events, 20)),
    "ssc": DatasetEntry(partial(datasets.spoken_source, "ssc"), partial(_like_events, 35)),
    "gsc": DatasetEntry(datasets.speech_commands_source, _like((101, 40), 12), ("download", "seed")),
    "imagenet": DatasetEntry(datasets.imagenet_source, _like_imagenet, ()),
}
"""Data sets by name."""


def _feedforward(
    neuron: NeuronFactory,
    T: int,
    inputs: int,
    num_classes: int,
    *,
    hidden: tuple[int, ...],
    feedback: tuple[int, ...] = (),
    dropout: float = 0.0,
    current_dropout: float = 0.0,
    sum_inputs: int = 1,
) -> nn.Module:
    return feedforward(
        (inputs, *hidden, num_classes),
        neuron,
        feedback=feedback,
        dropout=dropout,
        current_dropout=current_dropout,
        sum_inputs=sum_inputs,
    )


def _residual(
    neuron: NeuronFactory, T: int, inputs: int, num_classes: int, *, width: int, blocks: int, dropout: float = 0.0
) -> nn.Module:
    return residual(inputs, width, blocks, num_classes, neuron, dropout=dropout)


def _pixel_cifar(neuron: NeuronFactory, T: int, inputs: int, num_classes: int, *, dropout: float = 0.0) -> nn.Module:
    return pixel_cifar(neuron, num_classes=num_classes, dropout=dropout)


def _column_cifar(neuron: NeuronFactory, T: int, inputs: int, num_classes: int) -> nn.Module:
    return column_cifar(neuron, num_classes=num_classes)


def _sew(
    depth: int,
    with_pe: bool,
    neuron: NeuronFactory,
    T: int,
    inputs: int,
    num_classes: int,
    *,
    init_from: str | None = None,
) -> nn.Module:
    return sew_resnet_static(depth, neuron, num_classes=num_classes, T=T if with_pe else None, init_from=init_from)


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "feedforward": _feedforward,
    "residual": _residual,
    "pixel-cifar": _pixel_cifar,
    "column-cifar": _column_cifar,
    "sew18": partial(_sew, 18, False),
    "sew34": partial(_sew, 34, False),
    "sew18-pe": partial(_sew, 18, True),
    "sew34-pe": partial(_sew, 34, True),
}
"""Networks by name: functions of the neuron factory, the number of time steps, inputs and classes, and
``network_options``. ``-pe`` is the network of the PMSN authors' script, see :func:`sew_resnet_static`."""


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

    Raises:
        TypeError: an argument is of another type.
        ValueError: unknown data set or option, or ``data_dir`` missing.
        FileNotFoundError: says which file is expected where.

    Example:
        >>> from pmsn_plugins.training import PRESETS
        >>> open_source(PRESETS["shd"], dry_run=True).num_classes
        20
    """
    check_type("settings", settings, Settings, "Settings")
    if data_dir is not None:
        check_path("data_dir", data_dir)
    check_flag("download", download)
    check_flag("dry_run", dry_run)
    if permutation is not None:
        check_type("permutation", permutation, Tensor, "a torch.Tensor of integers or None")
    check_choice("dataset", settings.dataset, DATASETS)
    entry = DATASETS[settings.dataset]
    fixed = getattr(entry.open, "keywords", {})
    what = f"dataset {settings.dataset!r}"
    _check_options(what, settings.dataset_options, entry.open, {*entry.takes, *fixed})
    with _blaming(what, settings.dataset_options):
        if dry_run:
            arguments = entry.synthetic(**settings.dataset_options)
            return datasets.synthetic_source(**arguments, samples=4 * settings.batch_size, seed=settings.seed)
        if data_dir is None and settings.dataset != "digits":
            raise ValueError(f"data_dir must name the folder of {settings.dataset!r} (or use a dry run)")
        provided = {"download": download, "permutation": permutation, "seed": settings.seed}
        return entry.open(data_dir, **{key: provided[key] for key in entry.takes}, **settings.dataset_options)


def build_network(settings: Settings, source: DataSource, *, initial_weights: bool = True) -> nn.Module:
    """The network of a run, its widths from the shape of the data. Initial values depend on ``settings.seed`` alone.

    Args:
        initial_weights: False does not look for weights to begin with (``init_from``): a checkpoint follows, or a dry
            run.

    Raises:
        TypeError: an argument is of another type.
        ValueError: unknown network, neuron or option, or a value that is not allowed.

    Example:
        >>> from pmsn_plugins.training import PRESETS
        >>> settings = PRESETS["digits"]
        >>> net = build_network(settings, open_source(settings))
    """
    check_type("settings", settings, Settings, "Settings")
    check_type("source", source, DataSource, "a DataSource")
    check_flag("initial_weights", initial_weights)
    check_choice("network", settings.network, NETWORKS)
    check_choice("framework", settings.framework, NEURONS)
    check_choice("neuron", settings.neuron, NEURONS[settings.framework])
    build, options = NETWORKS[settings.network], dict(settings.network_options)
    _check_options(f"network {settings.network!r}", options, build)
    if not initial_weights:
        options.pop("init_from", None)
    x, _ = source.train[0]
    if source.eval_transform is not None:
        x = source.eval_transform(x)
    T, _, inputs = source.to_sequence(x[None]).shape[:3]
    neuron = neuron_factory(settings.neuron, framework=settings.framework, T=T, **settings.neuron_options)
    with torch.random.fork_rng(devices=[]), _blaming(f"neuron {settings.neuron!r}", settings.neuron_options):
        neuron(1)
    with torch.random.fork_rng(devices=[]), _blaming(f"network {settings.network!r}", options):
        torch.default_generator.manual_seed(settings.seed)
        return build(neuron, T, inputs, source.num_classes, **options)


def _check_options(what: str, options: dict[str, Any], build: Callable, reserved: Collection[str] = ()) -> None:
    """Raise ValueError unless every option is a keyword of ``build`` that is not reserved."""
    keywords = inspect.signature(build).parameters.values()
    allowed = [p.name for p in keywords if p.kind is p.KEYWORD_ONLY and p.name not in reserved]
    check_options(what, options, allowed)


@contextmanager
def _blaming(what: str, options: dict[str, Any]) -> Iterator[None]:
    """Say of errors that do not speak for themselves whose options caused them."""
    try:
        yield
    except TypeError as error:
        raise TypeError(f"{what} with options {options}: {error}") from error
    except AssertionError as error:  # how SpikingJelly checks arguments: the line says what is allowed
        line = traceback.extract_tb(error.__traceback__)[-1].line
        raise ValueError(f"{what} with options {options}: {str(error) or line}") from error
