"""The command line in processes of its own: kill and resume, SIGTERM, two processes against one, both frameworks."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from pmsn_plugins import train
from pmsn_plugins.training import PRESETS

SMALL = ["digits", "--network-option", "width=8", "--network-option", "blocks=1", "--epochs", "3", "--quiet"]
SMALL += ["--network-option", "dropout=0.1", "--save-every", "2"]


def command(*args, launcher=("-m", "pmsn_plugins.train")):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, args)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out, err


def curve(folder):
    with (folder / "curve.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


def checkpoint(folder, name="last.pt"):
    return torch.load(folder / name, weights_only=True)


def kill_inside_an_epoch(process, folder, kill_signal):
    """Wait for a checkpoint inside the second epoch, then kill."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if (folder / "last.pt").exists():
            progress = checkpoint(folder)["progress"]
            if progress["epoch"] >= 1 and progress["step"] > 0:
                process.send_signal(kill_signal)
                return progress
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    raise AssertionError("no checkpoint inside the second epoch")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    out, _ = finish(command(*SMALL, "--output-dir", folder))
    assert "test accuracy" in out
    return folder


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("kill_signal", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_killed_run_continues_as_if_nothing_had_happened(uninterrupted, tmp_path, kill_signal):
    process = command(*SMALL, "--epochs", "3", "--output-dir", tmp_path)
    killed_at = kill_inside_an_epoch(process, tmp_path, kill_signal)
    _, err = process.communicate(timeout=60)
    if kill_signal == signal.SIGTERM:
        assert process.returncode == 0 and "continue with --resume" in err
    saved = checkpoint(tmp_path)["progress"]
    assert saved["epoch"] >= killed_at["epoch"] and saved["epoch"] < 3
    assert not (tmp_path / "result.json").exists()

    finish(command(*SMALL, "--output-dir", tmp_path, "--resume"))
    assert curve(tmp_path) == curve(uninterrupted)
    for name in ("last.pt", "best.pt"):
        ours, theirs = checkpoint(tmp_path, name)["net"], checkpoint(uninterrupted, name)["net"]
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads((uninterrupted / "result.json").read_text())


def test_two_processes_train_as_one_does(tmp_path):
    """20 steps of the spoken digits network in float32."""
    args = ["shd", "--dry-run", "--quiet", "--epochs", 5, "--batch-size", 32, "--network-option", "dropout=0.0"]
    args += ["--dataset-option", "T=30", "--dataset-option", "channels=20", "--network-option", "hidden=(16,16)"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pmsn_plugins.train")
    two = command(*args, "--output-dir", tmp_path / "two", launcher=torchrun)
    assert train.main([*map(str, args), "--output-dir", str(tmp_path / "one")]) == 0
    finish(two)
    ours, theirs = (checkpoint(tmp_path / name)["net"] for name in ("two", "one"))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=1e-5)
    for row, other in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert {k: pytest.approx(float(v), abs=1e-5) for k, v in row.items()} == {k: float(v) for k, v in other.items()}
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    assert results[0]["firing_rates"] == pytest.approx(results[1]["firing_rates"], abs=1e-3)


@pytest.mark.parametrize("neuron", ["pmsn", "tclif", "lif"])
@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_digits_in_both_frameworks(tmp_path, framework, neuron, capsys):
    args = [*SMALL, "--epochs", "1", "--framework", framework, "--neuron", neuron, "--output-dir", str(tmp_path)]
    assert train.main(args) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test_accuracy"] > 0.05 and len(result["firing_rates"]) == 2
    assert all(0 <= rate <= 1 for rate in result["firing_rates"].values())
    capsys.readouterr()
    assert train.main(["--evaluate", str(tmp_path / "best.pt"), "--chunk", "7"]) == 0
    report = capsys.readouterr().out
    assert f"test accuracy {result['test_accuracy']:.4f}" in report
    assert "energy per inference" in report or "not one spike" in report


def test_permutation_is_part_of_the_checkpoint(tmp_path, capsys):
    args = [*SMALL, "--epochs", "1", "--dataset-option", "permute=True", "--output-dir", str(tmp_path)]
    assert train.main(args) == 0
    saved = checkpoint(tmp_path, "best.pt")
    assert sorted(saved["permutation"].tolist()) == list(range(64))
    tested = json.loads((tmp_path / "result.json").read_text())["test_loss"]
    # another order is another task: the evaluation has to use the stored one, whatever the seed
    saved["settings"]["seed"] = 17
    saved["permutation"] = saved["permutation"].flip(0)
    torch.save(saved, tmp_path / "flipped.pt")
    reports = []
    for name in ("best.pt", "flipped.pt"):
        capsys.readouterr()
        assert train.main(["--evaluate", str(tmp_path / name)]) == 0
        reports.append(capsys.readouterr().out)
    assert f"loss {tested:.4f}" in reports[0] and reports[0] != reports[1]


@pytest.mark.parametrize("preset", ["smnist", "cifar10-columns", "shd-tclif-rec", "gsc-tclif-ff"])
def test_dry_runs(preset, tmp_path):
    args = [preset, "--dry-run", "--batch-size", "10", "--quiet", "--output-dir", str(tmp_path)]
    if PRESETS[preset].dataset == "shd":
        args += ["--dataset-option", "T=20"]
    if preset == "smnist":
        args += ["--network-option", "width=4", "--network-option", "blocks=1"]
    assert train.main(args) == 0
    assert len(curve(tmp_path)) == 1


def test_list(capsys):
    assert train.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(PRESETS) + 1
    assert any(line.split() == ["shd", "shd", "feedforward", "pmsn", "120,340"] for line in lines)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["shd"], "data_dir must name the folder of 'shd'"),
        (["shd", "--data-dir", "nowhere"], "shd_train.h5"),
        (["digits", "--neuron", "relu"], "'pmsn', 'tclif'"),
        (["digits", "--network-option", "depth=3"], "depth"),
        (["digits", "--batch-size", "64", "--accumulate", "3"], "batch_size=64 must be divisible"),
        (["digits", "--evaluate", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["--evaluate", "some.pt", "--lr", "1"], "takes its settings from the checkpoint; leave out lr"),
        (["digits", "--lr", "-1"], "lr must be"),
        (["digits", "--optimizer", "lion"], "'adamw', 'adam', 'sgd'"),
    ],
)
def test_errors_are_one_line(args, message, tmp_path, capsys):
    if "--evaluate" not in args:
        args = [*args, "--output-dir", str(tmp_path)]
    assert train.main([*args, "--device", "cpu", "--quiet"]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_finished_run_is_not_overwritten_and_not_mixed_up(tmp_path, capsys):
    args = [*SMALL, "--epochs", "1", "--output-dir", str(tmp_path)]
    assert train.main(args) == 0
    before = (tmp_path / "last.pt").read_bytes()
    assert train.main(args) == 1 and "continue that run with --resume" in capsys.readouterr().err
    assert train.main([*args, "--resume", "--lr", "0.5"]) == 1
    assert "lr: 0.01 there, 0.5 here" in capsys.readouterr().err
    assert (tmp_path / "last.pt").read_bytes() == before
    assert train.main([*args, "--resume"]) == 0
