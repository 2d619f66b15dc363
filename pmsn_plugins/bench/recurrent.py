"""The recurrent TC-LIF layer against the other ways to compute it, and the goals that it is held to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import kernels
from ..functional import triangle
from ..layers import reset_states
from ..parameters import RecurrentTCLIFParametersMixin

LENGTHS, WIDTHS, BATCH = (100, 250, 784), (40, 128, 200, 512), 40
RATE = 0.1
"""Share of neurons that fire in a step."""

OURS, PLAIN, CONTAINER = "TC-LIF, recurrent layer", "TC-LIF, plain loop", "TC-LIF in SpikingJelly's container"
GOALS = {40: 25.0, 128: 9.0, 200: 5.0}
"""Width to how many times as fast as the plain loop the layer shall be, on one thread."""

NETWORK = (700, 128, 128, 20)
NETWORK_GOALS = 6.0, 1.3
"""Times as fast as with containers; at most so many times the step of the network without feedback."""

MOST_COPIED = 250 * 784 * 200 * BATCH
"""The container copies a gradient of the whole sequence at every step: beyond so many numbers it is not waited for."""


class Recurrent(RecurrentTCLIFParametersMixin, nn.Module):
    """The layer on one backend, without its final state."""

    def __init__(self, channels: int, backend: str = "auto") -> None:
        super().__init__()
        self._create_parameters((-0.5, 0.5), None)
        self.recurrent = nn.Linear(channels, channels)
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        learned = *self.feedback(x.shape[2]), *self.couplings(2)
        return kernels.tclif_recurrent_sequence(x, *learned, return_state=False, backend=self.backend).spikes


class PlainLoop(Recurrent):
    """The same as a research script writes it, under autograd."""

    def forward(self, x: Tensor) -> Tensor:
        b1, b2 = self.couplings(2)
        spike = dendrite = soma = torch.zeros_like(x[0])
        fire, spikes = triangle(), []
        for x_t in x.unbind(0):
            dendrite = dendrite + b1 * soma + x_t + self.recurrent(spike)
            soma = soma + b2 * dendrite
            spike = fire(soma - 1.0)
            dendrite = dendrite - 0.5 * spike
            soma = soma - spike
            spikes.append(spike)
        return torch.stack(spikes)


class RSynapticLoop(nn.Module):
    """snnTorch's recurrent neuron in the loop of its tutorials."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        spk, syn, mem = (torch.zeros_like(x[0]) for _ in range(3))
        spikes = []
        for x_t in x:
            spk, syn, mem = self.layer(x_t, spk, syn, mem)
            spikes.append(spk)
        return torch.stack(spikes)


class Forgetting(nn.Module):
    """SpikingJelly's container around a node: without feedback from, and state of, the sequence before."""

    def __init__(self, node: nn.Module, channels: int) -> None:
        super().__init__()
        self.layer = _container(node, channels)

    def forward(self, x: Tensor) -> Tensor:
        reset_states(self.layer)
        return self.layer(x)


class Contender(NamedTuple):
    """One way to compute such a layer: ``make`` builds it for a width; ``copies`` if its backward is quadratic in T."""

    name: str
    make: Callable[[int], nn.Module]
    copies: bool = False


def contenders() -> list[Contender]:
    """What can run with what is installed; ours first."""
    found = [
        Contender(OURS, Recurrent),
        Contender(f"{OURS} (torch)", lambda channels: Recurrent(channels, "torch")),
        Contender(PLAIN, PlainLoop),
    ]
    try:
        from spikingjelly.activation_based import neuron

        from ..spikingjelly import TCLIFNode
    except ImportError:
        pass
    else:
        found += [
            Contender(CONTAINER, lambda channels: Forgetting(TCLIFNode(), channels), True),
            Contender(
                "LIF in SpikingJelly's container",
                lambda channels: Forgetting(neuron.LIFNode(v_reset=None), channels),
                True,
            ),
        ]
    try:
        import snntorch
    except ImportError:
        return found
    return [
        *found,
        Contender(
            "snnTorch RSynaptic, loop",
            lambda channels: RSynapticLoop(snntorch.RSynaptic(0.9, 0.8, linear_features=channels)),
        ),
    ]


def _container(node: nn.Module, channels: int) -> nn.Module:
    """SpikingJelly's own container; models.feedforward takes the sequence apart before."""
    from spikingjelly.activation_based import layer

    from ..models.sequence import Feedback

    return layer.ElementWiseRecurrentContainer(node, Feedback(channels), step_mode="m")


def run_recurrent(device: torch.device, quick: bool) -> list[dict[str, object]]:
    """Print times and goals, for one thread and two; returns the times."""
    results: list[dict[str, object]] = []
    for threads in (1, 2) if device.type == "cpu" else (1,):
        with _threads(threads):
            rows = _measure_layers(device, quick)
            _print_rows(rows, threads)
            _print_goals(rows, _measure_networks(device, quick))
        results += [{"name": n, "shape": s, "threads": threads, "forward_backward_s": t} for (n, s), t in rows.items()]
    return results


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


Shape = tuple[int, int, int]


