"""First contact of a device with kernels that are compiled where they are used: do they run there, and are they right?

Nobody can have tried every GPU, driver and compiler. So a backend of this kind is launched once on every device, and
the first use of each variant that is compiled is compared with the reference on a tiny sequence: milliseconds beside
the compilation. What fails is not used: ``'auto'`` goes on with PyTorch and says why; a backend that was asked for by
name is an error. ``PMSN_SELF_CHECK=0`` leaves the comparisons out. Nothing is tried while a CUDA graph is captured, or
a function traced, compiled or transformed: a later call tries it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from ..functional.surrogate import transforming

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 1e-2}
"""Relative error of a result or gradient that is still agreement, by the dtype of the input."""

SEEDS = (0, 1, 2)
"""Of the inputs that are tried: rounding may move a spike, but hardly in all of them."""

_found: dict[Hashable, str | None] = {}
_trying: ContextVar[bool] = ContextVar("trying", default=False)


def obstacle(variant: Hashable, device: torch.device, trial: Callable[[], str | None], compares: bool) -> str | None:
    """What speaks against a variant on this device, found out at its first use and remembered.

    Args:
        variant: names it; together with the device.
        trial: runs it; returns what is wrong, if anything is. What it raises is wrong too.
        compares: whether the trial is a comparison, which can be turned off.
    """
    key = variant, device
    if key in _found:
        return _found[key]
    if (compares and os.environ.get("PMSN_SELF_CHECK") == "0") or _trying.get() or not _at_liberty(device):
        return None
    try:
        _found[key] = attempt(trial, device)
    except torch.OutOfMemoryError:
        return None  # says nothing about the kernels
    return _found[key]


def is_settled(variant: Hashable, device: torch.device) -> bool:
    """Whether a comparison has been made, or is not wanted: then nothing has to be found out any more."""
    return (variant, device) in _found or os.environ.get("PMSN_SELF_CHECK") == "0"


def attempt(trial: Callable[[], str | None], device: torch.device) -> str | None:
    """What is wrong, with what the trial raises (but that there is no memory)."""
    token = _trying.set(True)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            return trial()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler, a driver, a launch: there are many kinds
        return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    finally:
        _trying.reset(token)


def _at_liberty(device: torch.device) -> bool:
    """Whether other work can be done on the device now."""
    if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None or transforming():
        return False
    return device.type != "cuda" or not torch.cuda.is_current_stream_capturing()


def disagreement(
    ours: Callable[..., Any],
    reference: Callable[..., Any],
    arguments: Callable[[int], Mapping[str, Any]],
    gradients: bool,
) -> str | None:
    """How two sequence functions differ, if they do.

    Args:
        ours, reference: called with ``arguments``; return a record with the spikes first.
        arguments: for a seed: ``x_seq`` and others by name, tensors, records of tensors and None.
        gradients: whether to compare gradients too.
    """
    found = None
    for seed in SEEDS:
        given = arguments(seed)
        found = _difference(
            _evaluate(ours, given, None, gradients),
            _evaluate(reference, given, torch.float64, gradients),
            TOLERANCES[given["x_seq"].dtype],
        )
        if found is None:
            return None
    return found


def _evaluate(
    function: Callable[..., Any], arguments: Mapping[str, Any], dtype: torch.dtype | None, gradients: bool
) -> dict[str, Tensor]:
    """Spikes and the final state, if there is one, and gradients of random linear functions of either: a state that
    nothing comes back to is another way back. All tensors in ``dtype``, if one is given."""
    leaves: dict[str, Tensor] = {}

    def leaf(name: str, value: Any) -> Any:
        if isinstance(value, Tensor):
            leaves[name] = value.detach().to(dtype or value.dtype).clone().requires_grad_(gradients)
            return leaves[name]
        return value if value is None else type(value)(*map(leaf, value._fields, value))

    with torch.set_grad_enabled(gradients):
        output = function(**{name: leaf(name, value) for name, value in arguments.items()})
        state = getattr(output, "state", None) or ()
        found = {"spikes": output[0], **(state._asdict() if state else {})}
        if not gradients:
            return found
        for source, tensors in {"": output[:1], " from the final state": state}.items():
            tensors = [t for t in tensors if t.requires_grad]
            if not tensors:
                continue
            generator = torch.Generator().manual_seed(3)
            weights = [torch.randint(-4, 5, t.shape, generator=generator).to(t) / 4 for t in tensors]
            options: dict[str, Any] = dict(retain_graph=True, allow_unused=True, materialize_grads=True)
            made = torch.autograd.grad(tensors, [*leaves.values()], weights, **options)
            found |= {f"gradient of {name}{source}": g for name, g in zip(leaves, made, strict=True)}
    return {name: value.detach() for name, value in found.items()}


def _difference(ours: Mapping[str, Tensor], reference: Mapping[str, Tensor], tolerance: float) -> str | None:
    for name, want in reference.items():
        error, scale = (ours[name].double() - want.double()).norm().item(), want.double().norm().item()
        if not error <= tolerance * (scale + 1e-3):  # also where it is NaN
            return f"{name}: {error:.3g} away from the reference, which is {scale:.3g} (norms)"
    return None
