"""What our neurons compute, in both step modes, and how their states live."""

import copy
import inspect
import io
import pickle
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, neuron, surrogate

from pmsn_plugins import functional as reference
from pmsn_plugins import param_groups
from pmsn_plugins.spikingjelly import MultiCompartmentNode, PMSNNode, TCLIFNode

N, C = 2, 4


def inputs(T, *space, dtype=torch.float64, seed=0):
    return torch.randn(T, N, C, *space, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 0.3


def steps(node, x):
    node.step_mode = "s"
    return torch.stack([node(x_t) for x_t in x])


def test_signatures_are_the_documented_ones():
    pmsn = inspect.signature(PMSNNode).parameters
    assert list(pmsn) == [
        "channels", "n_compartments", "preset", "v_threshold", "reset_mode", "context", "surrogate_function",
        "step_mode", "backend", "store_v_seq", "burst", "keep_state", "channel_axis", "dt_range", "coupling",
        "time_scale",
    ]  # fmt: skip
    assert list(inspect.signature(TCLIFNode).parameters) == [
        "beta", "gamma", "v_threshold", "soma_feedback", "surrogate_function", "detach_reset", "step_mode", "backend",
        "store_v_seq", "channels", "keep_state", "leak", "beta_range",
    ]  # fmt: skip


@pytest.mark.parametrize("reset_mode", reference.RESET_MODES)
def test_the_default_fires_as_the_authors_scripts(reset_mode):
    node = PMSNNode(C, reset_mode=reset_mode)
    default = reference.describe(node.surrogate_function)
    assert default == ("triangle", (1.0,), reset_mode in ("cumulative", "memoryless"))
    assert isinstance(node.surrogate_function, surrogate.PiecewiseQuadratic) != default.strict


@given(
    T=st.integers(1, 90),
    space=st.sampled_from([(), (3,), (2, 3)]),
    cuts=st.lists(st.integers(0, 90), max_size=3),
    reset_mode=st.sampled_from(reference.RESET_MODES),
    burst=st.booleans(),
    n_compartments=st.integers(2, 6),
)
@settings(deadline=None, max_examples=20)
def test_pmsn_sequence_steps_and_chunks_agree_with_the_reference(T, space, cuts, reset_mode, burst, n_compartments):
    node = PMSNNode(C, n_compartments, reset_mode=reset_mode, burst=burst, step_mode="m", v_threshold=0.7).double()
    x = inputs(T, *space)
    expected = reference.pmsn_sequence(
        x, node.coefficients(), v_threshold=0.7, reset_mode=reset_mode, burst=burst, return_v_seq=True
    )
    node.store_v_seq = True
    assert torch.equal(node(x), expected.spikes)
    torch.testing.assert_close(node.v_seq, expected.v_seq)
    node.reset()
    chunks = [c for c in x.tensor_split(sorted(min(c, T) for c in cuts)) if len(c)]
    assert torch.equal(torch.cat([node(c) for c in chunks]), expected.spikes)
    node.reset()
    assert torch.equal(steps(node, x), expected.spikes)
    torch.testing.assert_close(node.v_seq, expected.v_seq)


def test_sequence_steps_and_chunks_agree_with_gradients(make):
    node = make(step_mode="m").double()
    x = inputs(40, 3).requires_grad_()
    wrt = [x, *node.parameters()]
    expected = node(x)
    assert 0.02 < expected.mean() < 0.9
    weight = inputs(40, 3, seed=1)
    gradients = torch.autograd.grad((expected * weight).sum(), wrt)
    for run in (lambda: torch.cat([node(c) for c in x.split(13)]), lambda: steps(node, x)):
        functional.reset_net(node)
        spikes = run()
        assert torch.equal(spikes, expected)
        for a, b in zip(torch.autograd.grad((spikes * weight).sum(), wrt), gradients, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("T", [4, 40])
@pytest.mark.parametrize("make", [partial(PMSNNode, C), TCLIFNode])
def test_without_state_every_sequence_starts_from_rest(T, make):
    kept = make(step_mode="m").double()
    node = make(step_mode="m", keep_state=False, store_v_seq=True).double()
    node.load_state_dict(kept.state_dict())
    x = inputs(T, 3)
    expected = kept(x)
    assert expected.any()
    for _ in range(2):
        assert torch.equal(node(x), expected)
        assert all(getattr(node, name) == 0.0 for name in node.state_names) and node.v_seq.shape == x.shape
    with pytest.raises(ValueError, match="keep_state=True"):
        steps(node, x)
    node.step_mode, node.v = "m", 0.5
    with pytest.raises(ValueError, match="starts from rest, but v"):
        node(x)


def test_global_context_shows_every_step_the_average():
    node, local = PMSNNode(C, preset="static", context="global", step_mode="m"), PMSNNode(C, step_mode="m")
    local.load_state_dict(node.state_dict())
    x = inputs(6, dtype=torch.float32)
    assert torch.equal(node(x), local(x.mean(0, keepdim=True).expand_as(x)))


@pytest.mark.parametrize("soma_feedback", reference.SOMA_FEEDBACK)
@pytest.mark.parametrize("detach_reset", [False, True])
def test_tclif_is_the_reference(soma_feedback, detach_reset):
    options = {"gamma": 0.6, "v_threshold": 1.3, "soma_feedback": soma_feedback, "detach_reset": detach_reset}
    node = TCLIFNode((-0.3, 0.8), step_mode="m", store_v_seq=True, **options).double()
    x = inputs(50).requires_grad_()
    expected = reference.tclif_sequence(x, *node.couplings(2), return_v_seq=True, **options)
    assert expected.spikes.any()
    spikes = node(x)
    assert torch.equal(spikes, expected.spikes)
    torch.testing.assert_close(node.v_seq, expected.v_seq)
    for a, b in zip(
        torch.autograd.grad(spikes.sum(), [x, node.c1, node.c2]),
        torch.autograd.grad(expected.spikes.sum(), [x, node.c1, node.c2]),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_tclif_couplings_per_channel():
    node, first = TCLIFNode(channels=C, step_mode="m").double(), TCLIFNode(step_mode="m").double()
    with torch.no_grad():
        node.c1.copy_(torch.linspace(-1, 1, C))
        first.c1.copy_(node.c1[0])
    x = inputs(30, 5)
    spikes = node(x)
    assert torch.equal(spikes[:, :, 0], first(x)[:, :, 0])
    first.reset()
    assert not torch.equal(spikes[:, :, 1], first(x)[:, :, 1])


@pytest.mark.parametrize("tau", [1.5, 4.0])
@pytest.mark.parametrize("decay_input", [True, False])
@pytest.mark.parametrize("detach_reset", [False, True])
def test_one_compartment_is_lif(tau, decay_input, detach_reset):
    options = {"surrogate_function": surrogate.ATan(), "detach_reset": detach_reset, "step_mode": "m"}
    lif = neuron.LIFNode(tau, decay_input, v_reset=None, store_v_seq=True, **options)
    gain = 1 / tau if decay_input else 1.0
    node = MultiCompartmentNode(1, leak=1 - 1 / tau, gain=gain, store_v_seq=True, **options).double()
    assert {n for n, _ in node.named_parameters()} == {"leak", "gain"}
    with torch.no_grad():  # the values in double precision
        node.leak.fill_(1 - 1 / tau)
        node.gain.fill_(gain)
    x = 2 * inputs(60).requires_grad_()
    spikes, expected = node(x), lif(x)
    assert 0.02 < expected.mean() < 0.98
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(node.v_seq, lif.v_seq)
    weight = inputs(60, seed=1)
    torch.testing.assert_close(*(torch.autograd.grad((s * weight).sum(), x)[0] for s in (spikes, expected)))


def test_the_default_single_compartment_is_the_default_soft_reset_lif():
    x = 3 * inputs(30, dtype=torch.float32)
    expected = neuron.LIFNode(v_reset=None, step_mode="m")(x)
    assert expected.any()
    assert torch.equal(MultiCompartmentNode(1, step_mode="m")(x), expected)


def test_two_compartments_are_tclif():
    tclif = TCLIFNode((-0.4, 0.6), gamma=0.7, v_threshold=1.2, step_mode="m", store_v_seq=True).double()
    node = MultiCompartmentNode(
        2, leak=1.0, gain=(1.0, 0.0), reset=0.7, v_threshold=1.2, step_mode="m", store_v_seq=True
    ).double()
    with torch.no_grad():
        b1, b2 = tclif.couplings(2)
        node.down.fill_(b1)
        node.up.fill_(b2)
    x = inputs(50).requires_grad_()
    spikes, expected = node(x), tclif(x)
    assert expected.any()
    assert torch.equal(spikes, expected)
    torch.testing.assert_close(node.v_seq, tclif.v_seq)
    torch.testing.assert_close(*(torch.autograd.grad(s.sum(), x)[0] for s in (spikes, expected)))


def test_memories_start_at_zero_and_are_never_views(make):
    for step_mode in "sm":
        node = make(step_mode=step_mode, store_v_seq=True)
        assert next(name for name, _ in node.named_memories()) == "v"
        assert all(value in (0.0, None) for value in node.memories())
        x = inputs(70, dtype=torch.float32).requires_grad_()
        node(x if step_mode == "m" else x[0])
        assert node.v.shape == x.shape[1:]
        assert not any(value._is_view() for value in (*node.memories(), node.v_seq))
        functional.detach_net(node)
        assert not any(value.requires_grad for value in (*node.memories(), node.v_seq))
        functional.reset_net(node)
        assert all(value in (0.0, None) for value in node.memories())
        assert node.v_seq is None


def test_detach_cuts_the_gradient_and_keeps_the_numbers(make):
    node = make(step_mode="m")
    x = inputs(20, dtype=torch.float32).requires_grad_()
    expected = node(x)
    node.reset()
    first = node(x[:10])
    functional.detach_net(node)
    second = node(x[10:])
    assert torch.equal(torch.cat([first, second]), expected)
    assert not torch.autograd.grad(second.sum(), x)[0][:10].any()


def test_hidden_memory_shapes():
    node = PMSNNode(C, 6, step_mode="m")
    node(inputs(3, 5))
    assert node.h_real.shape == node.h_imag.shape == (5, N, C, 5)
    general = MultiCompartmentNode(3)
    general(inputs(1)[0])
    assert general.v_hidden.shape == (2, N, C)


def test_a_state_can_be_set_in_part(make):
    node, full = make(step_mode="m", store_v_seq=True), make(step_mode="m", store_v_seq=True)
    full.load_state_dict(node.state_dict())
    x = inputs(12, dtype=torch.float32)
    full(x)
    zeros = {name: torch.zeros_like(value) for name, value in full.named_memories()}
    for name, value in {**zeros, "v": full.v.clone()}.items():
        setattr(full, name, value)
    node.v = full.v.clone()
    assert torch.equal(node(x), full(x))
    node.reset()
    node(x)
    assert not torch.equal(node.v_seq, full.v_seq)


def test_reset_value_of_the_membrane(make):
    node, other = make(step_mode="m"), make(step_mode="m")
    other.load_state_dict(node.state_dict())
    node.set_reset_value("v", 0.75)
    node.reset()
    x = inputs(12, dtype=torch.float32)
    other.v = torch.full_like(x[0], 0.75)
    assert torch.equal(node(x), other(x))


def test_store_v_seq_in_single_step_mode_grows_until_reset(make):
    node = make(store_v_seq=True)
    x = inputs(3, dtype=torch.float32)
    membranes = []
    for x_t in x:
        node(x_t)
        membranes.append(node.v)
    assert torch.equal(node.v_seq, torch.stack(membranes))
    functional.reset_net(node)
    assert node.v_seq is None
    node(x[0, :1])
    assert node.v_seq.shape == (1, 1, C)


def test_store_v_seq_can_be_switched_on_later(make):
    node = make(step_mode="m")
    node.store_v_seq = True
    x = inputs(5, dtype=torch.float32)
    node(x)
    assert node.v_seq.shape == x.shape and torch.equal(node.v_seq[-1], node.v)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_in_and_out(make, dtype):
    node, wide = make(step_mode="m"), make(step_mode="m")
    wide.load_state_dict(node.state_dict())
    x = inputs(30, dtype=torch.float32).to(dtype)
    spikes = node(x)
    assert spikes.dtype == dtype
    assert node.v.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    if dtype != torch.float64:
        assert torch.equal(spikes.float(), wide(x.float()))


def test_autocast_changes_nothing(make):
    node = make(step_mode="m")
    x = inputs(30, dtype=torch.float32)
    expected = node(x)
    node.reset()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(node(x), expected)


def test_copies_carry_parameters_and_state(make):
    node = make(step_mode="m", v_threshold=0.9, store_v_seq=True)
    x = inputs(10, dtype=torch.float32)
    with torch.no_grad():
        node(x)
        copies = [copy.deepcopy(node), pickle.loads(pickle.dumps(node))]
        buffer = io.BytesIO()
        torch.save(node, buffer)
        buffer.seek(0)
        copies.append(torch.load(buffer, weights_only=False))
        expected = node(x)
        for other in copies:
            assert torch.equal(other(x), expected)


def test_state_dict_has_parameters_only_and_loads(make):
    node, other = make(step_mode="m"), make(step_mode="m")
    with torch.no_grad():
        for p in node.parameters():
            p.add_(0.05 * torch.randn_like(p))
    x = inputs(20, dtype=torch.float32)
    expected = node(x)
    assert node.state_dict().keys() == {n for n, _ in node.named_parameters()}
    other.load_state_dict(node.state_dict())
    assert torch.equal(other(x), expected)


def test_to_moves_the_state(make):
    node = make(step_mode="m")
    node(inputs(5, dtype=torch.float32))
    node.to("meta")
    assert node.v.device.type == "meta" and all(value.is_meta for value in node.memories())
    node = make(step_mode="m").double()
    assert node(inputs(5)).dtype == torch.float64 and node.v.dtype == torch.float64


def test_param_groups_of_a_net():
    node, tclif = PMSNNode(C), TCLIFNode()
    net = torch.nn.Sequential(torch.nn.Linear(3, C), node, torch.nn.Linear(C, C), tclif)
    groups = {g["lr"]: g for g in param_groups(net, lr=1.0, neuron_lr=0.01, weight_decay=0.5)}
    assert {rate: len(g["params"]) for rate, g in groups.items()} == {1.0: 5, 0.01: 4, 0.1: 5}
    assert any(p is node.D for p in groups[1.0]["params"])
    assert groups[1.0]["weight_decay"] == 0.5 and groups[0.01]["weight_decay"] == groups[0.1]["weight_decay"] == 0.0
    assert sum(len(g["params"]) for g in node.param_groups(lr=1.0, neuron_lr=0.01)) == 8


def test_an_integer_threshold_becomes_a_float(make):
    node = make(v_threshold=2)
    assert isinstance(node.v_threshold, float) and node.v_threshold == 2.0 and node.v_reset is None
