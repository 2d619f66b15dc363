"""Exchanging the neurons of an existing network for others, in one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .channels import ChannelAxis
from .report import Replacement, SwapReport
from .swap import Swap
from .targets import Selection

__all__ = ["Replacement", "SwapReport", "swap_neurons"]


def swap_neurons(
    net: nn.Module,
    neuron: Callable[..., nn.Module],
    sample_input: Tensor | tuple[Any, ...] | None = None,
    *,
    target: Selection = None,
    exclude: Selection = None,
    channel_axis: ChannelAxis = None,
    batch_first: bool = False,
) -> SwapReport:
    """Replace the neurons of ``net``, of SpikingJelly or snnTorch, in place.

    A new neuron goes wherever the old one was held: under its registered names, in lists, tuples, dicts, other
    attributes, closures, bound methods. A neuron that is used in several places stays one shared neuron. Training flag,
    device and dtype are those of the net. After any error the net is as it was. Make the optimiser after the swap.

    Args:
        net: the network; its other modules are left alone.
        neuron: a class (``PMSNNode``, ``TCLIFNode``, ``snntorch.PMSN``, ...) or a ``functools.partial`` of one. What
            the old neuron and the new one both have is taken over unless the partial gives it: ``v_threshold``,
            ``surrogate_function``, ``detach_reset``, ``step_mode``, ``store_v_seq``; snnTorch's ``threshold``,
            ``spike_grad``, ``init_hidden``, ``output``. Or a function of nothing, of ``channels`` or of
            ``(channels, old)`` that makes a neuron; of the above it is given ``step_mode`` and ``store_v_seq``.
        sample_input: input of the net (a tuple for several). With it, copies of the net are run: to see the channels of
            every neuron, whatever the order of registration, and where time is in the input of modules of no framework;
            to leave alone, with a warning, neurons that are never called, and without ``target`` those that return no
            spikes (readouts); and to check that the swapped net calls every new neuron and no old one, and gets from
            each what it got before. Neither the net nor the random numbers are touched. Without it, the channels are
            those of the norm, convolution or linear layer registered right before the neuron, which is right for the
            networks of SpikingJelly.
        target: what to replace: classes (of any module, ``nn.ReLU`` too), names with wildcards (``"layer1.*"``), a
            predicate ``(name, module)``, or a list of these. By default all neurons of both frameworks but ours and
            SpikingJelly's readouts (``NonSpiking...``). Where nothing tells whether a module of no framework takes
            sequences, say ``step_mode`` in a partial.
        exclude: what to leave alone, said in the same ways.
        channel_axis: axis of the channels in one step [N, C, *], which is 1 unless it is said otherwise: -1 for tokens
            [N, L, C], 0 for [C, N, *]; ``'auto'`` for the axis on which the width of the layers before is found (needs
            ``sample_input``); or a function of the neuron's name that returns one of these.
        batch_first: the neurons to be replaced take [N, T, *] rather than [T, N, *]; the new ones are wrapped to do so.

    Returns:
        The channels of every replaced neuron by its name, ``{'sn1': 64, 'layer1.0.sn1': 64, ...}`` (None where nobody
        needs to know). It prints as a table of what was replaced and what was taken over; see
        :meth:`.SwapReport.to_markdown`.

    Raises:
        TypeError: an argument is of another kind; the class needs an option that nobody gave.
        ValueError: there is nothing to replace; the channels of a neuron cannot be told, or what it sees and the layers
            before it do not agree; a new neuron does not fit, or returns something of another form; an old one is still
            held somewhere.

    Example:
        >>> from functools import partial
        >>> from spikingjelly.activation_based import neuron as sj
        >>> from pmsn_plugins.spikingjelly import PMSNNode
        >>> net = nn.Sequential(nn.Linear(2, 3), sj.LIFNode(v_threshold=0.5, step_mode="m"))
        >>> report = swap_neurons(net, partial(PMSNNode, preset="static"))
        >>> dict(report), net[1].v_threshold
        ({'1': 3}, 0.5)
    """
    cpu_random = torch.get_rng_state()
    try:
        return Swap(net, neuron, sample_input, target, exclude, channel_axis, batch_first).run()
    except BaseException:
        torch.set_rng_state(cpu_random)  # the new neurons drew initial values
        raise
