"""Learning curves with mean and deviation over seeds (TC-LIF paper, Fig. 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from .._checks import check_items, check_mapping, check_type, shown
from .style import legend_below, new_figure, series_style


class LearningCurve(NamedTuple):
    """Mean and standard deviation over the seeds (0 for a single one), each [epochs]."""

    mean: np.ndarray
    deviation: np.ndarray


def learning_curve(runs: Sequence[Sequence[float]] | np.ndarray) -> LearningCurve:
    """Mean and sample standard deviation of the same experiment with several seeds.

    Args:
        runs: one value per seed and epoch, [seeds, epochs].

    Raises:
        TypeError: ``runs`` are not series of numbers.
        ValueError: no run, runs of different length, or a value that is not finite.

    Example:
        >>> learning_curve([[10.0, 30.0], [20.0, 50.0]]).mean
        array([15., 40.])
    """
    check_items("runs", runs, (Sequence, np.ndarray), "a series of curves, each a series of numbers")
    lengths = {len(run) for run in runs}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"runs must be one or more curves of the same length, at least one epoch; got lengths {sorted(lengths)}"
        )
    try:
        values = np.asarray(runs)
    except ValueError:  # series inside of the curves
        values = np.asarray(None)
    if values.dtype.kind not in "fiu" or values.ndim != 2:
        raise TypeError(f"runs must be a series of curves, each a series of numbers, got {shown(runs)}")
    values = values.astype(float)
    if not np.isfinite(values).all():
        seed, epoch = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(f"runs must be finite, got {values[seed, epoch]} in run {seed}, epoch {epoch}")
    return LearningCurve(values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1]))


def plot_learning_curves(curves: Mapping[str, LearningCurve], ylabel: str = "test accuracy (%)") -> Figure:
    """One line per experiment, a band of one standard deviation around it.

    Raises:
        TypeError: ``curves`` is no mapping of LearningCurves, or ``ylabel`` no string.
        ValueError: there are none.

    Example:
        >>> figure = plot_learning_curves({"PMSN": learning_curve([[10.0, 30.0], [20.0, 50.0]])})
    """
    check_mapping("curves", curves, LearningCurve, "a mapping of names to LearningCurves")
    if not curves:
        raise ValueError("curves is empty: there is nothing to draw")
    check_type("ylabel", ylabel, str, "a string")
    figure, axes = new_figure(3.6)
    ax = axes[0, 0]
    for i, (name, (mean, deviation)) in enumerate(curves.items()):
        style, epoch = series_style(i), np.arange(1, len(mean) + 1)
        ax.plot(epoch, mean, label=name, marker="o" if len(mean) == 1 else None, **style)
        ax.fill_between(epoch, mean - deviation, mean + deviation, color=style["color"], alpha=0.2, linewidth=0)
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.xaxis.get_major_locator().set_params(integer=True)
    legend_below(figure, ax)
    return figure
