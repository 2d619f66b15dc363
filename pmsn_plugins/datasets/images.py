"""Images as sequences: MNIST by pixel, CIFAR by pixel or column, scikit-learn's digits; ImageNet as static images."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from .._checks import check_choice, check_flag, check_int_at_least, check_path, check_type, shown
from .source import DataSource, missing_files

_CIFAR_STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    100: ((0.50707516, 0.48654887, 0.44091784), (0.26733429, 0.25643846, 0.27615047)),
}
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pixels(images: Tensor, permutation: Tensor | None = None) -> Tensor:
    """[N, C, H, W] -> [H W, N, C], one pixel per time step, row by row or in the order of ``permutation``.

    Example:
        >>> pixels(torch.rand(8, 3, 4, 5)).shape
        torch.Size([20, 8, 3])
    """
    _check_images(images)
    if permutation is not None:
        _check_permutation(permutation, images.shape[2] * images.shape[3])
    sequence = images.flatten(2).permute(2, 0, 1)
    return sequence if permutation is None else sequence[permutation.to(sequence.device)]


def columns(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [W, N, C, H], one column of pixels per time step.

    Example:
        >>> columns(torch.rand(8, 3, 4, 5)).shape
        torch.Size([5, 8, 3, 4])
    """
    _check_images(images)
    return images.permute(3, 0, 1, 2)


def repeated(images: Tensor, T: int) -> Tensor:
    """[N, C, H, W] -> [T, N, C, H, W], the same image at every time step.

    Example:
        >>> repeated(torch.rand(8, 3, 4, 5), T=2).shape
        torch.Size([2, 8, 3, 4, 5])
    """
    check_type("images", images, Tensor, "a torch.Tensor")
    check_int_at_least("T", T, 1)
    return images.expand(T, *images.shape)


def _check_images(images: Tensor) -> None:
    check_type("images", images, Tensor, "a torch.Tensor")
    if images.ndim != 4:
        raise ValueError(f"images must be [N, C, H, W], got shape {tuple(images.shape)}")


def _check_permutation(permutation: Tensor, T: int) -> None:
    check_type("permutation", permutation, Tensor, "a torch.Tensor of integers or None")
    if permutation.dtype not in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8):
        raise TypeError(f"permutation must be a torch.Tensor of integers or None, got {shown(permutation)}")
    if permutation.shape != (T,):
        raise ValueError(f"permutation must hold 0..{T - 1} once each, got shape {tuple(permutation.shape)}")


def _permutation(T: int, permute: bool, permutation: Tensor | None, seed: int) -> Tensor | None:
    check_flag("permute", permute)
    check_int_at_least("seed", seed, 0)
    if not permute:
        if permutation is not None:
            raise ValueError(f"permutation must be None unless permute=True, got {shown(permutation)}")
        return None
    if permutation is None:
        return torch.randperm(T, generator=torch.Generator().manual_seed(seed))
    _check_permutation(permutation, T)
    if sorted(permutation.tolist()) != list(range(T)):
        raise ValueError(f"permutation must hold 0..{T - 1} once each, got {shown(permutation)}")
    return permutation.long()


def mnist_source(
    root: str | Path,
    *,
    permute: bool = False,
    permutation: Tensor | None = None,
    seed: int = 0,
    download: bool = False,
) -> DataSource:
    """Sequential MNIST: 784 steps of one grey value in [0, 1].

    Args:
        permute: shuffle the steps, the same way for all samples.
        permutation: the one a checkpoint was trained with; None draws it from ``seed``.
    """
    from torchvision import datasets

    check_path("root", root)
    check_flag("download", download)
    parts = {
        train: partial(_open_torchvision, datasets.MNIST, root, "MNIST/raw/*-ubyte", train=train, download=download)
        for train in (True, False)
    }
    permutation = _permutation(784, permute, permutation, seed)
    train = parts[True]()
    return DataSource(
        name="sequential MNIST",
        num_classes=10,
        train=_grey(train),
        labels=train.targets.numpy(),
        load_test=lambda: _grey(parts[False]()),
        to_sequence=partial(pixels, permutation=permutation),
        permutation=permutation,
    )


def _grey(dataset: Any) -> TensorDataset:
    return TensorDataset(dataset.data.unsqueeze(1).float() / 255.0, dataset.targets)


