"""Hidden states that nobody has looked at are written over, or not computed at all; whoever looks cannot tell."""

import copy
import pickle

import pytest
import torch

from pmsn_plugins import kernels
from pmsn_plugins.snntorch import PMSN, RTCLIF, TCLIF
from pmsn_plugins.unseen import Later

N, C = 8, 1024  # a state of this size is left for later


def pmsn(**options):
    torch.manual_seed(0)
    return PMSN(C, init_hidden=True, **options)


LAYERS = {"PMSN": lambda: pmsn(step_mode="s"), "TCLIF": lambda: TCLIF(init_hidden=True)}


def values(layer):
    return [getattr(layer, name).clone() for name in layer._hidden]


def equal(actual, expected):
    return len(actual) == len(expected) and all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@pytest.mark.parametrize("kind", LAYERS)
def test_what_was_seen_never_changes(kind):
    layer, other = LAYERS[kind](), LAYERS[kind]()
    x, seen = torch.randn(6, 3, C), []
    with torch.no_grad():
        for t in range(6):
            expected = other(x[t])
            values(other)  # never hidden
            assert torch.equal(layer(x[t]), expected)
            assert layer._unseen is not None
            if t in (1, 3, 4):
                found = [getattr(layer, name) for name in layer._hidden]
                seen += [(f, f.clone()) for f in found]
        assert equal(values(copy.deepcopy(layer)), values(other))
        assert equal(values(pickle.loads(pickle.dumps(layer))), values(other))
        layer(x[0])
        layer.mem = torch.ones(3, C)
        assert layer.mem.eq(1).all() and getattr(layer, layer._hidden[1 if kind == "PMSN" else 0]).any()
        layer.reset_mem()
        layer(x[0])
        layer.reset_mem()
        assert layer.mem.numel() == 0
    assert seen and all(torch.equal(tensor, as_it_was) for tensor, as_it_was in seen)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_state_from_without_gradients_begins_a_graph(kind):
    layer, x = LAYERS[kind](), torch.randn(4, 3, C)
    other = copy.deepcopy(layer)
    gradients = []
    for one in (layer, other):
        with torch.no_grad():
            for t in range(2):
                one(x[t])
            if one is other:
                values(one)
        spikes = one(x[2])
        with torch.no_grad():
            one(x[3])
            one(x[3])
        spikes.sum().backward()
        gradients.append([p.grad for p in one.parameters()])
    assert equal(*gradients)


def expected(layer, x, state=None):
    return kernels.pmsn_sequence(x, layer.neuron_parameters(), state, surrogate_function=layer.spike_grad)


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("T", [1, 4, 8])
def test_a_state_left_for_later_is_the_same(T, recorded):
    layer, x = pmsn(), torch.randn(T, N, C)
    with torch.set_grad_enabled(recorded):
        spikes, want = layer(x), expected(layer, x)
    assert isinstance(layer._unseen, Later) and torch.equal(spikes, want.spikes)
    assert equal(values(layer), want.state) and layer.h_real.requires_grad == recorded
    layer.reset_mem()
    layer(x)
    assert isinstance(layer._unseen, Later)
    layer.reset_mem()
    assert layer._unseen is None and layer.mem.numel() == 0 and layer.mem.dtype == torch.float32


def test_going_on_and_its_gradients():
    layer, x = pmsn().double(), torch.randn(3, 4, N, C, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    for chunk in leaves[0]:
        spikes = layer(chunk)
    (spikes.sum() + layer.h_imag.sum()).backward()
    actual = [leaves[0].grad, *(p.grad for p in layer.parameters())]
    layer.zero_grad()
    state = None
    for chunk in leaves[1]:
        spikes, state, _ = expected(layer, chunk, state)
    (spikes.sum() + state.h_imag.sum()).backward()
    for value, want in zip(actual, [leaves[1].grad, *(p.grad for p in layer.parameters())], strict=True):
        torch.testing.assert_close(value, want, rtol=1e-10, atol=1e-10 * want.abs().max().item())


def test_an_input_that_was_changed_is_noticed():
    layer, x = pmsn(), 1 * torch.randn(4, N, C).requires_grad_()
    layer(x)
    x.relu_()
    with pytest.raises(RuntimeError, match="changed in place since"):
        layer.mem  # noqa: B018
    layer.reset_mem()
    assert layer.mem.numel() == 0


def test_streaming_through_one_buffer():
    layer, chunks, buffer = pmsn(), torch.randn(3, 4, N, C), torch.empty(4, N, C)
    with torch.no_grad():
        spikes = [layer(buffer.copy_(chunk)) for chunk in chunks]
        layer.reset_mem()
        assert torch.equal(torch.cat(spikes), layer(chunks.flatten(0, 1)))


@pytest.mark.parametrize("step", [False, True])
@pytest.mark.parametrize("kind", ["PMSN", "TCLIF", "RTCLIF"])
def test_training_goes_on_from_what_inference_mode_has_left(kind, step):
    """As snnTorch's own layers do."""
    results = []
    for mode in (torch.inference_mode, torch.no_grad):
        torch.manual_seed(0)
        options = {"init_hidden": True}
        if kind == "PMSN":
            options["step_mode"] = "s" if step else "m"
        layer = {
            "PMSN": lambda **options: PMSN(4, **options),
            "TCLIF": TCLIF,
            "RTCLIF": lambda **options: RTCLIF(linear_features=4, **options),
        }[kind](**options)
        x = torch.rand((12, 3, 4) if kind == "PMSN" and not step else (3, 4)).requires_grad_()
        with mode():
            layer(x)
        spikes = layer(x)
        results.append(
            [spikes.detach(), *torch.autograd.grad(spikes.sum(), [x, *layer.parameters()], allow_unused=True)]
        )
    for one, other in zip(*results, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
