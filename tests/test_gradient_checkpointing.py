"""Gradient checkpointing repeats forward passes of neurons that keep their state: right, or an error that says why."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

T, N, C = 6, 2, 3
reentrant = pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
backends = pytest.mark.parametrize("backend", ["torch", "auto"])


def make_node(kind, **options):
    pytest.importorskip("spikingjelly")
    from pmsn_plugins import spikingjelly as sj

    if kind == "MultiCompartmentNode":
        options.pop("backend", None)
    torch.manual_seed(0)
    node = getattr(sj, kind)(*((C,) if kind == "PMSNNode" else ()), v_threshold=0.3, **options)
    if kind == "PMSNNode":
        node.D.data.abs_()  # driven below zero it would be silent
    return node


def make_layer(kind, **options):
    pytest.importorskip("snntorch")
    from pmsn_plugins import snntorch as snn

    torch.manual_seed(0)
    options |= {"PMSN": {"channels": C}, "RTCLIF": {"linear_features": C}}.get(kind, {})
    layer = getattr(snn, kind)(threshold=0.3, **options)
    if kind == "PMSN":
        layer.D.data.abs_()
    return layer


nodes = pytest.mark.parametrize("kind", ["PMSNNode", "TCLIFNode", "MultiCompartmentNode"])


def gradients(run, module, between=lambda: None):
    """Of the input and all parameters, for a weighted sum of what ``run`` makes of the input."""
    torch.manual_seed(1)
    x = (2 * torch.rand(T, N, C)).requires_grad_()
    out = run(x)
    between()
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    found = [x.grad, *(p.grad for p in module.parameters())]
    assert found[0].any() and any(gradient.any() for gradient in found[1:])
    module.zero_grad()
    return found


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


@nodes
@backends
@reentrant
def test_sequences_from_rest(kind, backend, use_reentrant):
    node = make_node(kind, step_mode="m", backend=backend, store_v_seq=True)
    expected = gradients(node, node)
    left, v_seq = node._states(), node.v_seq

    def run(x):
        return checkpoint(node, x, use_reentrant=use_reentrant)

    node.reset()
    assert_same(gradients(run, node), expected)
    assert_same(node._states(), left)  # as the forward pass left them
    assert torch.equal(node.v_seq, v_seq)
    node.reset()
    assert_same(gradients(run, node, between=node.reset), expected)
    assert node._states() == (0.0,) * len(left)


@nodes
@reentrant
def test_one_step_from_rest(kind, use_reentrant):
    node = make_node(kind)
    expected = gradients(lambda x: node(x[0] + x.mean(0)), node)
    node.reset()
    assert_same(gradients(lambda x: checkpoint(node, x[0] + x.mean(0), use_reentrant=use_reentrant), node), expected)


@backends
@reentrant
def test_a_net_checkpointed_in_parts(backend, use_reentrant):
    options = {"step_mode": "m", "backend": backend}
    first = nn.Sequential(nn.Linear(C, C), make_node("PMSNNode", **options), nn.Linear(C, C))
    net = nn.Sequential(first, make_node("TCLIFNode", **options), make_node("MultiCompartmentNode", step_mode="m"))
    expected = gradients(net, net)

    def run(x):
        for part in net:
            x = checkpoint(part, x, use_reentrant=use_reentrant)
        return x

    from spikingjelly.activation_based import functional

    for _ in range(2):
        functional.reset_net(net)
        assert_same(gradients(run, net), expected)


def in_steps(neuron, wrap):
    return lambda x: torch.stack([wrap(neuron)(x_t) for x_t in x])


def in_chunks(neuron, wrap):
    return lambda x: torch.cat([wrap(neuron)(chunk) for chunk in x.split(2)])


@nodes
@reentrant
@pytest.mark.parametrize("between", ["reset", "nothing"])
def test_a_node_that_has_continued_says_so(kind, use_reentrant, between):
    for mode, run in (("s", in_steps), ("m", in_chunks)):
        node = make_node(kind, step_mode=mode)
        checkpointed = run(node, lambda node: lambda x: checkpoint(node, x, use_reentrant=use_reentrant))
        with pytest.raises(RuntimeError, match=rf"{kind} .*torch.utils.checkpoint.*keep_state=False"):
            gradients(checkpointed, node, node.reset if between == "reset" else lambda: None)


@reentrant
def test_a_loop_inside_one_checkpoint(use_reentrant):
    node = make_node("TCLIFNode")
    with pytest.raises(RuntimeError, match="keep_state=False"):
        gradients(lambda x: checkpoint(in_steps(node, lambda n: n), x, use_reentrant=use_reentrant), node)


@reentrant
def test_what_ran_before_counts(use_reentrant):
    """Whether what was computed without gradients was the first half of a reentrant checkpoint, nobody can tell."""
    node = make_node("TCLIFNode", step_mode="m")
    expected = gradients(node, node)

    def run(x):
        node.reset()
        return checkpoint(node, x, use_reentrant=use_reentrant)

    with torch.inference_mode():
        in_chunks(node, lambda n: n)(torch.rand(T, N, C))
    assert_same(gradients(run, node), expected)
    with torch.no_grad():
        in_chunks(node, lambda n: n)(torch.rand(T, N, C))
    with pytest.raises(RuntimeError, match="keep_state=False"):
        gradients(run, node)
    node = copy.deepcopy(node)  # a copy has no past that a backward pass could come to
    assert_same(gradients(run, node), expected)


@pytest.mark.parametrize("kind", ["PMSNNode", "TCLIFNode"])
@backends
@reentrant
def test_without_kept_state(kind, backend, use_reentrant):
    node = make_node(kind, step_mode="m", backend=backend, keep_state=False)
    expected = gradients(in_chunks(node, lambda n: n), node)
    run = in_chunks(node, lambda node: lambda x: checkpoint(node, x, use_reentrant=use_reentrant))
    assert_same(gradients(run, node), expected)


@nodes
@pytest.mark.parametrize("chunks", [1, 3])
def test_spikingjellys_own_checkpoints(kind, chunks):
    """They hand the states over, so that steps and chunks are right too."""
    memopt = pytest.importorskip("spikingjelly.activation_based.memopt")
    if not hasattr(memopt, "checkpoint_module"):
        pytest.skip("this release has no checkpoint_module")

    class Scale(nn.Module):
        """Its buffer makes SpikingJelly run the whole module with loaded memories, not the node alone."""

        def __init__(self):
            super().__init__()
            self.register_buffer("factor", torch.tensor(1.5))

        def forward(self, x):
            return self.factor * x

    for mode in ("m", "s"):
        for first in (nn.Linear(C, C), Scale()):
            node = make_node(kind, step_mode=mode)
            net = nn.Sequential(first, node)
            if mode == "m":
                plain, wrapped = net, memopt.checkpoint_module(net, chunks=chunks)
            else:
                plain, wrapped = (in_steps(n, lambda n: n) for n in (net, memopt.checkpoint_module(net)))
            expected = gradients(plain, net)
            left = node._states()
            node.reset()
            torch.testing.assert_close(gradients(wrapped, net), expected)
            torch.testing.assert_close(node._states(), left)


@backends
@reentrant
def test_snntorch_sequences_from_rest(backend, use_reentrant):
    layer = make_layer("PMSN", init_hidden=True, backend=backend)
    expected = gradients(layer, layer)
    left = (layer.mem, layer.h_real, layer.h_imag)

    def run(x):
        return checkpoint(layer, x, use_reentrant=use_reentrant)

    layer.reset_mem()
    assert_same(gradients(run, layer), expected)
    assert_same((layer.mem, layer.h_real, layer.h_imag), left)
    layer.reset_mem()
    assert_same(gradients(run, layer, between=layer.reset_mem), expected)
    assert layer.mem.numel() == 0


@pytest.mark.parametrize("kind", ["PMSN", "TCLIF", "RTCLIF"])
@reentrant
@pytest.mark.parametrize("between", ["reset", "nothing"])
def test_an_snntorch_layer_that_has_continued_says_so(kind, use_reentrant, between):
    options = {"step_mode": "s"} if kind == "PMSN" else {}
    layer = make_layer(kind, init_hidden=True, **options)
    run = in_steps(layer, lambda layer: lambda x: checkpoint(layer, x, use_reentrant=use_reentrant))
    with pytest.raises(RuntimeError, match=rf"{kind} .*torch.utils.checkpoint.*pass the state explicitly"):
        gradients(run, layer, layer.reset_mem if between == "reset" else lambda: None)


@backends
@reentrant
def test_snntorch_states_that_are_passed(backend, use_reentrant):
    def loop(layer, call, states):
        def run(x):
            state, spikes = states(layer), []
            for x_t in x:
                spk, *state = call(layer, x_t, *state)
                spikes.append(spk)
            return torch.stack(spikes)

        return run

    def zeros(layer):
        return [torch.zeros(N, C) for _ in range(2)]

    def call(layer, x, *state):
        return checkpoint(layer, x, *state, use_reentrant=use_reentrant)

    layer = make_layer("TCLIF", backend=backend)
    expected = gradients(loop(layer, lambda layer, *args: layer(*args), zeros), layer)
    left = (layer.syn.detach(), layer.mem.detach())
    assert_same(gradients(loop(layer, call, zeros), layer), expected)
    assert_same((layer.syn.detach(), layer.mem.detach()), left)  # as the last step left them


@reentrant
@pytest.mark.parametrize("kind", ["PMSN", "TCLIF", "RTCLIF"])
def test_an_snntorch_loop_without_passing_states(kind, use_reentrant):
    """As in snnTorch, a call without states continues from the last one."""
    layer = make_layer(kind, **({"step_mode": "s"} if kind == "PMSN" else {}))
    layer.reset_mem()
    run = in_steps(layer, lambda layer: lambda x: checkpoint(lambda x: layer(x)[0], x, use_reentrant=use_reentrant))
    with pytest.raises(RuntimeError, match="pass the state explicitly"):
        gradients(run, layer)


@reentrant
@pytest.mark.parametrize("make", ["node", "layer"])
def test_a_compiled_neuron_says_so_when_it_runs(make, use_reentrant):
    """Compiled code has one branch, so that it cannot start from rest again: the test is at run time."""
    neuron = make_node("TCLIFNode", step_mode="m") if make == "node" else make_layer("PMSN", init_hidden=True)
    reset = neuron.reset if make == "node" else neuron.reset_mem
    expected = gradients(neuron, neuron)
    torch._dynamo.reset()
    compiled = torch.compile(neuron, fullgraph=True, backend="aot_eager")
    reset()
    for gradient, want in zip(gradients(compiled, neuron), expected, strict=True):  # it computes the final state too
        torch.testing.assert_close(gradient, want, rtol=1e-5, atol=1e-6)
    for between in (reset, lambda: None):
        reset()
        with pytest.raises(RuntimeError, match=r"keep_state=False .*SpikingJelly.*init_hidden=False .*snnTorch"):
            gradients(lambda x: checkpoint(compiled, x, use_reentrant=use_reentrant), neuron, between)


@reentrant
def test_compiled_without_kept_state(use_reentrant):
    node = make_node("TCLIFNode", step_mode="m", keep_state=False)
    expected = gradients(node, node)
    torch._dynamo.reset()
    compiled = torch.compile(node, fullgraph=True, backend="aot_eager")
    assert_same(gradients(lambda x: checkpoint(compiled, x, use_reentrant=use_reentrant), node), expected)
