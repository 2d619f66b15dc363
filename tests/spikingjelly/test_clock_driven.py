"""The stand-in for spikingjelly.clock_driven: every name that public code imports, and nets with its structures."""

import functools
import importlib
import sys

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron, surrogate

from pmsn_plugins import swap_neurons
from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode, clock_driven

T, N = 4, 2


def forget():
    for name in list(sys.modules):
        if name.startswith(("spikingjelly.clock_driven", "spikingjelly.cext")):
            del sys.modules[name]


@pytest.fixture
def installed():
    forget()
    clock_driven.install()
    yield
    clock_driven.uninstall()
    forget()


def test_install_and_uninstall():
    forget()
    before = set(sys.modules)
    clock_driven.install()
    clock_driven.install()
    import spikingjelly.clock_driven.layer as by_path
    from spikingjelly.clock_driven import layer as by_name

    assert by_path is by_name and by_path.SeqToANNContainer is clock_driven.SeqToANNContainer
    clock_driven.uninstall()
    clock_driven.uninstall()
    assert not [name for name in set(sys.modules) - before if "clock_driven" in name or "cext" in name]
    assert not hasattr(sys.modules["spikingjelly"], "clock_driven")


def test_the_releases_own_is_not_taken_away(monkeypatch):
    forget()
    monkeypatch.setitem(sys.modules, "spikingjelly.clock_driven", surrogate)
    with pytest.raises(RuntimeError, match=r"has been imported already: call clock_driven\.install\(\) before"):
        clock_driven.install()


IMPORTED = {
    "neuron": "BaseNode IFNode LIFNode ParametricLIFNode MultiStepIFNode MultiStepLIFNode MultiStepParametricLIFNode",
    "layer": "Dropout Dropout2d MultiStepDropout MultiStepDropout2d MultiStepContainer SeqToANNContainer SynapseFilter "
    "LinearRecurrentContainer ElementWiseRecurrentContainer",
    "functional": "reset_net seq_to_ann_forward multi_step_forward",
    "surrogate": "ATan Sigmoid PiecewiseQuadratic",
    "encoding": "PoissonEncoder",
    "base": "MemoryModule",
    "accelerating": "add sub mul",
}


def test_every_name(installed):
    for module, names in IMPORTED.items():
        stand_in = importlib.import_module(f"spikingjelly.clock_driven.{module}")
        for name in names.split():
            assert hasattr(stand_in, name), f"{module}.{name}"
    with pytest.raises(ImportError, match="cannot import name 'NoSuchNode'"):
        exec("from spikingjelly.clock_driven.neuron import NoSuchNode")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("spikingjelly.clock_driven.ann2snn_converter")


X = 3 * torch.rand(T, N, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (
            lambda n: n.MultiStepLIFNode(tau=3.0, detach_reset=True, backend="cupy"),
            lambda: neuron.LIFNode(tau=3.0, detach_reset=True, step_mode="m"),
        ),
        (
            lambda n: n.MultiStepLIFNode(2.0, False, 0.5, None, n.surrogate.ATan(), True, "torch"),
            lambda: neuron.LIFNode(2.0, False, 0.5, None, surrogate.ATan(), True, step_mode="m"),
        ),
        (
            lambda n: n.MultiStepIFNode(0.5, None, surrogate.ATan(), True),
            lambda: neuron.IFNode(0.5, None, surrogate.ATan(), True, step_mode="m"),
        ),
        (
            lambda n: n.MultiStepParametricLIFNode(init_tau=3.0, v_threshold=0.5, detach_reset=True, backend="cupy"),
            lambda: neuron.ParametricLIFNode(init_tau=3.0, v_threshold=0.5, detach_reset=True, step_mode="m"),
        ),
    ],
)
def test_multi_step_neurons(installed, old, new):
    from spikingjelly.clock_driven import neuron as stand_in

    node, expected = old(stand_in), new()
    assert isinstance(node, neuron.BaseNode) and isinstance(node, stand_in.BaseNode)
    x, z = X.clone().requires_grad_(), X.clone().requires_grad_()
    y = node(x)
    assert y.any() and torch.equal(y, expected(z))
    y.sum().backward()
    expected(z).sum()
    functional.reset_net(node)
    assert torch.equal(node(x), y)


def test_bad_arguments(installed):
    from spikingjelly.clock_driven import neuron as stand_in
    from spikingjelly.clock_driven import surrogate as old_surrogate

    with pytest.raises(ValueError, match="backend must be one of 'torch', 'cupy', got 'cuda'"):
        stand_in.MultiStepLIFNode(backend="cuda")
    with pytest.raises(NotImplementedError, match="monitor_state=True"):
        stand_in.BaseNode(monitor_state=True)
    with pytest.raises(NotImplementedError, match="learnable=True"):
        old_surrogate.ATan(learnable=True)
    assert type(old_surrogate.ATan(learnable=False)) is surrogate.ATan


