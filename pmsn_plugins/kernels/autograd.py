"""Gradients of the fused operators, for PyTorch's autograd and for ``torch.func`` (grad, vjp, vmap, jacrev).

PyTorch inspects the signature of a function with ``setup_context`` in every call, which takes as long as a small
kernel. So every function is here twice: as autograd calls it, and as ``torch.func`` needs it. The forward operator has
a third one, past the dispatcher, for calls that nobody watches (:mod:`.unwatched`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from ..functional.surrogate import transforming
from .batching import fold, one_after_the_other, one_of, unfold
from .unwatched import intercepted, is_plain

if TYPE_CHECKING:
    from .operators import Operator


class Functions(NamedTuple):
    """One operator as an autograd function, as one that ``torch.func`` can transform, and as one that calls no
    operator."""

    plain: type[Function]
    transformable: type[Function]
    direct: type[Function] | None = None


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

    def compute(tensors: Any, options: Any, wanted: Any) -> tuple[Tensor, ...]:
        return _below_autograd(op.forward, (*tensors, *options, *wanted.saving()))

    def remember(ctx: Any, tensors: Any, options: Any, wanted: Any, outputs: Iterable[Tensor | None]) -> None:
        ctx.options, ctx.wanted = options, wanted
        results = op.results._make(outputs)
        kept = (results.checkpoints,) if op.keeps else ()
        ctx.save_for_backward(*kept, *op.to_keep(tensors))  # in the order of the backward operator's arguments
        ctx.set_materialize_grads(not op.keeps)
        constant = [getattr(results, name) for name in options.constant]
        ctx.mark_non_differentiable(*[result for result in constant if result is not None], *kept)

    def recompute(
        ctx: Any, grads: tuple[Tensor | None, ...], gradient: Callable[..., Sequence[Tensor]]
    ) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad
        state_gradients = any(compress(needed, op.is_state))
        wanted = ctx.wanted.gradients(state_gradients)
        results = gradient(*compress(grads, op.with_gradient), *_saved(ctx, op.neuron), *ctx.options, *wanted)
        if not state_gradients:
            results = results[: op.always_differentiated]
        return (*results, *(None,) * (len(needed) - len(results)))

    class Recomputed(Function):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
            tensors, options, wanted = op.split(flat, "forward")
            outputs = compute(tensors, options, wanted)
            remember(ctx, tensors, options, wanted, outputs)
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return recompute(ctx, grads, op.backward_functions.transformable.apply if transforming() else op.backward)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> None:
            raise NotImplementedError(_NO_FORWARD_MODE)

    class Transformable(Recomputed):
        @staticmethod
        def forward(*flat: Any) -> tuple[Tensor, ...]:
            return compute(*op.split(flat, "forward"))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            tensors, options, wanted = op.split(inputs, "forward")
            remember(ctx, tensors, options, wanted, output)

        @staticmethod
        def vmap(info: Any, in_dims: tuple[int | None, ...], *flat: Any) -> tuple[Any, Any]:
            tensors, options, wanted = op.split(flat, "forward")
            if options.folded(info.batch_size) is None:
                return one_after_the_other(Transformable.apply, flat, in_dims, info.batch_size)
            dims, _, _ = op.split(in_dims, "forward")
            geometry = op.geometry(one_of(tensors, dims), options)
            folded = fold(tensors, dims, op.tensor_roles, info.batch_size, geometry)
            outputs = Transformable.apply(*folded, *options.folded(info.batch_size), *wanted)
            return unfold(outputs, op.result_roles, info.batch_size, geometry)

    class Direct(Recomputed):
        @staticmethod
        def forward(ctx: Any, *flat: Any) -> tuple[Tensor, ...]:
            *fields, options, wanted = flat  # PyTorch goes through all arguments, there and back: these in one piece
            tensors = op.tensors._make(fields)
            call = op.compute_unwatched(tensors, options, wanted.saving(), op.expected(tensors, options))
            remember(ctx, tensors, options, wanted, call.results)
            return tuple(call.results)  # None for what is not wanted: an empty tensor each takes a while to make

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            if torch.is_grad_enabled() or intercepted() or not all(g is None or is_plain(g) for g in grads):
                return Recomputed.backward(ctx, *grads)
            return recompute(ctx, grads, lambda *flat: op.compute_backward(*op.split(flat, "backward")))

    return Functions(Recomputed, Transformable, Direct)


def _saved(ctx: Any, neuron: str) -> tuple[Tensor, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as error:
        if "second time" in str(error):
            raise RuntimeError(
                f"{error} (Or this graph goes on from a state that a neuron has kept since before the last backward "
                "pass: reset or detach all its compartments first, not v alone, in SpikingJelly with "
                "functional.reset_net(net) or detach_net(net), in snnTorch with utils.reset(net) or detach_hidden.)"
            ) from error
        if "inplace operation" not in str(error):
            raise
        raise RuntimeError(
            f"{neuron}_backward computes its forward pass again, but the input, a parameter or a state of that has "
            "been changed in place since. Of the input (x += ..., a ReLU with inplace=True behind it) make a new "
            "tensor (x = x + ...), or use backend='torch', which does not need it; call optimizer.step() after the "
            f"backward pass. PyTorch says: {error}"
        ) from error


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
            gradients, tensors, options, wanted = op.split(flat, "backward")
            if options.folded(info.batch_size) is None:
                return one_after_the_other(Transformable.apply, flat, in_dims, info.batch_size)
            gradient_dims, dims, _, _ = op.split(in_dims, "backward")
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
