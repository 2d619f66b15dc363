"""The command line in processes of its own: kill and resume, SIGTERM, two processes against one, both frameworks."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from pmsn_plugins import train
from pmsn_plugins.datasets import View, repeated, validation_split
from pmsn_plugins.training import DATASETS, PRESETS, Settings, build_network, evaluate, load_network, open_source

SMALL = ["digits", "--network-option", "width=8", "--network-option", "blocks=1", "--epochs", "3", "--quiet"]
SMALL += ["--network-option", "dropout=0.1", "--save-every", "2"]


def command(*args, launcher=("-m", "pmsn_plugins.train"), **kwargs):
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.Popen(
        [sys.executable, *launcher, *map(str, args)],
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **kwargs,
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


def kill_inside_an_epoch(process, folder, kill_signal, kill=os.kill):
    """Wait for a checkpoint inside the second epoch, then kill."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if (folder / "last.pt").exists():
            progress = checkpoint(folder)["progress"]
            if progress["epoch"] >= 1 and progress["step"] > 0:
                kill(process.pid, kill_signal)
                return progress
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)
    raise AssertionError("no checkpoint inside the second epoch")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert train.main([*SMALL, "--output-dir", str(folder)]) == 0
    return folder


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
@pytest.mark.parametrize("kill_signal", [signal.SIGKILL, signal.SIGTERM], ids=["kill -9", "SIGTERM"])
def test_a_killed_run_continues_as_if_nothing_had_happened(uninterrupted, tmp_path, kill_signal, capsys):
    process = command(*SMALL, "--epochs", "3", "--output-dir", tmp_path)
    killed_at = kill_inside_an_epoch(process, tmp_path, kill_signal)
    _, err = process.communicate(timeout=60)
    if kill_signal == signal.SIGTERM:
        assert process.returncode == 0 and "continue with --resume" in err
    saved = checkpoint(tmp_path)["progress"]
    assert saved["epoch"] >= killed_at["epoch"] and saved["epoch"] < 3
    assert not (tmp_path / "result.json").exists()

    assert train.main([*SMALL, "--output-dir", str(tmp_path), "--resume"]) == 0
    assert "test accuracy" in capsys.readouterr().out
    assert curve(tmp_path) == curve(uninterrupted)
    for name in ("last.pt", "best.pt"):
        ours, theirs = checkpoint(tmp_path, name)["net"], checkpoint(uninterrupted, name)["net"]
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads((uninterrupted / "result.json").read_text())


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_sigterm_to_every_process_of_a_job(tmp_path):
    """Schedulers signal the processes that load data, too."""
    args = [*SMALL, "--epochs", "100", "--workers", "1", "--output-dir", str(tmp_path)]
    process = command(*args, start_new_session=True)
    kill_inside_an_epoch(process, tmp_path, signal.SIGTERM, lambda pid, number: os.killpg(pid, number))
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and err.count("\n") == 1 and "continue with --resume" in err
    assert checkpoint(tmp_path)["progress"]["epoch"] < 100


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "pmsn_plugins.train")


def test_two_processes_train_as_one_does(tmp_path):
    """20 steps of the spoken digits network in float32."""
    args = ["shd", "--dry-run", "--quiet", "--epochs", 5, "--batch-size", 32, "--network-option", "dropout=0.0"]
    args += ["--dataset-option", "T=30", "--dataset-option", "channels=20", "--network-option", "hidden=(16,16)"]
    two = command(*args, "--output-dir", tmp_path / "two", launcher=TORCHRUN)
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


def test_two_processes_validate_the_network_that_is_saved(tmp_path):
    """Each process has its own running averages of batch normalisation; the ones saved are those that were judged."""
    finish(command(*SMALL, "--epochs", "1", "--output-dir", tmp_path, launcher=TORCHRUN))
    assert (tmp_path / ".lock").read_text() == ""  # its processes held the folder together
    saved = checkpoint(tmp_path, "best.pt")
    settings = Settings(**saved["settings"])
    source = open_source(settings)
    net = build_network(settings, source)
    load_network(net, saved["net"])
    validation = View(source.train, validation_split(source, settings.val_fraction)[1])
    measured = evaluate(net, DataLoader(validation, 50), source.to_sequence)
    (row,) = curve(tmp_path)
    assert measured.loss == pytest.approx(float(row["val_loss"]), abs=1e-5)
    assert measured.accuracy == pytest.approx(float(row["val_accuracy"]))