def test_dropouts(installed):
    from spikingjelly.clock_driven import layer as stand_in

    for make, x in (
        (lambda: stand_in.Dropout(0.5, dropout_spikes=True), torch.ones(64)),
        (lambda: stand_in.Dropout2d(0.5), torch.ones(4, 8, 2, 2)),
        (lambda: stand_in.MultiStepDropout(0.5), torch.ones(T, 64)),
        (lambda: stand_in.MultiStepDropout2d(0.5), torch.ones(T, 4, 8, 2, 2)),
    ):
        drop = make()
        y = drop(x)
        assert set(y.unique().tolist()) == {0.0, 2.0} and torch.equal(drop(x), y)  # the same units until the reset
        assert torch.equal(drop.eval()(x), x)


def test_containers_and_their_checkpoints(installed):
    from spikingjelly.clock_driven import functional as old_functional
    from spikingjelly.clock_driven import layer as stand_in

    two = stand_in.SeqToANNContainer(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    one = stand_in.SeqToANNContainer(nn.MaxPool2d(2))
    assert two.module[1] is two[1] and isinstance(one.module, nn.MaxPool2d)
    assert one(two(torch.rand(T, N, 3, 6, 6))).shape == (T, N, 4, 2, 2)
    single = stand_in.SeqToANNContainer(nn.Linear(3, 4))
    net, old = nn.Sequential(two, single), {}
    for key, value in net.state_dict().items():
        index, _, rest = key.partition(".")
        old[f"{index}.module.{rest}" if index == "0" else f"{index}.module.{rest.partition('.')[2]}"] = value + 1
    net.load_state_dict(old)
    assert torch.equal(net[0][0].weight, old["0.module.0.weight"]) and torch.equal(single[0].bias, old["1.module.bias"])
    net.load_state_dict(net.state_dict())
    stepwise = stand_in.MultiStepContainer(nn.Linear(5, 4), neuron.IFNode())
    assert stepwise(X).shape == (T, N, 4)
    old_functional.reset_net(stepwise)
    assert stepwise[1].v == 0.0


def test_arithmetic(installed):
    from spikingjelly.clock_driven import accelerating

    x, spike = torch.tensor([1.5, 2.0]), torch.tensor([1.0, 0.0])
    assert accelerating.add(x, spike).tolist() == [2.5, 2.0] and accelerating.sub(x, spike).tolist() == [0.5, 2.0]
    assert accelerating.mul(x, spike).tolist() == accelerating.mul(x, spike, True).tolist() == [1.5, 0.0]


def test_own_neurons(installed):
    """PLIF's repository charges self.v itself and returns self.spiking()."""
    from spikingjelly.clock_driven.neuron import BaseNode

    class Own(BaseNode):
        def __init__(self, v_reset=0.0, detach_reset=True, monitor_state=False):
            super().__init__(1.0, v_reset, surrogate.ATan(), detach_reset, monitor_state)
            self.w = nn.Parameter(torch.tensor(0.0))

        def forward(self, dv):
            self.v += (dv - self.v) * self.w.sigmoid()
            return self.spiking()

    for v_reset in (0.0, None):
        for detach_reset in (True, False):
            node = Own(v_reset, detach_reset)
            expected = neuron.ParametricLIFNode(2.0, True, 1.0, v_reset, surrogate.ATan(), detach_reset)
            x, z = X.clone().requires_grad_(), X.clone().requires_grad_()
            y, want = (torch.stack([n(i[t]) for t in range(T)]) for n, i in ((node, x), (expected, z)))
            assert torch.equal(y, want) and y.any()
            weight = torch.rand(y.shape)
            (y * weight).sum().backward()
            (want * weight).sum().backward()
            torch.testing.assert_close(x.grad, z.grad)
            torch.testing.assert_close(node.w.grad, expected.w.grad)
            functional.reset_net(node)
            assert node.v == 0.0
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), Own(), nn.Flatten(), nn.Linear(48, 4), Own())
    report = swap_neurons(net, PMSNNode, torch.rand(N, 1, 6, 6))
    assert report == {"2": 3, "5": 4} and report.replacements[0].settings["step_mode"] == "s"
    net(torch.rand(N, 1, 6, 6)).sum().backward()


