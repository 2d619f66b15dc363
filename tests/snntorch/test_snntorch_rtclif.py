"""The snnTorch RTCLIF layer: the functional reference's numbers, snn.RSynaptic's manners."""

import pytest
import snntorch as snn
import torch
from torch import nn

from pmsn_plugins import functional
from pmsn_plugins.functional import SOMA_FEEDBACK, triangle
from pmsn_plugins.snntorch import RTCLIF, TCLIF

T, B, C = 40, 3, 5


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3


def make(**options):
    torch.manual_seed(0)
    return RTCLIF(beta=(-0.3, 0.7), linear_features=C, **options).double()


def loop(layer, x, start=None):
    spk, dend, mem = layer.reset_mem() if start is None else start
    spikes = []
    for x_t in x:
        spk, dend, mem = layer(x_t, spk, dend, mem)
        spikes.append(spk)
    return torch.stack(spikes), (spk, dend, mem)


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@pytest.mark.parametrize("per_channel", [False, True])
def test_loop_and_sequence_are_the_reference(soma_feedback, per_channel):
    options = {"gamma": 0.6, "threshold": 0.8, "soma_feedback": soma_feedback}
    layer = make(per_channel=per_channel, **options)
    sequence = make(per_channel=per_channel, step_mode="m", **options)
    sequence.load_state_dict(layer.state_dict())
    x = inputs(T, B, C).requires_grad_()
    expected = functional.tclif_recurrent_sequence(
        x,
        layer.recurrent.weight,
        layer.recurrent.bias,
        *layer.couplings(2),
        gamma=0.6,
        v_threshold=0.8,
        soma_feedback=soma_feedback,
        surrogate_function=triangle(strict=True),
    )
    assert 0.05 < expected.spikes.mean() < 0.7
    want = torch.autograd.grad((expected.spikes * x.detach()).sum(), [x, *layer.parameters()])
    spikes, (spk, dend, mem) = loop(layer, x)
    whole, last_dend, last_mem = sequence(x, *layer.reset_mem())
    for actual, net in ((spikes, layer), (whole, sequence)):
        assert torch.equal(actual, expected.spikes)
        got = torch.autograd.grad((actual * x.detach()).sum(), [x, *net.parameters()])
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)
    for a, b in zip((spk, dend, mem), (whole[-1], last_dend, last_mem), strict=True):
        assert torch.equal(a, b)


def test_a_sequence_goes_on_where_the_last_one_stopped():
    sequence = make(step_mode="m")
    x = inputs(T, B, C)
    whole, dend, mem = sequence(x, *sequence.reset_mem())
    first, d, m = sequence(x[:15], *sequence.reset_mem())
    second, d, m = sequence(x[15:], first[-1], d, m)
    assert torch.equal(torch.cat([first, second]), whole) and torch.equal(m, mem) and torch.equal(d, dend)
    sequence.reset_mem()
    sequence(x[:15])
    assert torch.equal(sequence(x[15:])[0], second)  # a call without states continues from the last one
    hidden = make(step_mode="m", init_hidden=True)
    assert torch.equal(torch.cat([hidden(x[:15]), hidden(x[15:])]), whole)
    assert torch.equal(hidden.spk, whole[-1])


def test_it_is_called_like_rsynaptic():
    theirs = snn.RSynaptic(alpha=0.9, beta=0.8, linear_features=C)
    ours = RTCLIF(linear_features=C)
    assert isinstance(ours, snn.RSynaptic) and isinstance(ours.recurrent, nn.Linear)
    for layer in (theirs, ours):
        spk, syn, mem = layer.init_rsynaptic()
        for x_t in inputs(4, B, C).float():
            spk, syn, mem = layer(x_t, spk, syn, mem)
        assert spk.shape == syn.shape == mem.shape == (B, C)
        assert set(dict(layer.recurrent.named_parameters())) == {"weight", "bias"}


def test_the_spikes_that_are_handed_back_are_fed_back():
    layer = make()
    x = inputs(B, C)
    ones, none = (layer(x, value * torch.ones(B, C).double(), x, x)[2] for value in (1.0, 0.0))
    b2 = layer.couplings(2)[1]
    change = (torch.nn.functional.linear(torch.ones(B, C).double(), layer.recurrent.weight) * b2).detach()
    torch.testing.assert_close((ones - none).detach(), change)