@pytest.mark.parametrize("neuron", ["pmsn", "tclif", "lif"])
@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_digits_in_both_frameworks(tmp_path, framework, neuron, capsys):
    args = [*SMALL, "--epochs", "1", "--framework", framework, "--neuron", neuron, "--output-dir", str(tmp_path)]
    assert train.main(args) == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["test_accuracy"] > 0.05 and len(result["firing_rates"]) == 2
    assert all(0 <= rate <= 1 for rate in result["firing_rates"].values())
    for chunk in ("7", "1"):
        capsys.readouterr()
        assert train.main(["--evaluate", str(tmp_path / "best.pt"), "--chunk", chunk]) == 0
        report = capsys.readouterr().out
        assert f"{neuron} ({framework}) on digits, {result['parameters']:,} parameters" in report
        assert f"test accuracy {result['test_accuracy']:.4f}" in report
        loss = float(re.search(r"loss (\S+)", report)[1])
        assert loss == pytest.approx(result["test_loss"], abs=2e-4)  # printed to four digits
        rates = [float(rate) for rate in re.findall(r"spikes per neuron and step in \S+: (\S+)", report)]
        assert rates == pytest.approx(list(result["firing_rates"].values()), abs=2e-4)
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


@pytest.mark.parametrize("preset", PRESETS)
def test_dry_run_of_every_preset(preset, tmp_path, capsys, monkeypatch):
    if preset.startswith("imagenet") and preset != "imagenet-sew18":  # one with images of full size is slow enough
        small = {"sample_shape": (3, 16, 16), "num_classes": 10, "to_sequence": partial(repeated, T=2)}
        entry = DATASETS["imagenet"]._replace(synthetic=lambda: small)
        monkeypatch.setitem(DATASETS, "imagenet", entry)
    batch_size = "1" if preset == "imagenet-sew18" else "2"
    args = [preset, "--dry-run", "--batch-size", batch_size, "--quiet", "--output-dir", str(tmp_path)]
    assert train.main(args) == 0, capsys.readouterr().err
    (row,) = curve(tmp_path)
    assert float(row["train_loss"]) > 0
    assert json.loads((tmp_path / "result.json").read_text())["preset"] == preset


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "digits"])
def test_data_that_are_not_there_are_named(preset, tmp_path, capsys):
    assert train.main([preset, "--data-dir", str(tmp_path / "data"), "--output-dir", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("FileNotFoundError") and f"expected {tmp_path}/data/" in err


def test_dry_runs_have_a_folder_of_their_own_and_start_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["digits", "--network-option", "width=4", "--quiet", "--epochs", "1"]
    for _ in range(2):
        assert train.main([*args, "--dry-run"]) == 0
    assert train.main(args) == 0
    assert sorted(os.listdir("runs")) == ["digits-pmsn", "digits-pmsn-dry-run"]
    assert train.main(args) == 1


def test_ctrl_c_is_no_traceback(tmp_path, monkeypatch, capsys):
    def interrupted(trainer):
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "fit", interrupted)
    assert train.main([*SMALL, "--output-dir", str(tmp_path)]) == 130
    assert "--resume continues" in capsys.readouterr().err


def test_a_missing_package_is_named_with_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert train.main([*SMALL, "--output-dir", str(tmp_path)]) == 1
    assert re.search(r'sklearn.*pip install "pmsn_plugins\[all\]"', capsys.readouterr().err)


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
        (["digits", "--neuron", "relu"], "neuron must be one of 'pmsn', 'tclif', 'lif', 'authors-lif', 'plif'"),
        (
            ["digits", "--neuron", "psn", "--framework", "snntorch"],
            "'pmsn', 'tclif', 'lif', 'gru', 'lstm', got",
        ),
        (["digits", "--framework", "norse"], "framework must be one of 'spikingjelly', 'snntorch', got 'norse'"),
        (["digits", "--network", "transformer"], "network must be one of 'feedforward', 'residual'"),
        (["digits", "--dataset", "mnist"], "dataset must be one of 'digits', 'smnist'"),
        (["digits", "--network-option", "depth=3"], "no option 'depth'; its options are: width, blocks, dropout"),
        (["digits", "--network-option", "width=0"], "width must be at least 1, got 0"),
        (["digits", "--network-option", "width=wide"], "width must be an integer, got 'wide'"),
        (["digits", "--neuron-option", "theta=2"], "neuron 'pmsn' has no option 'theta'; its options are"),
        (["digits", "--neuron", "lif", "--neuron-option", "tau=0.5"], "'lif' with options {'tau': 0.5}: assert"),
        (
            ["digits", "--dataset-option", "shuffle=True"],
            "dataset 'digits' has no option 'shuffle'; its options are: permute",
        ),
        (
            ["shd", "--dry-run", "--dataset-option", "t=9"],
            "no option 't'; its options are: T, time_span, channels, binning",
        ),
        (["shd", "--dry-run", "--dataset-option", "channels=99"], "channels must divide 700, got 99"),
        (["gsc-tclif-ff", "--dry-run", "--dataset-option", "T=9"], "no option 'T'; its options are: balanced"),
        (["shd-tclif-rec", "--dry-run", "--neuron", "pmsn", "--framework", "snntorch"], "it cannot have feedback"),
        (["digits", "--chunk", "0"], "chunk must be at least 1, got 0"),
        (["digits", "--neuron-option", "context=global", "--chunk", "8"], "needs the whole sequence, got chunk=8"),
        (["digits", "--save-every", "-1"], "save_every must be at least 0, got -1"),
        (["digits", "--epochs", "-1"], "epochs must be at least 1, got -1"),
        (["digits", "--val-fraction", "2"], "fraction must be between 0 and 1, got 2.0"),
        (["digits", "--stratify", "speaker"], "stratify must be 'class'"),
        (["shd", "--dry-run", "--mixup"], "mixup=True mixes images"),
        (["digits", "--batch-size", "64", "--accumulate", "3"], "batch_size=64 must be divisible"),
        (["--evaluate", "nowhere.pt"], "no checkpoint at nowhere.pt"),
        (["digits", "--evaluate", "nowhere.pt"], "takes its settings from the checkpoint; leave out digits"),
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
    assert not (tmp_path / "last.pt").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["shdd"], "invalid choice: 'shdd' (choose from"),
        ([], "name a preset (--list shows them)"),
        (["digits", "--learning-rate", "1"], "unrecognized arguments: --learning-rate 1"),
        (["digits", "--epochs", "ten"], "argument --epochs: invalid int value: 'ten'"),
        (["digits", "--milestones", "3,x"], "argument --milestones: '3,x' is not a list of integers N,N,..."),
        (["digits", "--neuron-option", "theta"], "argument --neuron-option: 'theta' is not NAME=VALUE"),
    ],
)
def test_arguments_that_cannot_be_read(args, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(args)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_devices_that_do_not_exist(tmp_path, capsys):
    assert train.main([*SMALL, "--output-dir", str(tmp_path), "--device", "gpu"]) == 1
    assert "device must be 'cpu', 'cuda' or 'cuda:0', 'cuda:1', ..., got 'gpu'" in capsys.readouterr().err


def test_an_output_folder_that_is_a_file(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("mine")
    assert train.main([*SMALL, "--output-dir", str(file)]) == 1
    assert str(file) in capsys.readouterr().err and file.read_text() == "mine"


def test_a_finished_run_is_not_overwritten_and_not_mixed_up(tmp_path, capsys):
    args = [*SMALL, "--epochs", "1", "--output-dir", str(tmp_path)]
    assert train.main(args) == 0
    before = (tmp_path / "last.pt").read_bytes()
    assert train.main(args) == 1 and "continue that run with --resume" in capsys.readouterr().err
    assert train.main([*args, "--resume", "--lr", "0.5"]) == 1
    assert "lr: 0.01 there, 0.5 here" in capsys.readouterr().err
    assert (tmp_path / "last.pt").read_bytes() == before
    assert train.main([*args, "--resume"]) == 0
