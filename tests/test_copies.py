"""Copies, pickles and averages of nets in the middle of training: states on a graph, copied without it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

C = 3
STEP, SEQUENCE = (2, C), (4, 2, C)


def spikingjelly(kind, **options):
    pytest.importorskip("spikingjelly")
    from pmsn_plugins import spikingjelly as sj

    channels = (C,) if kind in ("PMSNNode", "RecurrentTCLIFNode") else ()
    return getattr(sj, kind)(*channels, store_v_seq=True, **options)


def snntorch(kind, **options):
    pytest.importorskip("snntorch")
    from pmsn_plugins import snntorch as snn

    return getattr(snn, kind)(*((C,) if kind == "PMSN" else ()), init_hidden=True, **options)


NEURONS = {
    **{
        f"{kind} {mode}": (lambda kind=kind, mode=mode: spikingjelly(kind, step_mode=mode), shape)
        for kind in ("PMSNNode", "TCLIFNode", "RecurrentTCLIFNode", "MultiCompartmentNode")
        for mode, shape in (("s", STEP), ("m", SEQUENCE))
    },
    "PMSN": (lambda: snntorch("PMSN"), SEQUENCE),
    "PMSN s": (lambda: snntorch("PMSN", step_mode="s"), STEP),
    "RTCLIF": (lambda: snntorch("RTCLIF", linear_features=C), STEP),
    "RTCLIF m": (lambda: snntorch("RTCLIF", linear_features=C, step_mode="m"), SEQUENCE),
    "TCLIF": (lambda: snntorch("TCLIF", learn_threshold=True, graded_spikes_factor=2.0), STEP),
}


def saved(net):
    file = io.BytesIO()
    torch.save(net, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "torch.save": saved,
}


@pytest.fixture(params=NEURONS.values(), ids=NEURONS)
def trained(request):
    """A net after a training step, its neuron, and an input."""
    make, shape = request.param
    neuron = make()
    net = nn.Sequential(nn.Linear(C, C), neuron)
    x = torch.rand(shape)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(x).sum().backward()
    optimizer.step()
    return net, neuron, x


def states(neuron):
    if hasattr(neuron, "state_names"):
        return {**{name: getattr(neuron, name) for name in neuron.state_names}, "v_seq": neuron.v_seq}
    return {name: getattr(neuron, name) for name in neuron._hidden}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_has_detached_states_of_its_own(trained, copied):
    net, neuron, x = trained
    assert any(state.requires_grad for state in states(neuron).values())
    before = {name: state.detach().clone() for name, state in states(neuron).items()}
    other = copied(neuron)
    for name, state in states(other).items():
        assert torch.equal(state, before[name]) and not state.requires_grad, name
    other(net[0](x))  # the copy goes on from its states, and the original does not notice
    for state in states(other).values():
        state.detach().fill_(7.0)
    assert any(state.requires_grad for state in states(neuron).values())
    assert all(torch.equal(state, before[name]) for name, state in states(neuron).items())


def test_a_copy_of_a_net_goes_on_as_the_net_does(trained):
    net, _, x = trained
    other = copy.deepcopy(net)
    for _ in range(3):
        assert torch.equal(other(x), net(x))


def test_states_of_a_copy_can_be_written_in_place(trained):
    _, neuron, _ = trained
    other = copy.copy(neuron)
    for state in states(other).values():
        state.fill_(7.0)
    assert not any((state == 7.0).any() for state in states(neuron).values())


@pytest.mark.parametrize("average", [{}, {"multi_avg_fn": get_ema_multi_avg_fn(0.9)}], ids=["SWA", "EMA"])
def test_averaged_model(trained, average):
    net, _, x = trained
    averaged = AveragedModel(net, **average)
    for _ in range(2):
        averaged.update_parameters(net)
    for parameter, expected in zip(averaged.module.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected)
    assert torch.equal(averaged(x), net(x))
