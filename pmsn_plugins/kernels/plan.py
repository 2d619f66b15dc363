"""How a layer is cut into work: the numbers that the kernels are launched with. Pure Python, no device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple


class Layout(NamedTuple):
    """How a sequence of T steps [N, C, S] is cut into work items; see ``csrc/args.h``.

    Attributes:
        T: time steps.
        M: elements of one step, N * C * S.
        C, S: channels, and neighbouring elements of one channel.
        P: positions in a row, a multiple of C * S.
        strip: positions of one item.
        groups: groups of rows.
        segment: time steps of one item.
        interval: time steps from one checkpoint of the state to the next.
        cuttable: CPU: whether time is cut when there are threads enough.
    """

    T: int
    M: int
    C: int
    S: int
    P: int
    strip: int
    groups: int
    segment: int
    interval: int
    cuttable: bool

    @property
    def strips(self) -> int:
        return -(-self.P // self.strip)

    @property
    def rows(self) -> int:
        return -(-self.M // self.P)

    @property
    def segments(self) -> int:
        return -(-self.T // self.segment)

    @property
    def items(self) -> int:
        return self.strips * self.groups * self.segments

    @property
    def slots(self) -> int:
        """Channels that a strip can touch."""
        return (self.strip - 1) // self.S + 2


def checkpoint_interval(state_size: int, state_bytes: int, input_bytes: int) -> int:
    """Time steps between two checkpoints of ``state_size`` numbers, such that they take 15 % of the input's memory."""
    steps = state_size * state_bytes / (0.15 * input_bytes)
    return max(32, -(-int(steps) // 16) * 16)


def checkpoint_count(T: int, interval: int) -> int:
    """Checkpoints of a sequence of T steps: one at the start of every interval but the first."""
    return (T - 1) // interval


@lru_cache(1024)
def cpu_layout(
    T: int, N: int, C: int, S: int, interval: int, threads: int, cut_time: bool, narrowest: int = 16
) -> Layout:
    """Cut a sequence [T, N, C, S] for the CPU, into strips of ``narrowest`` positions where neurons are few.

    A strip of time steps takes 16 to 32 KiB of cache. There are about 64 items, but none shorter than 256 steps, for
    every item has to fetch its parameters: more of them, where a row is of several samples. Time can be cut where
    neurons are few, the sequence is long, and the neuron allows it (``cut_time``). That is two to three times the work,
    so it is done when most threads would have none.
    """
    elements = N * C * S
    depth = min(T, interval)
    S, row = _rows(N, C, S, fill=16, most_whole=N * T // 256)
    rows = -(-elements // row)
    strip = min(256, max(128, 4096 // depth // 16 * 16))
    if rows * -(-row // strip) < 8:
        strip = narrowest
    strip = min(strip, -(-row // 16) * 16)
    groups = max(1, min(rows, 64 // -(-row // strip), rows * T // 256))
    items = groups * -(-row // strip)
    segment = T
    cuttable = cut_time and items <= 16 and 8 * interval < T
    if cuttable and threads >= 4 * items:
        segments = min(2 * threads // items, T // (4 * interval))
        segment = -(-T // segments // interval) * interval
    return Layout(T, elements, C, S, row, strip, groups, segment, depth, cuttable)


GPU_BLOCK = 128
"""Threads of a block, each with one position of a strip."""

GPU_REDUCERS = 256
"""Threads of a block that adds up the sums of one channel."""


@lru_cache(1024)
def gpu_layout(T: int, N: int, C: int, S: int, interval: int, multiprocessors: int, cut_time: bool) -> Layout:
    """Cut a sequence [T, N, C, S] for a GPU, one thread for a position of a strip in a group of rows.

    A group has several rows only when there are threads enough, since every thread has to fetch its parameters and to
    leave its sums. With few neurons and a long sequence time is cut into segments, where the neuron can (``cut_time``).

    PMSN then goes through x several times: the hidden compartments and the membrane at the segments' borders are found
    first. A chained scan would read x once, every segment waiting for the one before. But a wait is two round trips to
    the L2 cache, first for the hidden compartments, then for the membrane: with hundreds of segments that takes several
    times as long as the carry kernels, which load ahead. With a dozen it takes as long as they do, and spares launches
    at most: the arithmetic of every pass stays, and it takes longer than reading x.
    """
    elements = N * C * S
    S, row = _rows(N, C, S, fill=GPU_BLOCK)
    rows = -(-elements // row)
    wanted = multiprocessors * 2048
    groups = min(rows, 65535, max(1, -(-wanted // row)))
    segment = T
    if cut_time and 4 * interval < T and 4 * groups * row < wanted:
        segments = min(-(-T // interval), 65535, wanted // (groups * row))
        segment = -(-T // segments // interval) * interval
    return Layout(T, elements, C, S, row, GPU_BLOCK, groups, segment, interval, False)


def _rows(N: int, C: int, S: int, fill: int, most_whole: int = 0) -> tuple[int, int]:
    """S and the length of a row: as many samples as make a multiple of ``fill`` positions, or nearly so.

    Up to ``most_whole`` samples are taken for a multiple without a rest. Then every lane lies in one line of memory,
    and none is filled in part: at widths such as 100, 250 and 300 PMSN was up to 1.35 times as fast, at 10 and 20 up
    to 1.6 times, and TC-LIF with couplings for every channel 1.1 to 3 times.
    """
    if C == 1:  # one set of parameters: rows may be cut anywhere
        return (row := min(256, N * S)), row
    sample = C * S
    whole = fill // math.gcd(sample, fill)
    if whole <= min(N, most_whole):
        return S, whole * sample

    def waste(samples: int) -> float:
        return -(-samples * sample // fill) * fill / (samples * sample)

    samples = range(1, min(N, fill) + 1)
    return S, sample * next((r for r in samples if waste(r) <= 1.1), samples[-1])


def gpu_takes_response(T: int, k: int, is_double: bool, direction: str) -> bool:
    """Whether a neuron of k linear compartments, over T steps from rest, is less work by their impulse response:
    (T + 1) / 2 products per step in place of 6 k. All steps must fit into registers. On an H100 forward took as long
    either way at T = 20 to 28, backward at T = 14 and 19 with k = 1 and 2, beyond 32 with more; the recurrence was of
    complex numbers then, and its filters, which take a seventh fewer instructions, were not measured."""
    longest = 16 if is_double or (direction == "backward" and k <= 2) else 24 if direction == "forward" else 32
    return k > 0 and longest >= T


class Launch(NamedTuple):
    """One CUDA kernel: its name, blocks in three directions, threads of a block."""

    kernel: str
    grid: tuple[int, int, int]
    threads: int


def gpu_launches(neuron: str, direction: str, layout: Layout, passes: Sequence[str], k: int) -> list[Launch]:
    """The CUDA kernels behind a call, in order.

    Args:
        passes: what has to be carried from segment to segment where time is cut.
        k: hidden compartments of an element; each is carried by a thread of its own.
    """
    items = (layout.strips, layout.groups, layout.segments)
    launches = []
    if layout.segments > 1:
        for name in passes:
            carriers = (-(-layout.M // GPU_BLOCK), k if name in ("hidden", "adjoint") else 1, 1)
            launches.append(Launch(f"{neuron}_{name}_local", items, GPU_BLOCK))
            launches.append(Launch(f"{neuron}_{name}_carry", carriers, GPU_BLOCK))
    launches.append(Launch(f"{neuron}_{direction}", items, GPU_BLOCK))
    if direction == "backward":
        launches.append(Launch(f"{neuron}_reduce", (layout.C, 1, 1), GPU_REDUCERS))
    return launches
