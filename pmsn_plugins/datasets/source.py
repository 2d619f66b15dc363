"""What every data set gives to the training loop: samples, labels, and how a batch becomes a sequence."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._checks import (
    check_callable,
    check_choice,
    check_finite,
    check_int_at_least,
    check_type,
    shown,
)


def time_first(batch: Tensor) -> Tensor:
    """[N, T, *] -> [T, N, *].

    Example:
        >>> time_first(torch.rand(8, 10, 3)).shape
        torch.Size([10, 8, 3])
    """
    check_type("batch", batch, Tensor, "a torch.Tensor")
    if batch.ndim < 2:
        raise ValueError(f"batch must be [N, T, *], got shape {tuple(batch.shape)}")
    return batch.transpose(0, 1)


class Samples(Protocol):
    """A data set of known length, its samples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class DataSource:
    """One data set, ready for training.

    Attributes:
        name: for messages.
        num_classes: labels are 0..num_classes-1.
        train: samples ``(x, label)``, without augmentation.
        labels: label of each training sample, [n].
        load_test: opens the test set. A function, so that nothing reads it before the end.
        to_sequence: a batch of samples [N, *] -> the network's input [T, N, *].
        validation: the data set's own validation part; None splits one off ``train``.
        speakers: speaker of each training sample, [n], where known.
        train_transform, eval_transform: applied to ``x`` of one sample.
        permutation: order of the time steps, where it was shuffled: part of the task, stored with every checkpoint.

    Raises:
        TypeError: a field is of another type; labels or speakers are not integers.
        ValueError: labels outside the classes, or not as many as samples.
    """

    name: str
    num_classes: int
    train: Samples
    labels: np.ndarray
    load_test: Callable[[], Samples]
    to_sequence: Callable[[Tensor], Tensor] = time_first
    validation: Samples | None = None
    speakers: np.ndarray | None = None
    train_transform: Callable[[Any], Tensor] | None = None
    eval_transform: Callable[[Any], Tensor] | None = None
    permutation: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "a string")
        check_dataset("train", self.train)
        check_labels(self.name, self.labels, self.num_classes)
        for name, values in (("labels", self.labels), ("speakers", self.speakers)):
            if values is not None and len(check_integers(f"{name} of {self.name}", values)) != len(self.train):
                raise ValueError(f"{self.name} has {len(self.train)} training samples but {len(values)} {name}")
        check_callable("load_test", self.load_test, "a function that opens the test set")
        check_callable("to_sequence", self.to_sequence, "a function of a batch of samples")
        if self.validation is not None:
            check_dataset("validation", self.validation)
        for name in ("train_transform", "eval_transform"):
            if (transform := getattr(self, name)) is not None:
                check_callable(name, transform, "a function of a sample or None")
        if self.permutation is not None:
            check_type("permutation", self.permutation, Tensor, "a torch.Tensor or None")
            check_integers("permutation", self.permutation)


def check_dataset(name: str, value: Any) -> None:
    """Raise unless ``value`` has samples by number, at least one."""
    numbered = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if not numbered or isinstance(value, str | bytes | Mapping | Tensor):
        raise TypeError(f"{name} must be a data set with a length and numbered samples, got {shown(value)}")
    if len(value) == 0:
        raise ValueError(f"{name} must have samples, got an empty {type(value).__name__}")


def check_integers(name: str, values: Sequence[int] | np.ndarray | Tensor) -> np.ndarray:
    """The values as an array [n]. Raises TypeError unless they are integers: NumPy would cut off the fractions."""
    array = np.asarray(values)
    if array.ndim != 1 or not (array.dtype.kind in "iu" or array.size == 0):
        raise TypeError(f"{name} must be a series of integers, got {shown(array if array.ndim else values)}")
    return array


def check_labels(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Raise unless every label is an integer in 0..num_classes-1: TypeError for other types, ValueError for numbers.

    Example:
        >>> check_labels("labels", np.array([0, 3]), num_classes=3)
        Traceback (most recent call last):
        ValueError: ...
    """
    check_type("name", name, str, "a string")
    check_int_at_least("num_classes", num_classes, 1)
    labels = check_integers(f"labels of {name}", labels)
    if labels.size == 0:
        raise ValueError(f"{name} has no samples")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"{name} has labels {low}..{high}, but {num_classes} classes allow 0..{num_classes - 1}")


def validation_split(
    source: DataSource, fraction: float, stratify: str = "class", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split the training samples into training and validation indices.

    Args:
        source: what to split.
        fraction: part that goes to validation, between 0 and 1.
        stratify: ``'class'`` keeps the proportions of the labels, ``'speaker'`` those of the speakers.
        seed: of the shuffle.

    Returns:
        Sorted indices of the training and the validation part.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is outside its allowed values, or the samples cannot be split like this.

    Example:
        >>> from pmsn_plugins.datasets import digits_source
        >>> train, validation = validation_split(digits_source(), fraction=0.1)
        >>> len(train) + len(validation)
        1437
    """
    from sklearn.model_selection import train_test_split

    check_type("source", source, DataSource, "a DataSource")
    check_finite("fraction", fraction)
    check_choice("stratify", stratify, ("class", "speaker"))
    check_int_at_least("seed", seed, 0)
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}")
    strata = source.labels if stratify == "class" else source.speakers
    if strata is None:
        raise ValueError(f"{source.name} does not say who speaks: stratify must be 'class'")
    try:
        train, validation = train_test_split(
            np.arange(len(strata)), test_size=fraction, stratify=strata, random_state=seed
        )
    except ValueError as error:
        raise ValueError(f"cannot split {fraction:g} of {source.name} ({len(strata)} samples): {error}") from None
    return np.sort(train), np.sort(validation)


class View(Dataset):
    """``dataset[indices]`` with a transform of ``x``.

    The transform's randomness depends on (seed, epoch, index) only: not on workers, processes, or where a run resumed.

    Raises:
        TypeError: an argument, or later the label of a sample, is of another type.
        ValueError: an index outside the data set.
    """

    def __init__(
        self,
        dataset: Samples,
        indices: Sequence[int] | np.ndarray | None = None,
        transform: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        check_dataset("dataset", dataset)
        if transform is not None:
            check_callable("transform", transform, "a function of a sample or None")
        check_int_at_least("seed", seed, 0)
        indices = np.arange(len(dataset)) if indices is None else check_integers("indices", indices)
        if indices.size and not (indices.min() >= 0 and indices.max() < len(dataset)):
            raise ValueError(
                f"indices must be in 0..{len(dataset) - 1} for {len(dataset)} samples, "
                f"got {indices.min()}..{indices.max()}"
            )
        self.dataset = dataset
        self.indices = indices
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x, label = self.dataset[int(self.indices[i])]
        try:
            label = operator.index(label)  # int() would cut off a fraction
        except TypeError:
            raise TypeError(f"label of sample {self.indices[i]} must be an integer, got {shown(label)}") from None
        if self.transform is not None:
            seed = np.random.SeedSequence((self.seed, self.epoch, int(self.indices[i]))).generate_state(1, np.uint64)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(seed[0]))
                x = self.transform(x)
        return x, label


def missing_files(name: str, expected: str, remedy: str) -> FileNotFoundError:
    """The error for data that is not there: which file is expected where, and what to do."""
    return FileNotFoundError(f"{name} not found: expected {expected}. {remedy}")
