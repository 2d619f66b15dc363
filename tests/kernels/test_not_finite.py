"""One value of the input is NaN or infinite: it stays with its neuron and its future, on every backend."""

import itertools
import math

import pytest
import torch

from pmsn_plugins import kernels
from pmsn_plugins.functional import RESET_MODES, SOMA_FEEDBACK, PMSNCoefficients, TableSurrogate, triangle

BAD = (math.nan, math.inf, -math.inf)
SHAPES = [(1, 3, 5), (4, 2, 3, 5, 7), (16, 3, 20), (17, 3, 5), (300, 1, 5)]


def spoil(x, value):
    """Copies of ``x`` [T, N, C, *] with 0 and with ``value`` in some places, and where the neurons are spoilt."""
    flat = x.flatten(1)
    T, elements = flat.shape
    good, bad, since = flat.clone(), flat.clone(), torch.zeros(T, elements, dtype=torch.bool)
    for t, neuron in zip((0, T // 3, T - 1), (elements // 2, elements - 1, 1), strict=True):
        good[t, neuron], bad[t, neuron] = 0.0, value
        since[t:, neuron] = True
    return good.view_as(x), bad.view_as(x), since.view_as(x)


def assert_spoilt(actual, expected, since):
    """Outputs as they should be: equal elsewhere, not finite since the bad value, and no spikes."""
    assert torch.equal(actual.spikes[~since], expected.spikes[~since])
    assert not actual.spikes[since].any()  # NaN would be something
    pairs = [(actual.v_seq, expected.v_seq, since)]
    if actual.state is not None:
        pairs += [(a, e, since[-1].expand(a.shape)) for a, e in zip(actual.state, expected.state, strict=True)]
    for value, want, spoilt in pairs:
        assert torch.equal(value[~spoilt], want[~spoilt])
        assert not value[spoilt].isfinite().any()


def cases(backend):
    dtypes = (torch.float32,) if backend.emulated else (torch.float32, torch.float64)
    return itertools.product(SHAPES, dtypes, (False, True), BAD)


@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_pmsn(tools, every_backend, reset_mode, burst):
    for shape, dtype, with_state, value in cases(every_backend):
        for k, v_threshold in ((2, 1.0),) if every_backend.emulated else ((4, 1.0), (1, 0.7)):
            x, coefficients, state = tools.pmsn_case(shape, k, dtype, with_state)
            good, bad, since = spoil(x, value)
            for final in (True, False):
                options = dict(reset_mode=reset_mode, burst=burst, v_threshold=v_threshold, return_state=final)
                options |= dict(backend=every_backend.name, return_v_seq=True)
                expected = kernels.pmsn_sequence(good, coefficients, state, **options)
                assert_spoilt(kernels.pmsn_sequence(bad, coefficients, state, **options), expected, since)


@pytest.mark.parametrize("with_state", [False, True])
def test_pmsn_with_time_cut_on_the_cpu(tools, cpu_kernels, with_state):
    x, coefficients, state = tools.pmsn_case((3000, 1, 5), 2, torch.float32, with_state)
    before = torch.get_num_threads()
    torch.set_num_threads(24)
    try:
        for value in BAD:
            good, bad, since = spoil(x, value)
            options = dict(return_v_seq=True, backend="cpu")
            expected = kernels.pmsn_sequence(good, coefficients, state, **options)
            assert_spoilt(kernels.pmsn_sequence(bad, coefficients, state, **options), expected, since)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_pmsn_whose_hidden_compartments_do_nothing(every_backend, reset_mode):
    """No gain, no change: nothing but the input itself tells that it is not finite."""
    zero = torch.zeros(5, 1)
    x = torch.randn(20, 3, 5)
    for D, value in itertools.product((0.0, 1.0, -1.0), BAD):
        silent = PMSNCoefficients(zero, zero, zero, zero, torch.full((5,), D))
        good, bad, since = spoil(x, value)
        options = dict(reset_mode=reset_mode, return_v_seq=True, backend=every_backend.name)
        expected = kernels.pmsn_sequence(good, silent, **options)
        assert_spoilt(kernels.pmsn_sequence(bad, silent, **options), expected, since)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pmsn_in_half_precision(tools, every_backend, dtype):
    x, coefficients, _ = tools.pmsn_case((20, 3, 5), 2, torch.float32, False)
    for value in BAD:
        good, bad, since = spoil(x.to(dtype), value)
        expected = kernels.pmsn_sequence(good, coefficients, return_v_seq=True, backend=every_backend.name)
        actual = kernels.pmsn_sequence(bad, coefficients, return_v_seq=True, backend=every_backend.name)
        assert_spoilt(actual, expected, since)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_tclif(tools, every_backend, soma_feedback, strict):
    for shape, dtype, with_state, value in cases(every_backend):
        x, *rest = tools.tclif_case(shape, (), dtype, with_state)
        good, bad, since = spoil(x, value)
        for final in (True, False):
            options = dict(
                soma_feedback=soma_feedback, surrogate_function=triangle(strict=strict), backend=every_backend.name
            )
            options |= dict(return_state=final, return_v_seq=True)
            expected = kernels.tclif_sequence(good, *rest, **options)
            assert_spoilt(kernels.tclif_sequence(bad, *rest, **options), expected, since)


def test_tclif_without_couplings(every_backend):
    x = torch.randn(20, 3, 5)
    for value in BAD:
        good, bad, since = spoil(x, value)
        expected = kernels.tclif_sequence(good, 0.0, 0.0, return_v_seq=True, backend=every_backend.name)
        assert_spoilt(
            kernels.tclif_sequence(bad, 0.0, 0.0, return_v_seq=True, backend=every_backend.name), expected, since
        )


def gradients(run, x, *parameters):
    leaves = [t.detach().clone().requires_grad_() for t in (x, *parameters)]
    spikes = run(*leaves)
    weight = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1)).to(spikes)
    return torch.autograd.grad(spikes, leaves, weight)


