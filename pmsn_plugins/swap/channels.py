"""How many channels a neuron has, and on which axis: what is registered before it and what it sees must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

from .dry_run import Moving, Sighting, width_of

DEFAULT_AXIS = 1
"""Of one step [N, C, *]."""

ChannelAxis = int | str | Callable[[str], int | str | None] | None

_KEEP_CHANNELS = (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _DropoutNd,
    _MaxPoolNd,
    nn.Identity,
)


@dataclass(frozen=True)
class Channels:
    """The channels of a neuron; ``count`` is None where nobody can tell."""

    count: int | None
    axis: int = DEFAULT_AXIS
    ndim: int | None = None
    """Axes of a step, where a step has been seen."""

    def are_on(self, axis: int) -> bool:
        """Whether ``axis``, from the front or the back, is theirs."""
        return axis == self.axis or (self.ndim is not None and axis % self.ndim == self.axis % self.ndim)


class CannotTellError(ValueError):
    """The channels of one neuron cannot be told; the message is a part of a sentence that begins with its name."""


def wanted_axis(channel_axis: ChannelAxis, name: str) -> int | str | None:
    """What the user said of one neuron's axis: an axis of one step, 'auto', or None for the default."""
    axis = channel_axis(name) if callable(channel_axis) else channel_axis
    if axis is None or axis == "auto" or (isinstance(axis, int) and not isinstance(axis, bool)):
        return axis
    raise TypeError(f"channel_axis must be an integer, 'auto', None or a function of the name, got {axis!r} for {name}")


def seen_channels(sightings: list[Sighting], moving: Moving, wanted: int | str | None) -> Channels:
    """The channels of a neuron that a dry run has watched.

    Args:
        moving: axes of the steps that follow the size of the sample and so are no channels.
        wanted: see :func:`wanted_axis`.

    Raises:
        CannotTellError: there is no such axis, it moves, or it disagrees with the width of the layers before.
    """
    results = [_seen(sighting, moving, wanted) for sighting in sightings]
    counts, axes = ({getattr(result, name) for result in results} for name in ("count", "axis"))
    if len(counts) > 1 or len(axes) > 1:
        what = f"sees {sorted(counts)} channels" if len(counts) > 1 else f"has its channels on axes {sorted(axes)}"
        raise CannotTellError(
            f"is one shared neuron, but {what}: give each place a neuron of its own, or put in one that needs no "
            "channels (TC-LIF)"
        )
    return results[0]


def _seen(sighting: Sighting, moving: Moving, wanted: int | str | None) -> Channels:
    step, widths = sighting.step, {width for width in sighting.widths.values() if width is not None}
    all_known = bool(widths) and None not in sighting.widths.values()
    axis = wanted if isinstance(wanted, int) else DEFAULT_AXIS
    if not -len(step) <= axis < len(step):
        raise CannotTellError(
            f"sees {sighting.shape}, without a channel axis {axis + len(sighting.shape) - len(step)}: is the time or "
            "the batch axis missing?"
        )
    axis %= len(step)
    moved = moving.taken | moving.refused
    agreeing = sighting.axes - moved or sighting.flat_axes
    agreeing = agreeing or {a for a, size in enumerate(step) if size in widths and a not in moved}
    if wanted == "auto" and len(agreeing) == 1:
        (axis,) = agreeing
    said = isinstance(wanted, int)

    what = f"sees {step[axis]} on axis {axis} of its steps {step}"
    before = ", ".join(f"{name} ({width} wide)" for name, width in sighting.widths.items() if width is not None)
    if axis in agreeing and (len(agreeing) == 1 or said):
        return Channels(step[axis], axis, len(step))
    if axis in agreeing:
        problem = f"sees its {step[axis]} channels on any of the axes {sorted(agreeing)} of its steps {step}"
    elif agreeing:
        problem = f"{what}, but comes from {before}"
    elif axis in (moved if widths else moving.taken) and not said:
        problem = f"{what}, which follows the size of sample_input"
    elif said or _is_only_axis(step, axis, widths if all_known else set(), moved):
        return Channels(step[axis], axis, len(step))
    elif all_known:
        problem = f"{what}, but comes from {before}"
    else:
        problem = f"{what}, where other axes could be the channels as well"
    single = sighting.shape == step
    raise CannotTellError(problem + _advice(agreeing - {axis}, axis, len(step), said, single))


def _is_only_axis(step: tuple[int, ...], axis: int, widths: set[int], moved: set[int]) -> bool:
    """Whether no other axis can be meant, though no layer before has this width."""
    if axis == 0 or any(a not in (0, axis) and a not in moved and size > 1 for a, size in enumerate(step)):
        return False
    return not widths or any(step[axis] % width == 0 for width in widths)  # flattened: [C * H * W]


def _advice(agreeing: set[int], looked_at: int, ndim: int, said: bool, single: bool) -> str:
    if len(agreeing) == 1:
        (axis,) = agreeing
        sequence = single and axis == DEFAULT_AXIS + 1
        axis = -1 if axis == ndim - 1 and axis != DEFAULT_AXIS else axis
        how = f"say channel_axis={axis} for it" + ("" if said else " (or channel_axis='auto')")
        if sequence:
            how = (
                "if that is a whole sequence [T, N, C, *], give the net step_mode='m' before the swap "
                f"(functional.set_step_mode(net, 'm')); if it is one step [N, L, C], {how}"
            )
        return f": {how}"
    return (
        f": say which with channel_axis= (channel_axis={looked_at} if it is these), or their number with "
        "functools.partial(..., channels=...), or exclude= it, or put in a neuron that needs no channels (TC-LIF)"
    )


def registered_channels(net: nn.Module, found: dict[nn.Module, list[str]]) -> dict[nn.Module, set[int]]:
    """Channels of each neuron from the layer registered right before it; empty where that does not tell."""
    widths: dict[nn.Module, set[int]] = {module: set() for module in found}
    inside = {child for module in found for child in module.modules() if child is not module}
    width: int | None = None
    for _, module in net.named_modules(remove_duplicate=False):
        if module in inside:
            continue
        if module in found:
            widths[module] |= set() if width is None else {width}
            width = None  # two neurons in a row: only a run tells what the second one sees
        elif isinstance(module, _KEEP_CHANNELS) or type(module).__name__.startswith("Dropout"):
            continue
        elif not any(True for _ in module.children()):
            width = width_of(module)
    return widths
