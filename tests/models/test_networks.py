"""The papers' networks: parameter counts to the printed digit, shapes and gradients for every neuron."""

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from pmsn_plugins.models import (
    NEURONS,
    column_cifar,
    count_parameters,
    feedforward,
    load_torchvision_resnet,
    neuron_factory,
    pixel_cifar,
    reset_states,
    residual,
    sew_resnet_static,
    spiking_layers,
)

PMSN, TCLIF = neuron_factory("pmsn"), neuron_factory("tclif")
HAS_PSN = hasattr(neuron, "PSN")
WHOLE_SEQUENCES = ("psn", "slidingpsn", "maskedpsn", "glif")
AVAILABLE = [name for name in NEURONS["spikingjelly"] if HAS_PSN or name not in WHOLE_SEQUENCES]
SPIKELESS = ("gru", "lstm")


@pytest.mark.parametrize(
    ("widths", "feedback", "printed"),
    [
        ((1, 40, 256, 128, 10), (), "44.8K"),
        ((1, 64, 256, 256, 10), (), "85.1K"),
        ((1, 40, 200, 64, 10), (0, 1), "63.6K"),
        ((1, 64, 256, 256, 10), (0, 1), "155.1K"),
        ((700, 128, 128, 20), (), "108.8K"),
        ((700, 128, 128, 20), (0, 1), "141.8K"),
        ((700, 128, 128, 35), (), "110.8K"),
        ((40, 300, 300, 12), (), "106.2K"),
        ((40, 300, 300, 12), (0,), "196.5K"),
    ],
)
def test_tclif_networks_have_the_papers_parameters(widths, feedback, printed):
    assert f"{count_parameters(feedforward(widths, TCLIF, feedback=feedback)) / 1000:.1f}K" == printed


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (lambda: feedforward((700, 256, 256, 20), PMSN, sum_inputs=5), 120_340),
        (lambda: feedforward((700, 352, 352, 20), PMSN, sum_inputs=5), 199_252),
        (lambda: residual(1, 128, 3, 10, PMSN), 65_418),
        (lambda: residual(1, 208, 3, 10, PMSN), 156_218),
        (lambda: pixel_cifar(PMSN), 206_474),
        (lambda: column_cifar(PMSN), 539_776),
    ],
)
def test_pmsn_networks_have_the_authors_parameters(net, count):
    assert count_parameters(net()) == count


@pytest.mark.parametrize("name", AVAILABLE)
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda n: feedforward((5, 6, 7, 3), n, dropout=0.2, current_dropout=0.1), (6, 4, 5)),
        (lambda n: residual(1, 8, 2, 3, n, dropout=0.1), (6, 4, 1)),
        (lambda n: pixel_cifar(n, num_classes=3), (6, 4, 3)),
        (lambda n: column_cifar(n, num_classes=3), (6, 4, 3, 32)),
    ],
)
def test_every_neuron_in_every_network(name, build, shape):
    torch.manual_seed(0)
    net = build(neuron_factory(name, T=6))
    y = net(torch.randn(shape))
    assert y.shape == (6, 4, 3)
    y.square().mean().backward()
    missing = [key for key, p in net.named_parameters() if p.grad is None]
    assert not missing
    assert len(spiking_layers(net)) in ((0,) if name in SPIKELESS else (2, 3, 6, 7))
    reset_states(net)


@pytest.mark.parametrize("name", [name for name in AVAILABLE if name not in WHOLE_SEQUENCES])
def test_sequence_equals_steps(name):
    """The nets also run step by step with SpikingJelly's set_step_mode; feedback included where neurons allow it."""
    torch.manual_seed(0)
    factory = neuron_factory(name)
    for net in (residual(2, 8, 2, 3, factory), feedforward((2, 8, 8, 3), factory, feedback=(0,))):
        net.double().eval()
        x = 3 * torch.randn(9, 4, 2, dtype=torch.float64)
        whole = net(x)
        reset_states(net)
        functional.set_step_mode(net, "s")
        steps = torch.stack([net(x_t) for x_t in x])
        torch.testing.assert_close(whole, steps, rtol=0, atol=1e-12)