def assert_gradients_spoilt(actual, expected, since):
    """NaN for the input of the neurons that are spoilt, and for their channels; the others equal."""
    neurons = since[-1].expand(since.shape)
    channels = since.movedim(2, 0).flatten(1).any(1)
    assert torch.equal(actual[0][~neurons], expected[0][~neurons])
    assert actual[0][neurons].isnan().all()
    for value, want in zip(actual[1:], expected[1:], strict=True):
        assert torch.equal(value[~channels], want[~channels])
        assert not value[channels].isfinite().any()


def surrogates(backend):
    return map(TableSurrogate, ("triangle",) if backend.emulated else ("triangle", "sigmoid", "atan"))


@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_gradients_of_pmsn(tools, every_backend, reset_mode, burst):
    options = dict(reset_mode=reset_mode, burst=burst, backend=every_backend.name)
    for shape, surrogate in itertools.product([(4, 1, 20), (20, 1, 20), (300, 1, 20)], surrogates(every_backend)):
        x, coefficients, _ = tools.pmsn_case(shape, 2, torch.float32, False)

        def run(x, *coefficients, surrogate=surrogate):
            coefficients = PMSNCoefficients(*coefficients)
            return kernels.pmsn_sequence(x, coefficients, surrogate_function=surrogate, **options).spikes

        for value in BAD:
            good, bad, since = spoil(x, value)
            expected, actual = (gradients(run, t, *coefficients) for t in (good, bad))
            assert_gradients_spoilt(actual, expected, since)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_gradients_of_tclif(tools, every_backend, soma_feedback, detach_reset):
    options = dict(soma_feedback=soma_feedback, detach_reset=detach_reset, backend=every_backend.name)
    for shape, surrogate in itertools.product([(4, 1, 20), (100, 1, 20)], surrogates(every_backend)):
        x, b1, b2, _ = tools.tclif_case(shape, (20,), torch.float32, False)

        def run(x, b1, b2, surrogate=surrogate):
            return kernels.tclif_sequence(x, b1, b2, surrogate_function=surrogate, **options).spikes

        for value in BAD:
            good, bad, since = spoil(x, value)
            expected, actual = (gradients(run, t, b1, b2) for t in (good, bad))
            assert_gradients_spoilt(actual, expected, since)
