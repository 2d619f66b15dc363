"""The tests of the CUDA kernels, run from the PTX that NVRTC makes of them (``ptx.py``), without a GPU.

    python tests/kernels/without_gpu/run_ptx.py                      the chosen ones, for sm_80 and sm_90
    python tests/kernels/without_gpu/run_ptx.py tests/kernels -k ...  others: arguments of pytest

The chosen ones: forward and backward, every reset, both neurons, with and without a final state, time cut as on a GPU
with 132 multiprocessors, half precision, T = 1, 4, 16, 17, 40, 100, slopes of an interval in shared memory (k = 1) and
in local memory; on sm_90 with products and sums contracted to fma. They take some minutes on one core, most of it in
g++; what was compiled is kept for the next run.

PTX_ARCH, PTX_SMS (multiprocessors: more of them cut time and rows into more pieces), PTX_FMA, PTX_RACES (races in
global memory are looked for in calls of up to so many steps * elements) and PTX_CACHE (where compiled C++ is kept) can
be set.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CHOSEN = [
    "tests/kernels/test_pmsn.py",
    "tests/kernels/test_tclif.py",
    "tests/kernels/test_memory.py",
    "-k",
    "time_cut_into or half_precision_in_and_out or (without_the_final_state and 4 and not 40 and not 300)"
    " or (without_the_final_state and 40-modulo-1)"
    " or (on_every_backend and (shape1 or shape2 or channels or scalar))"
    " or (test_tclif and test_float32)",
]
RUNS = [{"PTX_ARCH": "sm_80", "PTX_SMS": "1"}, {"PTX_ARCH": "sm_90", "PTX_SMS": "132", "PTX_FMA": "1"}]


class Plugin:
    """Runs the kernels from PTX where a test emulates them, and only such tests."""

    def __init__(self):
        self.conftests = []

    def pytest_plugin_registered(self, plugin):
        if hasattr(plugin, "EmulatedDevice"):
            import ptx

            plugin.EmulatedDevice = ptx.PtxDevice
            self.conftests.append(plugin)
            if "PTX_MUTATION" in os.environ:
                _mutate(*json.loads(os.environ["PTX_MUTATION"]))

    def pytest_collection_modifyitems(self, config, items):
        dropped = [item for item in items if not _emulated(item)]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if _emulated(item)]
        if items and not self.conftests:
            raise pytest.UsageError("no conftest.py has an EmulatedDevice: nothing would run from PTX")


def _mutate(file, old, new):
    """Let the sources have a fault."""
    from pmsn_plugins.kernels import gpu

    read = Path.read_text

    def read_text(self, *args, **kwargs):
        text = read(self, *args, **kwargs)
        if self.name != file:
            return text
        assert text.count(old) == 1, f"{text.count(old)} times in {file}: {old}"
        return text.replace(old, new)

    Path.read_text = read_text
    gpu.source.cache_clear()


def _emulated(item):
    parameters = getattr(item, "callspec", None) and item.callspec.params
    backend = (parameters or {}).get("backend", (parameters or {}).get("every_backend", ""))
    return str(backend).startswith("emulated") or bool({"emulated", "emulated_device"} & {*item.fixturenames})


def main(arguments):
    if os.environ.get("PTX_RUN"):
        sys.path[:0] = [str(ROOT), str(HERE)]
        return pytest.main(["-q", "-n", "0", *arguments], plugins=[Plugin()])
    failed = 0
    for run in RUNS:
        print(" ".join(f"{name}={value}" for name, value in run.items()), flush=True)
        environment = {**run, **os.environ, "PTX_RUN": "1"}
        command = [sys.executable, __file__, *(arguments or CHOSEN)]
        failed |= subprocess.run(command, cwd=ROOT, env=environment).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
