"""Dtypes, layouts in memory, threads, and how much is kept."""

import pytest
import torch

from pmsn_plugins import functional, kernels
from pmsn_plugins.kernels import cpu


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_and_out(tools, backend, poisoned, dtype):
    x, coefficients, _ = tools.pmsn_case((100, 3, 7), 4, torch.float32, False, backend.device)
    x = x.to(dtype)
    x.view(-1)[:3] = torch.tensor([0.0, -0.0, torch.finfo(dtype).tiny / 8])
    expected = tools.run(functional.pmsn_sequence, x, coefficients, None)
    actual = tools.run(kernels.pmsn_sequence, x, coefficients, None, backend=backend.name)
    assert actual.spikes.dtype == dtype and actual.others[0].dtype == torch.float32
    assert torch.equal(actual.spikes, expected.spikes)
    assert actual.gradients[0].dtype == dtype
    # the gradient of x is rounded to the dtype once; the rest is float32
    for value, want, eps in zip(
        actual.gradients, expected.gradients, [torch.finfo(dtype).eps] + [1e-5] * 5, strict=True
    ):
        assert tools.relative_error(value, want) <= eps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_half_precision_number_passes_through(cpu_kernels, dtype):
    """The membrane of a neuron without a threshold in reach is the input: float32 of every number of the dtype."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype)
    x = x[x.isfinite()][None, :, None]
    one = torch.ones(1, 1)
    identity = functional.PMSNCoefficients(0 * one, 0 * one, 0 * one, 0 * one, torch.ones(1))
    options = dict(reset_mode="memoryless", v_threshold=1e30, return_v_seq=True, backend="cpu")
    output = kernels.pmsn_sequence(x, identity, **options)
    assert torch.equal(output.v_seq, x.float())
    # and back: the gradient of the membrane arrives at x as it is, rounded once, large ones to infinity
    gradient = torch.cat([x.float(), x.float() * 1.0009766, x.float() * 3, x.float() / 3], 1)
    gradient = gradient[gradient.isfinite()][None, :, None]
    x = torch.ones_like(gradient).to(dtype).requires_grad_()
    output = kernels.pmsn_sequence(x, identity, **options)
    output.v_seq.backward(gradient)
    assert torch.equal(x.grad, gradient.to(dtype))


@pytest.mark.parametrize("layout", ["expanded", "transposed", "channels_last", "sliced", "time-strided"])
def test_any_strides(tools, backend, poisoned, layout):
    _, coefficients, _ = tools.pmsn_case((6, 4, 5), 2, torch.float64, False, backend.device)
    draw = torch.Generator().manual_seed(0)
    x = {
        "expanded": lambda: torch.randn(1, 4, 5, 3, 2, generator=draw).expand(6, 4, 5, 3, 2),
        "transposed": lambda: torch.randn(4, 6, 3, 2, 5, generator=draw).permute(1, 0, 4, 2, 3),
        "channels_last": lambda: (
            torch.randn(24, 5, 3, 2, generator=draw).to(memory_format=torch.channels_last).unflatten(0, (6, 4))
        ),
        "sliced": lambda: torch.randn(6, 8, 5, 3, 4, generator=draw)[:, ::2, :, :, 1:3],
        "time-strided": lambda: torch.randn(12, 4, 5, 3, 2, generator=draw)[::2],
    }[layout]().to(backend.device, torch.float64)
    gradients = []
    for function, options in ((functional.pmsn_sequence, {}), (kernels.pmsn_sequence, {"backend": backend.name})):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        output = function(leaf, coefficients, **options)
        cotangent = torch.randn(6, 4, 5, 2, 3, generator=torch.Generator().manual_seed(1)).mT.to(output.spikes)
        gradients.append((output.spikes, *torch.autograd.grad(output.spikes, leaf, cotangent)))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert tools.relative_error(gradients[1][1], gradients[0][1]) < 1e-9
    assert torch.equal(kernels.pmsn_sequence(x, coefficients, backend=backend.name).spikes, gradients[0][0])


def test_mixed_precision_of_input_and_coefficients(tools, cpu_kernels):
    x, coefficients, _ = tools.pmsn_case((9, 3, 5), 2, torch.float64, False)
    expected = functional.pmsn_sequence(x.float(), coefficients)
    actual = kernels.pmsn_sequence(x.float(), coefficients, backend="cpu")
    assert actual.spikes.dtype == torch.float32 and actual.state.v.dtype == torch.float64
    assert torch.equal(actual.spikes, expected.spikes)


@pytest.mark.parametrize("shape", [(40, 40, 130), (3, 5, 7, 40, 9), (500, 2, 16), (4, 64, 10)])
def test_gradients_do_not_depend_on_threads_or_repetition(tools, cpu_kernels, shape):
    before = torch.get_num_threads()
    pmsn, tclif = tools.pmsn_case(shape, 4, torch.float32, False), tools.tclif_case(shape, (), torch.float32, False)
    try:
        results = []
        for threads in (1, 2, 5, 2):
            torch.set_num_threads(threads)
            results.append(
                tools.run(kernels.pmsn_sequence, *pmsn, backend="cpu").gradients
                + tools.run(kernels.tclif_sequence, *tclif, backend="cpu").gradients
            )
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_concurrent_calls(tools, cpu_kernels):
    from concurrent.futures import ThreadPoolExecutor

    case = tools.pmsn_case((50, 8, 64), 4, torch.float32, False)
    expected = tools.run(kernels.pmsn_sequence, *case, backend="cpu")
    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(tools.run, kernels.pmsn_sequence, *case, backend="cpu") for _ in range(16)]:
            tools.assert_equal(future.result(), expected, 0.0)


def test_a_forked_process_has_its_own_threads(tools, cpu_kernels):
    import multiprocessing

    case = tools.pmsn_case((50, 8, 64), 4, torch.float32, False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = kernels.pmsn_sequence(*case, backend="cpu").spikes.sum().item()
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        worker = context.Process(
            target=lambda: queue.put(kernels.pmsn_sequence(*case, backend="cpu").spikes.sum().item())
        )
        worker.start()
        worker.join(30)
        assert worker.exitcode == 0 and queue.get() == expected
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_instruction_sets_agree(tools, cpu_kernels, instruction_set):
    case = tools.pmsn_case((100, 3, 21), 5, torch.float64, True)
    other = tools.tclif_case((100, 3, 21), (21,), torch.float64, True)
    expected = [tools.run(functional.pmsn_sequence, *case), tools.run(functional.tclif_sequence, *other)]
    if cpu.library.pmsn_use_instruction_set(instruction_set.encode()):
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend="cpu"), expected[0], 1e-9)
        tools.assert_equal(tools.run(kernels.tclif_sequence, *other, backend="cpu"), expected[1], 1e-9)
    finally:
        cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("k", [1, 4, 16])
@pytest.mark.parametrize("T", [4, 250, 1024])
def test_kept_memory(tools, cpu_kernels, T, k, dtype):
    """Between forward and backward: the input and at most a fifth more."""
    x, coefficients, _ = tools.pmsn_case((T, 4, 64), k, torch.float32, False)
    x = x.to(dtype).requires_grad_()
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = kernels.pmsn_sequence(x, coefficients, backend="cpu")
    of_coefficients = sum(c.nbytes for c in coefficients)
    assert output.spikes.requires_grad
    assert sum(kept.values()) - of_coefficients <= 1.2 * x.nbytes


def test_nothing_is_kept_without_gradients(tools, cpu_kernels):
    x, coefficients, _ = tools.pmsn_case((300, 2, 16), 4, torch.float32, False)
    output = kernels.pmsn_sequence(x, coefficients, backend="cpu")
    assert not output.spikes.requires_grad
    assert torch.equal(output.spikes, kernels.pmsn_sequence(x.requires_grad_(), coefficients, backend="cpu").spikes)


@pytest.mark.parametrize("neuron", ["pmsn", "tclif"])
def test_an_input_that_is_not_contiguous_is_copied_once(tools, cpu_kernels, neuron):
    """Backward gets the copy that forward has made."""
    x = torch.randn(3 * 2, 5, 4, 4).to(memory_format=torch.channels_last).unflatten(0, (3, 2)).requires_grad_()
    assert not x.is_contiguous()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        if neuron == "pmsn":
            output = kernels.pmsn_sequence(x, tools.pmsn_case((3, 2, 5), 2, torch.float32, False)[1], backend="cpu")
        else:
            output = kernels.tclif_sequence(x, -0.5, 0.5, backend="cpu")
    inputs = [t for t in kept if t.shape == x.shape]
    assert len(inputs) == 1 and inputs[0].is_contiguous()
    output.spikes.sum().backward()
    assert x.grad.isfinite().all()
