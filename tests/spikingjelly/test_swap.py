"""swap_neurons and sew_resnet: every neuron gets the channels it sees, and the net still trains."""

import copy

import pytest
import torch

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import base, encoding, functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import sew_resnet as sew_models
from spikingjelly.activation_based.model import spiking_resnet, spiking_vgg

from pmsn_plugins import swap_neurons
from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode, sew_resnet


def vgg11_bn():
    net = spiking_vgg.spiking_vgg11_bn(spiking_neuron=neuron.LIFNode, num_classes=5)
    # at 32x32 the average pool only copies one pixel 49 times for 120 million weights
    net.avgpool = layer.AdaptiveAvgPool2d(1)
    for index, (features, width) in {0: (512, 32), 3: (32, 32), 6: (32, 5)}.items():
        net.classifier[index] = layer.Linear(features, width)
        torch.nn.init.normal_(net.classifier[index].weight, std=0.5)  # enough current to fire
    return net


NETS = {
    "sew_resnet18": lambda: sew_models.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=5),
    "sew_resnet34": lambda: sew_models.sew_resnet34(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=5),
    "sew_resnet50": lambda: sew_models.sew_resnet50(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=5),
    "spiking_resnet18": lambda: spiking_resnet.spiking_resnet18(spiking_neuron=neuron.IFNode, num_classes=5),
    "spiking_vgg11_bn": vgg11_bn,
}
SWAPPED = {"sew_resnet18": 20, "sew_resnet34": 36, "sew_resnet50": 53, "spiking_resnet18": 17, "spiking_vgg11_bn": 10}


def static_pmsn(channels):
    return PMSNNode(channels, preset="static")


def snapshot(net):
    return [(name, id(module), module.training) for name, module in net.named_modules(remove_duplicate=False)]


def all_gradients(net):
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    return missing == [] and all(p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("name", NETS)
def test_networks_of_spikingjelly(name):
    torch.manual_seed(0)
    net = NETS[name]()
    functional.set_step_mode(net, "m")
    x = torch.randn(2, 2, 3, 32, 32)
    observed = swap_neurons(copy.deepcopy(net), static_pmsn, x)
    channels = swap_neurons(net, static_pmsn)
    assert channels == observed and len(channels) == SWAPPED[name]
    nodes = {n: m for n, m in net.named_modules() if isinstance(m, neuron.BaseNode)}
    assert {n: m.channels for n, m in nodes.items()} == channels
    assert all(isinstance(m, PMSNNode) and m.step_mode == "m" for m in nodes.values())

    functional.reset_net(net)
    y = net(x)
    (y * torch.randn_like(y)).sum().backward()
    assert all_gradients(net)

    functional.reset_net(net)
    net.eval()
    other = NETS[name]()
    functional.set_step_mode(other, "m")
    swap_neurons(other, static_pmsn)
    other.eval().load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(other(x), net(x))


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_builder_pairs_norms_and_neurons(depth, step_mode):
    net = sew_resnet(depth, static_pmsn, num_classes=5, step_mode=step_mode)
    x = torch.randn(2, 3, 32, 32) if step_mode == "s" else torch.randn(2, 1, 3, 32, 32)
    built = {name: m.channels for name, m in net.named_modules() if isinstance(m, PMSNNode)}
    assert swap_neurons(net, static_pmsn, x, target=PMSNNode) == built
    assert net(x).shape == ((2, 5) if step_mode == "s" else (2, 1, 5))
    assert net.layer1[0].cnf == "ADD"


def test_builder_takes_nothing_over_from_its_stand_ins():
    net = sew_resnet(18, PMSNNode, num_classes=5)
    assert isinstance(net.sn1.surrogate_function, surrogate.PiecewiseQuadratic)


def test_builder_errors():
    with pytest.raises(ValueError, match="depth must be one of 18, 34, 50, 101, 152, got 20"):
        sew_resnet(20, static_pmsn)
    with pytest.raises(ValueError, match="cnf must be one of 'ADD', 'AND', 'IAND', got 'OR'"):
        sew_resnet(18, static_pmsn, cnf="OR")
    with pytest.raises(ValueError, match="step_mode must be one of"):
        sew_resnet(18, static_pmsn, step_mode="x")


class Backwards(torch.nn.Module):
    """Registers its layers in an order that says nothing about the order of calls, and keeps one neuron idle."""

    def __init__(self, idle=False):
        super().__init__()
        self.sn1, self.sn2 = neuron.IFNode(), neuron.LIFNode(store_v_seq=True)
        self.fc1, self.drop, self.fc2 = torch.nn.Linear(4, 6), torch.nn.Dropout(), torch.nn.Linear(6, 3)
        self.bn = torch.nn.BatchNorm1d(6)
        if idle:
            self.spare = torch.nn.Sequential(torch.nn.Linear(2, 2), neuron.IFNode())

    def forward(self, x):
        return self.sn2(self.fc2(self.drop(self.sn1(self.bn(self.fc1(x))))))


def test_dry_run_finds_what_registration_order_hides():
    net = Backwards()
    net.bn.eval()
    before, rng = snapshot(net), torch.get_rng_state()
    with pytest.raises(ValueError, match=r"channels of sn1, sn2 cannot be told .* pass sample_input"):
        swap_neurons(net, PMSNNode)
    assert snapshot(net) == before
    state = copy.deepcopy(net.state_dict())
    x = torch.randn(5, 4)
    net(x)  # leaves states with a graph, of another batch size
    torch.set_rng_state(rng)
    assert swap_neurons(net, lambda C: TCLIFNode(channels=C), torch.zeros(2, 4)) == {"sn1": 6, "sn2": 3}
    assert torch.equal(torch.get_rng_state(), rng)
    assert net.training and not net.bn.training and net.drop.training
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert [net.sn1.store_v_seq, net.sn2.store_v_seq] == [False, True]
    assert net(x).shape == (5, 3)


def test_a_neuron_the_dry_run_never_reached_is_named():
    net = Backwards(idle=True)
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"never reached spare\.1"):
        swap_neurons(net, PMSNNode, torch.zeros(2, 4), target="spare.1")
    assert snapshot(net) == before
    with pytest.warns(UserWarning, match=r"never called, left as they are: spare\.1"):
        report = swap_neurons(net, PMSNNode, torch.zeros(2, 4))
    assert report == {"sn1": 6, "sn2": 3} and report.unused == ("spare.1",)
    assert type(net.spare[1]) is neuron.IFNode


