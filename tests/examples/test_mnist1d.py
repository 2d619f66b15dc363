"""examples/mnist1d.py: its table, its files and its errors, with tiny nets."""

from __future__ import annotations

import json
import re
import socket
import sys

import pytest
import torch

from .test_examples import call_main, is_png, load, run

pytest.importorskip("spikingjelly")
TINY = ["--epochs", "2", "--parameters", "6000", "--batch-size", "1000"]


@pytest.fixture
def example():
    pytest.importorskip("mnist1d")
    return load("mnist1d.py")


@pytest.fixture
def small_data(example, monkeypatch):
    x, y = torch.randn(example.T, 30, 1), torch.arange(30) % example.CLASSES
    monkeypatch.setattr(example, "load_sequences", lambda: (x, x, y, y))


def test_table_and_curves(example, small_data, monkeypatch, capsys, tmp_path):
    assert call_main(example, monkeypatch, *TINY, "--seeds", "2", "--output", str(tmp_path)) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "±" in line]
    rows = {line[:15].strip(): line[15:].split() for line in lines}
    assert list(rows) == [shown for shown, *_ in example.NEURONS.values()]
    results = json.loads((tmp_path / "mnist1d.json").read_text())
    assert [(run["neuron"], run["seed"]) for run in results["runs"]] == [
        (n, s) for n in example.NEURONS for s in (0, 1)
    ]
    assert results["epochs"] == 2 and all(len(run["accuracies"]) == 2 for run in results["runs"])
    for name in ("pmsn", "gru"):
        first, second = (100 * run["accuracies"][-1] for run in results["runs"] if run["neuron"] == name)
        row = rows[example.NEURONS[name][0]]
        assert float(row[0]) == pytest.approx((first + second) / 2, abs=0.051)
        assert float(row[2]) == pytest.approx(abs(first - second) / 2**0.5, abs=0.051)
    assert is_png(tmp_path / "mnist1d.png")


def test_it_runs_as_a_script_that_has_the_name_of_the_package(example, tmp_path):
    finished = run(
        "mnist1d.py", "--neuron", "pmsn", "--seeds", "1", "--epochs", "1", "--parameters", "300", cwd=tmp_path
    )
    assert finished.returncode == 0, finished.stderr
    assert "PMSN" in finished.stdout and (tmp_path / "runs" / "mnist1d.json").exists()


def test_widths_come_nearest_to_the_number_of_parameters(example):
    def parameters(name, width):
        return sum(p.numel() for p in example.build(name, width, example.T, example.NEURONS[name][3]).parameters())

    for name in example.NEURONS:
        width = example.width_for(name, 14_300, example.T, example.NEURONS[name][3])
        distance = [abs(parameters(name, width + change) - 14_300) for change in (-1, 0, 1)]
        assert min(distance) == distance[1] < 300, name


def test_options_reach_the_neuron(example, small_data, monkeypatch, tmp_path):
    built = []
    factory = example.neuron_factory
    monkeypatch.setattr(
        example, "neuron_factory", lambda *args, **options: built.append(options) or factory(*args, **options)
    )
    arguments = ["--neuron", "pmsn", "--seeds", "1", "--option", "pmsn:time_scale=40", "--output", str(tmp_path)]
    assert call_main(example, monkeypatch, *TINY, *arguments) == 0
    assert built and all(options == {"T": 40, "time_scale": 40} for options in built)


def test_every_step_is_shown_again(example, small_data, monkeypatch, tmp_path):
    seen = []
    forward = example.Spiking.forward
    monkeypatch.setattr(example.Spiking, "forward", lambda net, x: seen.append(x) or forward(net, x))
    arguments = ["--neuron", "slidingpsn", "--seeds", "1", "--repeat", "3", "--output", str(tmp_path)]
    assert call_main(example, monkeypatch, *TINY, *arguments) == 0
    assert {len(x) for x in seen} == {3 * example.T}
    assert all((x.unflatten(0, (-1, 3)) == x[::3, None]).all() for x in seen)
    assert json.loads((tmp_path / "mnist1d.json").read_text())["repeat"] == 3


def test_a_net_that_has_too_many_parameters_at_any_width(example, small_data, monkeypatch):
    """PSN's weights are those between all steps."""
    with pytest.raises(SystemExit, match=r"--parameters 14300: with 160 steps psn has \d+ at width 1, leave it out"):
        call_main(example, monkeypatch, "--neuron", "pmsn,psn", "--repeat", "4")


def test_data_are_computed_without_a_network(example, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    x_train, x_test, y_train, y_test = example.load_sequences()
    assert x_train.shape == (40, 4000, 1) and x_test.shape == (40, 1000, 1)
    assert torch.bincount(y_train).min() > 350 and len(torch.bincount(y_test)) == 10


def test_a_missing_data_set_is_named(example, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    with pytest.raises(SystemExit, match=r"pip install mnist1d"):
        call_main(example, monkeypatch)


def test_interrupted_runs_are_kept(example, small_data, monkeypatch, capsys, tmp_path):
    train = example.train

    def interrupted(name, *rest):
        if name == "gru":
            raise KeyboardInterrupt
        return train(name, *rest)

    monkeypatch.setattr(example, "train", interrupted)
    arguments = ["--neuron", "pmsn,gru", "--seeds", "1", "--output", str(tmp_path)]
    assert call_main(example, monkeypatch, *TINY, *arguments) == 1
    assert "interrupted" in capsys.readouterr().err
    assert [run["neuron"] for run in json.loads((tmp_path / "mnist1d.json").read_text())["runs"]] == ["pmsn"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--neuron", "pmsn,lstm"], "must be among pmsn, pmsn-burst, .* got 'lstm'"),
        (["--seeds", "0"], "must be a positive int, got '0'"),
        (["--label-smoothing", "1.5"], "must be a number from 0 to 1, got '1.5'"),
        (["--option", "time_scale=40"], "must be NEURON:NAME=VALUE, .* got 'time_scale=40'"),
    ],
)
def test_bad_arguments(example, monkeypatch, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        call_main(example, monkeypatch, *arguments)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, last), last
