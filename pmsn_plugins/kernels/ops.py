"""The fused kernels as PyTorch operators: device dispatch, autograd, and shapes for torch.compile.

``pmsn`` takes coefficients, ``pmsn_layer`` a layer's parameters, ``tclif`` couplings. Each has two operators:
``*_forward`` takes a sequence, those, an optional initial state and options, and returns :class:`~.buffers.Buffers`;
``*_backward`` takes their gradients and recomputes the rest from the checkpoints. There are no second derivatives.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import fused
from .buffers import gradients_like, pmsn_buffers, tclif_buffers
from .cpu import CpuDevice
from .gpu import CupyDevice

_library = torch.library.Library("pmsn_plugins", "DEF")
_operators = torch.ops.pmsn_plugins

_COEFFICIENTS = "Tensor E_real, Tensor E_imag, Tensor K_real, Tensor K_imag"
_PARAMETERS = "Tensor log_dt, Tensor log_decay, Tensor freq, Tensor B_real, Tensor B_imag, Tensor R_real, Tensor R_imag"
_REST = (
    "Tensor D, Tensor? v, Tensor? h_real, Tensor? h_imag, Tensor? v_threshold, Tensor? slopes, "
    "float theta, str reset_mode, str fire, str surrogate, float a, float b, float c"
)
_PMSN = f"Tensor x, {_COEFFICIENTS}, {_REST}"
_LAYER = f"Tensor x, {_PARAMETERS}, {_REST}"
_TCLIF = (
    "Tensor x, Tensor b1, Tensor b2, Tensor? v, Tensor? v_dendrite, Tensor? v_threshold, Tensor? slopes, "
    "float theta, int channels, int inner, float gamma, float a1, float a2, "
    "bool pre_reset, bool detach_reset, bool strict, str surrogate, float a, float b, float c"
)
_RESULTS = "bool with_state, bool with_v_seq, bool save"
_GRADIENTS = "Tensor? grad_out, Tensor? grad_v, Tensor? grad_h_real, Tensor? grad_h_imag, Tensor? grad_v_seq"

_devices = {"CPU": CpuDevice(), "CUDA": CupyDevice()}


def _define(name: str, arguments: str, results: int, fake: Callable) -> Callable:
    _library.define(f"{name}({arguments}) -> ({', '.join(['Tensor'] * results)})", tags=(torch.Tag.pt2_compliant_tag,))
    for key, device in _devices.items():
        _library.impl(name, partial(getattr(fused, name), device), key)
    torch.library.register_fake(f"pmsn_plugins::{name}", fake, lib=_library)
    return getattr(_operators, name).default


def _fake_pmsn_forward(coefficients, *arguments):
    """With this many tensors between x and D; the second one is [C, k], whichever they are."""
    x, k, D, fire = arguments[0], arguments[2].shape[1], arguments[1 + coefficients], arguments[9 + coefficients]
    return pmsn_buffers(x, k, D.dtype, fire, *arguments[-3:]).flat


def _fake_pmsn_backward(coefficients, *arguments):
    state_gradients, tensors, plain = arguments[6], arguments[7:], 2 + coefficients
    return gradients_like(tensors[:plain], tensors[plain : plain + 3] if state_gradients else (None,) * 3)


def _fake_tclif_forward(*arguments):
    x, b1 = arguments[:2]
    return tclif_buffers(x, b1.dtype, *arguments[-3:]).flat


def _fake_tclif_backward(*arguments):
    state_gradients, tensors = arguments[5], arguments[6:11]
    return gradients_like(tensors[:3], tensors[3:] if state_gradients else (None,) * 2)


def _fake_discretize(*parameters):
    return gradients_like([parameters[1]] * 4)


def _fake_discretize_backward(*arguments):
    return gradients_like(arguments[4:])


pmsn_forward = _define("pmsn_forward", f"{_PMSN}, {_RESULTS}", 6, partial(_fake_pmsn_forward, 4))
pmsn_backward = _define(
    "pmsn_backward",
    f"{_GRADIENTS}, Tensor checkpoints, bool state_gradients, {_PMSN}",
    9,
    partial(_fake_pmsn_backward, 4),
)
pmsn_layer_forward = _define("pmsn_layer_forward", f"{_LAYER}, {_RESULTS}", 6, partial(_fake_pmsn_forward, 7))
pmsn_layer_backward = _define(
    "pmsn_layer_backward",
    f"{_GRADIENTS}, Tensor checkpoints, bool state_gradients, {_LAYER}",
    12,
    partial(_fake_pmsn_backward, 7),
)
tclif_forward = _define("tclif_forward", f"{_TCLIF}, {_RESULTS}", 5, _fake_tclif_forward)
tclif_backward = _define(
    "tclif_backward",
    "Tensor? grad_out, Tensor? grad_v, Tensor? grad_v_dendrite, Tensor? grad_v_seq, "
    f"Tensor checkpoints, bool state_gradients, {_TCLIF}",
    5,
    _fake_tclif_backward,
)
discretize = _define("discretize", _PARAMETERS, 4, _fake_discretize)
discretize_backward = _define(
    "discretize_backward",
    f"Tensor grad_E_real, Tensor grad_E_imag, Tensor grad_K_real, Tensor grad_K_imag, {_PARAMETERS}",
    7,
    _fake_discretize_backward,
)


def _recomputed(forward_: Callable, backward_: Callable, plain: int, states: int) -> type[torch.autograd.Function]:
    """``forward_`` with the gradient that ``backward_`` recomputes. Of its inputs the first ``plain`` ones are always
    differentiated, the ``states`` after them where wanted, and the threshold and slopes after those never."""
    tensors = plain + states + 2

    class Recomputed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
            outputs = _below_autograd(forward_, *arguments[:-1], True)
            ctx.options = arguments[tensors:-3]
            ctx.save_for_backward(*arguments[:tensors], outputs[-1])
            ctx.set_materialize_grads(False)
            constant = (outputs[1], outputs[4]) if "modulo" in ctx.options else ()  # nothing flows through v
            ctx.mark_non_differentiable(*constant, outputs[-1])
            return outputs

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            *inputs, checkpoints = ctx.saved_tensors
            state_gradients = any(ctx.needs_input_grad[plain : plain + states])
            results = backward_(*grads[:-1], checkpoints, state_gradients, *inputs, *ctx.options)
            if not state_gradients:
                results = results[:plain]
            return (*results, *(None,) * (len(ctx.needs_input_grad) - len(results)))

    return Recomputed


class _Discretize(torch.autograd.Function):
    """``discretize`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*parameters)
        return _below_autograd(discretize, *parameters)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return discretize_backward(*grads, *ctx.saved_tensors)


class _NoSecondDerivative(torch.autograd.Function):
    """A backward operator, while autograd records: it can be called, but not differentiated."""

    @staticmethod
    def forward(ctx: Any, operator: Callable, *arguments: Any) -> tuple[Tensor, ...]:
        return _below_autograd(operator, *arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "the fused kernels have no second derivative: use backend='torch' to differentiate twice"
        )


def _below_autograd(operator: Callable, *arguments: Any) -> tuple[Tensor, ...]:
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _register_autograd(operator: Callable, function: type[torch.autograd.Function], *first: Any) -> None:
    def kernel(*arguments: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return function.apply(*first, *arguments)
        return _below_autograd(operator, *arguments)

    _library.impl(operator.name().split("::")[1].split(".")[0], kernel, "Autograd")


_register_autograd(pmsn_forward, _recomputed(pmsn_forward, pmsn_backward, plain=6, states=3))
_register_autograd(pmsn_layer_forward, _recomputed(pmsn_layer_forward, pmsn_layer_backward, plain=9, states=3))
_register_autograd(tclif_forward, _recomputed(tclif_forward, tclif_backward, plain=3, states=2))
_register_autograd(discretize, _Discretize)
for _operator in (pmsn_backward, pmsn_layer_backward, tclif_backward, discretize_backward):
    _register_autograd(_operator, _NoSecondDerivative, _operator)
