"""Operations of our neurons, for the module counters of SpikingJelly 2.0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

try:
    from spikingjelly.activation_based.op_counter import ModuleCounter
except ImportError as error:
    raise ImportError("op counters need SpikingJelly 2.0 or newer") from error

from ._compat import StatefulNode


class NeuronOpCounter(ModuleCounter):
    """Multiply-accumulates and accumulates of our neurons' equations, whatever backend computes them.

    SpikingJelly's ``ACCounter``, ``MACCounter``, ``NeuronStateCounter``, ... watch tensor operations, and so count how
    a neuron happens to be computed (matrix products over 64 steps, one opaque kernel, ...), not what it is. Exclude
    our neurons there and add this counter. State traffic needs nothing special: ``NeuromorphicMemoryAccessCounter``
    knows every neuron.

    Example::

        ignore = [PMSNNode, TCLIFNode, RecurrentTCLIFNode, MultiCompartmentNode]
        mac, neurons = op_counter.MACCounter(extra_ignore_modules=ignore), NeuronOpCounter()
        with op_counter.DispatchCounterMode([mac]), op_counter.ModuleCounterMode([neurons], model=net):
            net(x)
        neurons.get_counts()["Global"]        # {'mac': ..., 'ac': ...}

    The numbers of one neuron and step are its ``step_operations``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rules = {("forward", StatefulNode): self._count}
        self._pending: dict[str, int] = {}

    def _count(self, module: StatefulNode, inputs: tuple[Any, ...], kwargs: dict[str, Any], spikes: Tensor) -> int:
        mac, ac, ac_per_spike = module.step_operations
        with _disable_current_modes():  # an active DispatchCounterMode would count this sum
            fired = int(spikes.sum(dtype=torch.float64))
        n = spikes.numel()
        self._pending = {"mac": int(mac * n), "ac": int(ac * n + ac_per_spike * fired)}
        return sum(self._pending.values())

    def record(self, scope: str, func: Any, value: int) -> None:
        for name, operations in self._pending.items():
            self.records[scope][name] += operations

    def finalize_record(self) -> None:
        self._pending = {}
