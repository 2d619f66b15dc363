"""One process or many: torchrun starts them, torch.distributed connects them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .._checks import check_type


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

    Raises:
        TypeError: ``device`` is no string.
        ValueError: there is no such device.
    """
    if device is not None:
        check_type("device", device, str, "the name of a device or None")
    gpus = torch.cuda.device_count()
    name = ("cuda" if gpus else "cpu") if device is None else device
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ..., got {device!r}")
    chosen = torch.device(name)
    if chosen.type == "cuda" and (chosen.index or 0) >= gpus:
        raise ValueError(f"device={device!r}: this machine has {gpus or 'no'} usable GPU{'s' * (gpus > 1)}")
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


def is_main() -> bool:
    """Whether this is the main process of its group, or alone."""
    return not dist.is_initialized() or dist.get_rank() == 0


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


def copy_from_main(tensors: Iterable[Tensor]) -> None:
    """Overwrite the tensors of all processes by those of the main one."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


@contextmanager
def main_first(process: Process) -> Iterator[None]:
    """The main process runs the block before the others do: one of them downloads, the others find the files."""
    if not process.is_main:
        barrier()
    try:
        yield
    finally:
        if process.is_main:
            barrier()
