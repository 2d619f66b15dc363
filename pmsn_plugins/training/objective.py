"""From a network's outputs at every time step to one prediction and one loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_choice, check_finite, check_floating, check_type, shown

READOUTS = ("mean", "sum")
LOSSES = ("ce", "tet")


def read_out(outputs: Tensor, readout: str) -> Tensor:
    """[T, N, classes] -> [N, classes]: the mean or the sum over time.

    Example:
        >>> read_out(torch.ones(10, 8, 3), "sum")[0]
        tensor([10., 10., 10.])
    """
    check_choice("readout", readout, READOUTS)
    check_outputs(outputs)
    return outputs.mean(0) if readout == "mean" else outputs.sum(0)


def loss_of(outputs: Tensor, target: Tensor, *, readout: str, loss: str = "ce", label_smoothing: float = 0.0) -> Tensor:
    """Mean loss over the batch.

    Args:
        outputs: [T, N, classes].
        target: class numbers [N], or class probabilities [N, classes].
        readout: ``'mean'`` or ``'sum'``.
        loss: ``'ce'``: cross-entropy of the readout. ``'tet'``: mean over time of each step's cross-entropy (temporal
            efficient training, Deng et al., ICLR 2022, without its regulariser).
        label_smoothing: between 0 and 1.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an argument is outside its allowed values, or shapes do not agree.

    Example:
        >>> loss_of(torch.zeros(10, 8, 2), torch.zeros(8, dtype=torch.long), readout="mean")  # ln 2
        tensor(0.6931)
    """
    check_choice("loss", loss, LOSSES)
    check_label_smoothing(label_smoothing)
    check_choice("readout", readout, READOUTS)
    check_outputs(outputs)
    _check_target(target, outputs)
    if loss == "tet":
        T = len(outputs)
        repeated = target.repeat(T, *(1,) * (target.ndim - 1))
        return F.cross_entropy(outputs.flatten(0, 1), repeated, label_smoothing=label_smoothing)
    return F.cross_entropy(read_out(outputs, readout), target, label_smoothing=label_smoothing)


def check_label_smoothing(value: float) -> None:
    """Raise unless ``value`` is a number between 0 and 1."""
    check_finite("label_smoothing", value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"label_smoothing must be between 0 and 1, got {value}")


def check_class_numbers(target: Tensor, num_classes: int) -> None:
    """Raise unless the target holds class numbers in 0..num_classes-1. On a GPU a wrong one would end the process."""
    check_type("target", target, Tensor, "a torch.Tensor of class numbers [N]")
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool or target.ndim != 1:
        raise TypeError(f"target must be a torch.Tensor of class numbers [N], got {shown(target)}")
    if target.numel() and not (target.min() >= 0 and target.max() < num_classes):
        raise ValueError(
            f"target must hold class numbers in 0..{num_classes - 1}, got {int(target.min())}..{int(target.max())}"
        )


def check_outputs(outputs: Tensor) -> None:
    """Raise unless these are a network's outputs of every time step."""
    check_floating("outputs", outputs)
    if outputs.ndim != 3:
        raise ValueError(f"outputs must be [T, N, classes], got shape {tuple(outputs.shape)}")


def _check_target(target: Tensor, outputs: Tensor) -> None:
    check_type("target", target, Tensor, "a torch.Tensor")
    allowed = "target must be class numbers [N] (torch.int64) or class probabilities [N, classes]"
    if not (target.is_floating_point() or target.dtype == torch.int64):
        raise TypeError(f"{allowed}, got {shown(target)}")
    if target.shape != (outputs.shape[1:] if target.is_floating_point() else outputs.shape[1:2]):
        raise ValueError(f"{allowed} for outputs of shape {tuple(outputs.shape)}, got {shown(target)}")


def correct(logits: Tensor, target: Tensor) -> Tensor:
    """Number of correct predictions; of class probabilities the largest counts."""
    target = target.argmax(1) if target.ndim == 2 else target
    return (logits.argmax(1) == target).sum()
