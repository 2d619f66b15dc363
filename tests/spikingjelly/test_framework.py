"""Our neurons inside SpikingJelly: containers, monitors, backends, functional forwards, op counters, compilation."""

import copy

import pytest
import torch

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import base, functional, layer, monitor, neuron, surrogate

from pmsn_plugins.kernels import BACKENDS
from pmsn_plugins.spikingjelly import (
    MultiCompartmentNode,
    PMSNNode,
    RecurrentTCLIFNode,
    TCLIFNode,
    register,
    unregister,
)

N, C = 2, 4
IS_2 = hasattr(base, "to_functional_forward")
needs_2 = pytest.mark.skipif(not IS_2, reason="SpikingJelly 2.0 has this, 0.0.0.0.14 does not")
needs_014 = pytest.mark.skipif(IS_2, reason="SpikingJelly 0.0.0.0.14 has this, 2.0 does not")


def inputs(T, *space, seed=0):
    return torch.randn(T, N, C, *space, generator=torch.Generator().manual_seed(seed)) + 0.3


def small_net(node, step_mode="m"):
    net = torch.nn.Sequential(layer.Linear(C, C), node, layer.Linear(C, 2))
    functional.set_step_mode(net, step_mode)
    return net


def test_they_are_spikingjelly_neurons(make):
    node = make()
    assert isinstance(node, neuron.BaseNode)
    functional.set_step_mode(torch.nn.Sequential(node), "m")
    assert node.step_mode == "m"
    assert "v_threshold=1.0" in repr(node) and "backend=" in repr(node)


def test_net_in_both_step_modes(make):
    net = small_net(make())
    x = inputs(10)
    expected = net(x)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    torch.testing.assert_close(functional.multi_step_forward(x, net), expected)


def test_multi_step_container(make):
    node = make()
    x = inputs(10)
    expected = layer.MultiStepContainer(node)(x)
    node.reset()
    node.step_mode = "m"
    assert torch.equal(node(x), expected)


def test_linear_recurrent_container(make):
    torch.manual_seed(0)
    recurrent = layer.LinearRecurrentContainer(make(), C, C, step_mode="m")
    torch.nn.init.ones_(recurrent.rc.bias)
    x = inputs(12)
    spikes = recurrent(x)
    node, y, expected = recurrent.sub_module, torch.zeros(N, C), []
    node.reset()
    for x_t in x:
        y = node(recurrent.rc(torch.cat([x_t, y], -1)))
        expected.append(y)
    assert spikes.any() and torch.equal(spikes, torch.stack(expected))
    spikes.sum().backward()
    assert all(p.grad.isfinite().all() for p in recurrent.parameters())


def test_element_wise_recurrent_container(make):
    recurrent = layer.ElementWiseRecurrentContainer(make(), lambda y, x: x - 0.5 * y, step_mode="m")
    x = inputs(12)
    spikes = recurrent(x)
    node, y, expected = recurrent.sub_module, torch.zeros(N, C), []
    node.reset()
    for x_t in x:
        y = node(x_t - 0.5 * y)
        expected.append(y)
    assert spikes.any() and torch.equal(spikes, torch.stack(expected))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_monitors_see_the_neuron(make, step_mode):
    net = small_net(make(store_v_seq=True), step_mode)
    outputs = monitor.OutputMonitor(net, neuron.BaseNode)
    membranes = monitor.AttributeMonitor("v_seq", False, net, neuron.BaseNode)
    gradients = monitor.GradOutputMonitor(net, neuron.BaseNode)
    x = inputs(5)
    net(x if step_mode == "m" else x[0]).sum().backward()
    shape = (5, N, C) if step_mode == "m" else (N, C)
    assert outputs.records[0].shape == gradients.records[0].shape == shape
    assert outputs["1"][0] is outputs.records[0]
    assert membranes.records[0].shape == ((5 if step_mode == "m" else 1), N, C)
    assert torch.equal(membranes.records[0][-1], net[1].v)


def test_backend_is_checked_and_listed():
    for node in (PMSNNode(C), TCLIFNode()):
        assert node.supported_backends == BACKENDS and node.backend == "auto"
        node.backend = "torch"
        with pytest.raises(ValueError, match="backend must be one of 'auto', 'torch'"):
            node.backend = "lava"
        assert node.backend == "torch"


@needs_014
def test_set_backend():
    net = small_net(torch.nn.Sequential(PMSNNode(C), TCLIFNode(), MultiCompartmentNode(2)))
    functional.set_backend(net, "auto")
    assert [node.backend for node in net[1]] == ["auto", "auto", "torch"]
    functional.set_backend(net, "torch", instance=PMSNNode)
    assert [node.backend for node in net[1]] == ["torch", "auto", "torch"]


@needs_2
def test_functional_forward(make):
    net = small_net(make())
    x = inputs(9)
    expected = net(x)
    functional.reset_net(net)
    forward = base.to_functional_forward(net)
    fresh = tuple(base.extract_memories(net))
    (first,), states = forward((x[:4],), fresh)
    (second,), states = forward((x[4:],), states)
    assert torch.equal(torch.cat([first, second]), expected)
    assert tuple(base.extract_memories(net)) == fresh, "the memories must stay untouched"
    single = base.to_functional_forward(net[1])
    net[1].step_mode = "s"
    states, spikes = tuple(base.extract_memories(net[1])), []
    for x_t in net[0](x):
        (s,), states = single((x_t,), states)
        spikes.append(s)
    net[1].step_mode = "m"
    assert torch.equal(torch.stack(spikes), net[1](net[0](x)))