def test_feedback_is_the_layers_own_last_spikes():
    torch.manual_seed(0)
    net = feedforward((3, 5, 2), TCLIF, feedback=(0,)).double()
    x = 2 * torch.randn(7, 4, 3, dtype=torch.float64)
    y = net(x)
    first, layer, last = net
    node = neuron_factory("tclif")(5).double()
    node.step_mode = "s"
    spikes = torch.zeros(4, 5, dtype=torch.float64)
    for t in range(7):
        spikes = node(first(x[t]) + layer.recurrent(spikes))
        torch.testing.assert_close(y[t], last(spikes))


class Added(nn.Module):
    """What SpikingJelly's container is given to add the last spikes, as these networks did before."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, spikes, x):
        return self.linear(spikes) + x


@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_networks_with_containers_load_and_go_on(framework):
    """A checkpoint of a net with SpikingJelly's container around a TC-LIF: same outputs, same gradients."""
    if framework == "snntorch":
        pytest.importorskip("snntorch")
    factory = neuron_factory("tclif", framework=framework, v_threshold=0.4)
    torch.manual_seed(0)
    net = feedforward((3, 5, 2), factory, feedback=(0,)).double()
    node = factory(5)
    node.step_mode = "s"
    container = layer.ElementWiseRecurrentContainer(node, Added(5), step_mode="m").double()
    before = nn.Sequential(net[0], container, net[2])
    net.load_state_dict(before.state_dict())
    x = torch.randn(20, 4, 3, dtype=torch.float64)
    results = []
    for one in (before, net):
        one.zero_grad()
        y = one(x)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad.clone() for p in one.parameters())])
        reset_states(one)
    assert results[0][0].any()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict({k: v for k, v in before.state_dict().items() if "linear.bias" not in k})


@pytest.mark.parametrize("name", ["lif", "plif", "if"])
def test_other_neurons_run_step_by_step_and_linear_in_time(name):
    net = feedforward((3, 5, 2), neuron_factory(name), feedback=(0,))
    assert isinstance(net[1], layer.ElementWiseRecurrentContainer)
    plain = layer.ElementWiseRecurrentContainer(net[1].sub_module, net[1].element_wise_function, step_mode="m")
    x = 3 * torch.rand(9, 4, 5)
    expected = plain(x)
    reset_states(plain)
    assert expected.any() and torch.equal(net[1](x.requires_grad_()), expected)
    # a gradient of the whole sequence at every step is what indexing it leaves behind
    reset_states(net)
    nodes, names = [net[1](x).grad_fn], []
    while nodes:
        node = nodes.pop()
        if node is not None and node not in names:
            names.append(node)
            nodes += [following for following, _ in node.next_functions]
    selections = [node for node in names if "SelectBackward" in node.name()]
    assert not any(node._saved_self_sym_sizes == x.shape for node in selections)


def test_dropout_of_spikes_is_the_same_at_every_step():
    net = feedforward((4, 3), PMSN, dropout=0.5)
    nn.init.eye_(net[1].weight)
    nn.init.zeros_(net[1].bias)
    y = net(torch.ones(10, 6, 4))
    assert (y == y[0]).all() and set(y.unique().tolist()) == {0.0, 2.0}
    reset_states(net)
    assert not torch.equal(net(torch.ones(10, 6, 4)), y)


def test_inputs_are_dropped_before_they_are_summed():
    """At 0.4 a sum of five falls silent in 0.4^5 = 1 % of the cases; dropping the sums would silence 40 %."""
    net = feedforward((700, 3), PMSN, dropout=0.4, sum_inputs=5)
    received = []
    net[-1].register_forward_hook(lambda module, inputs, output: received.append(inputs[0]))
    x = torch.arange(700.0).expand(2, 500, 700)
    net(x.clone())
    assert received[0].shape == (2, 500, 140) and torch.equal(received[0][0], received[0][1])
    net(torch.ones_like(x))
    assert 0.005 < (received[1] == 0).float().mean() < 0.02
    net.eval()(x.clone())
    assert torch.equal(received[2][0, 0], torch.arange(700.0).view(140, 5).sum(1))
    assert torch.equal(net(x[:1]), net(x)[:1])