def cifar_source(
    root: str | Path, *, num_classes: int = 10, by: str = "pixel", augment: bool = False, download: bool = False
) -> DataSource:
    """Sequential CIFAR-10 or -100, normalised: 1024 steps of one RGB pixel, or 32 steps of one column of 32 RGB pixels.

    ``augment`` is the recipe of the authors' T = 32 script: horizontal flip, bilinear TrivialAugment, random erasing.
    """
    from torchvision import datasets
    from torchvision.transforms import v2

    check_path("root", root)
    check_int_at_least("num_classes", num_classes, 1)
    if num_classes not in _CIFAR_STATISTICS:
        raise ValueError(f"num_classes must be 10 or 100, got {num_classes}")
    check_choice("by", by, ("pixel", "column"))
    check_flag("augment", augment)
    check_flag("download", download)
    kind, folder = (
        (datasets.CIFAR10, "cifar-10-batches-py") if num_classes == 10 else (datasets.CIFAR100, "cifar-100-python")
    )
    parts = {
        train: partial(_open_torchvision, kind, root, folder, train=train, download=download) for train in (True, False)
    }
    normalise = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(*_CIFAR_STATISTICS[num_classes])]
    augmentation = [
        v2.RandomHorizontalFlip(),
        v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR),
        *normalise,
        v2.RandomErasing(0.1),
    ]
    train = parts[True]()
    return DataSource(
        name=f"sequential CIFAR-{num_classes} by {by}",
        num_classes=num_classes,
        train=_rgb(train),
        labels=np.asarray(train.targets),
        load_test=lambda: _rgb(parts[False]()),
        to_sequence=pixels if by == "pixel" else columns,
        train_transform=v2.Compose(augmentation if augment else normalise),
        eval_transform=v2.Compose(normalise),
    )


def _rgb(dataset: Any) -> TensorDataset:
    return TensorDataset(torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets))


def _open_torchvision(kind: type, root: str | Path, files: str, *, train: bool, download: bool) -> Any:
    try:
        return kind(str(root), train=train, download=download)
    except (RuntimeError, OSError) as error:  # no such files, or no network
        raise missing_files(
            kind.__name__, str(Path(root) / files), f"download=True (--download) fetches it (torchvision: {error})"
        ) from error


def digits_source(*, permute: bool = False, permutation: Tensor | None = None, seed: int = 0) -> DataSource:
    """The 1797 handwritten digits of scikit-learn: 64 steps of one grey value in [0, 1]; a fifth is the test set.

    Example:
        >>> source = digits_source()
        >>> len(source.train), len(source.load_test()), source.num_classes
        (1437, 360, 10)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(labels)), test_size=0.2, stratify=labels, random_state=0)
    images = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16.0
    permutation = _permutation(64, permute, permutation, seed)
    return DataSource(
        name="digits",
        num_classes=10,
        train=TensorDataset(images[train], torch.from_numpy(labels[train])),
        labels=labels[train],
        load_test=lambda: TensorDataset(images[test], torch.from_numpy(labels[test])),
        to_sequence=partial(pixels, permutation=permutation),
        permutation=permutation,
    )


def imagenet_source(root: str | Path, *, T: int = 4, num_classes: int = 1000) -> DataSource:
    """Folders ``train/<class>/*`` and ``val/<class>/*`` of images, as 224 x 224, normalised, shown T times.

    ``val`` is the test set; a validation part is split off ``train``.

    Raises:
        FileNotFoundError: says which folder is expected where.
        ValueError: the number of folders is not ``num_classes``, or ``val`` has other ones than ``train``.
    """
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    check_path("root", root)
    check_int_at_least("T", T, 1)
    check_int_at_least("num_classes", num_classes, 2)
    normalise = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*_IMAGENET_STATISTICS)]
    train = _open_folder(ImageFolder, Path(root) / "train", num_classes)
    return DataSource(
        name="ImageNet",
        num_classes=num_classes,
        train=train,
        labels=np.asarray(train.targets),
        load_test=lambda: _open_folder(ImageFolder, Path(root) / "val", num_classes, train.classes),
        to_sequence=partial(repeated, T=T),
        train_transform=v2.Compose([v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), *normalise]),
        eval_transform=v2.Compose([v2.Resize(256), v2.CenterCrop(224), *normalise]),
    )


def _open_folder(kind: type, path: Path, num_classes: int, classes: list[str] | None = None) -> Any:
    try:
        dataset = kind(str(path))
    except FileNotFoundError as error:
        raise missing_files("ImageNet", f"{path}/<class>/*.JPEG", f"(torchvision: {error})") from error
    if len(dataset.classes) != num_classes:
        raise ValueError(f"{path} has {len(dataset.classes)} class folders, expected {num_classes} (num_classes)")
    if classes not in (None, dataset.classes):  # labels are positions in the sorted list of folders
        other = sorted(set(dataset.classes) ^ set(classes))
        raise ValueError(f"{path} has other class folders than the training part: {', '.join(other[:5])}")
    return dataset
