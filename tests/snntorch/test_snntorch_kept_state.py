"""Calls that pass no state go on from the last one, as with snn.Leaky; and what users do to ``layer.mem`` reaches the
whole state, or is refused."""

import copy

import pytest
import snntorch as snn
import torch
from snntorch import utils

from pmsn_plugins.functional import PMSNState
from pmsn_plugins.snntorch import PMSN, RTCLIF, TCLIF, Membrane

T, B, C = 6, 3, 5
X = 3 * torch.rand(T, B, C, generator=torch.Generator().manual_seed(0))


def make(kind, **options):
    torch.manual_seed(0)
    if kind == "RTCLIF":
        return RTCLIF(linear_features=C, **options)
    return PMSN(C, step_mode="s", **options) if kind == "PMSN" else TCLIF(beta=(-0.2, 0.8), **options)


def spikes(output):
    return output[0] if isinstance(output, tuple) else output


def run(layer, x=X):
    return torch.stack([spikes(layer(step)) for step in x])


def passing(layer, x=X):
    state, out = layer.reset_mem(), []
    state = (state,) if isinstance(state, Membrane | PMSNState) else state
    for step in x:
        spk, *state = layer(step, *state)
        out.append(spk)
    return torch.stack(out), state


kinds = pytest.mark.parametrize("kind", ["PMSN", "TCLIF", "RTCLIF"])
modes = pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])


@modes
@pytest.mark.parametrize("kind", ["PMSN", "TCLIF"])
@pytest.mark.parametrize("single_state", [True, False])
def test_a_call_without_a_state_goes_on_from_the_last_one(kind, single_state, mode):
    layer = make(kind, single_state=single_state)
    with mode():
        want, _ = passing(layer)
        assert want.any()
        for reset in (layer.reset_mem, lambda: layer.reset_hidden(), lambda: utils.reset(torch.nn.Sequential(layer))):
            reset()
            assert torch.equal(run(layer), want)
        layer.reset_mem()
        passing(layer, X[:3])  # what was passed is the last one too
        assert torch.equal(run(layer, X[3:]), want[3:])


