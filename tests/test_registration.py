"""One call registers with every installed framework."""

import pytest

import pmsn_plugins
from pmsn_plugins import registration

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

import snntorch as snn
from spikingjelly.activation_based import neuron

from pmsn_plugins import snntorch as st
from pmsn_plugins import spikingjelly as sj

NAMES = [
    *((neuron, name) for name in ("PMSNNode", "TCLIFNode", "RecurrentTCLIFNode", "MultiCompartmentNode")),
    *((snn, name) for name in ("PMSN", "TCLIF", "RTCLIF")),
]


def test_register_and_unregister():
    assert not any(hasattr(module, name) for module, name in NAMES)
    try:
        assert pmsn_plugins.register() == pmsn_plugins.register() == ("spikingjelly", "snntorch")
        for module, name in NAMES:
            assert getattr(module, name) is getattr(sj if module is neuron else st, name)
    finally:
        assert pmsn_plugins.unregister() == ("spikingjelly", "snntorch")
    assert not any(hasattr(module, name) for module, name in NAMES)
    pmsn_plugins.unregister()


def test_without_any_framework(monkeypatch):
    monkeypatch.setattr(registration, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "pmsn_plugins\[all\]"'):
        pmsn_plugins.register()
