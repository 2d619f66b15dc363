"""The neurons with a choice of backend: the same functions as :mod:`pmsn_plugins.functional`, plus ``backend``."""

from __future__ import annotations

from typing import Any, NamedTuple

from .. import functional
from .._checks import check_choice
from ..functional import PMSNOutput, PMSNState, TCLIFOutput, TCLIFState

BACKENDS = ("auto", "torch")


class BackendStatus(NamedTuple):
    """Whether a backend can be used here, and why (or why not)."""

    available: bool
    reason: str


def backends() -> dict[str, BackendStatus]:
    """Every backend by name, with whether it can be used on this machine and why."""
    return {"torch": BackendStatus(True, "PyTorch operations, any device")}


def check_backend(backend: str) -> None:
    """Raise ValueError for an unknown backend."""
    check_choice("backend", backend, BACKENDS)


def pmsn_sequence(*args: Any, backend: str = "auto", **kwargs: Any) -> PMSNOutput:
    """:func:`pmsn_plugins.functional.pmsn_sequence` on the chosen backend."""
    check_backend(backend)
    return functional.pmsn_sequence(*args, **kwargs)


def pmsn_step(*args: Any, backend: str = "auto", **kwargs: Any) -> tuple[Any, PMSNState]:
    """:func:`pmsn_plugins.functional.pmsn_step` on the chosen backend."""
    check_backend(backend)
    return functional.pmsn_step(*args, **kwargs)


def tclif_sequence(*args: Any, backend: str = "auto", **kwargs: Any) -> TCLIFOutput:
    """:func:`pmsn_plugins.functional.tclif_sequence` on the chosen backend."""
    check_backend(backend)
    return functional.tclif_sequence(*args, **kwargs)


def tclif_step(*args: Any, backend: str = "auto", **kwargs: Any) -> tuple[Any, TCLIFState]:
    """:func:`pmsn_plugins.functional.tclif_step` on the chosen backend."""
    check_backend(backend)
    return functional.tclif_step(*args, **kwargs)
