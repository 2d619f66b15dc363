"""Loops that hand the state from step to step: without gradients, steps like the last one go straight to the kernel."""

import copy

import pytest
import torch
from snntorch import surrogate

from pmsn_plugins import kernels
from pmsn_plugins.functional import PMSNState
from pmsn_plugins.kernels import cpu
from pmsn_plugins.snntorch import PMSN, TCLIF

N, C = 3, 5
MAKE = {
    "PMSN": lambda **options: PMSN(C, step_mode="s", **options),
    "TCLIF": lambda **options: TCLIF(**options),
    "TCLIF, channels": lambda **options: TCLIF(channels=C, **options),
}
KINDS = [pytest.param(kind, id=kind) for kind in MAKE]


@pytest.fixture(autouse=True)
def cpu_library():
    if not kernels.backends()["cpu"].available:
        pytest.skip("no CPU kernels")


@pytest.fixture
def runs(monkeypatch):
    """A list with one entry for each prepared step that has run."""
    counted, run = [], cpu.Repeated.run
    monkeypatch.setattr(cpu.Repeated, "run", lambda call, *given: counted.append(call) or run(call, *given))
    return counted


def twins(kind, **options):
    torch.manual_seed(0)
    layer = MAKE[kind](**options)
    return layer, copy.deepcopy(layer)


def unprepared(twin, x, state):
    twin.__dict__["_prepared_with_states"] = None
    return twin(x, *state)


def tensors(out):
    return [out[0], *(out[1] if isinstance(out[1], PMSNState) else out[1:])]


