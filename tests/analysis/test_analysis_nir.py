"""NIR graphs run step by step against the layers they came from, and refusals."""

import numpy as np
import pytest
import torch
from torch import nn

from pmsn_plugins.nir import NIRExportError, to_nir

nir = pytest.importorskip("nir")
pytest.importorskip("spikingjelly")


def run(graph, x):
    """Execute a graph of the nodes that ours are made of, in the convention of its metadata; x [T, features]."""
    delayed = set(graph.metadata["delayed"].split(", "))
    state = {name: np.zeros(x.shape[1]) for name in graph.nodes}  # of an I: its potential
    previous, spikes = dict(state), []
    for x_t in x:
        now = {}

        def value(name, now=now, x_t=x_t, previous=previous):
            if name in now:
                return now[name]
            node = graph.nodes[name]
            sources = [source for source, target in graph.edges if target == name]
            if isinstance(node, nir.Input):
                result = x_t
            elif name in delayed:
                total = sum(previous[source] for source in sources)
                result = node.weight @ total if isinstance(node, nir.Linear) else node.scale * total
            else:
                total = sum(value(source) for source in sources)
                if isinstance(node, nir.I):
                    result = state[name] + node.r * total
                elif isinstance(node, nir.Scale):
                    result = node.scale * total
                elif isinstance(node, nir.Affine):
                    result = node.weight @ total + node.bias
                elif isinstance(node, nir.Threshold):
                    result = (total > node.threshold).astype(float)
                else:
                    result = total
            now[name] = result
            return result

        spikes.append(value("output"))
        for name in graph.nodes:
            value(name)
        state.update({name: now[name] for name, node in graph.nodes.items() if isinstance(node, nir.I)})
        previous = now
    return np.stack(spikes)


def sequence(layer, x):
    return layer(torch.from_numpy(x)[:, None])[:, 0].detach().numpy()


@pytest.fixture
def x():
    return np.random.default_rng(0).normal(0.4, 0.6, (200, 6))


@pytest.mark.parametrize("soma_feedback", ["post_reset", "pre_reset"])
@pytest.mark.parametrize("channels", [None, 6])
def test_tclif(x, soma_feedback, channels, tmp_path):
    from pmsn_plugins.spikingjelly import TCLIFNode

    layer = TCLIFNode(
        (-0.4, 0.6), gamma=0.7, v_threshold=1.3, soma_feedback=soma_feedback, channels=channels, step_mode="m"
    )
    layer = layer.double()
    if channels:
        with torch.no_grad():
            layer.c1.add_(torch.linspace(-1, 1, 6))
    nir.write(tmp_path / "layer.nir", to_nir(layer, 6))
    graph = nir.read(tmp_path / "layer.nir")
    spikes = sequence(layer, x)
    assert 0.05 < spikes.mean() < 0.95
    np.testing.assert_array_equal(run(graph, x), spikes)


@pytest.mark.parametrize("soma_feedback", ["post_reset", "pre_reset"])
@pytest.mark.parametrize("bias", [False, True])
def test_recurrent_tclif(x, soma_feedback, bias, tmp_path):
    from pmsn_plugins.spikingjelly import RecurrentTCLIFNode

    torch.manual_seed(0)
    layer = RecurrentTCLIFNode(6, bias, (-0.4, 0.6), soma_feedback=soma_feedback, step_mode="m").double()
    nir.write(tmp_path / "layer.nir", to_nir(layer, 6))
    spikes = sequence(layer, x)
    assert 0.05 < spikes.mean() < 0.95
    np.testing.assert_array_equal(run(nir.read(tmp_path / "layer.nir"), x), spikes)


def test_one_to_one_feedback(x):
    pytest.importorskip("snntorch")
    from pmsn_plugins.snntorch import RTCLIF

    layer = RTCLIF(all_to_all=False, V=torch.linspace(-1, 1, 6), step_mode="m", init_hidden=True).double()
    np.testing.assert_array_equal(run(to_nir(layer, 6), x), sequence(layer, x))


@pytest.mark.parametrize("reset_mode", ["serial", "cumulative", "memoryless"])
def test_pmsn_on_the_signed_current(x, reset_mode):
    from pmsn_plugins.spikingjelly import PMSNNode

    torch.manual_seed(0)
    layer = PMSNNode(6, preset="static", reset_mode=reset_mode, step_mode="m").double()
    spikes = sequence(layer, x)
    assert 0.01 < spikes.mean() < 0.99
    np.testing.assert_array_equal(run(to_nir(layer, 6), x), spikes)


def test_snntorch_layers_fire_strictly_above_the_threshold():
    pytest.importorskip("snntorch")
    from pmsn_plugins.snntorch import TCLIF
    from pmsn_plugins.spikingjelly import TCLIFNode

    assert to_nir(TCLIF(), 2).nodes["fire"].threshold[0] == 1.0
    below = to_nir(TCLIFNode(), 2).nodes["fire"].threshold
    assert (below < 1.0).all() and (below >= np.nextafter(np.float32(1), np.float32(0))).all()


def test_part_of_a_larger_graph():
    from pmsn_plugins.spikingjelly import TCLIFNode

    graph = nir.NIRGraph.from_list(
        nir.Affine(np.ones((4, 3)), np.zeros(4)), to_nir(TCLIFNode(), 4), nir.Linear(np.ones((2, 4)))
    )
    assert graph.input_type["input"].tolist() == [3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no rectifier.*no rounding.*reset_mode='serial', 'cumulative' or 'memoryless' can be exported"),
        ({"reset_mode": "serial", "burst": True}, "spikes are 0 or 1"),
        ({"reset_mode": "serial", "context": "global"}, "nodes are causal"),
    ],
)
def test_refusals(options, message):
    from pmsn_plugins.spikingjelly import PMSNNode

    with pytest.raises(NIRExportError, match=message):
        to_nir(PMSNNode(3, **options), 3)


def test_a_leak_is_refused():
    from pmsn_plugins.spikingjelly import TCLIFNode

    with pytest.raises(NIRExportError, match=r"leak=\(1.0, 0.9\): these integrators keep all"):
        to_nir(TCLIFNode(leak=(1, 0.9)), 3)


def test_bad_arguments():
    from pmsn_plugins.spikingjelly import PMSNNode

    with pytest.raises(TypeError, match="layer must be a PMSN or TC-LIF layer, got Linear"):
        to_nir(nn.Linear(2, 2), 2)
    with pytest.raises(ValueError, match="features must be the layer's 3 channels, got 4"):
        to_nir(PMSNNode(3, reset_mode="serial"), 4)
