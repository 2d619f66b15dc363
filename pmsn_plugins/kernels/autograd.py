"""Gradients of the fused operators, for PyTorch's autograd and for ``torch.func`` (grad, vjp, vmap, jacrev).

PyTorch inspects the signature of a function with ``setup_context`` in every call, which takes as long as a small
kernel. So every function is here twice: as autograd calls it, and as ``torch.func`` needs it.
"""

from __future__ import annotations

from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .batching import fold, one_of, unfold

if TYPE_CHECKING:
    from .operators import Operator


class Functions(NamedTuple):
    """One operator as an autograd function, and as one that ``torch.func`` can transform."""

    plain: type[Function]
    transformable: type[Function]


def call(operator: torch._ops.OpOverload, functions: Functions, *flat: Any) -> tuple[Tensor, ...]:
    """Call an operator on tensors of autograd's or of ``torch.func``'s."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return functions.transformable.apply(*flat)
    return operator(*flat)


def register(library: torch.library.Library, operator: torch._ops.OpOverload, functions: Functions) -> None:
    """Let autograd record the function where it meets the operator."""

    def kernel(*flat: Any) -> tuple[Tensor, ...]:
        differentiated = torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in flat)
        if differentiated or forward_ad._current_level >= 0:
            return functions.plain.apply(*flat)
        return _below_autograd(operator, flat)

    library.impl(operator.name().split("::")[1].split(".")[0], kernel, "Autograd")


def forward_functions(op: Operator) -> Functions:
    """The forward operator, with the gradient that the backward operator recomputes."""

    class Recomputed(Function):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
            outputs = Transformable.forward(*flat)
            Transformable.setup_context(ctx, flat, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            tensors, checkpoints = op.split_saved(ctx.saved_tensors)
            state_gradients = any(compress(ctx.needs_input_grad, op.is_state))
            gradients = (*compress(grads, op.with_gradient), *checkpoints)
            wanted = ctx.wanted.gradients(state_gradients)
            results = call(op.backward, op.backward_functions, *gradients, *tensors, *ctx.options, *wanted)
            if not state_gradients:
                results = results[: len(op.differentiated) - sum(op.is_state)]
            return (*results, *(None,) * (len(ctx.needs_input_grad) - len(results)))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> None:
            raise NotImplementedError(_NO_FORWARD_MODE)

    class Transformable(Recomputed):
        @staticmethod
        def forward(*flat: Any) -> tuple[Tensor, ...]:
            tensors, options, wanted = op.split(flat, op.forward_records)
            return _below_autograd(op.forward, (*tensors, *options, *wanted.saving()))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            tensors, ctx.options, ctx.wanted = op.split(inputs, op.forward_records)
            results = op.results(*output)
            kept = (results.checkpoints,) if op.keeps else ()
            ctx.save_for_backward(*tensors, *kept)
            ctx.set_materialize_grads(not op.keeps)
            ctx.mark_non_differentiable(*(getattr(results, name) for name in ctx.options.constant), *kept)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *flat: Any) -> tuple[Any, Any]:
            tensors, options, wanted = op.split(flat, op.forward_records)
            dims, _, _ = op.split(in_dims, op.forward_records)
            geometry = op.geometry(one_of(tensors, dims), options)
            folded = fold(tensors, dims, op.tensor_roles, info.batch_size, geometry)
            outputs = Transformable.apply(*folded, *options.folded(info.batch_size), *wanted)
            return unfold(outputs, op.result_roles, info.batch_size, geometry)

    return Functions(Recomputed, Transformable)


def backward_functions(op: Operator) -> Functions:
    """The backward operator: it can be called while autograd records, but not differentiated."""

    class NoSecondDerivative(Function):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
            return _below_autograd(op.backward, flat)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> None:
            raise NotImplementedError(
                "the fused kernels have no second derivative: use backend='torch' to differentiate twice"
            )

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> None:
            raise NotImplementedError(_NO_FORWARD_MODE)

    class Transformable(NoSecondDerivative):
        @staticmethod
        def forward(*flat: Any) -> tuple[Tensor, ...]:
            return _below_autograd(op.backward, flat)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            """Nothing is saved: there is no second derivative."""

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *flat: Any) -> tuple[Any, Any]:
            gradients, tensors, options, wanted = op.split(flat, op.backward_records)
            gradient_dims, dims, _, _ = op.split(in_dims, op.backward_records)
            geometry = op.geometry(one_of(tensors, dims), options)
            folded = fold(
                (*gradients, *tensors),
                (*gradient_dims, *dims),
                (*op.gradient_roles, *op.tensor_roles),
                info.batch_size,
                geometry,
            )
            outputs = Transformable.apply(*folded, *options.folded(info.batch_size), *wanted)
            return unfold(outputs, op.differentiated, info.batch_size, geometry)

    return Functions(NoSecondDerivative, Transformable)


_NO_FORWARD_MODE = (
    "the fused kernels have no forward-mode derivative (torch.func.jvp, jacfwd, forward_ad): use backend='torch'"
)


def _below_autograd(operator: torch._ops.OpOverload, flat: Any) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*flat)
