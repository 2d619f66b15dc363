"""The training loop inside one process: bit-exact resuming at any step, accumulation, divergence, a full disk."""

import math
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from pmsn_plugins.datasets import synthetic_source
from pmsn_plugins.models import feedforward, neuron_factory
from pmsn_plugins.training import (
    DivergedError,
    InterruptedRunError,
    Settings,
    SnapshotError,
    Trainer,
    distributed,
    load_network,
    snapshot,
)
from pmsn_plugins.training.batches import plan_epoch
from pmsn_plugins.training.distributed import Process
from pmsn_plugins.training.loop import CURVE, LAST

ONE = Process(0, 1, torch.device("cpu"))
BASE = Settings("synthetic", "feedforward", epochs=2, batch_size=8, neuron="tclif")


def make_trainer(folder, changes=None, *, source=None, net=None, **kwargs):
    settings = replace(BASE, **(changes or {}))
    if source is None:
        source = synthetic_source((6, 4), 5, samples=30)
    if net is None:
        torch.manual_seed(1)
        net = feedforward((4, 6, 6, 5), neuron_factory("tclif"), feedback=(1,), dropout=0.2)
    folder.mkdir(exist_ok=True, parents=True)
    return Trainer(net, source, settings, folder, ONE, quiet=True, **kwargs)


def parameters(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.net.parameters()])


class KilledError(Exception):
    """Stands for a kill."""


def kill_after(trainer, steps):
    """Let the trainer die before its ``steps``-th step."""
    step, count = trainer._step, 0

    def dying(*args):
        nonlocal count
        count += 1
        if count > steps:
            raise KilledError
        return step(*args)

    trainer._step = dying