@pytest.mark.parametrize(
    ("net", "blocks"),
    [(lambda n: residual(1, 500, 2, 3, n, dropout=0.5), 2), (lambda n: pixel_cifar(n, dropout=0.5), 4)],
)
def test_a_fifth_of_the_dropout_is_of_every_layers_spikes(net, blocks):
    """With neurons that send a spike always: what enters and leaves the residual blocks."""
    net = net(lambda channels: Always())
    seen = []
    for module in net.modules():
        if type(module).__name__ == "Residual":
            module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    features = net[0].in_features
    net(torch.ones(5, 40, features))
    assert len(seen) == blocks
    for before, after in seen:
        for x in (before, after):
            assert torch.equal(x[0], x[4]) and 0.05 < (x == 0).float().mean() < 0.15
        torch.testing.assert_close(after[after > 0], ((1 + before) / 0.9)[after > 0])
    net.eval()(torch.ones(5, 40, features))
    assert (seen[-1][1] == 3).all()  # the spikes of three layers


class Always(nn.Module):
    def forward(self, x):
        return torch.ones_like(x)


@pytest.mark.parametrize("framework", NEURONS)
def test_couplings_per_channel(framework):
    pytest.importorskip(framework)
    options = {"framework": framework, "leak": (0.9, 0.8)}
    spread = neuron_factory("tclif", per_channel=True, beta_range=(0.1, 0.5), **options)
    net = feedforward((2, 6, 5, 3), spread, feedback=(1,))
    assert [layer.c1.shape for layer in spiking_layers(net).values()] == [(6,), (5,)]
    assert all(layer.leak == (0.9, 0.8) and layer.c2.unique().numel() > 1 for layer in spiking_layers(net).values())
    assert net(torch.rand(3, 2, 2)).shape == (3, 2, 3)
    (shared,) = spiking_layers(feedforward((2, 6, 3), neuron_factory("tclif", **options))).values()
    assert shared.c1.ndim == 0
    with pytest.raises(TypeError, match="per_channel must be True or False, got 1"):
        neuron_factory("tclif", per_channel=1)
    with pytest.raises(ValueError, match="'pmsn' has no option 'per_channel'"):
        neuron_factory("pmsn", framework=framework, per_channel=True)


