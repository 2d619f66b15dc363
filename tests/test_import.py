"""What importing the package costs, and what it says when something is missing."""

import runpy
import subprocess
import sys
import types
from pathlib import Path

import pytest

import pmsn_plugins

FOLDER = Path(pmsn_plugins.__file__).parent


def test_the_package_imports_neither_a_framework_nor_the_compiler():
    code = "import sys, torch; before = {*sys.modules}; import pmsn_plugins; names = {*sys.modules} - before; "
    code += "print({'spikingjelly', 'snntorch', 'cupy', 'torch._dynamo'} & names)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "set()"


def importing(framework):
    """What the adapter says as it is imported."""
    with pytest.raises(ImportError) as error:
        runpy.run_path(str(FOLDER / framework / "__init__.py"), run_name=f"pmsn_plugins.{framework}")
    return str(error.value)


@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_a_missing_framework_is_named_with_its_remedy(framework, monkeypatch):
    monkeypatch.setitem(sys.modules, framework, None)
    assert f'pip install "pmsn_plugins[{framework}]"' in importing(framework)


@pytest.fixture
def old_release(tmp_path, monkeypatch):
    """The folder of a SpikingJelly without ``activation_based``."""
    release = types.ModuleType("spikingjelly")
    release.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "spikingjelly", release)
    monkeypatch.delitem(sys.modules, "spikingjelly.activation_based", raising=False)
    return tmp_path


def test_a_spikingjelly_without_activation_based_is_named(old_release):
    message = importing("spikingjelly")
    assert message.startswith("pmsn_plugins.spikingjelly needs SpikingJelly 0.0.0.0.14 or newer")
    assert "pip install -U" in message and "clock_driven.install()" in message


def test_what_else_spikingjelly_lacks_is_its_own_error(old_release):
    (old_release / "activation_based.py").write_text("import there_is_no_such_module")
    assert importing("spikingjelly") == "No module named 'there_is_no_such_module'"
