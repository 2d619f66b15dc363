"""The TC-LIF functions against the equations written out."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsn_plugins.functional import SOMA_FEEDBACK, tclif_sequence, tclif_step, triangle


def inputs(*shape, dtype=torch.float64, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def literal(x, b1, b2, gamma, theta, leak, detach_reset=False):
    """Eq. 7-9 as printed: potentials before reset, both resets taken at the next step."""
    U_D = U_S = S = torch.zeros_like(x[0])
    spikes = []
    for x_t in x:
        R = S.detach() if detach_reset else S
        U_D, U_S_old = leak[0] * U_D + b1 * U_S + x_t - gamma * R, U_S
        U_S = leak[1] * U_S_old + b2 * U_D - theta * R
        S = triangle()(U_S - theta)
        spikes.append(S)
    return torch.stack(spikes)


def after_spike(x, b1, b2, gamma, theta, leak, detach_reset=False):
    """The authors' order: both resets right after the spike."""
    D = v = torch.zeros_like(x[0])
    spikes = []
    for x_t in x:
        D = leak[0] * D + b1 * v + x_t
        v = leak[1] * v + b2 * D
        S = triangle()(v - theta)
        R = S.detach() if detach_reset else S
        D, v = D - gamma * R, v - theta * R
        spikes.append(S)
    return torch.stack(spikes)


EQUATIONS = {"pre_reset": literal, "post_reset": after_spike}


def gradients(spikes, wrt):
    return torch.autograd.grad((spikes * inputs(*spikes.shape, seed=3)).sum(), wrt)


@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(1, 60),
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    b1=st.floats(-0.95, 0.95),
    b2=st.floats(-0.95, 0.95),
    gamma=st.floats(0.0, 1.0),
    theta=st.floats(0.3, 2.0),
    leak=st.tuples(st.floats(0.5, 1.0), st.floats(0.5, 1.0)),
    soma_feedback=st.sampled_from(SOMA_FEEDBACK),
    detach_reset=st.booleans(),
    cut=st.floats(0.0, 1.0),
    seed=st.integers(0, 10_000),
)
def test_equals_the_equations(T, shape, b1, b2, gamma, theta, leak, soma_feedback, detach_reset, cut, seed):
    x = inputs(T, *shape, seed=seed).requires_grad_()
    b1, b2 = (torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (b1, b2))
    expected = EQUATIONS[soma_feedback](x, b1, b2, gamma, theta, leak, detach_reset)
    options = {
        "gamma": gamma,
        "v_threshold": theta,
        "leak": leak,
        "soma_feedback": soma_feedback,
        "detach_reset": detach_reset,
    }
    whole = tclif_sequence(x, b1, b2, **options).spikes
    assert torch.equal(whole, expected)
    middle = round(cut * T)
    chunks = [c for c in (x[:middle], x[middle:]) if len(c)]
    state, spikes = None, []
    for chunk in chunks:
        s, state, _ = tclif_sequence(chunk, b1, b2, state, **options)
        spikes.append(s)
    assert torch.equal(torch.cat(spikes), whole)
    for actual in (whole, torch.cat(spikes)):
        for a, e in zip(gradients(actual, (x, b1, b2)), gradients(expected.clone(), (x, b1, b2)), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)
        expected = EQUATIONS[soma_feedback](x, b1, b2, gamma, theta, leak, detach_reset)


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_sequence_equals_steps(soma_feedback):
    x = inputs(4096, 2, 3)
    whole = tclif_sequence(x, -0.5, 0.5, soma_feedback=soma_feedback, return_v_seq=True)
    state, spikes = None, []
    for x_t in x:
        s, state = tclif_step(x_t, -0.5, 0.5, state, soma_feedback=soma_feedback)
        spikes.append(s)
    assert torch.equal(torch.stack(spikes), whole.spikes)
    assert torch.equal(state.v, whole.state.v)
    assert torch.equal(whole.v_seq[-1], state.v)


def test_feedback_variants_differ_once_a_spike_was_fired():
    x = inputs(50, 4, 4) + 0.3
    post = tclif_sequence(x, -0.5, 0.5).spikes
    pre = tclif_sequence(x, -0.5, 0.5, soma_feedback="pre_reset").spikes
    first = int(post.sum((1, 2)).nonzero()[0])
    assert torch.equal(post[: first + 1], pre[: first + 1])
    assert not torch.equal(post, pre)


