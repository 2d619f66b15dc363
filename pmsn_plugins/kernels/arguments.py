"""The arguments of the C++ and CUDA kernels: ``csrc/args.h`` field by field, filled from tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .plan import FIRES, RESETS, SURROGATES, Layout

STORAGE = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

_LAYOUT = (ctypes.c_longlong, "T M C S P strip groups segment interval cuttable is_double")


def _structure(name: str, *groups: tuple[type, str]) -> type[ctypes.Structure]:
    fields = [(field, kind) for kind, names in groups for field in names.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


PmsnArgs = _structure(
    "PmsnArgs",
    _LAYOUT,
    (ctypes.c_longlong, "k x_storage out_storage reset fire surrogate"),
    (ctypes.c_double, "theta surrogate_a surrogate_b surrogate_c"),
    (ctypes.c_void_p, "x E_real E_imag K_real K_imag D v h_real h_imag theta_tensor slopes"),
    (ctypes.c_void_p, "out v_after h_real_after h_imag_after v_seq checkpoints"),
    (ctypes.c_void_p, "grad_out grad_v_after grad_h_real_after grad_h_imag_after grad_v_seq"),
    (ctypes.c_void_p, "grad_x grad_E_real grad_E_imag grad_K_real grad_K_imag grad_D grad_v grad_h_real grad_h_imag"),
    (ctypes.c_void_p, "partials carries"),
)
TclifArgs = _structure(
    "TclifArgs",
    _LAYOUT,
    (ctypes.c_longlong, "x_storage pre_reset detach_reset strict surrogate"),
    (ctypes.c_double, "theta surrogate_a surrogate_b surrogate_c gamma a1 a2"),
    (ctypes.c_void_p, "x b1 b2 v d theta_tensor slopes"),
    (ctypes.c_void_p, "out v_after d_after v_seq checkpoints"),
    (ctypes.c_void_p, "grad_out grad_v_after grad_d_after grad_v_seq"),
    (ctypes.c_void_p, "grad_x grad_b1 grad_b2 grad_v grad_d partials"),
)
DiscretizeArgs = _structure(
    "DiscretizeArgs",
    (ctypes.c_longlong, "C k is_double"),
    (ctypes.c_void_p, "log_dt log_decay freq B_real B_imag R_real R_imag"),
    (ctypes.c_void_p, "E_real E_imag K_real K_imag"),
    (ctypes.c_void_p, "grad_E_real grad_E_imag grad_K_real grad_K_imag"),
    (ctypes.c_void_p, "grad_log_dt grad_log_decay grad_freq grad_B_real grad_B_imag grad_R_real grad_R_imag"),
)


def contiguous(tensors: Sequence[Tensor | None]) -> list[Any]:
    """The tensors as the kernels read them; whoever takes their addresses keeps them alive."""
    return [None if t is None else t.contiguous() for t in tensors]


def pointers(tensors: Sequence[Tensor | None]) -> list[int | None]:
    """Addresses, null for a missing or empty tensor."""
    return [None if t is None or t.numel() == 0 else t.data_ptr() for t in tensors]


def pmsn_args(
    layout: Layout, tensors: Sequence[Any], options: Sequence[Any], *others: Tensor | None
) -> ctypes.Structure:
    """Tensors and options that forward and backward of PMSN share, in the order of the operators in :mod:`.ops`; the
    other tensors in the order of the fields from ``out`` on."""
    theta, reset_mode, fire, surrogate, *parameters = options
    x, K_real, D = tensors[0], tensors[3], tensors[5]
    out_dtype = D.dtype if fire == "membrane" else x.dtype
    return PmsnArgs(
        *layout,
        D.dtype == torch.float64,
        *(K_real.shape[1], STORAGE[x.dtype], STORAGE[out_dtype]),
        *(RESETS.index(reset_mode), FIRES.index(fire), SURROGATES.index(surrogate), theta, *parameters),
        *pointers((*tensors, *others)),
    )


def tclif_args(
    layout: Layout, tensors: Sequence[Any], options: Sequence[Any], *others: Tensor | None
) -> ctypes.Structure:
    """The same for TC-LIF."""
    theta, _, _, gamma, a1, a2, pre_reset, detach_reset, strict, surrogate, *parameters = options
    x, b1 = tensors[:2]
    return TclifArgs(
        *layout,
        b1.dtype == torch.float64,
        *(STORAGE[x.dtype], pre_reset, detach_reset, strict, SURROGATES.index(surrogate)),
        *(theta, *parameters, gamma, a1, a2),
        *pointers((*tensors, *others)),
    )


def discretize_args(parameters: Sequence[Tensor], *others: Tensor | None) -> ctypes.Structure:
    """The parameters, and the other tensors in the order of the fields from ``E_real`` on."""
    log_decay = parameters[1]
    return DiscretizeArgs(*log_decay.shape, log_decay.dtype == torch.float64, *pointers((*parameters, *others)))
