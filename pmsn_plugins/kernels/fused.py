"""The operators of :mod:`.ops` on a device: allocate the outputs, fill in the arguments, let the device run."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from .arguments import contiguous, discretize_args, pmsn_args, tclif_args
from .buffers import gradients_like, pmsn_buffers, state_interval, tclif_buffers
from .plan import Layout


class Device(Protocol):
    """Where the kernels run."""

    def layout(self, x: Tensor, N: int, C: int, S: int, interval: int, reset_mode: str) -> Layout:
        """How to cut the sequence ``x`` = [T, N, C, S]; whether time can be cut depends on the reset."""

    def run(self, kernel: str, args: ctypes.Structure, layout: Layout | None, x: Tensor) -> None:
        """Run a kernel on the tensors that ``args`` points to, on the device of ``x``."""


def _pmsn_layout(device: Device, tensors: Sequence[Any], reset_mode: str) -> Layout:
    x, K_real, D = tensors[0], tensors[3], tensors[5]
    _, N, C, *inner = x.shape
    interval = state_interval(x, 1 + 2 * K_real.shape[1], D.dtype)
    return device.layout(x, N, C, math.prod(inner), interval, reset_mode)


def pmsn_forward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator of this name; so are the others."""
    tensors, (*options, with_state, with_v_seq, save) = contiguous(arguments[:11]), arguments[11:]
    x, K_real, D = tensors[0], tensors[3], tensors[5]
    layout = _pmsn_layout(device, tensors, options[1])
    results = pmsn_buffers(x, K_real.shape[1], D.dtype, options[2], with_state, with_v_seq, save).flat
    device.run("pmsn_forward", pmsn_args(layout, tensors, options, *results), layout, x)
    return results


def pmsn_backward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    (*grads, checkpoints), state_gradients = contiguous(arguments[:6]), arguments[6]
    tensors, options = contiguous(arguments[7:18]), arguments[18:]
    layout = _pmsn_layout(device, tensors, options[1])
    results = gradients_like(tensors[:6], tensors[6:9] if state_gradients else (None,) * 3)
    outputs = (None,) * 5
    args = pmsn_args(layout, tensors, options, *outputs, checkpoints, *grads, *results)
    device.run("pmsn_backward", args, layout, tensors[0])
    return results


def pmsn_layer_forward(device: Device, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    parameters, others = arguments[:7], arguments[7:]
    return pmsn_forward(device, x, *discretize(device, *parameters), *others)


def pmsn_layer_backward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    given, x, parameters, others = arguments[:7], arguments[7], arguments[8:15], arguments[15:]
    results = pmsn_backward(device, *given, x, *discretize(device, *parameters), *others)
    grad_x, *grad_coefficients = results[:5]
    return grad_x, *discretize_backward(device, *grad_coefficients, *parameters), *results[5:]


def _tclif_layout(device: Device, tensors: Sequence[Any], options: Sequence[Any]) -> Layout:
    x, b1 = tensors[:2]
    _, channels, inner, *_ = options
    N = x[0].numel() // (channels * inner)
    return device.layout(x, N, channels, inner, state_interval(x, 2, b1.dtype), "serial")


def tclif_forward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    tensors, (*options, with_state, with_v_seq, save) = contiguous(arguments[:7]), arguments[7:]
    x, b1 = tensors[:2]
    layout = _tclif_layout(device, tensors, options)
    results = tclif_buffers(x, b1.dtype, with_state, with_v_seq, save).flat
    device.run("tclif_forward", tclif_args(layout, tensors, options, *results), layout, x)
    return results


def tclif_backward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    (*grads, checkpoints), state_gradients = contiguous(arguments[:5]), arguments[5]
    tensors, options = contiguous(arguments[6:13]), arguments[13:]
    layout = _tclif_layout(device, tensors, options)
    results = gradients_like(tensors[:3], tensors[3:5] if state_gradients else (None,) * 2)
    outputs = (None,) * 4
    args = tclif_args(layout, tensors, options, *outputs, checkpoints, *grads, *results)
    device.run("tclif_backward", args, layout, tensors[0])
    return results


def discretize(device: Device, *parameters: Tensor) -> tuple[Tensor, ...]:
    parameters = contiguous(parameters)
    results = gradients_like([parameters[1]] * 4)
    device.run("discretize", discretize_args(parameters, *results), None, parameters[1])
    return results


def discretize_backward(device: Device, *arguments: Tensor) -> tuple[Tensor, ...]:
    grads, parameters = contiguous(arguments[:4]), contiguous(arguments[4:])
    results = gradients_like(parameters)
    outputs = (None,) * 4
    device.run("discretize_backward", discretize_args(parameters, *outputs, *grads, *results), None, parameters[1])
    return results
