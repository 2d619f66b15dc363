"""Which modules of a net are to be replaced."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

Selection = (
    type[nn.Module] | str | Callable[[str, nn.Module], bool] | list["Selection"] | tuple["Selection", ...] | None
)
"""Classes, names (``*`` and ``?`` are wildcards), a predicate of (name, module), or several of these."""


def select(
    net: nn.Module, target: Selection, exclude: Selection, known: tuple[type, ...], ours: tuple[type, ...]
) -> dict[nn.Module, list[str]]:
    """Every module to replace, with all the names it goes by.

    Args:
        target: None for all neurons of the frameworks (``known``) that are not from this package (``ours``). A name
            picks among the known neurons; if it meets none of them, among all modules.
        exclude: what to leave alone.

    Raises:
        TypeError: target or exclude is of another kind.
        ValueError: nothing is left; a name meets no module; the net itself is meant.
    """
    modules = [(name, module) for name, module in net.named_modules(remove_duplicate=False)]
    neurons = {name for name, module in modules if isinstance(module, known)}
    excluded: set[nn.Module] = set()
    for part in _parts("exclude", exclude):
        excluded |= _matching("exclude", part, modules)
    chosen: set[nn.Module] = set()
    if target is None:
        chosen = {m for name, m in modules if name in neurons and not isinstance(m, ours) and not _is_readout(m)}
    for part in _parts("target", target):
        among = modules
        if isinstance(part, str) and any(fnmatchcase(name, part) for name in neurons):
            among = [(name, module) for name, module in modules if name in neurons]
        chosen |= _matching("target", part, among)
    chosen -= excluded
    if not chosen:
        raise ValueError(f"net has no neuron to swap: {_nothing(modules, target, exclude, known)}")
    if net in chosen:
        raise ValueError("net is itself a neuron and cannot be replaced in place; build the new neuron directly")
    inside = {child for module in chosen for child in module.modules() if child is not module}
    found: dict[nn.Module, list[str]] = {}
    for name, module in modules:
        if module in chosen and module not in inside:
            found.setdefault(module, []).append(name)
    return found


def _is_readout(module: nn.Module) -> bool:
    """SpikingJelly's name for a neuron that returns its membrane, in its own classes and in its examples'."""
    return "NonSpiking" in type(module).__name__


def _parts(argument: str, selection: Selection) -> list:
    if selection is None:
        return []
    parts = list(selection) if isinstance(selection, tuple | list) else [selection]
    for part in parts:
        if not (isinstance(part, str) or callable(part)) or isinstance(part, nn.Module):
            raise TypeError(
                f"{argument} must be classes, names or a predicate (name, module) -> bool, got {type(part).__name__}"
            )
    return parts


def _matching(argument: str, part: Any, modules: list[tuple[str, nn.Module]]) -> set[nn.Module]:
    if isinstance(part, type):
        return {module for _, module in modules if isinstance(module, part)}
    if not isinstance(part, str):
        return {module for name, module in modules if part(name, module)}
    matching = {module for name, module in modules if name and fnmatchcase(name, part)}
    if not matching:
        raise ValueError(f"{argument}: no module of the net is named {part!r}")
    return matching


def _nothing(modules: list[tuple[str, nn.Module]], target: Selection, exclude: Selection, known: tuple) -> str:
    old = sorted({type(m).__name__ for _, m in modules if type(m).__module__.startswith("spikingjelly.clock_driven")})
    if old:
        return (
            f"{', '.join(old)} are of spikingjelly.clock_driven; call pmsn_plugins.spikingjelly.clock_driven.install() "
            "before the net's code is imported"
        )
    if target is not None:
        return f"target={target!r} meets nothing" + (f" outside exclude={exclude!r}" if exclude else "")
    if not known:
        return "neither spikingjelly.activation_based nor snntorch is imported; name your own classes with target="
    return "it has none of the frameworks' neurons except ours; name other classes with target="
