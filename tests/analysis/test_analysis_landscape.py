"""Loss landscape of a net whose loss can be computed by hand, and that the net stays as it was."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from pmsn_plugins.analysis import Landscape, filter_normalised_direction, loss_landscape, plot_landscape


def squared(output, target):
    return (output - target).square().mean()


@pytest.fixture
def linear():
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    x = torch.randn(8, 3, dtype=torch.float64)
    return net, [(x[:5], net(x[:5]).detach()), (x[5:], net(x[5:]).detach())]


def test_landscape_of_a_quadratic_loss(linear):
    net, batches = linear
    landscape = loss_landscape(net, batches, squared, span=0.5, points=5, seed=3)
    generator = torch.Generator().manual_seed(3)
    first, second = (filter_normalised_direction(net, generator) for _ in range(2))
    x = torch.cat([x for x, _ in batches])
    for i, j in ((0, 0), (2, 2), (1, 4), (3, 2)):
        move = landscape.offset[i] * first["weight"] + landscape.offset[j] * second["weight"]
        # the targets are the net's own outputs, so only the move is left
        assert landscape.loss[i, j] == pytest.approx((x @ move.T).square().mean().item(), abs=1e-12)
    assert landscape.loss[2, 2] == 0.0
    np.testing.assert_allclose(landscape.offset, [-0.5, -0.25, 0.0, 0.25, 0.5])


def test_directions_are_filter_normalised():
    from pmsn_plugins.spikingjelly import PMSNNode

    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), PMSNNode(4))
    direction = filter_normalised_direction(net)
    for name, parameter in net.named_parameters():
        if parameter.ndim >= 2:
            torch.testing.assert_close(direction[name].flatten(1).norm(dim=1), parameter.flatten(1).norm(dim=1))
        else:
            assert not direction[name].any()
    assert "2.freq" in direction and direction["2.freq"].any()


def test_a_spiking_net_stays_as_it_was():
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    from pmsn_plugins.models import neuron_factory, residual

    torch.manual_seed(0)
    net = residual(1, 8, 1, 3, neuron_factory("pmsn"))
    batches = [(torch.rand(6, 4, 1), torch.tensor([0, 1, 2, 0]))]
    loss = lambda out, y: nn.functional.cross_entropy(out.mean(0), y)  # noqa: E731
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        landscape = loss_landscape(net, batches, loss, points=3)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training and all(parameter.grad is None for parameter in net.parameters())
    net.eval()
    functional.reset_net(net)
    assert landscape.loss[1, 1] == pytest.approx(loss(net(batches[0][0]), batches[0][1]).item(), rel=1e-5)


def test_what_is_wrong_is_said(linear):
    net, batches = linear
    with pytest.raises(ValueError, match="batches is empty"):
        loss_landscape(net, [], squared, points=3)
    with pytest.raises(TypeError, match="generator can be read once"):
        loss_landscape(net, (batch for batch in batches), squared, points=3)
    with pytest.raises(ValueError, match=r"points must be odd.*got 4"):
        loss_landscape(net, batches, squared, points=4)
    with pytest.raises(ValueError, match="compiled"):
        loss_landscape(torch.compile(net), batches, squared)
    with pytest.raises(ValueError, match="no parameter with two or more axes"):
        loss_landscape(nn.BatchNorm1d(3), batches, squared)
    with pytest.warns(UserWarning, match=r"lower loss than the net itself.*is it trained"):
        loss_landscape(net, batches, lambda out, y: -squared(out, y), points=3)


def test_figure():
    offset = np.linspace(-1, 1, 7)
    loss = offset[:, None] ** 2 + offset[None, :] ** 2
    loss[0, 0] = np.inf
    figure = plot_landscape(Landscape(offset, loss))
    assert {ax.name for ax in figure.axes} == {"3d", "rectilinear"}
    with pytest.raises(ValueError, match="no point of the landscape has a finite loss"):
        plot_landscape(Landscape(offset, np.full((7, 7), np.nan)))
