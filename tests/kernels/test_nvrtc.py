"""The CUDA sources compile for the architectures that the installed NVRTC knows; registers and spills are printed. No
GPU is needed."""

import re

import pytest

from pmsn_plugins.kernels import gpu
from pmsn_plugins.kernels.plan import GPU_BLOCK, GPU_REDUCERS, checkpoint_interval

nvrtc = pytest.importorskip("cupy").cuda.nvrtc

KNOWN = sorted(nvrtc.getSupportedArchs())
ARCHITECTURES = sorted({KNOWN[0], *(a for a in (80, 90) if a in KNOWN), KNOWN[-1]})
COMMON = {"REAL": "float", "MEMORY": "Plain", "SURROGATE": 0, "RECORDED": 0, "STATE": 0, "HIDDEN": 0}


def pmsn(k, reset=0, fire=0, **options):
    half = options.get("MEMORY", "Plain") != "Plain"
    interval = checkpoint_interval(1 + 2 * k, 4, 2 if half else 4)
    return {**COMMON, "INTERVAL": interval, "K": k, "RESET": reset, "FIRE": fire, **options}


TCLIF = {**COMMON, "INTERVAL": 32, "STEPS": 32, "PRE_RESET": 0, "DETACH": 0, "STRICT": 0}
EVERYWHERE = {
    "k=4": ("pmsn", pmsn(4)),
    "tclif": ("tclif", TCLIF),
    "tclif T=4": ("tclif", {**TCLIF, "STEPS": 4}),
    "discretize": ("discretize", {"REAL": "float"}),
}
OTHERS = {
    "k=8 half": ("pmsn", pmsn(8, MEMORY="Half")),
    "k=16": ("pmsn", pmsn(16)),
    "k=4 with the final state's gradient": ("pmsn", pmsn(4, HIDDEN=1)),
    "k=2 double cumulative burst state": ("pmsn", pmsn(2, reset=1, fire=2, REAL="double", STATE=1, RECORDED=1)),
    "k=4 T=32": ("pmsn_short", pmsn(4, T=32)),
    "k=16 T=4 bfloat16 serial": ("pmsn_short", pmsn(16, reset=3, MEMORY="Bfloat16", T=4)),
    "k=1 T=16 double": ("pmsn_short", pmsn(1, reset=1, REAL="double", RECORDED=1, T=16)),
    "k=4 memoryless": ("pmsn", pmsn(4, reset=2, fire=1)),
    "k=1 half serial": ("pmsn", pmsn(1, reset=3, fire=1, MEMORY="Half", SURROGATE=6)),
    "k=1 bfloat16 membrane": ("pmsn", pmsn(1, fire=3, MEMORY="Bfloat16")),
    "tclif pre-reset": ("tclif", {**TCLIF, "PRE_RESET": 1, "DETACH": 1, "STRICT": 1, "SURROGATE": 1, "RECORDED": 1}),
}


def programs(neuron, options):
    options = {**options, "THREADS": GPU_BLOCK, "REDUCERS": GPU_REDUCERS}
    for name in (neuron,) if neuron == "discretize" else (f"{neuron}_forward", f"{neuron}_backward"):
        asked = gpu._macros(f"gpu_{name}.cu")
        yield gpu.Program(name, tuple((word, value) for word, value in options.items() if word in asked))


def compile_program(program, architecture):
    """ptxas's log; compiled with the options that CuPy gives."""
    handle = nvrtc.createProgram(program.source, f"gpu_{program.name}.cu", (), ())
    flags = (*program.options, "-ftz=true", f"-arch=sm_{architecture}", "--ptxas-options=-v")
    try:
        nvrtc.compileProgram(handle, flags)
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(handle))
    assert len(nvrtc.getCUBIN(handle)) > 0
    return nvrtc.getProgramLog(handle)


def figures(log):
    """{kernel: (registers, bytes spilled, bytes of local memory)} of a ptxas log."""
    pattern = (
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    return {m[1]: (int(m[5]), int(m[3]) + int(m[4]), int(m[2])) for m in re.finditer(pattern, log, re.DOTALL)}


@pytest.mark.parametrize(
    ("case", "architecture"),
    [*((c, a) for c in EVERYWHERE for a in ARCHITECTURES), *((c, ARCHITECTURES[-2]) for c in OTHERS)],
)
def test_compiles(case, architecture, capsys):
    neuron, options = {**EVERYWHERE, **OTHERS}[case]
    for program in programs(neuron, options):
        log = compile_program(program, architecture)
        assert "warning" not in log
        found = figures(log)
        with capsys.disabled():
            for kernel, (registers, spilled, local) in found.items():
                print(f"\nsm_{architecture} {case:33} {kernel:22} {registers:3} registers,", end="")
                print(f" {spilled:3} bytes spilled, {local:4} local", end="")
        assert found
        for kernel, (registers, spilled, local) in found.items():
            assert registers <= 255
            assert spilled <= (288 if options.get("K") == 16 else 0), kernel  # outside of all loops
            # of every thread that could run: the driver sets it aside
            assert local <= (0 if neuron == "tclif" else 1280), kernel


def test_sources_need_no_system_header():
    for path in gpu._SOURCES.glob("gpu_*.cu"):
        assert "#include" not in gpu.source(path.name)
