"""How much faster than a baseline each layer is, over the sequence length (PMSN paper, Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from .._checks import check_choice, check_ints_at_least, check_items, check_positive, check_type
from .style import MARKERS, legend_below, new_figure, series_style

FIELDS = ("name", "T", "shape", "forward_s", "forward_backward_s")


def acceleration(
    records: Iterable[Mapping[str, Any]],
    baseline: str = "PMSN, serial reset (torch)",
    field: str = "forward_backward_s",
) -> dict[str, dict[int, float]]:
    """Time of the baseline over the time of each other layer, on the same input shape.

    Args:
        records: from ``python -m pmsn_plugins.bench --json``, one mapping per layer and shape, with ``name``, ``T``,
            ``shape``
            ([T, N, C, *]), ``forward_s`` and ``forward_backward_s`` (seconds).
        baseline: name of the layer that is 1.
        field: ``'forward_backward_s'`` or ``'forward_s'``.

    Returns:
        Name -> T -> how many times faster, T rising. Shapes that the baseline was not run on are left out; of several
        shapes of one length the largest counts.

    Raises:
        TypeError: ``records`` are no mappings, or one of their fields is of another type.
        ValueError: a field is missing, a time is not above 0, or no record of the baseline.

    Example:
        >>> times = {"PMSN, serial reset (torch)": 0.4, "PMSN (fused, CPU)": 0.1}
        >>> records = [
        ...     {"name": name, "T": 4, "shape": (4, 1, 2), "forward_s": s / 3, "forward_backward_s": s}
        ...     for name, s in times.items()
        ... ]
        >>> acceleration(records)["PMSN (fused, CPU)"]
        {4: 4.0}
    """
    records = list(records) if isinstance(records, Iterator) else records
    check_items("records", records, Mapping, "a series of mappings")
    for record in records:
        _check_record(record)
    check_choice("field", field, ("forward_backward_s", "forward_s"))
    times: dict[tuple[int, ...], dict[str, float]] = {}
    for record in records:
        times.setdefault(tuple(record["shape"]), {})[record["name"]] = record[field]
    names = list(dict.fromkeys(name for row in times.values() for name in row))
    check_type("baseline", baseline, str, "a string")
    if baseline not in names:
        raise ValueError(f"baseline must be one of {', '.join(map(repr, names)) or '(no records)'}, got {baseline!r}")
    result: dict[str, dict[int, float]] = {name: {} for name in names if name != baseline}
    by_size = sorted(times.items(), key=lambda item: math.prod(item[0]))
    for shape, row in sorted(by_size, key=lambda item: item[0][0]):
        for name in row.keys() & result.keys() if baseline in row else ():
            result[name][shape[0]] = row[baseline] / row[name]
    return {name: over_T for name, over_T in result.items() if over_T}


def _check_record(record: Mapping[str, Any]) -> None:
    missing = [name for name in FIELDS if name not in record]
    if missing:
        raise ValueError(f"a record lacks {', '.join(missing)}: {dict(record)}")
    check_type("name of a record", record["name"], str, "a string")
    check_type(f"shape of {record['name']!r}", record["shape"], (tuple, list), "a series of integers")
    check_ints_at_least(f"shape of {record['name']!r}", record["shape"], 1)
    if not record["shape"]:
        raise ValueError(f"shape of {record['name']!r} must be [T, N, C, *], got {record['shape']}")
    for field in ("forward_s", "forward_backward_s"):
        check_positive(f"{field} of {record['name']!r}, shape {record['shape']},", record[field])


def plot_acceleration(
    records: Iterable[Mapping[str, Any]],
    baseline: str = "PMSN, serial reset (torch)",
    field: str = "forward_backward_s",
) -> Figure:
    """Draw :func:`acceleration` on logarithmic axes.

    Example:
        >>> times = {"PMSN, serial reset (torch)": 0.4, "PMSN (fused, CPU)": 0.1}
        >>> records = [
        ...     {"name": name, "T": 4, "shape": (4, 1, 2), "forward_s": s / 3, "forward_backward_s": s}
        ...     for name, s in times.items()
        ... ]
        >>> figure = plot_acceleration(records)
    """
    figure, axes = new_figure(4.4)
    ax = axes[0, 0]
    for i, (name, over_T) in enumerate(acceleration(records, baseline, field).items()):
        ax.plot(
            list(over_T),
            list(over_T.values()),
            label=name,
            marker=MARKERS[(i + i // len(MARKERS)) % len(MARKERS)],
            markersize=5,
            **series_style(i),
        )
    ax.axhline(1.0, color="0.4", linewidth=1.0)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}x")
    ax.set_xlabel("sequence length T (time steps)")
    ax.set_ylabel(f"speed-up over\n{baseline}")
    legend_below(figure, ax, columns=2)
    return figure
