"""Time and memory of one layer, and the copy bandwidth of the machine they are held against."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import nn

LEAST_BYTES = {"forward_backward_s": 20, "forward_s": 8}
"""Least traffic of a float32 layer per element: read x, write S; then, in backward, read x and dS, write dx."""


class Measurement(NamedTuple):
    """One layer on one input.

    Attributes:
        name: the contender.
        T: time steps.
        shape: input shape [T, N, C, *].
        forward_s, forward_backward_s: fastest of several runs, seconds; on a GPU from a cold L2 cache, and as slow as
            the host where that is slower.
        kept_bytes: what autograd keeps from forward for backward, the input included.
        peak_bytes: most memory that PyTorch holds at any moment of forward and backward, on top of the input and the
            gradient of the output.
        forward_graph_s, forward_backward_graph_s: on a GPU the same as a CUDA graph, without the host; None where there
            is none, or the layer cannot be captured.
        launches: kernels on the GPU in forward and backward.
    """

    name: str
    T: int
    shape: tuple[int, ...]
    forward_s: float
    forward_backward_s: float
    kept_bytes: int
    peak_bytes: int
    forward_graph_s: float | None = None
    forward_backward_graph_s: float | None = None
    launches: int | None = None

    def faster(self, other: Measurement) -> Measurement:
        """This one with the shorter of each two times."""

        def shorter(field: str) -> float | None:
            times = (getattr(self, field), getattr(other, field))
            return min((time for time in times if time is not None), default=None)

        times: dict[str, Any] = {field: shorter(field) for field in self._fields if field.endswith("_s")}
        return self._replace(**times)


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

    kept, peak = _memory(layer, x, grad)  # first: what an earlier run left would be counted too
    forward_s = _fastest(forward, device, budget_s / 3)
    forward_backward_s = _fastest(forward_backward, device, budget_s)
    row = Measurement(name, shape[0], shape, forward_s, forward_backward_s, kept, peak)
    if device.type != "cuda":
        return row
    return row._replace(
        forward_graph_s=_as_graph(forward, device, budget_s / 3),
        forward_backward_graph_s=_as_graph(forward_backward, device, budget_s / 3),
        launches=_launches(forward_backward),
    )


def _as_graph(call: Callable[[], object], device: torch.device, budget_s: float) -> float | None:
    """Fastest replay of the call as a CUDA graph; None if it cannot be captured."""
    side, graph = torch.cuda.Stream(device), torch.cuda.CUDAGraph()
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # what is made at the first call must not be captured
        call()
    torch.cuda.current_stream(device).wait_stream(side)
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        return None
    return _fastest(graph.replay, device, budget_s)


def _launches(call: Callable[[], object]) -> int:
    """Kernels that the call runs on the GPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    on_device = (e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    return sum(not event.name.startswith(("Memcpy", "Memset")) for event in on_device)


def _memory(layer: nn.Module, x: torch.Tensor, grad: torch.Tensor) -> tuple[int, int]:
    """Bytes that autograd keeps from forward for backward (without parameters), and most that is held at once."""
    parameters = {p.untyped_storage().data_ptr() for p in layer.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def run() -> None:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = layer(x.detach().requires_grad_())
        output.backward(grad)

    if x.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        run()
        return sum(kept.values()), torch.cuda.max_memory_allocated(x.device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # no complaint about a missing GPU
    with _AllocationProfile(profile_memory=True) as profile:
        run()
    changes = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    peak = max(accumulate(event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())), default=0)
    return sum(kept.values()), peak


class _AllocationProfile(torch.autograd.profiler.profile):
    """PyTorch's profiler without its table of operators, which takes seconds for a loop over many steps."""

    def _parse_kineto_results(self, *arguments: Any, **options: Any) -> list[Any]:
        return []


def _l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size


def _fastest(call: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Fastest run within the budget; at least two runs, at most 100. The first ones warm up."""
    times: list[float] = []
    if device.type == "cuda":  # twice the L2 cache: what the last run left there is not found by the next
        other_data = torch.empty(2 * _l2_bytes(device), dtype=torch.uint8, device=device)
    start = time.perf_counter()
    while len(times) < 2 or (len(times) < 100 and time.perf_counter() - start < budget_s):
        if device.type == "cuda":
            other_data.zero_()
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
