"""What to put in, what to replace, what is taken over, and the report."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron, surrogate

import pmsn_plugins
from pmsn_plugins import spikingjelly as sj
from pmsn_plugins import swap_neurons
from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode

sys.path.insert(0, str(Path(__file__).parent))
from swapping import same, snapshot

OLD = {
    "v_threshold": 0.7,
    "surrogate_function": surrogate.ATan(alpha=3.0),
    "detach_reset": True,
    "store_v_seq": True,
    "step_mode": "m",
}


def build(**options):
    return nn.Sequential(
        layer.Linear(3, 8, step_mode="m"), neuron.LIFNode(**OLD), layer.Linear(8, 4, step_mode="m"),
        nn.Sequential(neuron.IFNode(**(OLD | options))),
    )  # fmt: skip


def new_neurons(net):
    return net[1], net[3][0]


FORMS = {
    "class": (PMSNNode, {}),
    "partial": (functools.partial(PMSNNode, preset="static"), {"preset": "static"}),
    "initial values": (
        functools.partial(PMSNNode, dt_range=(0.1, 0.2), coupling=0.5), {"dt_range": (0.1, 0.2), "coupling": 0.5},
    ),
    "time scale": (functools.partial(PMSNNode, time_scale=40), {"time_scale": 40, "preset": "general"}),
    "nested partial": (
        functools.partial(functools.partial(PMSNNode, preset="shd"), preset="static", n_compartments=3),
        {"preset": "static", "n_compartments": 3},
    ),
    "function of channels": (lambda channels: PMSNNode(channels, preset="static"), {"preset": "static"}),
    "function with a default": (lambda C, preset="static": PMSNNode(C, preset=preset), {"preset": "static"}),
    "function of channels and old": (
        lambda channels, old: PMSNNode(channels, n_compartments=3 if isinstance(old, neuron.LIFNode) else 4), {},
    ),
    "function of anything": (lambda *args: PMSNNode(args[0]), {}),
    "class without channels": (TCLIFNode, {}),
    "partial without channels": (functools.partial(TCLIFNode, gamma=0.3), {"gamma": 0.3}),
    "function of nothing": (lambda: TCLIFNode(gamma=0.3), {"gamma": 0.3}),
    "callable object": (type("Make", (), {"__call__": lambda self, C: PMSNNode(C)})(), {}),
}  # fmt: skip


@pytest.mark.parametrize("sample", [torch.rand(5, 2, 3), None], ids=["sample", "no sample"])
@pytest.mark.parametrize("name", FORMS)
def test_what_to_put_in(name, sample):
    make, expected = FORMS[name]
    net = build()
    report = swap_neurons(net, make, sample)
    assert report == {"1": 8, "3.0": 4}
    for node, channels in zip(new_neurons(net), (8, 4), strict=True):
        assert type(node).__name__ == report.replacements[0].new
        assert node.channels == (channels if isinstance(node, PMSNNode) else None)
        assert {option: getattr(node, option) for option in expected} == expected
        assert node.step_mode == "m" and node.store_v_seq
    if "old" in name:
        assert [node.n_compartments for node in new_neurons(net)] == [3, 4]


class MyPMSN(PMSNNode):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@pytest.mark.parametrize("cls", [PMSNNode, MyPMSN, TCLIFNode])
def test_what_is_taken_over(cls):
    net = build()
    report = swap_neurons(net, cls)
    both = set(OLD) - (set() if cls is TCLIFNode else {"detach_reset"})
    for node, replacement in zip(new_neurons(net), report.replacements, strict=True):
        assert set(replacement.settings) == both
        assert all(getattr(node, option) is value for option, value in OLD.items() if option in both)
    net = build(v_threshold=0.4)
    report = swap_neurons(net, functools.partial(cls, v_threshold=2.0, store_v_seq=False), target=neuron.IFNode)
    assert net[3][0].v_threshold == 2.0 and not net[3][0].store_v_seq and list(report) == ["3.0"]
    assert set(report.replacements[0].settings) == both - {"v_threshold", "store_v_seq"}


def test_neurons_of_the_framework_can_be_put_in_as_well():
    net = build()
    report = swap_neurons(net, functools.partial(neuron.ParametricLIFNode, init_tau=3.0), torch.rand(5, 2, 3))
    assert type(net[1]) is neuron.ParametricLIFNode and net[1].v_threshold == 0.7 and report == {"1": 8, "3.0": 4}
    if hasattr(neuron, "PSN"):
        swap_neurons(net, functools.partial(neuron.PSN, T=5), torch.rand(5, 2, 3))
        swap_neurons(net, nn.ReLU, torch.rand(5, 2, 3), target="1")
        assert type(net[1]) is nn.ReLU and type(net[3][0]) is neuron.PSN
        swap_neurons(net, PMSNNode, torch.rand(5, 2, 3))
        assert net[3][0].step_mode == "m" and net[3][0].keep_state is False and type(net[1]) is nn.ReLU


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (TCLIFNode(), TypeError, r"got an instance of TCLIFNode; give the class, with options as functools\.partial"),
        ("PMSN", TypeError, "must be a class or a function that makes neurons, got 'PMSN'"),
        (lambda a, b, c: TCLIFNode(), TypeError, r"of \(channels\) or of \(channels, old\); it takes \(a, b, c\)"),
        (lambda *, channels: PMSNNode(channels), TypeError, r"it takes \(channels\)"),
        (functools.partial(PMSNNode, channels=8), ValueError, "made one for 8 channels, but 3.0 sees 4"),
        (layer.Linear, TypeError, "Linear needs in_features, out_features: give it with functools.partial"),
        (functools.partial(PMSNNode, preset="none"), ValueError, "preset"),
    ],
)
def test_what_cannot_be_put_in(make, error, message):
    net = build()
    before = snapshot(net)
    with pytest.raises(error, match=message) as raised:
        swap_neurons(net, make)
    assert same(before, snapshot(net))
    if "preset" in message:
        assert raised.value.__notes__ == ["while the new neuron for 1 was made"]


TARGETS = {
    "a class": (neuron.LIFNode, ["1"]),
    "classes": ((neuron.LIFNode, neuron.IFNode), ["1", "3.0"]),
    "a list": ([neuron.LIFNode, "3.0"], ["1", "3.0"]),
    "a name": ("3.0", ["3.0"]),
    "a wildcard meets neurons alone": ("*", ["1", "3.0"]),
    "another": ("3.?", ["3.0"]),
    "a predicate": (lambda name, module: name.startswith("3.") and hasattr(module, "v_threshold"), ["3.0"]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_target_and_exclude(name):
    selection, names = TARGETS[name]
    assert list(swap_neurons(build(), TCLIFNode, target=selection)) == names
    rest = [other for other in ("1", "3.0") if other not in names]
    if rest:
        assert list(swap_neurons(build(), TCLIFNode, exclude=selection)) == rest
    else:
        with pytest.raises(ValueError, match="net has no neuron to swap"):
            swap_neurons(build(), TCLIFNode, exclude=selection)


def test_names_meet_other_modules_where_they_meet_no_neuron():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2), neuron.IFNode())
    assert swap_neurons(net, PMSNNode, target="1") == {"1": 8}
    assert swap_neurons(net, TCLIFNode, target="*[0-9]") == {"1": 8, "3": 2}  # ours by name, too


def test_a_target_inside_a_target_goes_with_it():
    class Spike(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = neuron.IFNode()

        def forward(self, x):
            return self.inner(x)

    net = nn.Sequential(nn.Linear(3, 8), Spike())
    assert swap_neurons(net, PMSNNode, torch.rand(2, 3), target=(Spike, neuron.IFNode)) == {"1": 8}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "layer1.*"}, ValueError, r"target: no module of the net is named 'layer1\.\*'"),
        ({"exclude": "3.7"}, ValueError, r"exclude: no module of the net is named '3\.7'"),
        ({"target": 3}, TypeError, "target must be classes, names or a predicate .*, got int"),
        ({"exclude": [neuron.LIFNode()]}, TypeError, "exclude must be classes, .*, got LIFNode"),
        ({"target": nn.Conv2d}, ValueError, "no neuron to swap: target=.*Conv2d.* meets nothing"),
        ({"batch_first": 1}, TypeError, "batch_first must be True or False, got 1"),
        ({"channel_axis": "auto"}, ValueError, "channel_axis='auto' needs a sample_input"),
        ({"channel_axis": True}, TypeError, "channel_axis must be an integer, 'auto', None or a function"),
    ],
)
def test_argument_errors(options, error, message):
    net = build()
    before = snapshot(net)
    with pytest.raises(error, match=message):
        swap_neurons(net, PMSNNode, **options)
    assert same(before, snapshot(net))


def test_not_a_net():
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, got list"):
        swap_neurons([build()], PMSNNode)


def test_report():
    net = build()
    net.extend([layer.Linear(4, 8, step_mode="m"), net[1]])
    report = swap_neurons(net, PMSNNode, torch.rand(5, 2, 3))
    assert isinstance(report, dict) and report == {"1": 8, "5": 8, "3.0": 4}
    text = str(report)
    assert text == repr(report)
    lines = text.split("\n")
    assert lines[0].split() == ["name", "old", "new", "channels", "taken", "over"]
    assert lines[1].startswith("1 = 5  LIFNode  PMSNNode  8")
    assert lines[1].endswith("step_mode='m'") and "v_threshold=0.7, surrogate_function=ATan(alpha=3.0" in lines[1]
    assert lines[2].startswith("3.0    IFNode   PMSNNode  4")
    markdown = report.to_markdown().split("\n")
    assert markdown[0] == "| name | old | new | channels | taken over |" and markdown[1] == "|" + " --- |" * 5
    assert markdown[2].startswith("| 1 = 5 | LIFNode | PMSNNode | 8 | v_threshold=0.7") and len(markdown) == 4


def test_a_function_that_ignores_the_axis_is_refused():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.sn = nn.Linear(3, 8), neuron.IFNode(step_mode="m")

        def forward(self, x):
            return self.sn(self.fc(x))

    x = torch.rand(4, 2, 5, 3)
    net = Tokens()
    assert swap_neurons(net, lambda C: PMSNNode(C), x, channel_axis=-1) == {"sn": 8} and net.sn.channel_axis == 2
    net = Tokens()
    assert swap_neurons(net, functools.partial(PMSNNode, channel_axis=-1), x) == {"sn": 8}
    assert net.sn.channel_axis == -1
    for make in (lambda C: TCLIFNode(channels=C), lambda C: PMSNNode(C, channel_axis=0)):
        net = Tokens()
        before = snapshot(net)
        with pytest.raises(ValueError, match=r"sn has its channels on axis 2 of a step, but the .* acts on axis"):
            swap_neurons(net, make, x, channel_axis="auto")
        assert same(before, snapshot(net))
    assert swap_neurons(Tokens(), PMSNNode, channel_axis=-1) == {"sn": 8}  # without a sample it is believed


def test_random_numbers():
    """Only the initial values of the new neurons are drawn, and none if the swap fails."""
    net, x = build(), torch.rand(5, 2, 3)
    torch.manual_seed(5)
    swap_neurons(net, PMSNNode, x)
    after = torch.rand(1)
    torch.manual_seed(5)
    expected = [PMSNNode(8), PMSNNode(4)]
    assert torch.equal(torch.rand(1), after)
    for node, other in zip(new_neurons(net), expected, strict=True):
        assert torch.equal(node.log_dt, other.log_dt)


def test_one_place_to_import_it_from():
    assert pmsn_plugins.swap_neurons is swap_neurons
    assert not hasattr(sj, "swap_neurons")


def test_a_parallel_wrapper_is_refused(monkeypatch):
    class Wrapper(nn.Sequential):
        pass

    monkeypatch.setattr(nn.parallel, "DistributedDataParallel", Wrapper)
    with pytest.raises(ValueError, match="before it is wrapped in DistributedDataParallel"):
        swap_neurons(Wrapper(build()), PMSNNode)


def test_caches_of_every_part_are_forgotten():
    net = build()
    functional.reset_net(net)
    functional.reset_net(net[3])  # SpikingJelly 2.0 remembers whom to reset
    swap_neurons(net, PMSNNode)
    net(torch.rand(5, 2, 3))
    functional.reset_net(net[3])
    assert net[3][0].v == 0.0 and torch.is_tensor(net[1].v)


def test_training_flags_are_kept():
    net = build()
    net[1].eval()
    swap_neurons(net, PMSNNode, torch.rand(5, 2, 3))
    assert not net[1].training and net[3][0].training and net.training


def test_neurons_that_are_called_in_training_only():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.sn, self.aux = nn.Linear(3, 4), neuron.IFNode(), neuron.IFNode()

        def forward(self, x):
            x = self.sn(self.fc(x))
            return self.aux(x) if self.training else x

    net = Net()
    assert swap_neurons(net, PMSNNode, torch.rand(2, 3)) == {"sn": 4, "aux": 4}