def test_input_scale_is_a_factor_on_the_current():
    torch.manual_seed(0)
    scaled = neuron_factory("pmsn", input_scale=0.2)(3)
    plain = scaled[1]
    x = torch.randn(8, 2, 3)
    y = scaled(x)
    reset_states(scaled)
    assert torch.equal(y, plain(0.2 * x))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: feedforward((3,), PMSN), "at least"),
        (lambda: feedforward((3, 0, 2), PMSN), "widths must be at least 1, got 0"),
        (lambda: feedforward((3, 4, 2), PMSN, feedback=(1,)), "feedback must be among"),
        (lambda: feedforward((3, 4, 2), PMSN, dropout=1.0), "dropout must be at least 0 and below 1, got 1.0"),
        (lambda: feedforward((3, 4, 2), PMSN, current_dropout=-0.1), "current_dropout must be at least 0"),
        (lambda: feedforward((7, 4, 2), PMSN, sum_inputs=5), "sum_inputs must divide the 7 inputs, got 5"),
        (lambda: feedforward((7, 4, 2), PMSN, sum_inputs=0), "sum_inputs must be at least 1, got 0"),
        (lambda: residual(1, 0, 2, 3, PMSN), "width must be at least 1, got 0"),
        (lambda: residual(1, 4, -1, 3, PMSN), "blocks must be at least 0, got -1"),
        (lambda: pixel_cifar(PMSN, dropout=-0.5), "dropout must be at least 0 and below 1, got -0.5"),
        (lambda: neuron_factory("relu"), "'pmsn', 'tclif'"),
        (lambda: neuron_factory("plif", framework="snntorch"), "name must be one of"),
        (lambda: neuron_factory("pmsn", framework="norse"), "framework must be one of"),
        (lambda: neuron_factory("psn"), "T must be given"),
        (
            lambda: neuron_factory("pmsn", decay=1.0),
            "no option 'decay'; its options are: .*n_compartments.*input_scale",
        ),
        (lambda: neuron_factory("lif", decay=1.0), "no option 'decay'; its options are: tau"),
        (lambda: neuron_factory("lif", framework="snntorch", tau=2.0), "its options are: beta, v_threshold"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.skipif(not HAS_PSN, reason="this SpikingJelly has no PSN")
def test_feedback_needs_a_neuron_that_runs_step_by_step():
    for name, kind in (("psn", "PSN"), ("glif", "GatedLIF")):
        with pytest.raises(ValueError, match=f"{kind} does not run step by step"):
            feedforward((3, 4, 2), neuron_factory(name, T=5), feedback=(0,))


def test_lif_of_the_authors():
    """Against their equations, written out: v = 0.8 v + x, soft reset with its gradient, the triangle at v >= 1."""

    class Triangle(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return (x >= 0).to(x)

        @staticmethod
        def backward(ctx, grad):
            return grad * (1 - ctx.saved_tensors[0].abs()).clamp(min=0)

    x = (2 * torch.randn(60, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).requires_grad_()
    v, expected = torch.zeros(3, 5, dtype=torch.float64), []
    for x_t in x:
        v = 0.8 * v + x_t
        s = Triangle.apply(v - 1.0)
        v = v - s
        expected.append(s)
    expected = torch.stack(expected)
    spikes = neuron_factory("authors-lif")(5)(x)
    assert torch.equal(spikes, expected) and 0.1 < spikes.mean() < 0.9
    weight = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view_as(x)
    gradients = [torch.autograd.grad((s * weight).sum(), x)[0] for s in (spikes, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not HAS_PSN, reason="this SpikingJelly has no GLIF")
def test_glif_is_spikingjellys():
    """On images it is the framework's own; other shapes are images of another size. Initial values follow the seed."""
    layers = []
    for _ in range(2):
        torch.manual_seed(4)
        layers.append(neuron_factory("glif", T=6)(5))
    ours, again = layers
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), again.parameters(), strict=True))
    theirs = neuron.GatedLIFNode(6, inplane=5)
    theirs.load_state_dict(ours.node.state_dict())
    x = torch.randn(6, 3, 5, 2, 4)
    expected = theirs(x)
    assert 0 < expected.mean() < 1
    for shape in ((6, 3, 5, 2, 4), (6, 3, 5, 8)):
        for _ in range(2):  # every call is from rest
            assert torch.equal(ours(x.reshape(shape)), expected.reshape(shape))
    assert torch.equal(ours(x[..., 0, 0]), expected[..., 0, 0])
    with pytest.raises(ValueError, match="the T=6 time steps that GLIF is made for, got 5"):
        ours(x[:5])


@pytest.mark.parametrize("framework", NEURONS)
@pytest.mark.parametrize(("name", "kind"), [("gru", nn.GRU), ("lstm", nn.LSTM)])
def test_gru_and_lstm_are_pytorchs(framework, name, kind):
    ours = neuron_factory(name, framework=framework, num_layers=2)(5)
    theirs = kind(5, 5, 2)
    theirs.load_state_dict(ours.rnn.state_dict())
    x = torch.randn(9, 3, 5)
    expected, _ = theirs(x)
    torch.testing.assert_close(ours(x), expected)
    reset_states(ours)
    chunks = [ours(part) for part in x.split((4, 5))]
    torch.testing.assert_close(torch.cat(chunks), expected)
    with pytest.raises(ValueError, match="the state is for 3 sequences, got 2: reset it"):
        ours(x[:, :2])
    reset_states(ours)
    images = torch.randn(4, 2, 5, 3, 2)
    apart = torch.stack([theirs(images[..., i, j])[0] for i in range(3) for j in range(2)], -1)
    torch.testing.assert_close(ours(images), apart.view_as(images))


@pytest.mark.skipif(HAS_PSN, reason="this SpikingJelly has the PSN")
def test_a_neuron_the_release_lacks():
    with pytest.raises(ImportError, match="spikingjelly>=2"):
        neuron_factory("psn", T=5)


@pytest.mark.parametrize("name", AVAILABLE)
def test_every_neuron_in_a_sew_resnet(name):
    torch.manual_seed(0)
    net = sew_resnet_static(18, neuron_factory(name, T=2), num_classes=3)
    y = net(torch.rand(2, 2, 3, 32, 32))
    assert y.shape == (2, 2, 3) and len(spiking_layers(net)) == (0 if name in SPIKELESS else 20)
    y.square().mean().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_networks_are_the_same_in_both_frameworks():
    """Thresholds, input scale and feedback included."""
    pytest.importorskip("snntorch")
    x = 3 * torch.randn(9, 4, 2, dtype=torch.float64)
    for name, options, feedback in (
        ("tclif", {"gamma": 0.7, "v_threshold": 1.5}, (0,)),
        ("tclif", {"v_threshold": 0.8}, ()),
        ("pmsn", {"preset": "sequential", "input_scale": 0.2, "v_threshold": 0.5}, ()),
    ):
        outputs, parameters = [], None
        for framework in NEURONS:
            net = feedforward((2, 8, 8, 3), neuron_factory(name, framework=framework, **options), feedback=feedback)
            net.double()
            with torch.no_grad():
                if parameters is not None:
                    for ours, theirs in zip(net.parameters(), parameters, strict=True):
                        ours.copy_(theirs)
            parameters = list(net.parameters())
            outputs.append(net(x))
            reset_states(net)
            assert torch.equal(net(x), outputs[-1])
        assert outputs[0].std(0).any()  # the hidden layers fire
        torch.testing.assert_close(*outputs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("context", ["local", "global"])
def test_sew_resnet_with_static_pmsn(context):
    torch.manual_seed(0)
    net = sew_resnet_static(18, neuron_factory("pmsn", preset="static", context=context), num_classes=7)
    layers = spiking_layers(net)
    assert len(layers) == 20 and {layer.preset for layer in layers.values()} == {"static"}
    y = net(torch.rand(2, 2, 3, 32, 32))
    assert y.shape == (2, 2, 7)
    y.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("depth", [18, 34])
def test_sew_resnet_takes_a_torchvision_resnets_weights(depth, tmp_path):
    from torchvision import models

    resnet = models.get_model(f"resnet{depth}", weights=None)
    for buffer in resnet.buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, 0.5, 2.0)
    path = tmp_path / "resnet.pt"
    torch.save(resnet.state_dict(), path)
    net = sew_resnet_static(depth, neuron_factory("if"), init_from=path)
    # without neurons and with ReLU instead, a SEW ResNet (ADD) applies the same layers: compare each of them
    ours = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    theirs = [m for m in resnet.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d, nn.Linear))]
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        for key, value in b.state_dict().items():
            assert torch.equal(a.state_dict()[key], value)


