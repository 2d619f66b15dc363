"""The fused recurrent TC-LIF equals the reference: outputs, final state, and every gradient."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import SURROGATES, TableSurrogate, TCLIFRecurrentState, triangle
from pmsn_plugins.functional.tclif import SOMA_FEEDBACK
from pmsn_plugins.kernels import cpu
from pmsn_plugins.kernels.calls import TclifRecurrentOptions, Wanted
from pmsn_plugins.kernels.operators import TCLIF_RECURRENT

REFERENCE, FUSED = functional.tclif_recurrent_sequence, kernels.tclif_recurrent_sequence
SETS = ("baseline", "avx2", "avx512")

SHAPES = {  # checkpoints every 32 steps; lanes of 2 to 16 numbers, 8 of them together; up to 8 samples together
    "one": (1, 1, 1),
    "one step": (1, 3, 5),
    "less than a lane": (7, 3, 3),
    "whole lanes": (33, 2, 32),
    "half a lane": (12, 40, 40),
    "two intervals": (64, 9, 17),
    "and a step": (65, 3, 20),
    "many samples": (4, 300, 3),
    "GSC": (5, 5, 300),
    "several panels": (3, 7, 130),
}


@pytest.fixture(params=SETS)
def instruction_set(request, cpu_kernels):
    if cpu.library.pmsn_use_instruction_set(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_float64(tools, instruction_set, poisoned, shape, soma_feedback, detach_reset):
    options = dict(soma_feedback=soma_feedback, detach_reset=detach_reset, gamma=0.6, v_threshold=0.8)
    for strict, with_state, leak in ((False, True, (0.9, 0.8)), (True, False, (1.0, 1.0))):
        options |= dict(surrogate_function=triangle(alpha=0.7, strict=strict), leak=leak)
        case = tools.recurrent_case(shape, torch.float64, with_state, per_channel=with_state)
        expected = tools.run(REFERENCE, *case, **options)
        assert shape[0] < 10 or 0.02 < expected.spikes.mean() < 0.7
        tools.assert_equal(tools.run(FUSED, *case, backend="cpu", **options), expected, 1e-9)


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 40), st.integers(1, 50)),
    gamma=st.floats(0.0, 1.0),
    v_threshold=st.floats(0.1, 3.0),
    with_state=st.booleans(),
    with_bias=st.booleans(),
    per_channel=st.booleans(),
    final_state=st.booleans(),
)
def test_any_shape(tools, shape, gamma, v_threshold, with_state, with_bias, per_channel, final_state):
    if not kernels.backends()["cpu"].available:
        pytest.skip(kernels.backends()["cpu"].reason)
    x, weight, bias, *rest = tools.recurrent_case(shape, torch.float64, with_state, per_channel)
    case = (x, weight, bias if with_bias else None, *rest)
    options = dict(gamma=gamma, v_threshold=v_threshold, final_state=final_state)
    expected = tools.run(REFERENCE, *case, **options)
    tools.assert_equal(tools.run(FUSED, *case, backend="cpu", **options), expected, 1e-9)


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@pytest.mark.parametrize("name", SURROGATES)
def test_every_surrogate(tools, cpu_kernels, name, soma_feedback):
    """Those that are not fused give the kernel their slopes."""
    case = tools.recurrent_case((40, 3, 9), torch.float64, True)
    options = dict(surrogate_function=TableSurrogate(name), soma_feedback=soma_feedback)
    expected = tools.run(REFERENCE, *case, **options)
    tools.assert_equal(tools.run(FUSED, *case, backend="cpu", **options), expected, 1e-9)


def test_a_state_that_was_made_by_hand(tools, cpu_kernels):
    """Its spikes may be any numbers."""
    x, *parameters, state = tools.recurrent_case((5, 9, 21), torch.float64, True)
    case = (x, *parameters, state._replace(spikes=torch.randn_like(state.v)))
    tools.assert_equal(tools.run(FUSED, *case, backend="cpu"), tools.run(REFERENCE, *case), 1e-9)


@pytest.mark.parametrize("shape", [(100, 16, 128), (250, 8, 40)])
def test_float32(tools, instruction_set, shape):
    case = tools.recurrent_case(shape, torch.float32, False)
    expected = REFERENCE(*(t.double() for t in case[:5]))
    actual = tools.run(FUSED, *case, backend="cpu")
    # every spike depends on many others: one that rounding moves can move the next ones, of its sample
    right = (actual.spikes == expected.spikes).all(2).all(0)
    assert right.double().mean() > 0.5
    x, *parameters = (t[:, right] if t.ndim == 3 else t for t in case[:5])
    actual = tools.run(FUSED, x, *parameters, None, backend="cpu")
    expected = tools.run(REFERENCE, *(t.double() for t in (x, *parameters)), None)
    for value, want in zip(actual.gradients, expected.gradients, strict=True):
        assert tools.relative_error(value, want) < 1e-4


@pytest.mark.parametrize("C", [256, 200, 40])  # whole lanes of the widest instruction set, and not
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_what_is_computed_again_has_the_same_spikes(tools, instruction_set, soma_feedback, C):
    """Backward computes the somata again. A million of them: if one in ten rounded otherwise, some would change sides,
    and be wrong by a whole threshold from there on."""
    x, weight, bias, b1, b2, _ = tools.recurrent_case((320, 16, C), torch.float32, False)
    weight, x = 0 * weight, x.requires_grad_()
    expected = torch.autograd.grad(REFERENCE(x, weight, bias, b1, b2, soma_feedback=soma_feedback).spikes.sum(), x)[0]
    fused = FUSED(x, weight, bias, b1, b2, soma_feedback=soma_feedback, backend="cpu").spikes
    actual = torch.autograd.grad(fused.sum(), x)[0]
    # where the two forward passes differ, gradients do
    same = (fused == REFERENCE(x, weight, bias, b1, b2, soma_feedback=soma_feedback).spikes).all(0)
    assert same.double().mean() > 0.99
    wrong = ((actual - expected).abs() > 1e-3).any(0) & same
    assert wrong.sum() < 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("C", [5, 16])
def test_half_precision_in_and_out(tools, instruction_set, poisoned, dtype, C):
    x, *parameters, state = tools.recurrent_case((40, 3, C), torch.float32, True)
    x = x.to(dtype)
    expected = tools.run(FUSED, x.float(), *parameters, state, backend="cpu")
    actual = tools.run(FUSED, x, *parameters, state, backend="cpu")
    assert actual.spikes.dtype == dtype and actual.others[0].dtype == torch.float32
    assert torch.equal(actual.spikes.float(), expected.spikes)
    assert actual.gradients[0].dtype == dtype
    for value, want, eps in zip(
        actual.gradients, expected.gradients, [torch.finfo(dtype).eps] + [1e-2] * 7, strict=True
    ):  # the loss is rounded to the dtype where the spikes are
        assert tools.relative_error(value, want) <= 4 * eps


@pytest.mark.parametrize("shape", [(40, 50, 20), (40, 300, 5), (70, 3, 40)])
def test_bits_do_not_depend_on_threads(tools, cpu_kernels, shape):
    case = tools.recurrent_case(shape, torch.float32, True)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3, 8):
            torch.set_num_threads(number)
            results.append(tools.run(FUSED, *case, backend="cpu"))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(itertools.chain(*result), itertools.chain(*results[0]), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_sequence_equals_steps_and_chunks(tools, cpu_kernels, soma_feedback, with_gradient):
    x, *parameters, _ = tools.recurrent_case((100, 3, 20), torch.float32, False)
    options = dict(soma_feedback=soma_feedback, backend="cpu")
    leaves = [t.requires_grad_(with_gradient) for t in (x, *parameters)]
    whole = FUSED(*leaves, **options)
    results = []
    for lengths in ([1] * 100, [1, 16, 50, 33]):
        state, chunks = None, []
        for chunk in x.split(lengths):
            if len(chunk) == 1:
                spikes, state = kernels.tclif_recurrent_step(chunk[0], *parameters, state, **options)
                chunks.append(spikes[None])
            else:
                spikes, state, _ = FUSED(chunk, *parameters, state, **options)
                chunks.append(spikes)
        assert torch.equal(torch.cat(chunks), whole.spikes)
        assert all(torch.equal(a, b) for a, b in zip(state, whole.state, strict=True))
        results.append((torch.cat(chunks), state))
    if with_gradient:
        losses = [(spikes * x.detach()).sum() + sum(s.sum() for s in state) for spikes, state in (whole[:2], *results)]
        expected, *others = (torch.autograd.grad(loss, leaves) for loss in losses)
        for gradients in others:
            for value, want in zip(gradients, expected, strict=True):
                assert tools.relative_error(value, want) < 1e-4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
def test_a_value_that_is_not_finite_stays_with_its_neuron_and_its_future(tools, instruction_set, soma_feedback, value):
    x, *parameters, _ = tools.recurrent_case((40, 3, 20), torch.float64, False)
    x[7, 1, 4] = 0.0  # the neuron's spikes from here on are those of no input: it must not reach the others' in time
    parameters[0][:, 4] = 0.0
    expected = FUSED(x, *parameters, soma_feedback=soma_feedback, return_v_seq=True, backend="cpu")
    x[7, 1, 4] = value
    for function, options in ((FUSED, {"backend": "cpu"}), (REFERENCE, {})):
        actual = function(x, *parameters, soma_feedback=soma_feedback, return_v_seq=True, **options)
        assert actual.v_seq[7:, 1, 4].isnan().all() and not actual.spikes[7:, 1, 4].any()
        assert all(part[1, 4].isnan() for part in actual.state[:2])
        untouched = torch.ones_like(x, dtype=torch.bool)
        untouched[7:, 1, 4] = False
        assert torch.equal(actual.spikes[untouched], expected.spikes[untouched])
        torch.testing.assert_close(actual.v_seq[untouched], expected.v_seq[untouched], rtol=1e-9, atol=1e-9)


def test_the_input_is_not_kept(tools, cpu_kernels):
    """One number for each of the input's, and one in 32, are all that is kept until backward."""
    x, *parameters, _ = tools.recurrent_case((256, 4, 48), torch.float32, False)
    leaves = [t.requires_grad_() for t in (x, *parameters)]
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = FUSED(*leaves, return_state=False, backend="cpu")
    small = sum(p.nbytes for p in parameters)
    assert x.nbytes < sum(kept.values()) < 1.04 * x.nbytes + 4 * small
    expected = torch.autograd.grad(REFERENCE(*leaves).spikes.sum(), leaves)
    with torch.no_grad():
        x.zero_()
    for value, want in zip(torch.autograd.grad(output.spikes.sum(), leaves), expected, strict=True):
        assert tools.relative_error(value, want) < 1e-4


