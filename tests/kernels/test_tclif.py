"""The fused TC-LIF equals the reference: outputs, final state, and every gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import triangle
from pmsn_plugins.functional.tclif import SOMA_FEEDBACK

SHAPES = {  # of a sequence and of the couplings
    "scalar": ((7, 3, 5), ()),
    "one step": ((1, 2, 3), (3,)),
    "channels": ((90, 2, 3, 5, 7), (3, 1, 1)),
    "last axis": ((70, 20, 32), (32,)),
    "every neuron": ((40, 3, 5), (3, 5)),
    "two axes": ((9, 4, 3, 5), (3, 5)),
    "no channels": ((6, 11), ()),
    "batch": ((6, 4, 3), (4, 1)),
}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_float64(tools, cpu_kernels, poisoned, shapes, soma_feedback, detach_reset, strict):
    options = dict(soma_feedback=soma_feedback, detach_reset=detach_reset, gamma=0.6, v_threshold=0.8)
    options["surrogate_function"] = triangle(alpha=0.7, strict=strict)
    for with_state, leak in ((False, (1.0, 1.0)), (True, (0.9, 0.8))):
        case = tools.tclif_case(*shapes, torch.float64, with_state)
        expected = tools.run(functional.tclif_sequence, *case, leak=leak, **options)
        actual = tools.run(kernels.tclif_sequence, *case, leak=leak, backend="cpu", **options)
        tools.assert_equal(actual, expected, 1e-9)


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@pytest.mark.parametrize("shapes", SHAPES.values(), ids=SHAPES)
def test_float64_on_every_backend(tools, backend, poisoned, shapes, soma_feedback):
    case = tools.tclif_case(*shapes, torch.float64, True, backend.device)
    for final_state in (True, False):
        options = dict(soma_feedback=soma_feedback, final_state=final_state)
        expected = tools.run(functional.tclif_sequence, *case, **options)
        tools.assert_equal(tools.run(kernels.tclif_sequence, *case, backend=backend.name, **options), expected, 1e-9)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 300), st.integers(1, 5)),
    gamma=st.floats(0.0, 1.0),
    v_threshold=st.floats(0.1, 3.0),
    per_channel=st.booleans(),
)
def test_any_shape(tools, shape, gamma, v_threshold, per_channel):
    if not kernels.backends()["cpu"].available:
        pytest.skip(kernels.backends()["cpu"].reason)
    case = tools.tclif_case(shape, shape[2:] if per_channel else (), torch.float64, False)
    options = dict(gamma=gamma, v_threshold=v_threshold)
    expected = tools.run(functional.tclif_sequence, *case, **options)
    tools.assert_equal(tools.run(kernels.tclif_sequence, *case, backend="cpu", **options), expected, 1e-9)


def test_float32(tools, backend):
    shape = (100, 4, 8) if backend.emulated else (250, 40, 64)
    x, b1, b2, _ = tools.tclif_case(shape, (), torch.float32, False, backend.device)
    expected = tools.run(functional.tclif_sequence, x.double(), b1.double(), b2.double())
    actual = tools.run(kernels.tclif_sequence, x, b1, b2, backend=backend.name)
    # every spike depends on the last one: one that rounding moves can move the next ones
    assert (actual.spikes != expected.spikes).double().mean() < 1e-4
    value, want = actual.gradients[0].double(), expected.gradients[0]
    assert ((value - want).abs() / want.abs().max()).amax(0).median() < 1e-4  # of a neuron's worst step


def test_chunks_equal_the_whole(tools, cpu_kernels):
    for soma_feedback in SOMA_FEEDBACK:
        x, b1, b2, _ = tools.tclif_case((100, 3, 7), (), torch.float32, False)
        options = dict(soma_feedback=soma_feedback, backend="cpu")
        whole = kernels.tclif_sequence(x, b1, b2, **options)
        state, chunks = None, []
        for chunk in x.split([1, 16, 50, 33]):
            spikes, state, _ = kernels.tclif_sequence(chunk, b1, b2, state, **options)
            chunks.append(spikes)
        assert torch.equal(torch.cat(chunks), whole.spikes)
        assert all(torch.equal(a, b) for a, b in zip(state, whole.state, strict=True))


def test_numbers_as_couplings(tools, cpu_kernels):
    x = tools.tclif_case((9, 3, 7), (), torch.float32, False)[0]
    expected = functional.tclif_sequence(x, -0.5, 0.5)
    assert torch.equal(kernels.tclif_sequence(x, -0.5, 0.5, backend="cpu").spikes, expected.spikes)


def test_couplings_that_do_not_broadcast_are_named(cpu_kernels):
    with pytest.raises(ValueError, match="b1 must broadcast over one step"):
        kernels.tclif_sequence(torch.randn(4, 2, 3), torch.randn(5), torch.randn(5), backend="cpu")
