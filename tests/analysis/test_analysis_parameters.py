"""Analyses of parameters alone: impulse responses, oscillations, and the errors for nets they cannot read."""

import math
import warnings

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from pmsn_plugins import functional as F
from pmsn_plugins.analysis import impulse_response, oscillations, plot_impulse_response, plot_oscillations
from pmsn_plugins.parameters import PMSNParametersMixin, TCLIFParametersMixin


class PMSNLayer(PMSNParametersMixin, nn.Module):
    def __init__(self, channels=3, n_compartments=5, preset="static"):
        super().__init__()
        self._create_parameters(channels, n_compartments, preset)


class TCLIFLayer(TCLIFParametersMixin, nn.Module):
    def __init__(self, beta=(-0.4, 0.7), channels=None):
        super().__init__()
        self._create_parameters(beta, channels)


@pytest.fixture
def trained_pmsn():
    torch.manual_seed(0)
    layer = PMSNLayer().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def test_pmsn_compartments_are_what_the_recurrence_computes(trained_pmsn):
    T = 40
    response = impulse_response(nn.Sequential(trained_pmsn), T)["0"]
    state, hidden = None, []
    for t in range(T):
        x = torch.full((1, 3), float(t == 0), dtype=torch.float64)
        _, state = F.pmsn_step(x, trained_pmsn.coefficients(), state)
        hidden.append(state.h_real[:, 0].T)
    torch.testing.assert_close(response.compartments, torch.stack(hidden, -1), rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(response.output, F.pmsn_impulse_response(trained_pmsn.coefficients(), T).detach())


def test_pmsn_response_is_a_damped_oscillation_in_closed_form():
    layer = PMSNLayer(channels=1, n_compartments=3, preset="static").double()
    with torch.no_grad():
        for name, value in {"log_dt": 0.0, "log_decay": math.log(0.1), "B_real": 1.0, "B_imag": 0.0}.items():
            getattr(layer, name).fill_(value)
        layer.R_real.fill_(0.5), layer.R_imag.fill_(0.0), layer.D.fill_(2.0)
        layer.freq.copy_(torch.tensor([[0.3, -0.3]]))
    response = impulse_response(layer, 30)["PMSNLayer"]
    t = torch.arange(30, dtype=torch.float64)
    # (exp((t+1) lam) - exp(t lam)) / lam, of both conjugate modes with weight 1/2: its real part
    lam = torch.complex(torch.tensor(-0.1, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64))
    expected = ((torch.exp(lam * (t + 1)) - torch.exp(lam * t)) / lam).real
    expected[0] += 2.0
    torch.testing.assert_close(response.output[0], expected)


@pytest.mark.parametrize("channels", [None, 2])
def test_tclif_response_is_what_the_neuron_does_below_threshold(channels):
    layer, T = TCLIFLayer(channels=channels).double(), 60
    response = impulse_response(layer, T)["TCLIFLayer"]
    x = torch.zeros(T, 1, channels or 1, dtype=torch.float64)
    x[0] = 1.0
    state, dendrite = None, []
    for x_t in x:
        _, state = F.tclif_step(x_t, *layer.couplings(2), state, v_threshold=1e6)
        dendrite.append(torch.stack([state.v_dendrite[0], state.v[0]], -1))
    expected = torch.stack(dendrite, -1)
    torch.testing.assert_close(response.compartments, expected.detach())
    assert response.labels == ("dendrite", "soma")
    torch.testing.assert_close(response.output, response.compartments[:, 1])


def test_oscillations_agree_with_the_eigenvalues(trained_pmsn):
    tclif = TCLIFLayer((-0.3, 0.6))
    found = oscillations(nn.Sequential(trained_pmsn, tclif))
    c = trained_pmsn.coefficients()
    A = torch.complex(1 + c.E_real, c.E_imag).detach()
    torch.testing.assert_close(A.abs(), torch.exp(-found["0"].damping))
    torch.testing.assert_close(torch.polar(A.abs(), 2 * math.pi * found["0"].frequency), A)
    eigenvalue = torch.linalg.eigvals(torch.tensor([[1, -0.3], [0.6, 1 - 0.18]], dtype=torch.float64))[0]
    assert found["1"].frequency.item() == pytest.approx(abs(eigenvalue.angle().item()) / (2 * math.pi), rel=1e-5)
    assert found["1"].damping.item() == 0.0


def test_untrained_parameters_are_called_so(trained_pmsn):
    with pytest.warns(UserWarning, match=r"of 0 are all alike"):
        oscillations(nn.Sequential(PMSNLayer(), trained_pmsn))
    with pytest.warns(UserWarning, match=r"of 0, 1 are all alike"):
        oscillations(nn.Sequential(TCLIFLayer(), TCLIFLayer()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oscillations(trained_pmsn)
        oscillations(nn.Sequential(TCLIFLayer(), TCLIFLayer((-0.2, 0.5))))


@pytest.mark.parametrize("analysis", [impulse_response, oscillations])
def test_nets_that_cannot_be_read(analysis):
    with pytest.raises(ValueError, match=r"Linear has no PMSN or TC-LIF layer \(its neuron layers: none\)"):
        analysis(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"net is compiled.*_orig_mod"):
        analysis(torch.compile(PMSNLayer()))
    with pytest.raises(ValueError, match=r"its layer '1' is compiled"):
        analysis(nn.Sequential(nn.Linear(3, 3), torch.compile(PMSNLayer())))
    in_place = PMSNLayer()
    in_place.compile()
    with pytest.raises(ValueError, match="is compiled"):
        analysis(in_place)
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, got dict"):
        analysis({})


def test_the_neurons_of_other_kinds_are_named():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    with pytest.raises(ValueError, match=r"its neuron layers: LIFNode"):
        oscillations(nn.Sequential(nn.Linear(2, 2), neuron.LIFNode()))


def test_figures(trained_pmsn):
    response = impulse_response(trained_pmsn, 20)["PMSNLayer"]
    figure = plot_impulse_response(response, channel=2)
    assert isinstance(figure, Figure)
    lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    assert [line.get_label() for line in lines][:4] == ["hidden 1", "hidden 2", "hidden 3", "hidden 4"]
    torch.testing.assert_close(torch.as_tensor(lines[0].get_ydata()), response.compartments[2, 0])
    with pytest.raises(ValueError, match=r"channel must be in 0\.\.2, got 3"):
        plot_impulse_response(response, channel=3)
    with pytest.raises(ValueError, match="T must be at least 1"):
        impulse_response(trained_pmsn, 0)
    figure = plot_oscillations(oscillations(nn.Sequential(trained_pmsn, TCLIFLayer())))
    assert all("time step" in ax.get_xlabel() for ax in figure.axes)
    plot_oscillations(oscillations(TCLIFLayer()))  # nothing damped
