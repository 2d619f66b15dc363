"""The fused kernels as PyTorch operators: device dispatch, autograd, and shapes for torch.compile.

Each neuron has two operators. ``*_forward`` takes a sequence, coefficients, an optional initial state and options, and
returns :class:`~.buffers.Buffers`. ``*_backward`` takes their gradients and recomputes the rest from the checkpoints.
There are no second derivatives.
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

_PMSN = (
    "Tensor x, Tensor E_real, Tensor E_imag, Tensor K_real, Tensor K_imag, Tensor D, "
    "Tensor? v, Tensor? h_real, Tensor? h_imag, Tensor? v_threshold, Tensor? slopes, "
    "float theta, str reset_mode, str fire, str surrogate, float a, float b, float c"
)
_TCLIF = (
    "Tensor x, Tensor b1, Tensor b2, Tensor? v, Tensor? v_dendrite, Tensor? v_threshold, Tensor? slopes, "
    "float theta, int channels, int inner, float gamma, float a1, float a2, "
    "bool pre_reset, bool detach_reset, bool strict, str surrogate, float a, float b, float c"
)
_RESULTS = "bool with_state, bool with_v_seq, bool save"
_PARAMETERS = "Tensor log_dt, Tensor log_decay, Tensor freq, Tensor B_real, Tensor B_imag, Tensor R_real, Tensor R_imag"

_devices = {"CPU": CpuDevice(), "CUDA": CupyDevice()}


def _define(name: str, arguments: str, results: int, fake: Callable) -> Callable:
    _library.define(f"{name}({arguments}) -> ({', '.join(['Tensor'] * results)})", tags=(torch.Tag.pt2_compliant_tag,))
    for key, device in _devices.items():
        _library.impl(name, partial(getattr(fused, name), device), key)
    torch.library.register_fake(f"pmsn_plugins::{name}", fake, lib=_library)
    return getattr(_operators, name).default


def _fake_pmsn_forward(*arguments):
    x, K_real, D, fire = arguments[0], arguments[3], arguments[5], arguments[13]
    return pmsn_buffers(x, K_real.shape[1], D.dtype, fire, *arguments[-3:]).flat


def _fake_pmsn_backward(*arguments):
    state_gradients, tensors = arguments[6], arguments[7:16]
    return gradients_like(tensors[:6], tensors[6:] if state_gradients else (None,) * 3)


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


pmsn_forward = _define("pmsn_forward", f"{_PMSN}, {_RESULTS}", 6, _fake_pmsn_forward)
pmsn_backward = _define(
    "pmsn_backward",
    "Tensor? grad_out, Tensor? grad_v, Tensor? grad_h_real, Tensor? grad_h_imag, Tensor? grad_v_seq, "
    f"Tensor checkpoints, bool state_gradients, {_PMSN}",
    9,
    _fake_pmsn_backward,
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


class _Pmsn(torch.autograd.Function):
    """``pmsn_forward`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        outputs = _below_autograd(pmsn_forward, *arguments[:-1], True)
        modulo = arguments[12] == "modulo"  # nothing flows through v
        _remember(ctx, arguments[:11], arguments[11:-3], outputs, (outputs[1], outputs[4]) if modulo else ())
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _call_backward(ctx, pmsn_backward, grads, plain=6, states=3)


class _Tclif(torch.autograd.Function):
    """``tclif_forward`` with its gradient."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        outputs = _below_autograd(tclif_forward, *arguments[:-1], True)
        _remember(ctx, arguments[:7], arguments[7:-3], outputs)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return _call_backward(ctx, tclif_backward, grads, plain=3, states=2)


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


def _remember(
    ctx: Any,
    tensors: tuple[Tensor | None, ...],
    options: tuple[Any, ...],
    outputs: tuple[Tensor, ...],
    constant: tuple[Tensor, ...] = (),
) -> None:
    *_, checkpoints = outputs
    ctx.save_for_backward(*tensors, checkpoints)
    ctx.options = options
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*constant, checkpoints)


def _call_backward(
    ctx: Any, operator: Callable, grads: tuple[Tensor | None, ...], plain: int, states: int
) -> tuple[Tensor | None, ...]:
    """Of the inputs the first ``plain`` ones are always differentiated, and after them the ``states`` where wanted."""
    *inputs, checkpoints = ctx.saved_tensors
    state_gradients = any(ctx.needs_input_grad[plain : plain + states])
    results = operator(*grads[:-1], checkpoints, state_gradients, *inputs, *ctx.options)
    if not state_gradients:
        results = results[:plain]
    return (*results, *(None,) * (len(ctx.needs_input_grad) - len(results)))


def _register_autograd(operator: Callable, function: type[torch.autograd.Function], *first: Any) -> None:
    def kernel(*arguments: Any) -> tuple[Tensor, ...]:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
            return function.apply(*first, *arguments)
        return _below_autograd(operator, *arguments)

    _library.impl(operator.name().split("::")[1].split(".")[0], kernel, "Autograd")


_register_autograd(pmsn_forward, _Pmsn)
_register_autograd(tclif_forward, _Tclif)
_register_autograd(discretize, _Discretize)
for _operator in (pmsn_backward, tclif_backward, discretize_backward):
    _register_autograd(_operator, _NoSecondDerivative, _operator)
