"""single_state=True: loops written for snn.Leaky run unchanged, with the whole state in the place of mem."""

import copy

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
