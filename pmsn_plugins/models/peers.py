"""Layers of others to compare our neurons with, made to fit in their place: SpikingJelly's GLIF, PyTorch's GRU and
LSTM."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import base, neuron
from torch import Tensor, nn

from .._checks import check_int_at_least


class GatedLIF(nn.Module):
    """SpikingJelly's ``GatedLIFNode`` (GLIF, Yao et al., NeurIPS 2022), one set of parameters per channel.

    That one takes sequences of images alone; this takes [T, N, C, *]. Every call is a whole sequence from rest.

    Args:
        channels: C.
        T: number of time steps, each of which has a conductance of its own.
        options: of ``GatedLIFNode``.

    Raises:
        ValueError: a sequence of another length.
    """

    def __init__(self, channels: int, T: int, **options: Any) -> None:
        super().__init__()
        self.node = neuron.GatedLIFNode(T, inplane=channels, **options)
        for gate in (self.node.alpha, self.node.beta, self.node.gamma):
            nn.init.uniform_(gate, -0.1, 0.1)  # as it does, but with PyTorch's random numbers

    def forward(self, x_seq: Tensor) -> Tensor:
        if len(x_seq) != self.node.T:
            raise ValueError(f"x_seq must have the T={self.node.T} time steps that GLIF is made for, got {len(x_seq)}")
        self.node.reset()
        return self.node(x_seq.reshape(*x_seq.shape[:3], -1, 1)).view(x_seq.shape)


class Recurrent(base.MemoryModule):
    """A ``torch.nn.GRU`` or ``LSTM`` of as many units as channels, on [T, N, C, *] or steps [N, C, *].

    Positions behind the channels are sequences of their own, with the same weights. It sends real numbers, no spikes,
    and keeps its state between calls until it is reset.

    Args:
        channels: C.
        kind: ``nn.GRU`` or ``nn.LSTM``.
        num_layers: as theirs.

    Raises:
        ValueError: an input that does not fit the state (the batch changed without a reset).
    """

    h: Any
    c: Any

    def __init__(self, channels: int, kind: type[nn.GRU | nn.LSTM], num_layers: int = 1) -> None:
        check_int_at_least("num_layers", num_layers, 1)
        super().__init__()
        self.rnn = kind(channels, channels, num_layers)
        self.step_mode = "m"
        for name in ("h", "c")[: 1 + (kind is nn.LSTM)]:
            self.register_memory(name, None)

    def single_step_forward(self, x: Tensor) -> Tensor:
        return self.multi_step_forward(x.unsqueeze(0)).squeeze(0)

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        columns = x_seq.reshape(*x_seq.shape[:3], -1).movedim(2, 3)  # [T, N, positions, C]
        sequences = columns.flatten(1, 2)
        is_lstm = isinstance(self.rnn, nn.LSTM)
        state = None
        if self.h is not None:
            if self.h.shape[1] != sequences.shape[1]:
                raise ValueError(
                    f"the state is for {self.h.shape[1]} sequences, got {sequences.shape[1]}: reset it before another "
                    "batch, e.g. with reset_states(net)"
                )
            state = (self.h, self.c) if is_lstm else self.h
        out, state = self.rnn(sequences, state)
        if is_lstm:
            self.h, self.c = state
        else:
            self.h = state
        return out.unflatten(1, columns.shape[1:3]).movedim(3, 2).reshape(x_seq.shape)