@pytest.mark.parametrize("kind", ["PMSN", "TCLIF"])
def test_gradients_flow_through_the_last_state(kind):
    layer = make(kind, single_state=True)
    x = X.clone().requires_grad_()
    gradients = []
    for calls in (lambda: run(layer, x), lambda: passing(layer, x)[0]):
        layer.reset_mem()
        gradients.append(torch.autograd.grad(calls().pow(2).sum(), [x, *layer.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) and gradients[0][0].any()


@modes
@pytest.mark.parametrize("kind", ["PMSN", "TCLIF"])
@pytest.mark.parametrize("single_state", [True, False])
def test_the_membrane_is_read_from_the_layer_in_the_midst_of_a_loop(kind, single_state, mode):
    layer = make(kind, single_state=single_state)
    with mode():
        for t in range(1, T):
            _, state = passing(layer, X[:t])
            mem = state[-1].v if isinstance(state[-1], PMSNState) else state[-1]
            assert torch.equal(layer.mem, mem) and layer.mem.shape == (B, C)
            assert type(layer.mem) is torch.Tensor


def test_a_sequence_and_its_steps_begin_at_rest():
    layer = PMSN(C)
    for call in (lambda: layer(X)[0], lambda: layer.step(X[0])[0]):
        assert torch.equal(call(), call())


def test_a_compiled_loop_without_states(compiled_membranes):
    layer = make("PMSN", single_state=True)
    torch._dynamo.reset()
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    want = run(layer)
    layer.reset_mem()
    assert torch.equal(torch.stack([compiled(step)[0] for step in X]), want)


def test_no_state_is_kept_within_a_backward_pass():
    layer = make("PMSN", single_state=True)
    passing(layer)
    before = layer.mem
    leaf = torch.ones(2, requires_grad=True)
    leaf.register_hook(lambda grad: layer(X[0], layer.init_leaky())[0].sum() and None)
    leaf.sum().backward()
    assert layer.mem is not before and layer.mem.numel() == 0  # reset, and nothing since


ASSIGNED = {
    "zeros_like": lambda layer: setattr(layer, "mem", torch.zeros_like(layer.mem)),
    "zeros(0)": lambda layer: setattr(layer, "mem", torch.zeros(0)),
    "zeros(B, C)": lambda layer: setattr(layer, "mem", torch.zeros(B, C)),
    "reset_mem()": lambda layer: setattr(layer, "mem", layer.reset_mem()),
    "zero_()": lambda layer: layer.mem.zero_(),
    "fill_(0)": lambda layer: layer.mem.fill_(0),
    "all, by name": lambda layer: [setattr(layer, n, torch.zeros_like(getattr(layer, n))) for n in layer._hidden],
    "all, in place": lambda layer: [getattr(layer, n).zero_() for n in layer._hidden],
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("options", [{}, {"init_hidden": True}, {"init_hidden": True, "single_state": True}])
@pytest.mark.parametrize("how", ASSIGNED)
@kinds
def test_zeros_for_the_membrane_reset_the_layer(kind, how, options, grad):
    if kind == "RTCLIF" and "single_state" in options:
        pytest.skip("RTCLIF has no such option")
    layer = make(kind, **options)
    with torch.set_grad_enabled(grad):
        want = run(layer)
        assert not torch.equal(run(layer), want)
        ASSIGNED[how](layer)
        assert torch.equal(run(layer), want)


@pytest.mark.parametrize("grad", [True, False])
@kinds
def test_another_membrane_alone_is_refused(kind, grad):
    layer = make(kind, init_hidden=True)
    layer.mem = torch.ones(B, C)  # at rest nothing is lost
    run(layer)
    for change in (
        lambda: setattr(layer, "mem", torch.ones(B, C)),
        lambda: setattr(layer, "mem", layer.mem * 0.5),
        lambda: setattr(layer, "mem", torch.zeros(B, C, requires_grad=True)),
        lambda: layer.mem.add_(1),
        lambda: setattr(layer, layer._hidden[0 if kind != "PMSN" else 1], torch.zeros(0)),
    ):
        with torch.set_grad_enabled(grad):
            layer.reset_mem()
            run(layer)
            change()
            with pytest.raises(ValueError, match=r"was changed, and its other states were not.*reset_mem\(\)"):
                layer(X[0])
    layer.reset_mem()
    layer(X[0])
    for wrong in (None, 0.0, (torch.zeros(1),)):
        with pytest.raises(TypeError, match="mem must be set to a tensor or to what reset_mem"):
            layer.mem = wrong


@pytest.mark.parametrize("move", [lambda layer: layer.detach_mem(), lambda layer: layer.float(), copy.deepcopy])
@kinds
def test_a_change_in_place_is_not_forgotten(kind, move):
    layer = make(kind, init_hidden=True)
    with torch.no_grad():
        want = run(layer)
        layer.mem.zero_()
        moved = move(layer) or layer
        assert torch.equal(run(moved), want)
        moved.mem.add_(1)
        with pytest.raises(ValueError, match="was changed"):
            (move(moved) or moved)(X[0])


@pytest.mark.parametrize("kind", ["PMSN", "TCLIF"])
def test_what_torch_func_leaves_in_a_layer_does_not_stop_copies(kind):
    layer = make(kind, single_state=True)
    want, _ = passing(layer)
    torch.func.vmap(lambda x: layer(x, layer.reset_mem())[0])(X)
    with pytest.raises(RuntimeError, match="reset the net"):
        layer(X[0])
    assert torch.equal(passing(copy.deepcopy(layer))[0], want)
    assert passing(layer.double(), X.double())[0].dtype == torch.float64


@kinds
def test_a_whole_state_can_be_put_back(kind):
    layer = make(kind, init_hidden=True)
    run(layer)
    saved = [getattr(layer, name).detach() for name in layer._hidden]
    want = run(layer)
    for name, state in zip(layer._hidden, saved, strict=True):
        setattr(layer, name, state)
    assert torch.equal(run(layer), want)
    layer.mem = PMSNState(*saved) if kind == "PMSN" else tuple(saved)
    assert torch.equal(run(layer), want)


@kinds
def test_the_layers_own_membrane_changes_nothing(kind):
    layer, other = make(kind, init_hidden=True, output=True), make(kind, init_hidden=True)
    for step in X:
        _, *_, layer.mem = layer(step)
        other(step)
    layer.mem = layer.mem.detach()  # truncated back-propagation, as of a Leaky
    assert not any(getattr(layer, name).requires_grad for name in layer._hidden)
    assert torch.equal(run(layer), run(other))


def test_leakys_own_membrane_can_be_passed_back():
    for kind in ("PMSN", "TCLIF"):
        layer = make(kind, single_state=True)
        want = run(layer)
        layer.reset_mem()
        assert torch.equal(torch.stack([layer(step, layer.mem)[0] for step in X]), want)


def test_a_tclif_with_one_state_is_a_leaky_to_nets():
    layer = TCLIF(single_state=True)
    assert isinstance(layer, snn.Leaky) and repr(layer).startswith("TCLIF(") and type(layer).__name__ == "TCLIF"
    assert not isinstance(TCLIF(), snn.Leaky)
    run(layer)
    snn.Leaky.reset_hidden()
    assert not layer.mem.any() and not layer.syn.any()
    run(layer)
    utils.reset(torch.nn.Sequential(layer))
    assert not layer.mem.any() and not layer.syn.any()


@kinds
def test_what_a_call_returns_is_its_own(kind, monkeypatch):
    """Another thread may set the layer's states at any moment."""
    layer, other = make(kind), torch.full((B, C), 7.0)
    monkeypatch.setattr(
        type(layer), "_set_states", lambda self, states: vars(self).update(dict.fromkeys(layer._hidden, other))
    )
    assert all(state.numel() == 0 for state in layer.reset_mem())
    _, state = passing(layer)
    assert not any(torch.equal(part, other) for part in (state[0] if kind == "PMSN" else state))


def same(first, second):
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else same(a, b) for a, b in pairs)


@pytest.mark.parametrize("grad", [True, False])
def test_arguments_by_snntorchs_names(grad):
    with torch.set_grad_enabled(grad):
        for layer in (make("PMSN", single_state=True), make("TCLIF", single_state=True)):
            _, mem = layer(X[0], layer.init_leaky())
            want = layer(X[1], mem)
            assert same(layer(X[1], mem=mem), want) and same(layer(input_=X[1], mem=mem), want)
        layer = make("TCLIF")
        _, syn, mem = layer(X[0])
        assert same(layer(input_=X[1], syn=syn, mem=mem), layer(X[1], syn, mem))
        layer = make("RTCLIF")
        spk, syn, mem = layer(X[0])
        assert same(layer(input_=X[1], spk=spk, syn=syn, mem=mem), layer(X[1], spk, syn, mem))
        layer = PMSN(C)
        assert same(layer(input_=X), layer(X))
    for layer in map(make, ("PMSN", "TCLIF", "RTCLIF")):
        with pytest.raises(TypeError, match="unexpected keyword argument 'memory'"):
            layer(X[0], memory=None)
        with pytest.raises(TypeError, match="x and input_ are one argument, got both"):
            layer(X[0], input_=X[0])
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got NoneType"):
            layer()
