"""Bad arguments of the functions: a TypeError or ValueError that names the argument, its value and what is allowed."""

import math

import numpy as np
import pytest
import torch

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import (
    PMSNParameters,
    discretize,
    hidden_modes,
    multicompartment_sequence,
    pmsn_impulse_response,
    pmsn_initial_parameters,
    pmsn_initial_state,
    tclif_initial_state,
    tclif_sequence,
)

T, N, C, k = 3, 2, 4, 4
X = torch.randn(T, N, C)
PARAMETERS = pmsn_initial_parameters(C)
COEFFICIENTS = discretize(PARAMETERS)
PMSN_STATE = pmsn_initial_state(X[0], k)
TCLIF_STATE = tclif_initial_state(X[0])
CHAIN = {"leak": (0.5, 0.5), "up": (0.5,), "down": (-0.5,), "gain": (0.5, 0.5), "reset": (0.1,)}
NAN, INF = float("nan"), float("inf")
ROOMS = pytest.mark.parametrize("room", [functional, kernels], ids=["functional", "kernels"])


def run_chain(x=X, **changes):
    return multicompartment_sequence(x, **{**CHAIN, **changes})


def sequences(room):
    """Each neuron's sequence function with all that it needs but the input."""
    return [
        lambda x, **options: room.pmsn_sequence(x, COEFFICIENTS, **options),
        lambda x, **options: room.pmsn_sequence(x, PARAMETERS, **options),
        lambda x, **options: room.tclif_sequence(x, -0.5, 0.5, **options),
        run_chain,
    ]


def steps(room):
    return [
        lambda x, **options: room.pmsn_step(x, COEFFICIENTS, **options),
        lambda x, **options: room.tclif_step(x, -0.5, 0.5, **options),
    ]


@ROOMS
@pytest.mark.filterwarnings("ignore:.*nested tensors is in prototype", "ignore:Sparse CSR")
@pytest.mark.parametrize(
    ("convert", "message"),
    [
        (lambda x: x.to_sparse(), "x_seq must be a dense tensor, got layout torch.sparse_coo; .* x_seq.to_dense"),
        (lambda x: x[0].to_sparse_csr(), "x_seq must be a dense tensor, got layout torch.sparse_csr"),
        (lambda x: x.to_mkldnn(), "x_seq must be a dense tensor, got layout torch._mkldnn"),
        (lambda x: torch.nested.nested_tensor([x[0], x[1]]), "x_seq must be a dense tensor, got a nested tensor"),
        (
            lambda x: torch.nested.nested_tensor([x[0], x[1]], layout=torch.jagged),
            "x_seq must be a dense tensor, got a nested tensor; .*to_padded_tensor",
        ),
        (
            lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8),
            r"x_seq must be a real floating-point tensor .*got torch.quint8; .*x_seq.dequantize\(\)",
        ),
        (lambda x: x.to(torch.complex64), "x_seq must be a real floating-point tensor .*got torch.complex64"),
        (lambda x: x.to(torch.float8_e4m3fn), "x_seq must be a real floating-point tensor .*got torch.float8_e4m3fn"),
        (lambda x: x > 0, "x_seq must be a real floating-point tensor .*got torch.bool"),
        (lambda x: x.numpy(), "x_seq must be a torch.Tensor, got ndarray"),
        (lambda x: None, "x_seq must be a torch.Tensor, got NoneType"),
    ],
)
def test_input_that_is_no_dense_real_tensor(room, convert, message):
    for run in sequences(room):
        with pytest.raises(TypeError, match=message):
            run(convert(X))


@ROOMS
@pytest.mark.parametrize("shape", [(T, 0, C), (1, 0, C), (T, N, C, 0)])
def test_steps_of_size_zero_are_no_error(room, shape):
    """An empty batch is what is left of a data set now and then."""
    for method in functional.METHODS if room is functional else [None]:
        p = PMSNParameters(*(q.clone().requires_grad_() for q in PARAMETERS))
        x = torch.zeros(shape, requires_grad=True)
        options = {} if method is None else {"method": method}
        output = room.pmsn_sequence(x, p, return_v_seq=True, **options)
        assert output.spikes.shape == output.v_seq.shape == shape
        assert output.state.h_imag.shape == (k, *shape[1:])
        gradients = torch.autograd.grad(output.spikes.sum(), (x, *p), allow_unused=True)
        assert all(g is None or not g.any() for g in gradients)
    output = room.tclif_sequence(torch.zeros(shape), -0.5, 0.5, return_v_seq=True)
    assert output.spikes.shape == output.v_seq.shape == shape and output.state.v.shape == shape[1:]
    for step in steps(room):
        assert step(torch.zeros(shape[1:]))[0].shape == shape[1:]


