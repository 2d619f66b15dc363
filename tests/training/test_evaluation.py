"""Losses, readouts, streaming evaluation, firing rates, and the presets' settings."""

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch.nn import functional as F

from pmsn_plugins.datasets import time_first
from pmsn_plugins.models import feedforward, neuron_factory, residual, spiking_layers
from pmsn_plugins.train import _parser, settings_from
from pmsn_plugins.training import PRESETS, Settings, evaluate, firing_rates, loss_of, read_out, with_neuron


def test_readouts_and_losses():
    torch.manual_seed(0)
    outputs, target = torch.randn(5, 4, 3), torch.tensor([0, 2, 1, 1])
    torch.testing.assert_close(read_out(outputs, "mean") * 5, read_out(outputs, "sum"))
    expected = F.cross_entropy(outputs.sum(0), target)
    torch.testing.assert_close(loss_of(outputs, target, readout="sum"), expected)
    expected = functional.temporal_efficient_training_cross_entropy(outputs, target)
    torch.testing.assert_close(loss_of(outputs, target, readout="mean", loss="tet"), expected)
    mixed = torch.softmax(torch.randn(4, 3), 1)
    expected = sum(F.cross_entropy(y, mixed, label_smoothing=0.1) for y in outputs) / 5
    torch.testing.assert_close(loss_of(outputs, mixed, readout="mean", loss="tet", label_smoothing=0.1), expected)


def batches(T=24, features=3, count=3):
    generator = torch.Generator().manual_seed(0)
    return [(2 * torch.rand(6, T, features, generator=generator), torch.arange(6) % 4) for _ in range(count)]


@pytest.mark.parametrize("name", ["pmsn", "tclif", "lif", "plif"])
@pytest.mark.parametrize("build", ["feedforward", "recurrent", "residual"])
def test_streaming_equals_the_whole_sequence(name, build):
    """Chunks of any length, down to single steps: same loss, predictions and firing rates."""
    torch.manual_seed(0)
    factory = neuron_factory(name)
    net = {
        "feedforward": lambda: feedforward((3, 16, 16, 4), factory, dropout=0.5),
        "recurrent": lambda: feedforward((3, 16, 16, 4), factory, feedback=(0, 1)),
        "residual": lambda: residual(3, 16, 2, 4, factory),
    }[build]()
    net.double()
    data = [(x.double(), y) for x, y in batches()]
    whole = evaluate(net, data, time_first)
    assert any(rate > 0 for rate in whole.firing_rates.values())
    for chunk in (1, 5, 24, 100):
        parts = evaluate(net, data, time_first, chunk=chunk)
        assert parts.loss == pytest.approx(whole.loss, abs=1e-9) and parts[1:] == whole[1:]


def test_evaluation_leaves_the_net_as_it_was():
    net = feedforward((3, 8, 4), neuron_factory("pmsn"), dropout=0.5)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    first = evaluate(net, batches(), time_first)
    assert net.training and first == evaluate(net, batches(), time_first)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(isinstance(layer.v, float) for layer in spiking_layers(net).values())


def test_nets_that_cannot_stream_say_so():
    net = feedforward((3, 8, 4), neuron_factory("pmsn", context="global"))
    with pytest.raises(ValueError, match=r"cannot stream: 1 \(PMSNNode\)"):
        evaluate(net, batches(), time_first, chunk=4)
    if hasattr(neuron, "PSN"):
        net = feedforward((3, 8, 4), neuron_factory("psn", T=24))
        with pytest.raises(ValueError, match=r"cannot stream: 1 \(PSN\)"):
            evaluate(net, batches(), time_first, chunk=4)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        evaluate(net, batches(), time_first, chunk=0)


def test_no_samples():
    with pytest.raises(ValueError, match="no samples to evaluate"):
        evaluate(feedforward((3, 8, 4), neuron_factory("pmsn")), [], time_first)


