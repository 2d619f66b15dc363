"""The snnTorch TCLIF layer: the functional reference's numbers, snn.Synaptic's manners."""

import pytest
import snntorch as snn
import torch
from hypothesis import given, settings
from hypothesis import strategies as strategy
from torch import nn

from pmsn_plugins.functional import multicompartment_sequence, tclif_sequence, triangle
from pmsn_plugins.snntorch import TCLIF

T, B, C = 40, 3, 5


def inputs(*shape, seed=0, dtype=torch.float64):
    return (torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3).to(dtype)


def loop(layer, x):
    dend, mem = layer.reset_mem()
    spikes, mems = [], []
    for x_t in x:
        spk, dend, mem = layer(x_t, dend, mem)
        spikes.append(spk)
        mems.append(mem)
    return torch.stack(spikes), torch.stack(mems)


def gradients(spikes, wrt):
    return torch.autograd.grad((spikes * inputs(*spikes.shape, seed=9)).sum(), wrt)


def assert_same(got, want):
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-9 * float(w.abs().max()))


@settings(max_examples=40, deadline=None)
@given(
    shape=strategy.lists(strategy.integers(1, 4), min_size=2, max_size=4),
    T=strategy.integers(1, 30),
    beta=strategy.tuples(strategy.floats(-0.95, -0.05), strategy.floats(0.05, 0.95)),
    gamma=strategy.floats(0.0, 1.0),
    threshold=strategy.floats(0.3, 2.0),
    soma_feedback=strategy.sampled_from(["post_reset", "pre_reset"]),
    detach_reset=strategy.booleans(),
    per_channel=strategy.booleans(),
)
def test_loop_is_the_functional_reference(shape, T, beta, gamma, threshold, soma_feedback, detach_reset, per_channel):
    options = {"gamma": gamma, "soma_feedback": soma_feedback, "detach_reset": detach_reset}
    layer = TCLIF(beta, threshold=threshold, channels=shape[1] if per_channel else None, **options).double()
    x = inputs(T, *shape).requires_grad_()
    if per_channel:
        with torch.no_grad():
            layer.c1.add_(inputs(shape[1]))
        tail = (1,) * (len(shape) - 2)
        b1, b2 = -torch.sigmoid(layer.c1).view(-1, *tail), torch.sigmoid(layer.c2).view(-1, *tail)
    else:
        b1, b2 = -torch.sigmoid(layer.c1), torch.sigmoid(layer.c2)
    expected = tclif_sequence(
        x, b1, b2, v_threshold=threshold, surrogate_function=triangle(strict=True), return_v_seq=True, **options
    )
    spk, mem = loop(layer, x)
    assert torch.equal(spk, expected.spikes)
    torch.testing.assert_close(mem, expected.v_seq, rtol=0, atol=1e-12)  # (products and sums may be rounded once)
    wrt = [x, layer.c1, layer.c2]
    assert_same(gradients(spk, wrt), gradients(expected.spikes, wrt))


def test_initial_couplings():
    layer = TCLIF(beta=(-0.2, 0.8))
    torch.testing.assert_close(-torch.sigmoid(layer.c1), torch.tensor(-0.2))
    torch.testing.assert_close(torch.sigmoid(layer.c2), torch.tensor(0.8))


