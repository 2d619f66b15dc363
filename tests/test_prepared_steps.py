"""Steps without gradients that are like the last one go straight to the kernel; nobody can tell, whatever is changed in
between."""

import copy
import pickle
import weakref

import numpy as np
import pytest
import torch
from spikingjelly.activation_based import surrogate
from torch.utils._python_dispatch import TorchDispatchMode

from pmsn_plugins import kernels, spikingjelly
from pmsn_plugins import snntorch as for_snntorch
from pmsn_plugins.functional import PMSNParameters, triangle
from pmsn_plugins.kernels import cpu

N, C = 3, 5


@pytest.fixture(autouse=True)
def cpu_library():
    if not kernels.backends()["cpu"].available:
        pytest.skip("no CPU kernels")


MAKE = {
    "PMSNNode": lambda **options: spikingjelly.PMSNNode(C, **options),
    "TCLIFNode": lambda **options: spikingjelly.TCLIFNode(**options),
    "TCLIFNode, channels": lambda **options: spikingjelly.TCLIFNode(channels=C, **options),
    "PMSN": lambda **options: for_snntorch.PMSN(C, init_hidden=True, step_mode="s", **options),
    "TCLIF": lambda **options: for_snntorch.TCLIF(init_hidden=True, **options),
    "TCLIF, channels": lambda **options: for_snntorch.TCLIF(init_hidden=True, channels=C, **options),
}
KINDS = [pytest.param(kind, id=kind) for kind in MAKE]


def names(node):
    return node.state_names if hasattr(node, "state_names") else node._hidden


def states(node):
    """Looks at them: the next step is not prepared."""
    return [torch.as_tensor(getattr(node, name)).clone() for name in names(node)]


def same(first, second):
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True))


def prepared(node):
    return (node._kept.prepared if hasattr(node, "_kept") else node._prepared) is not None


class Runs:
    """How often a prepared step has run."""

    def __init__(self, monkeypatch):
        self.count, run = 0, cpu.Repeated.run

        def counted(call, *arguments):
            self.count += 1
            run(call, *arguments)

        monkeypatch.setattr(cpu.Repeated, "run", counted)


@pytest.fixture
def runs(monkeypatch):
    return Runs(monkeypatch)


def twins(kind, **options):
    torch.manual_seed(0)
    node = MAKE[kind](**options)
    return node, copy.deepcopy(node)


def go_on(node, twin, steps, scale=2.0, shape=(N, C), like=lambda x: x):
    """Both take the same steps; only the twin is looked at."""
    with torch.no_grad():
        for _ in range(steps):
            x = like(scale * torch.randn(shape))
            expected = twin(x)
            states(twin)
            actual = node(x)
            assert actual.dtype == expected.dtype and torch.equal(actual, expected)


def is_prepared(node, twin, runs):
    go_on(node, twin, 4)
    assert prepared(node) and runs.count > 0 and not prepared(twin)
    runs.count = 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_steps_that_are_looked_at(kind, dtype, mode, runs):
    node, twin = twins(kind)
    if dtype == torch.float64:
        node.double(), twin.double()
    with mode():
        go_on(node, twin, 12, like=lambda x: x.to(dtype))
        assert runs.count >= 9  # after one from rest, one of a kind that was not known, and one to prepare
        assert same(states(node), states(twin))


OPTIONS = [
    *(("PMSN", {"reset_mode": mode}) for mode in ("modulo", "cumulative", "memoryless", "serial")),
    *(("PMSN", {"burst": True}), ("PMSN", {"channel_axis": -1}), ("PMSN", {"channel_axis": 0})),
    *(("TCLIF", {"soma_feedback": "pre_reset"}), ("TCLIF", {"gamma": 0.2, "leak": (0.9, 0.8)})),
]


@pytest.mark.parametrize("kind", ["PMSN", "TCLIF"])
def test_graded_spikes(kind, runs):
    node, twin = twins(kind, graded_spikes_factor=2.0)
    go_on(node, twin, 6)
    assert runs.count == 0 and same(states(node), states(twin))