@pytest.mark.parametrize("amp", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("steps", [1, 3, 4, 6])
def test_resuming_is_bit_exact_wherever_the_kill_hits(tmp_path, steps, optimizer, amp):
    """Dropout draws, order, augmentation, optimiser, schedule and curve go on as they would have."""

    def source():
        base = synthetic_source((6, 4), 5, samples=30)
        return replace(base, train_transform=lambda x: x + torch.rand(()))

    changes = {"optimizer": optimizer, "amp": amp}
    whole = make_trainer(tmp_path / "whole", changes, source=source())
    whole.fit()
    killed = make_trainer(tmp_path / "killed", changes, source=source(), save_every=1)
    kill_after(killed, steps)
    with pytest.raises(KilledError):
        killed.fit()
    torch.rand(steps)  # whatever happened since
    resumed = make_trainer(tmp_path / "killed", changes, source=source())
    resumed.restore(snapshot.load(tmp_path / "killed" / LAST))
    assert (resumed.progress.epoch, resumed.progress.step) == divmod(steps, 4)
    resumed.fit()
    assert torch.equal(parameters(resumed), parameters(whole))
    for row, expected in zip(resumed.progress.curve, whole.progress.curve, strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}


@pytest.mark.parametrize(
    ("changes", "rates"),
    [
        ({"schedule": "milestones", "milestones": (1, 3)}, [0.01, 0.001, 0.001, 0.0001]),
        ({"schedule": "steps", "milestones": (2,), "lr_factor": 0.8}, [0.01, 0.01, 0.008, 0.008]),
        ({"schedule": "constant"}, [0.01] * 4),
        ({"schedule": "cosine"}, [0.01 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]),
    ],
)
def test_schedules_resume_bit_exactly(tmp_path, changes, rates):
    changes = {"epochs": 4, **changes}
    whole = make_trainer(tmp_path / "whole", changes)
    whole.fit()
    assert [row["lr"] for row in whole.progress.curve] == pytest.approx(rates)
    killed = make_trainer(tmp_path / "killed", changes, save_every=3)
    kill_after(killed, 8)
    with pytest.raises(KilledError):
        killed.fit()
    resumed = make_trainer(tmp_path / "killed", changes)
    resumed.restore(snapshot.load(tmp_path / "killed" / LAST))
    resumed.fit()
    assert [row["lr"] for row in resumed.progress.curve] == [row["lr"] for row in whole.progress.curve]
    assert torch.equal(parameters(resumed), parameters(whole))


def test_a_kill_before_the_last_checkpoint_loses_no_row_of_the_curve(tmp_path):
    trainer = make_trainer(tmp_path)
    save = trainer._save

    def dying():
        if trainer.progress.epoch == 2:
            raise KilledError
        save()

    trainer._save = dying
    with pytest.raises(KilledError):
        trainer.fit()
    resumed = make_trainer(tmp_path)
    resumed.restore(snapshot.load(tmp_path / LAST))
    resumed.fit()
    rows = (tmp_path / CURVE).read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["epoch", "1", "2"]


def test_mixup_of_images_resumes_bit_exactly(tmp_path):
    def run(folder, kill=None, payload=None):
        source = synthetic_source((3, 8, 8), 5, samples=30, to_sequence=lambda x: x.flatten(2).permute(2, 0, 1))
        torch.manual_seed(1)
        net = feedforward((3, 6, 5), neuron_factory("lif"))
        changes = {"mixup": True, "label_smoothing": 0.1}
        trainer = make_trainer(folder, changes, source=source, net=net, save_every=1)
        if payload:
            trainer.restore(snapshot.load(payload))
        if kill:
            kill_after(trainer, kill)
        with suppress(KilledError):
            trainer.fit()
        return trainer

    whole = run(tmp_path / "whole")
    run(tmp_path / "killed", kill=3)
    resumed = run(tmp_path / "killed", payload=tmp_path / "killed" / LAST)
    assert torch.equal(parameters(resumed), parameters(whole))


def test_sigterm_saves_and_stops_between_two_steps(tmp_path):
    trainer = make_trainer(tmp_path, {"epochs": 50})
    step, before = trainer._step, signal.getsignal(signal.SIGTERM)

    def signalled(*args):
        if trainer.progress.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    trainer._step = signalled
    with pytest.raises(InterruptedRunError, match="--resume"):
        trainer.fit()
    assert signal.getsignal(signal.SIGTERM) is before
    progress = snapshot.load(tmp_path / LAST)["progress"]
    assert (progress["epoch"], progress["step"]) == (2, 1)  # the step it was in, and no other


@pytest.mark.parametrize("epoch", [2, 3])
def test_sigterm_during_validation_stops_after_the_epoch(tmp_path, epoch):
    trainer = make_trainer(tmp_path, {"epochs": 3})
    evaluate = trainer._evaluate

    def signalled(dataset):
        if trainer.progress.epoch + 1 == epoch:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(dataset)

    trainer._evaluate = signalled
    with pytest.raises(InterruptedRunError):
        trainer.fit()
    progress = snapshot.load(tmp_path / LAST)["progress"]
    assert (progress["epoch"], progress["step"], len(progress["curve"])) == (epoch, 0, epoch)


@given(
    samples=st.integers(1, 70),
    world_size=st.integers(1, 4),
    accumulate=st.integers(1, 3),
    share=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
@hypothesis_settings(deadline=None)
def test_processes_together_see_the_batches_of_one(samples, world_size, accumulate, share, epoch):
    batch_size = world_size * accumulate * share
    plans = [
        plan_epoch(samples, batch_size, epoch=epoch, seed=5, rank=r, world_size=world_size, accumulate=accumulate)
        for r in range(world_size)
    ]
    alone = plan_epoch(samples, batch_size, epoch=epoch, seed=5)
    seen = []
    for steps in zip(*plans, strict=True):
        counted = [i for s in steps for part, n in zip(s.parts, s.counts, strict=True) for i in part[:n]]
        assert len(counted) == steps[0].batch and all(len(s.parts) <= accumulate for s in steps)
        seen.append(sorted(counted))
    assert seen == [sorted(i for part in s.parts for i in part) for s in alone]
    assert sorted(i for batch in seen for i in batch) == list(range(samples))


def test_epochs_are_shuffled_differently():
    first, second, other = (plan_epoch(50, 50, epoch=e, seed=s)[0].parts[0] for e, s in ((0, 0), (1, 0), (0, 1)))
    assert first != second and first != other


def test_accumulation_gives_the_same_steps(tmp_path):
    """The last batch is short: its parts are of unequal size."""
    nets = []
    for accumulate in (1, 4):
        source = synthetic_source((6, 4), 5, samples=30)
        torch.manual_seed(1)
        net = feedforward((4, 6, 5), neuron_factory("tclif")).double()
        source = replace(source, to_sequence=lambda x: x.transpose(0, 1).double())
        changes = {"accumulate": accumulate, "batch_size": 12}
        trainer = make_trainer(tmp_path / str(accumulate), changes, source=source, net=net)
        trainer.fit()
        nets.append(parameters(trainer))
    torch.testing.assert_close(*nets, rtol=0, atol=1e-10)


def test_the_short_last_batch_can_be_left_out(tmp_path):
    """Three batches of 8 from 30 samples, and a run that was killed goes on with them."""
    whole = make_trainer(tmp_path / "whole", {"drop_last": True})
    seen, step = [], whole._step
    whole._step = lambda *args: seen.append(args[0]) or step(*args)
    whole.fit()
    assert [s.counts for s in seen] == [[8]] * 6
    assert [s.parts for s in seen[:3]] == [s.parts for s in plan_epoch(30, 8, epoch=0, seed=0)[:3]]
    killed = make_trainer(tmp_path / "killed", {"drop_last": True}, save_every=1)
    kill_after(killed, 2)
    with pytest.raises(KilledError):
        killed.fit()
    resumed = make_trainer(tmp_path / "killed", {"drop_last": True})
    resumed.restore(snapshot.load(tmp_path / "killed" / LAST))
    resumed.fit()
    assert torch.equal(parameters(resumed), parameters(whole))
    with pytest.raises(ValueError, match="drop_last=True leaves no batch of batch_size=31 of 30 samples"):
        make_trainer(tmp_path / "none", {"drop_last": True, "batch_size": 31})


def test_rates_of_a_neurons_parameters_reach_the_optimizer(tmp_path):
    changes = {"weight_decay": 0.1, "neuron_lr_scales": {"c1": 3.0}, "neuron_weight_decays": {"c2": 0.2}}
    trainer = make_trainer(tmp_path, {**changes, "neuron_lr": 1e-3})
    rates = [(g["lr"], g["weight_decay"], len(g["params"])) for g in trainer.optimizer.param_groups]
    assert rates == [(1e-2, 0.1, 8), (1e-3, 0.2, 2), (pytest.approx(3e-3), 0.0, 2)]
    with pytest.raises(ValueError, match="neuron_lr_scales has no option 'B_real'; its options are: c1, c2"):
        make_trainer(tmp_path, {"neuron_lr_scales": {"B_real": 1.0}})


def test_the_curve_is_the_mean_over_samples(tmp_path):
    trainer = make_trainer(tmp_path, {"epochs": 1, "batch_size": 7, "lr": 1e-12, "neuron_lr": 1e-12})
    for module in trainer.net:
        if hasattr(module, "p"):
            module.p = 0.0
    trainer.fit()
    row = trainer.progress.curve[0]
    evaluated = trainer._evaluate(trainer.train_set)
    assert row["train_loss"] == pytest.approx(evaluated.loss, abs=1e-6)
    assert row["train_accuracy"] == pytest.approx(evaluated.accuracy)


class Breaking(nn.Module):
    """A net whose output, or gradient, becomes NaN after some calls."""

    def __init__(self, good_calls, where):
        super().__init__()
        self.layer, self.left, self.where = nn.Linear(4, 5), good_calls, where

    def forward(self, x):
        y = self.layer(x)
        if self.training:
            self.left -= 1
            if self.left < 0:
                return y * math.nan if self.where == "loss" else y + 0 * torch.sqrt(0 * y)
        return y


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_divergence_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path, where):
    trainer = make_trainer(tmp_path, {"epochs": 5}, net=Breaking(6, where), save_every=1)
    with pytest.raises(DivergedError, match=r"epoch 2, step 3; the last good checkpoint is .*last\.pt"):
        trainer.fit()
    saved = snapshot.load(tmp_path / LAST)
    assert (saved["progress"]["epoch"], saved["progress"]["step"]) == (1, 2)
    assert all(value.isfinite().all() for value in saved["net"].values())


def test_the_best_epoch_is_selected_on_the_validation_part(tmp_path):
    trainer = make_trainer(tmp_path, {"epochs": 4})
    accuracies = iter([0.2, 0.9, 0.5, 0.9])
    evaluate, weights = trainer._evaluate, []

    def staged(dataset, chunk=None):
        weights.append(parameters(trainer))
        return evaluate(dataset)._replace(accuracy=next(accuracies))

    trainer._evaluate = staged
    trainer.fit()
    assert trainer.load_best() == 0.9
    assert torch.equal(parameters(trainer), weights[1])


def test_the_test_set_is_read_once_and_not_before_the_end(tmp_path):
    opened = []
    source = synthetic_source((6, 4), 5, samples=30)
    source = replace(source, load_test=lambda load=source.load_test: opened.append(1) or load())
    trainer = make_trainer(tmp_path, source=source)
    trainer.fit()
    assert not opened
    trainer.test()
    assert sum(len(target) for _, target in trainer.test_batches(4)) == 4
    assert opened == [1]


def test_a_checkpoint_of_another_network_or_run_changes_nothing(tmp_path):
    make_trainer(tmp_path).fit()
    payload = snapshot.load(tmp_path / LAST)
    wider = feedforward((4, 7, 6, 5), neuron_factory("tclif"), feedback=(1,), dropout=0.2)
    other = make_trainer(tmp_path / "other", net=wider)
    before = parameters(other)
    with pytest.raises(ValueError, match=r"another network: 1\.weight is \(6, 4\) there, \(7, 4\) here"):
        other.restore(payload)
    with pytest.raises(ValueError, match=r"lr: 0\.01 there, 0\.5 here"):
        make_trainer(tmp_path / "lr", {"lr": 0.5}).restore(payload)
    with pytest.raises(ValueError, match="trained on synthetic data, this run has digits"):
        source = replace(synthetic_source((6, 4), 5, samples=30), name="digits")
        make_trainer(tmp_path / "source", source=source).restore(payload)
    with pytest.raises(ValueError, match="written with sync_batchnorm"):
        make_trainer(tmp_path / "norm").restore({**payload, "sync_batchnorm": True})
    with pytest.raises(ValueError, match="written by 2 processes, this run has 1"):
        make_trainer(tmp_path / "world").restore({**payload, "random": payload["random"] * 2})
    with pytest.raises(ValueError, match=r"missing; .* is unknown"):
        load_network(nn.Linear(2, 2), {"weights": torch.zeros(2, 2), "bias": torch.zeros(2)})
    assert torch.equal(parameters(other), before)


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from pmsn_plugins.training import snapshot
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    snapshot.save(path, {"net": torch.zeros(100_000)})
except snapshot.SnapshotError as error:
    print(error)
try:
    snapshot.write_whole(path.with_name("curve.csv"), lambda file: file.write(bytes(100_000)))
except OSError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="POSIX resource limits")
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    """A limit on file sizes makes write() fail in the middle, as a full disk does."""
    path = tmp_path / LAST
    snapshot.save(path, {"net": torch.ones(3)})
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, timeout=100)
    too_large = r"\[Errno \d+\] File too large"
    assert re.search(f"cannot write checkpoint {path}: {too_large}; the previous one is kept", done.stdout), done.stderr
    assert re.search(f"{too_large}: '{tmp_path}/curve.csv'", done.stdout), done.stderr
    assert torch.equal(snapshot.load(path)["net"], torch.ones(3))
    assert os.listdir(tmp_path) == [LAST]


