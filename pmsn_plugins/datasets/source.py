"""What every data set gives to the training loop: samples, labels, and how a batch becomes a sequence."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._checks import check_choice


def time_first(batch: Tensor) -> Tensor:
    """[N, T, *] -> [T, N, *]."""
    return batch.transpose(0, 1)


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
    """

    name: str
    num_classes: int
    train: Dataset
    labels: np.ndarray
    load_test: Callable[[], Dataset]
    to_sequence: Callable[[Tensor], Tensor] = time_first
    validation: Dataset | None = None
    speakers: np.ndarray | None = None
    train_transform: Callable[[Any], Tensor] | None = None
    eval_transform: Callable[[Any], Tensor] | None = None
    permutation: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_labels(self.name, self.labels, self.num_classes)


def check_labels(name: str, labels: np.ndarray, num_classes: int) -> None:
    """Raise ValueError unless every label is an integer in 0..num_classes-1."""
    labels = np.asarray(labels)
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
    """
    from sklearn.model_selection import train_test_split

    check_choice("stratify", stratify, ("class", "speaker"))
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
    """

    def __init__(
        self,
        dataset: Dataset,
        indices: Sequence[int] | np.ndarray | None = None,
        transform: Callable[[Any], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self.indices = np.arange(len(dataset)) if indices is None else np.asarray(indices)
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        x, label = self.dataset[int(self.indices[i])]
        if self.transform is not None:
            seed = np.random.SeedSequence((self.seed, self.epoch, int(self.indices[i]))).generate_state(1, np.uint64)
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(seed[0]))
                x = self.transform(x)
        return x, int(label)


def check_switch(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def missing_files(name: str, expected: str, remedy: str) -> FileNotFoundError:
    """The error for data that is not there: which file is expected where, and what to do."""
    return FileNotFoundError(f"{name} not found: expected {expected}. {remedy}")
