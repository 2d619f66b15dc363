"""The recurrent TC-LIF layer: SpikingJelly's container around a TCLIFNode, in one node."""

import copy
import inspect

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import base, functional, layer, surrogate

from pmsn_plugins import functional as reference
from pmsn_plugins import param_groups
from pmsn_plugins.functional import SOMA_FEEDBACK, TCLIFRecurrentState
from pmsn_plugins.spikingjelly import RecurrentTCLIFNode, TCLIFNode

N, C = 3, 6
IS_2 = hasattr(base, "to_functional_forward")


class Added(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(C, C)

    def forward(self, spikes, x):
        return self.linear(spikes) + x


def inputs(T, dtype=torch.float64, seed=0):
    return torch.randn(T, N, C, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.3


def make(**options):
    torch.manual_seed(0)
    return RecurrentTCLIFNode(C, **options).double()


def run(forward, x, wrt):
    spikes = forward(x)
    weight = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return spikes.detach(), torch.autograd.grad((spikes * weight).sum(), wrt)


def steps(node, x):
    node.step_mode = "s"
    return torch.stack([node(x_t) for x_t in x])


def assert_same(actual, expected):
    assert torch.equal(actual[0], expected[0])
    for a, b in zip(actual[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_signature_is_the_documented_one():
    assert list(inspect.signature(RecurrentTCLIFNode).parameters) == [
        "channels", "bias", "beta", "gamma", "v_threshold", "soma_feedback", "surrogate_function", "detach_reset",
        "step_mode", "backend", "store_v_seq", "per_channel", "keep_state", "leak", "beta_range",
    ]  # fmt: skip


@pytest.mark.parametrize("soma_feedback", SOMA_FEEDBACK)
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_it_is_the_container(backend, detach_reset, soma_feedback):
    options = {"gamma": 0.6, "v_threshold": 0.9, "soma_feedback": soma_feedback, "detach_reset": detach_reset}
    inner = TCLIFNode((-0.3, 0.8), backend="torch", **options)
    container = layer.ElementWiseRecurrentContainer(inner, Added(), step_mode="m").double()
    node = make(step_mode="m", backend=backend, **options)
    node.load_state_dict(container.state_dict())
    x = inputs(50).requires_grad_()
    expected = run(container, x, [x, *container.parameters()])
    assert 0.05 < expected[0].mean() < 0.8
    assert_same(run(node, x, [x, *node.parameters()]), expected)
    node.reset()
    assert_same(run(lambda x: steps(node, x), x, [x, *node.parameters()]), expected)


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_reference(bias, per_channel):
    node = make(bias=bias, per_channel=per_channel, step_mode="m", store_v_seq=True)
    assert node.c1.shape == ((C,) if per_channel else ()) and (node.recurrent.bias is not None) == bias
    if per_channel:
        with torch.no_grad():
            node.c1.add_(torch.linspace(-1, 1, C))
    x = inputs(40)
    expected = reference.tclif_recurrent_sequence(
        x, node.recurrent.weight, node.recurrent.bias, *node.couplings(2), return_v_seq=True
    )
    assert torch.equal(node(x), expected.spikes) and expected.spikes.any()
    torch.testing.assert_close(node.v_seq, expected.v_seq)
    for name, value in zip(node.state_names, expected.state, strict=True):
        torch.testing.assert_close(getattr(node, name), value)
    assert node.state_names == ("v", "v_dendrite", "spikes") and torch.equal(node.spikes, expected.spikes[-1])


def test_sequence_steps_and_chunks():
    node = make(step_mode="m", store_v_seq=True)
    x = inputs(60).requires_grad_()
    wrt = [x, *node.parameters()]
    expected = run(node, x, wrt)
    v_seq = node.v_seq
    node.reset()
    assert_same(run(lambda x: torch.cat([node(c) for c in x.split([1, 20, 39])]), x, wrt), expected)
    node.reset()
    assert_same(run(lambda x: steps(node, x), x, wrt), expected)
    torch.testing.assert_close(node.v_seq, v_seq)


def test_reset_detach_and_no_state():
    node = make(step_mode="m")
    x = inputs(30).requires_grad_()
    first = node(x)
    assert not torch.equal(node(x), first)  # it goes on
    functional.reset_net(node)
    assert all(getattr(node, name) == 0.0 for name in node.state_names)
    assert torch.equal(node(x), first)
    functional.detach_net(node)
    (gradient,) = torch.autograd.grad(node(2 * x).sum(), x)  # through the first call it would be a graph already freed
    assert gradient.any()
    fresh = make(step_mode="m", keep_state=False)
    assert torch.equal(fresh(x), first) and torch.equal(fresh(x), first)
    assert all(getattr(fresh, name) == 0.0 for name in fresh.state_names)
    with pytest.raises(ValueError, match="keep_state=True"):
        steps(fresh, x)


def test_a_state_that_is_set():
    node = make(step_mode="m")
    node.v = 0.5
    x = inputs(10)
    state = TCLIFRecurrentState(torch.full((N, C), 0.5).double(), *(torch.zeros(N, C).double() for _ in range(2)))
    expected = reference.tclif_recurrent_sequence(
        x, node.recurrent.weight, node.recurrent.bias, *node.couplings(2), state
    ).spikes
    assert torch.equal(node(x), expected)
    with pytest.raises(ValueError, match=r"state v of RecurrentTCLIFNode has shape \(3, 6\).*reset_net"):
        node(x[:, :2])


def test_around_a_node():
    inner = TCLIFNode(
        (-0.2, 0.8),
        0.7,
        1.3,
        "pre_reset",
        surrogate.ATan(),
        True,
        "m",
        "torch",
        True,
        channels=C,
        keep_state=False,
        leak=(0.9, 0.8),
    ).double()
    node = RecurrentTCLIFNode.around(inner, C, bias=False)
    assert node.c1 is inner.c1 and node.c2 is inner.c2
    assert node.recurrent.weight.dtype == torch.float64 and node.recurrent.bias is None
    for name in ("gamma", "v_threshold", "soma_feedback", "surrogate_function", "detach_reset", "step_mode", "backend"):
        assert getattr(node, name) is getattr(inner, name), name
    assert node.store_v_seq and not node.keep_state
    with torch.no_grad():
        node.recurrent.weight.zero_()
    x = inputs(30)
    assert torch.equal(node(x), inner(x))


def test_optimiser_groups():
    node = make()
    groups = param_groups(nn.Sequential(layer.Linear(2, C), node), lr=1e-2, neuron_lr=1e-3, weight_decay=0.1)
    weights, couplings = groups
    assert len(weights["params"]) == 4 and weights["weight_decay"] == 0.1
    assert couplings["params"] == [node.c1, node.c2] and couplings["lr"] == 1e-3 and couplings["weight_decay"] == 0.0


def test_state_dicts():
    node, other = make(), make(v_threshold=0.5)
    assert list(node.state_dict()) == ["c1", "c2", "recurrent.weight", "recurrent.bias"]
    other.load_state_dict(node.state_dict())
    broken = {**node.state_dict(), "c1": torch.tensor(float("nan"))}
    with pytest.raises(RuntimeError, match="NaN or infinite values in c1"):
        other.load_state_dict(broken)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict({**node.state_dict(), "c3": torch.tensor(0.0)})


def test_half_precision_and_dtype_of_the_state():
    node = RecurrentTCLIFNode(C, step_mode="m")
    for dtype in (torch.float16, torch.bfloat16):
        node.reset()
        x = inputs(20, torch.float32).to(dtype)
        assert node(x).dtype == dtype and node.spikes.dtype == node.v.dtype == torch.float32


@pytest.mark.skipif(not IS_2, reason="SpikingJelly 2.0 has this, 0.0.0.0.14 does not")
def test_functional_forward():
    node = make(step_mode="m")
    x = inputs(20)
    zeros = (0.0, 0.0, 0.0)
    (spikes,), states = node.multi_step_functional_forward((x,), node.materialize_states((x,), zeros, "m"))
    assert node.v == 0.0
    assert torch.equal(node(x), spikes)
    assert all(torch.equal(getattr(node, n), s) for n, s in zip(node.state_names, states, strict=True))
    (spike,), _ = node.single_step_functional_forward((x[0],), states)
    node.step_mode = "s"
    assert torch.equal(node(x[0]), spike)


@pytest.mark.skipif(not IS_2, reason="SpikingJelly 2.0 has this, 0.0.0.0.14 does not")
def test_operations():
    from spikingjelly.activation_based import op_counter

    from pmsn_plugins.spikingjelly.op_counter import NeuronOpCounter

    node, counter = make(step_mode="m"), NeuronOpCounter()
    x = inputs(20)
    with op_counter.ModuleCounterMode([counter], model=node):
        spikes = node(x)
    counts = counter.get_counts()["Global"]
    assert counts["mac"] == 2 * x.numel() and counts["ac"] == (2 + C) * int(spikes.sum())


def test_in_a_net_of_both_step_modes():
    net = nn.Sequential(layer.Linear(C, C), RecurrentTCLIFNode(C), layer.Linear(C, 2))
    functional.set_step_mode(net, "m")
    x = inputs(10, torch.float32)
    expected = net(x)
    functional.reset_net(net)
    functional.set_step_mode(net, "s")
    torch.testing.assert_close(torch.stack([net(x_t) for x_t in x]), expected)
    copied = copy.deepcopy(net)
    assert torch.equal(copied(x[0]), net(x[0]))


@pytest.mark.parametrize(
    ("error", "match", "call"),
    [
        (TypeError, "channels must be an integer, got 4.0", lambda: RecurrentTCLIFNode(4.0)),
        (ValueError, "channels must be at least 1, got 0", lambda: RecurrentTCLIFNode(0)),
        (TypeError, "bias must be True or False, got 0", lambda: RecurrentTCLIFNode(4, 0)),
        (TypeError, "per_channel must be True or False", lambda: RecurrentTCLIFNode(4, per_channel=None)),
        (ValueError, "beta must be", lambda: RecurrentTCLIFNode(4, beta=(0.5, 0.5))),
        (ValueError, "expected 6 channels, got 5 on axis 2", lambda: make(step_mode="m")(torch.ones(2, 3, 5).double())),
        (
            ValueError,
            r"takes \[T, N, C\], got shape \(2, 3, 6, 4\)",
            lambda: make(step_mode="m")(torch.ones(2, 3, 6, 4)),
        ),
        (ValueError, r"takes \[N, C\], got shape \(2, 6, 6\)", lambda: make()(torch.ones(2, 6, 6))),
        (ValueError, "is the time or the batch axis missing", lambda: make(step_mode="m")(torch.ones(2, 6))),
    ],
)
def test_bad_arguments(error, match, call):
    with pytest.raises(error, match=match):
        call()


def test_compiled_without_a_graph_break():
    torch._dynamo.reset()
    node, expected = make(step_mode="m"), make(step_mode="m")
    compiled, x = torch.compile(node, fullgraph=True, backend="aot_eager"), inputs(12)
    for _ in range(2):  # after a reset, and with a state
        assert_same(run(compiled, x, [*node.parameters()]), run(expected, x, [*expected.parameters()]))
        functional.detach_net(node), functional.detach_net(expected)
