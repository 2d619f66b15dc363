"""What a swap has to know of a framework; asked of those that the program has imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from torch import nn

from .maker import Maker


@dataclass(frozen=True)
class RecurrentLayers:
    """A framework's layers that get their own last spikes back, and our neuron that is such a layer in one."""

    layers: tuple[type[nn.Module], ...]
    """What is replaced, unless a target is given, where ``neuron`` is put in."""

    neuron: type[nn.Module]

    width: Callable[[nn.Module], int | None]
    """Neurons of a layer. Raises ValueError where ours cannot stand in its place."""

    adopt: Callable[[nn.Module, Any], nn.Module]
    """Gives a new neuron the feedback of the old layer; returns what stands in the layer's place."""


@dataclass(frozen=True)
class Framework:
    """One framework's answers, given by :mod:`pmsn_plugins.spikingjelly.swap` and :mod:`pmsn_plugins.snntorch.swap`."""

    neurons: tuple[type[nn.Module], ...]
    """Classes that are replaced unless a target is given."""

    ours: tuple[type[nn.Module], ...]
    """Those of this package, which are not."""

    is_sequence: Callable[[nn.Module], bool | None]
    """Whether a neuron takes [T, N, *] rather than one step [N, *]; None if it is not of this framework."""

    settings: Callable[[nn.Module, Maker, bool], dict[str, Any]]
    """What a new neuron takes over of an old one, which takes sequences or not, by the names of the class's options.
    Raises ValueError where the new neuron cannot stand in the old one's place."""

    recurrent: RecurrentLayers

    attributes: tuple[str, ...]
    """What is taken over as attributes where a function makes the neuron."""

    swapped: Callable[[nn.Module], None]
    """Called with a net whose neurons have been exchanged."""

    methods: Mapping[str, int | None] = field(default_factory=dict)
    """What nets call of a neuron besides its forward, and where time is in the input of that; None: single steps."""


def frameworks() -> list[Framework]:
    """Those that are imported: no net uses another."""
    return [
        import_module(f"pmsn_plugins.{adapter}.swap").FRAMEWORK
        for module, adapter in (("spikingjelly.activation_based.neuron", "spikingjelly"), ("snntorch", "snntorch"))
        if module in sys.modules
    ]
