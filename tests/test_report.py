"""The report names what a maintainer asks for, and says so if a kernel is wrong or anything raises."""

import re
import sys

import pytest
import torch

import pmsn_plugins
from pmsn_plugins import kernels, report


@pytest.fixture
def printed(capsys):
    def printed(status):
        assert report.main() == status
        return capsys.readouterr().out

    return printed


def test_it_names_versions_backends_threads_and_checks_them(printed):
    text = printed(0)
    lines = text.splitlines()
    assert lines[0].startswith(f"pmsn_plugins {pmsn_plugins.__version__} in ")
    assert any(line.startswith("torch ") for line in lines)
    assert f"PyTorch {torch.__version__}, threads: {torch.get_num_threads()}" in text
    for name, status in kernels.backends().items():
        assert any(line.startswith(f"backend {name}: ") and line.endswith(status.reason) for line in lines)
    assert "auto on cpu, PMSN: " in text and "auto on cpu, TC-LIF: " in text
    assert re.search(r"self-check on cpu: (\d+) of \1 comparisons", text)


def test_a_wrong_kernel_is_named(printed, monkeypatch):
    right = kernels.tclif_sequence

    def wrong(*args, **kwargs):
        output = right(*args, **kwargs)
        return output._replace(spikes=output.spikes.roll(1, 0))

    monkeypatch.setattr(report.kernels, "tclif_sequence", wrong)
    monkeypatch.setattr(kernels, "explain", lambda *_: "")
    assert "Check(name='TC-LIF (torch)'" in printed(1)


def test_a_check_that_raises_is_said(printed, monkeypatch):
    def broken(*_, **__):
        raise OSError("illegal\ninstruction")

    monkeypatch.setattr(report, "run_checks", broken)
    assert "self-check on cpu: OSError: illegal instruction" in printed(1)


def test_frameworks_and_packages_that_are_missing_are_said(printed, monkeypatch):
    monkeypatch.setattr(report, "PACKAGES", ("no-such-package",))
    monkeypatch.setitem(sys.modules, "pmsn_plugins.spikingjelly", None)
    monkeypatch.setattr(report, "run_checks", lambda *_, **__: [])
    text = printed(0)
    assert "no-such-package not installed" in text
    assert "pmsn_plugins.spikingjelly: ModuleNotFoundError" in text
