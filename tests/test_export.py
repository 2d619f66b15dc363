"""Nets with these neurons leave Python by ONNX (both exporters), jit.trace and torch.export, with the same spikes."""

import io
import itertools

import numpy as np
import pytest
import torch
from torch import nn

T, N, C = 130, 3, 4  # more than one chunk of the reference, and an int64 sum that wraps around


def spikingjelly_net(neuron, backend):
    spikingjelly = pytest.importorskip("pmsn_plugins.spikingjelly")
    make = {
        "PMSN": lambda: spikingjelly.PMSNNode(C, step_mode="m", backend=backend),
        "PMSN, no state": lambda: spikingjelly.PMSNNode(C, step_mode="m", backend=backend, keep_state=False),
        "PMSN, burst": lambda: spikingjelly.PMSNNode(C, step_mode="m", backend=backend, burst=True),
        "TC-LIF": lambda: spikingjelly.TCLIFNode(step_mode="m", backend=backend, keep_state=False),
        "TC-LIF, per channel": lambda: spikingjelly.TCLIFNode(step_mode="m", backend=backend, channels=C),
    }
    return nn.Sequential(nn.Linear(C, C), make[neuron]())


class Loop(nn.Module):
    """snnTorch: a whole sequence through PMSN, then a loop over TC-LIF."""

    def __init__(self, backend):
        super().__init__()
        snntorch = pytest.importorskip("pmsn_plugins.snntorch")
        self.linear = nn.Linear(C, C)
        self.pmsn = snntorch.PMSN(C, backend=backend, output=False)
        self.tclif = snntorch.TCLIF(backend=backend)

    def forward(self, x):
        dend, mem = self.tclif.reset_mem()
        spikes = []
        for step in self.pmsn(self.linear(x)):
            spike, dend, mem = self.tclif(3 * step, dend, mem)
            spikes.append(spike)
        return torch.stack(spikes)


SPIKINGJELLY = ("PMSN", "PMSN, no state", "PMSN, burst", "TC-LIF", "TC-LIF, per channel")


def reset(net):
    for module in net.modules():
        if hasattr(module, "memories"):
            module.reset()
        elif hasattr(module, "reset_mem"):
            module.reset_mem()


def case(neuron, backend):
    """(net, input, spikes) of a net that fires."""
    torch.manual_seed(0)
    net = (Loop(backend) if neuron == "snnTorch" else spikingjelly_net(neuron, backend)).eval()
    for module in net.modules():
        if hasattr(module, "D"):
            module.D.data.abs_()
    x = 3 * torch.rand((12 if neuron == "snnTorch" or "TC-LIF" in neuron else T), N, C)
    with torch.no_grad():
        spikes = net(x)
    reset(net)
    assert 0.02 < spikes.mean() < 10
    return net, x, spikes


def run_onnx(buffer, x):
    session = pytest.importorskip("onnxruntime").InferenceSession(buffer.getvalue())
    (spikes,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return spikes


# the slow exporter is tried with the backend that a user has, and once with the one to which all others lead there
@pytest.mark.parametrize(
    ("neuron", "backend", "dynamo"),
    [
        *itertools.product([*SPIKINGJELLY, "snnTorch"], ["auto", "torch"], [False]),
        *itertools.product([*SPIKINGJELLY, "snnTorch"], ["auto"], [True]),
        ("PMSN, no state", "torch", True),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_onnx(neuron, backend, dynamo):
    pytest.importorskip("onnxscript")
    net, x, expected = case(neuron, backend)
    buffer = io.BytesIO()
    with torch.no_grad():
        if dynamo:
            torch.onnx.export(net, (x,), dynamo=True, verbose=False).save(buffer)
        else:
            torch.onnx.export(net, (x,), buffer, dynamo=False, opset_version=18)
    assert np.array_equal(run_onnx(buffer, x), expected.numpy())


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("neuron", [*SPIKINGJELLY, "snnTorch"])
@pytest.mark.filterwarnings("ignore")
def test_trace(neuron, backend):
    net, x, expected = case(neuron, backend)
    with torch.no_grad():
        traced = torch.jit.trace(net, (x,), check_trace=False)
        reset(net)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer)
        buffer.seek(0)
        assert torch.equal(torch.jit.load(buffer)(x), expected)


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("neuron", ["PMSN, no state", "TC-LIF"])
def test_export(neuron, backend):
    net, x, expected = case(neuron, backend)
    with torch.no_grad():
        assert torch.equal(torch.export.export(net, (x,)).module()(x), expected)


@pytest.mark.parametrize("neuron", ["PMSN", "TC-LIF"])
@pytest.mark.filterwarnings("ignore")
def test_a_backend_that_cannot_be_exported_says_which_can(neuron):
    pytest.importorskip("onnxscript")
    net, x, _ = case(neuron, "auto")
    net[1].backend = "cpu"
    with pytest.raises(ValueError, match="'cpu' cannot be exported to ONNX: use backend='torch'"), torch.no_grad():
        torch.onnx.export(net, (x,), io.BytesIO(), dynamo=False)
    with pytest.raises(Exception, match="backend='torch'"), torch.no_grad():
        torch.onnx.export(net, (x,), dynamo=True, verbose=False)
