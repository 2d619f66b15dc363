"""single_state=True: loops written for snn.Leaky run unchanged, with the whole state in the place of mem."""

import copy
import io

import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from torch import nn

from pmsn_plugins.snntorch import PMSN, TCLIF, Membrane

T, B, C = 6, 3, 5
kinds = pytest.mark.parametrize("kind", ["PMSN", "TCLIF"])


def make(kind, channels=C, **options):
    if kind == "PMSN":
        return PMSN(channels, step_mode="s", single_state=True, **options)
    return TCLIF(beta=(-0.2, 0.8), threshold=0.5, single_state=True, **options)


class Tutorial5(nn.Module):
    """The structure of snnTorch's tutorial 5, for any neuron in the place of Leaky."""

    def __init__(self, neuron):
        super().__init__()
        self.fc1 = nn.Linear(4, C)
        self.lif1 = neuron(C)
        self.fc2 = nn.Linear(C, 2)
        self.lif2 = neuron(2)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(T):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


@pytest.mark.parametrize(
    "neuron",
    [
        lambda C: snn.Leaky(beta=0.9),
        lambda C: make("TCLIF"),
        lambda C: make("PMSN", C),
        lambda C: make("PMSN", C, reset_mode="memoryless"),
    ],
    ids=["Leaky", "TCLIF", "PMSN", "PMSN without reset"],
)
def test_tutorial_5_runs_unchanged(neuron):
    net, y = Tutorial5(neuron), torch.tensor([0, 1, 1])
    x = 4 * torch.rand(B, 4)
    spk_rec, mem_rec = net(x)
    assert type(mem_rec) is torch.Tensor and mem_rec.shape == spk_rec.shape == (T, B, 2)
    membrane = torch.zeros(1)
    for step in range(T):
        membrane = membrane + nn.CrossEntropyLoss()(mem_rec[step], y)
    loss = SF.ce_rate_loss()(spk_rec, y)
    if getattr(net.lif2, "reset_mode", "") != "modulo":
        loss = loss + membrane
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@kinds
def test_the_same_numbers_as_with_all_states(kind):
    layer = make(kind)
    other = PMSN(C, step_mode="s") if kind == "PMSN" else TCLIF(beta=(-0.2, 0.8), threshold=0.5)
    other.load_state_dict(layer.state_dict())
    mem, states = layer.reset_mem(), other.reset_mem()
    x, total, expected_total = 2 * torch.rand(T, B, C), 0.0, 0.0
    for t in range(T):
        spk, mem = layer(x[t], mem)
        if kind == "PMSN":
            expected, states = other(x[t], states)
            assert torch.equal(mem, states.v) and mem.shape == (B, C)
        else:
            expected, *states = other(x[t], *states)
            assert torch.equal(mem, states[1])
        assert torch.equal(spk, expected)
        total, expected_total = total + spk.sum(), expected_total + expected.sum()
    grads = [torch.autograd.grad(s, each.parameters()) for s, each in ((total, layer), (expected_total, other))]
    assert all(torch.equal(a, b) and a.any() for a, b in zip(*grads, strict=True))


@kinds
def test_the_state_can_be_cut_copied_and_kept(kind):
    layer, x = make(kind), 2 * torch.rand(B, C)
    _, mem = layer(x, layer.reset_mem())
    assert isinstance(mem, Membrane) and mem != None  # noqa: E711  (snnTorch asks so)
    for cut in (mem.detach(), copy.deepcopy(mem)):
        assert isinstance(cut, Membrane) and not any(c.requires_grad for c in cut.compartments.values())
        assert torch.equal(layer(x, cut)[0], layer(x, mem)[0])
    layer(x, mem)
    snn.SpikingNeuron.detach(mem)  # in place
    spk, _ = layer(x, mem)
    assert not any(c.requires_grad for c in mem.compartments.values())
    spk.sum().backward()
    layer(x, mem)[0].sum().backward()
    assert torch.equal(layer(x, torch.zeros(1))[0], layer(x, layer.init_leaky())[0])  # zeros of any shape: from rest


@kinds
def test_hidden_states_are_kept_as_ever(kind):
    layer = make(kind, init_hidden=True, output=True)
    for _ in range(2):
        spk, mem = layer(torch.rand(B, C))
        assert spk.shape == mem.shape == (B, C) and not isinstance(mem, Membrane)


@kinds
def test_errors(kind):
    layer, x = make(kind), torch.rand(B, C)
    _, mem = layer(x, layer.reset_mem())
    with pytest.raises(
        TypeError, match="a tensor computed from it, or changed in place, has lost the other compartments"
    ):
        layer(x, mem * 1 + 1)
    with pytest.raises(TypeError, match="the state that the layer returned, got float"):
        layer(x, 0.0)
    other = make("TCLIF" if kind == "PMSN" else "PMSN")
    with pytest.raises(TypeError, match=f"that this {type(layer).__name__} returned"):
        layer(x, other(x, other.reset_mem())[1])
    with pytest.raises(ValueError, match="reset the state when the batch size"):
        layer(x[:2], mem)


def test_init_leaky_belongs_to_single_state():
    for layer in (TCLIF(), PMSN(C, step_mode="s")):
        with pytest.raises(TypeError, match="single_state=True"):
            layer.init_leaky()
    with pytest.raises(TypeError, match="there is one state, mem; got two"):
        TCLIF(single_state=True)(torch.rand(2), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="use step_mode='s'"):
        PMSN(C, single_state=True)