def _measure_layers(device: torch.device, quick: bool) -> dict[tuple[str, Shape], float]:
    """Seconds of forward and backward, by contender and shape."""
    lengths, widths = (LENGTHS[:1], WIDTHS[:2]) if quick else (LENGTHS, WIDTHS)
    times: dict[tuple[str, Shape], float] = {}
    for C in widths:
        firing = bias_for_rate(C)
        for T in lengths:
            shape = T, BATCH, C
            calls = {}
            x, grad = torch.randn(shape, device=device), torch.randn(shape, device=device)
            for contender in contenders():
                if contender.copies and T * T * BATCH * C > MOST_COPIED:
                    continue
                torch.manual_seed(0)
                layer = contender.make(C).to(device)
                if isinstance(layer, Recurrent):
                    nn.init.constant_(layer.recurrent.bias, firing)
                calls[contender.name] = _forward_backward(layer, x, grad)
            times |= {(name, shape): t for name, t in _interleaved(calls, 3 if quick else 5).items()}
    return times


def bias_for_rate(channels: int) -> float:
    """The bias of the feedback with which neurons of random input fire at ``RATE``."""
    torch.manual_seed(0)
    layer, x = Recurrent(channels), torch.randn(100, 16, channels)
    low, high = -8.0, 8.0
    for _ in range(20):
        nn.init.constant_(layer.recurrent.bias, (low + high) / 2)
        with torch.no_grad():
            less = layer(x).mean() < RATE
        low, high = ((low + high) / 2, high) if less else (low, (low + high) / 2)
    return low


def _forward_backward(layer: nn.Module, x: Tensor, grad: Tensor) -> Callable[[], None]:
    def call() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x.detach().requires_grad_()).backward(grad)

    return call


def _interleaved(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Fastest run of each, one after the other in rounds: a machine that is slow for a while is not slow for one
    alone. Quick ones run several times in a round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            spent = 0.0
            while spent < 0.05 and sum(times[name]) < 10.0:
                begin = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - begin)
                spent += times[name][-1]
    return {name: min(runs) for name, runs in times.items()}


def _measure_networks(device: torch.device, quick: bool) -> dict[str, float] | None:
    """Seconds of a training step of the TC-LIF paper's SHD network: with recurrent layers, with SpikingJelly's
    containers, and without feedback. None without SpikingJelly."""
    try:
        from spikingjelly.activation_based import functional

        from ..models import feedforward, neuron_factory
        from ..spikingjelly import RecurrentTCLIFNode, TCLIFNode
    except ImportError:
        return None
    x = (torch.rand(50 if quick else 250, BATCH, NETWORK[0], device=device) < 0.03).float()
    labels = torch.randint(0, NETWORK[-1], (BATCH,), device=device)

    def step(feedback: tuple[int, ...], in_containers: bool = False) -> Callable[[], None]:
        torch.manual_seed(0)
        net: Any = feedforward(NETWORK, neuron_factory("tclif", v_threshold=1.5), feedback=feedback)
        if in_containers:
            for i, layer in enumerate(net):
                if isinstance(layer, RecurrentTCLIFNode):
                    net[i] = _container(TCLIFNode(v_threshold=1.5), layer.channels)
        optimizer = torch.optim.Adam(net.to(device).parameters(), 1e-3)

        def call() -> None:
            functional.reset_net(net)
            loss = nn.functional.cross_entropy(net(x).sum(0), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return call

    calls = {"recurrent": step((0, 1)), "containers": step((0, 1), True), "feedforward": step(())}
    return _interleaved(calls, 2 if quick else 5)


def _print_rows(rows: dict[tuple[str, Shape], float], threads: int) -> None:
    shapes, names = list(dict.fromkeys(s for _, s in rows)), list(dict.fromkeys(n for n, _ in rows))
    print(f"\nforward + backward of one recurrent layer, ms; firing rate {RATE}, {threads} thread{'s'[: threads - 1]}")
    print(f"{'':36}" + "".join(f"{'x'.join(map(str, s)):>12}" for s in shapes))
    for name in names:
        times = (f"{rows[name, s] * 1e3:12.2f}" if (name, s) in rows else f"{'':12}" for s in shapes)
        print(f"{name:36}" + "".join(times))


def _print_goals(rows: dict[tuple[str, Shape], float], networks: dict[str, float] | None) -> None:
    by_width: dict[int, list[Shape]] = {}
    for name, shape in rows:
        if name == OURS:
            by_width.setdefault(shape[2], []).append(shape)
    for width, shapes in by_width.items():
        times = ", ".join(f"{rows[PLAIN, s] / rows[OURS, s]:.1f}" for s in shapes)
        goal = f" (goal on one thread: {GOALS[width]:g})" if width in GOALS else ""
        lengths = ", ".join(str(s[0]) for s in shapes)
        print(f"width {width}: {times} times as fast as the plain loop at T = {lengths}{goal}")
    per_step = [[rows[OURS, s] / s[0] for s in shapes] for shapes in by_width.values()]
    growth = median(steps[-1] / steps[0] for steps in per_step)
    print(f"time per step at the largest T over that at the smallest: {growth:.2f} (linear in T: 1)")
    if networks:
        faster = networks["containers"] / networks["recurrent"]
        slower = networks["recurrent"] / networks["feedforward"]
        least, most = NETWORK_GOALS
        print(
            f"network {'-'.join(map(str, NETWORK))}, a step with Adam: {networks['recurrent'] * 1e3:.1f} ms, "
            f"{faster:.1f} times as fast as with containers (goal {least:g}), "
            f"{slower:.2f} times the feedforward network's (goal at most {most:g})"
        )
