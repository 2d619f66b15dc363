"""What a time step costs, and how much faster than a baseline each layer is, over the length (PMSN paper, Fig. 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from matplotlib.figure import Figure

from .._checks import check_choice, check_int_at_least, check_ints_at_least, check_items, check_positive, check_type
from ..bench.measure import LEAST_BYTES
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
    records = _checked(records, field)
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


def _checked(records: Iterable[Mapping[str, Any]], field: str) -> Iterable[Mapping[str, Any]]:
    records = list(records) if isinstance(records, Iterator) else records
    check_items("records", records, Mapping, "a series of mappings")
    for record in records:
        _check_record(record)
    check_choice("field", field, tuple(LEAST_BYTES))
    return records


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


def step_times(
    records: Iterable[Mapping[str, Any]], channels: int = 128, field: str = "forward_backward_s"
) -> dict[str, dict[int, float]]:
    """Seconds per element and time step of layers of one width, over the length of the sequence.

    Args:
        records: as in :func:`acceleration`.
        channels: the width: only shapes [T, N, channels] count, so that nothing but T (and the batch) changes.
        field: ``'forward_backward_s'`` or ``'forward_s'``.

    Returns:
        Name -> T -> seconds, T rising; of several batch sizes at one length the largest counts.

    Raises:
        TypeError: ``records`` are no mappings, or one of their fields is of another type.
        ValueError: a field is missing, a time is not above 0, or no record of that width.

    Example:
        >>> record = {"name": "PMSN", "T": 4, "shape": (4, 1, 2), "forward_s": 1e-6, "forward_backward_s": 4e-6}
        >>> step_times([record], channels=2)
        {'PMSN': {4: 5e-07}}
    """
    records = _checked(records, field)
    check_int_at_least("channels", channels, 1)
    chosen = [record for record in records if len(record["shape"]) == 3 and record["shape"][2] == channels]
    if not chosen:
        widths = sorted({record["shape"][2] for record in records if len(record["shape"]) == 3})
        raise ValueError(
            f"channels must be the width of a record of shape [T, N, C], {', '.join(map(str, widths)) or 'none here'}, "
            f"got {channels}"
        )
    result: dict[str, dict[int, float]] = {record["name"]: {} for record in chosen}
    for record in sorted(chosen, key=lambda record: tuple(record["shape"])):
        result[record["name"]][record["shape"][0]] = record[field] / math.prod(record["shape"])
    return result


def plot_acceleration(
    records: Iterable[Mapping[str, Any]],
    copy_bandwidth: float | None = None,
    channels: int = 128,
    field: str = "forward_backward_s",
) -> Figure:
    """Draw :func:`step_times` on logarithmic axes: where a line falls, longer sequences are cheaper by the step.

    Args:
        copy_bandwidth: bytes per second (read and written) of a copy, as in the benchmark's JSON. It is the floor:
            reading and writing each input, spike and gradient once takes that long.

    Example:
        >>> records = [
        ...     {"name": "PMSN", "T": T, "shape": (T, 1, 128), "forward_s": T / 3e6, "forward_backward_s": T / 1e6}
        ...     for T in (128, 1024)
        ... ]
        >>> figure = plot_acceleration(records, copy_bandwidth=3e10)
    """
    times = step_times(records, channels, field)
    if copy_bandwidth is not None:
        check_positive("copy_bandwidth", copy_bandwidth)
    figure, axes = new_figure(4.8)
    ax = axes[0, 0]
    for i, (name, over_T) in enumerate(times.items()):
        ax.plot(
            list(over_T),
            [1e9 * seconds for seconds in over_T.values()],
            label=name,
            marker=MARKERS[(i + i // len(MARKERS)) % len(MARKERS)],
            markersize=5,
            **series_style(i),
        )
    if copy_bandwidth is not None:
        floor = 1e9 * LEAST_BYTES[field] / copy_bandwidth
        ax.axhline(
            floor,
            color="0.4",
            linewidth=1.0,
            label=f"the data once, at copy bandwidth ({copy_bandwidth / 1e9:.0f} GB/s)",
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sorted({T for over_T in times.values() for T in over_T}))
    ax.minorticks_off()
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xlabel("sequence length T (time steps)")
    passes = "forward and backward" if field == "forward_backward_s" else "forward"
    ax.set_ylabel(f"{passes}, {channels} channels\n(ns per element and time step)")
    legend_below(figure, ax, columns=2)
    return figure
