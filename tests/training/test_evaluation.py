"""Losses, readouts, streaming evaluation, firing rates, and the presets' settings."""

from dataclasses import replace

import pytest
import torch
from spikingjelly.activation_based import functional, neuron
from torch.nn import functional as F
from torchvision import models

from pmsn_plugins.datasets import time_first
from pmsn_plugins.models import (
    column_cifar,
    count_parameters,
    feedforward,
    neuron_factory,
    pixel_cifar,
    residual,
    sew_resnet_static,
    spiking_layers,
)
from pmsn_plugins.train import _parser, settings_from
from pmsn_plugins.training import (
    PRESETS,
    Settings,
    build_network,
    evaluate,
    firing_rates,
    loss_of,
    open_source,
    read_out,
    with_neuron,
)


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


@pytest.mark.parametrize(
    ("build", "shape"),
    [(pixel_cifar, (3,)), (column_cifar, (3, 32)), (lambda neuron: sew_resnet_static(18, neuron), (3, 32, 32))],
    ids=["pixels", "columns", "sew"],
)
def test_deep_networks_stream_too(build, shape):
    torch.manual_seed(0)
    net = build(neuron_factory("pmsn", preset="static")).double()
    data = [(torch.rand(2, 6, *shape, dtype=torch.float64), torch.tensor([0, 1]))]
    whole = evaluate(net, data, time_first)
    for chunk in (1, 4):
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
        with pytest.raises(ValueError, match=r"cannot stream: 1 \(PSN\).*chunk=4"):
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


PMSN = dict(neuron="pmsn", optimizer="adamw", schedule="cosine", readout="mean", loss="ce", neuron_lr=1e-3, mixup=False)
PMSN |= dict(drop_last=False, amp="no", neuron_lr_scales={}, neuron_weight_decays={}, dataset_options={})
SEQUENTIAL = PMSN | dict(lr=1e-2, batch_size=64, epochs=200, neuron_options={"preset": "sequential"})
SEQUENTIAL |= dict(weight_decay=0.01, neuron_weight_decays={"B_real": 0.01})
AUTHORS_BINS = {"channels": 700, "binning": "authors"}
SHD_PMSN = PMSN | dict(lr=1e-2, batch_size=40, epochs=150, weight_decay=1e-3, neuron_options={"preset": "shd"})
SHD_PMSN |= dict(dataset_options=AUTHORS_BINS)
COLUMNS = PMSN | dict(lr=1e-3, batch_size=128, epochs=200, weight_decay=0.0, label_smoothing=0.1, mixup=True)
COLUMNS |= dict(drop_last=True, neuron_options={"preset": "sequential", "input_scale": 0.2})
IMAGENET = PMSN | dict(optimizer="sgd", lr=0.1, epochs=320, weight_decay=0.0, neuron_options={"preset": "static"})
IMAGENET |= dict(neuron_lr_scales={"B_real": 1.0, "B_imag": 1.0, "R_real": 1.0, "R_imag": 1.0})
PAPER = IMAGENET | dict(neuron_lr=0.1, batch_size=60, network_options={"init_from": "torchvision"})
SCRIPT = IMAGENET | dict(neuron_lr=1e-3, loss="tet", amp="fp16", network_options={})
TCLIF = dict(neuron="tclif", optimizer="adam", weight_decay=0.0, readout="sum", loss="ce", dataset_options={})
MNIST = TCLIF | dict(lr=5e-4, neuron_lr=5e-4, epochs=200, schedule="milestones", milestones=(60, 80), lr_factor=0.1)
MNIST |= dict(batch_size=256)
GSC = TCLIF | dict(lr=1e-3, neuron_lr=1e-3, epochs=100, schedule="milestones", milestones=(60, 90, 120), lr_factor=0.1)
GSC |= dict(batch_size=128)
EVENTS = TCLIF | dict(epochs=100, schedule="steps", milestones=(10,), lr_factor=0.8, dataset_options=AUTHORS_BINS)
EVENTS |= dict(batch_size=64)


