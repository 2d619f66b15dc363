"""What an old neuron says of itself, as far as a new one can be told."""

from __future__ import annotations

from numbers import Real
from typing import Any

from torch import Tensor


def common(old: object, names: tuple[str, ...]) -> dict[str, Any]:
    """Those attributes of ``old`` that are what their names say: a number, a flag, a function."""
    settings = {}
    for name in names:
        value = getattr(old, name, None)
        if "threshold" in name and not name.startswith("learn"):
            if isinstance(value, Tensor) and value.numel() == 1:
                value = value.item()
            fits = isinstance(value, Real | Tensor) and not isinstance(value, bool)
        elif name in ("surrogate_function", "spike_grad"):
            fits = callable(value)
        else:
            fits = isinstance(value, bool)
        if fits:
            settings[name] = value
    return settings