def test_registered_widths():
    net = torch.nn.Sequential(
        layer.Conv2d(3, 8, 3), neuron.IFNode(), layer.Conv2d(8, 6, 3), layer.GroupNorm(2, 6), layer.AvgPool2d(2),
        layer.Dropout(), neuron.IFNode(), layer.Flatten(), layer.Linear(6, 7), layer.BatchNorm1d(7), neuron.LIFNode(),
    )  # fmt: skip
    x = torch.randn(2, 3, 6, 6)
    assert swap_neurons(copy.deepcopy(net), PMSNNode, x) == swap_neurons(net, PMSNNode) == {"1": 8, "6": 6, "10": 7}
    assert net(x).shape == (2, 7)


def test_ambiguous_registration_asks_for_a_sample():
    flattened = torch.nn.Sequential(layer.Conv2d(3, 8, 3), layer.Flatten(), neuron.IFNode())
    twice = torch.nn.Sequential(layer.Linear(3, 8), neuron.IFNode(), neuron.IFNode())
    first = torch.nn.Sequential(neuron.IFNode(), layer.Linear(3, 8))
    for net, names, x, expected in (
        (flattened, "2", torch.zeros(1, 3, 4, 4), {"2": 32}),
        (twice, "2", torch.zeros(1, 3), {"1": 8, "2": 8}),
        (first, "0", torch.zeros(1, 3), {"0": 3}),
    ):
        with pytest.raises(ValueError, match=f"channels of {names} cannot be told"):
            swap_neurons(net, PMSNNode)
        assert swap_neurons(net, PMSNNode, x) == expected


def test_single_step_neurons_inside_a_container_have_their_channels_on_axis_1():
    net = torch.nn.Sequential(layer.MultiStepContainer(layer.Linear(3, 8), neuron.IFNode()))
    x = torch.randn(5, 2, 3)
    assert swap_neurons(net, PMSNNode, x) == {"0.1": 8}
    assert net[0][1].step_mode == "s" and net(x).shape == (5, 2, 8)


def test_shared_neurons_stay_shared():
    shared = neuron.IFNode()
    net = torch.nn.Sequential(layer.Linear(3, 8), shared, layer.Linear(8, 8), shared)
    dry = copy.deepcopy(net)
    assert swap_neurons(net, PMSNNode) == swap_neurons(dry, PMSNNode, torch.zeros(1, 3)) == {"1": 8, "3": 8}
    assert net[1] is net[3] and dry[1] is dry[3]
    unequal = torch.nn.Sequential(layer.Linear(3, 8), shared, layer.Linear(8, 4), shared)
    with pytest.raises(ValueError, match=r"1 = 3 is one shared neuron, but sees \[4, 8\] channels"):
        swap_neurons(unequal, PMSNNode)
    assert unequal[1] is shared


