"""What only a CUDA GPU can show; the comparisons in the other files run on it too."""

import pytest
import torch

from pmsn_plugins import functional, kernels
from pmsn_plugins.bench.variants import variants
from pmsn_plugins.kernels import gpu

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _needs_cupy():
    if not gpu.status()[0]:
        pytest.skip(gpu.status()[1])


@pytest.mark.parametrize(("variant", "surrogate_function"), [*variants()], ids=str)
def test_every_variant(variant, surrogate_function):
    assert variant.trial("cupy", torch.device("cuda"), surrogate_function) is None


def test_auto_takes_cupy(tools):
    x, coefficients, _ = tools.pmsn_case((5, 2, 3), 2, torch.float32, False, "cuda")
    assert kernels.explain(kernels.pmsn_sequence, x, coefficients).startswith("cupy: ")


@pytest.mark.parametrize("shape", [(16384, 1, 64), (1024, 64, 128), (4, 32, 64, 28, 28), (250, 40, 352)])
@pytest.mark.parametrize("reset_mode", ["modulo", "cumulative", "memoryless"])
def test_large_shapes(tools, shape, reset_mode):
    x, coefficients, _ = tools.pmsn_case(shape, 4, torch.float64, False, "cuda")
    expected = tools.run(functional.pmsn_sequence, x, coefficients, None, reset_mode=reset_mode)
    tools.assert_equal(
        tools.run(kernels.pmsn_sequence, x, coefficients, None, reset_mode=reset_mode, backend="cupy"), expected, 1e-9
    )


def test_deterministic(tools):
    case = tools.pmsn_case((300, 16, 64), 4, torch.float32, False, "cuda")
    first = tools.run(kernels.pmsn_sequence, *case, backend="cupy")
    for _ in range(3):
        tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend="cupy"), first, 0.0)


def test_current_stream_and_graph_capture(tools):
    x, coefficients, _ = tools.pmsn_case((100, 4, 64), 4, torch.float32, False, "cuda")
    x.requires_grad_()

    def step():
        output = kernels.pmsn_sequence(x, coefficients, backend="cupy")
        return output.spikes.detach(), *torch.autograd.grad(output.spikes.sum(), x)

    expected = step()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(x + 0.1)
    graph.replay()
    moved = step()
    assert torch.equal(captured[0], moved[0]) and torch.equal(captured[1], moved[1])
    assert not torch.equal(captured[0], expected[0])


def test_no_host_synchronisation(tools):
    x, coefficients, _ = tools.pmsn_case((100, 4, 64), 4, torch.float32, False, "cuda")
    threshold = torch.tensor(0.7, device="cuda")
    x.requires_grad_()
    kernels.pmsn_sequence(x, coefficients, v_threshold=threshold, backend="cupy").spikes.sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        kernels.pmsn_sequence(x, coefficients, v_threshold=threshold, backend="cupy").spikes.sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_second_device(tools):
    x, coefficients, _ = tools.pmsn_case((50, 4, 16), 2, torch.float64, False, "cuda:1")
    expected = tools.run(functional.pmsn_sequence, x, coefficients, None)
    tools.assert_equal(tools.run(kernels.pmsn_sequence, x, coefficients, None, backend="cupy"), expected, 1e-9)


def test_compiled_once():
    x = torch.randn(5, 2, 3, device="cuda")
    coefficients = functional.discretize(functional.pmsn_initial_parameters(3, 3, device="cuda"))
    kernels.pmsn_sequence(x, coefficients, backend="cupy")
    before = gpu._kernel.cache_info().misses
    kernels.pmsn_sequence(x, coefficients, backend="cupy")
    assert gpu._kernel.cache_info().misses == before
