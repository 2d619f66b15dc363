"""The state of a multi-compartment neuron in the place of ``snn.Leaky``'s membrane."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from ..kernels.unwatched import intercepted


class Membrane(Tensor):
    """The membrane [B, *] of a layer with ``single_state=True``, which carries the other compartments along.

    It stands wherever ``snn.Leaky``'s ``mem`` stands: ``spk, mem = layer(x, mem)``, ``mem_rec.append(mem)``,
    ``torch.stack(mem_rec)``, a loss on it. Operations on it give plain tensors, which are no states any more;
    ``detach()`` and ``detach_()`` give or leave states cut from their graph.

    Changed in place it is no state any more either. Zeros are the initial state, unless they require a gradient, or the
    last membrane of the layer was zero as well and its other compartments were not: then they may be computed from it,
    and ``reset_mem()`` has to say what they are. ``torch.load`` with its ``weights_only=True`` reads it.

    Attributes:
        compartments: the tensors that the next step goes on from, by name.
        version: how often the membrane had been changed in place when they were; None where that is not counted.

    Example:
        >>> lif = TCLIF(single_state=True)
        >>> spk, mem = lif(torch.randn(8, 128), lif.reset_mem())
        >>> type(mem).__name__, list(mem.compartments), type(2 * mem).__name__
        ('Membrane', ['syn', 'mem'], 'Tensor')
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # of C: no signature
    compartments: dict[str, Tensor]
    version: int | None

    @staticmethod
    def of(membrane: Tensor, compartments: dict[str, Tensor]) -> Membrane:
        """A state that is ``membrane``, for others, and the compartments."""
        compiling = torch.compiler.is_compiling()
        if compiling and not torch.compiler.is_dynamo_compiling():
            # torch.export's tensors have a class of their own: there a plain one carries the compartments along
            state: Any = torch.ops.aten.alias(membrane)
        elif membrane.requires_grad and not intercepted():
            state = membrane.clone()  # no view: these cannot be detached in place
            state.__class__ = Membrane
        else:
            state = membrane.as_subclass(Membrane)
        state.compartments = compartments
        state.version = None if compiling or state.is_inference() else state._version
        return state

    def was_changed(self) -> bool:
        """Whether it was changed in place, and the other compartments were not."""
        return None not in (before := self.version, now := version(self)) and before != now

    def detach(self) -> Membrane:
        cut = {name: value.detach() for name, value in self.compartments.items()}
        state = Membrane.of(super().detach(), cut)
        state.version = self.version  # it counts with this one
        return state

    def detach_(self) -> Membrane:
        self.compartments = {name: value.detach() for name, value in self.compartments.items()}
        if self.requires_grad:
            super().detach_()
        return self

    def __deepcopy__(self, memo: dict) -> Tensor:
        membrane = super().detach().clone()
        if self.was_changed():
            return membrane
        return Membrane.of(membrane, {n: copy.deepcopy(value.detach(), memo) for n, value in self.compartments.items()})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (self.as_subclass(Tensor) if self.was_changed() else super()).__reduce_ex__(protocol)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, version=version(self))


def version(tensor: Tensor) -> int | None:
    """How often it was changed in place, where that is counted."""
    return None if torch.compiler.is_compiling() or tensor.is_inference() else tensor._version
