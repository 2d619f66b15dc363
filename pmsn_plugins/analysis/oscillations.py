"""How fast the compartments of a net oscillate and fade: distributions per layer (PMSN paper, Fig. 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor, nn

from .._checks import check_mapping
from ..parameters import PMSNParametersMixin
from .nets import OurLayer, our_layers, warn_if_untrained
from .style import new_figure, series_style


class Oscillations(NamedTuple):
    """Oscillation of the modes of one layer; C channels, k modes.

    Attributes:
        frequency: [C, k], cycles per time step; the sign is the sense of rotation.
        damping: [C, k], the amplitude falls as ``exp(-damping t)``, t in time steps; its inverse is the time constant.
    """

    frequency: Tensor
    damping: Tensor


def oscillations(net: nn.Module) -> dict[str, Oscillations]:
    """Frequency and damping of each PMSN and TC-LIF layer, by name, from the present parameters; float64, on the CPU.

    PMSN: ``dt freq / 2 pi`` and ``dt exp(log_decay)``. TC-LIF between spikes, one mode: ``arccos(1 + b1 b2 / 2) /
    2 pi`` and no damping.

    Warns:
        UserWarning: the parameters are those of an untrained net.

    Raises:
        ValueError: the net has none of our layers, or is compiled.

    Example:
        >>> from torch import nn
        >>> from pmsn_plugins.spikingjelly import PMSNNode
        >>> list(oscillations(nn.Sequential(PMSNNode(8))))
        ['0']
    """
    layers = our_layers(net)
    warn_if_untrained(layers)
    return {name: _oscillations(layer) for name, layer in layers.items()}


@torch.no_grad()
def _oscillations(layer: OurLayer) -> Oscillations:
    if isinstance(layer, PMSNParametersMixin):
        log_dt, log_decay, freq = (p.detach().cpu().double() for p in (layer.log_dt, layer.log_decay, layer.freq))
        dt = log_dt.exp()[:, None]
        return Oscillations(dt * freq / (2 * math.pi), dt * log_decay.exp())
    c1, c2 = (c.detach().cpu().double().reshape(-1, 1) for c in (layer.c1, layer.c2))
    frequency = torch.arccos(1.0 - torch.sigmoid(c1) * torch.sigmoid(c2) / 2) / (2 * math.pi)
    return Oscillations(frequency, torch.zeros_like(frequency))


def plot_oscillations(layers: Mapping[str, Oscillations]) -> Figure:
    """Histograms of ``|frequency|`` and of the time constant on logarithmic axes, one line per layer.

    Shares are of all modes of a layer; modes that do not oscillate, or do not fade, are in no bin.

    Raises:
        TypeError: ``layers`` is not what :func:`oscillations` returns.
        ValueError: it is empty.

    Example:
        >>> from torch import nn
        >>> from pmsn_plugins.spikingjelly import PMSNNode
        >>> figure = plot_oscillations(oscillations(nn.Sequential(PMSNNode(8))))
    """
    check_mapping("layers", layers, Oscillations, "what oscillations() returns")
    if not layers:
        raise ValueError("layers is empty: there is nothing to draw")
    figure, axes = new_figure(3.8, columns=2)
    quantities = (
        {name: layer.frequency.abs() for name, layer in layers.items()},
        {name: 1.0 / layer.damping for name, layer in layers.items()},
    )
    xlabels = ("oscillation frequency\n(cycles per time step)", "damping time constant\n(time steps)")
    for ax, values, xlabel in zip(axes[0], quantities, xlabels, strict=True):
        shown = {name: v[(v > 0) & v.isfinite()].numpy() for name, v in values.items()}
        every = np.concatenate(list(shown.values()))
        ax.set_xlabel(xlabel)
        if not every.size:
            ax.text(0.5, 0.5, "none", ha="center", va="center", transform=ax.transAxes)
            ax.set_xticks([])
            ax.set_yticks([])
            continue
        bins = np.geomspace(every.min() / 1.05, every.max() * 1.05, 31)
        for i, (name, v) in enumerate(shown.items()):
            weights = np.full(v.size, 100.0 / values[name].numel())
            ax.hist(v, bins, weights=weights, histtype="step", label=name, **series_style(i))
        ax.set_xscale("log")
    axes[0, 0].set_ylabel("share of the modes (%)")
    handles = [Line2D([], [], label=name, **series_style(i)) for i, name in enumerate(layers)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
    return figure
