"""Which layers of a net an analysis looks at, and the errors for nets and data it cannot use."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import reset_states, spiking_layers
from ..parameters import PMSNParametersMixin, TCLIFParametersMixin

OurLayer = PMSNParametersMixin | TCLIFParametersMixin


def check_net(net: nn.Module) -> None:
    """Raise unless ``net`` is a module that torch.compile has not wrapped."""
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    for name, module in net.named_modules():
        if hasattr(module, "_orig_mod") or module._compiled_call_impl is not None:
            where = f"its layer {name!r}" if name else "net"
            raise ValueError(
                f"{where} is compiled by torch.compile, which may skip the hooks an analysis needs: pass the net as it "
                "was before, e.g. net._orig_mod"
            )


def named_spiking_layers(net: nn.Module) -> dict[str, nn.Module]:
    """The neuron layers of any net of either framework, by name, in order.

    Raises:
        ValueError: there are none, or the net is compiled.
    """
    check_net(net)
    layers = spiking_layers(net)
    if not layers:
        raise ValueError(
            f"{type(net).__name__} has no neuron layer of SpikingJelly, snnTorch or pmsn_plugins: "
            "there are no spikes to look at"
        )
    return {name or type(net).__name__: layer for name, layer in layers.items()}


def our_layers(net: nn.Module) -> dict[str, OurLayer]:
    """The PMSN and TC-LIF layers of a net, by name, in order.

    Raises:
        ValueError: there are none (the message says what there is instead), or the net is compiled.
    """
    check_net(net)
    layers = {name or type(net).__name__: m for name, m in net.named_modules() if isinstance(m, OurLayer)}
    if not layers:
        others = sorted({type(m).__name__ for m in spiking_layers(net).values()})
        raise ValueError(
            f"{type(net).__name__} has no PMSN or TC-LIF layer (its neuron layers: "
            f"{', '.join(others) or 'none'}); swap them "
            "in first, e.g. with pmsn_plugins.swap_neurons"
        )
    return layers


def warn_if_untrained(layers: dict[str, OurLayer]) -> None:
    """Warn if neuron parameters are what they were at initialisation, where all channels (or all layers) are alike."""
    untrained = []
    tclif: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if isinstance(layer, TCLIFParametersMixin):
            tclif[name] = torch.stack([layer.c1.detach(), layer.c2.detach()]).reshape(2, -1)
        elif layer.channels > 1 and _constant(layer.log_decay) and _constant(layer.freq):
            untrained.append(name)
    if tclif and sum(c.shape[1] for c in tclif.values()) > 1 and _constant(torch.cat(list(tclif.values()), 1).T):
        untrained += tclif
    if untrained:
        warnings.warn(
            f"the neuron parameters of {', '.join(untrained)} are all alike, as before training: "
            "this is what the initial values give",
            stacklevel=3,
        )


def repeatable(batches: Iterable[tuple[Any, Tensor]]) -> Iterable[tuple[Any, Tensor]]:
    """``batches`` itself, if it can be gone through more than once.

    Raises:
        TypeError: it is an iterator, which would be empty the second time.
    """
    if isinstance(batches, Iterator):
        raise TypeError(
            f"batches is gone through several times, but this {type(batches).__name__} can be read "
            "once: pass a list or a DataLoader"
        )
    return batches


def no_samples() -> ValueError:
    """The error for an empty loader."""
    return ValueError("batches is empty: there must be at least one pair (input, target) with at least one sample")


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode and fresh states inside; the training flags of before, and no state left, afterwards."""
    training = {module: module.training for module in net.modules()}
    net.eval()
    reset_states(net)
    try:
        yield
    finally:
        reset_states(net)
        for module, flag in training.items():
            module.training = flag


def only_output(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The spikes (or logits) of a layer that may also return states, which come after them."""
    return output[0] if isinstance(output, tuple) else output


def _constant(parameter: Tensor) -> bool:
    return bool((parameter == parameter[0]).all())