@needs_2
def test_functional_forward_without_state():
    net = small_net(PMSNNode(4, keep_state=False))
    x = inputs(9)
    fresh = tuple(base.extract_memories(net))
    (spikes,), states = base.to_functional_forward(net)((x,), fresh)
    assert torch.equal(spikes, net(x)) and tuple(states) == fresh


@needs_2
@pytest.mark.parametrize("chunks", [1, 3])
def test_memopt(make, chunks):
    from spikingjelly.activation_based import memopt

    net = small_net(make())
    x = inputs(9)
    optimised = copy.deepcopy(net)
    if chunks == 1:
        memopt.optimize_memory(optimised, neuron.BaseNode, lambda net: net(x), level=1)
    else:
        optimised[1] = memopt.checkpoint_module(optimised[1], chunks=chunks)
    expected, y = net(x), optimised(x)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    (expected * weight).sum().backward()
    (y * weight).sum().backward()
    for p, q in zip(net.parameters(), optimised.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-4, atol=1e-5)


@needs_2
def test_reset_net_finds_swapped_neurons():
    from pmsn_plugins import swap_neurons

    net = small_net(neuron.IFNode())
    x = inputs(5)
    net(x)
    functional.reset_net(net)  # 2.0 now remembers the IFNode
    swap_neurons(net, PMSNNode)
    expected = net(x)
    functional.reset_net(net)
    assert net[1].v == 0.0 and torch.equal(net(x), expected)


@needs_2
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_op_counters(step_mode):
    from spikingjelly.activation_based import op_counter

    from pmsn_plugins.spikingjelly.op_counter import NeuronOpCounter

    nodes = [PMSNNode(C, 5), TCLIFNode(), MultiCompartmentNode(3)]
    net = torch.nn.Sequential(*nodes)
    functional.set_step_mode(net, step_mode)
    x = inputs(20) if step_mode == "m" else inputs(1)[0]
    neurons, memory = NeuronOpCounter(), op_counter.NeuromorphicMemoryAccessCounter()
    ignore = [PMSNNode, TCLIFNode, MultiCompartmentNode]
    others = [op_counter.ACCounter(extra_ignore_modules=ignore), op_counter.MACCounter(extra_ignore_modules=ignore)]
    outputs = monitor.OutputMonitor(net, neuron.BaseNode)
    with op_counter.DispatchCounterMode(others), op_counter.ModuleCounterMode([neurons, memory], model=net):
        net(x)
    spikes = [int(s.sum()) for s in outputs.records]
    M = x.numel()
    counts = neurons.get_counts()
    assert counts["Sequential.0"] == {"mac": 25 * M, "ac": 5 * M + spikes[0]}  # k = 4: 6 k + 1, k + 1
    assert counts["Sequential.1"] == {"mac": 2 * M, "ac": 2 * spikes[1]}
    assert counts["Sequential.2"] == {"mac": 10 * M, "ac": 3 * spikes[2]}
    assert neurons.get_total() == 37 * M + 5 * M + spikes[0] + 2 * spikes[1] + 3 * spikes[2]
    assert counts["Global"]["mac"] == 37 * M
    assert [counter.get_total() for counter in others] == [0, 0]
    # 1 + 2 k, 2 and 3 states of 4 bytes, read and written in every step
    assert memory.get_total() == 2 * 4 * (9 + 2 + 3) * M


def test_register_is_idempotent_and_undoable():
    ours = {"PMSNNode": PMSNNode, "TCLIFNode": TCLIFNode, "MultiCompartmentNode": MultiCompartmentNode}
    before = set(vars(neuron))
    try:
        register()
        register()
        assert all(getattr(neuron, name) is node for name, node in ours.items())
        if IS_2:
            from spikingjelly.activation_based import op_counter

            assert op_counter.NeuronOpCounter().has_rule(("forward", TCLIFNode()))
    finally:
        unregister()
    unregister()
    assert set(vars(neuron)) == before
    if IS_2:
        assert not hasattr(op_counter, "NeuronOpCounter")


def test_register_leaves_a_foreign_name_alone(monkeypatch):
    monkeypatch.setattr(neuron, "TCLIFNode", object, raising=False)
    with pytest.raises(RuntimeError, match="TCLIFNode exists and is not ours"):
        register()
    unregister()
    assert neuron.TCLIFNode is object and not hasattr(neuron, "PMSNNode")


@pytest.mark.parametrize(
    ("node", "step_mode"),
    [
        (PMSNNode(C), "s"),
        (TCLIFNode(), "m"),
        (RecurrentTCLIFNode(C), "s"),
        (RecurrentTCLIFNode(C), "m"),
        (MultiCompartmentNode(2), "m"),
    ],  # PMSNNode "m": see test_swap.py
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_compiled_node_gives_the_same_numbers(node, step_mode):
    torch._dynamo.reset()
    node.step_mode = step_mode
    eager = copy.deepcopy(node)
    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    x = inputs(3) if step_mode == "m" else inputs(1)[0]
    for _ in range(2):  # after a reset, and with a state
        y, expected = compiled(x), eager(x)
        assert torch.equal(y, expected)
    y.sum().backward()
    expected.sum().backward()
    for p, q in zip(node.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    functional.detach_net(node)
    functional.detach_net(eager)
    assert torch.equal(compiled(x), eager(x))
    functional.reset_net(node)
    functional.reset_net(eager)
    assert torch.equal(compiled(x), eager(x))


def test_other_surrogates(make):
    for function in (surrogate.ATan(), surrogate.Sigmoid(alpha=2.0), surrogate.LeakyKReLU()):
        node = make(step_mode="m", surrogate_function=function)
        x = inputs(10).requires_grad_()
        node(x).sum().backward()
        assert x.grad.isfinite().all() and x.grad.any()