def make_net(neuron):
    """The fully connected net of snnTorch's tutorial 5, with a second-order neuron."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(16, 24)
            self.lif1 = neuron()
            self.fc2 = nn.Linear(24, 4)
            self.lif2 = neuron()

        def forward(self, x):
            syn1, mem1 = self.lif1.reset_mem()
            syn2, mem2 = self.lif2.reset_mem()
            spk2_rec, mem2_rec = [], []
            for _ in range(15):
                cur1 = self.fc1(x)
                spk1, syn1, mem1 = self.lif1(cur1, syn1, mem1)
                cur2 = self.fc2(spk1)
                spk2, syn2, mem2 = self.lif2(cur2, syn2, mem2)
                spk2_rec.append(spk2)
                mem2_rec.append(mem2)
            return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)

    return Net()


@pytest.mark.parametrize("neuron", [lambda: snn.Synaptic(alpha=0.9, beta=0.8), TCLIF], ids=["Synaptic", "TCLIF"])
def test_tutorial_loop(neuron):
    """Changing the constructor is all: the same loop runs, learns, and takes a smaller last batch."""
    torch.manual_seed(0)
    net = make_net(neuron)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    x = torch.rand(50, 16)
    target = x[:, :4].argmax(1)
    losses = []
    for _ in range(25):
        for batch, label in zip(x.split(32), target.split(32), strict=True):
            spk_rec, mem_rec = net(batch)
            assert spk_rec.shape == mem_rec.shape == (15, len(batch), 4)
            loss = sum(nn.functional.cross_entropy(mem, label) for mem in mem_rec) / 15
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.7 * losses[0]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("neuron", [lambda: snn.Synaptic(alpha=0.9, beta=0.8), TCLIF], ids=["Synaptic", "TCLIF"])
def test_tutorial_with_one_neuron_and_no_axes(neuron):
    layer = neuron()
    spk_in = torch.cat((torch.ones(1) * 3, torch.zeros(4))).repeat(10)
    syn, mem = layer.reset_mem()
    spikes = []
    for x_t in spk_in:
        spk, syn, mem = layer(x_t, syn, mem)
        spikes.append(spk)
    assert torch.stack(spikes).shape == (50,)
    assert torch.stack(spikes).sum() > 0
    snn.Synaptic.detach_hidden()  # in place: refuses a state that is a view
    assert not mem.requires_grad


def test_no_axes_is_one_neuron():
    layer, reference = TCLIF(init_hidden=True), TCLIF(init_hidden=True)
    x = inputs(T, dtype=torch.float32)
    assert torch.equal(torch.stack([layer(x_t) for x_t in x]), torch.stack([reference(x_t[None])[0] for x_t in x]))


def test_a_call_without_states_continues_like_synaptic():
    layer, reference = TCLIF(), TCLIF()
    x = inputs(T, B, C, dtype=torch.float32)
    want, _ = loop(reference, x)
    assert torch.equal(torch.stack([layer(x_t)[0] for x_t in x]), want)
    layer.reset_mem()
    assert torch.equal(torch.stack([layer(x_t)[0] for x_t in x]), want)


@pytest.mark.parametrize("output", [False, True])
def test_init_hidden(output):
    layer, reference = TCLIF(init_hidden=True, output=output), TCLIF()
    x = inputs(T, B, C, dtype=torch.float32)
    want_spk, want_mem = loop(reference, x)
    results = [layer(x_t) for x_t in x]
    if output:
        spk, _, mem = zip(*results, strict=True)
        assert torch.equal(torch.stack(mem), want_mem)
    else:
        spk = results
    assert torch.equal(torch.stack(spk), want_spk)


def test_states_given_by_the_user_are_used():
    x = inputs(B, C)
    layer = TCLIF(beta=(-0.5, 0.5)).double()
    layer(inputs(B, C, seed=1))  # a kept state that must not matter
    dend, mem = inputs(B, C, seed=2), inputs(B, C, seed=3)
    spk, new_dend, new_mem = layer(x, dend, mem)
    v_dendrite = dend - 0.5 * mem + x
    v = mem + 0.5 * v_dendrite
    assert torch.equal(spk, (v > 1.0).double())
    torch.testing.assert_close(new_dend, v_dendrite - 0.5 * spk)
    torch.testing.assert_close(new_mem, v - spk)


@pytest.mark.parametrize("initial", [lambda: torch.zeros(0), lambda: torch.zeros(7, 2), lambda: None])
def test_empty_states_and_zeros_are_the_initial_state(initial):
    layer, x = TCLIF(), inputs(B, C, dtype=torch.float32)
    want = TCLIF()(x, torch.zeros(B, C), torch.zeros(B, C))
    for got, expected in zip(layer(x, initial(), initial()), want, strict=True):
        assert torch.equal(got, expected)


def test_the_states_carry_gradients():
    layer = TCLIF().double()
    dend, mem = inputs(B, C, seed=2).requires_grad_(), inputs(B, C, seed=3).requires_grad_()
    spk, _, _ = layer(inputs(B, C), dend, mem)
    assert all(g.abs().sum() > 0 for g in gradients(spk, [dend, mem]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(dtype):
    layer = TCLIF(channels=C, graded_spikes_factor=torch.ones(C))
    spk, dend, mem = layer(inputs(B, C, dtype=dtype))
    state_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    assert (spk.dtype, dend.dtype, mem.dtype) == (dtype, state_dtype, state_dtype)


def test_spikes_are_strict():
    # x = 2 puts the soma at b2 x = threshold exactly
    spk, dend, mem = TCLIF(beta=(-0.5, 0.5))(torch.tensor([[2.0]]))
    assert (spk.item(), dend.item(), mem.item()) == (0.0, 2.0, 1.0)


def test_spike_grad_is_called_on_mem_minus_threshold():
    seen = []

    def spike_grad(x):
        seen.append(x.item())
        return (x > 0).float()

    layer = TCLIF(beta=(-0.5, 0.5), threshold=0.75, spike_grad=spike_grad).double()
    spk, _, _ = layer(torch.tensor([[2.0]], dtype=torch.float64))
    assert seen == [0.25]
    assert spk.dtype == torch.float64


def test_surrogate_disable():
    x = inputs(T, B, C, dtype=torch.float32)
    spk, _ = loop(TCLIF(surrogate_disable=True), x)
    assert torch.equal(spk, loop(TCLIF(), x)[0])
    assert not spk.requires_grad


def test_learned_threshold():
    layer = TCLIF(threshold=0.9, learn_threshold=True).double()
    x = inputs(T, B, C)
    threshold = torch.tensor(0.9, dtype=torch.float32).double().requires_grad_()
    b1, b2 = layer.couplings(2)
    expected = tclif_sequence(x, b1, b2, v_threshold=threshold, surrogate_function=triangle(strict=True))
    spk, _ = loop(layer, x)
    assert_same(gradients(spk, [layer.threshold]), gradients(expected.spikes, [threshold]))


@pytest.mark.parametrize("factor", [0.5, torch.arange(1.0, C + 1)])
def test_graded_spikes_scale_the_output_but_not_the_reset(factor):
    x = inputs(T, B, C, 2, dtype=torch.float32)
    spk, mem = loop(TCLIF(channels=C, graded_spikes_factor=factor), x)
    want_spk, want_mem = loop(TCLIF(channels=C), x)
    assert torch.equal(spk, want_spk * torch.as_tensor(factor).view(-1, 1))
    assert torch.equal(mem, want_mem)


def test_compiled_layer_gives_the_same_numbers():
    layer, reference = TCLIF(init_hidden=True), TCLIF(init_hidden=True)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    x = inputs(6, B, C, dtype=torch.float32)
    got, want = torch.stack([compiled(x_t) for x_t in x]), torch.stack([reference(x_t) for x_t in x])
    assert torch.equal(got, want)
    got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(layer.c1.grad, reference.c1.grad)


def leaky_loop(leaky, x):
    mem, spikes = leaky.reset_mem(), []
    for x_t in x:
        spk, mem = leaky(x_t, mem)
        spikes.append(spk)
    return torch.stack(spikes)


@pytest.mark.parametrize(
    ("beta", "reset_delay"),
    # With its reset right after the spike Leaky is the general model's one compartment. With the delay it takes the
    # threshold off the decayed membrane, one step later and without gradient: the same neuron only if nothing decays.
    [(0.5, False), (0.9, False), (1.0, False), (1.0, True)],
)
def test_one_compartment_is_leaky(beta, reset_delay):
    # one reset per step is enough: with a membrane above the threshold after its reset, Leaky resets once more
    x = (inputs(200, B, C) * 0.5).clamp(max=2 - beta).requires_grad_()
    spike_grad = triangle(strict=True)
    exact = torch.tensor(beta, dtype=torch.float64)
    expected = leaky_loop(snn.Leaky(beta=exact, spike_grad=spike_grad, reset_delay=reset_delay).double(), x)
    output = multicompartment_sequence(x, leak=(beta,), surrogate_function=spike_grad, detach_reset=reset_delay)
    assert expected.mean() > 0.01
    assert torch.equal(output.spikes, expected)
    assert_same(gradients(output.spikes, [x]), gradients(expected, [x]))
