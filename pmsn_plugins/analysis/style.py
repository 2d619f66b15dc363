"""How every figure here looks: 700 pixels wide, colour-blind safe, no pyplot state."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, without its yellow, which is too faint for lines on white."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":")

COLOR_MAP = "cividis"


def new_figure(height: float = 3.6, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure 7 inches wide (100 dpi) and its axes [rows, columns]; options go to ``Figure.subplots``."""
    figure = Figure(figsize=(7.0, height), dpi=100, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def series_style(i: int) -> dict[str, Any]:
    """Colour and line style of the i-th line: neighbours differ in both, and no two of 28 lines are the same."""
    # the second shift makes up for 7 colours being one short of two rounds of lines
    line = LINES[(i + 2 * (i // len(COLORS))) % len(LINES)]
    return {"color": COLORS[i % len(COLORS)], "linestyle": line, "linewidth": 1.6}


def legend_below(figure: Figure, ax: Axes, columns: int = 4) -> None:
    """One legend under all axes, where it can cover nothing."""
    handles, labels = ax.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), frameon=False)