THRESHOLDS = [
    (torch.tensor(1j), TypeError, "v_threshold must be a real floating-point tensor .*got torch.complex64"),
    (torch.tensor(1), TypeError, "v_threshold must be a real floating-point tensor .*got torch.int64"),
    (torch.tensor(True), TypeError, "v_threshold must be a real floating-point tensor .*got torch.bool"),
    (torch.ones(1).to_sparse(), TypeError, "v_threshold must be a dense tensor"),
    (torch.ones(2), ValueError, r"v_threshold must be one number, got a tensor of shape \(2,\)"),
    (torch.ones(1, 1, 1, 1), ValueError, r"v_threshold must be one number, got a tensor of shape \(1, 1, 1, 1\)"),
    (torch.tensor(NAN), ValueError, "v_threshold must be a finite number above 0, got nan"),
    (1j, TypeError, "v_threshold must be a real number, got 1j"),
    ("1", TypeError, "v_threshold must be a real number, got '1'"),
    (None, TypeError, "v_threshold must be a real number, got None"),
    (True, TypeError, "v_threshold must be a real number, got True"),
    (-INF, ValueError, "v_threshold must be a finite number above 0, got -inf"),
    (1e39, ValueError, r"v_threshold must be from 1.18e-38 to 8.51e\+37 in torch.float32, got 1e\+39"),
    (1e-39, ValueError, r"v_threshold must be from 1.18e-38 to 8.51e\+37 in torch.float32, got 1e-39"),
    (1e-50, ValueError, r"v_threshold must be from 1.18e-38 to 8.51e\+37 in torch.float32, got 1e-50"),
    (torch.tensor(1e-39), ValueError, "v_threshold must be from .* in torch.float32, got 1.0"),
    (torch.tensor(1e300, dtype=torch.float64), ValueError, r"v_threshold must be from .* torch.float32, got 1e\+300"),
]


@ROOMS
@pytest.mark.parametrize(("value", "error", "message"), THRESHOLDS)
def test_threshold(room, value, error, message):
    for run, x in (*((run, X) for run in sequences(room)), *((run, X[0]) for run in steps(room))):
        with pytest.raises(error, match=message):
            run(x, v_threshold=value)


@ROOMS
def test_the_range_of_thresholds_is_that_of_the_dtype(room):
    for dtype, extremes in ((torch.float32, (2.0**-126, 2.0**126)), (torch.float64, (2.0**-1022, 2.0**1022))):
        for theta, beyond in zip(extremes, (0.0, INF), strict=True):
            x = X.to(dtype) * theta
            for run in sequences(room):
                assert run(x, v_threshold=theta).spikes.dtype == dtype
                with pytest.raises(ValueError, match=f"v_threshold must be from .* in {dtype}, got"):
                    run(x, v_threshold=math.nextafter(theta, beyond))


STATES = [
    (tuple(PMSN_STATE), tuple(TCLIF_STATE), "tuple"),
    (list(PMSN_STATE), list(TCLIF_STATE), "list"),
    (TCLIF_STATE, PMSN_STATE, "(TCLIF|PMSN)State"),
    (PMSN_STATE.v, TCLIF_STATE.v, r"a Tensor of shape \(2, 4\)"),
    ({"v": 0}, {"v": 0}, r"\{'v': 0\}"),
    (0.0, 0.0, "0.0"),
    ("", "", "''"),
]