@pytest.mark.parametrize("suffix", ["", "Node"])
@pytest.mark.parametrize(("neuron", "options"), OPTIONS)
def test_options(neuron, options, suffix, runs):
    node, twin = twins(neuron + suffix, **options)
    shape = {-1: (2, N, C), 0: (C, N, 2)}.get(options.get("channel_axis"), (N, C, 2))
    go_on(node, twin, 10, shape=shape)
    assert runs.count > 3 and same(states(node), states(twin))


def new_parameter(node):
    name = next(iter(node._parameters))
    setattr(node, name, torch.nn.Parameter(getattr(node, name).detach() + 0.4))


def through_numpy(node):
    node._parameters[next(iter(node._parameters))].detach().numpy()[...] += 0.4


def new_data(node):
    p = next(iter(node.parameters()))
    p.data = p.data + 0.4


def strided_data(node):
    p = list(node.parameters())[1]
    p.data = (p.data + 0.4).mT.contiguous().mT if p.ndim == 2 else p.data + 0.4


def parametrized(node):
    class Shifted(torch.nn.Module):
        def forward(self, p):
            return p + 0.4

    name = next(iter(node._parameters))
    torch.nn.utils.parametrize.register_parametrization(node, name, Shifted())


PARAMETERS = {
    "in place": lambda node: next(iter(node.parameters())).add_(0.4),
    "last": lambda node: list(node.parameters())[-1].sub_(0.4),
    "data": lambda node: next(iter(node.parameters())).data.add_(0.4),
    "numpy": through_numpy,
    "new data": new_data,
    "strided data": strided_data,
    "new parameter": new_parameter,
    "past the module": lambda node: node._parameters.update(
        {name: torch.nn.Parameter(p + 0.4) for name, p in node._parameters.items() if p is not None}
    ),
    "loaded": lambda node: node.load_state_dict({name: p + 0.4 for name, p in node.state_dict().items()}),
    "parametrized": parametrized,
}


