"""What :func:`pmsn_plugins.swap_neurons` has to know of snnTorch."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import snntorch as snn
from torch import Tensor, nn

from .._checks import shown
from ..swap.frameworks import Framework
from ..swap.maker import Maker
from ..swap.settings import common
from . import swap_recurrent
from .layer import MultiCompartmentLayer
from .pmsn import PMSN
from .tclif import TCLIF
from .tclif_recurrent import RTCLIF

SETTINGS = ("threshold", "spike_grad", "surrogate_disable", "init_hidden", "output")


def _classes(*names: str) -> tuple[type[nn.Module], ...]:
    """Those that exist in this release."""
    return tuple(getattr(snn, name) for name in names if hasattr(snn, name))


_SEQUENCE = _classes("StateLeaky", "AssociativeLeaky", "LeakyParallel")


def _is_sequence(module: nn.Module) -> bool | None:
    if isinstance(module, MultiCompartmentLayer):
        return getattr(module, "step_mode", "s") == "m"
    if isinstance(module, _SEQUENCE):
        return True
    return False if isinstance(module, snn.SpikingNeuron) else None


def _settings(old: nn.Module, maker: Maker, sequence: bool) -> dict[str, Any]:
    recurrent = isinstance(old, swap_recurrent.RECURRENT.layers) and maker.makes(RTCLIF)
    # a surrogate with a learned slope is taken over, as any is
    children = [(name, child) for name, child in old.named_children() if child is not getattr(old, "spike_grad", None)]
    weights = [name for name, child in children if any(True for _ in child.parameters())]
    if isinstance(old, FRAMEWORK.neurons) and weights and not recurrent:
        raise ValueError(
            f"{type(old).__name__} has weights of its own ({', '.join(weights)}), which a new neuron would not have; "
            "exclude= it" + (", or put in RTCLIF" if isinstance(old, swap_recurrent.RECURRENT.layers) else "")
        )
    settings = common(old, SETTINGS)
    if settings.get("surrogate_disable"):
        settings.pop("spike_grad", None)
    settings["learn_threshold"] = isinstance(getattr(old, "threshold", None), nn.Parameter)
    if maker.cls is not None and issubclass(maker.cls, MultiCompartmentLayer):
        _call_alike(old, maker.cls, settings, sequence)
        _check_options_that_ours_lack(old, maker)
    else:
        settings |= {name: value for name, value in _unusual(old).items() if maker.takes(name)}
    settings |= _graded(old, maker)
    taken = {name: value for name, value in settings.items() if not (name.startswith("learn") and not value)}
    return taken | (swap_recurrent.settings(old) if recurrent else {})


def _unusual(old: nn.Module) -> dict[str, Any]:
    """Options of ``old`` that change what it computes, where they are not the default."""
    reset = inspect.signature(type(old)).parameters.get("reset_mechanism")  # Alpha's default is another than Leaky's
    usual = {"inhibition": False, "state_quant": False, "reset_mechanism": reset.default if reset else "subtract"}
    values = {name: getattr(old, name, value) for name, value in usual.items()}
    return {name: value for name, value in values.items() if value is not usual[name] and value != usual[name]}


def _check_options_that_ours_lack(old: nn.Module, maker: Maker) -> None:
    """Raise ValueError for what is refused when one of our layers is made by hand; a reset that is another is said."""
    assert maker.cls is not None
    name, new = type(old).__name__, maker.cls.__name__
    unusual = {option: value for option, value in _unusual(old).items() if option not in maker.given}
    for option in ("inhibition", "state_quant"):
        if option in unusual:
            raise ValueError(
                f"{name} has {option}={shown(unusual[option])}, which no {new} has; exclude= it, or give "
                f"functools.partial({new}, {option}=False) to do without"
            )
    reset = unusual.get("reset_mechanism")
    if reset is None or "reset_mode" in maker.given:
        return
    if reset == "none":
        advice = "exclude= it, or put a linear readout in its place"
        if maker.makes(PMSN):
            advice += ", or swap it by itself with functools.partial(PMSN, reset_mode='memoryless')"
        text = f"resets: if the membrane of that {name} is the net's output, {advice}"
    else:
        text = "subtracts its threshold; exclude= it to keep the reset to zero"
    warnings.warn(f"{name} has reset_mechanism={reset!r}, and the {new} in its place {text}", stacklevel=2)


def _graded(old: nn.Module, maker: Maker) -> dict[str, Any]:
    """``graded_spikes_factor``, if it is not one."""
    factor = getattr(old, "graded_spikes_factor", None)
    learned = isinstance(factor, nn.Parameter)
    if not isinstance(factor, Tensor) or not (learned or (factor != 1).any()):
        return {}
    if maker.takes("graded_spikes_factor"):
        value = factor.item() if factor.numel() == 1 else factor.detach().clone()
        return {"graded_spikes_factor": value, "learn_graded_spikes_factor": learned}
    if isinstance(old, FRAMEWORK.neurons) and maker.cls is not None and "graded_spikes_factor" not in maker.given:
        raise ValueError(
            f"{type(old).__name__} has a graded_spikes_factor, which no {maker.cls.__name__} has; exclude= it, or "
            "scale the weights that follow"
        )
    return {}


def _call_alike(old: nn.Module, cls: type, settings: dict[str, Any], sequence: bool) -> None:
    """Settings with which our layer is called like ``old`` and returns as many values; ValueError if there are none."""
    name = type(old).__name__
    if not isinstance(old, snn.SpikingNeuron):  # returns one tensor, like nn.ReLU
        settings |= {"init_hidden": not sequence, "output": False}
    kept, output = settings.get("init_hidden", False), settings.get("output", False)
    if sequence and issubclass(cls, TCLIF):
        raise ValueError(f"{name} takes whole sequences and TCLIF single steps: put in PMSN, which takes both")
    if sequence and isinstance(old, _SEQUENCE) and not output:
        raise ValueError(f"{name} with output=False returns its membrane alone, which no {cls.__name__} does")
    if issubclass(cls, RTCLIF) and not isinstance(old, snn.RSynaptic) and (output or not kept):
        raise ValueError(
            f"{name} is not called like RTCLIF, which returns (spk, dend, mem); with init_hidden=True it is"
        )
    if not sequence and (output or not kept):  # the states are among the values returned
        if isinstance(old, snn.Synaptic) and issubclass(cls, PMSN):
            raise ValueError(
                f"{name} returns (spk, syn, mem) and PMSN (spk, mem): put in TCLIF, which returns three too"
            )
        if isinstance(old, _classes("Alpha", "DeltaLeaky")):
            raise ValueError(f"{name} returns other states than PMSN and TCLIF; with init_hidden=True it would not")
    if not sequence and not isinstance(old, snn.Synaptic | snn.RSynaptic) and isinstance(old, snn.SpikingNeuron):
        settings["single_state"] = True
    if not sequence and not kept:
        settings.pop("output", None)  # without a meaning
    if issubclass(cls, PMSN):
        settings["step_mode"] = "m" if sequence else "s"
        if sequence:
            settings.pop("init_hidden", None)


FRAMEWORK = Framework(
    neurons=(snn.SpikingNeuron, *_classes("LeakyParallel")),
    ours=(MultiCompartmentLayer,),
    is_sequence=_is_sequence,
    settings=_settings,
    recurrent=swap_recurrent.RECURRENT,
    attributes=(),
    swapped=lambda net: None,
)
