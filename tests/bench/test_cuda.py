"""The benchmark's CUDA branches, without a GPU: tensors on the CPU that say they are on one, and a fake ``torch.cuda``
that notes what it is asked for."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pmsn_plugins import kernels
from pmsn_plugins.bench import __main__ as command
from pmsn_plugins.bench import contenders as contenders_module
from pmsn_plugins.bench.contenders import Contender, contenders
from pmsn_plugins.bench.measure import Measurement, copy_bandwidth, measure

CUDA = torch.device("cuda")
L2_BYTES = 1 << 20


class OnCuda(TorchFunctionMode):
    """What is asked for on a CUDA device is on the CPU, and says that it is not."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function == torch.Tensor.device.__get__:
            return CUDA

        def moved(value):
            return torch.device("cpu") if isinstance(value, torch.device) else value

        kwargs = {name: moved(value) for name, value in (kwargs or {}).items()}
        return function(*map(moved, args), **kwargs)


class FakeCuda:
    """A GPU that takes 1 ms for everything, and 0.5 ms for the replay of a graph."""

    def __init__(self):
        self.log, self.time, self.capturing = [], 0.0, False
        self.graphs = 0

    def Event(self, enable_timing):  # noqa: N802
        assert enable_timing
        return FakeEvent(self)

    def Stream(self, device):  # noqa: N802
        return SimpleNamespace(wait_stream=lambda other: self.log.append("side waits"))

    def current_stream(self, device=None):
        return SimpleNamespace(wait_stream=lambda other: self.log.append("waits for side"))

    @contextlib.contextmanager
    def stream(self, stream):
        self.log.append("on side")
        yield
        self.log.append("off side")

    def CUDAGraph(self):  # noqa: N802
        return SimpleNamespace(replay=self.replay)

    @contextlib.contextmanager
    def graph(self, graph):
        self.capturing = True
        try:
            yield
        finally:
            self.capturing = False
        self.graphs += 1

    def replay(self):
        self.log.append("replay")
        self.time -= 0.5

    def synchronize(self, device=None):
        if self.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")

    def reset_peak_memory_stats(self, device):
        self.log.append("peak reset")

    def memory_allocated(self, device):
        return 1000

    def max_memory_allocated(self, device):
        return 5000

    def get_device_properties(self, device):
        return SimpleNamespace(L2_cache_size=L2_BYTES)


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.at = cuda, None

    def record(self):
        self.cuda.log.append("record")
        self.cuda.time += 1.0
        self.at = self.cuda.time

    def synchronize(self):
        self.cuda.synchronize()
        assert self.at is not None

    def elapsed_time(self, after):
        return after.at - self.at  # milliseconds


class FakeProfile:
    """Three kernels of the GPU among what the profiler sees."""

    def __init__(self, activities):
        assert activities == [torch.profiler.ProfilerActivity.CUDA]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def events(self):
        on, off = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU
        names = ("pmsn_forward", "pmsn_backward", "pmsn_reduce", "Memcpy DtoD (Device -> Device)", "Memset (Device)")
        return [SimpleNamespace(name=name, device_type=on) for name in names] + [
            SimpleNamespace(name="cudaLaunchKernel", device_type=off)
        ]


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    for name in dir(fake):
        if callable(getattr(fake, name)) and not name.startswith("_") and hasattr(torch.cuda, name):
            monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    monkeypatch.setattr(torch.profiler, "profile", FakeProfile)
    with OnCuda():
        yield fake


class Layer(torch.nn.Module):
    """``synchronizes``: waits for the GPU, which a CUDA graph cannot."""

    def __init__(self, synchronizes=False):
        super().__init__()
        self.factor, self.synchronizes = torch.nn.Parameter(torch.ones(())), synchronizes

    def forward(self, x):
        if self.synchronizes:
            torch.cuda.synchronize()
        return (self.factor * x).sin()


def test_a_layer_is_timed_by_events_and_as_a_graph(cuda):
    row = measure("layer", Layer(), (4, 2, 3), CUDA, budget_s=0.05)
    assert row.forward_s == row.forward_backward_s == pytest.approx(1e-3)
    assert row.forward_graph_s == row.forward_backward_graph_s == pytest.approx(0.5e-3)
    assert row.launches == 3
    assert row.peak_bytes == 4000 and row.kept_bytes > 0
    assert cuda.log.index("peak reset") < cuda.log.index("record")
    assert cuda.graphs == 2 and cuda.log.count("replay") >= 4
    # a graph is captured after a call on a side stream, which waits for what was before and is waited for
    start = cuda.log.index("side waits")
    assert cuda.log[start : start + 4] == ["side waits", "on side", "off side", "waits for side"]


