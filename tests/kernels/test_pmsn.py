"""The fused PMSN equals the reference: outputs, final state, and every gradient."""

import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import PMSNState
from pmsn_plugins.functional.pmsn import RESET_MODES
from pmsn_plugins.kernels import cpu
from pmsn_plugins.kernels.plan import checkpoint_interval, cpu_layout

SHAPES = [(7, 3, 5), (1, 2, 3), (130, 2, 3, 5, 7), (70, 20, 32), (5, 2, 3, 16), (200, 1, 1), (4, 9, 40)]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
@pytest.mark.parametrize("k", [1, 2, 3, 4, 8, 16])
def test_float64(tools, cpu_kernels, poisoned, k, reset_mode, burst, with_state):
    for shape in SHAPES:
        case = tools.pmsn_case(shape, k, torch.float64, with_state)
        options = dict(reset_mode=reset_mode, burst=burst, v_threshold=0.7)
        expected = tools.run(functional.pmsn_sequence, *case, **options)
        tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend="cpu", **options), expected, 1e-9)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("final_state", [False, True])
@pytest.mark.parametrize("reset_mode", ["modulo", "serial"])
@pytest.mark.parametrize("shape", [(70, 32, 128), (17, 1024, 60), (33, 256, 144)])
def test_steps_that_lie_a_multiple_of_eight_pages_apart(
    tools, cpu_kernels, poisoned, shape, reset_mode, final_state, instruction_set
):
    """There backward copies groups of columns: whole ones, and fewer where a strip has no more."""
    assert math.prod(shape[1:]) * 8 % (8 * 4096) == 0
    case = tools.pmsn_case(shape, 3, torch.float64, False)
    options = dict(reset_mode=reset_mode, v_threshold=0.7, final_state=final_state)
    if cpu.library.pmsn_use_instruction_set(instruction_set.encode()):
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        actual = tools.run(kernels.pmsn_sequence, *case, backend="cpu", **options)
    finally:
        cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())
    tools.assert_equal(actual, tools.run(functional.pmsn_sequence, *case, **options), 1e-9)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
@pytest.mark.parametrize("shape", [(7, 3, 5), (100, 2, 3, 5, 7), (4, 9, 40)])
@pytest.mark.parametrize("burst", [False, True])
def test_float64_on_every_backend(tools, backend, poisoned, shape, reset_mode, burst, with_state):
    case = tools.pmsn_case(shape, 3, torch.float64, with_state, backend.device)
    options = dict(reset_mode=reset_mode, burst=burst, v_threshold=0.7)
    expected = tools.run(functional.pmsn_sequence, *case, **options)
    tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend=backend.name, **options), expected, 1e-9)


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 9), st.integers(1, 40), st.integers(1, 20)),
    k=st.integers(1, 6),
    v_threshold=st.floats(0.05, 5.0),
    reset_mode=st.sampled_from(RESET_MODES),
    with_state=st.booleans(),
)
@example(shape=(35, 1, 1, 13), k=1, v_threshold=1.0, reset_mode="modulo", with_state=True)
def test_any_shape(tools, shape, k, v_threshold, reset_mode, with_state):
    if not kernels.backends()["cpu"].available:
        pytest.skip(kernels.backends()["cpu"].reason)
    case = tools.pmsn_case(shape, k, torch.float64, with_state)
    options = dict(reset_mode=reset_mode, v_threshold=v_threshold)
    expected = tools.run(functional.pmsn_sequence, *case, **options)
    tools.assert_equal(
        tools.run(kernels.pmsn_sequence, *case, backend="cpu", **options), expected, 1e-9, complex_state=True
    )


def with_poles_all_around(coefficients):
    """Of all frequencies, two of them real."""
    generator, like = torch.Generator().manual_seed(0), coefficients.E_real
    radius, turn = torch.rand(2, like.numel(), generator=generator, dtype=torch.float64)
    turn[0], turn[-1] = 0.5, 0
    E = torch.polar(0.5 + 0.499 * radius, 2 * math.pi * turn).view(like.shape).to(like.device) - 1
    return coefficients._replace(E_real=E.real.to(like), E_imag=E.imag.to(like))


