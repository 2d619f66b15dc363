"""The PMSN functions against the equations written out, in every form they can be evaluated."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsn_plugins.functional import (
    METHODS,
    RESET_MODES,
    PMSNCoefficients,
    PMSNParameters,
    PMSNState,
    discretize,
    pmsn_impulse_response,
    pmsn_initial_parameters,
    pmsn_sequence,
    pmsn_step,
    straight_through,
    triangle,
)


def parameters(C, k, dtype=torch.float64, seed=0, preset="sequential") -> PMSNParameters:
    """Initial values with every entry disturbed, so that no two channels or modes are alike."""
    generator = torch.Generator().manual_seed(seed)
    initial = pmsn_initial_parameters(C, k + 1, preset, generator=generator, dtype=dtype)
    return PMSNParameters(*(p + 0.05 * torch.randn(p.shape, generator=generator, dtype=dtype) for p in initial))


def inputs(*shape, dtype=torch.float64, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class AuthorsSpike(torch.autograd.Function):
    """What the scripts send, and the gradient they give it, as they write them."""

    @staticmethod
    def forward(ctx, u, theta, burst, strict):
        ctx.save_for_backward(u)
        ctx.theta, ctx.burst = theta, burst
        if burst:
            return (u / theta).floor().clamp(min=0)
        return (u > theta if strict else u >= theta).to(u)

    @staticmethod
    def backward(ctx, grad):
        (u,) = ctx.saved_tensors
        distance = (u - ctx.theta).abs()
        if ctx.burst:
            distance = distance % ctx.theta
        slope = (1 - distance).clamp(min=0)
        # scripts with bursts clamp the current, and so have no u below 0
        return grad * torch.where(u > 0, slope, 0.0) if ctx.burst else grad * slope, None, None, None


def equations(x, p: PMSNParameters, theta=1.0, reset_mode="modulo", burst=False):
    """PMSN Eq. 6-18 in complex arithmetic, one step and one equation at a time."""
    axes = (1, 1, x.shape[2]) + (1,) * (x.ndim - 3)
    lam = torch.complex(-p.log_decay.exp(), p.freq)
    A = torch.exp(p.log_dt.exp()[:, None] * lam)
    B_bar = (A - 1) / lam * torch.complex(p.B_real, p.B_imag)
    R = torch.complex(p.R_real, p.R_imag)
    A, B_bar, R = (c.T.reshape(-1, *axes[1:]) for c in (A, B_bar, R))
    D = p.D.reshape(axes[1:])
    h = torch.zeros(len(A), *x.shape[1:], dtype=A.dtype)
    v = torch.zeros_like(x[0])
    spikes, v_seq = [], []
    for x_t in x:
        h = A * h + B_bar * x_t
        current = (R * h).sum(0).real + D * x_t
        u = (0 if reset_mode == "memoryless" else v) + (current.relu() if reset_mode == "modulo" else current)
        s = AuthorsSpike.apply(u, theta, burst, reset_mode in ("cumulative", "memoryless"))
        if reset_mode == "modulo":
            v = (u - theta * (u / theta).floor()).detach()
        elif reset_mode in ("cumulative", "memoryless"):
            v = u
        else:
            v = u - theta * s
        spikes.append(s)
        v_seq.append(v)
    return torch.stack(spikes), torch.stack(v_seq)


def gradients(output: torch.Tensor, wrt, seed=2):
    weight = inputs(*output.shape, dtype=output.dtype, seed=seed)
    return torch.autograd.grad((output * weight).sum(), wrt)


def assert_gradients_close(actual, expected, tolerance):
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= tolerance * (e.abs().max() + 1e-300)


@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("T", [1, 2, 63, 64, 65, 200])
def test_equals_the_equations(T, method, reset_mode, burst):
    p = PMSNParameters(*(q.requires_grad_() for q in parameters(3, 4)))
    x = inputs(T, 2, 3).requires_grad_()
    theta = 0.7
    expected, expected_v = equations(x, p, theta, reset_mode, burst)
    output = pmsn_sequence(
        x,
        discretize(p),
        v_threshold=theta,
        reset_mode=reset_mode,
        burst=burst,
        method=method,
        return_v_seq=True,
    )
    assert torch.equal(output.spikes, expected)
    torch.testing.assert_close(output.v_seq, expected_v, rtol=0, atol=1e-9)
    assert torch.equal(output.state.v, output.v_seq[-1])
    assert_gradients_close(gradients(output.spikes, (x, *p)), gradients(expected, (x, *p)), 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    T=st.integers(1, 150),
    N=st.integers(1, 3),
    C=st.integers(1, 5),
    space=st.lists(st.integers(1, 3), max_size=2),
    k=st.integers(1, 16),
    theta=st.floats(0.05, 10.0),
    preset=st.sampled_from(["general", "sequential", "shd", "static"]),
    layout=st.sampled_from(["contiguous", "channels last", "strided", "expanded"]),
    cut=st.floats(0.0, 1.0),
    seed=st.integers(0, 10_000),
)
def test_any_shape_layout_and_cut(T, N, C, space, k, theta, preset, layout, cut, seed):
    p = parameters(C, k, seed=seed, preset=preset)
    x = inputs(T, N, C, *space, seed=seed)
    if layout == "channels last":
        x = x.movedim(2, -1).contiguous().movedim(-1, 2)
    elif layout == "strided":
        x = torch.stack([x, x + 1.0], -1)[..., 0]
    elif layout == "expanded":
        x = x[:1].expand_as(x)
    coefficients = discretize(p)
    expected, _ = equations(x, p, theta)
    whole = pmsn_sequence(x, coefficients, v_threshold=theta)
    # a spike may differ only where the membrane is within rounding of the threshold
    assert ((whole.spikes != expected).double().mean()) <= 1 / 5000
    middle = round(cut * T)
    if 0 < middle < T:
        first = pmsn_sequence(x[:middle], coefficients, v_threshold=theta)
        second = pmsn_sequence(x[middle:], coefficients, first.state, v_threshold=theta)
        assert torch.equal(torch.cat([first.spikes, second.spikes]), whole.spikes)
        for a, b in zip(second.state[1:], whole.state[1:], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_sequence_equals_steps_equals_chunks(reset_mode):
    T = 4096
    coefficients = discretize(parameters(4, 4))
    x = inputs(T, 2, 4)
    whole = pmsn_sequence(x, coefficients, reset_mode=reset_mode)
    for lengths in ([1] * T, [7, 1000, 64, 1, 3024], [2048, 2048]):
        state, spikes = None, []
        for chunk in x.split(lengths):
            if len(chunk) == 1:
                s, state = pmsn_step(chunk[0], coefficients, state, reset_mode=reset_mode)
                spikes.append(s[None])
            else:
                s, state, _ = pmsn_sequence(chunk, coefficients, state, reset_mode=reset_mode)
                spikes.append(s)
        assert torch.equal(torch.cat(spikes), whole.spikes)
        # v just below the threshold and v just above zero are the same membrane
        distance = (state.v - whole.state.v).abs()
        if reset_mode == "modulo":
            distance = torch.minimum(distance, 1.0 - distance)
        assert distance.max() < 1e-8


@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_gradients_flow_through_chunk_boundaries(reset_mode):
    p = PMSNParameters(*(q.requires_grad_() for q in parameters(3, 4)))
    x = inputs(100, 2, 3).requires_grad_()
    whole = pmsn_sequence(x, discretize(p), reset_mode=reset_mode).spikes
    coefficients, state, spikes = discretize(p), None, []
    for chunk in x.split([1, 30, 69]):
        s, state, _ = pmsn_sequence(chunk, coefficients, state, reset_mode=reset_mode)
        spikes.append(s)
    assert_gradients_close(gradients(torch.cat(spikes), (x, *p)), gradients(whole, (x, *p)), 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_gradcheck_of_the_linear_part(method):
    """Currents and final states are smooth in everything: their gradients are true ones."""
    p = parameters(2, 3)
    x, coefficients = inputs(5, 2, 2).requires_grad_(), discretize(p)
    state = PMSNState(torch.zeros(2, 2).double(), inputs(3, 2, 2, seed=5), inputs(3, 2, 2, seed=6))

    def final_state(x, h_real, h_imag, *c):
        state_ = state._replace(h_real=h_real, h_imag=h_imag)
        return pmsn_sequence(x, PMSNCoefficients(*c), state_, method=method).state[1:]

    wrt = (x, *state[1:], *coefficients)
    assert torch.autograd.gradcheck(final_state, [w.detach().requires_grad_() for w in wrt])
    assert torch.autograd.gradcheck(lambda *q: discretize(PMSNParameters(*q)), [q.requires_grad_() for q in p])
    assert torch.autograd.gradcheck(
        lambda *c: pmsn_impulse_response(PMSNCoefficients(*c), 7), [c.detach().requires_grad_() for c in coefficients]
    )


@pytest.mark.parametrize("reset_mode", ["cumulative", "memoryless"])
def test_gradcheck_without_reset(reset_mode):
    """Without a reset, and with a smooth function in place of the Heaviside, everything is differentiable."""
    p = parameters(2, 3)

    def run(x, *q):
        options = dict(reset_mode=reset_mode, surrogate_function=torch.tanh)
        return pmsn_sequence(x, discretize(PMSNParameters(*q)), **options).spikes

    assert torch.autograd.gradcheck(run, [inputs(70, 1, 2).requires_grad_(), *(q.requires_grad_() for q in p)])


def test_learnable_threshold():
    p = parameters(2, 3)
    theta = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    output = pmsn_sequence(inputs(50, 2, 2), discretize(p), v_threshold=theta)
    assert torch.equal(output.spikes, pmsn_sequence(inputs(50, 2, 2), discretize(p), v_threshold=0.8).spikes)
    (gradient,) = gradients(output.spikes, (theta,))
    assert gradient.abs() > 0


def test_float32_membrane_stays_exact():
    """8192 steps: fewer than 1e-5 of the spikes differ from float64, for the membrane and for the recurrence."""
    p = parameters(64, 4, torch.float32)
    x = inputs(8192, 8, 64, dtype=torch.float32)
    exact = pmsn_sequence(x.double(), discretize(PMSNParameters(*(q.double() for q in p))), method="recurrence")
    single = pmsn_sequence(x, discretize(p), method="recurrence")
    assert (single.spikes.double() != exact.spikes).double().mean() < 1e-5
    # the membrane alone: a neuron without hidden input (K = 0, D = 1) integrates x itself
    zero = torch.zeros(64, 1)
    coefficients = PMSNCoefficients(zero, zero, zero, zero, torch.ones(64))
    single = pmsn_sequence(x, coefficients)
    exact = pmsn_sequence(x.double(), PMSNCoefficients(*(c.double() for c in coefficients)))
    assert exact.spikes.mean() > 0.2
    assert (single.spikes.double() != exact.spikes).double().mean() < 1e-6


def test_no_spike_without_input_at_the_threshold():
    """A membrane just below the threshold must not be rounded up to it."""
    zero = torch.zeros(1, 1)
    coefficients = PMSNCoefficients(zero, zero, zero, zero, torch.ones(1))
    almost = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    x = torch.tensor([0.5, almost.item() - 0.5, 0.0, 0.0, 0.0]).reshape(5, 1, 1)
    assert pmsn_sequence(x, coefficients).spikes.sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_and_out(dtype):
    coefficients = discretize(parameters(4, 4, torch.float32))
    x = inputs(300, 2, 4, dtype=dtype)
    output = pmsn_sequence(x, coefficients, return_v_seq=True)
    assert output.spikes.dtype == dtype
    assert {t.dtype for t in (*output.state, output.v_seq)} == {torch.float32}
    assert torch.equal(output.spikes.float(), pmsn_sequence(x.float(), coefficients).spikes)


def test_autocast_does_not_touch_the_recurrence():
    coefficients = discretize(parameters(4, 4, torch.float32))
    x = inputs(300, 2, 4, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pmsn_sequence(x, coefficients)
    assert torch.equal(inside.spikes, pmsn_sequence(x, coefficients).spikes)


def test_global_context_is_the_time_average():
    coefficients = discretize(parameters(3, 4, preset="static"))
    x = inputs(4, 2, 3, 5, 5)
    average = x.mean(0, keepdim=True).expand_as(x)
    assert torch.equal(
        pmsn_sequence(x, coefficients, context="global").spikes, pmsn_sequence(average, coefficients).spikes
    )


def test_burst_counts_thresholds():
    zero = torch.zeros(1, 1)
    coefficients = PMSNCoefficients(zero, zero, zero, zero, torch.ones(1))
    x = torch.tensor([2.75, 0.5, -3.0, 1.0]).reshape(4, 1, 1)
    assert pmsn_sequence(x, coefficients, burst=True).spikes.flatten().tolist() == [2, 1, 0, 1]
    assert pmsn_sequence(x, coefficients).spikes.flatten().tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("theta", [1.0, 0.75, 2.0])
def test_gradient_of_a_burst(theta):
    """The surrogate around the last multiple of the threshold that u has passed."""
    zero = torch.zeros(1, 1)
    coefficients = PMSNCoefficients(zero, zero, zero, zero, torch.ones(1))

    def slopes(surrogate_function=None, v_threshold=theta):
        x = (theta * torch.tensor([-0.5, 0.0, 0.25, 1.0, 1.75, 2.5, 1e30])).reshape(1, -1, 1).requires_grad_()
        options = dict(reset_mode="memoryless", burst=True, surrogate_function=surrogate_function)
        spikes = pmsn_sequence(x, coefficients, v_threshold=v_threshold, **options).spikes
        return [g.flatten() for g in torch.autograd.grad(spikes.sum(), x, retain_graph=True)], spikes

    (slope,), _ = slopes()
    wanted = [1 - theta * d if d is not None else 0 for d in (None, None, 0.75, 0, 0.75, 0.5)]
    torch.testing.assert_close(slope[:-1], torch.tensor(wanted).clamp(min=0))
    (slope,), _ = slopes(straight_through())
    assert slope.tolist() == [0, 0, 1, 1, 1, 1, 1]
    # the n-th spike comes at u = n threshold
    learned = torch.tensor(theta, requires_grad=True)
    (slope,), spikes = slopes(v_threshold=learned)
    (gradient,) = torch.autograd.grad(spikes[:, :-1].sum(), learned)
    torch.testing.assert_close(gradient, -(slope[:-1] * torch.tensor([1.0, 1, 1, 1, 1, 2])).sum())


@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_the_default_fires_where_the_authors_scripts_do(reset_mode):
    """At the threshold itself: with a reset, and not without."""
    zero = torch.zeros(1, 1)
    coefficients = PMSNCoefficients(zero, zero, zero, zero, torch.ones(1))
    fires = pmsn_sequence(torch.ones(1, 1, 1), coefficients, reset_mode=reset_mode).spikes.item()
    assert fires == (reset_mode not in ("cumulative", "memoryless"))
    for strict in (False, True):
        options = dict(reset_mode=reset_mode, surrogate_function=triangle(strict=strict))
        assert pmsn_sequence(torch.ones(1, 1, 1), coefficients, **options).spikes.item() == (not strict)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
@pytest.mark.parametrize("method", METHODS)
def test_a_value_that_is_not_finite_stays_with_its_neuron_and_its_future(method, reset_mode, burst, value):
    p = PMSNParameters(*(q.requires_grad_() for q in parameters(3, 4)))
    coefficients = [c.detach().requires_grad_() for c in discretize(p)]
    state = pmsn_sequence(inputs(5, 2, 3), discretize(p)).state
    for T, t in ((2, 0), (5, 4), (130, 70), (130, 10)):
        good, bad = (inputs(T, 2, 3) for _ in range(2))
        good[t, 1, 2], bad[t, 1, 2] = 0.0, value
        for initial in (None, PMSNState(*(s.detach() for s in state))):
            results = []
            for x in (good, bad):
                x = x.requires_grad_()
                options = dict(reset_mode=reset_mode, burst=burst, method=method, return_v_seq=True)
                output = pmsn_sequence(x, PMSNCoefficients(*coefficients), initial, **options)
                results.append((output, gradients(output.spikes, (x, *coefficients))))
            (expected, wanted), (actual, gradient) = results
            since = torch.zeros(T, 2, 3, dtype=torch.bool)
            since[t:, 1, 2] = True
            for a, e in ((actual.spikes, expected.spikes), (actual.v_seq, expected.v_seq)):
                assert torch.equal(a[~since], e[~since])
            assert not actual.spikes[since].any() and not actual.v_seq[since].isfinite().any()
            for a, e in zip(actual.state, expected.state, strict=True):
                assert torch.equal(a[..., 0, :], e[..., 0, :]) and torch.equal(a[..., :2], e[..., :2])
                assert not a[..., 1, 2].isfinite().any()
            assert torch.equal(gradient[0][:, 0], wanted[0][:, 0]) and gradient[0][:, 1, 2].isnan().all()
            assert torch.equal(gradient[0][..., :2], wanted[0][..., :2])
            for a, e in zip(gradient[1:], wanted[1:], strict=True):
                assert torch.equal(a[:2], e[:2]) and not a[2].isfinite().any()


@pytest.mark.parametrize("method", METHODS)
def test_a_current_that_overflows_is_not_finite(method):
    zero = torch.zeros(1, 1)
    coefficients = PMSNCoefficients(zero, zero, zero, zero, torch.full((1,), 10.0))
    x = torch.tensor([0.15, 1e38, 0.1, 0.1]).reshape(4, 1, 1)
    output = pmsn_sequence(x, coefficients, method=method, return_v_seq=True)
    assert output.spikes.flatten().tolist() == [method != "fft", 0, 0, 0]
    assert output.v_seq.isfinite().flatten().tolist() == [method != "fft", False, False, False]


@pytest.mark.parametrize("burst", [False, True])
def test_a_membrane_that_overflows_is_above_the_threshold(burst):
    zero = torch.zeros(1, 1)
    coefficients = PMSNCoefficients(zero, zero, zero, zero, torch.ones(1))
    x = torch.tensor([3e38, 3e38, 0.0]).reshape(3, 1, 1)
    x.requires_grad_()
    output = pmsn_sequence(x, coefficients, reset_mode="cumulative", burst=burst).spikes
    assert torch.autograd.grad(output.sum(), x)[0].isfinite().all()
    spikes = output.flatten().tolist()
    assert spikes == ([torch.tensor(3e38).item(), math.inf, math.inf] if burst else [1, 1, 1])


@pytest.mark.parametrize("reset_mode", RESET_MODES)
@pytest.mark.parametrize("method", METHODS)
def test_meta_tensors_have_the_right_shapes(method, reset_mode):
    p = PMSNParameters(*(q.to("meta") for q in parameters(3, 4)))
    x = inputs(70, 2, 3, 5).to("meta")
    output = pmsn_sequence(x, p, reset_mode=reset_mode, method=method, return_v_seq=True)
    outputs = (output.spikes, output.v_seq, *output.state)
    assert all(o.is_meta and o.dtype == torch.float64 for o in outputs)
    assert [tuple(o.shape) for o in outputs] == [(70, 2, 3, 5)] * 2 + [(2, 3, 5)] + [(4, 2, 3, 5)] * 2


@pytest.mark.parametrize("reset_mode", RESET_MODES)
@pytest.mark.parametrize("T", [1, 64, 130])
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_tracing(T, reset_mode):
    coefficients = discretize(parameters(3, 4))
    traced = torch.jit.trace(lambda x: pmsn_sequence(x, coefficients, reset_mode=reset_mode).spikes, inputs(T, 2, 3))
    x = inputs(T, 2, 3, seed=9)
    assert torch.equal(traced(x), pmsn_sequence(x, coefficients, reset_mode=reset_mode).spikes)


def test_without_the_final_state():
    coefficients = discretize(parameters(3, 4))
    whole, without = (pmsn_sequence(inputs(9, 2, 3), coefficients, return_state=s) for s in (True, False))
    assert without.state is None and torch.equal(without.spikes, whole.spikes)


COEFFICIENTS = discretize(parameters(3, 4))
STATE = pmsn_sequence(inputs(5, 2, 3), COEFFICIENTS).state
X = inputs(5, 2, 3)


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, "3 channels.*axis 2.*got shape", lambda: pmsn_sequence(inputs(5, 2, 4), COEFFICIENTS)),
        (ValueError, "time axis missing", lambda: pmsn_sequence(inputs(2, 3), COEFFICIENTS)),
        (ValueError, "at least one time step", lambda: pmsn_sequence(inputs(0, 2, 3), COEFFICIENTS)),
        (TypeError, "floating.*int64", lambda: pmsn_sequence(X.long(), COEFFICIENTS)),
        (TypeError, "floating.*complex", lambda: pmsn_sequence(X + 0j, COEFFICIENTS)),
        (TypeError, "torch.Tensor, got list", lambda: pmsn_sequence([1.0], COEFFICIENTS)),
        (ValueError, "reset", lambda: pmsn_sequence(inputs(5, 7, 3), COEFFICIENTS, STATE)),
        (ValueError, "v_threshold.*above 0, got 0", lambda: pmsn_sequence(X, COEFFICIENTS, v_threshold=0)),
        (ValueError, "v_threshold.*got nan", lambda: pmsn_sequence(X, COEFFICIENTS, v_threshold=float("nan"))),
        (TypeError, "v_threshold", lambda: pmsn_sequence(X, COEFFICIENTS, v_threshold="1")),
        (
            ValueError,
            "'modulo', 'cumulative', 'memoryless', 'serial', got 'hard'",
            lambda: pmsn_sequence(X, COEFFICIENTS, reset_mode="hard"),
        ),
        (ValueError, "'local', 'global', got 'x'", lambda: pmsn_sequence(X, COEFFICIENTS, context="x")),
        (ValueError, "method must be one of", lambda: pmsn_sequence(X, COEFFICIENTS, method="scan")),
        (ValueError, "n_compartments must be at least 2, got 1", lambda: pmsn_initial_parameters(3, 1)),
        (ValueError, "channels must be at least 1, got 0", lambda: pmsn_initial_parameters(0)),
        (ValueError, "'general', .* 'static', got 'mnist'", lambda: pmsn_initial_parameters(3, 5, "mnist")),
        (ValueError, "freq must have shape", lambda: discretize(parameters(3, 4)._replace(freq=inputs(3, 5)))),
        (ValueError, r"\[C, k\]", lambda: discretize(parameters(3, 4)._replace(log_decay=inputs(3)))),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_dt_range_and_coupling_replace_those_of_the_preset():
    def draw(**changes):
        return pmsn_initial_parameters(500, preset="shd", generator=torch.Generator().manual_seed(0), **changes)

    preset, changed = draw(), draw(dt_range=(0.02, 2), coupling=1.25)
    low, high = math.log(0.02), math.log(2)
    assert low <= changed.log_dt.min() < low + 0.1 and high - 0.1 < changed.log_dt.max() <= high
    torch.testing.assert_close(changed.log_dt.mean(), torch.tensor((low + high) / 2), atol=0.15, rtol=0)
    torch.testing.assert_close(changed.freq, preset.freq / 4)  # 'shd' has coupling 5
    for name in ("log_decay", "B_real", "B_imag", "R_real", "R_imag", "D"):
        torch.testing.assert_close(getattr(changed, name), getattr(preset, name), msg=name)
    assert torch.equal(draw(dt_range=[0.5, 0.5]).log_dt, torch.full((500,), math.log(0.5)))
    assert (draw(coupling=0).freq == 0).all()


@pytest.mark.parametrize(
    ("time_scale", "low", "high", "coupling"),
    [
        (1000, 1e-3, 0.1, 5.0),
        (100, 1e-2, 1.0, 2.0),
        (40, 0.025, 1.0, 0.2 * 40**0.5),
        (4, 0.25, 1.0, 0.4),
        (0.5, 1, 1, 0.1 * 2**0.5),
    ],
)
def test_time_scale_is_a_range_and_a_coupling(time_scale, low, high, coupling):
    def draw(**changes):
        return pmsn_initial_parameters(300, 4, "shd", generator=torch.Generator().manual_seed(0), **changes)

    for actual, expected in zip(
        draw(time_scale=time_scale), draw(dt_range=(low, high), coupling=coupling), strict=True
    ):
        torch.testing.assert_close(actual, expected)


def test_the_general_preset_is_a_time_scale_of_a_hundred_steps():
    general, other = (
        pmsn_initial_parameters(50, 5, preset, generator=torch.Generator().manual_seed(1), time_scale=time_scale)
        for preset, time_scale in (("general", None), ("static", 100))
    )
    for actual, expected in zip(general, other, strict=True):
        torch.testing.assert_close(actual, expected)


def test_half_precision_parameters_keep_float32_coefficients():
    half = PMSNParameters(*(q.half() for q in parameters(3, 4)))
    coefficients = discretize(half)
    assert {c.dtype for c in coefficients} == {torch.float32}
    single = discretize(PMSNParameters(*(q.float() for q in half)))
    for a, b in zip(coefficients, single, strict=True):
        torch.testing.assert_close(a, b)
