"""Memories that nobody has looked at are written over, or not computed at all; whoever looks cannot tell."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from spikingjelly.activation_based import functional

from pmsn_plugins import kernels
from pmsn_plugins.functional import PMSNState
from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode
from pmsn_plugins.unseen import Later

N, C = 8, 1024  # a state of this size is left for later


def pmsn_node(**options):
    torch.manual_seed(0)
    return PMSNNode(C, **options)


NODES = {"PMSN": pmsn_node, "TCLIF": lambda **options: TCLIFNode(**options)}
LOOKS = {
    "attribute": lambda node: [node.v],
    "all": lambda node: [getattr(node, name) for name in node.state_names],
    "memories": lambda node: [t for t in node.memories() if t is not None],
    "dictionary": lambda node: [node._memories["v"]],
    "values": lambda node: [t for _, t in node.named_memories() if t is not None],
}


def values(node):
    return [getattr(node, name).clone() for name in node.state_names]


def equal(actual, expected):
    return len(actual) == len(expected) and all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", NODES)
def test_what_was_seen_never_changes(kind, look):
    node, other = NODES[kind](), NODES[kind]()
    other.load_state_dict(node.state_dict())
    x = torch.randn(6, 3, C)
    seen = []
    with torch.no_grad():
        for t in range(6):
            expected = other(x[t])
            values(other)  # never hidden
            assert torch.equal(node(x[t]), expected)
            assert node._kept.unseen is not None
            if t in (1, 3, 4):
                found = LOOKS[look](node)
                seen += [(f, f.clone()) for f in found]
        assert equal(values(node), values(other))
    assert seen and all(torch.equal(tensor, as_it_was) for tensor, as_it_was in seen)


@pytest.mark.parametrize("kind", NODES)
def test_steps_without_a_look_use_the_same_memory(cpu_library, kind):
    node = NODES[kind]()
    with torch.no_grad():
        for _ in range(3):
            node(torch.randn(3, C))
        before = [t.data_ptr() for t in node._kept.unseen]
        node(torch.randn(3, C))
        assert [t.data_ptr() for t in node._kept.unseen] == before


@pytest.fixture
def cpu_library():
    if not kernels.backends()["cpu"].available:
        pytest.skip("no CPU kernels")


@pytest.mark.parametrize("kind", NODES)
def test_a_state_from_without_gradients_begins_a_graph(kind):
    """What the backward pass needs of it is not written over."""
    node, x = NODES[kind](), torch.randn(4, 3, C)
    other = copy.deepcopy(node)
    gradients = []
    for neuron in (node, other):
        with torch.no_grad():
            for t in range(2):
                neuron(x[t])
            if neuron is other:
                values(neuron)
        spikes = neuron(x[2])
        with torch.no_grad():
            neuron(x[3])
            neuron(x[3])
        spikes.sum().backward()
        gradients.append([p.grad for p in neuron.parameters()])
    assert equal(*gradients)


@pytest.mark.parametrize("kind", NODES)
def test_another_shape_or_dtype_is_refused_or_taken_as_before(kind):
    node = NODES[kind]()
    with torch.no_grad():
        node(torch.randn(3, C))
        with pytest.raises(ValueError, match="reset_net"):
            node(torch.randn(4, C))
        with pytest.raises(TypeError, match="floating"):
            node(torch.ones(3, C, dtype=torch.int64))
        assert node(torch.randn(3, C).double()).dtype == torch.float64
        node.v = 0.25
        assert (node.v == 0.25) and node.state_names[1] in dir(node)
        node(torch.randn(3, C))
        node.reset()
        assert node.v == 0.0
        node(torch.randn(4, C))


def expected_state(node, x):
    output = kernels.pmsn_sequence(
        x, node.neuron_parameters(), surrogate_function=node.surrogate_function, backend=node.backend
    )
    return output


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("T", [1, 4, 8])
def test_a_state_left_for_later_is_the_same(T, recorded, backend):
    node, x = pmsn_node(step_mode="m", backend=backend), torch.randn(T, N, C)
    with torch.set_grad_enabled(recorded):
        spikes = node(x)
        assert isinstance(node._kept.unseen, Later)
        expected = expected_state(node, x)
    assert torch.equal(spikes, expected.spikes)
    for see in (
        lambda node: copy.deepcopy(node),
        lambda node: pickle.loads(pickle.dumps(node)),
        lambda node: node,
    ):
        node.reset()
        with torch.set_grad_enabled(recorded):
            node(x)
        assert isinstance(node._kept.unseen, Later)
        with torch.set_grad_enabled(not recorded):
            seen = see(node)
            for value, want in zip(values(seen), expected.state, strict=True):
                # PyTorch's products depend on where their factors lie
                torch.testing.assert_close(value, want, rtol=0, atol=1e-5 if backend == "torch" else 0)
    assert node.h_real.requires_grad == recorded and node._kept.unseen is None


def test_going_on_and_its_gradients():
    x = torch.randn(3, 4, N, C, dtype=torch.float64)
    node = pmsn_node(step_mode="m").double()
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    weight = torch.randn(N, C, dtype=torch.float64)
    for chunk in leaves[0]:
        spikes = node(chunk)
    assert not isinstance(node._kept.unseen, Later)  # who goes on will go on
    ((spikes.sum(0) + node.h_imag.sum(0)) * weight).sum().backward()
    actual = [leaves[0].grad, *(p.grad for p in node.parameters())]
    node.zero_grad()
    state = None
    for chunk in leaves[1]:
        spikes, state, _ = kernels.pmsn_sequence(
            chunk, node.neuron_parameters(), state, surrogate_function=node.surrogate_function
        )
    ((spikes.sum(0) + state.h_imag.sum(0)) * weight).sum().backward()
    expected = [leaves[1].grad, *(p.grad for p in node.parameters())]
    for value, want in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-10 * want.abs().max().item())


def test_truncated_backpropagation_with_a_parameter_update_in_between():
    """The state is that of the parameters before; who differentiates it is told."""
    node, x = pmsn_node(step_mode="m"), torch.randn(2, 4, N, C)
    expected = expected_state(node, x[0]).state
    optimizer = torch.optim.SGD(node.parameters(), lr=0.1)
    node(x[0]).sum().backward()
    optimizer.step()
    stale = copy.copy(node)  # looks
    assert equal(values(node), expected)
    with pytest.raises(RuntimeError, match="changed in place"):
        node.h_real.sum().backward()
    assert stale is not node
    functional.detach_net(node)
    spikes = node(x[1])
    output = kernels.pmsn_sequence(
        x[1],
        node.neuron_parameters(),
        PMSNState(*(s.detach() for s in expected)),
        surrogate_function=node.surrogate_function,
    )
    assert torch.equal(spikes, output.spikes)


def test_settings_changed_in_between():
    node, x = pmsn_node(step_mode="m"), torch.randn(4, N, C)
    expected = expected_state(node, x).state
    with torch.no_grad():
        node(x)
        node.v_threshold, node.reset_mode, node.backend, node.step_mode = 0.3, "serial", "torch", "s"
        assert equal(values(node), expected)


def test_an_input_within_a_graph_that_was_changed_is_noticed():
    node, x = pmsn_node(step_mode="m"), 1 * torch.randn(4, N, C).requires_grad_()
    node(x)
    x.relu_()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="changed in place since"):
            node.v  # noqa: B018
        with pytest.raises(RuntimeError, match="changed in place since"):
            node(x)
    node.reset()
    assert node.v == 0.0
    node(x)


CHANGES = {
    "in place": lambda x: x.zero_(),
    "data": lambda x: x.data.zero_(),
    "numpy": lambda x: x.numpy().__setitem__(slice(None), 0.0),
    "dlpack": lambda x: torch.from_dlpack(x).zero_(),
    "inference mode": torch.inference_mode()(lambda x: x.zero_()),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_a_buffer_may_be_filled_again(mode, change):
    node, x = pmsn_node(step_mode="m"), torch.randn(4, N, C)
    expected = expected_state(node, x).state
    with mode():
        node(x)
        assert isinstance(node._kept.unseen, Later)
    with torch.no_grad():
        CHANGES[change](x)
        assert equal(values(node), expected)


def test_a_leaf_is_copied_and_gets_its_gradient_through_the_state():
    node, x = pmsn_node(step_mode="m"), torch.randn(4, N, C).requires_grad_()
    other = x.detach().clone().requires_grad_()
    expected_state(node, other).state.h_real.sum().backward()
    node(x)
    x.data.zero_()
    node.h_real.sum().backward()
    assert torch.equal(x.grad, other.grad) and x.grad.any()


@pytest.mark.parametrize("width", [8, C])  # smaller ones are computed at once
def test_streaming_through_one_buffer(width):
    node = PMSNNode(width, step_mode="m")
    chunks, buffer = torch.randn(3, 4, N, width), torch.empty(4, N, width)
    with torch.no_grad():
        spikes = [node(buffer.copy_(chunk)) for chunk in chunks]
        node.reset()
        assert torch.equal(torch.cat(spikes), node(chunks.flatten(0, 1)))


def test_a_reset_frees_the_input_and_computes_nothing(monkeypatch):
    node = pmsn_node(step_mode="m")
    with torch.no_grad():
        x = torch.randn(4, N, C)
        node(x)
        reference = weakref.ref(node._kept.unseen)  # which holds the input
        monkeypatch.setattr(kernels, "pmsn_sequence", lambda *args, **kwargs: pytest.fail("the state was computed"))
        functional.reset_net(node)
        gc.collect()
    assert reference() is None


@pytest.mark.parametrize("mode", ["m", "s"])
def test_compiled_after_eager(mode):
    node = pmsn_node(step_mode=mode)
    x = torch.randn(*((4,) if mode == "m" else ()), N, C)
    other = copy.deepcopy(node)
    torch.compiler.reset()
    compiled = torch.compile(node, backend="aot_eager", fullgraph=mode == "s")
    with torch.no_grad():
        node(x)
        assert node._kept.unseen is not None
        other(x)
        values(other)
        assert torch.equal(compiled(x), other(x))
        assert torch.equal(node(x), other(x)) and equal(values(node), values(other))


@pytest.mark.parametrize("see", [False, True])
@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("kind", NODES)
def test_training_goes_on_from_what_inference_mode_has_left(kind, step_mode, see):
    """As SpikingJelly's own neurons do."""
    nodes = NODES[kind](step_mode=step_mode), NODES[kind](step_mode=step_mode)
    nodes[1].load_state_dict(nodes[0].state_dict())
    x = torch.randn(2, 12, N, C)[:, : 1 if step_mode == "s" else None].squeeze(1).requires_grad_()
    for node, mode in zip(nodes, (torch.inference_mode, torch.no_grad), strict=True):
        with mode():
            node(x[0])
            if see:
                values(node)
    spikes = [node(x[1]) for node in nodes]
    assert torch.equal(*spikes)
    gradients = [torch.autograd.grad(s.sum(), [x, *n.parameters()]) for s, n in zip(spikes, nodes, strict=True)]
    assert equal(*gradients)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("kind", NODES)
def test_a_second_backward_pass_through_a_kept_state_says_what_to_do(cpu_library, kind, step_mode):
    node, x = NODES[kind](step_mode=step_mode), torch.randn(12, N, C)
    x = x[0] if step_mode == "s" else x
    node(x).sum().backward()
    spikes = node(x)
    with pytest.raises(RuntimeError, match=r"functional\.reset_net\(net\) or detach_net\(net\), in snnTorch"):
        spikes.sum().backward()
    functional.reset_net(node)
    node(x).sum().backward()
    functional.detach_net(node)
    node(x).sum().backward()
