"""A loss on the membrane of a modulo PMSN is an error that says what to do; other membranes have gradients."""

import copy

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from snntorch import functional as SF
from spikingjelly.activation_based import functional

from pmsn_plugins.membrane_loss import refusing_gradient
from pmsn_plugins.snntorch import PMSN, TCLIF
from pmsn_plugins.spikingjelly import PMSNNode

T, B, C = 5, 3, 4


def forms(reset_mode):
    """Every way to get a membrane: name, and (spikes, membranes) of an input [T, B, C]."""
    sequence = PMSN(C, reset_mode=reset_mode)
    kept = PMSN(C, reset_mode=reset_mode, init_hidden=True, output=True)
    step = PMSN(C, reset_mode=reset_mode, step_mode="s")
    single = PMSN(C, reset_mode=reset_mode, step_mode="s", single_state=True)
    multi = PMSNNode(C, reset_mode=reset_mode, step_mode="m", store_v_seq=True)
    one = PMSNNode(C, reset_mode=reset_mode, step_mode="s", store_v_seq=True)

    def loop(layer, x):
        state, rec = layer.reset_mem(), []
        for t in range(T):
            spk, state = layer(x[t], state)
            rec.append((spk, getattr(state, "v", state)))
        return tuple(map(torch.stack, zip(*rec, strict=True)))

    def stepwise(x):
        return torch.stack([one(x[t]) for t in range(T)]), one.v_seq

    return {
        "sequence": sequence,
        "kept": kept,
        "step": lambda x: loop(step, x),
        "single state": lambda x: loop(single, x),
        "multi-step node": lambda x: (multi(x), multi.v_seq),
        "single-step node": stepwise,
    }


@pytest.mark.parametrize("form", forms("modulo"))
def test_modulo(form):
    x = 2 * torch.rand(T, B, C)
    spk, mem = forms("modulo")[form](x)
    y = torch.randint(C, (B,))
    for loss in (SF.ce_max_membrane_loss()(mem, y), mem.sum() + spk.sum()):
        with pytest.raises(RuntimeError, match=r"'memoryless' or 'cumulative' in that layer, or put a linear readout"):
            loss.backward(retain_graph=True)
    (spk.sum() + 0.0 * mem.sum()).backward()  # no gradient is wanted of it
    with torch.no_grad():
        assert not forms("modulo")[form](x)[1].requires_grad


@pytest.mark.parametrize("reset_mode", ["cumulative", "memoryless"])
@pytest.mark.parametrize("form", forms("cumulative"))
def test_without_a_reset_it_has_a_gradient(form, reset_mode):
    x = (2 * torch.rand(T, B, C)).requires_grad_()
    _, mem = forms(reset_mode)[form](x)
    SF.ce_max_membrane_loss()(mem, torch.randint(C, (B,))).backward()
    assert x.grad.any()


@pytest.fixture(params=[("s", B), ("m", B), ("m", 4096)], ids=["step", "sequence", "state left for later"])
def node_and_input(request):
    step_mode, batch = request.param
    shape = (batch, C) if step_mode == "s" else (T, batch, C)
    return PMSNNode(C, step_mode=step_mode), (2 * torch.rand(shape)).requires_grad_()


def test_the_last_membrane_of_a_node(node_and_input):
    """`net[-1].v` is what most SpikingJelly scripts read."""
    node, x = node_and_input
    spikes = node(x)
    for loss in (node.v.sum(), spikes.sum() + node.v.pow(2).sum()):
        with pytest.raises(RuntimeError, match=r"'memoryless' or 'cumulative' in that layer"):
            loss.backward(retain_graph=True)
    kept = node.v.detach().clone()
    with torch.no_grad():
        node.v[0] = 0.25  # a selective reset reaches the state
        assert (node.v[0] == 0.25).all() and torch.equal(node.v[1:], kept[1:])
    node.reset()
    (node(x).sum() + node(x).sum()).backward()  # going on from it drags nothing along
    assert x.grad.any()
    node.reset()
    with torch.no_grad():
        node(x)
    assert not node.v.requires_grad  # no graph, nothing to refuse


def test_a_detached_or_given_membrane_refuses_nothing(node_and_input):
    node, x = node_and_input
    weight = torch.ones((), requires_grad=True)
    node(x)
    functional.detach_net(node)
    (weight * node.v).sum().backward()
    assert not node.v.requires_grad and weight.grad is not None and copy.deepcopy(node.v) is not None
    node(x)
    node.v = torch.zeros_like(node.v)
    (weight * node.v).sum().backward()


def test_a_membrane_changed_in_place_before_backward_is_noticed(node_and_input):
    node, x = node_and_input
    node(x)
    v = node.v
    spikes = node(x)
    with torch.no_grad():
        v.zero_()
    with pytest.raises(RuntimeError, match="inplace operation"):
        spikes.sum().backward()


@pytest.mark.parametrize("reset_mode", ["cumulative", "memoryless", "serial"])
def test_the_last_membrane_of_a_node_without_a_modulo(reset_mode):
    x = (2 * torch.rand(T, B, C)).requires_grad_()
    node = PMSNNode(C, step_mode="m", reset_mode=reset_mode)
    node(x)
    node.v.sum().backward()
    assert x.grad.any()


def test_a_state_does_not_drag_the_refusal_along():
    layer = PMSN(C, step_mode="s")
    state = layer.reset_mem()
    for _ in range(3):
        spk, state = layer(2 * torch.rand(B, C), state)
    spk.sum().backward()
    node = PMSNNode(C, step_mode="m", store_v_seq=True)
    node(2 * torch.rand(T, B, C))
    node.v_seq.detach_()  # detach_net of SpikingJelly 0.0.0.0.14 does


def test_tclif_membranes_have_a_gradient():
    layer = TCLIF()
    _, _, mem = layer(torch.rand(B, C), *layer.reset_mem())
    mem.sum().backward()
    assert layer.c2.grad is not None


def test_functional_transforms_and_compilers_are_left_alone():
    v = torch.rand(C)
    (_, mem), vjp = torch.func.vjp(lambda x: (2 * x, refusing_gradient(v, 2 * x)), torch.rand(C))
    assert torch.equal(vjp((torch.ones(C), torch.ones_like(mem)))[0], torch.full((C,), 2.0))
    compiled = torch.compile(PMSN(C), backend="aot_eager")
    compiled(2 * torch.rand(T, B, C))[0].sum().backward()
