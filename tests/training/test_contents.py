"""Checkpoints that are readable but wrong: refused with a reason, and nothing of them is used."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pmsn_plugins import train
from pmsn_plugins.datasets import synthetic_source
from pmsn_plugins.models import feedforward, neuron_factory
from pmsn_plugins.training import Settings, SnapshotError, Trainer, contents, load_network, snapshot
from pmsn_plugins.training.distributed import Process
from pmsn_plugins.training.loop import BEST, LAST

ONE = Process(0, 1, torch.device("cpu"))
SETTINGS = Settings("synthetic", "feedforward", epochs=3, batch_size=8, neuron="tclif")
VARIANTS = {
    "adamw": {},
    "sgd": {"optimizer": "sgd", "schedule": "milestones", "milestones": (1,), "amp": "fp16"},
}


def make_trainer(folder, variant="adamw"):
    torch.manual_seed(1)
    net = feedforward((4, 6, 5), neuron_factory("tclif"))
    source = synthetic_source((6, 4), 5, samples=30)
    settings = replace(SETTINGS, **VARIANTS[variant])
    return Trainer(net, source, settings, folder, ONE, save_every=3, quiet=True)


class StopError(Exception):
    pass


@pytest.fixture(scope="module", params=VARIANTS)
def saved(request, tmp_path_factory):
    """A run that was killed inside its second epoch: (variant, its checkpoint)."""
    folder = tmp_path_factory.mktemp("run")
    trainer, count = make_trainer(folder, request.param), 0
    step = trainer._step

    def dying(*args):
        nonlocal count
        count += 1
        if count > 7:
            raise StopError
        return step(*args)

    trainer._step = dying
    with pytest.raises(StopError):
        trainer.fit()
    return request.param, snapshot.load(folder / LAST)


MISSING = object()
BAD = (MISSING, None, "x", math.nan, True, [], {}, torch.ones(3))


def everything_in(value, path=()):
    """The path to every entry of a nested payload, of long lists to the first entries."""
    if path:
        yield path
    if isinstance(value, dict):
        entries = value
    elif isinstance(value, (list, tuple)):
        entries = range(min(len(value), 3))
    else:
        return
    for key in entries:
        yield from everything_in(value[key], (*path, key))


def changed(value, path, new):
    """A copy with one entry replaced, or left out."""
    key, *rest = path
    entries = dict(value) if isinstance(value, dict) else dict(enumerate(value))
    if rest:
        entries[key] = changed(entries[key], rest, new)
    elif new is MISSING:
        del entries[key]
    else:
        entries[key] = new
    return entries if isinstance(value, dict) else type(value)(entries.values())


def is_inert(path):
    """What is not taken from the file: the format is checked when it is read, and the settings decide the options of
    optimiser and scheduler. What the states of generators consist of is the generators' own."""
    if path[:2] == ("optimizer", "param_groups") and len(path) > 3:
        return path[3] not in ("params", "lr")
    return (
        path[0] == "format"
        or (path[0] == "scheduler" and path[1:2] not in ((), ("last_epoch",)))
        or (path[0] == "random" and len(path) > 3)
    )


def is_right(path, original, value):
    """A parameter that never had a gradient has no state in the optimiser."""
    unchanged = type(original) is type(value) and not isinstance(value, torch.Tensor) and original == value
    unchanged = unchanged or (original == () and value == [])
    return unchanged or (value is MISSING and path[:2] == ("optimizer", "state") and len(path) == 3)


