"""The example scripts, run as a user runs them, with tiny settings; their helpers, imported from the file."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")


def run(script: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def load(script: str):
    """The script as a module: nothing may run on import."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), EXAMPLES / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def digits():
    return load("sequential_digits.py")


@pytest.fixture(autouse=True)
def same_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def call_main(module, monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["script", *arguments])
    return module.main()


def table(output: str) -> dict[str, list[str]]:
    lines = (line.split() for line in output.splitlines())
    return {cells[0]: cells[1:] for cells in lines if cells and cells[0] in ("PMSN", "TC-LIF", "LIF", "IF")}


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 10_000


@pytest.mark.parametrize("script", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_files_go_to_ignored_folders_by_default(script):
    ignored = (EXAMPLES.parent / ".gitignore").read_text().splitlines()
    option = r'"--(?:output|output-dir|data-dir)",.*default=(?:Path\()?"(.*?)"'
    folders = re.findall(option, (EXAMPLES / script).read_text())
    assert all(f"/{folder.partition('/')[0]}/" in ignored for folder in folders), folders


@pytest.mark.parametrize(
    ("framework", "flags", "figure"),
    [
        ("spikingjelly", [], "sequential_digits_spikingjelly.png"),
        ("snntorch", ["--permute"], "sequential_digits_snntorch_permuted.png"),
    ],
)
def test_sequential_digits_prints_a_table_and_saves_a_figure(tmp_path, framework, flags, figure):
    pytest.importorskip(framework)
    width = 6
    arguments = f"--framework {framework} --epochs 1 --width {width} --batch-size 720 --output new/folder".split()
    finished = run("sequential_digits.py", *arguments, *flags, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    rows = table(finished.stdout)
    assert list(rows) == ["PMSN", "TC-LIF", "LIF"]
    weights = width + 2 * width * width + 3 * 2 * width + 10 * width + 10
    extra = {"PMSN": 3 * width * (2 + 6 * 4), "TC-LIF": 3 * 2, "LIF": 0}
    for name, (accuracy, rate, parameters, seconds) in rows.items():
        assert 0 <= float(accuracy.rstrip("%")) <= 100
        assert 0 <= float(rate) <= 1
        assert int(parameters.replace(",", "")) == weights + extra[name]
        assert float(seconds) > 0
    assert re.search(r"loss=\d", finished.stderr)  # the progress bar
    assert is_png(tmp_path / "new" / "folder" / figure)


def test_swap_sew_resnet_prints_what_it_swapped_and_trains(tmp_path):
    pytest.importorskip("spikingjelly")
    finished = run("swap_sew_resnet.py", "--steps", "2", "--batch-size", "2", cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    swapped = dict(re.findall(r"^(\S+) +IFNode +PMSNNode +(\d+) ", finished.stdout, re.MULTILINE))
    assert len(swapped) == 20
    assert (swapped["sn1"], swapped["layer2.0.downsample_sn"], swapped["layer4.1.sn2"]) == ("64", "128", "512")
    rows = table(finished.stdout)
    assert list(rows) == ["IF", "PMSN"]
    added = int(rows["PMSN"][0].replace(",", "")) - int(rows["IF"][0].replace(",", ""))
    assert added == (2 + 6 * 4) * sum(map(int, swapped.values()))
    assert all(float(loss) > 0 and float(milliseconds) > 0 for _, loss, milliseconds in rows.values())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--neuron", "pmsn,izhikevich"], ["--neuron", "'izhikevich'", "pmsn, tclif, lif"]),
        (["--neuron", ""], ["--neuron", "''", "pmsn, tclif, lif"]),
        (["--framework", "norse"], ["--framework", "'norse'", "spikingjelly", "snntorch"]),
        (["--epochs", "0"], ["--epochs", "'0'", "positive int"]),
        (["--width", "2.5"], ["--width", "'2.5'", "positive int"]),
        (["--batch-size", "-3"], ["--batch-size", "'-3'", "positive int"]),
        (["--lr", "nan"], ["--lr", "'nan'", "positive float"]),
        (["--neuron-lr", "fast"], ["--neuron-lr", "'fast'", "positive float"]),
        (["--seed", "one"], ["--seed", "'one'", "int"]),
    ],
)
def test_bad_arguments_are_named_with_what_is_allowed(digits, monkeypatch, capsys, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        call_main(digits, monkeypatch, *arguments)
    assert stopped.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert all(word in message for word in words), message


@pytest.mark.parametrize("flag", ["--steps", "--batch-size"])
def test_swap_sew_resnet_names_bad_arguments(monkeypatch, capsys, flag):
    pytest.importorskip("spikingjelly")
    with pytest.raises(SystemExit) as stopped:
        call_main(load("swap_sew_resnet.py"), monkeypatch, flag, "0")
    assert stopped.value.code == 2
    assert f"argument {flag}: must be an integer of at least 1, got '0'" in capsys.readouterr().err


def test_output_that_is_a_file_is_refused_before_training(digits, monkeypatch, capsys, tmp_path):
    file = tmp_path / "taken"
    file.write_text("mine")
    with pytest.raises(SystemExit):
        call_main(digits, monkeypatch, "--output", str(file))
    assert "--output" in capsys.readouterr().err
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    ("failure", "finished", "message"),
    [
        (KeyboardInterrupt(), ["PMSN"], "interrupted during tclif"),
        (RuntimeError("boom"), ["PMSN", "LIF"], "RuntimeError: boom"),
    ],
)
def test_finished_neurons_are_reported_when_one_fails(
    digits, monkeypatch, capsys, tmp_path, failure, finished, message
):
    pytest.importorskip("spikingjelly")
    train = digits.train

    def failing(name, *rest):
        if name == "tclif":
            raise failure
        return train(name, *rest)

    monkeypatch.setattr(digits, "train", failing)
    arguments = ["--epochs", "1", "--width", "2", "--batch-size", "1437", "--output", str(tmp_path)]
    assert call_main(digits, monkeypatch, *arguments) == 1
    output = capsys.readouterr()
    assert list(table(output.out)) == finished
    assert message in output.err
    assert is_png(tmp_path / "sequential_digits_spikingjelly.png")


def test_a_diverging_loss_is_an_error_and_leaves_no_figure(digits, monkeypatch, capsys, tmp_path):
    pytest.importorskip("spikingjelly")
    arguments = ["--neuron", "lif", "--epochs", "1", "--width", "2", "--lr", "1e36", "--output", str(tmp_path)]
    assert call_main(digits, monkeypatch, *arguments) == 1
    assert "use a smaller --lr" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_split_is_stratified_and_the_permutation_is_fixed(digits):
    plain, permuted, again = digits.load_sequences(False), digits.load_sequences(True), digits.load_sequences(True)
    x_train, x_test, _, y_test = plain
    assert x_train.shape == (64, 1437, 1) and x_test.shape == (64, 360, 1)
    assert torch.bincount(y_test).min() >= 35 and torch.bincount(y_test).max() <= 37
    assert x_train.min() == 0 and x_train.max() == 1
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for one, other, third in zip(plain[:2], permuted[:2], again[:2], strict=True):
        assert torch.equal(one[order], other) and torch.equal(other, third)
    assert torch.equal(plain[3], permuted[3])


@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_states_are_reset_between_batches(digits, framework):
    pytest.importorskip(framework)
    makers, reset = digits.FRAMEWORKS[framework]()
    x = torch.rand(64, 3, 1)
    for name, maker in makers.items():
        torch.manual_seed(0)
        net = digits.Net(8, maker).eval()
        torch.nn.init.constant_(net.first.current[0].weight, 2.0)  # enough current that all neurons fire
        first, spikes = net(x)
        assert spikes[0].any(), name
        reset(net)
        assert torch.equal(net(x)[0], first), name
        reset(net)
        net(x[:, :2])  # another batch size needs the reset