def test_target_and_our_own_neurons():
    ours = PMSNNode(8)
    net = torch.nn.Sequential(layer.Linear(3, 8), ours, layer.Linear(8, 4), neuron.IFNode(), layer.Linear(4, 4))
    net.append(neuron.LIFNode())
    assert swap_neurons(net, lambda C: TCLIFNode(), target=neuron.LIFNode) == {"5": 4}
    assert swap_neurons(net, PMSNNode) == {"3": 4}
    assert net[1] is ours
    with pytest.raises(ValueError, match="net has no neuron to swap"):
        swap_neurons(net, PMSNNode)


def test_no_neuron_or_the_net_itself():
    with pytest.raises(ValueError, match="net has no neuron to swap"):
        swap_neurons(torch.nn.Linear(3, 3), PMSNNode)
    with pytest.raises(ValueError, match="net is itself a neuron"):
        swap_neurons(neuron.IFNode(), PMSNNode, torch.zeros(1, 3))


def test_a_failure_leaves_the_net_as_it_was():
    net = torch.nn.Sequential(layer.Linear(3, 8), neuron.IFNode(), layer.Linear(8, 4), neuron.IFNode())
    functional.set_step_mode(net, "m")
    before = snapshot(net)
    node = TCLIFNode()

    def wrong_later(channels):
        return PMSNNode(channels) if channels == 8 else PMSNNode(5)

    for factory, sample, message in (
        (wrong_later, None, "made one for 5 channels, but 3 sees 4"),
        (lambda C: node, None, "same module twice"),
        (lambda C: "a neuron", None, "neuron must make a torch.nn.Module, got str for 1"),
        (PMSNNode, torch.zeros(2, 3), "step_mode='m' sees .* without a channel axis 2"),
    ):
        with pytest.raises(ValueError, match=message):
            swap_neurons(net, factory, sample)
        assert snapshot(net) == before
    with pytest.raises(RuntimeError):  # the net's own error
        swap_neurons(net, PMSNNode, torch.zeros(5, 2, 7))
    assert snapshot(net) == before


def test_dry_run_with_a_random_encoder_and_several_inputs():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.fc, self.sn = encoding.PoissonEncoder(), torch.nn.Linear(3, 8), neuron.IFNode()

        def forward(self, x, scale):
            return self.sn(self.fc(self.encoder(x)) * scale)

    net, x = Net(), torch.rand(2, 3)
    rng = torch.get_rng_state()
    assert swap_neurons(net, lambda C: TCLIFNode(), (x, 2.0)) == {"sn": 8}
    assert torch.equal(torch.get_rng_state(), rng)


def test_swapped_net_compiles():
    torch._dynamo.reset()
    net = torch.nn.Sequential(layer.Conv2d(3, 4, 3), layer.BatchNorm2d(4), neuron.IFNode(), layer.AdaptiveAvgPool2d(1))
    functional.set_step_mode(net, "m")
    swap_neurons(net, static_pmsn)
    eager = copy.deepcopy(net)
    # 0.0.0.0.14's own convolution breaks the graph
    compiled = torch.compile(net, fullgraph=hasattr(base, "to_functional_forward"), backend="aot_eager")
    x = torch.randn(2, 2, 3, 6, 6)
    for _ in range(2):  # after a reset, and with a state
        y, expected = compiled(x), eager(x)
        torch.testing.assert_close(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    for p, q in zip(net.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)
    for prepare in (functional.detach_net, functional.reset_net):
        prepare(net)
        prepare(eager)
        torch.testing.assert_close(compiled(x), eager(x))


@pytest.mark.parametrize("kwargs", [{}, {"detach_reset": True}])
def test_builders_that_cannot_pass_channels_say_so(kwargs):
    with pytest.raises(
        TypeError, match=r"PMSNNode needs the number of channels.* pmsn_plugins\.swap_neurons\(net, PMSN"
    ):
        sew_models.sew_resnet18(cnf="ADD", spiking_neuron=PMSNNode, **kwargs)
    assert sew_models.sew_resnet18(cnf="ADD", spiking_neuron=TCLIFNode, num_classes=2).sn1.gamma == 0.5


def test_import_star_hides_no_module_of_spikingjelly():
    names = {"sew_resnet": sew_models, "neuron": neuron, "layer": layer, "functional": functional}
    before = dict(names)
    exec("from pmsn_plugins.spikingjelly import *", names)
    assert {name: names[name] for name in before} == before
    assert names["PMSNNode"] is PMSNNode and callable(sew_resnet)