def state_of(trainer):
    return copy.deepcopy(
        [trainer.net.state_dict(), trainer.optimizer.state_dict(), trainer.scheduler.last_epoch, trainer.progress]
    )


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_every_entry_of_a_checkpoint_that_is_wrong(saved, tmp_path):
    """Each is left out, and replaced by values of other types and ranges: never used, never another error."""
    variant, payload = saved
    trainer = make_trainer(tmp_path, variant)
    before = state_of(trainer)
    tried = 0
    for path in everything_in(payload):
        original = payload
        for key in path:
            original = original[key]
        for bad in () if is_inert(path) else BAD:
            if is_right(path, original, bad):
                continue
            tried += 1
            with pytest.raises((SnapshotError, ValueError, TypeError)) as raised:
                trainer.restore(changed(payload, path, bad))
            assert "checkpoint" in str(raised.value) or "of state must be" in str(raised.value), (path, bad)
    assert tried > 500
    assert same(state_of(trainer), before)
    trainer.restore(payload)
    assert (trainer.progress.epoch, trainer.progress.step) == (1, 3)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("optimizer",), MISSING, "the checkpoint lacks optimizer: it is damaged, or of another kind or version"),
        (("progress",), MISSING, "the checkpoint lacks progress: "),
        (("random",), "x", "the checkpoint is damaged: random must be of type list, got 'x'"),
        (("sync_batchnorm",), 0, "the checkpoint is damaged: sync_batchnorm must be of type bool, got 0"),
        (("settings", "lr"), MISSING, "the checkpoint is damaged or of another version: settings lacks lr"),
        (("settings", "lr"), "fast", "the checkpoint is damaged: in its settings lr must be a real number, got 'fast'"),
        (("progress", "step"), 5, r"progress.step must be an integer in 0\.\.4, got 5"),
        (("progress", "step"), -1, "progress.step must be a(n integer|.*) .*, got -1"),
        (("progress", "step"), 2.0, r"progress.step must be an integer in 0\.\.4, got 2.0"),
        (("progress", "epoch"), 4, r"progress.epoch must be an integer in 0\.\.3, got 4"),
        (("progress", "epoch"), 3, r"progress.step must be an integer in 0\.\.0, got 3"),
        (("progress", "epoch"), 2, r"epoch in progress.curve must be \[1, 2\], got \[1\]"),
        (("progress", "step"), 2, r"progress.sums\[2\] must be 16.0, got 24.0"),
        (("progress", "sums"), [0.0], "progress.sums must have 3 entries, got 1"),
        (("progress", "best"), 2.0, "progress.best must be .*, got 2.0"),
        (("progress", "curve", 0, "lr"), MISSING, r"progress.curve\[0\] lacks lr"),
        (("scheduler", "last_epoch"), 0, "scheduler.last_epoch must be 1, got 0"),
        (("optimizer", "state"), {}, "optimizer.state must not be empty after the first step"),
        (("random", 0, "torch"), torch.ones(3), r"random\[0\] must be the states of generators"),
        (("net", "0.weight"), torch.ones(6, 4, dtype=torch.complex64), "0.weight is torch.complex64 there"),
        (("net", "0.weight"), torch.full((6, 4), math.nan), "NaN or infinite values in 0.weight"),
        (("net", "0.weight"), None, r"0.weight of state must be a torch.Tensor, got None"),
        (("permutation",), torch.arange(6), "was trained on another order of the time steps"),
    ],
)
def test_what_is_wrong_is_named(saved, tmp_path, path, value, message):
    variant, payload = saved
    with pytest.raises((SnapshotError, ValueError, TypeError), match=message):
        make_trainer(tmp_path, variant).restore(changed(payload, path, value))


@pytest.mark.parametrize("payload", [None, [], "last.pt"])
def test_what_is_no_checkpoint_at_all(tmp_path, payload):
    with pytest.raises(SnapshotError, match="the checkpoint must be a dictionary, got"):
        make_trainer(tmp_path).restore(payload)