@ROOMS
@pytest.mark.parametrize(("pmsn", "tclif", "got"), STATES)
def test_states_of_another_type(room, pmsn, tclif, got):
    """Also a plain tuple of the right tensors: snnTorch's order of TC-LIF's two is not ours."""
    for call in (
        lambda: room.pmsn_sequence(X, COEFFICIENTS, pmsn),
        lambda: room.pmsn_step(X[0], PARAMETERS, pmsn),
    ):
        with pytest.raises(TypeError, match=rf"state must be a PMSNState\(v, h_real, h_imag\), got {got}"):
            call()
    for call in (lambda: room.tclif_sequence(X, -0.5, 0.5, tclif), lambda: room.tclif_step(X[0], -0.5, 0.5, tclif)):
        with pytest.raises(TypeError, match=rf"state must be a TCLIFState\(v, v_dendrite\), got {got}"):
            call()


BAD_FIELDS = [
    (None, TypeError, "must be a torch.Tensor, got NoneType"),
    (0.0, TypeError, "must be a torch.Tensor, got float"),
    (torch.zeros(1), ValueError, r"has shape \(1,\), but the input asks for"),
    (torch.zeros(1, dtype=torch.int64), TypeError, "must be a real floating-point tensor .*got torch.int64"),
    (torch.zeros(1, dtype=torch.complex64), TypeError, "must be a real floating-point tensor .*got torch.complex64"),
    (torch.zeros(1).to_sparse(), TypeError, "must be a dense tensor"),
]


@ROOMS
@pytest.mark.parametrize(("value", "error", "message"), BAD_FIELDS)
def test_states_with_bad_fields(room, value, error, message):
    for name in PMSN_STATE._fields:
        with pytest.raises(error, match=f"state {name} {message}"):
            room.pmsn_sequence(X, COEFFICIENTS, PMSN_STATE._replace(**{name: value}))
    for name in TCLIF_STATE._fields:
        with pytest.raises(error, match=f"state {name} {message}"):
            room.tclif_sequence(X, -0.5, 0.5, TCLIF_STATE._replace(**{name: value}))
    if value is not None:  # the state at rest
        with pytest.raises(error, match=f"state v {message}"):
            run_chain(state=value)


@ROOMS
@pytest.mark.parametrize("value", [None, "x", 1.0, X, tuple(COEFFICIENTS), list(PARAMETERS), PMSN_STATE, {}])
def test_coefficients_of_another_type(room, value):
    expected = r"coefficients must be a PMSNCoefficients\(.*\) or a PMSNParameters\(log_dt, .*\), got"
    for call in (lambda: room.pmsn_sequence(X, value), lambda: room.pmsn_step(X[0], value)):
        with pytest.raises(TypeError, match=expected):
            call()
    with pytest.raises(TypeError, match=r"parameters must be a PMSNParameters\(log_dt, .*\), got"):
        room.discretize(value)
    with pytest.raises(TypeError, match=r"coefficients must be a PMSNCoefficients\(E_real, .*\), got"):
        pmsn_impulse_response(value, 3)


@ROOMS
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (None, TypeError, "must be a torch.Tensor, got NoneType"),
        (1.0, TypeError, "must be a torch.Tensor, got float"),
        (torch.zeros(C, k, dtype=torch.complex64), TypeError, "must be a real floating-point tensor"),
        (torch.zeros(C, k, dtype=torch.int32), TypeError, "must be a real floating-point tensor"),
        (torch.zeros(C, k).to_sparse(), TypeError, "must be a dense tensor"),
        (torch.zeros(C, k, 1), ValueError, r"must have shape .* got \(4, 4, 1\)"),
        (torch.zeros(C - 1), ValueError, r"must have shape .* got \(3,\)"),
        (torch.zeros(()), ValueError, r"must have shape .* got \(\)"),
    ],
)
def test_coefficients_and_parameters_with_bad_fields(room, value, error, message):
    for given in (COEFFICIENTS, PARAMETERS):
        for name in given._fields:
            bad = given._replace(**{name: value})
            with pytest.raises(error, match=message) as raised:
                room.pmsn_sequence(X, bad)
            # of shapes that do not agree, the one that the others are held against may be the wrong one
            assert error is ValueError or str(raised.value).startswith(name)
            with pytest.raises(error, match=message):
                room.discretize(bad) if given is PARAMETERS else pmsn_impulse_response(bad, 3)


