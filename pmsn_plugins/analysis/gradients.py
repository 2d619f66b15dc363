"""How much of the loss's gradient arrives at each earlier time step (TC-LIF paper, Fig. 4)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_callable, check_floating, check_int_at_least, check_mapping, check_type, shown
from .nets import evaluating, named_spiking_layers, only_output
from .style import legend_below, new_figure, series_style


def last_step_loss(output: Tensor | tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Cross-entropy of the last time step alone; ``output`` is [T, N, classes] (or a tuple that begins with it).

    Only such a loss shows how the gradient travels: with a mean over time every step has a short way of its own.

    Example:
        >>> last_step_loss(torch.zeros(10, 8, 2), torch.zeros(8, dtype=torch.long))  # ln 2
        tensor(0.6931)
    """
    output = only_output(output)
    check_floating("output", output)
    check_type("target", target, Tensor, "a torch.Tensor of class numbers [N]")
    if output.ndim != 3:
        raise ValueError(
            f"last_step_loss needs the output of every time step, [T, N, classes], got shape {tuple(output.shape)}; "
            "pass a loss that fits the net"
        )
    if target.dtype != torch.int64 or target.shape != output.shape[1:2]:
        raise ValueError(f"target must be class numbers [N] (torch.int64), got {shown(target)}")
    return F.cross_entropy(output[-1], target)


