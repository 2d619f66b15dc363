"""A neuron in a net whose sequences begin with the batch axis."""

from __future__ import annotations

from torch import Tensor, nn


class BatchFirst(nn.Module):
    """``neuron``, which takes [T, N, *], for input [N, T, *]; the output is [N, T, *] too."""

    def __init__(self, neuron: nn.Module) -> None:
        super().__init__()
        self.neuron = neuron

    def forward(self, x: Tensor) -> Tensor:
        return self.neuron(x.transpose(0, 1)).transpose(0, 1)
