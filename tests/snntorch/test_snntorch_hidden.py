"""Hidden states: resetting, detaching, moving, copying and saving layers that keep them."""

import copy
import gc
import importlib.util
import io
import pickle
import sys
import types
from functools import partial

import pytest
import snntorch as snn
import torch
from snntorch import utils
from snntorch.functional import probe
from torch import nn

from pmsn_plugins.functional import PMSNParameters
from pmsn_plugins.snntorch import PMSN, RTCLIF, TCLIF, reset
from pmsn_plugins.snntorch.instances import enlisted

T, B, C = 6, 3, 5
X = torch.randn(B, C, generator=torch.Generator().manual_seed(0)) + 0.5


def make(kind, **options):
    if kind == "PMSN":
        return PMSN(C, step_mode="s", init_hidden=True, **options)
    if kind == "RTCLIF":
        return RTCLIF(linear_features=C, init_hidden=True, **options)
    return TCLIF(init_hidden=True, **options)


def states(layer):
    return tuple(getattr(layer, name) for name in layer._hidden)


def run(layer, x=X):
    return torch.stack([layer(x) for _ in range(T)])


def is_initial(layer):
    return all(not s.any() and not s.requires_grad for s in states(layer))


kinds = pytest.mark.parametrize("kind", ["PMSN", "TCLIF", "RTCLIF"])


@kinds
def test_reset_mem_forgets_the_past_and_the_batch(kind):
    layer = make(kind)
    first = run(layer)
    returned = layer.reset_mem()
    assert all(s.numel() == 0 for s in returned)
    assert torch.equal(run(layer), first)
    layer.reset_mem()
    assert torch.equal(run(layer, X[:2]), first[:, :2])


@kinds
def test_changed_batch_without_reset_is_an_error_that_changes_nothing(kind):
    layer = make(kind)
    run(layer)
    before = states(layer)
    with pytest.raises(ValueError, match=r"reset the state when the batch size"):
        layer(X[:2])
    assert all(a is b for a, b in zip(states(layer), before, strict=True))


@kinds
def test_class_methods_reach_layers_of_the_class(kind):
    layer, other = make(kind), make("TCLIF" if kind == "PMSN" else "PMSN")
    synaptic = snn.Synaptic(0.9, 0.8, init_hidden=True)
    for each in (layer, other, synaptic):
        run(each)
    type(layer).detach_hidden()
    assert not any(s.requires_grad for s in states(layer))
    assert any(s.any() for s in states(layer))
    type(layer).reset_hidden()
    assert is_initial(layer)
    assert any(s.requires_grad for s in states(other))
    assert synaptic.mem.any()


@kinds
def test_detached_state_cuts_the_graph_but_not_the_numbers(kind):
    layer, reference = make(kind), make(kind)
    reference.load_state_dict(layer.state_dict())
    run(layer).sum().backward()
    type(layer).detach_hidden()
    again = run(layer)  # would go through the freed graph otherwise
    again.sum().backward()
    run(reference)
    assert torch.equal(again, run(reference))


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.ModuleList([nn.Sequential(make("PMSN")), nn.ModuleDict({"a": make("TCLIF")})])
        self.leaky = snn.Leaky(0.9, init_hidden=True)
        self.others = nn.ModuleList(
            [
                snn.Synaptic(0.9, 0.8, init_hidden=True),
                snn.Alpha(0.9, 0.8, init_hidden=True),
                snn.Lapicque(beta=0.9, init_hidden=True),
                snn.RLeaky(0.9, linear_features=C, init_hidden=True),
                snn.RSynaptic(0.9, 0.8, linear_features=C, init_hidden=True),
                snn.SLSTM(C, C, init_hidden=True),
                snn.LeakyParallel(C, C),  # time-parallel: no state to reset
            ]
        )

    def layers(self):
        return [self.block[0][0], self.block[1]["a"], self.leaky, *self.others[:-1]]


def test_reset_finds_every_layer_at_any_depth_and_no_other():
    net, other = Nested(), Nested()
    results = []
    for _ in range(2):
        results.append([torch.stack([layer(X) for _ in range(T)]) for layer in net.layers()])
        for layer in other.layers():
            layer(X)
        reset(net)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    assert is_initial(net.block[0][0]) and is_initial(net.block[1]["a"])
    assert not net.leaky.mem.requires_grad and not net.leaky.mem.any()
    assert all(layer.mem.any() for layer in other.layers())