def gradient_over_time(
    net: nn.Module, x: Any, target: Tensor, loss: Callable[[Any, Tensor], Tensor] = last_step_loss
) -> dict[str, Tensor]:
    """Norm of dL/dI[t] for each neuron layer of any net.

    I[t] is the input current of the layer (all samples and neurons) at step t. In an integrating neuron it adds to the
    membrane, so this is also the gradient of the membrane at step t. The net runs in evaluation mode from fresh states;
    its parameters, gradients and mode stay as they are.

    Args:
        net: of either framework, or both; multi-step, or stepped inside its own forward.
        x: what ``net`` takes.
        target: goes to ``loss``.
        loss: ``loss(net(x), target)`` is a scalar.

    Returns:
        By layer name, [T].

    Raises:
        TypeError: ``net`` is no module, or ``loss`` no function that returns a tensor.
        ValueError: no neuron layer, a compiled net, a loss that is not a finite scalar, or no gradient anywhere.

    Warns:
        UserWarning: a layer does not fire at all.

    Example:
        >>> from pmsn_plugins.models import feedforward, neuron_factory
        >>> net = feedforward((3, 8, 2), neuron_factory("pmsn"))
        >>> norms = gradient_over_time(net, torch.rand(10, 4, 3), torch.zeros(4, dtype=torch.long))
        >>> [norm.shape for norm in norms.values()]
        [torch.Size([10])]
    """
    layers = named_spiking_layers(net)
    check_callable("loss", loss, "a function of (net(x), target)")
    currents: dict[str, list[Tensor]] = {name: [] for name in layers}
    fired = dict.fromkeys(layers, False)

    def tap(name: str) -> Callable[..., tuple[Any, ...]]:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            # a copy of its own, so that a shortcut around the neuron adds nothing
            current = inputs[0].clone() if inputs[0].requires_grad else inputs[0].detach().requires_grad_()
            currents[name].append(current)
            return (current, *inputs[1:])

        return hook

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            fired[name] = fired[name] or bool(only_output(output).detach().any())

        return hook

    handles = [layer.register_forward_pre_hook(tap(name)) for name, layer in layers.items()]
    handles += [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        with evaluating(net), torch.enable_grad():
            for layer in layers.values():
                layer.train()  # SpikingJelly 0.0.0.0.14's own neurons have no surrogate gradient in evaluation mode
            value = loss(net(x), target)
    finally:
        for handle in handles:
            handle.remove()
    check_type("what loss returns", value, Tensor, "a torch.Tensor")
    if value.ndim != 0 or not bool(value.isfinite()):
        raise ValueError(f"loss must give one finite number, got {value.detach()}")
    flat = [current for calls in currents.values() for current in calls]
    gradients = iter(torch.autograd.grad(value, flat, allow_unused=True) if value.requires_grad else [None] * len(flat))
    norms = {
        name: _norms(layers[name], [(current, next(gradients)) for current in calls])
        for name, calls in currents.items()
        if calls
    }
    if not any(bool(norm.any()) for norm in norms.values()):
        raise ValueError(
            "no gradient reaches any neuron layer: "
            + ("no neuron fires, " if not any(fired.values()) else "")
            + "no membrane comes near its threshold (where the surrogate is not 0), or the loss does "
            "not depend on the spikes"
        )
    silent = [name for name, spikes in fired.items() if not spikes]
    if silent:
        warnings.warn(f"{', '.join(silent)}: no neuron of the layer fires", stacklevel=2)
    return norms


def _norms(layer: nn.Module, calls: list[tuple[Tensor, Tensor | None]]) -> Tensor:
    """[T], from calls that took a sequence each, or one step each."""
    step_mode = getattr(layer, "step_mode", None) or ("m" if len(calls) == 1 else "s")
    gradients = [torch.zeros_like(current) if gradient is None else gradient for current, gradient in calls]
    joined = torch.cat(gradients) if step_mode == "m" else torch.stack(gradients)
    return torch.linalg.vector_norm(joined.flatten(1).double(), dim=1).cpu()


def plot_gradient_over_time(nets: Mapping[str, Mapping[str, Tensor]]) -> Figure:
    """One panel per layer, one line per net, on a logarithmic axis.

    Args:
        nets: label of the net (or neuron) -> what :func:`gradient_over_time` gave for it. Layers are matched by
            position.

    Raises:
        TypeError: ``nets`` is no mapping of what :func:`gradient_over_time` returns.
        ValueError: it is empty.

    Example:
        >>> figure = plot_gradient_over_time({"PMSN": {"1": torch.rand(10)}})
    """
    check_mapping("nets", nets, Mapping, "a mapping of names to what gradient_over_time() returns")
    for label, norms in nets.items():
        check_mapping(f"nets[{label!r}]", norms, Tensor, "what gradient_over_time() returns")
    if not any(nets.values()):
        raise ValueError("nets is empty: there is nothing to draw")
    depth = max(len(norms) for norms in nets.values())
    figure, axes = new_figure(3.6, columns=depth, sharey=True)
    for i, (label, norms) in enumerate(nets.items()):
        for ax, norm in zip(axes[0], norms.values(), strict=False):
            ax.plot(torch.where(norm > 0, norm, torch.nan), label=label, **series_style(i))
    for number, ax in enumerate(axes[0], start=1):
        ax.set_yscale("log")
        ax.set_xlabel("time step t")
        ax.set_title(f"neuron layer {number}", fontsize=10)
    axes[0, 0].set_ylabel("gradient norm |dL/dI[t]|\n(loss per unit current)")
    legend_below(figure, axes[0, 0])
    return figure


def compare_gradients(T: int = 100, width: int = 64, batch: int = 32, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """The same random network with LIF, ALIF-like, TC-LIF and PMSN neurons: gradients of the last step's loss.

    20 - width - width - 10, untrained, its weights three times PyTorch's so that all layers fire, fed with random
    spikes (rate 0.2). ALIF-like is a LIF whose spikes charge a slow second compartment (time constant 20 steps) that
    inhibits it. LIF and ALIF-like have tau = 2 steps, PMSN the preset 'sequential'. Needs SpikingJelly.

    Returns:
        Neuron -> layer -> norms [T], for :func:`plot_gradient_over_time`.

    Raises:
        TypeError: an argument is not an integer.
        ValueError: a size below 1, or a seed below 0.

    Example:
        >>> gradients = compare_gradients(T=50)
        >>> "PMSN" in gradients
        True
    """
    for name, size in (("T", T), ("width", width), ("batch", batch)):
        check_int_at_least(name, size, 1)
    check_int_at_least("seed", seed, 0)
    from ..models.sequence import feedforward
    from ..spikingjelly import MultiCompartmentNode, PMSNNode, TCLIFNode

    neurons: dict[str, Callable[[int], nn.Module]] = {
        "LIF": lambda channels: MultiCompartmentNode(1, leak=0.5, gain=1.0),
        "ALIF-like": lambda channels: MultiCompartmentNode(
            2, leak=(0.95, 0.5), up=-0.2, down=0.0, gain=(0.0, 1.0), reset=-1.0
        ),
        "TC-LIF": lambda channels: TCLIFNode(),
        "PMSN": partial(PMSNNode, preset="sequential"),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = (torch.rand(T, batch, 20) < 0.2).float()
        target = torch.randint(10, (batch,))
        norms = {}
        for name, neuron in neurons.items():
            torch.manual_seed(seed)
            net = feedforward((20, width, width, 10), neuron)
            with torch.no_grad():
                for layer in net.children():
                    if isinstance(layer, nn.Linear):
                        layer.weight.mul_(3.0)
            norms[name] = gradient_over_time(net, x, target)
    return norms
