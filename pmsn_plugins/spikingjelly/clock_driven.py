"""Code written for ``spikingjelly.clock_driven``, SpikingJelly's API before 0.0.0.0.13, on the releases of today.

Opt in before that code is imported::

    from pmsn_plugins.spikingjelly import clock_driven

    clock_driven.install()

    from spikingjelly.clock_driven.neuron import MultiStepLIFNode       # works, and so does swap_neurons

The names are those that the public code of SEW ResNet, PLIF, spikformer, QKFormer and Spike-driven Transformer imports.
Every neuron and layer is one of ``activation_based`` in the step mode that its name says; other names of ``layer``,
``functional``, ``surrogate``, ``encoding``, ``base``, ``monitor`` and ``rnn`` are those of ``activation_based``
themselves. A ``backend`` is accepted and left to the release.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any

import spikingjelly
from spikingjelly.activation_based import layer, neuron, surrogate
from torch import Tensor, nn

from .._checks import check_choice

SUBMODULES = ("base", "encoding", "functional", "layer", "monitor", "neuron", "rnn", "surrogate")


class _AnyNode(type):
    """``isinstance(node, BaseNode)`` holds for all neurons, and so for the others whose names are those of today."""

    def __instancecheck__(cls, instance: object) -> bool:
        of_today = {BaseNode: neuron.BaseNode, IFNode: neuron.IFNode, LIFNode: neuron.LIFNode}
        return isinstance(instance, of_today[cls]) if cls in of_today else super().__instancecheck__(instance)


class BaseNode(neuron.BaseNode, metaclass=_AnyNode):
    """Base of neurons that a repository writes itself: they charge ``self.v`` and return ``self.spiking()``."""

    v: Tensor

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] = surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        monitor_state: bool = False,
    ) -> None:
        if monitor_state:
            raise NotImplementedError("monitor_state=True: use spikingjelly.activation_based.monitor")
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)

    def spiking(self) -> Tensor:
        """Fire and reset."""
        spike = self.surrogate_function(self.v - self.v_threshold)
        fired = spike.detach() if self.detach_reset else spike
        if self.v_reset is None:
            self.v = self.v - fired * self.v_threshold
        else:
            self.v = (1.0 - fired) * self.v + fired * self.v_reset
        return spike


class IFNode(neuron.IFNode, metaclass=_AnyNode):
    """``cupy_fp32_inference`` made it faster, not different."""

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] = surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        cupy_fp32_inference: bool = False,
        **of_today: Any,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, **of_today)


class LIFNode(neuron.LIFNode, metaclass=_AnyNode):
    """``cupy_fp32_inference`` made it faster, not different."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] = surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        cupy_fp32_inference: bool = False,
        **of_today: Any,
    ) -> None:
        super().__init__(tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset, **of_today)


class MultiStepIFNode(IFNode):
    """``lava_s_cale`` was for a backend that is not accepted here."""

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] = surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        backend: str = "torch",
        lava_s_cale: int = 64,
    ) -> None:
        check_choice("backend", backend, ("torch", "cupy"))
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self.step_mode = "m"


