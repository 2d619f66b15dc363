"""Our layers in ``SpikingNeuron.instances``, where snnTorch's class methods look for them, but without living for ever.

``snntorch.utils.reset(net)`` and ``snntorch.backprop`` know a few classes by name, and call the class methods
``reset_hidden`` and ``detach_hidden`` of those that a net contains. These go through the list and, for every
:class:`snntorch.Leaky`, say, do ::

    layer.mem = torch.zeros_like(layer.mem, device=layer.mem.device)
    layer.mem.detach_()

Our layers are Leaky (PMSN) or Synaptic (TCLIF) to be found, but have more to reset than ``mem``; and the list would
keep them alive. So it gets an :class:`Entry`, which understands these two statements.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import snntorch as snn

if TYPE_CHECKING:
    from .layer import MultiCompartmentLayer


class Entry:
    """Stands for a layer in the list, and for nothing once the layer is gone. It must not leave the list then: garbage
    may be collected in the middle of snnTorch's loops, which count the list's items before they begin."""

    def __init__(self, layer: MultiCompartmentLayer) -> None:
        self._kind = type(layer)
        self._layer = weakref.ref(layer)

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what isinstance asks
        return self._kind

    def layer(self) -> MultiCompartmentLayer | None:
        return self._layer()

    @property
    def mem(self) -> _Hidden:
        return _Hidden(self)

    @mem.setter
    def mem(self, value: object) -> None:
        if (layer := self.layer()) is not None:
            layer.reset_mem()

    syn = mem


class _Hidden:
    """What stands for ``layer.mem`` there."""

    device = None

    def __init__(self, entry: Entry) -> None:
        self._entry = entry

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> None:
        """``torch.zeros_like(mem)``: the value does not matter, the layer resets itself."""

    def detach_(self) -> None:
        if (layer := self._entry.layer()) is not None:
            layer.detach_mem()


def enlist(layer: MultiCompartmentLayer) -> None:
    """Put ``layer`` into the list, and take out what stands for layers that are gone."""
    instances = snn.SpikingNeuron.instances
    instances[:] = [entry for entry in instances if type(entry) is not Entry or entry.layer() is not None]
    instances.append(Entry(layer))


def enlisted(kind: type[MultiCompartmentLayer]) -> Iterator[MultiCompartmentLayer]:
    """The layers of a class that are alive."""
    for entry in list(snn.SpikingNeuron.instances):
        if type(entry) is Entry and isinstance(entry, kind) and (layer := entry.layer()) is not None:
            yield layer
