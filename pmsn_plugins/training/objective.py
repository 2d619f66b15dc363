"""From a network's outputs at every time step to one prediction and one loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def read_out(outputs: Tensor, readout: str) -> Tensor:
    """[T, N, classes] -> [N, classes]: the mean or the sum over time."""
    return outputs.mean(0) if readout == "mean" else outputs.sum(0)


def loss_of(outputs: Tensor, target: Tensor, *, readout: str, loss: str = "ce", label_smoothing: float = 0.0) -> Tensor:
    """Mean loss over the batch.

    Args:
        outputs: [T, N, classes].
        target: class numbers [N], or class probabilities [N, classes].
        readout: ``'mean'`` or ``'sum'``.
        loss: ``'ce'``: cross-entropy of the readout. ``'tet'``: mean over time of each step's cross-entropy (temporal
            efficient training, Deng et al., ICLR 2022, without its regulariser).
    """
    if loss == "tet":
        T = len(outputs)
        repeated = target.repeat(T, *(1,) * (target.ndim - 1))
        return F.cross_entropy(outputs.flatten(0, 1), repeated, label_smoothing=label_smoothing)
    return F.cross_entropy(read_out(outputs, readout), target, label_smoothing=label_smoothing)


def correct(logits: Tensor, target: Tensor) -> Tensor:
    """Number of correct predictions; of class probabilities the largest counts."""
    target = target.argmax(1) if target.ndim == 2 else target
    return (logits.argmax(1) == target).sum()
