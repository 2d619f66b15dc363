"""The state that a neuron has kept, while nobody has looked at it.

Until then the next time step may be written over it; and after a few steps from rest, when it would be larger than the
sequence, it need not be there at all: most often a reset throws it away.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ._compiler import disable
from .kernels.unwatched import intercepted

States = tuple[Tensor, ...]

_LEAST = 1 << 16
"""Numbers of a state below which it takes as long to remember what it comes from."""


def can_wait(x_seq: Tensor, numbers: int) -> bool:
    """Whether the state after a sequence from rest, so many numbers per element, can be left for later."""
    return (
        not torch.compiler.is_compiling()
        and type(x_seq) is Tensor
        and len(x_seq) < numbers
        and x_seq.numel() // max(len(x_seq), 1) * numbers >= _LEAST
        and not intercepted()
        and x_seq.layout is torch.strided
        and not x_seq.is_nested
    )


class Later:
    """The state after a sequence from rest, to be computed when somebody asks for it, as it would have been at once.

    It comes from a copy of the sequence, for whoever streams may fill the same buffer with the next one. Only what is
    computed within a graph is relied on: its backward pass needs it unchanged too.

    Args:
        module: the neuron.
        x_seq: the sequence.
        compute: called with a neuron and the sequence, returns the state.
    """

    def __init__(self, module: nn.Module, x_seq: Tensor, compute: Callable[[Any, Tensor], States]) -> None:
        self.recorded = torch.is_grad_enabled()
        within_graph = self.recorded and x_seq.requires_grad and not x_seq.is_leaf
        self.module, self.x_seq, self.compute = _twin(module), x_seq if within_graph else x_seq.clone(), compute
        self.version = x_seq._version if within_graph else None
        self.looks = {name: (p.shape, p.dtype) for name, p in _own_parameters(module).items()}
        self.copy = _bytes(module)

    @disable  # versions are nothing that a graph can look at
    def __call__(self) -> States:
        """Raises RuntimeError if the sequence was changed in place."""
        name = type(self.module).__name__
        if self.version is not None and self.x_seq._version != self.version:
            raise RuntimeError(
                f"the state of {name} is asked for, but was left to be computed from the input of its last call, and "
                "this has been changed in place since: ask for it before (the membrane will do), change a copy, or "
                "reset the neuron"
            )
        parameters = _own_parameters(self.module)
        changed = not torch.equal(_bytes(self.module), self.copy)
        if changed:
            sizes = [shape.numel() * dtype.itemsize for shape, dtype in self.looks.values()]
            parts: Any = zip(self.looks.items(), self.copy.split(sizes), strict=True)
            copies = {name: part.clone().view(dtype).view(shape) for (name, (shape, dtype)), part in parts}
            self.module._parameters = {**self.module._parameters, **copies}
        with torch.set_grad_enabled(self.recorded and not changed):
            states = self.compute(self.module, self.x_seq)
        if changed and self.recorded:
            return tuple(_Stale.apply(state, name, *parameters.values()) for state in states)
        return states


class _Stale(Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, name: str, *parameters: Tensor) -> Tensor:
        ctx.name = name
        return torch.ops.aten._unsafe_view(state, state.shape)  # no view: states are detached in place

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> None:
        raise RuntimeError(
            f"a gradient reaches a state of {ctx.name} from before its parameters were changed in place: detach the "
            "state, or change parameters after the backward pass"
        )


def _own_parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in module._parameters.items() if p is not None}


def _bytes(module: nn.Module) -> Tensor:
    """What its parameters are, in one piece: for each a copy of its own would take as long as for all."""
    with torch.no_grad():
        parts = [p.reshape(-1).view(torch.uint8) for p in _own_parameters(module).values()]
        return torch.cat(parts) if parts else torch.empty(0)


def _twin(module: nn.Module) -> nn.Module:
    """With the settings and parameters that it has now."""
    twin = object.__new__(type(module))
    twin.__dict__.update(module.__dict__)
    twin.__dict__["_parameters"] = dict(module._parameters)
    return twin
