"""The operators of :mod:`.ops` on a device: allocate the outputs, fill in the arguments, let the device run."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from .arguments import DiscretizeArgs, contiguous, pmsn_args, point, pointers, tclif_args
from .buffers import gradients_like, pmsn_buffers, state_interval, tclif_buffers
from .plan import Layout


class Device(Protocol):
    """Where the kernels run."""

    def layout(self, x: Tensor, N: int, C: int, S: int, interval: int, reset_mode: str) -> Layout:
        """How to cut the sequence ``x`` = [T, N, C, S]; whether time can be cut depends on the reset."""

    def run(self, kernel: str, args: ctypes.Structure, layout: Layout | None, x: Tensor) -> None:
        """Run a kernel on the tensors that ``args`` points to, on the device of ``x``."""


def _pmsn_start(device: Device, tensors: list[Tensor], options: Sequence[Any]) -> tuple[Layout, ctypes.Structure]:
    x, K_real, D = tensors[0], tensors[3], tensors[5]
    N, C, *inner = x.shape[1:]
    interval = state_interval(x, 1 + 2 * K_real.shape[1], D.dtype)
    layout = device.layout(x, N, C, math.prod(inner), interval, options[1])
    return layout, pmsn_args(layout, tensors, options)


def pmsn_forward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    """The operator of this name; so are the others."""
    tensors, (*options, with_state, with_v_seq, save) = contiguous(arguments[:11]), arguments[11:]
    x, K_real, D = tensors[0], tensors[3], tensors[5]
    layout, args = _pmsn_start(device, tensors, options)
    buffers = pmsn_buffers(x, K_real.shape[1], D.dtype, options[2], with_state, with_v_seq, save)
    point(args, "out v_after h_real_after h_imag_after v_seq checkpoints", buffers.flat)
    device.run("pmsn_forward", args, layout, x)
    return buffers.flat


def pmsn_backward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    given, state_gradients, tensors = contiguous(arguments[:6]), arguments[6], contiguous(arguments[7:18])
    layout, args = _pmsn_start(device, tensors, arguments[18:])
    point(args, "grad_out grad_v_after grad_h_real_after grad_h_imag_after grad_v_seq checkpoints", given)
    results = gradients_like(tensors[:6], tensors[6:9] if state_gradients else (None,) * 3)
    point(args, "grad_x grad_E_real grad_E_imag grad_K_real grad_K_imag grad_D grad_v grad_h_real grad_h_imag", results)
    device.run("pmsn_backward", args, layout, tensors[0])
    return results


def _tclif_start(device: Device, tensors: list[Tensor], options: Sequence[Any]) -> tuple[Layout, ctypes.Structure]:
    x, b1 = tensors[:2]
    _, channels, inner, *_ = options
    N = x[0].numel() // (channels * inner)
    layout = device.layout(x, N, channels, inner, state_interval(x, 2, b1.dtype), "serial")
    return layout, tclif_args(layout, tensors, options)


def tclif_forward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    tensors, (*options, with_v_seq, save) = contiguous(arguments[:7]), arguments[7:]
    x, b1 = tensors[:2]
    layout, args = _tclif_start(device, tensors, options)
    buffers = tclif_buffers(x, b1.dtype, with_v_seq, save)
    point(args, "out v_after d_after v_seq checkpoints", buffers.flat)
    device.run("tclif_forward", args, layout, x)
    return buffers.flat


def tclif_backward(device: Device, *arguments: Any) -> tuple[Tensor, ...]:
    given, state_gradients, tensors = contiguous(arguments[:5]), arguments[5], contiguous(arguments[6:13])
    layout, args = _tclif_start(device, tensors, arguments[13:])
    point(args, "grad_out grad_v_after grad_d_after grad_v_seq checkpoints", given)
    results = gradients_like(tensors[:3], tensors[3:5] if state_gradients else (None,) * 2)
    point(args, "grad_x grad_b1 grad_b2 grad_v grad_d", results)
    device.run("tclif_backward", args, layout, tensors[0])
    return results


def discretize(device: Device, *parameters: Tensor) -> tuple[Tensor, ...]:
    parameters = contiguous(parameters)
    log_decay = parameters[1]
    results = gradients_like([log_decay] * 4)
    args = DiscretizeArgs(*log_decay.shape, log_decay.dtype == torch.float64, *pointers((*parameters, *results)))
    device.run("discretize", args, None, log_decay)
    return results


def discretize_backward(device: Device, *arguments: Tensor) -> tuple[Tensor, ...]:
    given, parameters = contiguous(arguments[:4]), contiguous(arguments[4:])
    log_decay = parameters[1]
    results = gradients_like(parameters)
    unused = (None,) * 4
    args = DiscretizeArgs(
        *log_decay.shape, log_decay.dtype == torch.float64, *pointers((*parameters, *unused, *given, *results))
    )
    device.run("discretize_backward", args, None, log_decay)
    return results