@pytest.mark.parametrize("k", [1, 3, 4, 6])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
@pytest.mark.parametrize("T", [1, 3, 4, 15, 16, 17, 32, 40, 300])
def test_without_the_final_state(tools, backend, poisoned, T, reset_mode, k):
    """Sequences whose state nobody asks for take other routes to the same numbers."""
    for step in [(3, 5), (2, 3, 5, 7), (20, 32), (1, 1)]:
        x, coefficients, _ = tools.pmsn_case((T, *step), k, torch.float64, False, backend.device)
        case = x, with_poles_all_around(coefficients) if step == (20, 32) else coefficients, None
        options = dict(reset_mode=reset_mode, v_threshold=0.7, final_state=False)
        expected = tools.run(functional.pmsn_sequence, *case, **options)
        tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend=backend.name, **options), expected, 1e-9)


@pytest.mark.parametrize("fire", ["strict", "burst", "learnable threshold"])
def test_short_sequences_fire_every_way(tools, cpu_kernels, fire):
    x, coefficients, _ = tools.pmsn_case((6, 4, 20), 4, torch.float64, False)
    v_threshold = torch.tensor(0.7, dtype=torch.float64, requires_grad=fire == "learnable threshold")
    surrogate_function = None
    if fire == "strict":
        surrogate = pytest.importorskip("snntorch.surrogate")
        surrogate_function = surrogate.fast_sigmoid()
    options = dict(v_threshold=v_threshold, surrogate_function=surrogate_function, burst=fire == "burst")
    expected = tools.run(functional.pmsn_sequence, x, coefficients, None, final_state=False, **options)
    actual = tools.run(kernels.pmsn_sequence, x, coefficients, None, final_state=False, backend="cpu", **options)
    tools.assert_equal(actual, expected, 1e-6 if fire == "strict" else 1e-9)  # snnTorch's spikes are float32


@settings(deadline=None, max_examples=80)
@given(
    shape=st.tuples(st.integers(1, 17), st.integers(1, 40), st.integers(1, 30), st.sampled_from([1, 3, 16, 37, 128])),
    k=st.integers(1, 5),
    v_threshold=st.sampled_from([1.0, 0.7]),
    reset_mode=st.sampled_from(RESET_MODES),
    fire=st.sampled_from(["spike", "burst", "own surrogate"]),
)
def test_short_sequences_of_any_width(tools, shape, k, v_threshold, reset_mode, fire):
    """Narrow layers are done several rows at a time, wide ones in parts of a row."""
    if not kernels.backends()["cpu"].available:
        pytest.skip(kernels.backends()["cpu"].reason)
    case = tools.pmsn_case(shape, k, torch.float64, False)
    own = fire == "own surrogate" and reset_mode != "serial"
    options = dict(reset_mode=reset_mode, v_threshold=v_threshold, burst=fire == "burst", final_state=False)
    if own:
        options["surrogate_function"] = OwnSurrogate.apply
    expected = tools.run(functional.pmsn_sequence, *case, **options)
    tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend="cpu", **options), expected, 1e-9)


