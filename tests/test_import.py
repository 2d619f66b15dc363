"""What importing the package costs, and what it says when something is missing."""

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_the_package_imports_no_framework():
    loaded = run("import sys, pmsn_plugins; print({'spikingjelly', 'snntorch', 'cupy'} & set(sys.modules))")
    assert loaded == "set()"


def test_a_missing_framework_is_named_with_its_remedy():
    for framework in ("spikingjelly", "snntorch"):
        message = run(
            f"import sys; sys.modules['{framework}'] = None\n"
            f"try:\n    import pmsn_plugins.{framework}\nexcept ImportError as e:\n    print(e)"
        )
        assert f'pip install "pmsn_plugins[{framework}]"' in message


def test_a_spikingjelly_without_activation_based_is_named():
    message = run(
        "import sys, types\n"
        "sys.modules['spikingjelly'] = old = types.ModuleType('spikingjelly'); old.__path__ = []\n"
        "try:\n    import pmsn_plugins.spikingjelly\nexcept ImportError as e:\n    print(type(e).__name__, e)"
    )
    assert message.startswith("ImportError pmsn_plugins.spikingjelly needs SpikingJelly 0.0.0.0.14 or newer")
    assert "pip install -U" in message and "clock_driven.install()" in message
