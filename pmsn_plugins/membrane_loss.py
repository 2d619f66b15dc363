"""A loss on a membrane that passes no gradient is an error that says what to do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ADVICE = (
    "no gradient flows through the membrane of a PMSN with reset_mode='modulo': for a loss on the membrane use "
    "reset_mode='memoryless' or 'cumulative' in that layer, or put a linear readout behind its spikes"
)


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(membrane: Tensor, spikes: Tensor) -> Tensor:
        return torch.ops.aten._unsafe_view(membrane, membrane.shape)  # no view: memories are detached in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None]:
        if gradient.any():
            raise RuntimeError(ADVICE)
        return None, None


def refusing_gradient(membrane: Tensor, spikes: Tensor) -> Tensor:
    """``membrane``, with an error for whoever differentiates it although it has no gradient (its spikes have one).

    PyTorch itself would say "does not require grad", or leave the term out of a sum of losses without a word.
    Compilers, tracers and ``torch.func`` get the membrane as it is: they differentiate all outputs, wanted or not.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return membrane
    if membrane.requires_grad or not spikes.requires_grad or not membrane.is_contiguous():
        return membrane
    return _Refusal.apply(membrane, spikes)