@pytest.mark.parametrize("needed", range(8))
def test_part_of_the_gradients(tools, cpu_kernels, needed):
    x, *parameters, state = tools.recurrent_case((40, 2, 9), torch.float64, True)
    arguments = [x, *parameters, *state]
    results = []
    for function, options in ((REFERENCE, {}), (FUSED, {"backend": "cpu"})):
        leaves = [t.detach().clone() for t in arguments]
        leaves[needed].requires_grad_()
        output = function(*leaves[:5], TCLIFRecurrentState(*leaves[5:]), **options)
        results.append(torch.autograd.grad((output.spikes * x).sum(), leaves[needed])[0])
    assert tools.relative_error(results[1], results[0]) < 1e-9


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(surrogate_function=torch.tanh), "surrogate function"),
        (dict(v_threshold=torch.tensor(0.9, dtype=torch.float64, requires_grad=True)), "learnable threshold"),
        (dict(gamma=torch.tensor(0.4, dtype=torch.float64)), "gamma"),
        (dict(leak=(torch.tensor(0.4, dtype=torch.float64), 1.0)), "leak"),
        (dict(b1=torch.full((3, 1), -0.3, dtype=torch.float64)), "all samples"),
    ],
)
def test_what_is_left_to_torch(tools, cpu_kernels, change, reason):
    x, weight, bias, b1, b2, state = tools.recurrent_case((20, 3, 5), torch.float64, True)
    case = (x, weight, bias, change.pop("b1", b1), b2, state)
    told = kernels.explain(FUSED, *case, **change)
    assert told.startswith("torch: ") and reason in told
    tools.assert_equal(tools.run(FUSED, *case, **change), tools.run(REFERENCE, *case, **change), 1e-12)


