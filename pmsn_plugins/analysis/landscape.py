"""The loss around a trained net, along two random directions (TC-LIF paper, Fig. 5)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import functional_call

from .._checks import check_callable, check_int_at_least, check_named, check_positive, check_type, pairs, shown
from .nets import check_net, evaluating, no_samples, repeatable
from .style import COLOR_MAP, COLORS


class Landscape(NamedTuple):
    """Mean loss [P, P] at ``weights + offset[i] * first + offset[j] * second``; offset [P]."""

    offset: np.ndarray
    loss: np.ndarray


def filter_normalised_direction(net: nn.Module, generator: torch.Generator | None = None) -> dict[str, Tensor]:
    """A random direction whose every filter is as long as the net's (Li et al., NeurIPS 2018).

    A filter is one row ``parameter[i]`` of a parameter with two or more axes: the weights of one output, or one
    channel's modes of a PMSN. Parameters with fewer axes (biases, normalisation, log_dt, D, c1, c2) stay put.

    Raises:
        TypeError: ``net`` is no module, or ``generator`` no torch.Generator.
        ValueError: the net is compiled.

    Example:
        >>> list(filter_normalised_direction(nn.Linear(2, 3)))
        ['weight', 'bias']
    """
    check_net(net)
    if generator is not None:
        check_type("generator", generator, torch.Generator, "a torch.Generator or None")
    direction = {}
    for name, parameter in net.named_parameters():
        if parameter.ndim < 2:
            direction[name] = torch.zeros_like(parameter)
            continue
        rows = parameter.detach().flatten(1)
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        scale = rows.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
        direction[name] = (noise * scale).view_as(parameter)
    return direction


@torch.no_grad()
def loss_landscape(
    net: nn.Module,
    batches: Iterable[tuple[Any, Tensor]],
    loss: Callable[[Any, Tensor], Tensor],
    *,
    span: float = 1.0,
    points: int = 21,
    seed: int = 0,
) -> Landscape:
    """Loss over a square of the plane spanned by two filter-normalised random directions, the net in its centre.

    The net runs in evaluation mode; its weights are not touched.

    Args:
        net: any net, trained.
        batches: pairs (what ``net`` takes, target), gone through once per point: a list or a DataLoader, unshuffled.
        loss: ``loss(net(x), target)`` is the mean loss of a batch.
        span: the offsets are -span..span, in units of the filters' length.
        points: number of offsets P; odd, so that the net itself is among them.
        seed: of the directions.

    Raises:
        TypeError: ``batches`` can be read only once, ``loss`` does not return one number, or an argument is of another
            type.
        ValueError: ``batches`` is empty, the net is compiled or has no parameter with two axes, or points is even.

    Warns:
        UserWarning: most points are lower than the centre, as around a net that is not trained.

    Example:
        >>> batches = [(torch.rand(8, 2), torch.zeros(8, dtype=torch.long))]
        >>> landscape = loss_landscape(nn.Linear(2, 3), batches, nn.functional.cross_entropy, points=3)
    """
    check_net(net)
    check_positive("span", span)
    check_int_at_least("points", points, 3)
    if points % 2 == 0:
        raise ValueError(f"points must be odd, so that the net itself is one of them, got {points}")
    check_callable("loss", loss, "a function of (net(x), target)")
    check_int_at_least("seed", seed, 0)
    repeatable(batches)
    generator = torch.Generator().manual_seed(seed)
    first, second = (filter_normalised_direction(net, generator) for _ in range(2))
    if not any(bool(d.any()) for d in first.values()):
        raise ValueError(f"{type(net).__name__} has no parameter with two or more axes to move")
    from tqdm import tqdm

    offset = np.linspace(-span, span, points)
    offset[points // 2] = 0.0  # exactly
    values = np.empty((points, points))
    weights = {name: p.detach() for name, p in net.named_parameters()}
    for i, j in tqdm(list(np.ndindex(points, points)), desc="loss landscape", disable=None):
        moved = {name: w + offset[i] * first[name] + offset[j] * second[name] for name, w in weights.items()}
        values[i, j] = _mean_loss(net, moved, batches, loss)
    centre = values[points // 2, points // 2]
    lower = float((values < centre).mean())
    if lower > 0.25:
        warnings.warn(
            f"{lower:.0%} of the points have a lower loss than the net itself ({centre:.4g}): is it trained?",
            stacklevel=2,
        )
    return Landscape(offset, values)


def _mean_loss(net: nn.Module, parameters: dict[str, Tensor], batches: Iterable, loss: Callable) -> float:
    total, samples = 0.0, 0
    for x, target in pairs("batches", batches):
        with evaluating(net):
            value = loss(functional_call(net, parameters, (x,)), target)
        if not (isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()):
            raise TypeError(f"loss must return the mean loss as a tensor of one number, got {shown(value)}")
        total += value.item() * len(target)
        samples += len(target)
    if not samples:
        raise no_samples()
    return total / samples


def plot_landscape(landscape: Landscape) -> Figure:
    """The same landscape as a surface and as contour lines; the net itself is marked. Infinite losses are left out.

    Raises:
        TypeError: ``landscape`` is no Landscape.
        ValueError: none of its losses is finite.

    Example:
        >>> batches = [(torch.rand(8, 2), torch.zeros(8, dtype=torch.long))]
        >>> landscape = loss_landscape(nn.Linear(2, 3), batches, nn.functional.cross_entropy, points=3)
        >>> figure = plot_landscape(landscape)
    """
    check_named("landscape", landscape, Landscape)
    offset, loss = landscape.offset, np.where(np.isfinite(landscape.loss), landscape.loss, np.nan)
    if np.isnan(loss).all():
        raise ValueError("no point of the landscape has a finite loss")
    figure = Figure(figsize=(7.0, 3.4), dpi=100, layout="constrained")
    surface: Any = figure.add_subplot(1, 2, 1, projection="3d")
    flat: Any = figure.add_subplot(1, 2, 2)
    x, y = np.meshgrid(offset, offset, indexing="ij")
    surface.plot_surface(x, y, loss, cmap=COLOR_MAP, rstride=1, cstride=1, linewidth=0.2, edgecolor=(1, 1, 1, 0.3))
    surface.set_xlabel("direction 1", labelpad=6)
    surface.set_ylabel("direction 2", labelpad=6)
    surface.set_title("mean loss (nats)", fontsize=10)
    for axis in (surface.xaxis, surface.yaxis, surface.zaxis):
        axis.set_major_locator(_few_ticks())
    surface.tick_params(labelsize=8, pad=0)
    surface.set_box_aspect(None, zoom=0.8)
    colours = flat.contourf(x, y, loss, 20, cmap=COLOR_MAP)
    flat.contour(x, y, loss, colours.levels[::4], colors="white", linewidths=0.6)
    flat.plot(0.0, 0.0, marker="*", markersize=12, color=COLORS[1], markeredgecolor="white")
    flat.set_xlabel("direction 1 (filter lengths)")
    flat.set_ylabel("direction 2 (filter lengths)")
    flat.set_aspect("equal")
    figure.colorbar(colours, ax=flat, label="mean loss (nats)", ticks=_few_ticks(), shrink=0.9)
    return figure


def _few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)
