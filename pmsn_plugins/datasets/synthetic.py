"""Random data of any shape that can be learned: for dry runs, timing and tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._checks import check_int_at_least, check_ints_at_least
from .source import DataSource, time_first

_PATTERNS = 10
"""Most classes that occur: more would need more samples than a dry run has."""


class SyntheticSamples(Dataset):
    """Item i is (its class's random pattern plus noise, both in [0, 1]; class i mod 10), made on access."""

    def __init__(self, sample_shape: tuple[int, ...], num_classes: int, samples: int, seed: int) -> None:
        check_ints_at_least("sample_shape", sample_shape, 1)
        if not sample_shape:
            raise ValueError("sample_shape must have at least one axis")
        check_int_at_least("num_classes", num_classes, 1)
        check_int_at_least("samples", samples, 1)
        check_int_at_least("seed", seed, 0)
        self.sample_shape, self.seed = tuple(sample_shape), seed
        self.labels = np.arange(samples) % min(num_classes, _PATTERNS)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        label = int(self.labels[i])
        pattern, noise = (self._random(key) for key in (label, 1_000_003 * (self.seed + 1) + i))
        return 0.7 * pattern + 0.3 * noise, label

    def _random(self, key: int) -> Tensor:
        return torch.rand(self.sample_shape, generator=torch.Generator().manual_seed(key))


def synthetic_source(
    sample_shape: tuple[int, ...],
    num_classes: int,
    *,
    samples: int = 256,
    to_sequence: Callable[[Tensor], Tensor] = time_first,
    seed: int = 0,
) -> DataSource:
    """A data source of ``samples`` random samples for training, a quarter as many for validation and for the test.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a size below 1, fewer than 2 classes or 4 samples, or a seed below 0.

    Example:
        >>> source = synthetic_source((10, 3), num_classes=4, samples=8)
        >>> x, label = source.train[0]
        >>> x.shape
        torch.Size([10, 3])
    """
    check_int_at_least("num_classes", num_classes, 2)
    check_int_at_least("samples", samples, 4)
    part = partial(SyntheticSamples, sample_shape, num_classes)
    train = part(samples, seed)
    return DataSource(
        name="synthetic data",
        num_classes=num_classes,
        train=train,
        labels=train.labels,
        load_test=partial(part, samples // 4, seed + 2),
        to_sequence=to_sequence,
        validation=part(samples // 4, seed + 1),
    )
