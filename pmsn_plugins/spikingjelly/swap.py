"""What :func:`pmsn_plugins.swap_neurons` has to know of SpikingJelly."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import base, functional, neuron
from torch import nn

from ..swap.frameworks import Framework
from ..swap.maker import Maker
from ..swap.settings import common
from . import swap_recurrent
from ._compat import StatefulNode
from .tclif_recurrent import RecurrentTCLIFNode

SETTINGS = ("v_threshold", "surrogate_function", "detach_reset", "store_v_seq")

# a PSN is no BaseNode
NEURONS = (
    neuron.BaseNode,
    *(
        cls
        for cls in vars(neuron).values()
        if isinstance(cls, type)
        and issubclass(cls, nn.Module)
        and issubclass(cls, base.StepModule)
        and not issubclass(cls, neuron.BaseNode)
    ),
)


def _is_sequence(module: nn.Module) -> bool | None:
    if not isinstance(module, base.StepModule) or isinstance(module, nn.Sequential):
        return None  # a container may give its modules single steps of a sequence
    return getattr(module, "step_mode", "m") == "m"  # a new PSN has no step_mode


def _common(old: Any) -> dict[str, Any]:
    settings = common(old, SETTINGS)
    if any(
        cls.__name__ == "GatedLIFNode" for cls in type(old).__mro__
    ):  # learns a number whose sigmoid is the threshold
        threshold = old.v_threshold.detach().sigmoid()
        settings["v_threshold"] = threshold.item() if threshold.numel() == 1 else threshold
    return settings


def _settings(old: nn.Module, maker: Maker, sequence: bool) -> dict[str, Any]:
    if isinstance(old, swap_recurrent.RECURRENT.layers) and maker.makes(RecurrentTCLIFNode):
        own = swap_recurrent.settings(old)
        return _common(old.sub_module) | {"step_mode": "m" if sequence else "s"} | own
    settings = _common(old) | {"step_mode": "m" if sequence else "s"}
    if maker.given.get("step_mode", settings["step_mode"]) == "m" and not _keeps_state(old):
        settings["keep_state"] = False
    return settings


def _keeps_state(module: nn.Module) -> bool:
    """Whether a neuron that takes sequences goes on, in the next call, from where it stopped."""
    return isinstance(module, base.MemoryModule) and "PSN" not in type(module).__name__


def _swapped(net: nn.Module) -> None:
    if hasattr(functional, "invalidate_reset_cache"):  # 2.0 remembers which modules reset_net has to visit
        for module in net.modules():
            functional.invalidate_reset_cache(module)


FRAMEWORK = Framework(
    neurons=NEURONS,
    ours=(StatefulNode,),
    is_sequence=_is_sequence,
    settings=_settings,
    recurrent=swap_recurrent.RECURRENT,
    attributes=("step_mode", "store_v_seq"),
    swapped=_swapped,
    methods={"single_step_forward": None, "multi_step_forward": 0},
)
