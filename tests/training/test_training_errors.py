"""Bad arguments of training and evaluation: the error names the argument, its value and what is allowed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pmsn_plugins.datasets import synthetic_source, time_first
from pmsn_plugins.training import (
    PRESETS,
    Settings,
    Trainer,
    build_network,
    evaluate,
    firing_rates,
    loss_of,
    open_source,
    read_out,
    with_neuron,
)
from pmsn_plugins.training.distributed import Process, start

NAN, INF = float("nan"), float("inf")
ONE = Process(0, 1, torch.device("cpu"))
SETTINGS = Settings("synthetic", "feedforward", batch_size=8)
SOURCE = synthetic_source((6, 4), 5, samples=30)
NET = nn.Linear(4, 5)
OUTPUTS, TARGET = torch.randn(6, 3, 5), torch.tensor([0, 4, 2])
BATCHES = [(torch.rand(3, 6, 4), TARGET)]

KINDS = {
    "flag": (["no", 0, 1, None, NAN, []], TypeError, "must be True or False, got"),
    "string": ([None, 3, [], True], TypeError, "must be a string, got"),
    "choice": ([None, 3, [], True], TypeError, "must be one of '.*, got"),
    "unknown choice": (["x", ""], ValueError, "must be one of '.*, got '"),
    "dictionary": ([None, "x", [("a", 1)], 3], TypeError, "must be a dictionary of options, got"),
    "integer": ([None, "3", 3.0, True, NAN, []], TypeError, "must be an integer, got"),
    "number": ([None, "0.1", True, [], 1j], TypeError, "must be a real number, got"),
    "not a number": ([NAN, INF], ValueError, "must be (finite|a finite number .*), got"),
    "negative": ([-1], ValueError, "must be .*, got -1"),
    "callable": ([None, 3, "mean", []], TypeError, "must be a function of .*, got"),
    "module": ([None, 3, "net", []], TypeError, "must be a torch.nn.Module, got"),
    "path": ([None, 3, []], TypeError, "must be a path, got"),
    "tensor": ([None, 3.0, [1.0], np.ones(3)], TypeError, "must be a torch.Tensor, got"),
}


def check(kind, argument, call):
    values, error, message = KINDS[kind]
    for value in values:
        with pytest.raises(error, match=f"{argument} {message}"):
            call(value)


@pytest.mark.parametrize(
    ("kinds", "fields"),
    [
        (("string",), ("dataset", "network", "neuron", "framework")),
        (("dictionary",), ("dataset_options", "network_options", "neuron_options")),
        (("dictionary",), ("neuron_lr_scales", "neuron_weight_decays")),
        (("integer", "negative"), ("epochs", "batch_size", "accumulate", "seed")),
        (("number", "not a number", "negative"), ("lr", "neuron_lr", "lr_factor", "weight_decay")),
        (("number", "not a number", "negative"), ("label_smoothing", "val_fraction")),
        (("choice", "unknown choice"), ("optimizer", "schedule", "readout", "loss", "amp", "stratify")),
        (("flag",), ("mixup", "drop_last")),
    ],
)
def test_settings(kinds, fields):
    for kind in kinds:
        for field in fields:
            check(kind, field, lambda value, field=field: replace(SETTINGS, **{field: value}))


@pytest.mark.parametrize("value", [None, 3, "3", {3: 1}, (3.0,), ("3",), (True,), [None]])
def test_milestones(value):
    with pytest.raises(TypeError, match=r"milestones must be (a series of integers|an integer), got"):
        replace(SETTINGS, milestones=value)


def test_values_of_settings():
    for value in (0.0, 1.0, 2):
        with pytest.raises(ValueError, match=f"val_fraction must be between 0 and 1, got {value}"):
            replace(SETTINGS, val_fraction=value)
    with pytest.raises(ValueError, match=r"label_smoothing must be between 0 and 1, got 1.5"):
        replace(SETTINGS, label_smoothing=1.5)


def test_trainer(tmp_path):
    good = {"net": NET, "source": SOURCE, "settings": SETTINGS, "output_dir": tmp_path, "process": ONE}

    def build(**changes):
        return Trainer(**{**good, **changes})

    for flag in ("sync_batchnorm", "tensorboard", "quiet"):
        check("flag", flag, lambda value, flag=flag: build(**{flag: value}))
    for name in ("save_every", "workers"):
        check("integer", name, lambda value, name=name: build(**{name: value}))
    check("module", "net", lambda value: build(net=value))
    check("path", "output_dir", lambda value: build(output_dir=value))
    for name, kind in (("source", "a DataSource"), ("settings", "Settings"), ("process", "a Process")):
        for value in (None, "x", {}):
            with pytest.raises(TypeError, match=f"{name} must be {kind}, got"):
                build(**{name: value})
    trainer = build(output_dir=str(tmp_path), quiet=np.True_)
    assert trainer.output_dir == Path(tmp_path)
    check("integer", "samples", lambda value: list(trainer.test_batches(value)))
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        list(trainer.test_batches(0))
    for value in (2.0, "2", True):
        with pytest.raises(TypeError, match="chunk must be an integer, got"):
            trainer.test(value)


@pytest.mark.parametrize("label", [5, 17, -1])
def test_class_numbers_that_the_network_does_not_have(tmp_path, label):
    """On a GPU the loss of such a target ends the process."""
    wrong = [(x, label) for x, _ in SOURCE.train]
    trainer = Trainer(NET, replace(SOURCE, train=wrong), SETTINGS, tmp_path, ONE, quiet=True)
    low, high = min(label, 0), max(label, 0)
    message = rf"target must hold class numbers in 0\.\.4, got {label}\.\.{label}"
    with pytest.raises(ValueError, match=message):
        trainer.fit()
    batches = [(torch.rand(2, 6, 4), torch.tensor([0, label]))]
    with pytest.raises(ValueError, match=rf"target must hold class numbers in 0\.\.4, got {low}\.\.{high}"):
        evaluate(NET, batches, time_first)


def test_evaluate():
    def run(**changes):
        return evaluate(**{"net": NET, "batches": BATCHES, "to_sequence": time_first, **changes})

    NET.train()
    check("module", "net", lambda value: run(net=value))
    check("callable", "to_sequence", lambda value: run(to_sequence=value))
    for kind in ("choice", "unknown choice"):
        check(kind, "readout", lambda value: run(readout=value))
    for value in (None, 3, "batches", torch.rand(2, 3), {"x": 1}, [3], [(1, 2, 3)], [torch.rand(2, 3)]):
        with pytest.raises(TypeError, match=r"batches must be a series of pairs \(input, target\), .*, got"):
            run(batches=value)
    for value in (1, None, [0, 1, 2], torch.tensor(1)):
        with pytest.raises(TypeError, match=r"batches must be a series of pairs .*, got the target"):
            run(batches=[(BATCHES[0][0], value)])
    for value in (TARGET.float(), TARGET > 0, TARGET[:, None]):
        with pytest.raises(TypeError, match=r"target must be a torch.Tensor of class numbers \[N\], got"):
            run(batches=[(BATCHES[0][0], value)])
    with pytest.raises(TypeError, match=r"an input of batches must be a torch.Tensor, got"):
        run(batches=[([1.0], TARGET)])
    for value in ("x", ""):
        with pytest.raises(ValueError, match=r"device must be a torch.device or its name, got"):
            run(device=value)
    for value in (0.5, True, []):
        with pytest.raises(TypeError, match=r"device must be a torch.device or its name, got"):
            run(device=value)
    with pytest.raises(ValueError, match=r"outputs must be \[T, N, classes\], got shape \(3, 5\)"):
        run(net=nn.Sequential(NET, Last()))
    assert NET.training  # as it was before the errors


class Last(nn.Module):
    def forward(self, x):
        return x[-1]


def test_losses():
    def loss(**changes):
        return loss_of(**{"outputs": OUTPUTS, "target": TARGET, "readout": "mean", **changes})

    for kind in ("choice", "unknown choice"):
        check(kind, "readout", lambda value: loss(readout=value))
        check(kind, "readout", lambda value: read_out(OUTPUTS, value))
        check(kind, "loss", lambda value: loss(loss=value))
    for kind in ("number", "not a number", "negative"):
        check(kind, "label_smoothing", lambda value: loss(label_smoothing=value))
    check("tensor", "outputs", lambda value: loss(outputs=value))
    check("tensor", "outputs", lambda value: read_out(value, "sum"))
    check("tensor", "target", lambda value: loss(target=value))
    for call in (lambda x: loss(outputs=x), lambda x: read_out(x, "mean")):
        with pytest.raises(ValueError, match=r"outputs must be \[T, N, classes\], got shape \(3, 5\)"):
            call(OUTPUTS[0])
    for value in (TARGET.int(), TARGET > 0):
        with pytest.raises(TypeError, match=r"target must be class numbers \[N\] .*, got a Tensor"):
            loss(target=value)
    for value in (TARGET[:2], TARGET[None], TARGET.float(), OUTPUTS[0, :, :4]):
        with pytest.raises(ValueError, match=r"target must be class numbers \[N\] .* for outputs of shape \(6, 3, 5\)"):
            loss(target=value)
    loss(target=OUTPUTS[0].softmax(-1))


def test_data_and_networks():
    settings = PRESETS["digits"]
    source = open_source(settings)
    for value in (None, "digits", {}):
        for call in (
            open_source,
            lambda value: build_network(value, source),
            lambda value: with_neuron(value, "lif"),
        ):
            with pytest.raises(TypeError, match="settings must be Settings, got"):
                call(value)
        with pytest.raises(TypeError, match="source must be a DataSource, got"):
            build_network(settings, value)
    check("flag", "download", lambda value: open_source(settings, download=value))
    check("flag", "dry_run", lambda value: open_source(settings, dry_run=value))
    check("flag", "initial_weights", lambda value: build_network(settings, source, initial_weights=value))
    check("string", "neuron", lambda value: with_neuron(settings, value))
    for value in (3, [], True):
        with pytest.raises(TypeError, match="data_dir must be a path, got"):
            open_source(settings, value)
    for value in (3, [0, 1], "0"):
        with pytest.raises(TypeError, match=r"permutation must be a torch.Tensor of integers or None, got"):
            open_source(settings, permutation=value)


@pytest.mark.parametrize("value", [0, 1.0, True, [], torch.device("cpu")])
def test_devices_that_are_no_names(value):
    with pytest.raises(TypeError, match="device must be the name of a device or None, got"):
        start(value)


def test_the_empty_name_is_no_device():
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda' or .*, got ''"):
        start("")


@pytest.mark.parametrize("value", [None, 3, [NET]])
def test_firing_rates_of_what_is_no_net(value):
    with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got"), firing_rates(value):
        pass
