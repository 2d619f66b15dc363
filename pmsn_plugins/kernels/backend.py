"""Which backends there are, whether they can be used here and why, and which one a call takes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .._checks import check_choice
from .._compiler import assume_constant_result
from ..functional.surrogate import SpikeFunction
from . import first_contact
from .calls import Call
from .cpu import CpuDevice
from .first_contact import obstacle
from .gpu import CupyDevice


class Backend(Protocol):
    """Fused kernels for one kind of device. A new one is a file with such a class, and a line in :data:`FUSED`."""

    name: str
    device_type: str
    """Of the tensors it takes: ``'cpu'``, ``'cuda'``, ..."""
    takes_layers: bool
    """Whether it computes a PMSN from its parameters, ``'pmsn_layer'``, or only from coefficients."""

    def status(self) -> tuple[bool, str]:
        """Whether it can be used here, and why (or why not)."""

    def run(self, call: Call) -> None:
        """Compute a call: write its results, or backward its tensors' gradients."""


@runtime_checkable
class CompilingBackend(Backend, Protocol):
    """One whose kernels are compiled where they are used: see :mod:`.first_contact`."""

    def launch_once(self, device: torch.device) -> None:
        """Compile and launch something, and wait for it; raises whatever goes wrong."""


FUSED: list[Backend] = [CpuDevice(), CupyDevice()]
"""``'auto'`` takes the first of a device that can be used."""

_COMPILING = {backend.name: backend for backend in FUSED if isinstance(backend, CompilingBackend)}

BACKENDS = ("auto", "torch", *(backend.name for backend in FUSED))

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class BackendStatus(NamedTuple):
    """Whether a backend can be used here, and why (or why not)."""

    available: bool
    reason: str


class Choice(NamedTuple):
    """The backend of one call, and why."""

    backend: str
    reason: str


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, with whether it can be used on this machine and why.

    Example:
        >>> backends()["torch"]
        BackendStatus(available=True, reason='PyTorch operations, any device')
    """
    return {"torch": BackendStatus(True, "PyTorch operations, any device"), **{b.name: _status(b.name) for b in FUSED}}


@assume_constant_result
def _status(name: str) -> BackendStatus:
    return next(BackendStatus(*backend.status()) for backend in FUSED if backend.name == name)


@assume_constant_result
def fused_for(device_type: str) -> tuple[str | None, str]:
    """The backend that ``'auto'`` takes for such tensors, if any can be used, and why (not)."""
    reasons = []
    for backend in FUSED:
        if backend.device_type == device_type:
            available, reason = backend.status()
            if available:
                return backend.name, reason
            reasons.append(reason)
    return None, "; ".join(reasons) or f"no fused kernels for {device_type} tensors"


def check_backend(backend: str) -> None:
    """Raise ValueError for an unknown backend.

    Example:
        >>> check_backend("cuda")
        Traceback (most recent call last):
        ValueError: backend must be one of 'auto', 'torch', 'cpu', 'cupy', got 'cuda'
    """
    check_choice("backend", backend, BACKENDS)


def backend_of(name: str, device_type: str) -> Backend:
    """The fused backend of that name.

    Raises:
        ValueError: it is none, or not for such a device.
    """
    for backend in FUSED:
        if backend.name == name and backend.device_type == device_type:
            return backend
    names = ", ".join(repr(b.name) for b in FUSED if b.device_type == device_type)
    raise ValueError(f"backend must be one for {device_type} tensors ({names or 'there is none'}), got {name!r}")


def choose(backend: str, tensors: Iterable[Any], obstacle: str | None) -> Choice:
    """The backend for a call.

    Args:
        backend: as asked for.
        tensors: of the call, the input first (what is no tensor is passed over).
        obstacle: why the fused kernels cannot compute this call, if they cannot.

    Raises:
        ValueError: an unknown backend, or one that cannot take tensors of this device or be exported to ONNX.
        RuntimeError: the backend was asked for by name and cannot be used here.
    """
    check_backend(backend)
    if backend == "torch":
        return Choice("torch", "asked for")
    exported = _exporting_to_onnx()
    if exported and backend != "auto":
        raise ValueError(f"backend {backend!r} cannot be exported to ONNX: use backend='torch' (or 'auto')")
    if exported or (not torch.compiler.is_dynamo_compiling() and torch.jit.is_tracing() and backend == "auto"):
        return Choice("torch", "exports and traces are for machines without this package")
    x, *others = tensors
    if backend == "auto":
        name, reason = fused_for(x.device.type)
        if name is None:
            if any(b.device_type == x.device.type for b in FUSED):
                _announce_once(f"running on PyTorch operations, many times slower than the fused kernels: {reason}")
            return Choice("torch", reason)
    else:
        name, status = backend, _status(backend)
        reason = status.reason
        if not status.available:
            raise RuntimeError(f"backend {name!r} cannot be used: {reason}")
        needed = next(b.device_type for b in FUSED if b.name == name)
        if needed != x.device.type:
            raise ValueError(f"backend {name!r} needs tensors on a {needed} device, x_seq is on {x.device}")
    device = x.device
    for tensor in others:
        if isinstance(tensor, Tensor) and tensor.device != device:
            return Choice("torch", "the tensors are on different devices")
    if x.dtype not in _DTYPES:
        return Choice("torch", f"no fused kernels for {x.dtype}")
    if x.numel() == 0:
        return Choice("torch", "the input is empty")
    return Choice("torch", obstacle) if obstacle else Choice(name, reason)


def is_compiled_here(choice: Choice) -> bool:
    """Whether its kernels are compiled where they are used, and one may find out whether they work."""
    return choice.backend in _COMPILING and not torch.compiler.is_compiling()


def launched(choice: Choice, device: torch.device) -> Choice:
    """The choice if its kernels can be compiled for this device and launched, or PyTorch."""
    backend = _COMPILING[choice.backend]
    found = obstacle(backend.name, device, lambda: backend.launch_once(device), compares=False)
    return choice if found is None else Choice("torch", f"the kernels do not work on {device}: {found}")


def proven(
    choice: Choice, asked: str, device: torch.device, variant: Any, surrogate_function: SpikeFunction | None
) -> Choice:
    """The choice if this variant of its kernels is right on this device, or PyTorch; see :mod:`.first_contact`.

    Args:
        asked: the backend as asked for.

    Raises:
        RuntimeError: it is not, and the backend was asked for by name.
    """
    tried = launched(choice, device)
    if tried.backend != "torch":
        name = choice.backend
        found = obstacle(
            (name, variant), device, lambda: variant.trial(name, device, surrogate_function), compares=True
        )
        if found is None:
            return choice
        tried = Choice("torch", f"the kernels do not work on {device}: {found}")
    if asked != "auto":
        raise RuntimeError(f"backend {asked!r} cannot be used: {tried.reason}")
    _announce_once(
        f"running on PyTorch operations, many times slower than the fused kernels: {tried.reason} (please report it, "
        "with what python -m pmsn_plugins.bench --check prints)"
    )
    return tried


def is_settled(choice: Choice, device: torch.device, variant: Any) -> bool:
    """Whether calls like this one need not come to :func:`proven` again. One that is made while nothing can be tried,
    or as a trial, is not."""
    return choice.backend not in _COMPILING or first_contact.is_settled((choice.backend, variant), device)


@assume_constant_result
def _exporting_to_onnx() -> bool:
    return torch.onnx.is_in_onnx_export()


@assume_constant_result
@cache
def _announce_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
