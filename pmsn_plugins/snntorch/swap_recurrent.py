"""What :func:`pmsn_plugins.swap_neurons` has to know of snnTorch's recurrent neurons."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from torch import nn

from ..swap.frameworks import RecurrentLayers
from .tclif_recurrent import RTCLIF


def settings(old: nn.Module) -> dict[str, Any]:
    """How the spikes of an ``RSynaptic`` or ``RLeaky`` come back, in RTCLIF's options."""
    learned = {"learn_recurrent": old.learn_recurrent}
    if not old.all_to_all:
        return learned | {"all_to_all": False, "V": old.V}
    if not isinstance(old.recurrent, nn.Linear):
        raise ValueError(f"{type(old).__name__} feeds back through a {type(old.recurrent).__name__}, RTCLIF a Linear")
    return learned | {"linear_features": old.recurrent.in_features}


def _width(old: nn.Module) -> int | None:
    return old.recurrent.in_features if isinstance(old.recurrent, nn.Linear) else None


def _adopt(old: Any, new: RTCLIF) -> nn.Module:
    if old.all_to_all:
        new.recurrent = old.recurrent
    elif isinstance(old.V, nn.Parameter):
        new.V = old.V
    return new


RECURRENT = RecurrentLayers(layers=(snn.RLeaky, snn.RSynaptic), neuron=RTCLIF, width=_width, adopt=_adopt)
