"""Two builds of the library are compared only if both take this package's arguments, and compute the same."""

import ctypes
import shutil
import subprocess

import pytest

from pmsn_plugins.bench import builds
from pmsn_plugins.kernels import cpu
from pmsn_plugins.kernels.arguments import STRUCTURES

ARGUMENTS = ["--threads", "1", "--isa", "baseline", "--seconds", "0.01", "--shape", "5,2,3"]


@pytest.fixture
def stub(tmp_path):
    """Compiles a library that takes the arguments and computes nothing; PmsnArgs are `longer` there."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile a library with")

    def compile_stub(longer=0):
        path = tmp_path / f"stub{longer}.so"
        sizes = {a.__name__: ctypes.sizeof(a) + longer * (a.__name__ == "PmsnArgs") for a in STRUCTURES.values()}
        calls = [f"{neuron}_{way}" for neuron in STRUCTURES for way in ("forward", "backward")]
        source = "".join(
            [
                *(
                    f"int {name}() {{ return 0; }}"
                    for name in (*calls, "pmsn_surrogate", "pmsn_equal", "pmsn_use_instruction_set")
                ),
                'const char* pmsn_sources() { return ""; } const char* pmsn_instruction_set() { return ""; }',
                "long long pmsn_argument_bytes(const char* name) {",
                *(f'if (!__builtin_strcmp(name, "{name}")) return {size};' for name, size in sizes.items()),
                "return 0; }",
            ]
        )
        command = ["g++", "-x", "c++", "-shared", "-fPIC", "-", "-o", path]
        subprocess.run(command, input=f'extern "C" {{ {source} }}', text=True, check=True)
        return str(path)

    return compile_stub


def test_a_library_agrees_with_itself(cpu_library, capsys):
    assert builds.main([cpu_library, cpu_library, *ARGUMENTS]) == 0
    printed = capsys.readouterr().out
    for neuron in ("pmsn ", "tclif"):
        assert f"baseline {neuron} [5, 2, 3]          1 thread  forward " in printed


def test_what_computes_something_else_is_not_timed(cpu_library, stub, capsys):
    assert builds.main([cpu_library, stub(), *ARGUMENTS]) == 1
    printed = capsys.readouterr().out
    assert "LIBRARIES DISAGREE" in printed and "1 thread" not in printed


def test_other_arguments_are_refused(cpu_library, stub):
    with pytest.raises(SystemExit, match="cannot be compared: PmsnArgs has another size there"):
        builds.main([cpu_library, stub(longer=8), *ARGUMENTS])
    with pytest.raises(SystemExit, match=r"nowhere\.so cannot be loaded"):
        builds.main([cpu_library, "nowhere.so", *ARGUMENTS])


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--shape", "4,0,3", "must be three numbers or more, all above 0: T,N,C,*, got '4,0,3'"),
        ("--threads", "0", "must be a whole number above 0, got '0'"),
        ("--threads", "1.5", "must be a whole number above 0, got '1.5'"),
        ("--seconds", "-1", "must be a number above 0, got '-1'"),
        ("--seconds", "inf", "must be a number above 0, got 'inf'"),
        ("--seconds", "nan", "must be a number above 0, got 'nan'"),
        ("--isa", "avx1", "invalid choice: 'avx1' (choose from"),
    ],
)
def test_what_is_allowed_is_said(option, value, message, capsys):
    with pytest.raises(SystemExit):
        builds.main(["old.so", "new.so", option, value])
    error = capsys.readouterr().err
    assert f"argument {option}: {message}" in error


@pytest.fixture
def cpu_library():
    if cpu.library is None:
        pytest.skip(cpu.reason)
    yield str(cpu._LIBRARY)
    cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())
