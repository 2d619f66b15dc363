"""What a swap did."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Replacement:
    """One neuron that was replaced."""

    names: tuple[str, ...]
    """All names it goes by in the net."""
    old: str
    new: str
    """Names of the classes."""
    channels: int | None
    """Channels that it sees; None where nobody needs to know."""
    channel_axis: int = 1
    """Axis of the channels in one step [N, C, *]."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What was taken over from the old neuron."""


class SwapReport(dict[str, int | None]):
    """The channels of every replaced neuron by its name; prints as a table.

    Attributes:
        replacements: one :class:`Replacement` per neuron, in the order of the net.
        unused: names of neurons that were left as they are, for the net never calls them or they return no spikes.
    """

    def __init__(self, replacements: Iterable[Replacement], unused: Sequence[str] = ()) -> None:
        self.replacements = tuple(replacements)
        self.unused = tuple(unused)
        super().__init__((name, r.channels) for r in self.replacements for name in r.names)

    def rows(self) -> list[tuple[str, ...]]:
        """The table: a heading, and one row per neuron."""
        rows: list[tuple[str, ...]] = [("name", "old", "new", "channels", "taken over")]
        for r in self.replacements:
            channels = "any" if r.channels is None else str(r.channels)
            if r.channel_axis != 1:
                channels += f", axis {r.channel_axis}"
            settings = ", ".join(f"{name}={_short(value)}" for name, value in r.settings.items())
            rows.append((" = ".join(r.names), r.old, r.new, channels, settings))
        return rows

    def to_markdown(self) -> str:
        """The table for a lab notebook."""
        heading, *rows = ([cell.replace("|", r"\|") for cell in row] for row in self.rows())
        lines = [heading, ["---"] * len(heading), *rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + self._left("\n\n")

    def __str__(self) -> str:
        rows = self.rows()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join(line.rstrip() for line in lines) + self._left("\n")

    __repr__ = __str__
    _repr_markdown_ = to_markdown

    def _left(self, before: str) -> str:
        return f"{before}left as they are: {', '.join(self.unused)}" if self.unused else ""


def _short(value: object) -> str:
    """As a notebook has room for it: ``ATan(alpha=2.0)`` rather than a module's lines, a function's name."""
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return name.partition(".<locals>")[0]
    return " ".join(repr(value).split())