def test_a_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(SnapshotError, match=r"cannot write checkpoint .*No such file or directory"):
        snapshot.save(tmp_path / "missing" / LAST, {"net": torch.ones(3)})


def test_what_a_kill_leaves_behind_is_used_again(tmp_path):
    path = tmp_path / LAST
    with suppress(KilledError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(KilledError))
        patch.setattr(type(path), "unlink", lambda *args, **kwargs: None)  # a killed process does not tidy up
        snapshot.save(path, {"net": torch.ones(3)})
    assert len(os.listdir(tmp_path)) == 1
    snapshot.save(path, {"net": torch.ones(3)})
    assert os.listdir(tmp_path) == [LAST]


def test_files_that_are_no_checkpoints(tmp_path):
    path = tmp_path / LAST
    with pytest.raises(SnapshotError, match="no checkpoint at"):
        snapshot.load(path)
    snapshot.save(path, {"net": torch.ones(1000)})
    whole = path.read_bytes()
    for contents in (whole[: len(whole) // 2], b"text"):
        path.write_bytes(contents)
        with pytest.raises(SnapshotError, match="damaged or not a checkpoint"):
            snapshot.load(path)
    torch.save({"net": torch.ones(1)}, path)
    with pytest.raises(SnapshotError, match="format None, expected 1"):
        snapshot.load(path)


def test_tensorboard_gets_every_epoch(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    make_trainer(tmp_path, tensorboard=True).fit()
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_accuracy")] == [1, 2]


@pytest.mark.parametrize(
    ("changes", "kwargs", "message"),
    [
        ({"mixup": True}, {}, r"mixup=True mixes images \[C, H, W\].*shape \(6, 4\)"),
        ({"accumulate": 3}, {}, "batch_size=8 must be divisible by 1 processes times accumulate=3"),
        ({}, {"save_every": -1}, "save_every must be at least 0, got -1"),
        ({}, {"workers": -1}, "workers must be at least 0, got -1"),
    ],
)
def test_runs_that_make_no_sense(tmp_path, changes, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, changes, **kwargs)


def test_the_main_process_goes_first(monkeypatch):
    events = []
    monkeypatch.setattr(distributed, "barrier", lambda: events.append("barrier"))
    for rank in (0, 1):
        with distributed.main_first(Process(rank, 2, torch.device("cpu"))):
            events.append(f"download {rank}")
    assert events == ["download 0", "barrier", "barrier", "download 1"]
    with pytest.raises(KilledError), distributed.main_first(ONE):
        raise KilledError
    assert events[4:] == ["barrier"]  # the others must not wait for ever


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:0", "cuda:99"])
def test_devices_that_do_not_exist(device):
    with pytest.raises(ValueError, match=f"device.*{device}"):
        distributed.start(device)


@pytest.mark.parametrize("context", ["local", "global"])
def test_loss_of_a_sew_resnet_with_pmsn_falls(tmp_path, context):
    """CIFAR-shaped images, T = 4, the static preset."""
    from functools import partial

    from pmsn_plugins.datasets import repeated
    from pmsn_plugins.models import sew_resnet_static

    source = synthetic_source((3, 16, 16), 4, samples=12, to_sequence=partial(repeated, T=4))
    torch.manual_seed(0)
    net = sew_resnet_static(18, neuron_factory("pmsn", preset="static", context=context), num_classes=4)
    changes = {"epochs": 4, "batch_size": 12, "loss": "tet", "optimizer": "sgd", "lr": 0.05, "schedule": "constant"}
    trainer = make_trainer(tmp_path, changes, source=source, net=net)
    trainer.fit()
    losses = [row["train_loss"] for row in trainer.progress.curve]
    assert losses[-1] < 0.8 * losses[0]
