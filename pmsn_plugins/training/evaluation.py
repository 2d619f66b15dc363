"""Accuracy, loss and firing rates of a network; whole sequences or streamed chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._checks import check_callable, check_choice, check_device, check_int_at_least, check_module, check_type, pairs
from ..layers import reset_states, spiking_layers
from .distributed import all_sum
from .objective import READOUTS, check_class_numbers, check_outputs, correct, loss_of, read_out


class Evaluation(NamedTuple):
    """Mean loss, accuracy in 0..1, number of samples, and spikes per neuron and time step for each neuron layer."""

    loss: float
    accuracy: float
    samples: int
    firing_rates: dict[str, float]


@torch.no_grad()
def evaluate(
    net: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    to_sequence: Callable[[Tensor], Tensor],
    *,
    readout: str = "mean",
    chunk: int | None = None,
    device: torch.device | str = "cpu",
) -> Evaluation:
    """Evaluate a network in evaluation mode; its states are reset between batches and at the end.

    Args:
        net: maps [T, N, *] to [T, N, classes].
        batches: pairs of samples [N, *] and class numbers [N].
        to_sequence: samples -> [T, N, *].
        readout: ``'mean'`` or ``'sum'`` over time.
        chunk: feed this many time steps at a time and keep the neurons' state in between; 1 is step by step. The result
            is that of the whole sequence. None feeds it whole.
        device: where ``net`` is.

    Raises:
        TypeError: an argument is of another type.
        ValueError: no samples, class numbers that the network does not have, or streaming was asked of a network that
            needs whole sequences.

    Example:
        >>> from pmsn_plugins.models import feedforward, neuron_factory
        >>> net = feedforward((3, 8, 2), neuron_factory("tclif"))
        >>> batches = [(torch.rand(8, 10, 3), torch.zeros(8, dtype=torch.long))]
        >>> 0.0 <= evaluate(net, batches, lambda x: x.transpose(0, 1)).accuracy <= 1.0
        True
    """
    check_module("net", net)
    check_callable("to_sequence", to_sequence, "a function of a batch of samples")
    check_choice("readout", readout, READOUTS)
    check_device("device", device)
    check_chunk(net, chunk)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    with _evaluating(net), firing_rates(net) as rates:
        for x, target in pairs("batches", batches):
            check_type("an input of batches", x, Tensor, "a torch.Tensor")
            x_seq = to_sequence(x.to(device))
            reset_states(net)
            outputs = net(x_seq) if chunk is None else torch.cat([net(part) for part in x_seq.split(chunk)])
            check_outputs(outputs)
            outputs = outputs.float()
            check_class_numbers(target, outputs.shape[-1])
            target = target.to(device)
            loss = loss_of(outputs, target, readout=readout)
            sums += torch.stack(
                [loss * len(target), correct(read_out(outputs, readout), target), sums.new_tensor(len(target))]
            )
    loss, hits, samples = all_sum(sums).tolist()
    if not samples:
        raise ValueError("there are no samples to evaluate")
    return Evaluation(loss / samples, hits / samples, int(samples), rates())


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    was_training = net.training
    net.eval()
    try:
        yield
    finally:
        reset_states(net)
        net.train(was_training)


@contextmanager
def firing_rates(net: nn.Module) -> Iterator[Callable[[], dict[str, float]]]:
    """Count spikes inside the block; the yielded function gives spikes per neuron and time step, layer by layer.

    Example:
        >>> from pmsn_plugins.models import feedforward, neuron_factory
        >>> net = feedforward((3, 8, 2), neuron_factory("tclif"))
        >>> with firing_rates(net) as rates:
        ...     output = net(torch.zeros(10, 8, 3))
        >>> len(rates())
        1
    """
    layers = spiking_layers(net)
    device = next((p.device for p in net.parameters()), None)
    counts = {name: torch.zeros(2, dtype=torch.float64, device=device) for name in layers}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor | tuple[Tensor, ...]) -> None:
            spikes = output[0] if isinstance(output, tuple) else output
            counts[name][0] += spikes.sum(dtype=torch.float64)
            counts[name][1] += spikes.numel()

        return hook

    def rates() -> dict[str, float]:
        totals = {name: all_sum(count).tolist() for name, count in counts.items()}
        return {name: spikes / neurons for name, (spikes, neurons) in totals.items() if neurons}

    handles = [module.register_forward_hook(record(name)) for name, module in layers.items()]
    try:
        yield rates
    finally:
        for handle in handles:
            handle.remove()


def check_chunk(net: nn.Module, chunk: int | None) -> None:
    """Raise ValueError unless ``net`` can be fed ``chunk`` time steps at a time (None: the whole sequence)."""
    if chunk is None:
        return
    check_int_at_least("chunk", chunk, 1)
    if any(type(module).__name__ == "TimeEmbedded" for module in net.modules()):
        raise ValueError(f"cannot stream: pe belongs to the steps of the whole sequence, got chunk={chunk}")
    for name, layer in spiking_layers(net).items():
        whole = type(layer).__name__ in ("PSN", "MaskedPSN", "SlidingPSN", "GatedLIFNode")
        if whole or getattr(layer, "context", "local") == "global":
            raise ValueError(
                f"cannot stream: {name} ({type(layer).__name__}) needs the whole sequence, got chunk={chunk}"
            )
