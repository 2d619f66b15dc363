"""The snnTorch PMSN layer: its numbers are the functional reference's, its calls are StateLeaky's and a loop's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as strategy
from snntorch import surrogate

from pmsn_plugins.functional import RESET_MODES, PMSNState, pmsn_sequence, triangle
from pmsn_plugins.snntorch import PMSN

T, B, C = 40, 3, 5


def inputs(*shape, seed=0, dtype=torch.float64):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2).to(dtype)


def make(seed=0, **options):
    """A float64 layer whose parameters differ from channel to channel."""
    torch.manual_seed(seed)
    layer = PMSN(C, **{"output": True, **options}).double()
    with torch.no_grad():
        for parameter in (layer.log_decay, layer.freq, layer.B_real, layer.R_imag):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def loop(layer, x):
    state, spikes, mems = layer.reset_mem(), [], []
    for x_t in x:
        spk, state = layer.step(x_t, state)
        spikes.append(spk)
        mems.append(state.v)
    return torch.stack(spikes), torch.stack(mems)


def gradients(spikes, wrt):
    return torch.autograd.grad((spikes * inputs(*spikes.shape, seed=9)).sum(), wrt)


VARIANTS = [*((mode, False) for mode in RESET_MODES), *((mode, True) for mode in RESET_MODES)]


@pytest.mark.parametrize(("reset_mode", "burst"), VARIANTS)
@pytest.mark.parametrize("space", [(), (2, 3)])
def test_sequence_and_loop_are_the_functional_reference(reset_mode, burst, space):
    layer = make(threshold=0.7, reset_mode=reset_mode, burst=burst)
    x = inputs(T, B, C, *space).requires_grad_()
    wrt = [x, *layer.parameters()]
    expected = pmsn_sequence(
        x,
        layer.coefficients(),
        v_threshold=0.7,
        surrogate_function=triangle(strict=True),
        reset_mode=reset_mode,
        burst=burst,
        return_v_seq=True,
    )
    assert expected.spikes.mean() > 0.005
    expected_gradients = gradients(expected.spikes, wrt)
    for spk, mem in (layer(x), loop(layer, x)):
        assert torch.equal(spk, expected.spikes)
        torch.testing.assert_close(mem, expected.v_seq, rtol=0, atol=1e-12)
        for got, want in zip(gradients(spk, wrt), expected_gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9 * float(want.abs().max()))


@settings(max_examples=40, deadline=None)
@given(
    cuts=strategy.lists(strategy.integers(1, 70), min_size=1, max_size=5),
    space=strategy.lists(strategy.integers(1, 3), max_size=2),
    n_compartments=strategy.integers(2, 6),
    threshold=strategy.floats(0.2, 3.0),
    reset_mode=strategy.sampled_from(RESET_MODES),
)
def test_sequence_is_chunks_is_steps(cuts, space, n_compartments, threshold, reset_mode):
    options = {"n_compartments": n_compartments, "threshold": threshold, "reset_mode": reset_mode}
    whole, kept = make(**options), make(**options, init_hidden=True)
    x = inputs(sum(cuts), B, C, *space)
    spk, mem = whole(x)
    # the layer that keeps its state takes chunks and single steps in turn
    pieces = []
    for chunk in x.split(cuts):
        if len(chunk) % 2:
            pieces.append(kept(chunk))
        else:
            pieces.append([torch.stack(parts) for parts in zip(*map(kept.step, chunk), strict=True)])
    assert torch.equal(torch.cat([piece[0] for piece in pieces]), spk)
    torch.testing.assert_close(torch.cat([piece[1] for piece in pieces]), mem, rtol=1e-10, atol=1e-10)


def test_long_sequence_in_chunks():
    whole, kept = make(), make(init_hidden=True, output=False)
    x = inputs(4096, 1, C)
    with torch.no_grad():
        assert torch.equal(torch.cat([kept(chunk) for chunk in x.split(1000)]), whole(x)[0])


def test_gradients_through_chunk_boundaries():
    whole, kept = make(output=False), make(init_hidden=True)
    x = inputs(T, B, C).requires_grad_()
    got = gradients(torch.cat([kept(chunk)[0] for chunk in x.split((7, 1, 20, 12))]), [x, *kept.parameters()])
    want = gradients(whole(x), [x, *whole.parameters()])
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9 * float(w.abs().max()))


@pytest.mark.parametrize("init_hidden", [False, True])
@pytest.mark.parametrize("output", [None, False, True])
def test_what_a_call_returns(init_hidden, output):
    layer = PMSN(C, init_hidden=init_hidden, output=output)
    result = layer(inputs(T, B, C, dtype=torch.float32))
    with_mem = (not init_hidden) if output is None else output
    if with_mem:
        spk, mem = result
        assert spk.shape == mem.shape == (T, B, C)
    else:
        assert result.shape == (T, B, C)


def test_step_mode_makes_forward_a_step():
    x = inputs(T, B, C)
    steps, reference = make(step_mode="s"), make()
    state, spikes = steps.reset_mem(), []
    for x_t in x:
        spk, state = steps(x_t, state)
        assert isinstance(state, PMSNState)
        spikes.append(spk)
    assert torch.equal(torch.stack(spikes), reference(x)[0])
    kept = make(step_mode="s", init_hidden=True, output=None)
    assert torch.equal(torch.stack([kept(x_t) for x_t in x]), reference(x)[0])


def test_calls_without_init_hidden_are_independent():
    layer = make()
    x = inputs(T, B, C)
    assert torch.equal(layer(x)[0], layer(x)[0])
    assert torch.equal(layer.step(x[0])[0], layer.step(x[0])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    layer = PMSN(C, graded_spikes_factor=torch.ones(C))
    x = inputs(T, B, C, dtype=dtype)
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    spk, mem = layer(x)
    assert (spk.dtype, mem.dtype) == (dtype, state_dtype)
    assert torch.equal(spk.float(), layer(x.to(state_dtype))[0].float())
    spk, state = layer.step(x[0])
    assert spk.dtype == dtype
    assert {s.dtype for s in state} == {state_dtype}


def test_half_precision_layer_keeps_its_state_in_float32():
    layer = PMSN(C, init_hidden=True).half()
    layer(inputs(T, B, C, dtype=torch.float16))
    assert layer.mem.dtype == torch.float32


def test_non_contiguous_and_expanded_inputs():
    layer = make()
    x = inputs(B, C, T).permute(2, 0, 1)
    assert torch.equal(layer(x)[0], layer(x.contiguous())[0])
    x = inputs(T, 1, C).expand(T, B, C)
    assert torch.equal(layer(x)[0], layer(x.contiguous())[0])


def direct(**options):
    """One channel that passes its input straight to the output compartment."""
    layer = PMSN(1, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.D.fill_(1.0)
    return layer


def test_spikes_are_strict_and_the_reset_is_modulo():
    layer = direct(threshold=1.0)
    spk, mem = layer(torch.tensor([1.0, 0.5, 0.75, 2.5]).view(4, 1, 1))
    # exactly at the threshold: no spike, as in snnTorch, but the membrane wraps
    assert spk.flatten().tolist() == [0, 0, 1, 1]
    assert mem.flatten().tolist() == [0.0, 0.5, 0.25, 0.75]


def test_burst_counts():
    spk, mem = direct(burst=True)(torch.tensor([3.25, 0.5]).view(2, 1, 1))
    assert spk.flatten().tolist() == [3, 0]
    assert mem.flatten().tolist() == [0.25, 0.75]


def test_global_context_sees_the_average():
    local, shared = make(output=False), make(output=False, context="global")
    x = inputs(T, B, C)
    assert torch.equal(shared(x), local(x.mean(0, keepdim=True).expand_as(x)))


def test_spike_grad_is_called_on_u_minus_threshold():
    seen = []

    def spike_grad(x):
        seen.append(x)
        return (x > 0).float()  # float32 whatever comes in, like snnTorch's own

    layer = direct(threshold=0.75, spike_grad=spike_grad).double()
    spk, _ = layer(torch.tensor([0.5, 0.5], dtype=torch.float64).view(2, 1, 1))
    assert torch.cat([x.flatten() for x in seen]).tolist() == [-0.25, 0.25]
    assert spk.flatten().tolist() == [0, 1]
    assert spk.dtype == torch.float64


@pytest.mark.parametrize("spike_grad", [surrogate.atan(), surrogate.fast_sigmoid(), surrogate.SFS()])
def test_snntorch_surrogates(spike_grad):
    layer, reference = make(spike_grad=spike_grad, output=False), make(output=False)
    x = inputs(T, B, C).requires_grad_()
    spk = layer(x)
    assert torch.equal(spk, reference(x))
    (got,) = gradients(spk, [layer.D])
    output = pmsn_sequence(x, layer.coefficients(), surrogate_function=spike_grad)
    torch.testing.assert_close(got, gradients(output.spikes, [layer.D])[0])
    assert not torch.allclose(got, gradients(reference(x), [reference.D])[0])


def test_surrogate_disable():
    layer, reference = make(surrogate_disable=True), make()
    x = inputs(T, B, C).requires_grad_()
    spk, _ = layer(x)
    assert torch.equal(spk, reference(x)[0])
    assert not spk.requires_grad


@pytest.mark.parametrize("reset_mode", ["cumulative", "memoryless"])
def test_learned_threshold_has_the_gradient_of_the_surrogate(reset_mode):
    layer = make(threshold=0.8, learn_threshold=True, reset_mode=reset_mode)
    x = inputs(T, B, C)
    spk, mem = layer(x)
    weight = inputs(*spk.shape, seed=9)
    (got,) = gradients(spk, [layer.threshold])
    want = -(weight * (1 - (mem - layer.threshold).abs()).clamp(min=0)).sum()  # without a reset mem is u
    torch.testing.assert_close(got, want)
    assert "threshold" in layer.state_dict()


@pytest.mark.parametrize("factor", [2.0, torch.arange(1.0, C + 1)])
def test_graded_spikes_scale_the_output_but_not_the_reset(factor):
    layer, reference = make(graded_spikes_factor=factor), make()
    x = inputs(T, B, C, 2)
    spk, mem = layer(x)
    scale = torch.as_tensor(factor).view(-1, 1)
    assert torch.equal(spk, reference(x)[0] * scale)
    assert torch.equal(mem, reference(x)[1])
    assert torch.equal(layer.step(x[0])[0], spk[0])


def test_learned_graded_spikes():
    layer = make(graded_spikes_factor=torch.ones(C), learn_graded_spikes_factor=True)
    spk, _ = layer(inputs(T, B, C))
    (got,) = torch.autograd.grad(spk.sum(), [layer.graded_spikes_factor])
    torch.testing.assert_close(got, spk.detach().sum((0, 1)))


def test_every_parameter_gets_a_gradient_and_a_rate():
    layer = make(output=False)
    layer(inputs(T, B, C)).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
    groups = layer.param_groups(lr=1e-2, neuron_lr=1e-3)
    assert sum(len(g["params"]) for g in groups) == len(list(layer.parameters()))
    assert sorted(g["lr"] for g in groups) == [1e-3, 1e-2, 1e-2]


@pytest.mark.parametrize("options", [{}, {"init_hidden": True}, {"init_hidden": True, "step_mode": "s"}])
def test_compiled_layer_gives_the_same_numbers(options):
    layer, reference = make(**options), make(**options)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = inputs(4, B, C) if layer.step_mode == "s" else inputs(4, 9, B, C)
    for call in x:  # with init_hidden every call continues the one before
        assert torch.equal(compiled(call)[0], reference(call)[0])
    compiled(x[0])[0].sum().backward()
    reference(x[0])[0].sum().backward()
    for got, want in zip(layer.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad)
