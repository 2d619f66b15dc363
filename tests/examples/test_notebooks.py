"""Every notebook runs from top to bottom, without data sets or network, and says what its committed outputs show."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("pandas")  # snntorch.spikeplot needs it, snnTorch does not install it
pytest.importorskip("snntorch")
pytest.importorskip("spikingjelly")

FOLDER = Path(__file__).parents[2] / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TUTORIALS = [path for path in NOTEBOOKS if path.stem.startswith("tutorial")]
CELL_TIMEOUT = 600  # seconds; a net that hangs, not a slow machine

pytestmark = pytest.mark.filterwarnings("ignore")  # Jupyter's own


def name_of(path):
    return path.stem


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "".join(output.text for output in outputs if output.output_type == "stream")


def accuracies(text):
    """Test accuracy in percent by neuron."""
    return {name: float(value) for name, value in re.findall(r"^(\S+) +test accuracy +([\d.]+)%", text, re.MULTILINE)}


def assert_shows_results(path, notebook):
    text = printed(notebook)
    if path not in TUTORIALS:
        assert "different spikes 0" in text
        return
    if "regression" in path.stem:
        errors = dict(re.findall(r"^(\S+) +mean squared error +([\d.]+)", text, re.MULTILINE))
        assert float(errors["PMSN"]) < 0.006 and float(errors["Leaky"]) < 0.02, text  # the input has noise of 0.04
        return
    assert re.search(r"^Data set used: .*(MNIST|scikit-learn digits)", text, re.MULTILINE)
    found = accuracies(text)
    assert found["PMSN"] > 80 and len(found) > 1, text
    assert all(value > 60 for value in found.values()), text


def test_they_are_there():
    assert len(TUTORIALS) == 7
    assert len(NOTEBOOKS) == 8


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}  # an empty folder: no data set in reach
    nbclient.NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", resources=where).execute()
    assert_shows_results(path, notebook)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_committed_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 250_000
    assert [cell.execution_count for cell in code_cells(notebook)] == list(range(1, len(code_cells(notebook)) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    for output in outputs:
        assert output.output_type != "error" and output.get("name") != "stderr", output
    assert_shows_results(path, notebook)


@pytest.mark.parametrize("path", TUTORIALS, ids=name_of)
def test_the_changed_lines_are_in_the_code(path):
    """The table at the top compares lines of the tutorial with ours; ours must be what the cells below really run."""
    notebook = nbformat.read(path, as_version=4)
    rows = [line.split("|")[1:-1] for line in notebook.cells[0].source.splitlines() if line.startswith("|")]
    ours = [i for i, title in enumerate(rows[0]) if title.strip().startswith("with ")]
    lines = {line.strip() for cell in code_cells(notebook) for line in cell.source.splitlines()}
    claimed = [code for row in rows[2:] for i in ours for code in re.findall("`([^`]+)`", row[i])]
    assert len(claimed) >= 3
    assert not [code for code in claimed if code not in lines]
