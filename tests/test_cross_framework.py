"""The same weights in SpikingJelly and snnTorch: the same spikes, the same gradients.

The one difference between the frameworks is the firing rule, ``u >= threshold`` against ``u > threshold``. Random
inputs never meet the threshold exactly; :func:`test_the_one_difference` does so on purpose.
"""

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

import snntorch as snn
from spikingjelly.activation_based import functional, neuron, surrogate

from pmsn_plugins import snntorch as st
from pmsn_plugins import spikingjelly as sj
from pmsn_plugins.functional import RESET_MODES, TableSurrogate, tclif_recurrent_sequence, tclif_sequence

T, N, C = 120, 3, 5


def inputs(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.2


def run(forward, module, x):
    """Spikes, and the gradients of the input and of every neuron parameter by name."""
    x = x.clone().requires_grad_()
    spikes = forward(x)
    wrt = {n: p for n, p in module.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad((spikes * inputs(*spikes.shape, seed=9)).sum(), [x, *wrt.values()])
    return spikes.detach(), dict(zip(["x", *wrt], grads, strict=True))


def assert_same(result, expected):
    assert torch.equal(result[0], expected[0])
    assert result[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        scale = gradient.abs().max()
        assert scale > 0, name
        assert (result[1][name] - gradient).abs().max() <= 1e-9 * scale, name


def stepwise(step, x):
    return torch.stack([step(x_t) for x_t in x])


@pytest.mark.parametrize("space", [(), (2, 3)])
@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("reset_mode", RESET_MODES)
def test_pmsn(space, reset_mode, burst):
    options = {"n_compartments": 5, "reset_mode": reset_mode, "burst": burst}
    multi = sj.PMSNNode(C, v_threshold=0.75, step_mode="m", **options).double()
    single = sj.PMSNNode(C, v_threshold=0.75, step_mode="s", **options).double()
    layer = st.PMSN(C, threshold=0.75, **options).double()
    hidden = st.PMSN(C, threshold=0.75, init_hidden=True, **options).double()
    with torch.no_grad():
        for p in multi.parameters():
            p.add_(0.05 * torch.randn_like(p))
    for other in (single, layer, hidden):
        other.load_state_dict(multi.state_dict(), strict=False)
    x = inputs(T, N, C, *space)

    def loop(x):
        state, spikes = None, []
        for x_t in x:
            s, state = layer.step(x_t, state)
            spikes.append(s)
        return torch.stack(spikes)

    expected = run(multi, multi, x)
    assert expected[0].mean() > 0.02
    assert_same(run(lambda x: stepwise(single, x), single, x), expected)
    assert_same(run(lambda x: _spikes(layer(x)), layer, x), expected)
    assert_same(run(loop, layer, x), expected)
    assert_same(run(lambda x: _spikes(hidden(x)), hidden, x), expected)


def _spikes(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("soma_feedback", ["post_reset", "pre_reset"])
@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("leak", [(1.0, 1.0), (0.9, 0.8)])
def test_tclif(soma_feedback, detach_reset, leak):
    options = {"beta": (-0.4, 0.7), "gamma": 0.6, "soma_feedback": soma_feedback, "detach_reset": detach_reset}
    options["leak"] = leak
    multi = sj.TCLIFNode(v_threshold=1.25, step_mode="m", **options).double()
    single = sj.TCLIFNode(v_threshold=1.25, step_mode="s", **options).double()
    layer = st.TCLIF(threshold=1.25, **options).double()
    hidden = st.TCLIF(threshold=1.25, init_hidden=True, **options).double()
    for other in (single, layer, hidden):
        other.load_state_dict(multi.state_dict(), strict=False)
    x = inputs(T, N, C)

    def loop(x):
        dend, mem = layer.reset_mem()
        spikes = []
        for x_t in x:
            s, dend, mem = layer(x_t, dend, mem)
            spikes.append(s)
        return torch.stack(spikes)

    expected = run(multi, multi, x)
    assert expected[0].mean() > 0.02
    reference = tclif_sequence(
        x, *multi.couplings(2), v_threshold=1.25, **{key: options[key] for key in options if key != "beta"}
    )
    assert torch.equal(reference.spikes, expected[0])
    assert_same(run(lambda x: stepwise(single, x), single, x), expected)
    assert_same(run(loop, layer, x), expected)
    assert_same(run(lambda x: stepwise(hidden, x), hidden, x), expected)


@pytest.mark.parametrize("soma_feedback", ["post_reset", "pre_reset"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("leak", [(1.0, 1.0), (0.9, 0.8)])
def test_recurrent_tclif(soma_feedback, bias, leak):
    options = {"beta": (-0.4, 0.7), "gamma": 0.6, "soma_feedback": soma_feedback, "bias": bias, "leak": leak}
    multi = sj.RecurrentTCLIFNode(C, v_threshold=1.25, step_mode="m", **options).double()
    single = sj.RecurrentTCLIFNode(C, v_threshold=1.25, step_mode="s", **options).double()
    layer = st.RTCLIF(linear_features=C, threshold=1.25, **options).double()
    hidden = st.RTCLIF(linear_features=C, threshold=1.25, init_hidden=True, **options).double()
    sequence = st.RTCLIF(linear_features=C, threshold=1.25, step_mode="m", **options).double()
    for other in (single, layer, hidden, sequence):
        other.load_state_dict(multi.state_dict())
    x = inputs(T, N, C)

    def loop(x):
        spk, dend, mem = layer.reset_mem()
        spikes = []
        for x_t in x:
            spk, dend, mem = layer(x_t, spk, dend, mem)
            spikes.append(spk)
        return torch.stack(spikes)

    expected = run(multi, multi, x)
    assert expected[0].mean() > 0.02
    del options["beta"], options["bias"]
    linear = multi.recurrent
    reference = tclif_recurrent_sequence(
        x, linear.weight, linear.bias, *multi.couplings(2), v_threshold=1.25, **options
    )
    assert torch.equal(reference.spikes, expected[0])
    assert_same(run(lambda x: stepwise(single, x), single, x), expected)
    assert_same(run(loop, layer, x), expected)
    assert_same(run(lambda x: stepwise(hidden, x), hidden, x), expected)
    assert_same(run(lambda x: sequence(x)[0], sequence, x), expected)


def test_lif_special_case_is_both_frameworks_lif():
    """One compartment of the general model, SpikingJelly's LIFNode and snnTorch's Leaky are one neuron."""
    tau = 2.0
    x = inputs(T, N, C)
    triangle = surrogate.PiecewiseQuadratic(alpha=1.0)
    general = sj.MultiCompartmentNode(
        1, leak=(1 - 1 / tau,), gain=(1 / tau,), surrogate_function=triangle, step_mode="m"
    ).double()
    lif = neuron.LIFNode(tau=tau, v_reset=None, surrogate_function=triangle, step_mode="m")
    leaky = snn.Leaky(beta=1 - 1 / tau, spike_grad=TableSurrogate("triangle", strict=True), reset_delay=False).double()

    def loop(x):
        mem, spikes = torch.zeros_like(x[0]), []
        for x_t in x:
            # snnTorch leaves the 1/tau to the weights before the neuron
            s, mem = leaky(x_t / tau, mem)
            spikes.append(s)
        return torch.stack(spikes)

    functional.reset_net(general)
    expected = run(general, torch.nn.Module(), x)
    assert expected[0].mean() > 0.02
    assert_same(run(lif, torch.nn.Module(), x), expected)
    assert_same(run(loop, torch.nn.Module(), x), expected)


def test_the_one_difference():
    """At u == threshold SpikingJelly fires and snnTorch does not."""
    node = sj.PMSNNode(1, step_mode="m")
    layer = st.PMSN(1)
    with torch.no_grad():
        for p in node.parameters():
            p.zero_()
        node.D.fill_(1.0)
    layer.load_state_dict(node.state_dict(), strict=False)
    x = torch.ones(1, 1, 1)
    assert node(x).item() == 1
    assert _spikes(layer(x)).item() == 0
