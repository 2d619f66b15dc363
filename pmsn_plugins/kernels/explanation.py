"""Which backend a call would use, and why."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .._checks import check_choice
from .backend import Choice
from .firing import firing
from .pmsn import choose_pmsn
from .tclif import choose_tclif
from .tclif_recurrent import choose_tclif_recurrent

_CHOOSERS: dict[str, Callable[..., Choice]] = {
    "pmsn_sequence": choose_pmsn,
    "tclif_sequence": choose_tclif,
    "tclif_recurrent_sequence": choose_tclif_recurrent,
}


def explain(function: Callable, *args: Any, **kwargs: Any) -> str:
    """Which backend a call of a sequence function would use, and why, without computing it.

    These are ``pmsn_sequence``, ``tclif_sequence`` and ``tclif_recurrent_sequence`` of this package.

    Example:
        >>> import torch
        >>> from pmsn_plugins import kernels
        >>> explain(kernels.tclif_sequence, torch.rand(10, 8, 3), b1=-0.5, b2=0.5, backend="torch")
        'torch: asked for'
    """
    name: Any = getattr(function, "__name__", None)
    check_choice("function", name, _CHOOSERS)
    choose = _CHOOSERS[name]
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    given = call.arguments
    through_reset = given.get("reset_mode", "serial") == "serial"
    fires = firing(given["surrogate_function"], given["v_threshold"], given.get("burst", False), through_reset)
    relevant = {name: given[name] for name in inspect.signature(choose).parameters if name in given}
    choice = choose(**relevant, fires=fires)
    return f"{choice.backend}: {choice.reason}"