@pytest.mark.parametrize("V", [-0.7, torch.linspace(-1, 1, C)])
def test_one_to_one(V):
    torch.manual_seed(0)
    layer = RTCLIF(all_to_all=False, V=V, step_mode="m", init_hidden=True).double()
    assert list(layer.state_dict()) == ["c1", "c2", "V"]
    x = inputs(T, B, C)
    spikes = layer(x)
    weight = torch.diag(torch.as_tensor(V).double().expand(C))
    expected = functional.tclif_recurrent_sequence(
        x, weight, None, *layer.couplings(2), surrogate_function=triangle(strict=True)
    )
    assert torch.equal(spikes, expected.spikes) and spikes.any()
    spikes.sum().backward()
    assert layer.V.grad.shape == layer.V.shape and layer.V.grad.any()
    if isinstance(V, torch.Tensor):
        with pytest.raises(ValueError, match=r"V must be one number or one per neuron \(4\), got shape \(5,\)"):
            RTCLIF(all_to_all=False, V=V)(torch.ones(B, 4))


def test_fixed_feedback():
    layer = make(learn_recurrent=False, step_mode="m")
    layer(inputs(T, B, C))[0].sum().backward()
    assert layer.recurrent.weight.grad is None and layer.c1.grad is not None
    assert not RTCLIF(all_to_all=False, learn_recurrent=False).V.requires_grad


def test_learned_threshold():
    layer = make(learn_threshold=True, step_mode="m", init_hidden=True)
    layer(inputs(T, B, C)).sum().backward()
    assert layer.threshold.grad is not None and layer.threshold.grad != 0


def test_hidden_state_is_forgotten_and_cut():
    layer = make(init_hidden=True)
    x = inputs(T, B, C).requires_grad_()
    first = torch.stack([layer(x_t) for x_t in x])
    layer.detach_mem()
    assert not any(state.requires_grad for state in (layer.spk, layer.syn, layer.mem))
    snn.utils.reset(nn.Sequential(layer))
    assert layer.spk.numel() == layer.syn.numel() == layer.mem.numel() == 0
    assert torch.equal(torch.stack([layer(x_t) for x_t in x]), first)


def test_around_a_layer():
    inner = TCLIF(
        (-0.2, 0.8),
        0.7,
        torch.tensor(0.6),
        snn.surrogate.atan(),
        soma_feedback="pre_reset",
        detach_reset=True,
        leak=(0.9, 0.8),
        channels=C,
        learn_threshold=True,
        init_hidden=True,
        output=True,
    )
    layer = RTCLIF.around(inner, C, bias=False, step_mode="m")
    assert layer.c1 is inner.c1 and layer.c2 is inner.c2 and layer.threshold is inner.threshold
    assert layer.recurrent.bias is None and layer.init_hidden and layer.output and layer.step_mode == "m"
    with torch.no_grad():
        layer.recurrent.weight.zero_()
    x = inputs(T, B, C).float()
    assert torch.equal(layer(x)[0], torch.stack([inner(x_t)[0] for x_t in x]))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (ValueError, r"x must be one time step \[B, C\].*\(2, 3, 5\)", lambda: make()(inputs(2, B, C))),
        (ValueError, r"x must be a sequence \[T, B, C\].*\(3, 5\)", lambda: make(step_mode="m")(inputs(B, C))),
        (ValueError, "5 channels on axis 1", lambda: make()(inputs(B, 4))),
        (TypeError, "x must be.*floating", lambda: make()(torch.ones(B, C).long())),
        (
            TypeError,
            "must not be passed while init_hidden=True",
            lambda: make(init_hidden=True)(inputs(B, C), inputs(B, C)),
        ),
        (
            ValueError,
            "state mem has shape.*reset the state",
            lambda: make()(inputs(B, C), inputs(B, C), inputs(B, C), inputs(2, C)),
        ),
    ],
)
def test_bad_input(error, match, call):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_compiled_without_a_graph_break(step_mode):
    torch._dynamo.reset()
    layer, expected = make(step_mode=step_mode), make(step_mode=step_mode)
    compiled, x = torch.compile(layer, fullgraph=True, backend="aot_eager"), inputs(6, B, C)
    if step_mode == "m":
        got, want = compiled(x)[0], expected(x)[0]
    else:
        states, got = layer.reset_mem(), []
        for x_t in x:
            states = compiled(x_t, *states)
            got.append(states[0])
        got, want = torch.stack(got), loop(expected, x)[0]
    assert torch.equal(got, want)
    got.sum().backward(), want.sum().backward()
    for p, q in zip(layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)
