"""Every backend against the reference on the numbers at the ends of a dtype, and beyond.

Rounding differs between backends, so what is compared is what rounding does not change. Where all arithmetic is exact,
that is everything, in float32 too; with coefficients that hit no threshold exactly, the spikes in float64.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import RESET_MODES, SOMA_FEEDBACK, PMSNCoefficients, PMSNState, TCLIFState

C = 4
DTYPES = st.sampled_from([torch.float32, torch.float64])
NOT_FINITE = [math.nan, math.inf, -math.inf]
TINY = [0.0, -0.0, 5e-324, 1e-310, -1e-310, 1e-40, -1e-45, 1e-30]
HUGE = [1e30, -1e30]
FEW_BITS = st.integers(-16, 16).map(lambda n: n / 8)
THRESHOLDS = [1.0, 1.25, 0.75, 2.0**-126, 1.5 * 2.0**-126, 2.0**-60, 2.0**60, 1.75 * 2.0**125, 2.0**126]
"""Few bits, from one end of what float32 allows to the other."""


def examples(number):
    checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # the fixture is the same for every example
    return settings(deadline=None, max_examples=number, suppress_health_check=checks)


def sequences(values, longest):
    """[T, 1, C] in float64."""
    steps = st.lists(st.lists(values, min_size=C, max_size=C), min_size=1, max_size=longest)
    return steps.map(lambda steps: torch.tensor(steps, dtype=torch.float64).unsqueeze(1))


def choices(*values):
    """[C] in float32."""
    return st.lists(st.sampled_from(values), min_size=C, max_size=C).map(torch.tensor)


def assert_equal(actual, expected, tolerance=0.0):
    """Spikes exactly; outputs too, or nearly, where they are finite, and not finite where they are not."""
    assert torch.equal(actual.spikes, expected.spikes)
    for value, want in zip((actual.v_seq, *actual.state), (expected.v_seq, *expected.state), strict=True):
        finite = want.isfinite()
        assert torch.equal(value.isfinite(), finite)
        torch.testing.assert_close(value[finite], want[finite], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reset_mode", RESET_MODES)
@examples(40)
@given(
    x=sequences(FEW_BITS | st.sampled_from([-0.0, *NOT_FINITE]), 8),
    theta=st.sampled_from(THRESHOLDS),
    E=choices(-1.0, -0.5),
    K=st.tuples(*[choices(0.0, 0.25, -0.5)] * 2),
    D=choices(0.0, -0.0, 0.5, -1.0),
    v=st.sampled_from([None, 0.0, -0.0, 0.5, *NOT_FINITE]),
    burst=st.booleans(),
    dtype=DTYPES,
)
def test_pmsn_where_arithmetic_is_exact(every_backend, reset_mode, x, theta, E, K, D, v, burst, dtype):
    zero, one = torch.zeros(C, 1), torch.ones(1, C)
    coefficients = PMSNCoefficients(E[:, None], zero, K[0][:, None], K[1][:, None], D)
    state = None if v is None else PMSNState(one * v * theta, torch.zeros(1, 1, C), torch.zeros(1, 1, C))
    x, coefficients = (x * (theta / 4)).to(dtype), PMSNCoefficients(*(c.to(dtype) for c in coefficients))
    state = None if v is None else PMSNState(*(s.to(dtype) for s in state))
    options = dict(v_threshold=theta, reset_mode=reset_mode, burst=burst, return_v_seq=True)
    expected = functional.pmsn_sequence(x, coefficients, state, **options)
    actual = kernels.pmsn_sequence(x, coefficients, state, backend=every_backend.name, **options)
    if v is None or math.isfinite(v):
        assert_equal(actual, expected)
    else:  # only what becomes of the membrane is promised
        assert torch.equal(actual.spikes, expected.spikes)
        assert not actual.v_seq.isfinite().any() and not expected.v_seq.isfinite().any()


@pytest.mark.parametrize("reset_mode", RESET_MODES)
@examples(40)
@given(
    x=sequences(FEW_BITS | st.sampled_from([*TINY, *HUGE, *NOT_FINITE]), 12),
    theta=st.sampled_from([0.5, 1.0, 4.0]),
    D=choices(1.0, -1.0, 0.5, 0.0),
    dtype=DTYPES,
)
def test_pmsn_that_integrates_extremes(every_backend, reset_mode, x, theta, D, dtype):
    """Without hidden compartments: the input itself reaches the membrane."""
    zero = torch.zeros(C, 1)
    coefficients = PMSNCoefficients(*(c.to(dtype) for c in (zero - 0.5, zero, zero, zero, D)))
    x = x.to(dtype)
    options = dict(v_threshold=theta, reset_mode=reset_mode, return_v_seq=True)
    expected = functional.pmsn_sequence(x, coefficients, **options)
    actual = kernels.pmsn_sequence(x, coefficients, backend=every_backend.name, **options)
    # a sum of several huge numbers is rounded, and in another order; the reference's v has a fixed number of digits
    assert_equal(actual, expected, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
@examples(25)
@given(
    x=sequences(st.floats(-3.0, 3.0) | st.sampled_from([*TINY, *HUGE, *NOT_FINITE]), 20),
    with_state=st.booleans(),
    v_threshold=st.sampled_from([0.7, 1.0, 3.0]),
)
def test_pmsn_in_float64(tools, every_backend, reset_mode, final, x, with_state, v_threshold):
    _, coefficients, state = tools.pmsn_case((1, 1, C), 2, torch.float64, with_state)
    options = dict(v_threshold=v_threshold, reset_mode=reset_mode, return_v_seq=True, return_state=final)
    expected = functional.pmsn_sequence(x, coefficients, state, **options)
    actual = kernels.pmsn_sequence(x, coefficients, state, backend=every_backend.name, **options)
    assert torch.equal(actual.spikes, expected.spikes)
    assert torch.equal(actual.v_seq.isfinite(), expected.v_seq.isfinite())


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@examples(40)
@given(
    x=sequences(FEW_BITS | st.sampled_from([-0.0, *NOT_FINITE]), 6),
    theta=st.sampled_from(THRESHOLDS),
    b1=st.sampled_from([-0.5, 0.0, 0.5]),
    b2=st.sampled_from([0.5, 0.0, -0.5]),
    gamma=st.sampled_from([0.0, 0.5]),
    state=st.sampled_from([None, (0.0, -0.0), (0.5, -0.5), (math.nan, 0.0), (0.0, math.inf), (-math.inf, 0.0)]),
    dtype=DTYPES,
)
def test_tclif_where_arithmetic_is_exact(every_backend, soma_feedback, x, theta, b1, b2, gamma, state, dtype):
    x = (x * (theta / 4)).to(dtype)
    if state is not None:
        state = TCLIFState(*(torch.full((1, C), s * theta, dtype=dtype) for s in state))
    options = dict(gamma=gamma * theta, v_threshold=theta, soma_feedback=soma_feedback, return_v_seq=True)
    expected = functional.tclif_sequence(x, b1, b2, state, **options)
    assert_equal(kernels.tclif_sequence(x, b1, b2, state, backend=every_backend.name, **options), expected)


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@examples(40)
@given(
    x=sequences(st.floats(-3.0, 3.0) | st.sampled_from([*TINY, *HUGE, *NOT_FINITE]), 20),
    with_state=st.booleans(),
    v_threshold=st.sampled_from([0.7, 1.0, 3.0]),
)
def test_tclif_in_float64(tools, every_backend, soma_feedback, x, with_state, v_threshold):
    _, b1, b2, state = tools.tclif_case((1, 1, C), (C,), torch.float64, with_state)
    options = dict(v_threshold=v_threshold, soma_feedback=soma_feedback, return_v_seq=True)
    expected = functional.tclif_sequence(x, b1, b2, state, **options)
    actual = kernels.tclif_sequence(x, b1, b2, state, backend=every_backend.name, **options)
    assert torch.equal(actual.spikes, expected.spikes)
    assert torch.equal(actual.v_seq.isfinite(), expected.v_seq.isfinite())


@examples(40)
@given(
    x=sequences(st.floats(-3.0, 3.0, width=32) | st.sampled_from([*TINY, *HUGE, 3e38, *NOT_FINITE]), 40),
    with_state=st.booleans(),
    pmsn=st.booleans(),
    option=st.integers(0, 2),
)
def test_nothing_reaches_back_or_across_in_float32(tools, every_backend, x, with_state, pmsn, option):
    """Up to the first value that is not finite a neuron is what it is without it; then it is silent, for good."""
    x = x.float()
    if pmsn:
        case = tools.pmsn_case((1, 1, C), 2, torch.float32, with_state)[1:]
        function, options = kernels.pmsn_sequence, dict(reset_mode=RESET_MODES[option])
    else:
        case = tools.tclif_case((1, 1, C), (C,), torch.float32, with_state)[1:]
        function, options = kernels.tclif_sequence, dict(soma_feedback=SOMA_FEEDBACK[option % 2])
    options |= dict(return_v_seq=True, backend=every_backend.name)
    spoilt = (~x.isfinite()).cumsum(0) > 0
    actual = function(x, *case, **options)
    expected = function(x.masked_fill(spoilt, 0.0), *case, **options)
    assert torch.equal(actual.spikes[~spoilt], expected.spikes[~spoilt])
    torch.testing.assert_close(actual.v_seq[~spoilt], expected.v_seq[~spoilt], rtol=0, atol=0, equal_nan=True)
    assert not actual.spikes[spoilt].any() and not actual.v_seq[spoilt].isfinite().any()
    assert ((actual.spikes == 0) | (actual.spikes == 1)).all()