@kinds
@pytest.mark.parametrize("reset_mode", ["modulo", "cumulative"])
def test_a_membrane_detached_in_place_is_detached(kind, reset_mode):
    if kind == "TCLIF" and reset_mode != "modulo":
        pytest.skip("of PMSN")
    layer = make(kind, **({"reset_mode": reset_mode} if kind == "PMSN" else {}))
    x = torch.rand(B, C, requires_grad=True)
    spk, mem = layer(x, layer.reset_mem())
    loss = 0 * spk.sum()
    if reset_mode != "modulo" or kind == "TCLIF":
        loss = loss + mem.sum()  # what was recorded before stays
    assert mem.requires_grad and mem.detach_() is mem
    assert not mem.requires_grad and not any(c.requires_grad for c in mem.compartments.values())
    assert isinstance(mem, Membrane)
    loss.backward()
    assert x.grad is not None


@pytest.mark.parametrize("grad", [True, False])
@kinds
def test_a_membrane_changed_in_place_is_no_state(kind, grad):
    layer, x = make(kind), 2 * torch.rand(B, C)
    with torch.set_grad_enabled(grad):
        _, mem = layer(x, layer.reset_mem())
        cut, want = mem.detach(), layer(x, layer.reset_mem())[0]
        mem[0] = 1.0
        for changed in (mem, cut, mem.detach()):
            with pytest.raises(TypeError, match="or changed in place, has lost the other compartments"):
                layer(x, changed)
        for changed in (copy.deepcopy(mem), loaded(mem)):
            assert type(changed) is torch.Tensor and torch.equal(changed, mem)
        mem.zero_()  # as a Leaky is reset
        assert torch.equal(layer(x, mem)[0], want)


def loaded(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("single_state", [True, False])
@kinds
def test_states_are_loaded_without_trust(kind, single_state):
    layer = make(kind) if single_state else PMSN(C, step_mode="s") if kind == "PMSN" else TCLIF()
    x = 2 * torch.rand(B, C)
    for _ in range(2):
        _, *state = layer(x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            again = [loaded(part) for part in state]
            assert [type(part) for part in again] == [type(part) for part in state]
            assert torch.equal(layer(x, *again)[0], layer(x, *state)[0])


def silent(kind):
    """A layer whose membrane stays at zero while its other compartments do not, and an input that does that."""
    layer = make(kind)
    if kind == "TCLIF":
        layer.c2.data.fill_(-200.0)  # the soma sees nothing of the dendrite
        return layer, torch.rand(B, C)
    layer.D.data.fill_(100.0)
    return layer, -torch.rand(B, C)


@kinds
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_zeros_computed_from_a_silent_membrane_are_no_initial_state(kind, mode):
    layer, x = silent(kind)
    with mode():
        _, mem = layer(x, torch.zeros(B, C))  # nothing before: the initial state
        assert not mem.any() and any(c.any() for c in mem.compartments.values())
        for computed in (mem.clone(), mem * 0.5, mem[:], mem + 0):
            with pytest.raises((TypeError, ValueError), match="lost the other compartments"):
                layer(x, computed)
        layer(x, mem)
        layer(x, torch.zeros(1)), layer(x, torch.zeros(0)), layer(x[:2], torch.zeros(2, C))  # of another shape
        layer.reset_mem()
        layer(x, torch.zeros(B, C))


@kinds
def test_zeros_at_the_start_of_every_batch(kind):
    layer, x = make(kind), 2 * torch.rand(T, B, C)

    def batch():
        mem, out = torch.zeros(B, C), []
        for step in x:
            spk, mem = layer(step, mem)
            out.append(spk)
        return torch.stack(out)

    want = batch()
    assert torch.equal(batch(), want) and want.any()
    with pytest.raises(TypeError, match="must be the state"):  # it would not be learned
        layer(x[0], torch.zeros(B, C, requires_grad=True))


@kinds
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("loop", ["passed", "not passed"])
@pytest.mark.filterwarnings("ignore")
def test_export(kind, strict, loop, request):
    if strict:
        request.getfixturevalue("compiled_membranes")

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, C), make(kind)

        def forward(self, x):
            mem, spikes = self.lif.init_leaky(), []
            for step in x.unbind():
                spk, mem = self.lif(3 * self.fc(step), mem) if loop == "passed" else self.lif(3 * self.fc(step))
                spikes.append(spk)
            return torch.stack(spikes), mem

    torch.manual_seed(0)
    net, x = Net().eval(), 2 * torch.rand(T, B, 4)
    want = net(x)
    program = torch.export.export(net, (x,), strict=strict)
    assert all(torch.equal(got, each) for got, each in zip(program.module()(x), want, strict=True))
    assert all(torch.equal(got, each) for got, each in zip(net(x), want, strict=True))  # as it was


@kinds
def test_compiled_steps_take_states_of_eager_ones(kind, compiled_membranes):
    layer, x = make(kind), 2 * torch.rand(B, C)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    _, mem = layer(x, layer.reset_mem())
    want = layer(x, mem)[0]
    spk, after = compiled(x, mem)
    assert torch.equal(spk, want) and isinstance(after, Membrane)
    assert torch.equal(layer(x, after)[0], compiled(x, after)[0])
