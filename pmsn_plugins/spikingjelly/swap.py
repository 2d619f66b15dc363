"""Exchange the neurons of an existing network for ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from ._compat import StatefulNode

Target = type[nn.Module] | tuple[type[nn.Module], ...] | None

_KEEPS_CHANNELS = (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _DropoutNd,
    _MaxPoolNd,
    layer.Dropout,
    nn.Identity,
)


def swap_neurons(
    net: nn.Module,
    factory: Callable[[int], nn.Module],
    sample_input: Tensor | tuple[Any, ...] | None = None,
    *,
    target: Target = None,
) -> dict[str, int]:
    """Replace the neurons of ``net``, in place, by ``factory(channels)``.

    A new neuron takes over the old one's step_mode, store_v_seq, training flag and the device of the net. A neuron that
    is used in several places stays one shared neuron. After any error the net is as it was.

    Args:
        net: the network; its other modules are left alone.
        factory: makes a new neuron for a number of channels, e.g. ``lambda C: PMSNNode(C, preset='static')``; it may
            ignore the number.
        sample_input: input (a tuple for several) for one dry run, which reads the channels that every neuron really
            sees (axis 1 in single-step, axis 2 in multi-step mode). It runs a copy of the net in eval mode and touches
            neither the net nor the random numbers. Without it, the channels are those of the BatchNorm, convolution or
            linear layer registered right before the neuron, which is right for the networks of SpikingJelly.
        target: class or classes of neurons to replace; by default every ``neuron.BaseNode`` that is not from this
            package.

    Returns:
        The channels of every replaced neuron by its name, e.g. ``{'sn1': 64, 'layer1.0.sn1': 64, ...}``.

    Raises:
        ValueError: no neuron in the net; the channels of a neuron cannot be told without a ``sample_input``; the dry
            run never reached a neuron; a shared neuron sees different numbers of channels; the factory made a neuron
            for another number of channels, or the same neuron twice.

    Example:
        ``swap_neurons(net, lambda C: PMSNNode(C, preset='static'))`` on a ``sew_resnet18``.
    """
    found = _find_neurons(net, target)
    widths = _registered_widths(net, found) if sample_input is None else _dry_run(net, found, sample_input)
    channels: dict[nn.Module, int] = {}
    for old, names in found.items():
        if len(widths[old]) > 1:
            raise ValueError(f"{' = '.join(names)} is one shared neuron, but sees {sorted(widths[old])} channels")
        (channels[old],) = widths[old]
    device = next((p.device for p in net.parameters()), None)
    made: dict[nn.Module, nn.Module] = {}
    for old, names in found.items():
        new = factory(channels[old])
        if not isinstance(new, base.StepModule):
            raise ValueError(f"factory must return a SpikingJelly neuron, got {type(new).__name__} for {names[0]}")
        if new in made.values():
            raise ValueError(f"factory returned the same neuron twice (for {names[0]}); make a new one in every call")
        if getattr(new, "channels", None) not in (None, channels[old]):
            raise ValueError(f"factory made a neuron for {new.channels} channels, but {names[0]} sees {channels[old]}")
        new.step_mode = old.step_mode
        if hasattr(old, "store_v_seq"):
            new.store_v_seq = old.store_v_seq
        made[old] = new.to(device).train(old.training)
    for old, names in found.items():
        for name in names:
            parent, _, attribute = name.rpartition(".")
            setattr(net.get_submodule(parent), attribute, made[old])
    if hasattr(functional, "invalidate_reset_cache"):  # 2.0 remembers which modules reset_net has to visit
        functional.invalidate_reset_cache(net)
    return {name: channels[old] for old, names in found.items() for name in names}


def _find_neurons(net: nn.Module, target: Target) -> dict[nn.Module, list[str]]:
    """Every neuron to replace, with all the names it goes by."""
    found: dict[nn.Module, list[str]] = {}
    for name, module in net.named_modules(remove_duplicate=False):
        if isinstance(module, target or neuron.BaseNode) and (target or not isinstance(module, StatefulNode)):
            found.setdefault(module, []).append(name)
    if not found:
        wanted = "neuron.BaseNode" if target is None else target
        raise ValueError(f"net has no neuron to swap (looked for {wanted}, except those of pmsn_plugins)")
    if net in found:
        raise ValueError("net is itself a neuron and cannot be replaced in place; build the new neuron directly")
    return found


def _registered_widths(net: nn.Module, found: dict[nn.Module, list[str]]) -> dict[nn.Module, set[int]]:
    """Channels of each neuron from the layer registered right before it."""
    widths: dict[nn.Module, set[int]] = {}
    unknown: list[str] = []
    width: int | None = None
    for name, module in net.named_modules(remove_duplicate=False):
        if module in found:
            if width is None:
                unknown.append(name)
            else:
                widths.setdefault(module, set()).add(width)
            width = None  # two neurons in a row: only a run tells what the second one sees
        elif isinstance(module, _KEEPS_CHANNELS):
            continue
        elif not any(True for _ in module.children()):
            width = _out_channels(module)
    if unknown:
        raise ValueError(
            f"the channels of {', '.join(unknown)} cannot be told from the layer registered before; pass sample_input, "
            "an input of the net, for a dry run"
        )
    return widths


def _out_channels(module: nn.Module) -> int | None:
    if isinstance(module, _NormBase):
        return module.num_features
    if isinstance(module, _ConvNd):
        return module.out_channels
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.Linear):
        return module.out_features
    return None


def _dry_run(net: nn.Module, found: dict[nn.Module, list[str]], sample_input: Any) -> dict[nn.Module, set[int]]:
    """Channels that each neuron sees when a copy of the net runs once."""
    # states may hang on an autograd graph, which cannot be copied; the copy is reset anyway
    stateful = [m for m in net.modules() if isinstance(m, base.MemoryModule)]
    states = [s for m in stateful for s in (*m.memories(), getattr(m, "v_seq", None)) if isinstance(s, Tensor)]
    twin = copy.deepcopy(net, {id(s): s.detach() for s in states}).eval()
    functional.reset_net(twin)
    seen: dict[nn.Module, set[int]] = {old: set() for old in found}

    def record(old: nn.Module, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            axis, shape = 2 if old.step_mode == "m" else 1, tuple(inputs[0].shape)
            if len(shape) <= axis:
                raise ValueError(f"{name} with step_mode={old.step_mode!r} sees {shape}, without a channel axis {axis}")
            seen[old].add(shape[axis])

        return hook

    for old, names in found.items():
        twin.get_submodule(names[0]).register_forward_pre_hook(record(old, names[0]))
    devices = {p.device for p in net.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(devices):
        twin(*(sample_input if isinstance(sample_input, tuple) else (sample_input,)))
    missed = [name for old, names in found.items() for name in names if not seen[old]]
    if missed:
        raise ValueError(
            f"the dry run never reached {', '.join(missed)}; use a sample_input that does, or a target without them"
        )
    return seen
