"""Time and memory of one layer, and the copy bandwidth of the machine they are held against."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import nn


class Measurement(NamedTuple):
    """One layer on one input.

    Attributes:
        name: the contender.
        T: time steps.
        shape: input shape [T, N, C, *].
        forward_s, forward_backward_s: fastest of several runs, seconds.
        kept_bytes: what autograd keeps from forward for backward, the input included.
        peak_bytes: most memory at any moment of forward and backward, on top of the input and its gradient's source.
    """

    name: str
    T: int
    shape: tuple[int, ...]
    forward_s: float
    forward_backward_s: float
    kept_bytes: int
    peak_bytes: int


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read plus bytes written per second by a copy far larger than the caches."""
    source = torch.rand((1 << 28) if device.type == "cuda" else (1 << 25), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device, budget_s=0.3)


def measure(name: str, layer: nn.Module, shape: tuple[int, ...], device: torch.device, budget_s: float) -> Measurement:
    """Time ``layer`` on a random input, forward alone and forward with backward, for about ``budget_s`` seconds."""
    layer = layer.to(device)
    x = torch.randn(shape, device=device)
    grad = torch.randn(shape, device=device)

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def forward_backward() -> None:
        leaf = x.detach().requires_grad_()
        layer.zero_grad(set_to_none=True)
        layer(leaf).backward(grad)

    return Measurement(
        name,
        shape[0],
        shape,
        _fastest(forward, device, budget_s / 3),
        _fastest(forward_backward, device, budget_s * 2 / 3),
        _kept_bytes(layer, x),
        _peak_bytes(forward_backward, device),
    )


def _kept_bytes(layer: nn.Module, x: torch.Tensor) -> int:
    """Size of the distinct storages that autograd saves, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = layer(x.detach().requires_grad_())  # alive until counted, so that no address is used twice
    total = sum(kept.values())
    del output
    return total


def _peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """Most memory that PyTorch holds at any moment of ``call`` on top of what it held before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # no complaint about a missing GPU
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True, acc_events=True) as profile:
        call()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())), default=0)


def _fastest(call: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Fastest run within the budget, after a warm-up of a fifth of it; at least one run, at most 100."""
    cuda = device.type == "cuda"
    start = time.perf_counter()
    call()
    while time.perf_counter() - start < budget_s / 5:
        call()
    if cuda:
        torch.cuda.synchronize(device)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < 100 and (not times or time.perf_counter() - start < budget_s):
        if cuda:
            before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            before.record()
            call()
            after.record()
            after.synchronize()
            times.append(before.elapsed_time(after) / 1e3)
        else:
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
    return min(times)
