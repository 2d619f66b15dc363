"""PMSN on any axis: what lies before the channels is folded into the batch, so that a step becomes [N', C, *].

[N, L, C] (tokens) becomes [N L, C], and [C, N, M] one sample [1, C, N, M]. Both are views of a contiguous tensor.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .functional import PMSNState


def check_channel_axis(value: int) -> None:
    """Raise TypeError unless ``value`` is an integer: an axis of one step [N, C, *], from the front or the back."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"channel_axis must be an integer, got {value!r}")


class Fold(NamedTuple):
    """For steps of this shape, with their channels on this axis, counted from either end."""

    step: tuple[int, ...]
    axis: int

    def check(self, channels: int, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless ``channels`` are on the axis; ``shape``, for the message, is that of the input."""
        if not -len(self.step) <= self.axis < len(self.step):
            raise ValueError(f"there is no channel_axis={self.axis} in steps {self.step} of an input of shape {shape}")
        if self.step[self.axis] != channels:
            raise ValueError(
                f"expected {channels} channels, got {self.step[self.axis]} on channel_axis={self.axis} of steps "
                f"{self.step}, input of shape {shape}"
            )

    def folded(self, tensor: Tensor, leading: int) -> Tensor:
        """A tensor of steps, with ``leading`` axes before them, as the kernels take it."""
        if self.axis == 1:
            return tensor
        axis = self.axis % len(self.step)
        before = math.prod(self.step[:axis])
        return tensor.reshape(*tensor.shape[:leading], before, *self.step[axis:])

    def unfolded(self, tensor: Tensor, leading: int) -> Tensor:
        """Back to the shape of the step; not a view of the kernels' output, for states are detached in place."""
        if self.axis == 1:
            return tensor
        shape = (*tensor.shape[:leading], *self.step)
        return torch.ops.aten._unsafe_view(tensor, shape) if tensor.is_contiguous() else tensor.reshape(shape)

    def folded_state(self, state: PMSNState) -> PMSNState:
        v, h_real, h_imag = state
        return PMSNState(self.folded(v, 0), self.folded(h_real, 1), self.folded(h_imag, 1))

    def unfolded_state(self, state: PMSNState) -> PMSNState:
        v, h_real, h_imag = state
        return PMSNState(self.unfolded(v, 0), self.unfolded(h_real, 1), self.unfolded(h_imag, 1))