def test_firing_rates_are_spikes_per_neuron_and_step():
    net = feedforward((2, 5, 3), neuron_factory("if"), feedback=(0,))
    layer = spiking_layers(net)["1.sub_module"]
    spikes = []
    layer.register_forward_hook(lambda module, inputs, output: spikes.append(output))
    with firing_rates(net) as rates, torch.no_grad():
        net(10 * torch.rand(7, 4, 2))
    assert rates()["1.sub_module"] == pytest.approx(torch.stack(spikes).mean().item()) and len(spikes) == 7


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("smnist", dict(lr=1e-2, neuron_lr=1e-3, batch_size=64, epochs=200, optimizer="adamw", schedule="cosine")),
        ("psmnist", dict(lr=1e-2, neuron_lr=1e-3, batch_size=64, epochs=200)),
        ("shd", dict(lr=1e-2, neuron_lr=1e-3, batch_size=40, epochs=150, neuron_options={"preset": "shd"})),
        ("cifar10-columns", dict(lr=1e-3, batch_size=128, epochs=200, neuron_options={"input_scale": 0.2})),
        ("imagenet-sew34", dict(lr=0.1, optimizer="sgd", epochs=320, network="sew34")),
        ("smnist-tclif-ff", dict(lr=5e-4, batch_size=256, epochs=200, milestones=(60, 80), lr_factor=0.1)),
        ("psmnist-tclif-rec", dict(neuron_options={"beta": (-0.2, 0.8), "gamma": 1.0, "v_threshold": 1.8})),
        ("psmnist-tclif-ff", dict(neuron_options={"beta": (-0.5, 0.5), "gamma": 0.7, "v_threshold": 1.5})),
        ("gsc-tclif-rec", dict(neuron_options={"beta": (-0.7, 0.7), "gamma": 0.6, "v_threshold": 1.3}, epochs=100)),
        ("gsc-tclif-ff", dict(lr=1e-3, milestones=(60, 90, 120), schedule="milestones", batch_size=256)),
        ("shd-tclif-ff", dict(lr=5e-4, schedule="steps", milestones=(10,), lr_factor=0.8, epochs=100)),
        ("shd-tclif-rec", dict(lr=5e-3, neuron_lr=5e-3, optimizer="adam", readout="sum")),
        ("ssc-tclif", dict(lr=1e-4, neuron_options={"beta": (-0.5, 0.5), "gamma": 0.5, "v_threshold": 1.5})),
    ],
)
def test_presets_are_the_papers_settings(preset, expected):
    assert {name: getattr(PRESETS[preset], name) for name in expected} == expected


@pytest.mark.parametrize(("preset", "rate"), [("smnist", 0.1), ("psmnist", 0.0), ("shd", 0.4)])
def test_dropout_of_the_presets(preset, rate):
    assert PRESETS[preset].network_options.get("dropout", 0.0) == rate


def parse(*args):
    return settings_from(_parser().parse_args(list(args)))


def test_every_setting_can_be_overridden():
    settings = parse("shd", "--lr", "0.5", "--milestones", "3,7", "--mixup", "--amp", "bf16", "--loss", "tet")
    assert (settings.lr, settings.milestones, settings.mixup, settings.amp) == (0.5, (3, 7), True, "bf16")
    assert settings.neuron_lr == PRESETS["shd"].neuron_lr
    settings = parse("shd", "--network-option", "dropout=0.0", "--neuron-option", "reset_mode=none")
    assert settings.network_options == {"hidden": (256, 256), "dropout": 0.0}
    assert settings.neuron_options == {"preset": "shd", "reset_mode": "none"}
    assert parse("shd", "--dry-run").epochs == 1 and parse("shd", "--dry-run", "--epochs", "2").epochs == 2


def test_another_neuron_takes_its_own_options():
    assert parse("shd", "--neuron", "lif").neuron_options == {}
    assert parse("shd", "--neuron", "pmsn") == PRESETS["shd"] == with_neuron(PRESETS["shd"], "pmsn")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "'cosine'"),
        ({"schedule": "steps"}, "needs milestones"),
        ({"loss": "tet", "readout": "sum"}, "readout='mean'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"amp": "fp8"}, "'bf16', 'fp16'"),
        ({"neuron_lr": 0.0}, "neuron_lr must be"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings("shd", "feedforward", **changes)