def test_subthreshold_gradient_is_a_true_one():
    """With a smooth function in place of the Heaviside the whole neuron is differentiable."""

    def run(x, b1, b2, gamma):
        return tclif_sequence(x, b1, b2, gamma=gamma, surrogate_function=torch.tanh, leak=(0.9, 0.8)).spikes

    scalars = [torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (-0.4, 0.6, 0.5)]
    assert torch.autograd.gradcheck(run, [inputs(8, 2, 2).requires_grad_(), *scalars])


def test_per_channel_couplings():
    x = inputs(30, 2, 3, 4, 4)
    b1, b2 = -torch.rand(3, 1, 1).double(), torch.rand(3, 1, 1).double()
    together = tclif_sequence(x, b1, b2).spikes
    for c in range(3):
        alone = tclif_sequence(x[:, :, c], b1[c].item(), b2[c].item()).spikes
        assert torch.equal(together[:, :, c], alone)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_and_out(dtype):
    x = inputs(50, 2, 3, dtype=dtype)
    output = tclif_sequence(x, -0.5, 0.5)
    assert output.spikes.dtype == dtype
    assert output.state.v.dtype == torch.float32
    assert torch.equal(output.spikes.float(), tclif_sequence(x.float(), -0.5, 0.5).spikes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_a_value_that_is_not_finite_stays_with_its_neuron_and_its_future(soma_feedback, value):
    for b1, b2 in ((-0.5, 0.5), (0.0, 0.0), (0.5, 0.5)):
        results = []
        for v in (0.0, value):
            x = inputs(30, 2, 3)
            x[10, 1, 2] = v
            x.requires_grad_()
            b = [torch.full((3,), c, dtype=torch.float64, requires_grad=True) for c in (b1, b2)]
            output = tclif_sequence(x, *b, soma_feedback=soma_feedback, return_v_seq=True)
            results.append((output, gradients(output.spikes, (x, *b))))
        (expected, wanted), (actual, gradient) = results
        since = torch.zeros(30, 2, 3, dtype=torch.bool)
        since[10:, 1, 2] = True
        for a, e in ((actual.spikes, expected.spikes), (actual.v_seq, expected.v_seq)):
            assert torch.equal(a[~since], e[~since])
        assert not actual.spikes[since].any() and actual.v_seq[since].isnan().all()
        for a, e in zip(actual.state, expected.state, strict=True):
            assert torch.equal(a[0], e[0]) and torch.equal(a[:, :2], e[:, :2]) and a[1, 2].isnan()
        assert torch.equal(gradient[0][:, 0], wanted[0][:, 0]) and gradient[0][:, 1, 2].isnan().all()
        for a, e in zip(gradient[1:], wanted[1:], strict=True):
            assert torch.equal(a[:2], e[:2]) and a[2].isnan()


def test_without_the_final_state():
    whole, without = (tclif_sequence(inputs(9, 2, 3), -0.5, 0.5, return_state=s) for s in (True, False))
    assert without.state is None and torch.equal(without.spikes, whole.spikes)


X = inputs(5, 2, 3)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, r"\[T, N, \*\]", lambda: tclif_sequence(inputs(5), -0.5, 0.5)),
        (ValueError, "at least one time step", lambda: tclif_sequence(inputs(0, 2), -0.5, 0.5)),
        (TypeError, "floating.*int64", lambda: tclif_sequence(X.long(), -0.5, 0.5)),
        (TypeError, "floating.*complex", lambda: tclif_sequence(X + 0j, -0.5, 0.5)),
        (ValueError, "v_threshold.*got -1", lambda: tclif_sequence(X, -0.5, 0.5, v_threshold=-1.0)),
        (ValueError, "'post_reset', 'pre_reset', got 'x'", lambda: tclif_sequence(X, -0.5, 0.5, soma_feedback="x")),
        (
            ValueError,
            "reset the state",
            lambda: tclif_sequence(X, -0.5, 0.5, tclif_sequence(inputs(5, 9, 3), -0.5, 0.5).state),
        ),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()