def test_a_threshold_that_is_a_tensor(tools, cpu_kernels):
    case = tools.recurrent_case((20, 3, 5), torch.float64, True)
    theta = torch.tensor(0.7, dtype=torch.float64)
    assert kernels.explain(FUSED, *case, v_threshold=theta).startswith("cpu: ")
    expected = tools.run(REFERENCE, *case, v_threshold=0.7)
    tools.assert_equal(tools.run(FUSED, *case, v_threshold=theta), expected, 1e-9)


def test_opcheck(tools, cpu_kernels):
    x, *parameters, state = tools.recurrent_case((40, 2, 5), torch.float64, True)
    x, weight, bias, b1, b2 = (t.expand(5) if t.ndim == 0 else t for t in (x, *parameters))
    tensors = [t.clone().requires_grad_() for t in (x, weight, bias, b1, b2, *state)]
    options = TclifRecurrentOptions(True, False, False, "triangle", 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0)
    wanted = Wanted(True, True, False, "cpu")
    torch.library.opcheck(TCLIF_RECURRENT.forward, (*tensors, None, None, *options, *wanted))
    given = options._replace(surrogate="given")
    slopes = torch.rand(41, 2, 5).double()
    torch.library.opcheck(TCLIF_RECURRENT.forward, (*tensors, None, slopes, *given, *wanted))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile_without_a_graph_break(tools, cpu_kernels, dynamic):
    def outputs(x, weight, bias, b1, b2):
        output = FUSED(x, weight, bias, b1, b2, return_v_seq=True, backend="cpu")
        return output.spikes, *output.state, output.v_seq

    torch._dynamo.reset()
    compiled = torch.compile(outputs, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for T in (6, 40):
        x, *parameters, _ = tools.recurrent_case((T, 4, 5), torch.float32, False)
        leaves = [t.requires_grad_() for t in (x, *parameters)]
        results = []
        for function in (outputs, compiled):
            values = function(*leaves)
            results.append((*values, *torch.autograd.grad(sum((v * x[0].detach()).sum() for v in values), leaves)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


def test_autocast_changes_nothing(tools, cpu_kernels):
    case = tools.recurrent_case((20, 3, 5), torch.float32, True)
    expected = FUSED(*case, backend="cpu")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = FUSED(*case, backend="cpu")
    assert torch.equal(actual.spikes, expected.spikes)
    assert all(torch.equal(a, b) for a, b in zip(actual.state, expected.state, strict=True))
