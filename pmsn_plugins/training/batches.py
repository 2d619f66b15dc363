"""Which samples a process sees in each optimiser step of an epoch.

torch's DistributedSampler fills up the processes' shares with repeated samples; here the processes together see exactly
the batches that one process would see, in the same order.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch


class Step(NamedTuple):
    """One optimiser step of one process.

    Attributes:
        parts: sample indices of each part that is sent through the network.
        counts: how many samples of each part count. A process without a share in a short last batch goes along with one
            sample that counts as none, because gradients are averaged over all processes (only batch normalisation
            sees that sample).
        batch: samples in the whole batch, over all processes.
    """

    parts: list[list[int]]
    counts: list[int]
    batch: int


def plan_epoch(
    samples: int,
    batch_size: int,
    *,
    epoch: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    drop_last: bool = False,
) -> list[Step]:
    """The steps of one epoch: a shuffle decided by (seed, epoch), cut into batches, each shared by all processes.

    ``drop_last`` leaves out the last batch if it is short.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(samples, generator=generator)
    order = order[: steps_in(samples, batch_size, drop_last) * batch_size]
    part_size = batch_size // (world_size * accumulate)
    steps = []
    for batch in order.split(batch_size):
        share = batch[rank::world_size]
        parts = [part.tolist() for part in share.split(part_size)] if len(share) else [batch[:1].tolist()]
        counts = [len(part) for part in parts] if len(share) else [0]
        steps.append(Step(parts, counts, len(batch)))
    return steps


def steps_in(samples: int, batch_size: int, drop_last: bool) -> int:
    """Number of optimiser steps in one epoch."""
    return samples // batch_size if drop_last else math.ceil(samples / batch_size)