def tclif(gamma, v_threshold, beta=(-0.5, 0.5)):
    return {"neuron_options": {"beta": beta, "gamma": gamma, "v_threshold": v_threshold}}


def events(lr):
    return EVENTS | tclif(0.5, 1.5) | {"lr": lr, "neuron_lr": lr}


PAPERS = {
    "smnist": (SEQUENTIAL, 65_418, 0.1),
    "smnist-large": (SEQUENTIAL, 156_218, 0.1),
    "psmnist": (SEQUENTIAL, 65_418, 0.0),
    "psmnist-large": (SEQUENTIAL, 156_218, 0.0),
    "shd": (SHD_PMSN, 120_340, 0.4),
    "shd-large": (SHD_PMSN, 199_252, 0.4),
    "cifar10-pixels": (SEQUENTIAL, 206_474, 0.1),
    "cifar10-columns": (COLUMNS, 539_776, 0.0),
    "cifar100-columns": (COLUMNS, 539_776 + 90 * 256, 0.0),
    "imagenet-sew18": (PAPER, None, 0.0),
    "imagenet-sew34": (PAPER, None, 0.0),
    "imagenet-sew18-script": (SCRIPT | {"batch_size": 512}, None, 0.0),
    "imagenet-sew34-script": (SCRIPT | {"batch_size": 256}, None, 0.0),
    "smnist-tclif-ff": (MNIST | tclif(0.5, 1.0), "44.8K", 0.0),
    "smnist-tclif-ff-large": (MNIST | tclif(0.5, 1.0), "85.1K", 0.0),
    "smnist-tclif-rec": (MNIST | tclif(0.5, 1.0), "63.6K", 0.0),
    "smnist-tclif-rec-large": (MNIST | tclif(0.5, 1.0, (-0.8, 0.4)), "155.1K", 0.0),
    "psmnist-tclif-ff": (MNIST | tclif(0.7, 1.5), "85.1K", 0.0),
    "psmnist-tclif-ff-small": (MNIST | tclif(0.7, 1.5), "44.8K", 0.0),
    "psmnist-tclif-rec": (MNIST | tclif(1.0, 1.8, (-0.2, 0.8)), "155.1K", 0.0),
    "psmnist-tclif-rec-small": (MNIST | tclif(1.0, 1.8, (-0.2, 0.8)), "63.6K", 0.0),
    "shd-tclif-ff": (events(5e-4), "108.8K", 0.0),
    "shd-tclif-rec": (events(5e-3), "141.8K", 0.0),
    "ssc-tclif-ff": (events(1e-4), "110.8K", 0.0),
    "ssc-tclif-rec": (events(1e-4), "143.8K", 0.0),
    "gsc-tclif-ff": (GSC | tclif(0.6, 1.2), "106.2K", 0.0),
    "gsc-tclif-rec": (GSC | tclif(0.6, 1.3, (-0.7, 0.7)), "196.5K", 0.0),
}


@pytest.mark.parametrize("preset", PAPERS)
def test_presets_are_the_papers_experiments(preset):
    """Settings and, to the printed digit, number of parameters."""
    expected, count, dropout = PAPERS[preset]
    settings = PRESETS[preset]
    assert {name: getattr(settings, name) for name in expected} == expected
    assert settings.network_options.get("dropout", 0.0) == dropout
    net = build_network(settings, open_source(settings, dry_run=True), initial_weights=False)
    parameters = count_parameters(net)
    if count is None:  # torchvision's ResNet, pe, and 26 parameters for each channel of a PMSN of five compartments
        resnet = models.get_model(settings.network.replace("sew", "resnet").removesuffix("-pe"), weights=None)
        channels = sum(layer.channels for layer in spiking_layers(net).values())
        assert parameters == count_parameters(resnet) + 4 + 26 * channels
    else:
        assert count in (parameters, f"{parameters / 1000:.1f}K")


def test_every_experiment_of_the_papers_has_its_preset():
    assert {*PAPERS, "digits"} == set(PRESETS)


