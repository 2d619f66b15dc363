"""The script behind the README's gallery."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "examples" / "gallery.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True)


def test_every_figure(tmp_path):
    names = ("PMSN (torch)", "PMSN, serial reset (torch)")
    results = [
        {"name": n, "T": T, "shape": [T, 2, 128], "forward_s": T * s, "forward_backward_s": 2 * T * s, "kept_bytes": 0}
        for T in (4, 32)
        for n, s in zip(names, (1e-4, 1e-3), strict=True)
    ]
    benchmark = tmp_path / "bench.json"
    benchmark.write_text(json.dumps({"copy_bandwidth": 3e10, "results": results}))
    done = run("--output", str(tmp_path), "--benchmark", str(benchmark))
    assert done.returncode == 0, done.stderr
    figures = {p.stem: p.stat().st_size for p in tmp_path.glob("*.png")}
    assert set(figures) == {"impulse_response", "gradient_over_time", "norm_plane", "acceleration"}
    assert min(figures.values()) > 5000


def test_bad_arguments():
    for arguments, message in ((["dance"], "got 'dance'"), (["acceleration"], "give --benchmark")):
        done = run(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