def sew_block():
    """SEW ResNet's repository: cext neurons, SeqToANNContainers, zero initialisation by .module[1]."""
    from spikingjelly.cext import neuron as cext_neuron
    from spikingjelly.clock_driven import layer as old_layer

    class Block(nn.Module):
        def __init__(self, C):
            super().__init__()
            conv = functools.partial(nn.Conv2d, C, C, 3, padding=1, bias=False)
            self.conv1 = old_layer.SeqToANNContainer(conv(), nn.BatchNorm2d(C))
            self.sn1 = cext_neuron.MultiStepIFNode(detach_reset=True)
            self.conv2 = old_layer.SeqToANNContainer(conv(), nn.BatchNorm2d(C))
            self.sn2 = cext_neuron.MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True)
            nn.init.constant_(self.conv2.module[1].weight, 0)
            nn.init.constant_(self.conv2.module[1].bias, 1)

        def forward(self, x):
            out = self.sn2(self.conv2(self.sn1(self.conv1(x))))
            out += x
            return out

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6)
            self.sn1 = cext_neuron.MultiStepIFNode(detach_reset=True)
            self.layer1 = nn.Sequential(Block(6), Block(6))
            self.fc = nn.Linear(6, 3)

        def forward(self, x):
            x = self.bn1(self.conv1(x))
            x.unsqueeze_(0)
            x = self.layer1(self.sn1(x.repeat(T, 1, 1, 1, 1)))
            return self.fc(x.mean((-1, -2)).mean(0))

    return Net()


@pytest.mark.parametrize("new", [functools.partial(PMSNNode, preset="static"), TCLIFNode])
def test_a_net_of_that_time_is_swapped(installed, new):
    net, x = sew_block(), 2 * torch.randn(N, 3, 8, 8)
    assert isinstance(net.sn1.surrogate_function, surrogate.ATan) and net(x).shape == (N, 3)
    names = ["sn1", *(f"layer1.{i}.sn{j}" for i in (0, 1) for j in (1, 2))]
    for sample in (x, None):
        net = sew_block()
        assert swap_neurons(net, new, sample) == dict.fromkeys(names, 6)
        net(x).sum().backward()
        assert all(p.grad is not None for p in net.parameters())


def test_neurons_of_the_releases_own_clock_driven_are_pointed_out():
    class OldNode(nn.Module):
        pass

    OldNode.__module__ = "spikingjelly.clock_driven.neuron"
    with pytest.raises(
        ValueError, match=r"OldNode are of spikingjelly\.clock_driven; call .*clock_driven\.install\(\)"
    ):
        swap_neurons(nn.Sequential(nn.Linear(3, 3), OldNode()), TCLIFNode)


def test_the_layers_are_the_releases_own():
    for name, cls in {"SeqToANNContainer": nn.Sequential, "MultiStepContainer": nn.Sequential}.items():
        assert issubclass(getattr(clock_driven, name), (cls, getattr(layer, name)))


def test_single_step_neurons_take_the_old_arguments(installed):
    from spikingjelly.clock_driven import neuron as old

    lif = old.LIFNode(3.0, False, 0.5, None, surrogate.ATan(), True, False)  # the last: cupy_fp32_inference
    assert (lif.tau, lif.decay_input, lif.v_threshold, lif.v_reset, lif.detach_reset, lif.step_mode) == (
        *(3.0, False, 0.5, None, True),
        "s",
    )
    own = old.IFNode(0.5, None, surrogate.ATan(), True, cupy_fp32_inference=True)
    assert (own.v_threshold, own.v_reset, own.detach_reset, own.step_mode) == (0.5, None, True, "s")
    for node in (old.MultiStepLIFNode(lava_s_cale=32), old.MultiStepIFNode(lava_s_cale=32)):
        assert node.step_mode == "m" and isinstance(node, neuron.BaseNode)
    assert isinstance(old.MultiStepLIFNode(), old.LIFNode) and isinstance(old.MultiStepIFNode(), old.IFNode)
    assert isinstance(neuron.LIFNode(), old.LIFNode) and not isinstance(neuron.IFNode(), old.LIFNode)  # in today's nets
    assert old.LIFNode(step_mode="m").step_mode == old.IFNode(step_mode="m").step_mode == "m"
    net = nn.Sequential(nn.Linear(3, 4), lif)
    assert swap_neurons(net, PMSNNode) == {"1": 4} and net[1].v_threshold == 0.5


def test_all_names_are_imported_at_once(installed):
    names = {}
    exec("from spikingjelly.clock_driven.neuron import *", names)
    assert names["LIFNode"] is clock_driven.LIFNode and names["MultiStepLIFNode"] is clock_driven.MultiStepLIFNode
    assert names["EIFNode"] is neuron.EIFNode and names["surrogate"] is surrogate
    exec("from spikingjelly.clock_driven import *", names := {})
    assert set(clock_driven.SUBMODULES) <= set(names)


def test_a_name_that_is_not_there_is_said(installed):
    import spikingjelly.cext.neuron as extension
    import spikingjelly.clock_driven.neuron as old

    with pytest.raises(
        AttributeError, match=r"stand-in for spikingjelly\.cext\.neuron has no LIFNode: it has MultiStepIF"
    ):
        extension.LIFNode  # noqa: B018
    with pytest.raises(
        AttributeError, match=r"neuron has no Nothing: .* and what spikingjelly\.activation_based\.neuron"
    ):
        old.Nothing  # noqa: B018
