"""A CPU library that does not fit the Python beside it is not used, and the reason says what to do."""

import ctypes
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import pmsn_plugins
from pmsn_plugins import functional, kernels
from pmsn_plugins.kernels import cpu
from pmsn_plugins.kernels.arguments import STRUCTURES
from pmsn_plugins.kernels.sources import library_sources, sources_stamp

REMEDY = "pip install -e . --no-deps in a clone, or install pmsn_plugins again"
FUNCTIONS = [
    *("pmsn_sources", "pmsn_instruction_set", "pmsn_use_instruction_set", "pmsn_argument_bytes"),
    "pmsn_surrogate",
    *(f"{neuron}_{direction}" for neuron in STRUCTURES for direction in ("forward", "backward")),
]
ARGUMENTS = tuple(STRUCTURES.values())


@pytest.fixture
def compile_library(tmp_path):
    """Compiles C++ into a library of its own name: one that is loaded already would be found again."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile a library with")

    def compile_library(source):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.so"
        subprocess.run(["g++", "-x", "c++", "-shared", "-fPIC", "-", "-o", path], input=source, text=True, check=True)
        return path

    return compile_library


def stub(stamp=None, leave_out=None, wrong_size=None):
    """A library with the functions of the real one, that does nothing."""
    functions = {name: f"int {name}() {{ return 0; }}" for name in FUNCTIONS}
    functions["pmsn_sources"] = f'const char* pmsn_sources() {{ return "{stamp or sources_stamp(cpu._SOURCES)}"; }}'
    functions["pmsn_instruction_set"] = 'const char* pmsn_instruction_set() { return "none"; }'
    sizes = {a.__name__: ctypes.sizeof(a) + (a.__name__ == wrong_size) for a in ARGUMENTS}
    lines = [f'if (!__builtin_strcmp(name, "{name}")) return {size};' for name, size in sizes.items()]
    functions["pmsn_argument_bytes"] = (
        f"long long pmsn_argument_bytes(const char* name) {{ {''.join(lines)} return 0; }}"
    )
    return 'extern "C" {' + "\n".join(text for name, text in functions.items() if name != leave_out) + "}"


def load(monkeypatch, path):
    monkeypatch.setattr(cpu, "_LIBRARY", path)
    return cpu._load()


def test_the_library_at_hand_fits(cpu_kernels):
    assert cpu.library.pmsn_sources().decode() == sources_stamp(cpu._SOURCES)


def test_a_stub_with_everything_is_taken(monkeypatch, compile_library):
    """What the tests below take away is all there is to miss."""
    library, reason = load(monkeypatch, compile_library(stub()))
    assert library is not None and reason == "fused kernels (none)"


@pytest.mark.parametrize("missing", FUNCTIONS)
def test_a_missing_function_is_named(monkeypatch, compile_library, missing):
    library, reason = load(monkeypatch, compile_library(stub(leave_out=missing)))
    assert library is None and missing in reason and REMEDY in reason


@pytest.mark.parametrize("arguments", [a.__name__ for a in ARGUMENTS])
def test_arguments_of_another_size_are_named(monkeypatch, compile_library, arguments):
    library, reason = load(monkeypatch, compile_library(stub(wrong_size=arguments)))
    assert library is None and f"{arguments} has another size" in reason and REMEDY in reason


def test_a_library_of_other_sources_is_refused(monkeypatch, compile_library):
    library, reason = load(monkeypatch, compile_library(stub(stamp="0" * 64)))
    assert library is None and "other sources" in reason and REMEDY in reason


def test_any_edit_of_a_source_is_another_stamp(tmp_path):
    folder = shutil.copytree(cpu._SOURCES, tmp_path / "csrc")
    stamps = [sources_stamp(folder)]
    for path in library_sources(folder):
        path.write_bytes(path.read_bytes() + b"\n")
        stamps.append(sources_stamp(folder))
    (folder / "cpu_more.h").write_text("")
    stamps.append(sources_stamp(folder))
    (folder / "cpu_more.h").rename(folder / "cpu_other.h")
    stamps.append(sources_stamp(folder))
    assert len(set(stamps)) == len(stamps)
    (folder / "gpu_pmsn.cu").write_text("not a part of the library")
    (folder / "gpu_common.h").write_text("nor this")
    assert sources_stamp(folder) == stamps[-1]


def test_editing_a_source_makes_the_library_stale(monkeypatch, cpu_kernels, tmp_path):
    folder = shutil.copytree(cpu._SOURCES, tmp_path / "csrc")
    with (folder / "args.h").open("a") as file:
        file.write("// another one\n")
    monkeypatch.setattr(cpu, "_SOURCES", folder)
    library, reason = cpu._load()
    assert library is None and "other sources" in reason


def test_what_does_not_fit_runs_on_torch(monkeypatch, compile_library, tools):
    library, reason = load(monkeypatch, compile_library(stub(stamp="old")))
    monkeypatch.setattr(cpu, "library", library)
    monkeypatch.setattr(cpu, "reason", reason)
    assert kernels.backends()["cpu"] == (False, reason)
    x, coefficients, _ = tools.pmsn_case((5, 2, 3), 2, torch.float32, False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            spikes = kernels.pmsn_sequence(x, coefficients).spikes
            kernels.tclif_sequence(x, -0.5, 0.5)
    assert [reason in str(warning.message) for warning in caught] == [True]
    assert torch.equal(spikes, functional.pmsn_sequence(x, coefficients).spikes)
    with pytest.raises(RuntimeError, match="rebuild them: pip install"):
        kernels.pmsn_sequence(x, coefficients, backend="cpu")


def test_the_package_imports_beside_an_old_library(compile_library, tmp_path):
    package = Path(pmsn_plugins.__file__).parent
    copy = shutil.copytree(package, tmp_path / "copy" / "pmsn_plugins", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(compile_library("int before_there_was_a_stamp;"), copy / "kernels" / "_cpu.so")
    command = "import pmsn_plugins; print(pmsn_plugins.__file__, *pmsn_plugins.backends()['cpu'])"
    result = subprocess.run([sys.executable, "-c", command], cwd=copy.parent, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert str(copy) in result.stdout and "False" in result.stdout and REMEDY in result.stdout


@pytest.mark.parametrize("name", cpu.INSTRUCTION_SETS)
def test_the_instruction_set_can_be_forced(monkeypatch, cpu_kernels, name):
    if cpu.library.pmsn_use_instruction_set(name.encode()):
        pytest.skip(f"this processor has no {name}")
    try:
        monkeypatch.setenv("PMSN_ISA", name)
        assert cpu._load()[1] == f"fused kernels ({name})"
    finally:
        cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())


def test_an_instruction_set_that_there_is_not_is_an_error(monkeypatch, cpu_kernels):
    monkeypatch.setenv("PMSN_ISA", "avx3")
    with pytest.raises(ValueError, match=r"PMSN_ISA must be .*'baseline' on this machine, got 'avx3'"):
        cpu._load()
    cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())