def same(first, second):
    pairs = zip(tensors(first), tensors(second), strict=True)
    return all(a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def go_on(layer, twin, state, steps=4, shape=(N, C), dtype=torch.float32):
    """Both take the same steps; returns the last state."""
    for _ in range(steps):
        x = (2 * torch.randn(shape)).to(dtype)
        given = [t.clone() for t in tensors((x, *state))[1:]] if state else []
        expected, actual = unprepared(twin, x, state), layer(x, *state)
        assert same(actual, expected)
        assert all(torch.equal(a, b) for a, b in zip(given, tensors((x, *state))[1:] if state else [], strict=True))
        if isinstance(layer, TCLIF):  # as snnTorch's layers, it shows the last state
            assert all(getattr(layer, n) is t for n, t in zip(layer._hidden, actual[1:], strict=True))
        state = actual[1:]
    return state


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_steps_that_are_looked_at(kind, dtype, mode, runs):
    layer, twin = twins(kind)
    if dtype == torch.float64:
        layer.double(), twin.double()
    with mode():
        state = go_on(layer, twin, (), dtype=dtype)
        assert dtype == torch.float16 or len(runs) >= 2
        x = torch.ones(N, C, dtype=dtype)
        assert same(layer(x, *state), layer(x, *state))  # the state that was given is left as it was


CHANGES = {
    "a parameter's values": lambda layer: [p.add_(0.5) for p in layer.parameters()],
    "a parameter": lambda layer: setattr(layer, *replaced(layer)),
    "the threshold": lambda layer: setattr(layer, "threshold", 0.7),
    "the surrogate": lambda layer: setattr(layer, "spike_grad", surrogate.atan()),
    "the backend": lambda layer: setattr(layer, "backend", "torch"),
    "the number of threads": lambda layer: torch.set_num_threads(3 - min(torch.get_num_threads(), 2)),
}


def replaced(layer):
    name, parameter = next(iter(layer.named_parameters()))
    return name, torch.nn.Parameter(parameter.detach() * 0.5)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_changes_are_seen(kind, change, runs):
    layer, twin = twins(kind)
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            state = go_on(layer, twin, ())
            assert runs
            runs.clear()
            for each in (layer, twin):
                CHANGES[change](each)
            if change == "the number of threads":
                torch.set_num_threads(3 - min(threads, 2))
            go_on(layer, twin, state, steps=1)
            assert not runs
    finally:
        torch.set_num_threads(threads)


def with_stride(t):
    return torch.stack([t, t], -1)[..., 0]


class Marked(torch.Tensor):
    pass


INPUTS = {
    "another shape": lambda x, state: (x[:2], [s[..., :2, :] for s in state]),
    "strides": lambda x, state: (with_stride(x), state),
    "strides of the state": lambda x, state: (x, [with_stride(s) for s in state]),
    "a negative view": lambda x, state: (torch._neg_view(x), state),
    "a state of a subclass": lambda x, state: (x, [s.as_subclass(Marked) for s in state]),
    "an initial state": lambda x, state: (x, [s.new_zeros(0) for s in state]),
}


@pytest.mark.parametrize("change", INPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_all_kinds(kind, change, runs):
    layer, twin = twins(kind)
    with torch.no_grad():
        state = go_on(layer, twin, ())
        runs.clear()
        x, states = INPUTS[change](torch.randn(N, C), tensors((None, *state))[1:])
        given = (PMSNState(*states),) if isinstance(layer, PMSN) else tuple(states)
        assert same(layer(x, *given), unprepared(twin, x, given))
        assert not runs


WRONG = {
    "x": lambda x, state: (torch.randn(N, C + 1), state),
    "a state": lambda x, state: (x, [s[..., :2] for s in state]),
    "dtype of a state": lambda x, state: (x, [s.long() for s in state]),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_wrong_is_refused_as_always(kind, wrong):
    layer, twin = twins(kind)
    with torch.no_grad():
        state = go_on(layer, twin, ())
        x, states = WRONG[wrong](torch.randn(N, C), tensors((None, *state))[1:])
        given = (PMSNState(*states),) if isinstance(layer, PMSN) else tuple(states)
        errors = []
        for call in (lambda: unprepared(twin, x, given), lambda: layer(x, *given)):
            with pytest.raises((TypeError, ValueError)) as caught:
                call()
            errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize("kind", KINDS)
def test_with_gradients_in_between(kind, runs):
    layer, twin = twins(kind)
    with torch.no_grad():
        state = go_on(layer, twin, ())
    runs.clear()
    x = torch.randn(N, C)
    outs = [layer(x, *state), unprepared(twin, x, state)]
    for out in outs:
        out[0].sum().backward()
    assert not runs and same(*outs)
    for p, q in zip(layer.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    with torch.no_grad():
        go_on(layer, twin, state)
    assert runs


@pytest.mark.parametrize("kind", ["PMSN", "TCLIF"])
def test_graded_spikes_and_one_state_are_not_prepared(kind, runs):
    for options in ({"graded_spikes_factor": 2.0}, {"single_state": True}):
        layer, twin = twins(kind, **options)
        with torch.no_grad():
            state = ()
            for _ in range(4):
                x = torch.randn(N, C)
                out, expected = layer(x, *state), unprepared(twin, x, state)
                assert torch.equal(out[0], expected[0])
                state = out[1:]
    assert not runs


def test_a_copy_is_prepared_by_itself(runs):
    layer, twin = twins("TCLIF")
    with torch.no_grad():
        state = go_on(layer, twin, ())
        other = copy.deepcopy(layer)
        other.c1.data.add_(1)
        x = torch.ones(N, C)
        twin.c1.data.add_(1)
        assert same(other(x, *state), unprepared(twin, x, state))


def test_states_that_the_kernel_gets_as_copies(runs):
    """Channels at the end: what the kernel takes and makes are other tensors than the layer's."""
    layer, twin = twins("PMSN", channel_axis=-1)
    with torch.no_grad():
        go_on(layer, twin, (), shape=(N, 4, C))


def test_a_monitor_that_comes_later_sees_the_membrane(runs):
    layer, twin = twins("PMSN")
    with torch.no_grad():
        state = go_on(layer, twin, ())
        assert runs
        seen = []
        layer.register_forward_hook(lambda layer, given, out: seen.append(layer.mem))
        for _ in range(2):
            _, state = layer(torch.ones(N, C), *state)
            state = (state,)
            assert seen.pop() is state[0].v


def test_a_step_within_backward_leaves_nothing(runs):
    layer, twin = twins("TCLIF")
    with torch.no_grad():
        state = go_on(layer, twin, ())
    before = layer.mem

    def step(grad):
        with torch.no_grad():
            layer(torch.ones(N, C), *state)

    leaf = torch.ones(2, requires_grad=True)
    leaf.register_hook(step)
    leaf.sum().backward()
    assert layer.mem is before
