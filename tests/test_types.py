"""What a type checker tells the author of a script that uses the package; nothing here runs the script."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pmsn_plugins

pytest.importorskip("mypy")

SCRIPT = """
import torch
from torch import nn

from pmsn_plugins import swap_neurons
from pmsn_plugins.functional import triangle
from pmsn_plugins.kernels import discretize, pmsn_sequence, pmsn_step, tclif_sequence, tclif_step
from pmsn_plugins.snntorch import PMSN, TCLIF
from pmsn_plugins.spikingjelly import PMSNNode, RecurrentTCLIFNode, TCLIFNode

x = torch.rand(5, 2, 3)
node = PMSNNode(3, preset="sequential", surrogate_function=triangle())
reveal_type(node.log_dt)  # Tensor
reveal_type(node.D)  # Tensor
reveal_type(node.channels)  # int
reveal_type(node.reset_mode)  # str
reveal_type(node.coefficients().K_real)  # Tensor
reveal_type(node.param_groups(1e-3, 1e-3))  # list[dict[str, Any]]
reveal_type(node.step_operations.mac)  # float
reveal_type(TCLIFNode().c1)  # Tensor
reveal_type(TCLIFNode().channels)  # int | None
reveal_type(TCLIFNode().leak)  # tuple[float, float]
reveal_type(RecurrentTCLIFNode(3).channels)  # int
reveal_type(RecurrentTCLIFNode(3).recurrent)  # Linear

layer = PMSN(3)
reveal_type(layer.freq)  # Tensor
reveal_type(layer.threshold)  # float | Tensor
reveal_type(layer.step(x[0]))  # Tensor | tuple[Tensor, Tensor] | tuple[Tensor, PMSNState]
reveal_type(TCLIF().couplings(2))  # tuple[Tensor, Tensor]

report = swap_neurons(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), PMSNNode, target=nn.ReLU)
reveal_type(report["1"])  # int | None
reveal_type(report.to_markdown())  # str

coefficients = discretize(node.neuron_parameters())
output = pmsn_sequence(x, coefficients, backend="torch")
reveal_type(output.spikes)  # Tensor
reveal_type(output.state)  # PMSNState | None
reveal_type(pmsn_step(x[0], coefficients)[1].h_real)  # Tensor
reveal_type(tclif_sequence(x, -0.5, 0.5).v_seq)  # Tensor | None
reveal_type(tclif_step(x[0], -0.5, 0.5)[1].v_dendrite)  # Tensor
"""

WRONG = """
from pmsn_plugins.functional import pmsn_step
from pmsn_plugins.spikingjelly import PMSNNode

PMSNNode(3, burst="yes")
PMSNNode(3).log_dt.no_such_attribute
pmsn_step(0.5, PMSNNode(3).coefficients())
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What mypy says of each script, by its name."""
    folder = tmp_path_factory.mktemp("scripts")
    (folder / "right.py").write_text(SCRIPT)
    (folder / "wrong.py").write_text(WRONG)
    # the frameworks have no types; the package's own errors are for its own check
    (folder / "mypy.ini").write_text("[mypy]\nignore_missing_imports = True\nfollow_imports = silent\n")
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir=/dev/null"]
    environment = {**os.environ, "MYPYPATH": str(Path(pmsn_plugins.__file__).parents[1])}
    run = subprocess.run(
        [*command, "right.py", "wrong.py"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert not run.stderr, run.stderr
    lines = run.stdout.splitlines()
    return {name: [line for line in lines if line.startswith(name)] for name in ("right", "wrong")}


def test_script_of_a_user_checks_and_knows_the_types(said: dict[str, list[str]]) -> None:
    assert not [line for line in said["right"] if ": error:" in line]
    revealed = {int(line.split(":")[1]): line.split('"')[1] for line in said["right"] if "Revealed type" in line}
    expected = {
        number: line.split("# ")[1]
        for number, line in enumerate(SCRIPT.splitlines(), 1)
        if line.startswith("reveal_type")
    }
    assert {number: _short(text) for number, text in revealed.items()} == expected


def test_mistakes_of_a_user_are_found(said: dict[str, list[str]]) -> None:
    wrong = {int(line.split(":")[1]) for line in said["wrong"] if ": error:" in line}
    assert wrong == {5, 6, 7}


def _short(text: str) -> str:
    """Names without their modules; of a named tuple, its name."""
    text = re.sub(r"tuple\[(?:[^\[\]]|\[[^\]]*\])*, fallback=([\w.]+)\]", r"\1", text)
    return re.sub(r"\w+\.", "", text)
