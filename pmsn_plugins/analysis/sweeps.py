"""Series of short trainings on scikit-learn's digits, pixel by pixel (T = 64): the papers' ablations, in minutes.

- number of compartments (PMSN paper, Table V);
- reset and clamping of the output compartment (PMSN paper, Section VII-F);
- signs and sizes of TC-LIF's couplings (TC-LIF paper, Fig. 2 and Table 7).

With a ``folder``, every finished training is kept there and a series that was stopped continues where it was.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from .._checks import (
    check_choice,
    check_finite,
    check_int_at_least,
    check_ints_at_least,
    check_items,
    check_path,
    shown,
)
from ..functional import RESET_MODES
from .curves import learning_curve
from .jacobian import tclif_infinity_norm
from .style import COLOR_MAP, COLORS, new_figure


class Run(NamedTuple):
    """One training: the value under test, the seed, and the test accuracy in percent."""

    value: int | str | tuple[float, float]
    seed: int
    accuracy: float


def compartment_sweep(
    n_compartments: Sequence[int] = (2, 3, 4, 5, 9, 17),
    seeds: Sequence[int] = (0,),
    *,
    epochs: int = 20,
    width: int = 32,
    folder: Path | None = None,
) -> list[Run]:
    """Test accuracy over the number of compartments of the PMSN (including the one that fires).

    The network is the paper's residual one with two blocks; of each training the epoch that is best on a validation
    part is tested.

    Args:
        n_compartments: what to try, each at least 2.
        seeds: one training each.
        epochs, width: of each training.
        folder: keeps what is finished; None keeps nothing.

    Raises:
        TypeError: an argument is of another type.
        ValueError: an empty series, or a number outside its range; what a ``folder`` keeps is damaged.
        FolderInUseError: another process is at work on one of the trainings in ``folder``.
    """
    check_ints_at_least("n_compartments", n_compartments, 2)
    options = [(n, {"n_compartments": n}) for n in n_compartments]
    return _series("compartments", options, seeds, _pmsn_network, epochs, width, folder)


def reset_ablation(
    reset_modes: Sequence[str] = RESET_MODES,
    seeds: Sequence[int] = (0,),
    *,
    epochs: int = 20,
    width: int = 32,
    folder: Path | None = None,
) -> list[Run]:
    """Test accuracy for each ``reset_mode`` of the PMSN; otherwise as :func:`compartment_sweep`.

    ``'modulo'`` clamps the current at 0 and resets modulo the threshold (the PMSN). The others take the signed current:
    ``'cumulative'`` fires on its sum and ``'memoryless'`` on itself, both without a reset (the authors' two), and
    ``'serial'``, which cannot run in parallel, subtracts the threshold once per spike.
    """
    check_items("reset_modes", reset_modes, object, "a series of reset modes")
    for mode in reset_modes:
        check_choice("reset_modes", mode, RESET_MODES)
    options = [(mode, {"reset_mode": mode}) for mode in reset_modes]
    return _series("reset", options, seeds, _pmsn_network, epochs, width, folder)


def quadrant_search(
    sizes: Sequence[float] = (0.25, 0.75),
    seeds: Sequence[int] = (0,),
    *,
    epochs: int = 10,
    width: int = 32,
    folder: Path | None = None,
) -> list[Run]:
    """Test accuracy over initial TC-LIF couplings in all four quadrants, b1 and b2 from ``-sizes`` and ``sizes``.

    The couplings are learned, and free to change their sign: these neurons are two-compartment
    :class:`pmsn_plugins.spikingjelly.MultiCompartmentNode` whose leaks and gains stay 1 and (1, 0). The network is
    1 - width - width - 10; otherwise as :func:`compartment_sweep`.
    """
    check_items("sizes", sizes, object, "a series of numbers")
    for size in sizes:
        check_finite("sizes", size)
        if not 0.0 < size <= 1.0:
            raise ValueError(f"sizes must be above 0 and at most 1, got {size}")
    axis = sorted({sign * size for size in sizes for sign in (-1.0, 1.0)})
    options = [((b1, b2), {"beta": (b1, b2)}) for b1 in axis for b2 in axis]
    return _series("quadrants", options, seeds, _signed_tclif_network, epochs, width, folder)


def _pmsn_network(width: int, options: dict) -> nn.Module:
    from ..models import neuron_factory, residual

    return residual(1, width, 2, 10, neuron_factory("pmsn", **options))


def _signed_tclif_network(width: int, options: dict) -> nn.Module:
    from ..models import feedforward
    from ..spikingjelly import MultiCompartmentNode

    b1, b2 = options["beta"]

    def neuron(channels: int) -> nn.Module:
        node = MultiCompartmentNode(2, leak=1.0, up=b2, down=b1, gain=(1.0, 0.0), reset=0.5, step_mode="m")
        node.leak.requires_grad_(False)
        node.gain.requires_grad_(False)
        return node

    return feedforward((1, width, width, 10), neuron)


def _series(
    name: str,
    options: Sequence[tuple[int | str | tuple[float, float], dict]],
    seeds: Sequence[int],
    build: Callable[[int, dict], nn.Module],
    epochs: int,
    width: int,
    folder: Path | None,
) -> list[Run]:
    from tqdm import tqdm

    check_int_at_least("epochs", epochs, 1)
    check_int_at_least("width", width, 1)
    check_ints_at_least("seeds", seeds, 0)
    if folder is not None:
        check_path("folder", folder)
    if not options or not seeds:
        raise ValueError(f"{name}: there must be at least one value and one seed, got {len(options)} and {len(seeds)}")
    runs = []
    with tempfile.TemporaryDirectory() as scratch:
        bar = tqdm([(value, option, seed) for value, option in options for seed in seeds], desc=name, disable=None)
        for value, option, seed in bar:
            label = "_".join(map(str, value)) if isinstance(value, tuple) else value
            bar.set_postfix_str(f"{label}, seed {seed}")
            place = (
                Path(scratch if folder is None else folder) / f"{name}-{label}-seed{seed}-epochs{epochs}-width{width}"
            )
            runs.append(Run(value, seed, _test_accuracy(place, build, option, seed, epochs, width)))
    return runs


def _test_accuracy(
    folder: Path, build: Callable[[int, dict], nn.Module], options: dict, seed: int, epochs: int, width: int
) -> float:
    """Train in ``folder`` (or finish what was begun there) and return the test accuracy, percent."""
    from ..training import hold_folder

    with hold_folder(folder):
        return _held_accuracy(folder, build, options, seed, epochs, width)


def _held_accuracy(
    folder: Path, build: Callable[[int, dict], nn.Module], options: dict, seed: int, epochs: int, width: int
) -> float:
    from ..training import PRESETS, Trainer, open_source, snapshot
    from ..training.distributed import Process
    from ..training.loop import LAST

    result = folder / "result.json"
    if result.exists():
        return _kept_accuracy(result)
    settings = replace(
        PRESETS["digits"], epochs=epochs, seed=seed, network_options={"width": width}, neuron_options=options
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = build(width, options)
        trainer = Trainer(net, open_source(settings), settings, folder, Process(0, 1, torch.device("cpu")), quiet=True)
        if (folder / LAST).exists():
            trainer.restore(snapshot.load(folder / LAST))
        trainer.fit()
        trainer.load_best()
        accuracy = 100.0 * trainer.test().accuracy
    snapshot.write_whole(result, lambda file: file.write(json.dumps({"accuracy": accuracy}).encode()))
    return accuracy


def _kept_accuracy(result: Path) -> float:
    try:
        accuracy = json.loads(result.read_bytes())["accuracy"]
        check_finite("accuracy", accuracy)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{result} is damaged ({error}): remove it to train again") from error
    return accuracy


def _by_value(runs: Iterable[Run]) -> dict[int | str | tuple[float, float], np.ndarray]:
    check_items("runs", runs, Run, "a series of Runs")
    groups: dict[int | str | tuple[float, float], list[float]] = {}
    for value, _, accuracy in runs:
        check_finite("accuracy in runs", accuracy)
        groups.setdefault(value, []).append(accuracy)
    if not groups:
        raise ValueError("runs is empty: there is nothing to draw")
    return {value: np.array(accuracies) for value, accuracies in groups.items()}


def plot_compartment_sweep(runs: Sequence[Run]) -> Figure:
    """Mean test accuracy over n, with one standard deviation where there are several seeds.

    Raises:
        TypeError: ``runs`` are no Runs, or not those of :func:`compartment_sweep`.
        ValueError: there are none.

    Example:
        >>> figure = plot_compartment_sweep([Run(2, seed=0, accuracy=95.0)])
    """
    groups = _by_value(runs)
    check_ints_at_least("value in runs", groups, 2)
    figure, axes = new_figure(3.4)
    ax = axes[0, 0]
    mean, deviation = zip(*(learning_curve(group[:, None]) for group in groups.values()), strict=True)
    ax.errorbar(list(groups), np.concatenate(mean), np.concatenate(deviation), marker="o", capsize=4, color=COLORS[0])
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(groups), labels=[str(n) for n in groups])
    ax.minorticks_off()
    ax.set_xlabel("compartments per neuron n")
    ax.set_ylabel("test accuracy on digits (%)")
    return figure


_RESET_LABELS = {
    "modulo": "modulo: clamped current,\nparallel reset (PMSN)",
    "cumulative": "cumulative: sum of the\nsigned current, no reset",
    "memoryless": "memoryless: signed current\nalone, no reset",
    "serial": "serial: signed current,\nsoft reset",
}


def plot_reset_ablation(runs: Sequence[Run]) -> Figure:
    """Mean test accuracy for each reset mode; crosses are the single seeds.

    Raises:
        TypeError: ``runs`` are no Runs.
        ValueError: there are none, or they are not those of :func:`reset_ablation`.

    Example:
        >>> figure = plot_reset_ablation([Run("modulo", seed=0, accuracy=95.0)])
    """
    groups = _by_value(runs)
    for mode in groups:
        check_choice("value in runs", mode, RESET_MODES)
    figure, axes = new_figure(0.9 + 0.75 * len(groups))
    ax = axes[0, 0]
    for row, accuracies in enumerate(groups.values()):
        ax.barh(row, accuracies.mean(), height=0.6, color=COLORS[row % len(COLORS)], alpha=0.85)
        ax.plot(accuracies, np.full(len(accuracies), row), linestyle="", marker="x", color="black")
        ax.annotate(
            f"{accuracies.mean():.1f}", (accuracies.max(), row), xytext=(8, 0), textcoords="offset points", va="center"
        )
    ax.set_yticks(range(len(groups)), labels=[_RESET_LABELS[str(mode)] for mode in groups])
    ax.invert_yaxis()
    ax.set_xlim(0.0, 108.0)
    ax.set_xlabel("test accuracy on digits (%)")
    return figure


def plot_quadrant_search(runs: Sequence[Run]) -> Figure:
    """Mean test accuracy over the (b1, b2) grid; the line is the unit contour of the paper's norm (Eq. 15).

    Raises:
        TypeError: ``runs`` are no Runs, or not those of :func:`quadrant_search`.
        ValueError: there are none.

    Example:
        >>> figure = plot_quadrant_search([Run((-0.25, 0.75), seed=0, accuracy=95.0)])
    """
    groups: dict[Any, np.ndarray] = _by_value(runs)
    for value in groups:
        if not (isinstance(value, tuple) and len(value) == 2):
            raise TypeError(f"value in runs must be two couplings (b1, b2), got {shown(value)}")
        for coupling in value:
            check_finite("value in runs", coupling)
    b1, b2 = (sorted({value[i] for value in groups}) for i in (0, 1))
    accuracy = np.full((len(b2), len(b1)), np.nan)
    for (x, y), accuracies in groups.items():
        accuracy[b2.index(y), b1.index(x)] = accuracies.mean()
    figure, axes = new_figure(4.4)
    ax = axes[0, 0]
    colours = ax.pcolormesh(_edges(b1), _edges(b2), accuracy, cmap=COLOR_MAP)
    for (row, column), value in np.ndenumerate(accuracy):
        if np.isfinite(value):
            colour = "black" if colours.norm(value) > 0.55 else "white"
            ax.text(b1[column], b2[row], f"{value:.0f}", ha="center", va="center", color=colour, fontsize=10)
    fine = np.linspace(-1.0, 1.0, 201)
    norm = tclif_infinity_norm(fine[None, :], fine[:, None], "printed")
    ax.contour(fine, fine, norm, [1.0], colors=COLORS[4], linewidths=2.5)
    ax.plot([], [], color=COLORS[4], linewidth=2.5, label="norm 1 (Eq. 15)")
    figure.legend(loc="outside upper center", frameon=False)
    ax.set_xticks(b1)
    ax.set_yticks(b2)
    ax.set_aspect("equal")
    ax.set_xlabel("initial b1, soma to dendrite")
    ax.set_ylabel("initial b2, dendrite to soma")
    figure.colorbar(colours, ax=ax, label="test accuracy on digits (%)")
    return figure


def _edges(centres: Sequence[float]) -> np.ndarray:
    """Borders of the cells around sorted grid values, from -1 to 1."""
    middle = (np.array(centres[:-1]) + np.array(centres[1:])) / 2
    return np.concatenate([[-1.0], middle, [1.0]])
