"""Bad arguments of the networks' builders: the error names the argument, its value and what is allowed."""

import pytest
import torch
from torch import nn

from pmsn_plugins.models import (
    column_cifar,
    count_parameters,
    feedforward,
    load_torchvision_resnet,
    neuron_factory,
    pixel_cifar,
    reset_states,
    residual,
    sew_resnet_static,
    spiking_layers,
)
from pmsn_plugins.spikingjelly import sew_resnet

TCLIF = neuron_factory("tclif")
NAN, INF = float("nan"), float("inf")

GOOD = {
    feedforward: {"widths": (3, 4, 2), "neuron": TCLIF},
    residual: {"in_features": 1, "width": 2, "blocks": 1, "num_classes": 2, "neuron": TCLIF},
    pixel_cifar: {"neuron": TCLIF},
    column_cifar: {"neuron": TCLIF},
    sew_resnet_static: {"depth": 18, "neuron": TCLIF},
    sew_resnet: {"depth": 18, "neuron_factory": TCLIF},
}
BUILDERS_WITH = {
    "neuron": (feedforward, residual, pixel_cifar, column_cifar, sew_resnet_static),
    "neuron_factory": (sew_resnet,),
    "num_classes": (residual, pixel_cifar, column_cifar, sew_resnet_static, sew_resnet),
    "depth": (sew_resnet_static, sew_resnet),
    "dropout": (feedforward, residual, pixel_cifar),
    "current_dropout": (feedforward,),
    "in_features": (residual,),
    "width": (residual,),
    "blocks": (residual,),
}
IS_NO_INTEGER = "must be an integer, got"
IS_NO_NUMBER = "must be a real number, got"


def expect(error, message, names, value):
    for name in names:
        for build in BUILDERS_WITH[name]:
            with pytest.raises(error, match=f"{name} {message}"):
                build(**{**GOOD[build], name: value})


@pytest.mark.parametrize("value", [None, "3", 3.0, True, NAN, [], torch.tensor(3)])
def test_sizes_that_are_no_integers(value):
    expect(TypeError, IS_NO_INTEGER, ("num_classes", "depth", "in_features", "width", "blocks"), value)
    for widths in ((value, 2), (3, value)):
        with pytest.raises(TypeError, match=f"widths {IS_NO_INTEGER}"):
            feedforward(widths, TCLIF)
    if value is not None:
        for name in ("pmsn", "psn", "lif"):
            with pytest.raises(TypeError, match=f"T {IS_NO_INTEGER}"):
                neuron_factory(name, T=value)
    with pytest.raises(TypeError, match=f"feedback {IS_NO_INTEGER}"):
        feedforward((3, 4, 2), TCLIF, feedback=(value,))


@pytest.mark.parametrize("value", [0, -1])
def test_sizes_that_are_too_small(value):
    expect(ValueError, f"must be at least 1, got {value}", ("num_classes", "in_features", "width"), value)
    expect(ValueError, "must be (at least 1|one of 18, 34, 50, 101, 152), got", ("depth",), value)
    with pytest.raises(ValueError, match=f"T must be at least 1, got {value}"):
        neuron_factory("psn", T=value)


@pytest.mark.parametrize("value", [None, 3, "34", NAN, object()])
def test_series_that_are_none(value):
    for name in ("widths", "feedback"):
        with pytest.raises(TypeError, match=f"{name} must be a series of integers, got"):
            feedforward(**{**GOOD[feedforward], name: value})


@pytest.mark.parametrize("value", [None, "0.1", True, [], 1j, torch.tensor(0.1)])
def test_rates_that_are_no_numbers(value):
    expect(TypeError, IS_NO_NUMBER, ("dropout", "current_dropout"), value)
    with pytest.raises(TypeError, match=f"input_scale {IS_NO_NUMBER}"):
        neuron_factory("pmsn", input_scale=value)


@pytest.mark.parametrize("value", [NAN, INF])
def test_rates_that_are_not_finite(value):
    expect(ValueError, "must be finite, got", ("dropout", "current_dropout"), value)
    with pytest.raises(ValueError, match="input_scale must be finite, got"):
        neuron_factory("pmsn", input_scale=value)


@pytest.mark.parametrize("value", [None, "pmsn", 1, []])
def test_factories_that_make_no_neurons(value):
    expect(TypeError, "must be a function that makes a neuron", ("neuron", "neuron_factory"), value)
    for build in (feedforward, residual, pixel_cifar, column_cifar):
        with pytest.raises(TypeError, match=r"what neuron makes must be a torch.nn.Module, got"):
            build(**{**GOOD[build], "neuron": lambda channels: value})


@pytest.mark.parametrize("value", [None, 5, [], True])
def test_choices(value):
    with pytest.raises(TypeError, match=r"name must be one of 'pmsn', .*, got"):
        neuron_factory(value)
    with pytest.raises(TypeError, match=r"framework must be one of 'spikingjelly', 'snntorch', got"):
        neuron_factory("pmsn", framework=value)
    for name in ("cnf", "step_mode"):
        with pytest.raises(TypeError, match=f"{name} must be one of '.*, got"):
            sew_resnet(18, TCLIF, **{name: value})


@pytest.mark.parametrize("value", [None, "net", [nn.Linear(1, 1)], nn.Linear])
def test_what_is_no_net(value):
    for call in (count_parameters, spiking_layers, reset_states, lambda net: load_torchvision_resnet(net, {})):
        with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got"):
            call(value)


def test_what_is_no_state_dict(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2))
    for value in (None, "state", [1], {"0.weight": 1}):
        with pytest.raises(TypeError, match=r"state must be a state_dict"):
            load_torchvision_resnet(net, value)
    for value in (18, True, object()):
        with pytest.raises(TypeError, match="init_from must be a path, got"):
            sew_resnet_static(18, TCLIF, init_from=value)
