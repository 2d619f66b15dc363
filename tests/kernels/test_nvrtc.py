"""The CUDA sources compile for every architecture; registers and spills are printed. No GPU is needed."""

import re

import pytest

from pmsn_plugins.kernels import gpu
from pmsn_plugins.kernels.plan import checkpoint_interval

ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")
COMMON = {"REAL": "float", "MEMORY": "Plain", "SURROGATE": 0}


def pmsn(k, reset=0, fire=0, state=0, **options):
    interval = checkpoint_interval(1 + 2 * k, 4, 4)
    return {**COMMON, "INTERVAL": interval, "K": k, "RESET": reset, "FIRE": fire, "STATE": state, **options}


TCLIF = {**COMMON, "INTERVAL": 32, "PRE_RESET": 0, "DETACH": 0, "STRICT": 0}
CASES = {
    "pmsn k=4": ("pmsn", pmsn(4)),
    "pmsn k=16": ("pmsn", pmsn(16)),
    "pmsn double cumulative burst state": ("pmsn", pmsn(2, reset=1, fire=2, state=1, REAL="double")),
    "pmsn memoryless": ("pmsn", pmsn(4, reset=2, fire=1)),
    "pmsn half serial": ("pmsn", pmsn(1, reset=3, fire=1, MEMORY="Half", SURROGATE=6)),
    "pmsn bfloat16 membrane": ("pmsn", pmsn(1, fire=3, MEMORY="Bfloat16")),
    "tclif": ("tclif", TCLIF),
    "tclif pre-reset": ("tclif", {**TCLIF, "PRE_RESET": 1, "DETACH": 1, "STRICT": 1, "SURROGATE": 1}),
    "discretize": ("discretize", {"REAL": "float"}),
}


def compile_source(neuron, options, architecture):
    nvrtc = pytest.importorskip("cupy").cuda.nvrtc
    program = nvrtc.createProgram(gpu.source(f"gpu_{neuron}.cu"), f"gpu_{neuron}.cu", (), ())
    flags = (*gpu.compile_options(tuple(options.items())), f"--gpu-architecture={architecture}", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(program, flags)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    assert len(nvrtc.getCUBIN(program)) > 0
    return nvrtc.getProgramLog(program)


def figures(log):
    """{kernel: (registers, bytes spilled)} of a ptxas log."""
    pattern = r"entry function '(\w+)'.*?(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers"
    return {m[1]: (int(m[4]), int(m[2]) + int(m[3])) for m in re.finditer(pattern, log, re.DOTALL)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiles(case, architecture, capsys):
    neuron, options = CASES[case]
    if architecture != "sm_90" and case not in ("pmsn k=4", "tclif", "discretize"):
        pytest.skip("the other options are compiled for sm_90")
    log = compile_source(neuron, options, architecture)
    assert "warning" not in log
    found = figures(log)
    with capsys.disabled():
        for kernel, (registers, spilled) in found.items():
            print(f"\n{architecture} {case:30} {kernel:24} {registers:3} registers, {spilled:4} bytes spilled", end="")
    assert found
    for kernel, (registers, spilled) in found.items():
        assert registers <= 255
        if options.get("K", 1) < 16:
            assert spilled == 0, kernel


def test_sources_need_no_system_header():
    for neuron in ("pmsn", "tclif", "discretize"):
        assert "#include" not in gpu.source(f"gpu_{neuron}.cu")