COUPLINGS = [
    ("0.5", TypeError, "must be a real number, got '0.5'"),
    (None, TypeError, "must be a real number, got None"),
    (True, TypeError, "must be a real number, got True"),
    (1j, TypeError, "must be a real number, got 1j"),
    ([0.5], TypeError, r"must be a real number, got \[0.5\]"),
    (np.ones(C), TypeError, r"must be a real number, got a ndarray of shape \(4,\)"),
    (NAN, ValueError, "must be finite, got nan"),
    (INF, ValueError, "must be finite, got inf"),
    (torch.tensor(1j), TypeError, "must be a real floating-point tensor .*got torch.complex64"),
    (torch.tensor(1), TypeError, "must be a real floating-point tensor .*got torch.int64"),
    (torch.ones(C).to_sparse(), TypeError, "must be a dense tensor"),
    (torch.ones(3), ValueError, r"must broadcast over one step of shape \(2, 4\), got shape \(3,\)"),
    (torch.ones(C, 1), ValueError, r"must broadcast over one step of shape \(2, 4\), got shape \(4, 1\)"),
    # these broadcast, but to a larger step
    (torch.ones(5, N, C), ValueError, r"must broadcast over one step of shape \(2, 4\), got shape \(5, 2, 4\)"),
    (torch.ones(1, N, C), ValueError, r"must broadcast over one step of shape \(2, 4\), got shape \(1, 2, 4\)"),
]


@ROOMS
@pytest.mark.parametrize(("value", "error", "message"), COUPLINGS)
def test_couplings_of_tclif(room, value, error, message):
    for name in ("b1", "b2", "gamma"):
        changed = {"b1": -0.5, "b2": 0.5, name: value}
        for call in (lambda c=changed: room.tclif_sequence(X, **c), lambda c=changed: room.tclif_step(X[0], **c)):
            with pytest.raises(error, match=f"{name} {message}"):
                call()
    for leak in ((value, 1.0), [1.0, value]):
        with pytest.raises(error, match=f"leak {message}"):
            room.tclif_sequence(X, -0.5, 0.5, leak=leak)


@pytest.mark.parametrize("size", [1, 3, 5])
def test_couplings_do_not_enlarge_a_step_of_one_number(size):
    with pytest.raises(ValueError, match=rf"b1 must broadcast over one step of shape \(1,\), got shape \(1, {size}\)"):
        tclif_sequence(torch.ones(T, 1), torch.full((1, size), -0.5), 0.5)


@ROOMS
@pytest.mark.parametrize("leak", [None, 1.0, "11", (1.0,), (1.0, 1.0, 1.0), torch.ones(2), {1.0: 1, 0.9: 2}])
def test_leak_is_two_numbers(room, leak):
    for call in (room.tclif_sequence, room.tclif_step):
        with pytest.raises(TypeError, match=r"leak must be two numbers \(a1, a2\), got"):
            call(X, -0.5, 0.5, leak=leak)


@pytest.mark.parametrize(("value", "error", "message"), COUPLINGS)
@pytest.mark.parametrize("name", CHAIN)
def test_coefficients_of_the_chain(name, value, error, message):
    with pytest.raises(error, match=f"{name} {message}"):
        run_chain(**{name: (value, *CHAIN[name][1:])})


@pytest.mark.parametrize("name", CHAIN)
def test_coefficients_of_the_chain_that_are_no_series(name):
    for value in (None, 0.5, "0.5", torch.tensor(0.5), {0.5}):
        with pytest.raises(TypeError, match=f"{name} must be a series of numbers or tensors, got"):
            run_chain(**{name: value})
    length = len(CHAIN[name])
    with pytest.raises(TypeError, match=f"{name} must be a real floating-point tensor"):
        run_chain(**{name: torch.ones(length, dtype=torch.int64)})
    with pytest.raises(ValueError, match=rf"{name} must broadcast over one step of shape \(2, 4\), got shape \(3,\)"):
        run_chain(**{name: torch.ones(length, 3)})