def test_unknown_settings_are_those_of_another_version(saved, tmp_path):
    variant, payload = saved
    settings = {**payload["settings"], "momentum": 0.9}
    with pytest.raises(SnapshotError, match="another version: settings has unknown momentum"):
        make_trainer(tmp_path, variant).restore({**payload, "settings": settings})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"val_accuracy": MISSING}, r"best\.pt lacks val_accuracy"),
        ({"val_accuracy": "high"}, r"best\.pt is damaged: val_accuracy must be of type float, got 'high'"),
        ({"net": [1]}, r"best\.pt is damaged: net must be of type dict, got \[1\]"),
    ],
)
def test_the_best_network_of_a_damaged_file(tmp_path, change, message):
    trainer = make_trainer(tmp_path)
    trainer.fit()
    payload = snapshot.load(tmp_path / BEST)
    (name, value), *_ = change.items()
    snapshot.save(tmp_path / BEST, changed(payload, (name,), value))
    with pytest.raises(SnapshotError, match=message):
        trainer.load_best()


def test_a_network_with_one_broken_parameter_is_not_half_loaded():
    net = feedforward((4, 6, 5), neuron_factory("tclif"))
    before = copy.deepcopy(net.state_dict())
    state = {name: torch.zeros_like(value) for name, value in before.items()}
    for broken in ({"1.c1": torch.tensor(math.nan)}, {"2.weight": torch.full((5, 6), math.inf)}):
        with pytest.raises(ValueError, match=f"NaN or infinite values in {next(iter(broken))}"):
            load_network(net, {**state, **broken})
        assert same(net.state_dict(), before)
    with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got None"):
        load_network(None, state)
    with pytest.raises(TypeError, match="state must be a state_dict, got None"):
        load_network(nn.Linear(1, 1), None)


COMMAND = ["digits", "--network-option", "width=4", "--network-option", "blocks=1", "--epochs", "1", "--quiet"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    assert train.main([*COMMAND, "--output-dir", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("part", sorted(set(contents.RESUMABLE) - {"net"}))
def test_the_command_says_in_one_line_what_a_checkpoint_lacks(finished, tmp_path, part, capsys):
    payload = snapshot.load(finished / LAST)
    for contents_ in (
        {name: value for name, value in payload.items() if name != part},
        {**payload, part: 17},
    ):
        snapshot.save(tmp_path / LAST, contents_)
        commands = [[*COMMAND, "--resume", "--output-dir", str(tmp_path)]]
        commands += [["--evaluate", str(tmp_path / LAST), "--quiet"]] if part in contents.NETWORK else []
        for args in commands:
            assert train.main(args) == 1
            err = capsys.readouterr().err
            assert err.startswith("SnapshotError: ") and part in err and err.count("\n") == 1, err


def test_the_command_and_files_that_cannot_be_read(finished, tmp_path, capsys):
    whole = (finished / LAST).read_bytes()
    for contents_ in (b"", b"text", whole[:100], whole[: len(whole) // 2], whole[:-1], pickle.dumps([1], protocol=2)):
        (tmp_path / LAST).write_bytes(contents_)
        for args in ([*COMMAND, "--resume", "--output-dir", str(tmp_path)], ["--evaluate", str(tmp_path / LAST)]):
            assert train.main([*args, "--quiet"] if "--quiet" not in args else args) == 1
            err = capsys.readouterr().err
            assert err.startswith("SnapshotError: ") and LAST in err and err.count("\n") == 1, err


@pytest.mark.parametrize("path", [None, 3, b"last.pt", ["last.pt"]])
def test_paths_that_are_none(path):
    with pytest.raises(TypeError, match="path must be a path, got"):
        snapshot.load(path)


@pytest.mark.parametrize(
    "value", [np.float64(0.1), torch.tensor(0.1), {"preset": np.str_("shd")}, {"surrogate_function": torch.relu}]
)
def test_settings_that_a_checkpoint_cannot_hold(value):
    """They would be saved, and found unreadable when the run is to be resumed or its best network tested."""
    name = "neuron_options" if isinstance(value, dict) else "lr"
    with pytest.raises(TypeError, match=f"{name} must hold nothing but Python's own numbers, strings"):
        replace(SETTINGS, **{name: value})
