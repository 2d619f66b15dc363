"""What one neuron costs, in operations."""

from __future__ import annotations

from typing import NamedTuple


class NeuronCost(NamedTuple):
    """Operations of one neuron: per time step, and on top of that per spike it fires."""

    mac: float
    ac: float
    ac_per_spike: float