@pytest.mark.parametrize("change", PARAMETERS)
@pytest.mark.parametrize("kind", KINDS)
def test_changed_parameters_are_seen(kind, change, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    unchanged = copy.deepcopy(twin)
    with torch.no_grad():
        for neuron in (node, twin):
            PARAMETERS[change](neuron)
    go_on(node, twin, 1)
    assert runs.count == 0
    go_on(node, twin, 5)
    assert runs.count > 0 or change in ("parametrized", "strided data")
    assert same(states(node), states(twin))
    with torch.no_grad():
        for _ in range(6):
            unchanged(torch.zeros(N, C))
            twin(torch.zeros(N, C))
    assert not same(states(unchanged), states(twin))


def other_view(p):
    """Other numbers at the same place."""
    return p.data.mT if p.ndim == 2 else torch._neg_view(p.data)


DATA = {
    "other view": other_view,
    "negative view": lambda p: torch._neg_view(p.data),
    "halves": lambda p: p.data.view(torch.float16)[..., : p.shape[-1]],
    "shorter": lambda p: p.data[:-1],
    "elsewhere": lambda p: p.data + 0.4,
}


@pytest.mark.parametrize("change", DATA)
@pytest.mark.parametrize("kind", ["PMSNNode", "TCLIFNode, channels", "PMSN", "TCLIF, channels"])
def test_data_that_lie_in_memory_as_before(kind, change, runs):
    node, twin = twins(kind, **{"n_compartments": C + 1} if "PMSN" in kind else {})
    is_prepared(node, twin, runs)
    results, old = [], []
    x = 2 * torch.randn(N, C)
    for neuron in (twin, node):
        p = list(neuron.parameters())[1]
        old.append(p.data)
        p.data = DATA[change](p)
        with torch.no_grad():
            try:
                results.append(neuron(x))
            except (ValueError, TypeError, RuntimeError) as error:
                results.append(str(error))
    assert runs.count == 0 and type(results[0]) is type(results[1])
    assert results[0] == results[1] if isinstance(results[0], str) else torch.equal(*results)


class OwnSpikes(torch.nn.Module):
    def forward(self, u):
        return (u > 0.5).to(u.dtype)


SETTINGS = {
    "PMSN": [
        *({"threshold": 0.3}, {"reset_mode": "memoryless"}, {"burst": True}, {"backend": "torch"}, {"output": True}),
        *({"spike_grad": triangle()}, {"spike_grad": torch.sigmoid}),
        *({"init_hidden": False, "output": True}, {"channel_axis": -1}, {"graded_spikes_factor": torch.tensor(2.0)}),
        {"threshold": torch.tensor(0.3)},
    ],
    "TCLIF": [
        *({"gamma": 0.1}, {"threshold": 0.3}, {"soma_feedback": "pre_reset"}, {"leak": (0.5, 0.5)}),
        *({"backend": "torch"}, {"spike_grad": triangle()}, {"spike_grad": torch.sigmoid}, {"detach_reset": True}),
        *({"graded_spikes_factor": torch.tensor(2.0)}, {"threshold": torch.tensor(0.3)}),
    ],
    "PMSNNode": [
        *({"v_threshold": 0.3}, {"reset_mode": "memoryless"}, {"burst": True}, {"backend": "torch"}),
        *(
            {"surrogate_function": surrogate.ATan(spiking=False)},
            {"surrogate_function": OwnSpikes()},
            {"store_v_seq": True},
        ),
        {"training": False},
    ],
    "TCLIFNode": [
        *({"gamma": 0.1}, {"v_threshold": 0.3}, {"soma_feedback": "pre_reset"}, {"leak": (0.5, 0.5)}),
        *({"backend": "torch"}, {"surrogate_function": OwnSpikes()}, {"store_v_seq": True}, {"detach_reset": True}),
    ],
}


@pytest.mark.parametrize(("kind", "settings"), [(kind, s) for kind, all_of in SETTINGS.items() for s in all_of])
def test_changed_settings_are_seen(kind, settings, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    for neuron in (node, twin):
        for name, value in settings.items():
            setattr(neuron, name, value)
    x = torch.tensor([[1.0, 1.5, 2.0, -1.0, 0.5]] * N)
    with torch.no_grad():
        expected, actual = twin(x), node(x)
    assert runs.count == 0
    flat = (expected, actual) if isinstance(expected, torch.Tensor) else (expected[0], actual[0])
    assert torch.equal(*flat)
    if "init_hidden" not in settings:
        assert same(states(node), states(twin))
    if "store_v_seq" in settings:
        with torch.no_grad():
            twin(x), node(x)
        assert node.v_seq.shape[0] == 2 and torch.equal(node.v_seq, twin.v_seq)


@pytest.mark.parametrize("kind", ["PMSNNode", "TCLIFNode"])
def test_a_surrogate_that_changes_is_seen(kind, runs):
    node, twin = twins(kind, surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0))
    is_prepared(node, twin, runs)
    for neuron in (node, twin):
        neuron.surrogate_function.spiking = False  # it sends numbers between 0 and 1 now
    go_on(node, twin, 3)
    assert runs.count == 0
    for neuron in (node, twin):
        neuron.surrogate_function.spiking = True
        neuron.surrogate_function.alpha = -1.0
        with torch.no_grad(), pytest.raises(ValueError, match="alpha"):
            neuron(torch.randn(N, C))


INPUTS = {
    "strides": lambda x: x.mT.contiguous().mT,
    "offset": lambda x: torch.cat([x, x])[N:],
    "negative view": lambda x: torch._neg_view(x),
    "parameter": lambda x: torch.nn.Parameter(x),
    "half": lambda x: x.half(),
    "double": lambda x: x.double(),
    "nan": lambda x: torch.where(x > 1, float("nan"), x),
    "infinite": lambda x: torch.where(x > 1, float("inf"), x),
}


@pytest.mark.parametrize("change", INPUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_all_kinds(kind, change, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    for like in (INPUTS[change], lambda x: x):
        go_on(node, twin, 3, like=like)
    first, second = states(node), states(twin)
    assert same([s.nan_to_num() for s in first], [s.nan_to_num() for s in second])
    assert same([s.isnan() for s in first], [s.isnan() for s in second])


WRONG = {
    "integer": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "larger batch": lambda x: torch.cat([x, x]),
    "more axes": lambda x: x[..., None].expand(N, C, 2),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "array": lambda x: x.numpy(),
    "number": lambda x: 1.0,
    "nothing": lambda x: None,
}


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_input_is_refused_as_always(kind, change, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    raised = []
    for neuron in (twin, node):
        with torch.no_grad(), pytest.raises(Exception) as error:
            neuron(WRONG[change](torch.randn(N, C)))
        raised.append((error.type, str(error.value)))
    assert raised[0] == raised[1] and runs.count == 0
    go_on(node, twin, 3)
    assert same(states(node), states(twin))


class Watching(TorchDispatchMode):
    seen = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen = (*self.seen, str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_whoever_watches_sees_the_operator(kind, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    x = torch.randn(N, C)
    with torch.no_grad(), Watching() as watching:
        node(x)
    assert runs.count == 0 and any("pmsn_plugins" in name for name in watching.seen)


@pytest.mark.parametrize("kind", KINDS)
def test_hooks_are_called_and_may_look(kind, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    seen, name = [], names(node)[0]
    node.register_forward_hook(lambda module, _, spikes: seen.append((spikes, getattr(module, name))))
    before = twin.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    node.register_forward_pre_hook(lambda module, args: (args[0] + 1,))
    go_on(node, twin, 3)
    before.remove()
    assert len(seen) == 3 and torch.equal(seen[-1][1], getattr(twin, name))
    assert len({state.data_ptr() for _, state in seen}) == 3, "a state that was seen has been written over"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_between_steps(kind, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    for neuron in (node, twin):
        torch.manual_seed(1)
        with torch.enable_grad():
            total = sum(neuron(2 * torch.randn(N, C)) for _ in range(3))
        with torch.no_grad():
            for _ in range(4):
                neuron(torch.randn(N, C))
        total.sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(node.parameters(), twin.parameters(), strict=True))
    assert same(states(node), states(twin))


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda node: pickle.loads(pickle.dumps(node))])
@pytest.mark.parametrize("kind", KINDS)
def test_copies_have_states_of_their_own(kind, make, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    other = make(node)
    assert not prepared(other)
    go_on(node, twin, 4)
    second = copy.deepcopy(twin)
    go_on(other, second, 0)
    before = states(twin)
    with torch.no_grad():
        for _ in range(4):
            other(torch.randn(N, C))
    assert same(states(node), before)


@pytest.mark.parametrize("kind", KINDS)
def test_called_with_other_parameters_for_once(kind, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    others = {name: p.detach() + 0.4 for name, p in node.named_parameters()}
    x = 2 * torch.randn(N, C)
    with torch.no_grad():
        expected = torch.func.functional_call(twin, others, x)
        states(twin)
        assert torch.equal(torch.func.functional_call(node, others, x), expected) and runs.count == 0
    go_on(node, twin, 4)
    assert same(states(node), states(twin))


@pytest.mark.parametrize("kind", ["PMSNNode", "TCLIFNode", "PMSN", "TCLIF"])
def test_own_coefficients_of_a_subclass(kind, runs):
    base = type(MAKE[kind]())
    method = "neuron_parameters" if hasattr(base, "neuron_parameters") else "couplings"

    def doubled(self, *arguments):
        self.__dict__["asked"] = self.__dict__.get("asked", 0) + 1
        first, *others = getattr(base, method)(self, *arguments)
        return type(self).record(first * self.asked, *others)

    record = staticmethod(lambda *values: PMSNParameters(*values) if "PMSN" in kind else values)
    own = type("Own", (base,), {method: doubled, "record": record})
    options = {"init_hidden": True} if base in (for_snntorch.PMSN, for_snntorch.TCLIF) else {}
    options |= {"step_mode": "s"} if base is for_snntorch.PMSN else {}
    node = own(*(C,) if "PMSN" in kind else (), **options)
    with torch.no_grad():
        for _ in range(6):
            node(torch.randn(N, C))
    assert node.asked == 6 and runs.count == 0


@pytest.mark.parametrize("kind", KINDS)
def test_moved_and_reset(kind, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    for change in (
        lambda neuron: neuron.double(),
        lambda neuron: neuron.float(),
        lambda neuron: neuron.reset() if hasattr(neuron, "reset") else neuron.reset_mem(),
        lambda neuron: [setattr(neuron, n, torch.full_like(getattr(neuron, n), 0.3)) for n in names(neuron)],
    ):
        for neuron in (node, twin):
            change(neuron)
        go_on(node, twin, 4, like=lambda x: x.to(next(node.parameters()).dtype))
        assert prepared(node)
    assert same(states(node), states(twin))


@pytest.mark.parametrize("kind", KINDS)
def test_another_number_of_threads(kind, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        go_on(node, twin, 1)
        assert runs.count == 0
        go_on(node, twin, 3)
    finally:
        torch.set_num_threads(threads)
    assert runs.count > 0 and same(states(node), states(twin))


@pytest.mark.parametrize("kind", KINDS)
def test_neither_input_nor_old_states_live_on(kind, runs):
    """Not even until the garbage collector finds them."""
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    with torch.no_grad():
        node.double(), node.float()  # looked at
        x = torch.randn(N, C)
        spikes = [node(x) for _ in range(4)]
        state = next(iter(node._kept.unseen if hasattr(node, "_kept") else node._unseen))
        places = [weakref.ref(t) for t in (x, spikes[-1], state)]
        del x, spikes
        assert prepared(node) and places[0]() is None and places[1]() is None
        node.reset() if hasattr(node, "reset") else node.reset_mem()
        del state
        assert places[2]() is None


@pytest.mark.parametrize("mode", ["aot_eager"])
@pytest.mark.parametrize("kind", ["PMSNNode", "TCLIFNode", "PMSN", "TCLIF"])
def test_compiled_in_between(kind, mode, runs):
    node, twin = twins(kind)
    is_prepared(node, twin, runs)
    torch.compiler.reset()
    compiled = torch.compile(node, backend=mode)
    x = 2 * torch.randn(N, C)
    with torch.no_grad():
        for _ in range(2):
            expected = twin(x)
            states(twin)
            assert torch.equal(compiled(x), expected)
    assert runs.count == 0
    go_on(node, twin, 5)
    assert runs.count > 0 and same(states(node), states(twin))


def test_a_library_that_is_out_of_memory(monkeypatch, runs):
    node, twin = twins("TCLIFNode")
    is_prepared(node, twin, runs)
    monkeypatch.setattr(node._kept.prepared._call, "_function", lambda *arguments: 1)
    with torch.no_grad(), pytest.raises(MemoryError, match="tclif_forward"):
        node(torch.randn(N, C))


def test_numpy_input_that_shares_memory(runs):
    node, twin = twins("TCLIFNode")
    is_prepared(node, twin, runs)
    array = np.ones((N, C), dtype=np.float32)
    x = torch.from_numpy(array)
    for value in (0.5, 2.0, -1.0):
        array[...] = value
        with torch.no_grad():
            expected = twin(x)
            states(twin)
            assert torch.equal(node(x), expected)
    assert runs.count == 3
