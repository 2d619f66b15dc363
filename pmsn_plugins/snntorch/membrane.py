"""The state of a multi-compartment neuron in the place of ``snn.Leaky``'s membrane."""

from __future__ import annotations

import copy

import torch
from torch import Tensor


class Membrane(Tensor):
    """The membrane [B, *] of a layer with ``single_state=True``, which carries the other compartments along.

    It stands wherever ``snn.Leaky``'s ``mem`` stands: ``spk, mem = layer(x, mem)``, ``mem_rec.append(mem)``,
    ``torch.stack(mem_rec)``, a loss on it. Operations on it give plain tensors, which are no states any more;
    ``detach()`` and ``detach_()`` give or leave states cut from their graph.

    Attributes:
        compartments: the tensors that the next step goes on from, by name.

    Example:
        >>> lif = TCLIF(single_state=True)
        >>> spk, mem = lif(torch.randn(8, 128), lif.reset_mem())
        >>> type(mem).__name__, list(mem.compartments), type(2 * mem).__name__
        ('Membrane', ['syn', 'mem'], 'Tensor')
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # of C: no signature
    compartments: dict[str, Tensor]

    @staticmethod
    def of(membrane: Tensor, compartments: dict[str, Tensor]) -> Membrane:
        state = membrane.as_subclass(Membrane)
        state.compartments = compartments
        return state

    def detach(self) -> Membrane:
        cut = {name: value.detach() for name, value in self.compartments.items()}
        return Membrane.of(super().detach(), cut)

    def detach_(self) -> Membrane:
        self.compartments = {name: value.detach() for name, value in self.compartments.items()}
        return self

    def __deepcopy__(self, memo: dict) -> Membrane:
        cut = {name: copy.deepcopy(value.detach(), memo) for name, value in self.compartments.items()}
        return Membrane.of(super().detach().clone(), cut)