def test_a_layer_that_cannot_be_captured_is_timed_without_a_graph(cuda):
    row = measure("layer", Layer(synchronizes=True), (4, 2, 3), CUDA, budget_s=0.05)
    assert row.forward_graph_s is None and row.forward_backward_graph_s is None
    assert row.forward_s == pytest.approx(1e-3) and row.launches == 3 and not cuda.capturing


def test_every_run_starts_with_a_cold_l2_cache(cuda, monkeypatch):
    zeroed = []
    monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: zeroed.append(tensor.nbytes) or tensor)
    measure("layer", Layer(), (4, 2, 3), CUDA, budget_s=0.01)
    assert len(zeroed) == cuda.log.count("record") / 2
    assert set(zeroed) == {2 * L2_BYTES}


def test_the_copy_is_larger_than_the_l2_cache(cuda, monkeypatch):
    rand = torch.rand
    asked = []
    monkeypatch.setattr(torch, "rand", lambda size, device: asked.append(size) or rand(1000))
    assert copy_bandwidth(CUDA) == pytest.approx(2 * 4000 / 1e-3)
    assert asked == [1 << 28]


def test_the_largest_shape_does_not_fit_into_any_l2_cache():
    sizes = [4 * torch.Size(shape).numel() for shape in command.SHAPES]
    assert max(sizes) > 100e6 and min(sizes) < 10e6


def test_contenders_on_cuda(monkeypatch):
    there = kernels.BackendStatus(True, "")
    monkeypatch.setattr(kernels, "backends", lambda: {"cupy": there, "torch": there})
    names = [c.name for c in contenders(CUDA)]
    assert names[0] == "PMSN (cupy)" and {"TC-LIF (cupy)", "PMSN (torch)", "PMSN (torch.compile)"} <= {*names}
    assert [c.name for c in contenders(CUDA) if c.fused] == [n for n in names if "(cupy)" in n]
    if contenders_module._spikingjelly():
        assert "SpikingJelly LIFNode" in names


def test_nothing_of_a_contender_stays_on_the_cpu():
    meta, shape = torch.device("meta"), (4, 2, 6)  # mixed with tensors of the CPU it is an error, like a GPU's
    for contender in contenders(torch.device("cpu")):
        if "(cpu)" not in contender.name and "compile" not in contender.name:
            layer = contender.make(shape).to(meta)
            assert layer(torch.randn(shape, device=meta)).device == meta, contender.name


def failing(kind):
    def make(shape):
        raise kind("no such thing")

    return make


def test_a_fault_of_ours_ends_the_benchmark_and_one_of_others_is_named(cuda, monkeypatch, capsys):
    class CompilationError(Exception):  # Triton's is no RuntimeError
        pass

    theirs = Contender("theirs", failing(CompilationError))
    able = [Contender("PMSN (cupy)", lambda shape: Layer(), fused=True), theirs]
    monkeypatch.setattr(command, "contenders", lambda device: able)
    rows = command._measure_shape((4, 2, 3), CUDA, budget_s=0.04)
    assert [row.name for row in rows] == ["PMSN (cupy)"]
    assert "theirs: left out, CompilationError: no such thing" in capsys.readouterr().out
    able.append(Contender("TC-LIF (cupy)", failing(CompilationError), fused=True))
    with pytest.raises(CompilationError):
        command._measure_shape((4, 2, 3), CUDA, budget_s=0.04)


def test_of_two_runs_the_faster_graph_counts(cuda, monkeypatch, capsys):
    graphs = iter([(2e-3, None), (3e-3, 4e-3)])

    def timed(name, layer, shape, *_):
        forward, both = next(graphs)
        return Measurement(name, 4, shape, 1e-3, 2e-3, 96, 96, forward, both, 5)

    monkeypatch.setattr(command, "measure", timed)
    monkeypatch.setattr(command, "contenders", lambda device: [Contender("x", lambda shape: Layer())])
    (row,) = rows = command._measure_shape((4, 2, 3), CUDA, budget_s=0.04)
    assert (row.forward_graph_s, row.forward_backward_graph_s) == (2e-3, 4e-3)
    command._print_shape((4, 2, 3), rows, 1e12)
    assert "as CUDA graphs 2.00, 4.00 ms, 5 launches" in capsys.readouterr().out


def test_what_is_compiled_is_compiled_for_every_shape(monkeypatch):
    """torch.compile gives up on a function that it has compiled for several shapes, and says so only in the log."""
    compiled, compile = [], torch.compile

    def backend(graph, inputs):
        compiled.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=backend, **options))
    monkeypatch.setattr(command, "contenders", lambda device: [Contender("x", contenders_module.PlainTCLIF)])
    for T in range(5, 11):
        before = len(compiled)
        command._measure_shape((T, 2, T), torch.device("cpu"), budget_s=0.01)
        assert len(compiled) > before, T
