"""One process or many: torchrun starts them, torch.distributed connects them."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor


class Process(NamedTuple):
    """This process among all of them, and its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start(device: str | None = None) -> Process:
    """Join the process group if torchrun started this process. nccl on GPUs, gloo on CPUs.

    Args:
        device: ``'cpu'``, ``'cuda'``, ``'cuda:1'`` ...; None takes a GPU if there is one.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: this machine has no usable GPU")
    if "RANK" not in os.environ:
        return Process(0, 1, chosen)
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    return Process(dist.get_rank(), dist.get_world_size(), chosen)


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def all_sum(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes."""
    if dist.is_initialized():
        tensor = tensor.clone()
        dist.all_reduce(tensor)
    return tensor


def all_gather(value: Any) -> list[Any]:
    """The Python objects of all processes, by rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()