def parse(*args):
    return settings_from(_parser().parse_args(list(args)))


def test_every_setting_can_be_overridden():
    settings = parse("shd", "--lr", "0.5", "--milestones", "3,7", "--mixup", "--amp", "bf16", "--loss", "tet")
    assert (settings.lr, settings.milestones, settings.mixup, settings.amp) == (0.5, (3, 7), True, "bf16")
    assert settings.neuron_lr == PRESETS["shd"].neuron_lr
    settings = parse("shd", "--network-option", "dropout=0.0", "--neuron-option", "reset_mode=serial")
    assert settings.network_options == {"hidden": (256, 256), "dropout": 0.0, "sum_inputs": 5}
    assert settings.neuron_options == {"preset": "shd", "reset_mode": "serial"}
    settings = parse("smnist", "--neuron-lr-scale", "freq=3", "--neuron-weight-decay", "B_imag=0.5", "--drop-last")
    assert (settings.neuron_lr_scales, settings.drop_last) == ({"freq": 3}, True)
    assert settings.neuron_weight_decays == {"B_real": 0.01, "B_imag": 0.5}
    settings = parse("digits", "--neuron-option", "dt_range=(0.02,0.5)", "--neuron-option", "coupling=2")
    assert settings.neuron_options == {"dt_range": (0.02, 0.5), "coupling": 2}
    assert parse("digits", "--dataset-option", "permute=true").dataset_options == {"permute": True}
    settings = parse("shd", "--dry-run")
    assert (settings.epochs, settings.batch_size) == (1, 8)
    settings = parse("shd", "--dry-run", "--epochs", "2", "--batch-size", "64")
    assert (settings.epochs, settings.batch_size) == (2, 64)


def test_another_neuron_takes_its_own_options():
    assert parse("shd", "--neuron", "lif").neuron_options == {}
    assert parse("smnist", "--neuron", "lif").neuron_weight_decays == {}
    assert parse("shd", "--neuron", "pmsn") == PRESETS["shd"] == with_neuron(PRESETS["shd"], "pmsn")


def test_another_network_or_data_set_takes_its_own_options():
    settings = parse("shd-tclif-ff", "--network", "residual", "--network-option", "width=8", "--dataset", "digits")
    assert (settings.network_options, settings.dataset_options) == ({"width": 8}, {})
    assert parse("shd-tclif-ff", "--network", "feedforward", "--dataset", "shd") == PRESETS["shd-tclif-ff"]


def test_a_dry_run_has_the_shapes_of_the_options():
    settings = parse("imagenet-sew18", "--dry-run", "--dataset-option", "T=2", "--dataset-option", "num_classes=5")
    source = open_source(settings, dry_run=True)
    assert source.to_sequence(source.train[0][0][None]).shape == (2, 1, 3, 224, 224) and source.num_classes == 5
    source = open_source(parse("shd", "--dry-run", "--dataset-option", "channels=700"), dry_run=True)
    assert source.train[0][0].shape == (250, 700)


def test_weights_to_begin_with_are_not_looked_for_when_a_checkpoint_follows():
    settings = replace(PRESETS["imagenet-sew18"], network_options={"init_from": "nowhere.pt"}, batch_size=1)
    source = open_source(settings, dry_run=True)
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt"):
        build_network(settings, source)
    build_network(settings, source, initial_weights=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "linear"}, "'cosine'"),
        ({"schedule": "steps"}, "needs milestones"),
        ({"loss": "tet", "readout": "sum"}, "readout='mean'"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"amp": "fp8"}, "'bf16', 'fp16'"),
        ({"neuron_lr": 0.0}, "neuron_lr must be"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"weight_decay": -0.1}, "weight_decay must be .* got -0.1"),
        ({"label_smoothing": 1.5}, "label_smoothing must be between 0 and 1, got 1.5"),
        ({"schedule": "steps", "milestones": (0,)}, "milestones must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Settings("shd", "feedforward", **changes)