class OwnSurrogate(torch.autograd.Function):
    """One that the kernels do not know: they are given its slopes."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad / (1 + x * x) ** 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(4, 9, 3, 5), (4, 5, 32, 37), (16, 3, 20, 64), (7, 40, 9)])
def test_short_sequences_in_half_precision_are_those_in_float(tools, cpu_kernels, poisoned, shape, dtype):
    """Rounded on the way in and out, and nowhere else."""
    x, coefficients, _ = tools.pmsn_case(shape, 4, torch.float32, False)
    x = x.to(dtype)
    options = dict(final_state=False, backend="cpu")
    half = tools.run(kernels.pmsn_sequence, x, coefficients, None, **options)
    whole = tools.run(kernels.pmsn_sequence, x.float(), coefficients, None, **options)
    assert half.spikes.dtype == dtype
    assert torch.equal(half.spikes.float(), whole.spikes)
    for value, want in zip(half.others + half.gradients, whole.others + whole.gradients, strict=True):
        assert tools.relative_error(value, want) <= 2**-7


@pytest.mark.parametrize("reset_mode", RESET_MODES)
@pytest.mark.parametrize("shape", [(8192, 4, 32), (250, 40, 64), (4, 8, 32, 14, 14)])
def test_float32(tools, backend, shape, reset_mode):
    if backend.emulated:
        shape = (shape[0] // 2, 1, 8)
    x, coefficients, _ = tools.pmsn_case(shape, 4, torch.float32, False, backend.device)
    exact = (x.double(), type(coefficients)(*(c.double() for c in coefficients)), None)
    expected = tools.run(functional.pmsn_sequence, *exact, reset_mode=reset_mode)
    actual = tools.run(kernels.pmsn_sequence, x, coefficients, None, reset_mode=reset_mode, backend=backend.name)
    assert (actual.spikes != expected.spikes).double().mean() < 1e-5
    # Where rounding moves a current across 0, or a membrane across the threshold, the gradient jumps. That happens to
    # single neurons, and so to the parameters of some channels.
    for value, want in zip(actual.gradients, expected.gradients, strict=True):
        error = ((value.double() - want).abs() / want.abs().max()).movedim(2 if value.ndim > 2 else 0, 0)
        assert error.reshape(len(error), -1).amax(1).median() < 1e-4


@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_chunks_and_steps_equal_the_whole(tools, cpu_kernels, reset_mode):
    for dtype in (torch.float32, torch.float64):
        x, coefficients, _ = tools.pmsn_case((300, 3, 5, 3), 4, dtype, False)
        options = dict(reset_mode=reset_mode, v_threshold=0.3, backend="cpu")
        whole = kernels.pmsn_sequence(x, coefficients, **options)
        state, chunks = None, []
        for chunk in x.split([1, 64, 100, 3, 132]):
            spikes, state, _ = kernels.pmsn_sequence(chunk, coefficients, state, **options)
            chunks.append(spikes)
        assert torch.equal(torch.cat(chunks), whole.spikes)
        assert all(torch.equal(a, b) for a, b in zip(state, whole.state, strict=True))
        state, steps = None, []
        for step in x:
            spikes, state = kernels.pmsn_step(step, coefficients, state, **options)
            steps.append(spikes)
        assert torch.equal(torch.stack(steps), whole.spikes)
        assert all(torch.equal(a, b) for a, b in zip(state, whole.state, strict=True))


@pytest.fixture
def many_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(24)
    yield
    torch.set_num_threads(before)


def pole_coefficients(radius, angle, gain, dtype):
    """One channel for each pole A = radius exp(i angle), k = 1; K = gain (A - 1)."""
    E = torch.polar(radius, angle) - 1
    K = gain * E
    parts = (part.unsqueeze(1).to(dtype) for part in (E.real, E.imag, K.real, K.imag))
    return functional.PMSNCoefficients(*parts, torch.zeros(len(radius), dtype=dtype))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    poles=st.lists(st.tuples(st.integers(0, 9999), st.integers(-31, 31)), min_size=1, max_size=20),
    gain=st.sampled_from([0j, 0.7 + 0j, 0.7j, 0.3 - 0.8j]),
    T=st.sampled_from([20, 40, 150]),
)
def test_filters_are_the_compartments_for_any_pole(tools, backend, poles, gain, T):
    """Also where a filter's state does not determine the compartment's: real poles, no gain."""
    radius, angle = torch.tensor([*poles, (9000, 0)], dtype=torch.float64).unbind(1)
    coefficients = pole_coefficients(radius / 10000, angle / 10, gain, torch.float64)
    x = torch.randn(T, 3, len(radius), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, coefficients = x.to(backend.device), type(coefficients)(*(c.to(backend.device) for c in coefficients))
    for final_state in (False, True):
        case = dict(v_threshold=0.7, final_state=final_state)
        expected = tools.run(functional.pmsn_sequence, x, coefficients, None, **case)
        actual = tools.run(kernels.pmsn_sequence, x, coefficients, None, backend=backend.name, **case)
        tools.assert_equal(actual, expected, 1e-9)


@pytest.mark.parametrize("angle", [0.0, 1e-4, 1e-2, 0.1, 0.5, 1.0, 1.5, 2.0, 2.5, 3.1, 3.1415])
def test_filters_are_as_exact_as_the_compartments_in_float32(backend, angle):
    """From the slowest to the fastest poles, and beyond those that filters without signs are used for."""
    decay = torch.tensor([3.0, 30.0, 300.0, 3000.0], dtype=torch.float64)
    coefficients = pole_coefficients(torch.exp(-1 / decay), torch.full_like(decay, angle), 0.5 + 0.5j, torch.float64)
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(250, 64, 4, dtype=torch.float64, generator=generator) for _ in range(2))

    def gradients(dtype, with_state):
        leaves = [t.to(backend.device, dtype).requires_grad_() for t in (x, *coefficients)]
        shapes = (64, 4), (1, 64, 4), (1, 64, 4)
        zeros = PMSNState(*(torch.zeros(s, dtype=dtype, device=backend.device) for s in shapes))
        output = kernels.pmsn_sequence(
            leaves[0],
            functional.PMSNCoefficients(*leaves[1:]),
            zeros if with_state else None,  # given a state the compartments themselves are computed
            surrogate_function=functional.surrogate.TableSurrogate("straight_through"),
            return_state=False,
            backend=backend.name,
        )
        return torch.autograd.grad(output.spikes, leaves, weight.to(output.spikes))

    exact, filters = gradients(torch.float64, False), gradients(torch.float32, False)
    for want, ours, theirs in zip(exact, filters, gradients(torch.float32, True), strict=True):
        error, bound = ((value.double() - want).norm() for value in (ours, theirs))
        assert error <= 3 * bound + 1e-6 * want.norm()


@pytest.mark.parametrize("shape", [(3000, 1, 5), (600, 9, 40)])
def test_threads_may_change_between_forward_and_backward(tools, cpu_kernels, many_threads, shape):
    x, coefficients, _ = tools.pmsn_case(shape, 4, torch.float64, False)
    leaves = [t.requires_grad_() for t in (x, *coefficients)]
    gradients = []
    for threads in (24, 1):
        torch.set_num_threads(threads)
        spikes = kernels.pmsn_sequence(leaves[0], type(coefficients)(*leaves[1:]), backend="cpu").spikes
        torch.set_num_threads(25 - threads)
        gradients.append(torch.autograd.grad(spikes, leaves, torch.ones_like(spikes)))
    for one, other in zip(*gradients, strict=True):
        assert tools.relative_error(one, other) < 1e-9


@pytest.mark.parametrize("reset_mode", ["modulo", "cumulative", "memoryless"])
@pytest.mark.parametrize("T", [300, 431])
@pytest.mark.parametrize("way", ["state", "rest", "rest to the end"])
def test_time_cut_into_segments(tools, emulated, way, T, reset_mode, monkeypatch):
    x, coefficients, state = tools.pmsn_case((T, 1, 5), 2, torch.float64, way == "state")
    case, final_state = (x, with_poles_all_around(coefficients), state), way != "rest"
    monkeypatch.setattr(type(emulated), "multiprocessors", 1000)
    launched, launch = [], emulated.launch

    def recording(program, launches, args, device):
        launched.extend((name, grid) for name, grid, _ in launches)
        launch(program, launches, args, device)

    monkeypatch.setattr(emulated, "launch", recording)
    options = dict(reset_mode=reset_mode, final_state=final_state)
    expected = tools.run(functional.pmsn_sequence, *case, **options)
    tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend="cpu", **options), expected, 1e-9)
    grids = dict(launched)
    assert {"pmsn_hidden_carry", "pmsn_membrane_carry", "pmsn_adjoint_carry"} <= {*grids}
    assert ("pmsn_grad_v_carry" in grids) == (reset_mode == "cumulative")
    *_, segments = grids["pmsn_forward"]
    assert segments > 5


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("reset_mode", ["modulo", "memoryless"])
@pytest.mark.parametrize("shape", [(3000, 1, 5), (2561, 2, 20), (4000, 1, 1, 3)])
def test_time_cut_on_the_cpu(tools, cpu_kernels, poisoned, many_threads, shape, reset_mode, with_state):
    T, N, C, *inner = shape
    for k in (2, 5):
        case = tools.pmsn_case(shape, k, torch.float64, with_state)
        interval = checkpoint_interval(1 + 2 * k, 8, 8)
        assert cpu_layout(T, N, C, math.prod(inner), interval, 24, True).segments > 4
        options = dict(reset_mode=reset_mode)
        expected = tools.run(functional.pmsn_sequence, *case, **options)
        tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend="cpu", **options), expected, 1e-9)
        # without gradients there are no checkpoints to keep what goes from one segment to the next
        with torch.no_grad():
            spikes = kernels.pmsn_sequence(*case, backend="cpu", **options).spikes
        assert torch.equal(spikes, expected.spikes)


def test_slow_modes_in_float32(tools, backend):
    """Time constants of 10^5 steps: A = 1 - 1e-5 itself has only two digits in float32."""
    T, dtype = (4000 if backend.emulated else 40000), torch.float64
    E = torch.tensor([[-1e-5], [-3e-5]], dtype=dtype)
    zero = torch.zeros_like(E)
    coefficients = functional.PMSNCoefficients(E, zero, zero + 1e-4, zero, torch.tensor([0.0, 0.1], dtype=dtype))
    x = torch.rand(T, 1, 2, dtype=dtype, generator=torch.Generator().manual_seed(0))
    expected = functional.pmsn_sequence(x, coefficients)
    actual = kernels.pmsn_sequence(
        x.float().to(backend.device),
        type(coefficients)(*(c.float().to(backend.device) for c in coefficients)),
        backend=backend.name,
    )
    assert tools.relative_error(actual.state.h_real.cpu(), expected.state.h_real) < 1e-4


def test_modulo_state_stays_below_the_threshold(cpu_kernels):
    """Rounding must not leave v at (or above) the threshold: it would fire without input."""
    one = torch.ones(1, 1)
    silent = functional.PMSNCoefficients(0 * one, 0 * one, 0 * one, 0 * one, torch.ones(1))
    generator = torch.Generator().manual_seed(0)
    for v_threshold in (1.0, 0.1, 0.7, 3.3, 1e-3):
        x = torch.randn(4000, 16, 1, generator=generator) * v_threshold * 2
        x[::7] = v_threshold  # exact multiples
        x[3::7] = torch.nextafter(torch.tensor(v_threshold), torch.tensor(0.0))
        x[5::70] = 1e8 * v_threshold
        output = kernels.pmsn_sequence(x, silent, v_threshold=v_threshold, return_v_seq=True, backend="cpu")
        threshold = torch.tensor(v_threshold)
        assert ((output.v_seq >= 0) & (output.v_seq < threshold)).all()


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("v_threshold", [1.0, 0.7])
@pytest.mark.parametrize("T", [5, 40])
def test_no_input_is_no_charge(cpu_kernels, instruction_set, T, v_threshold):
    """A current of -0, such as a negative gain makes of no input, is no charge just below the threshold."""
    x, zero, minus_one = torch.zeros(T, 2, 1), torch.zeros(1, 1), -torch.ones(1)
    coefficients = functional.PMSNCoefficients(zero, zero, zero, zero, minus_one)
    x[1::2] = -0.01
    if cpu.library.pmsn_use_instruction_set(instruction_set.encode()):
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        options = dict(v_threshold=v_threshold, return_v_seq=True, return_state=False, backend="cpu")
        output = kernels.pmsn_sequence(x, coefficients, **options)
    finally:
        cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())
    assert not output.spikes.any()
    expected = (-x).cumsum(0) % v_threshold
    torch.testing.assert_close(output.v_seq, expected)


@pytest.mark.parametrize("v_threshold", [1.0, 0.7])
def test_initial_v_just_below_zero_does_not_fire(cpu_kernels, v_threshold):
    """It stands for a v just below the threshold, and rounding must not lift it there."""
    x, zero = torch.zeros(3, 2, 1), torch.zeros(1, 1)
    silent = functional.PMSNCoefficients(zero, zero, zero, zero, torch.ones(1))
    state = PMSNState(torch.full((2, 1), -1e-12), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    output = kernels.pmsn_sequence(x, silent, state, v_threshold=v_threshold, backend="cpu")
    assert not output.spikes.any() and (output.state.v < v_threshold).all()


def test_initial_v_is_taken_modulo_the_threshold(tools, backend):
    x, coefficients, state = tools.pmsn_case((5, 2, 3), 2, torch.float64, True, backend.device)
    state = PMSNState(state.v * 10, state.h_real, state.h_imag)
    expected = functional.pmsn_sequence(x, coefficients, state)
    actual = kernels.pmsn_sequence(x, coefficients, state, backend=backend.name)
    assert torch.equal(actual.spikes, expected.spikes)
    assert tools.relative_error(actual.state.v, expected.state.v) < 1e-12


def test_global_context(tools, backend):
    case = tools.pmsn_case((6, 2, 3, 4), 2, torch.float64, False, backend.device)
    expected = tools.run(functional.pmsn_sequence, *case, context="global")
    tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, context="global", backend=backend.name), expected, 1e-9)
