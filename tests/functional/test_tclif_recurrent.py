"""The recurrent TC-LIF function against the loop written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsn_plugins.functional import (
    SOMA_FEEDBACK,
    SURROGATES,
    TableSurrogate,
    TCLIFRecurrentState,
    TCLIFState,
    tclif_recurrent_sequence,
    tclif_recurrent_step,
    tclif_sequence,
    triangle,
)


def inputs(*shape, dtype=torch.float64, seed=1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def case(T, N, C, *, seed=0, per_channel=False, requires_grad=True):
    """x, weight, bias, b1, b2, and a state whose spikes are zeros and ones."""
    tensors = [
        inputs(T, N, C, seed=seed) + 0.3,
        inputs(C, C, seed=seed + 1) / C**0.5,
        inputs(C, seed=seed + 2) / 4,
        *(sign * inputs(*((C,) if per_channel else ()), seed=seed + 3).sigmoid() for sign in (-1, 1)),
        *(inputs(N, C, seed=seed + 4 + i) for i in range(2)),
        (inputs(N, C, seed=seed + 6) > 0).double(),
    ]
    return [t.detach().requires_grad_(requires_grad) for t in tensors]


def plain_loop(
    x, weight, bias, b1, b2, v, d, S, *, gamma, v_threshold, surrogate_function, soma_feedback, detach_reset, leak
):
    """As a script writes it. Returns spikes, final state, and the soma after each step, as the state has it."""
    theta, (a1, a2), pre_reset = v_threshold, leak, soma_feedback == "pre_reset"
    R = surrogate_function(v - theta) if pre_reset else 0 * v
    spikes, v_seq = [], []
    for x_t in x:
        current = x_t + torch.nn.functional.linear(S, weight, bias)
        R = R.detach() if detach_reset else R
        d = a1 * d + b1 * v + current - (gamma * R if pre_reset else 0)
        v = a2 * v + b2 * d - (theta * R if pre_reset else 0)
        S = R = surrogate_function(v - theta)
        if not pre_reset:
            R = R.detach() if detach_reset else R
            d, v = d - gamma * R, v - theta * R
        spikes.append(S)
        v_seq.append(v)
    return torch.stack(spikes), (v, d, S), torch.stack(v_seq)


def ours(x, weight, bias, b1, b2, v, d, S, **options):
    state = TCLIFRecurrentState(v, d, S)
    return tclif_recurrent_sequence(x, weight, bias, b1, b2, state, return_v_seq=True, **options)


def gradients(output, wrt):
    """Of a random linear function of everything that is returned."""
    spikes, state, v_seq = output
    loss = sum((o * inputs(*o.shape, seed=30 + i)).sum() for i, o in enumerate((spikes, *state, v_seq)))
    return torch.autograd.grad(loss, wrt)


def assert_near(actual, expected, tolerance=1e-12):
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape
        error = ((a - e).abs().max() / e.abs().max().clamp(min=1e-3)).item()
        assert error <= tolerance, f"{i}: {error}"


def options(**changes):
    return {
        "gamma": 0.6,
        "v_threshold": 0.8,
        "surrogate_function": triangle(),
        "soma_feedback": "post_reset",
        "detach_reset": False,
        "leak": (1.0, 1.0),
        **changes,
    }


@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(1, 40),
    N=st.integers(1, 4),
    C=st.integers(1, 9),
    gamma=st.floats(0.0, 1.0),
    v_threshold=st.floats(0.3, 2.0),
    leak=st.tuples(st.floats(0.5, 1.0), st.floats(0.5, 1.0)),
    surrogate=st.sampled_from(["triangle", "sigmoid", "atan", "rect"]),
    strict=st.booleans(),
    soma_feedback=st.sampled_from(SOMA_FEEDBACK),
    detach_reset=st.booleans(),
    per_channel=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_equals_the_loop(T, N, C, surrogate, strict, per_channel, seed, **given_options):
    given_options = options(surrogate_function=TableSurrogate(surrogate, strict), **given_options)
    arguments = case(T, N, C, seed=seed, per_channel=per_channel)
    expected, actual = plain_loop(*arguments, **given_options), ours(*arguments, **given_options)
    assert torch.equal(actual.spikes, expected[0])
    assert_near((*actual.state, actual.v_seq), (*expected[1], expected[2]))
    assert_near(gradients(actual, arguments), gradients(expected, arguments))


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_long_sequence(soma_feedback, detach_reset):
    given_options = options(soma_feedback=soma_feedback, detach_reset=detach_reset)
    arguments = case(784, 2, 10)
    expected, actual = plain_loop(*arguments, **given_options), ours(*arguments, **given_options)
    assert torch.equal(actual.spikes, expected[0]) and 0.05 < actual.spikes.mean() < 0.6
    assert_near(gradients(actual, arguments), gradients(expected, arguments))


@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate_of_the_table(name):
    arguments = case(20, 2, 6)
    given_options = options(surrogate_function=TableSurrogate(name))
    expected, actual = plain_loop(*arguments, **given_options), ours(*arguments, **given_options)
    assert_near(gradients(actual, arguments), gradients(expected, arguments))


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@pytest.mark.parametrize("what", ["surrogate_function", "v_threshold", "gamma", "leak"])
def test_what_only_autograd_can_differentiate(what, soma_feedback):
    """A function that is not in the table, and tensors where numbers are usual."""
    leaf = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    change = {
        "surrogate_function": lambda x: leaf * torch.sigmoid(3 * x),
        "v_threshold": leaf,
        "gamma": leaf,
        "leak": (leaf, 0.9),
    }[what]
    given_options = options(soma_feedback=soma_feedback, **{what: change})
    arguments = case(15, 2, 5)
    expected, actual = plain_loop(*arguments, **given_options), ours(*arguments, **given_options)
    assert_near((actual.spikes, *actual.state), (expected[0], *expected[1]))
    assert_near(gradients(actual, (*arguments, leaf)), gradients(expected, (*arguments, leaf)))


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_sequence_equals_steps_and_chunks(soma_feedback):
    x, weight, bias, b1, b2, *_ = case(200, 3, 7)
    given_options = options(soma_feedback=soma_feedback)
    whole = tclif_recurrent_sequence(x, weight, bias, b1, b2, return_v_seq=True, **given_options)
    state, steps = None, []
    for x_t in x:
        spikes, state = tclif_recurrent_step(x_t, weight, bias, b1, b2, state, **given_options)
        steps.append(spikes)
    assert torch.equal(torch.stack(steps), whole.spikes)
    assert all(torch.equal(a, b) for a, b in zip(state, whole.state, strict=True))
    assert torch.equal(state.v, whole.v_seq[-1]) and torch.equal(state.spikes, whole.spikes[-1])
    chunked, chunks = None, []
    for chunk in x.split([1, 60, 139]):
        spikes, chunked, _ = tclif_recurrent_sequence(chunk, weight, bias, b1, b2, chunked, **given_options)
        chunks.append(spikes)
    assert torch.equal(torch.cat(chunks), whole.spikes)
    leaves = (x, weight, bias, b1, b2)
    expected = gradients((whole.spikes, whole.state, whole.v_seq[-1]), leaves)
    assert_near(gradients((torch.stack(steps), state, state.v), leaves), expected)
    assert_near(gradients((torch.cat(chunks), chunked, chunked.v), leaves), expected)


def test_truncated_back_propagation():
    """A detached state cuts the gradient, whoever computes the chunk."""
    x, weight, bias, b1, b2, *_ = case(20, 2, 5)
    first = tclif_recurrent_sequence(x[:10], weight, bias, b1, b2).state
    cut = TCLIFRecurrentState(*(s.detach() for s in first))
    spikes = tclif_recurrent_sequence(x[10:], weight, bias, b1, b2, cut).spikes
    (grad,) = torch.autograd.grad(spikes.sum(), x)
    assert not grad[:10].any() and grad[10:].any()


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_without_feedback_it_is_the_feedforward_neuron(soma_feedback):
    x, weight, _, b1, b2, v, d, S = case(30, 3, 5)
    given_options = options(soma_feedback=soma_feedback, leak=(0.9, 0.8))
    actual = ours(x, 0 * weight, None, b1, b2, v, d, S, **given_options)
    expected = tclif_sequence(x, b1, b2, TCLIFState(v, d), return_v_seq=True, **given_options)
    assert torch.equal(actual.spikes, expected.spikes)
    assert_near((*actual.state[:2], actual.v_seq), (*expected.state, expected.v_seq))
    leaves = (x, b1, b2, v, d)
    expected = gradients((expected.spikes, expected.state, expected.v_seq), leaves)
    actual = gradients((actual.spikes, actual.state[:2], actual.v_seq), leaves)
    assert_near(actual, expected)


FLAT = TableSurrogate("leaky_k_relu", leak=0.0, k=0.0)
"""No slope anywhere: with it, and a threshold that is never reached, the gradient is the true one."""


def subthreshold(soma_feedback, surrogate_function, v_threshold=50.0):
    def outputs(*arguments):
        spikes, state, v_seq = ours(
            *arguments,
            **options(
                v_threshold=v_threshold,
                surrogate_function=surrogate_function,
                soma_feedback=soma_feedback,
                leak=(0.9, 0.8),
            ),
        )
        return spikes, *state, v_seq

    return outputs


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_gradcheck_where_the_gradient_is_true(soma_feedback):
    arguments = case(6, 2, 3, per_channel=True)
    assert torch.autograd.gradcheck(subthreshold(soma_feedback, FLAT), arguments)
    assert torch.autograd.gradgradcheck(subthreshold(soma_feedback, FLAT), arguments)
    # a smooth function in place of the Heaviside makes the whole layer differentiable
    assert torch.autograd.gradcheck(subthreshold(soma_feedback, torch.tanh, 0.8), arguments)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_second_derivative_equals_that_of_the_loop(soma_feedback, detach_reset):
    arguments = case(12, 2, 4)
    given_options = options(
        soma_feedback=soma_feedback, detach_reset=detach_reset, surrogate_function=TableSurrogate("sigmoid", alpha=2.0)
    )
    results = []
    for function in (plain_loop, ours):
        spikes, state, v_seq = function(*arguments, **given_options)
        loss = sum((o * inputs(*o.shape, seed=9)).sum() for o in (spikes, *state, v_seq))
        first = torch.autograd.grad(loss, arguments, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), arguments))
    assert_near(results[1], results[0], 1e-11)


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_function_transforms(soma_feedback):
    """torch.func: gradients per sample, an ensemble of layers and forward mode, equal to one after the other."""
    x, weight, bias, b1, b2, *_ = case(15, 4, 5, requires_grad=False)
    weights, out = torch.stack([weight, -weight, weight.t()]), inputs(15, 1, 5, seed=7)

    def loss(x, weight, b1):
        output = tclif_recurrent_sequence(
            x[:, None] if x.ndim == 2 else x, weight, bias, b1, b2, soma_feedback=soma_feedback
        )
        return (output.spikes * out).sum() + output.state.v_dendrite.sum()

    per_sample = torch.func.vmap(torch.func.grad(loss, (1, 2)), (1, None, None))(x, weight, b1)
    for n in range(4):
        assert_near([g[n] for g in per_sample], torch.func.grad(loss, (1, 2))(x[:, n], weight, b1))
    ensemble = torch.func.vmap(torch.func.grad(loss), (None, 0, None))(x, weights, b1)
    for one, w in zip(ensemble, weights, strict=True):
        leaf = x.clone().requires_grad_()
        assert_near([one], torch.autograd.grad(loss(leaf, w, b1), leaf))
    _, tangent = torch.func.jvp(lambda w: loss(x, w, b1), (weight,), (weights[2],))
    assert_near([tangent], [(torch.func.grad(loss, 1)(x, weight, b1) * weights[2]).sum()])
    jacobian = torch.func.jacrev(lambda w: tclif_recurrent_sequence(x, w, bias, b1, b2).state.v.sum(1))(weight)
    assert jacobian.shape == (4, 5, 5) and jacobian.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_and_out(dtype):
    """Whatever is narrow is widened first."""
    x, weight, bias, b1, b2, *_ = (t.detach().to(dtype) for t in case(50, 2, 6))
    wide = [t.float() for t in (x, weight, bias, b1, b2)]
    expected = tclif_recurrent_sequence(*wide)
    output = tclif_recurrent_sequence(x, weight, bias, b1, b2)
    assert output.spikes.dtype == dtype and all(s.dtype == torch.float32 for s in output.state)
    assert torch.equal(output.spikes.float(), expected.spikes)


def test_autocast_leaves_the_feedback_alone():
    arguments = [t.detach().float() for t in case(50, 2, 6)[:5]]
    expected = tclif_recurrent_sequence(*arguments).state
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = tclif_recurrent_sequence(*arguments).state
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("strict", [False, True])
def test_exactly_at_the_threshold(strict):
    x = torch.full((1, 1, 2), 2.0)  # times b2: the threshold
    output = tclif_recurrent_sequence(x, torch.eye(2), None, -0.5, 0.5, surrogate_function=triangle(strict=strict))
    assert (output.spikes == (not strict)).all()


def test_final_state_is_optional_and_holds_no_sequence():
    arguments = case(50, 2, 6)
    assert tclif_recurrent_sequence(*arguments[:5], return_state=False).state is None
    for soma_feedback in SOMA_FEEDBACK:
        for part in tclif_recurrent_sequence(*arguments[:5], soma_feedback=soma_feedback).state:
            assert part.untyped_storage().nbytes() == part.nbytes


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_compile_without_a_graph_break(soma_feedback):
    arguments = case(5, 2, 3)[:5]

    def loss(*arguments):
        output = tclif_recurrent_sequence(*arguments, soma_feedback=soma_feedback, return_v_seq=True)
        return (output.spikes * arguments[0]).sum() + output.v_seq.sum() + output.state.v_dendrite.sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(*arguments), arguments)
    assert_near(torch.autograd.grad(compiled(*arguments), arguments), expected)


X, W = inputs(5, 2, 3), inputs(3, 3)


def run(x=X, weight=W, bias=None, b1=-0.5, b2=0.5, **given_options):
    return tclif_recurrent_sequence(x, weight, bias, b1, b2, **given_options)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, r"x_seq must be \[T, N, C\].*\(5, 3\)", lambda: run(inputs(5, 3))),
        (ValueError, "at least one time step", lambda: run(inputs(0, 2, 3))),
        (TypeError, "x_seq.*floating.*int64", lambda: run(X.long())),
        (TypeError, "weight.*floating.*int64", lambda: run(weight=W.long())),
        (TypeError, "bias.*floating.*int64", lambda: run(bias=torch.ones(3).long())),
        (ValueError, r"weight.*3 channels.*\(2, 2\)", lambda: run(weight=inputs(2, 2))),
        (ValueError, r"bias.*3 channels.*\(2,\)", lambda: run(bias=inputs(2))),
        (ValueError, r"b1 must broadcast over one step.*got shape \(2,\)", lambda: run(b1=inputs(2))),
        (ValueError, r"b2 must broadcast over one step.*got .*\(1, 2, 3\)", lambda: run(b2=inputs(1, 2, 3))),
        (ValueError, "v_threshold.*got -1", lambda: run(v_threshold=-1.0)),
        (ValueError, "'post_reset', 'pre_reset', got 'x'", lambda: run(soma_feedback="x")),
        (
            ValueError,
            "spikes has shape.*reset the state",
            lambda: run(state=TCLIFRecurrentState(X[0], X[0], inputs(9, 3))),
        ),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_couplings_of_every_neuron():
    x, weight, bias, *_ = case(10, 2, 5)
    b1, b2 = (sign * inputs(2, 5, seed=5).sigmoid() for sign in (-1, 1))
    together = tclif_recurrent_sequence(x, weight, bias, b1, b2).spikes
    for n in range(2):
        alone = tclif_recurrent_sequence(x[:, n : n + 1], weight, bias, b1[n], b2[n]).spikes
        assert torch.equal(together[:, n : n + 1], alone)
