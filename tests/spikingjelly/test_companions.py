"""torchvision and torchaudio of another PyTorch are named, with what fits; those that fit are not."""

import subprocess
import sys
import warnings

import pytest

pytest.importorskip("spikingjelly")

from pmsn_plugins.spikingjelly import companions


@pytest.fixture
def pretend(monkeypatch):
    def pretend(torch_version, **installed):
        """What is installed, by name: its version, and what it says that it requires."""

        def found(package):
            if package not in installed:
                raise companions.PackageNotFoundError(package)
            return installed[package]

        monkeypatch.setattr(companions.torch, "__version__", torch_version)
        monkeypatch.setattr(companions, "version", lambda package: found(package)[0])
        monkeypatch.setattr(companions, "requires", lambda package: found(package)[1])

    return pretend


@pytest.mark.parametrize(
    ("torch_version", "installed", "remedy"),
    [
        ("2.14.1+cu130", {"torchvision": ("0.21.0", ["numpy", "torch==2.6.0"])}, 'torchvision "torch==2.14.*"'),
        ("2.6.0", {"torchvision": ("0.29.1", ["torch (>=2.14.0)"])}, 'torchvision "torch==2.6.*"'),
        ("2.14.1", {"torchaudio": ("2.6.0", ["torch==2.6.0"])}, '"torchaudio==2.11.*" "torch==2.14.*"'),
        ("2.6.0+cpu", {"torchaudio": ("2.11.0", None)}, '"torchaudio==2.6.*" "torch==2.6.*"'),
    ],
)
def test_a_misfit_is_named_with_what_fits(pretend, torch_version, installed, remedy):
    pretend(torch_version, **installed)
    (package,) = installed
    with pytest.warns(UserWarning) as caught:
        companions.warn_of_companions()
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith(f"{package} {installed[package][0]} is not made for torch {torch_version}")
    assert message.endswith(f"pip install {remedy}")


@pytest.mark.parametrize(
    ("torch_version", "installed"),
    [
        ("2.6.0", {}),
        ("2.6.1+cu124", {"torchvision": ("0.21.0", ["torch==2.6.0"]), "torchaudio": ("2.6.0", ["torch==2.6.0"])}),
        ("2.11.0", {"torchvision": ("0.26.0", ["torch==2.11.0"]), "torchaudio": ("2.11.0", None)}),
        ("2.14.1", {"torchvision": ("0.29.1", ["torch (>=2.14.0)"]), "torchaudio": ("2.11.0", [])}),
        ("2.14.1", {"torchvision": ("0.29.1", ['torch-extra==1.0; extra == "x"', "torch>=2.14.0"])}),
    ],
)
def test_what_fits_is_not(pretend, torch_version, installed):
    pretend(torch_version, **installed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        companions.warn_of_companions()


def test_the_nodes_work_beside_a_broken_torchvision_and_warn_once(tmp_path):
    broken = tmp_path / "torchvision"
    broken.mkdir()
    (broken / "__init__.py").write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    (tmp_path / "torchvision-0.1.0.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1.0\nRequires-Dist: torch==1.0.0\n"
    )
    code = (
        f"import sys, warnings; sys.path.insert(0, {str(tmp_path)!r}); warnings.simplefilter('always')\n"
        "import torch, pmsn_plugins.spikingjelly as sj, pmsn_plugins.spikingjelly.pmsn\n"
        "print(sj.PMSNNode(3)(torch.rand(2, 3)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "torch.Size([2, 3])" in done.stdout, done.stderr
    assert done.stderr.count("torchvision 0.1.0 is not made for torch") == 1