def test_weights_to_begin_with_that_are_not_there(tmp_path, monkeypatch):
    from torchvision import models

    neuron = neuron_factory("if")
    path = tmp_path / "resnet.pt"
    with pytest.raises(FileNotFoundError, match=r"init_from must be 'torchvision' or a file.*no file .*resnet\.pt"):
        sew_resnet_static(18, neuron, init_from=path)
    path.write_text("text")
    with pytest.raises(ValueError, match=r"resnet\.pt is damaged or no state_dict"):
        sew_resnet_static(18, neuron, init_from=path)
    torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=r"resnet\.pt holds no state_dict"):
        sew_resnet_static(18, neuron, init_from=path)

    def offline(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", offline)
    with pytest.raises(FileNotFoundError, match=r"no network.*Put https://.*resnet18-.*\.pth into .*checkpoints"):
        sew_resnet_static(18, neuron, init_from="torchvision")
    state = models.resnet18(weights=None).state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *args, **kwargs: state)
    net = sew_resnet_static(18, neuron, init_from="torchvision")
    assert torch.equal(net.fc.weight, state["fc.weight"])


def test_torchvision_weights_for_other_classes_keep_the_last_layer():
    from torchvision import models

    net = sew_resnet_static(18, neuron_factory("if"), num_classes=5)
    before = net.fc.weight.detach().clone()
    state = models.resnet18(weights=None).state_dict()
    load_torchvision_resnet(net, state)
    assert torch.equal(net.fc.weight, before) and torch.equal(net.conv1.weight, state["conv1.weight"])


def test_torchvision_weights_of_another_depth():
    from torchvision import models

    net = sew_resnet_static(18, neuron_factory("if"))
    before = net.conv1.weight.detach().clone()
    for state in (
        models.resnet34(weights=None).state_dict(),
        models.resnet18(weights=None, width_per_group=64).state_dict(),
    ):
        broken = {name: value[:1] if name == "layer4.1.conv2.weight" else value for name, value in state.items()}
        with pytest.raises(ValueError, match=r"entries|another ResNet"):
            load_torchvision_resnet(net, broken)
    assert torch.equal(net.conv1.weight, before)