class MultiStepLIFNode(LIFNode):
    """``lava_s_cale`` was for a backend that is not accepted here."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] = surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        backend: str = "torch",
        lava_s_cale: int = 64,
    ) -> None:
        check_choice("backend", backend, ("torch", "cupy"))
        super().__init__(tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset)
        self.step_mode = "m"


class MultiStepParametricLIFNode(neuron.ParametricLIFNode):
    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] = surrogate.Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        backend: str = "torch",
    ) -> None:
        check_choice("backend", backend, ("torch", "cupy"))
        super().__init__(init_tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset, step_mode="m")


class _Container(nn.Sequential):
    """What the first containers had: ``module``, which old checkpoints name too."""

    @property
    def module(self) -> Any:
        return self[0] if len(self) == 1 else self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        old = f"{prefix}module."
        for key in [key for key in state_dict if key.startswith(old)]:
            new = key[len(old) :]
            state_dict[prefix + (new if new.partition(".")[0] in self._modules else f"0.{new}")] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


class SeqToANNContainer(_Container, layer.SeqToANNContainer):
    pass


class MultiStepContainer(_Container, layer.MultiStepContainer):
    pass


class Dropout(layer.Dropout):
    """``dropout_spikes`` made it faster, not different."""

    def __init__(self, p: float = 0.5, dropout_spikes: bool = False) -> None:
        super().__init__(p)


class Dropout2d(layer.Dropout2d):
    def __init__(self, p: float = 0.2, dropout_spikes: bool = False) -> None:
        super().__init__(p)


class MultiStepDropout(layer.Dropout):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p, step_mode="m")


class MultiStepDropout2d(layer.Dropout2d):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p, step_mode="m")


def ATan(alpha: float = 2.0, spiking: bool = True, learnable: bool = False) -> surrogate.ATan:  # noqa: N802
    """``surrogate.ATan``, whose ``learnable`` is gone."""
    if learnable:
        raise NotImplementedError("learnable=True: no surrogate function of activation_based learns its alpha")
    return surrogate.ATan(alpha, spiking)


def _mul(x: Tensor, spike: Tensor, spike_mul_spike: bool = False) -> Tensor:
    return x * spike


class _ExtensionIFNode(MultiStepIFNode):
    """``spikingjelly.cext.neuron.MultiStepIFNode``."""

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float = 0.0,
        surrogate_function: str = "ATan",
        alpha: float = 2.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, _named(surrogate_function, alpha), detach_reset)


class _ExtensionParametricLIFNode(MultiStepParametricLIFNode):
    """``spikingjelly.cext.neuron.MultiStepParametricLIFNode``."""

    def __init__(
        self,
        init_tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float = 0.0,
        surrogate_function: str = "ATan",
        alpha: float = 2.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__(init_tau, True, v_threshold, v_reset, _named(surrogate_function, alpha), detach_reset)


def _named(surrogate_function: str, alpha: float) -> Callable[[Tensor], Tensor]:
    check_choice("surrogate_function", surrogate_function, ("ATan", "Sigmoid"))
    return getattr(surrogate, surrogate_function)(alpha)


_NAMES: dict[str, dict[str, Any]] = {
    "neuron": {
        "BaseNode": BaseNode,
        "IFNode": IFNode,
        "LIFNode": LIFNode,
        "MultiStepIFNode": MultiStepIFNode,
        "MultiStepLIFNode": MultiStepLIFNode,
        "MultiStepParametricLIFNode": MultiStepParametricLIFNode,
        "surrogate": surrogate,
    },
    "layer": {
        "Dropout": Dropout,
        "Dropout2d": Dropout2d,
        "MultiStepContainer": MultiStepContainer,
        "MultiStepDropout": MultiStepDropout,
        "MultiStepDropout2d": MultiStepDropout2d,
        "SeqToANNContainer": SeqToANNContainer,
    },
    "surrogate": {"ATan": ATan},
}

_installed: dict[str, ModuleType] = {}
"""The modules that :func:`install` has put into ``sys.modules``."""


def install() -> None:
    """Make ``spikingjelly.clock_driven`` and ``spikingjelly.cext.neuron`` importable. Idempotent.

    On a release that still has its own ``clock_driven`` (the wheel of 0.0.0.0.14), it is put in its place, for
    ``swap_neurons`` and ``functional.reset_net`` know the neurons of ``activation_based``.

    Raises:
        RuntimeError: the release's own ``clock_driven`` or ``cext`` has been imported already.

    Example:
        >>> install()
        >>> from spikingjelly.clock_driven.neuron import MultiStepLIFNode
        >>> uninstall()
    """
    if _installed:
        return
    for name in ("spikingjelly.clock_driven", "spikingjelly.cext"):
        if name in sys.modules:
            raise RuntimeError(f"{name} has been imported already: call clock_driven.install() before that")
    clock_driven = _module("spikingjelly.clock_driven", "", {})
    for name in SUBMODULES:
        _module(f"spikingjelly.clock_driven.{name}", f"spikingjelly.activation_based.{name}", _NAMES.get(name, {}))
    _module("spikingjelly.clock_driven.accelerating", "", {"add": Tensor.add, "mul": _mul, "sub": Tensor.sub})
    _module("spikingjelly.cext", "", {})
    extension = {"MultiStepIFNode": _ExtensionIFNode, "MultiStepParametricLIFNode": _ExtensionParametricLIFNode}
    _module("spikingjelly.cext.neuron", "", extension)
    spikingjelly.clock_driven = clock_driven


def uninstall() -> None:
    """Undo :func:`install`; what was imported stays usable. Idempotent.

    Example:
        >>> uninstall()
    """
    for name, module in _installed.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]
    _installed.clear()
    spikingjelly.__dict__.pop("clock_driven", None)
    spikingjelly.__dict__.pop("cext", None)


def _module(name: str, original: str, names: dict[str, Any]) -> ModuleType:
    """A module with these names and, behind them, those of the original."""
    module = ModuleType(name, f"Stand-in by pmsn_plugins for {name}.")
    module.__path__ = []
    vars(module).update(names)
    vars(module)["__getattr__"] = lambda attribute: _of_original(module, original, names, attribute)
    sys.modules[name] = _installed[name] = module
    package, _, last = name.rpartition(".")
    if package in _installed:
        setattr(_installed[package], last, module)
    return module


def _of_original(module: ModuleType, original: str, names: dict[str, Any], attribute: str) -> Any:
    of_today = import_module(original) if original else None
    if attribute == "__all__":  # of import *
        found = {*vars(module), *(dir(of_today) if original else ())}
        return sorted(name for name in found if not name.startswith("_"))
    try:
        return getattr(of_today, attribute)
    except AttributeError:
        raise AttributeError(
            f"the stand-in for {module.__name__} has no {attribute}: it has "
            + (", ".join(sorted(names)) or "only modules")
            + (f" and what {original} of this release has" if original else "")
        ) from None