@ROOMS
@pytest.mark.parametrize("value", ["no", "", 0, 1, 1.0, NAN, None, [], [True], torch.tensor(True), np.ones(1, bool)])
def test_flags(room, value):
    wanted = ("return_v_seq",) if room is functional else ("return_v_seq", "return_state")
    calls = [
        (lambda f: room.pmsn_sequence(X, COEFFICIENTS, **f), ("burst", *wanted)),
        (lambda f: room.pmsn_step(X[0], COEFFICIENTS, **f), ("burst",)),
        (lambda f: room.tclif_sequence(X, -0.5, 0.5, **f), ("detach_reset", *wanted)),
        (lambda f: room.tclif_step(X[0], -0.5, 0.5, **f), ("detach_reset",)),
        (lambda f: run_chain(**f), ("detach_reset", "return_v_seq")),
    ]
    for call, flags in calls:
        for flag in flags:
            with pytest.raises(TypeError, match=f"{flag} must be True or False, got"):
                call({flag: value})
            call({flag: np.True_})


@ROOMS
@pytest.mark.parametrize("value", ["triangle", 1.0, 0, (), {}, X])
def test_surrogate_functions_that_cannot_be_called(room, value):
    for run, x in (*((run, X) for run in sequences(room)), *((run, X[0]) for run in steps(room))):
        with pytest.raises(TypeError, match=r"surrogate_function must be a function of \(.* - v_threshold\) or None"):
            run(x, surrogate_function=value)


@pytest.mark.parametrize("value", [None, 5, [], "x", True])
def test_choices(value):
    error = ValueError if isinstance(value, str) else TypeError
    for room in (functional, kernels):
        backend = () if room is functional else ("backend",)
        for name in ("method", "reset_mode", "context", *backend):
            with pytest.raises(error, match=f"{name} must be one of '.*, got"):
                room.pmsn_sequence(X, COEFFICIENTS, **{name: value})
        for name in ("soma_feedback", *backend):
            with pytest.raises(error, match=f"{name} must be one of '.*, got"):
                room.tclif_sequence(X, -0.5, 0.5, **{name: value})
    with pytest.raises(error, match=r"backend must be one of '.*, got"):
        kernels.discretize(PARAMETERS, value)
    for call in (lambda: hidden_modes(5, value), lambda: pmsn_initial_parameters(C, 5, value)):
        with pytest.raises(error, match="preset must be one of 'general', 'sequential', 'shd', 'static', got"):
            call()


@pytest.mark.parametrize("value", [None, 4.0, "4", True, torch.tensor(4), NAN])
def test_sizes_that_are_no_integers(value):
    for name, call in (
        ("channels", lambda: pmsn_initial_parameters(value)),
        ("n_compartments", lambda: pmsn_initial_parameters(C, value)),
        ("n_compartments", lambda: hidden_modes(value)),
        ("T", lambda: pmsn_impulse_response(COEFFICIENTS, value)),
        ("k", lambda: pmsn_initial_state(X[0], value)),
    ):
        with pytest.raises(TypeError, match=f"{name} must be an integer, got"):
            call()


def test_sizes_that_are_too_small():
    for T_ in (0, -1):
        with pytest.raises(ValueError, match=f"T must be at least 1, got {T_}"):
            pmsn_impulse_response(COEFFICIENTS, T_)
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        pmsn_initial_state(X[0], 0)


@pytest.mark.parametrize("value", ["float32", float, 32, torch.int64, torch.complex64, torch.float8_e4m3fn])
def test_dtypes(value):
    for call in (
        lambda: pmsn_initial_parameters(C, dtype=value),
        lambda: pmsn_initial_state(X[0], k, value),
        lambda: tclif_initial_state(X[0], value),
    ):
        with pytest.raises(TypeError, match=r"dtype must be one of torch.float32, torch.float16, .* got"):
            call()


def test_other_arguments_of_initial_values():
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got 0"):
        pmsn_initial_parameters(C, generator=0)
    with pytest.raises(TypeError, match=r"device must be a torch.device or its name, got 0.5"):
        pmsn_initial_parameters(C, device=0.5)
    with pytest.raises(ValueError, match=r"device must be a torch.device or its name, got 'gpu'"):
        pmsn_initial_parameters(C, device="gpu")
    for call in (lambda: pmsn_initial_state((2, 4), k), lambda: tclif_initial_state((2, 4))):
        with pytest.raises(TypeError, match=r"x must be a torch.Tensor, got \(2, 4\)"):
            call()