def test_snntorch_reset_knows_tclif_without_registration():
    net = nn.Sequential(nn.Linear(C, C), make("TCLIF"))
    first = run(net)
    utils.reset(net)
    assert is_initial(net[1])
    utils.reset(net)  # the state left behind has the old batch size, and must fit any
    assert torch.equal(run(net, X[:2]), first[:, :2])


@kinds
@pytest.mark.parametrize("forget", [lambda layer: layer.reset_mem(), lambda layer: layer.reset_hidden(), reset])
def test_after_a_reset_another_batch_size_needs_no_look_at_the_state(kind, forget, monkeypatch):
    layer = make(kind)  # on a GPU a look would wait for all that is under way
    run(layer)
    forget(layer)
    monkeypatch.setattr(torch.Tensor, "any", lambda *_: pytest.fail("the state was read"))
    layer(X[:2])


@kinds
def test_layers_are_known_to_snntorch_once_and_only_while_they_live(kind):
    gc.collect()  # layers of other tests
    layer = make(kind)
    before = snn.SpikingNeuron.instances[:-1]
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    for _ in range(3):
        run(layer)
    entries = snn.SpikingNeuron.instances[len(before) :]
    assert [entry.layer() for entry in entries] == [layer, *copies]
    assert all(isinstance(entry, type(layer)) for entry in entries)
    assert list(enlisted(type(layer)))[-3:] == [layer, *copies]
    del layer, copies
    gc.collect()  # the graph of the last run may hold it
    assert [entry.layer() for entry in entries] == [None] * 3
    entries[0].mem = torch.zeros(3)  # snnTorch's class methods may still come across it
    entries[0].mem.detach_()
    other = make(kind)
    assert snn.SpikingNeuron.instances[:-1] == before and snn.SpikingNeuron.instances[-1].layer() is other


@pytest.fixture
def little_to_collect():
    """Garbage collection does not look through what other tests have left."""
    gc.freeze()
    yield
    gc.unfreeze()


@kinds
@pytest.mark.usefixtures("little_to_collect")
def test_layers_that_die_while_snntorch_goes_through_its_list(kind, monkeypatch):
    """Its loops count the items before they begin, and garbage is collected whenever Python likes."""
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])

    class Collecting(snn.Leaky, snn.Synaptic, snn.RSynaptic):
        def __init__(self):
            pass

        @property
        def mem(self):
            gc.collect(1)  # the young, quickly
            return torch.zeros(1)

        @mem.setter
        def mem(self, value):
            gc.collect(1)  # the young, quickly

        spk = syn = mem

    snn.SpikingNeuron.instances.append(Collecting())
    for method in ("reset_hidden", "detach_hidden"):
        layer = make(kind)
        layer.itself = layer  # a cycle
        del layer
        for neuron in (snn.Leaky, snn.Synaptic, snn.RSynaptic):
            getattr(neuron, method)()


@kinds
def test_an_emptied_list_is_no_trouble(kind, monkeypatch):
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])
    layer = make(kind)
    monkeypatch.setattr(snn.SpikingNeuron, "instances", [])  # SpikingNeuron.init()
    del layer
    gc.collect()
    assert snn.SpikingNeuron.instances == []


@kinds
def test_utils_reset_without_registration(kind):
    """Without a reset: other spikes the second time, and a second backward through a freed graph."""
    net = nn.Sequential(nn.Linear(C, C), make(kind), nn.Linear(C, C), make(kind, output=True))
    nn.init.constant_(net[2].bias, 3.0)
    results = []
    for _ in range(3):
        utils.reset(net)
        spk = torch.stack([net(6 * X)[0] for _ in range(T)])
        spk.sum().backward()
        results.append(spk)
    assert all(torch.equal(spk, results[0]) for spk in results[1:]) and results[0].any()
    utils.reset(net)
    assert is_initial(net[1]) and is_initial(net[3])
    assert utils._final_layer_check(net) == (2 if kind == "PMSN" else 3)


@kinds
@pytest.mark.parametrize("init_hidden", [True, False])
@pytest.mark.parametrize("sequence", [True, False])
def test_monitors_find_the_membrane(kind, init_hidden, sequence):
    options = {"init_hidden": init_hidden, "step_mode": "m" if sequence else "s"}
    if kind == "TCLIF":
        if sequence:
            pytest.skip("TCLIF has no sequence form")
        del options["step_mode"]
    layer = {"PMSN": partial(PMSN, C), "TCLIF": TCLIF, "RTCLIF": partial(RTCLIF, linear_features=C)}[kind](**options)
    monitor = probe.AttributeMonitor("mem", False, nn.Sequential(layer), instance=type(layer))
    with torch.no_grad():
        outputs = [layer(X.expand(T, B, C) if sequence else X) for _ in range(1)]
    (mem,) = monitor["0"]
    assert mem.shape == X.shape and mem.any()
    if not init_hidden:
        returned = outputs[0][-1]
        assert torch.equal(mem, getattr(returned, "v", returned if kind != "PMSN" else returned[-1]))
    monitor.remove_hooks()
    with pytest.raises(AttributeError, match="no_such_state"):
        layer.__getattr__("no_such_state")


