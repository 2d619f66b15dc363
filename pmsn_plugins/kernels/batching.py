"""``torch.vmap`` of the fused operators: a batch of calls is one call with as many times the channels, where a neuron
allows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from .calls import Geometry, Role


def one_of(tensors: Any, dims: Any) -> Any:
    """The first call of the batch."""
    pairs = zip(tensors, dims, strict=True)
    return type(tensors)(*(t if dim is None else t.select(dim, 0) for t, dim in pairs))


def fold(
    tensors: Iterable[Tensor | None],
    dims: Iterable[int | None],
    roles: Iterable[Role],
    batch: int,
    geometry: Geometry,
) -> list[Tensor | None]:
    """Put the batch beside the channels, [.., N, batch * C, S] or [batch * C, k]; repeat what has none."""
    folded: list[Tensor | None] = []
    for tensor, dim, role in zip(tensors, dims, roles, strict=True):
        if tensor is None:
            folded.append(None)
        elif role.shape == "number":
            if dim is not None:
                raise NotImplementedError("the fused kernels cannot vmap over the threshold: use backend='torch'")
            folded.append(tensor)
        else:
            shape, axis = _shape(role, geometry)
            if dim is None:
                tensor = tensor.reshape(shape).unsqueeze(axis)
                tensor = tensor.expand(*shape[:axis], batch, *shape[axis:])
            else:
                tensor = tensor.movedim(dim, 0).reshape(batch, *shape).movedim(0, axis)
            folded.append(tensor.flatten(axis, axis + 1))
    return folded


def unfold(
    tensors: Iterable[Tensor], roles: Iterable[Role], batch: int, geometry: Geometry
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """Results with the batch first, and where it is; one that was not wanted stays empty."""
    unfolded: list[Tensor] = []
    for tensor, role in zip(tensors, roles, strict=True):
        if tensor.shape != (0,):
            shape, axis = _shape(role, geometry)
            tensor = tensor.reshape(*shape[:axis], batch, *shape[axis:]).movedim(axis, 0)
            tensor = tensor.reshape(batch, *(geometry.shape(role.shape) or ()))
        unfolded.append(tensor)
    return tuple(unfolded), tuple(None if t.shape == (0,) else 0 for t in unfolded)


def one_after_the_other(
    function: Callable[..., tuple[Tensor, ...]], flat: tuple[Any, ...], dims: tuple[int | None, ...], batch: int
) -> tuple[tuple[Tensor, ...], tuple[int | None, ...]]:
    """As many calls as the batch has: for a neuron whose channels depend on one another."""
    calls = [
        function(*(value if dim is None else value.select(dim, i) for value, dim in zip(flat, dims, strict=True)))
        for i in range(batch)
    ]
    results = [parts[0] if parts[0].shape == (0,) else torch.stack(parts) for parts in zip(*calls, strict=True)]
    return tuple(results), tuple(None if t.shape == (0,) else 0 for t in results)


def _shape(role: Role, geometry: Geometry) -> tuple[Sequence[int], int]:
    """With a step as [N, C, S], and where its channels are."""
    *lead, last = role.shape.split()
    if last != "step":
        return geometry.shape(role.shape) or (), 0
    leading = geometry.shape(" ".join(lead)) or ()
    return (*leading, geometry.sizes.N, geometry.sizes.C, geometry.sizes.S), len(leading) + 1
