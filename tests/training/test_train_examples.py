"""The training scripts among the examples, with tiny settings."""

import importlib.util
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def call(script, monkeypatch, *args):
    spec = importlib.util.spec_from_file_location(script, EXAMPLES / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [script, *map(str, args)])
    module.main()


@pytest.fixture
def shd(tmp_path):
    """A data set in SHD's format, where both versions of SpikingJelly look for it."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 400), ("test", 20)):
        for folder in ("events_h5", "extract"):
            path = tmp_path / folder / f"shd_{part}.h5"
            path.parent.mkdir(exist_ok=True)
            with h5py.File(path, "w") as file:
                for name, dtype, high in (("times", np.float16, 1.0), ("units", np.uint16, 700)):
                    data = file.create_dataset(f"spikes/{name}", (count,), dtype=h5py.vlen_dtype(dtype))
                    for i in range(count):
                        data[i] = np.sort(rng.uniform(0, high, 30)).astype(dtype)
                file["labels"] = (np.arange(count) % 20).astype(np.uint16)
    return tmp_path


def test_train_shd_prints_one_table_and_goes_on_where_it_was(shd, tmp_path, monkeypatch, capsys):
    args = ("--data-dir", shd, "--output-dir", tmp_path / "runs", "--epochs", "1", "--device", "cpu")
    call("train_shd", monkeypatch, *args, "--runs", "PMSN", "TC-LIF ff")
    first = capsys.readouterr().out
    rows = re.findall(r"^(PMSN|TC-LIF ff) +([\d,]+) +([\d.]+)% +([\d.]+)% +([\d.]+)$", first, re.MULTILINE)
    assert [row[:2] for row in rows] == [("PMSN", "120,340"), ("TC-LIF ff", "108,824")]
    call("train_shd", monkeypatch, *args, "--runs", "PMSN")
    second = capsys.readouterr().out
    assert "epoch   1" in first and "epoch   1" not in second  # the finished run is only tested again
    assert next(line for line in second.splitlines() if line.startswith("PMSN  ")) in first
    with pytest.raises(SystemExit):
        call("train_shd", monkeypatch, *args, "--runs", "PMSN", "--epochs", "2")
    assert "epochs: 1 there, 2 here" in capsys.readouterr().err


def test_train_sequential(monkeypatch, capsys):
    call("train_sequential", monkeypatch, "--epochs", "1", "--width", "4", "--neuron", "lif")
    out = capsys.readouterr().out
    assert "T = 64" in out and re.search(r"test accuracy [\d.]+ %, spikes per neuron and step: 0\.\d+", out)


@pytest.mark.parametrize("context", ["local", "global"])
def test_train_sew_resnet_compares_pmsn_with_if(monkeypatch, capsys, context):
    args = ("--batch-size", "8", "--steps", "4", "--size", "16", "--context", context)
    call("train_sew_resnet", monkeypatch, *args)
    out = capsys.readouterr().out
    for name in ("IF", "PMSN"):
        losses = [float(loss) for loss in re.search(rf"^{name} .*loss (.*)$", out, re.MULTILINE)[1].split()]
        assert len(losses) == 4 and losses[-1] < losses[0]
    assert re.search(r"step time: PMSN \d+ ms, IF \d+ ms, ratio \d+\.\d+", out)


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("train_shd", ["--data-dir", "nowhere"], "shd_train.h5"),
        ("train_shd", ["--data-dir", "nowhere", "--runs", "GRU"], "--runs: invalid choice: 'GRU' (choose from"),
        (
            "train_shd",
            ["--data-dir", "nowhere", "--epochs", "0"],
            "--epochs: must be an integer of at least 1, got '0'",
        ),
        ("train_sequential", ["--task", "smnist", "--data-dir", "nowhere"], "expected nowhere/MNIST/raw"),
        ("train_sequential", ["--neuron", "relu"], "--neuron: invalid choice: 'relu' (choose from"),
        ("train_sequential", ["--width", "-1"], "--width: must be an integer of at least 1, got '-1'"),
        ("train_sew_resnet", ["--depth", "19"], "--depth: invalid choice: 19 (choose from 18, 34)"),
        ("train_sew_resnet", ["--batch-size", "none"], "--batch-size: must be an integer of at least 1, got 'none'"),
    ],
)
def test_bad_arguments_are_named_with_what_is_allowed(script, args, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        call(script, monkeypatch, *args)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