@kinds
def test_export_to_nir_points_to_ours(kind, monkeypatch):
    pytest.importorskip("nir")
    if importlib.util.find_spec("nirtorch") is None:  # it would only walk the net
        monkeypatch.setitem(sys.modules, "nirtorch", types.ModuleType("nirtorch"))
    export_nir = importlib.import_module("snntorch.export_nir")
    with pytest.raises(AttributeError, match=r"pmsn_plugins\.nir\.to_nir"):
        export_nir._extract_snntorch_module(make(kind))
    assert not hasattr(make(kind), "beta")


@pytest.mark.parametrize(
    "build",
    [
        lambda: PMSN(0),
        lambda: PMSN(C, n_compartments=1),
        lambda: PMSN(C, threshold=0.0),
        lambda: TCLIF(beta=(0.5, 0.5)),
        lambda: TCLIF(channels=0),
        lambda: TCLIF(reset_mechanism="zero"),
        lambda: RTCLIF(linear_features=0),
    ],
)
def test_a_layer_that_failed_to_build_is_not_known_to_snntorch(build):
    before = list(snn.SpikingNeuron.instances)
    with pytest.raises(ValueError):
        build()
    assert snn.SpikingNeuron.instances == before


@kinds
def test_deepcopy_in_mid_sequence_continues_alone(kind):
    layer = make(kind, learn_threshold=True, **({} if kind == "RTCLIF" else {"graded_spikes_factor": 2.0}))
    run(layer)
    copied = copy.deepcopy(layer)
    assert not any(s.requires_grad for s in states(copied))
    assert any(s.requires_grad for s in states(layer))
    want = run(layer)
    assert torch.equal(run(copied), want)
    reset(copied)
    assert not is_initial(layer)
    with torch.no_grad():
        copied.threshold.fill_(50.0)
    assert layer.threshold == 1.0


@kinds
def test_pickle_and_save(kind):
    layer = make(kind)
    run(layer)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    copies = [pickle.loads(pickle.dumps(layer)), torch.load(buffer, weights_only=False)]
    want = run(layer)
    for copied in copies:
        assert torch.equal(run(copied), want)


@kinds
def test_state_dict_holds_the_neuron_parameters_alone(kind):
    graded = kind != "RTCLIF"
    layer = make(kind, **({"graded_spikes_factor": 2.0} if graded else {}))
    run(layer)
    names = list(PMSNParameters._fields) if kind == "PMSN" else ["c1", "c2"]
    names += ["recurrent.weight", "recurrent.bias"] if kind == "RTCLIF" else []
    assert list(layer.state_dict()) == names
    learned = make(kind, learn_threshold=True, **({"learn_graded_spikes_factor": True} if graded else {}))
    assert sorted(learned.state_dict()) == sorted([*names, "threshold", *["graded_spikes_factor"][:graded]])


@kinds
def test_state_dict_round_trip(kind):
    torch.manual_seed(0)
    layer, other = make(kind), make(kind)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(run(other), run(layer))


@kinds
def test_broken_checkpoint_is_refused_and_nothing_is_loaded(kind):
    layer = make(kind)
    checkpoint = {name: value.clone() for name, value in layer.state_dict().items()}
    name = list(checkpoint)[-1]
    checkpoint[name].fill_(float("nan"))
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"NaN or infinite values in {name}"):
        layer.load_state_dict(checkpoint)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@kinds
def test_to_moves_the_hidden_state_along(kind):
    layer = make(kind)
    run(layer)
    layer.double()
    assert {s.dtype for s in states(layer)} == {torch.float64}
    layer.to("meta")
    assert {s.device.type for s in states(layer)} == {"meta"}


@kinds
def test_hidden_states_are_no_buffers(kind):
    """DistributedDataParallel broadcasts buffers: every process would continue from the first one's state."""
    layer = make(kind)
    run(layer)
    assert {name for name, _ in layer.named_buffers()} <= {"reset_mechanism_val"}


@kinds
def test_repr_names_the_layer(kind):
    assert repr(make(kind)).startswith(f"{kind}(")
