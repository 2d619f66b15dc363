"""Gradient over time: a known decay, both frameworks, and the nets it refuses."""

import pytest
import torch
from torch import nn

from pmsn_plugins.analysis import compare_gradients, gradient_over_time, last_step_loss, plot_gradient_over_time

neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")


def test_lif_gradient_decays_by_its_leak():
    # tau = 2: v[t] = v[t-1] / 2 + x[t] / 2, and never near the threshold except in the last step's surrogate
    lif = neuron.LIFNode(tau=2.0, v_reset=None, detach_reset=True, surrogate_function=surrogate.ATan(), step_mode="m")
    x = torch.full((12, 1, 1), 0.4)
    norms = gradient_over_time(lif, x, torch.zeros(1), lambda out, _: out[-1].sum())["LIFNode"]
    # the surrogate's slope at the last step is the same for all, so only the leak is left
    torch.testing.assert_close(norms[1:] / norms[:-1], torch.full((11,), 2.0, dtype=torch.float64), rtol=1e-5, atol=0)


def test_layers_of_both_frameworks_and_step_loops():
    snn = pytest.importorskip("snntorch")
    from pmsn_plugins.snntorch import PMSN, TCLIF

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.tclif, self.lif = nn.Linear(3, 4), TCLIF(), snn.Leaky(0.9)
            self.pmsn = PMSN(4, output=False)

        def forward(self, x_seq):
            current = self.pmsn(self.fc(x_seq))
            dend, mem = self.tclif.reset_mem()
            lif_mem, out = self.lif.reset_mem(), []
            for x in current:
                spk, dend, mem = self.tclif(x, dend, mem)
                spk, lif_mem = self.lif(spk, lif_mem)
                out.append(spk)
            return torch.stack(out)

    torch.manual_seed(0)
    net = Loop()
    with torch.no_grad():
        net.fc.weight.mul_(4.0)
    x = torch.rand(9, 5, 3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    norms = gradient_over_time(net, x, torch.randint(4, (5,)))
    assert list(norms) == ["tclif", "lif", "pmsn"]
    assert all(norm.shape == (9,) and norm.isfinite().all() for norm in norms.values())
    assert norms["lif"][-1] > norms["lif"][0] > 0
    # nothing is left behind
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert net.training


def test_gradient_is_that_of_the_input_current():
    from pmsn_plugins.spikingjelly import PMSNNode

    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(2, 3), PMSNNode(3, preset="static", step_mode="m"))
    x, target = torch.rand(7, 4, 2), torch.randint(3, (4,))
    norms = gradient_over_time(net, x, target)["1"]
    current = net[0](x).detach().requires_grad_()
    net[1].reset()
    (gradient,) = torch.autograd.grad(last_step_loss(net[1](current), target), current)
    torch.testing.assert_close(norms, gradient.double().flatten(1).norm(dim=1))


def test_a_shortcut_around_the_neuron_does_not_count():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.lif = neuron.LIFNode(v_reset=None, step_mode="m", v_threshold=0.5)

        def forward(self, x):
            return self.lif(x) + 100.0 * x

    net, x, target = Residual(), torch.rand(5, 2, 3, requires_grad=True), torch.tensor([0, 1])
    with_shortcut = gradient_over_time(net, x, target, lambda out, _: out[-1].sum())["lif"]
    alone = gradient_over_time(net.lif, x, target, lambda out, _: out[-1].sum())["LIFNode"]
    torch.testing.assert_close(with_shortcut, alone)


def test_what_is_wrong_is_said():
    net = nn.Sequential(nn.Linear(3, 4), neuron.LIFNode(v_reset=None, step_mode="m", surrogate_function=triangle()))
    nn.init.constant_(net[0].weight, 0.5)
    x, target = torch.rand(6, 2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="no neuron layer of SpikingJelly, snnTorch"):
        gradient_over_time(nn.Linear(3, 4), x, target)
    with pytest.raises(ValueError, match="compiled"):
        gradient_over_time(torch.compile(net), x, target)
    with pytest.raises(ValueError, match=r"no gradient reaches any neuron layer: no neuron fires, no membrane"):
        gradient_over_time(net, -100 * torch.ones(6, 2, 3), target, lambda out, _: out[-1].sum())
    with pytest.raises(ValueError, match="one finite number, got nan"):
        gradient_over_time(net, x, target, lambda out, _: out.sum() * float("nan"))
    with pytest.raises(ValueError, match=r"\[T, N, classes\], got shape \(2, 4\)"):
        gradient_over_time(net, x, target, lambda out, y: last_step_loss(out.mean(0), y))
    with pytest.warns(UserWarning, match="1: no neuron of the layer fires"):
        gradient_over_time(net, 0.1 * x, target, lambda out, _: out[-1].sum())


def triangle():
    return surrogate.PiecewiseQuadratic(alpha=1.0)


def test_comparison_and_figure():
    norms = compare_gradients(T=30, width=16, batch=8)
    assert list(norms) == ["LIF", "ALIF-like", "TC-LIF", "PMSN"]
    assert all(len(layers) == 2 for layers in norms.values())
    kept = {name: float(norm[0] / norm[-1]) for name, layers in norms.items() for norm in [list(layers.values())[1]]}
    assert kept["TC-LIF"] > 1e3 * kept["LIF"]
    assert kept["PMSN"] > 1e3 * kept["LIF"]
    figure = plot_gradient_over_time(norms)
    assert [ax.get_title() for ax in figure.axes] == ["neuron layer 1", "neuron layer 2"]
    assert figure.axes[0].get_yscale() == "log"
