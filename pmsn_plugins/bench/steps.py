"""One time step at a time: ours against the least that a step could cost, and against LIF."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

SHAPES = [(40, 128), (8, 128), (16, 64, 16, 16)]
OPERATIONS, LIF = "six operations of torch", "SpikingJelly LIFNode"

GOALS = {(40, 128): (OPERATIONS, 3.0), (8, 128): (LIF, 2.0), (16, 64, 16, 16): (LIF, 2.0)}
"""Shape to how many times as long as what a step of ours may take, without gradients."""

Step = Callable[[Tensor], Tensor]


def steps(shape: tuple[int, ...]) -> dict[str, Step]:
    """What takes a step [N, C, *] and keeps its state, by name; those of ours begin with their names."""
    found = {OPERATIONS: _operations(shape)}
    try:
        from spikingjelly.activation_based import neuron

        from ..spikingjelly import PMSNNode, TCLIFNode
    except ImportError:
        pass
    else:
        found |= {LIF: neuron.LIFNode(v_reset=None), "TCLIFNode": TCLIFNode(), "PMSNNode": PMSNNode(shape[1])}
    try:
        import snntorch

        from ..snntorch import PMSN, TCLIF
    except ImportError:
        return found
    return found | {
        "snnTorch Leaky": snntorch.Leaky(0.9, init_hidden=True),
        "TCLIF": TCLIF(init_hidden=True),
        "PMSN": PMSN(shape[1], step_mode="s", init_hidden=True),
        "TCLIF, states passed": _Passing(TCLIF()),
        "PMSN, states passed": _Passing(PMSN(shape[1], step_mode="s")),
    }


class _Passing(nn.Module):
    """An snnTorch layer in a loop that hands its states from step to step."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.reset()

    def reset(self) -> None:
        self.states = self.layer.reset_mem()
        if not isinstance(self.states, tuple) or hasattr(self.states, "_fields"):
            self.states = (self.states,)

    def forward(self, x: Tensor) -> Tensor:
        spikes, *self.states = self.layer(x, *self.states)
        return spikes


def _operations(shape: tuple[int, ...]) -> Step:
    """TC-LIF's step in as few operations as there can be."""
    state = [torch.zeros(shape), torch.zeros(shape)]

    def step(x: Tensor) -> Tensor:
        d, v = state
        d = torch.add(x, v, alpha=-0.5).add_(d)
        v = torch.add(v, d, alpha=0.5)
        spike = torch.ge(v, 1.0, out=torch.empty_like(v))
        state[:] = d.sub_(spike, alpha=0.5), v.sub_(spike)
        return spike

    return step


def run_steps(quick: bool) -> list[dict[str, object]]:
    """Print times and goals; returns the times."""
    results = []
    for shape in SHAPES:
        x, calls = torch.randn(shape), steps(shape)
        with torch.no_grad():
            forward = _fastest({name: partial(step, x) for name, step in calls.items()}, 10 if quick else 30)
        both = _fastest(
            {n: _with_gradients(s, x) for n, s in calls.items() if isinstance(s, nn.Module)}, 3 if quick else 10
        )
        both = {name: seconds / 10 for name, seconds in both.items()}
        print(f"\none step of {list(shape)}, microseconds; forward + backward is of one in a sequence of ten")
        print(f"{'':28}{'forward':>10}{'of six operations':>20}{'of LIF':>10}{'fwd + bwd':>12}")
        for name, seconds in forward.items():
            of_lif = f"{seconds / forward[LIF]:10.2f}" if LIF in forward else f"{'':10}"
            gradients = f"{both[name] * 1e6:12.1f}" if name in both else ""
            print(f"{name:28}{seconds * 1e6:10.1f}{seconds / forward[OPERATIONS]:20.2f}{of_lif}{gradients}")
            results.append({"name": name, "shape": shape, "forward_s": seconds, "forward_backward_s": both.get(name)})
        other, most = GOALS[shape]
        if other in forward:
            ours = (n for n in forward if n.startswith(("TCLIF", "PMSN")))
            ratios = ", ".join(f"{name} {forward[name] / forward[other]:.2f}" for name in ours)
            print(f"times as long as {other}: {ratios} (goal: at most {most:g})")
    return results


def _with_gradients(step: Any, x: Tensor) -> Callable[[], None]:
    leaf = x.clone().requires_grad_()

    def call() -> None:
        (step.reset_mem if hasattr(step, "reset_mem") else step.reset)()
        total = sum(step(leaf) for _ in range(10))
        total.sum().backward()

    return call


def _fastest(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Seconds of a call, the least of several rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()
            begin, count = time.perf_counter(), 0
            while count < 50 and time.perf_counter() - begin < 0.01:
                call()
                count += 1
            times[name].append((time.perf_counter() - begin) / count)
    return {name: min(runs) for name, runs in times.items()}
