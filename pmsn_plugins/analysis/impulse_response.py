"""What each compartment of a neuron does after one unit impulse (PMSN paper, Fig. 4)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .._checks import check_int_at_least, check_named
from ..parameters import PMSNParametersMixin
from .nets import OurLayer, our_layers
from .style import legend_below, new_figure, series_style


class ImpulseResponse(NamedTuple):
    """Response to an input of 1 at t = 0 and 0 afterwards, without spikes; C channels, T steps.

    Attributes:
        compartments: [C, n, T].
        output: [C, T], what decides about the spike: the current into a PMSN's output compartment, a TC-LIF's soma.
        labels: name of each of the n compartments.
    """

    compartments: Tensor
    output: Tensor
    labels: tuple[str, ...]


def impulse_response(net: nn.Module, T: int = 200) -> dict[str, ImpulseResponse]:
    """Impulse response of each PMSN and TC-LIF layer, from its present parameters.

    PMSN: a hidden compartment is one mode of the chain, weighted as the output compartment reads it,
    ``Re(K_j A_j^t)``, j = 1..k; their sum, plus D at t = 0, is the current ``output``. (The compartments before the
    diagonalisation of Eq. 7 are not parameters: a trained layer no longer determines them.)

    TC-LIF: with ``cos w = 1 + b1 b2 / 2``, the dendrite is ``(sin(w (t+1)) - sin(w t)) / sin w`` and the soma
    ``b2 sin(w (t+1)) / sin w``: an oscillation that never decays, for only spikes take something away.

    Args:
        net: a net (or one layer) with our neurons.
        T: number of time steps.

    Returns:
        By layer name; C = 1 for a TC-LIF with one pair of couplings. All float64, on the CPU.

    Raises:
        TypeError: ``net`` is no module, or T no integer.
        ValueError: T < 1, the net has none of our layers, or is compiled.

    Example:
        >>> from pmsn_plugins.spikingjelly import PMSNNode
        >>> list(impulse_response(nn.Sequential(PMSNNode(8)), T=50))
        ['0']
    """
    check_int_at_least("T", T, 1)
    return {name: _response(layer, T) for name, layer in our_layers(net).items()}


@torch.no_grad()
def _response(layer: OurLayer, T: int) -> ImpulseResponse:
    t = torch.arange(T, dtype=torch.float64)
    if isinstance(layer, PMSNParametersMixin):
        E_real, E_imag, K_real, K_imag, D = (c.detach().cpu().double() for c in layer.coefficients())
        modes = (torch.complex(K_real, K_imag)[..., None] * torch.complex(1.0 + E_real, E_imag)[..., None] ** t).real
        output = modes.sum(1)
        output[:, 0] += D
        return ImpulseResponse(modes, output, tuple(f"hidden {j + 1}" for j in range(modes.shape[1])))
    c1, c2 = (c.detach().cpu().double().reshape(-1, 1) for c in (layer.c1, layer.c2))
    b1, b2 = -torch.sigmoid(c1), torch.sigmoid(c2)
    w = torch.arccos(1.0 + b1 * b2 / 2)
    rising = torch.sin(w * (t + 1)) / torch.sin(w)
    dendrite, soma = rising - torch.sin(w * t) / torch.sin(w), b2 * rising
    return ImpulseResponse(torch.stack([dendrite, soma], 1), soma, ("dendrite", "soma"))


def plot_impulse_response(response: ImpulseResponse, channel: int = 0) -> Figure:
    """Draw one channel: every compartment, and their sum where that is what the output compartment receives.

    D, a single high value at t = 0, would flatten everything else: it stands in the legend instead.

    Raises:
        TypeError: ``response`` is no ImpulseResponse, or ``channel`` no integer.
        ValueError: no such channel.

    Example:
        >>> from pmsn_plugins.spikingjelly import PMSNNode
        >>> figure = plot_impulse_response(impulse_response(nn.Sequential(PMSNNode(8)), T=50)["0"])
    """
    check_named("response", response, ImpulseResponse)
    check_int_at_least("channel", channel, 0)
    channels, n, T = response.compartments.shape
    if channel >= channels:
        raise ValueError(f"channel must be in 0..{channels - 1}, got {channel}")
    compartments, output = response.compartments[channel], response.output[channel]
    figure, axes = new_figure(3.8)
    ax = axes[0, 0]
    ax.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
    for i, (label, line) in enumerate(zip(response.labels, compartments, strict=True)):
        ax.plot(line, label=label, **series_style(i))
    if not torch.equal(output, compartments[-1]):
        direct = float(output[0] - compartments[:, 0].sum())
        ax.plot(
            compartments.sum(0), color="0.35", linewidth=2.6, label=f"sum (and D = {direct:.2f} at t = 0)", zorder=1
        )
    ax.set_xlim(0, max(T - 1, 1))
    ax.set_xlabel("time after the impulse (time steps)")
    ax.set_ylabel("response (in units of the impulse)")
    legend_below(figure, ax, columns=3 if n <= 8 else 5)
    return figure
