"""The script behind the README's gallery."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "gallery.py"


@pytest.fixture
def run(monkeypatch):
    """Runs the script in this process, for a new one would import PyTorch first."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    return run


def test_every_figure(run, tmp_path):
    names = ("PMSN (torch)", "PMSN, serial reset (torch)")
    results = [
        {"name": n, "T": T, "shape": [T, 2, 128], "forward_s": T * s, "forward_backward_s": 2 * T * s, "kept_bytes": 0}
        for T in (4, 32)
        for n, s in zip(names, (1e-4, 1e-3), strict=True)
    ]
    benchmark = tmp_path / "bench.json"
    benchmark.write_text(json.dumps({"copy_bandwidth": 3e10, "results": results}))
    run("--output", str(tmp_path), "--benchmark", str(benchmark))
    figures = {p.stem: p.stat().st_size for p in tmp_path.glob("*.png")}
    assert set(figures) == {"impulse_response", "gradient_over_time", "norm_plane", "acceleration"}
    assert min(figures.values()) > 5000


@pytest.mark.parametrize(("arguments", "message"), [(["dance"], "got 'dance'"), (["acceleration"], "give --benchmark")])
def test_bad_arguments(run, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    assert message in capsys.readouterr().err
