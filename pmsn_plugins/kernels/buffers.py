"""Outputs of the fused kernels, the same on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .plan import checkpoint_count, checkpoint_interval


class Buffers(NamedTuple):
    """What a kernel writes: what is sent, the final state, the membrane after reset, checkpoints of the state.

    What was not asked for is empty.
    """

    out: Tensor
    state: tuple[Tensor, ...]
    v_seq: Tensor
    checkpoints: Tensor

    @property
    def flat(self) -> tuple[Tensor, ...]:
        """In the order of the operators' results."""
        return self.out, *self.state, self.v_seq, self.checkpoints


def state_interval(x: Tensor, state_size: int, dtype: torch.dtype) -> int:
    """Steps between two checkpoints of a state of ``state_size`` numbers per element of ``x``."""
    return checkpoint_interval(state_size, dtype.itemsize, x.dtype.itemsize)


def pmsn_buffers(
    x: Tensor, k: int, dtype: torch.dtype, fire: str, with_state: bool, with_v_seq: bool, save: bool
) -> Buffers:
    """For a sequence ``x`` of PMSN with k hidden compartments, computed in ``dtype``."""
    step = x.shape[1:]
    out_dtype = dtype if fire == "membrane" else x.dtype
    state = tuple(x.new_empty(s if with_state else (0,), dtype=dtype) for s in (step, (k, *step), (k, *step)))
    return Buffers(x.new_empty(x.shape, dtype=out_dtype), state, *_optional(x, 1 + 2 * k, dtype, with_v_seq, save))


def tclif_buffers(x: Tensor, dtype: torch.dtype, with_state: bool, with_v_seq: bool, save: bool) -> Buffers:
    """For a sequence ``x`` of TC-LIF, computed in ``dtype``."""
    state = tuple(x.new_empty(x.shape[1:] if with_state else (0,), dtype=dtype) for _ in range(2))
    return Buffers(x.new_empty(x.shape), state, *_optional(x, 2, dtype, with_v_seq, save))


def gradients_like(tensors: Sequence[Tensor], states: Sequence[Tensor | None] = ()) -> tuple[Tensor, ...]:
    """Fresh tensors for gradients; empty for a state whose gradient is not wanted (None)."""
    return (
        *(torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors),
        *(tensors[-1].new_empty((0,) if t is None else t.shape) for t in states),
    )


def _optional(x: Tensor, state_size: int, dtype: torch.dtype, with_v_seq: bool, save: bool) -> tuple[Tensor, Tensor]:
    kept = checkpoint_count(x.shape[0], state_interval(x, state_size, dtype)) if save else 0
    return (
        x.new_empty(x.shape if with_v_seq else (0,), dtype=dtype),
        x.new_empty((kept, state_size, *x.shape[1:]), dtype=dtype),
    )
