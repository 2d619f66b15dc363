"""register() and unregister(), and training through snntorch.backprop."""

import warnings

import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from snntorch import utils
from torch import nn

from pmsn_plugins import swap_neurons
from pmsn_plugins.snntorch import PMSN, RTCLIF, TCLIF, register, reset, unregister

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from snntorch import backprop

T, B, C = 8, 10, 6


@pytest.fixture
def registered():
    register()
    yield
    unregister()


def snapshot():
    return {
        **{("snn", name): value for name, value in vars(snn).items()},
        **{("utils", name): value for name, value in vars(utils).items()},
        **{("backprop", name): value for name, value in vars(backprop).items()},
    }


def test_register_is_idempotent_and_undone_exactly():
    before = snapshot()
    register()
    once = snapshot()
    assert snn.PMSN is PMSN and snn.TCLIF is TCLIF and snn.RTCLIF is RTCLIF
    assert once != before
    register()
    assert snapshot() == once
    unregister()
    assert snapshot() == before
    unregister()
    assert snapshot() == before


def test_a_name_that_snntorch_may_have_one_day_comes_back(monkeypatch):
    theirs = object()
    monkeypatch.setattr(snn, "PMSN", theirs, raising=False)
    register()
    assert snn.PMSN is PMSN
    unregister()
    assert snn.PMSN is theirs


def test_registering_does_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register()
    unregister()


def test_utils_reset_reaches_nested_layers(registered):
    pmsn, other = (PMSN(C, init_hidden=True, step_mode="s") for _ in range(2))
    net = nn.Sequential(nn.Linear(C, C), nn.Sequential(pmsn, TCLIF(init_hidden=True)))
    x = torch.rand(B, C)
    first = net(x)
    other(x)
    utils.reset(net)
    assert torch.equal(net(x), first)
    assert other.mem.numel() > 0


def test_snntorch_layers_are_reset_as_before(registered):
    net = nn.Sequential(snn.Leaky(0.9, init_hidden=True))
    net(torch.ones(B, C))
    utils.reset(net)
    assert not net[0].mem.any()


def test_number_of_outputs(registered):
    assert utils._final_layer_check(nn.Sequential(nn.Linear(C, C), PMSN(C))) == 2
    assert utils._final_layer_check(nn.Sequential(nn.Linear(C, C), TCLIF())) == 3
    assert utils._final_layer_check(nn.Sequential(nn.Linear(C, C), TCLIF(single_state=True))) == 2
    assert utils._final_layer_check(nn.Sequential(nn.Linear(C, C), RTCLIF(linear_features=C))) == 3
    assert utils._final_layer_check(nn.Sequential(PMSN(C), nn.Linear(C, C))) == 1


def net_of(kind, readout):
    if kind == "Leaky -> TCLIF":
        torch.manual_seed(0)
        hidden, last = (snn.Leaky(0.9, threshold=0.3, init_hidden=True, output=output) for output in (False, True))
        net = nn.Sequential(nn.Linear(C, 12), hidden, nn.Linear(12, 2), last)
        swap_neurons(net, TCLIF)
        return net

    def neuron(channels, output=False):
        if kind == "PMSN":
            return PMSN(channels, init_hidden=True, step_mode="s", output=output)
        options = {"beta": (-0.2, 0.8), "threshold": 0.3, "init_hidden": True, "output": output}
        return RTCLIF(linear_features=channels, **options) if kind == "RTCLIF" else TCLIF(**options)

    torch.manual_seed(0)
    last = neuron(2, output=True) if readout == "same" else snn.Leaky(0.9, init_hidden=True, output=True)
    return nn.Sequential(nn.Linear(C, 12), neuron(12), nn.Linear(12, 2), last)


def batches():
    x = 3 * torch.rand(25, C, generator=torch.Generator().manual_seed(1))
    return list(zip(x.split(B), (x.sum(1) > 1.5 * C).long().split(B), strict=True))  # the last batch is smaller


def train_by_hand(net, optimizer, window):
    for x, y in batches():
        reset(net)
        for start in range(0, T, window):
            spk_rec = torch.stack([net(x)[0] for _ in range(start, min(start + window, T))])
            optimizer.zero_grad()
            SF.ce_count_loss()(spk_rec, y).backward()
            optimizer.step()
            for layer in net:
                for name in ("spk", "syn", "mem", "h_real", "h_imag"):
                    if hasattr(layer, name):
                        setattr(layer, name, getattr(layer, name).detach())


def assert_trains_like_a_loop(kind, readout, algorithm, window):
    net, by_hand = net_of(kind, readout), net_of(kind, readout)
    before = [p.clone() for p in net.parameters()]
    train_by_hand(by_hand, torch.optim.SGD(by_hand.parameters(), lr=0.1), window)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    options = {"K": window} if algorithm == "TBPTT" else {}
    getattr(backprop, algorithm)(
        net, batches(), optimizer, criterion=SF.ce_count_loss(), num_steps=T, time_var=False, **options
    )
    for got, want, start in zip(net.parameters(), by_hand.parameters(), before, strict=True):
        torch.testing.assert_close(got, want)
        assert not torch.equal(got, start)
    assert not optimizer._optimizer_step_post_hooks


ALGORITHMS = pytest.mark.parametrize(("algorithm", "window"), [("BPTT", T), ("TBPTT", 3), ("TBPTT", 4), ("RTRL", 1)])


@ALGORITHMS
@pytest.mark.parametrize(
    ("kind", "readout"),
    [("PMSN", "same"), ("PMSN", "Leaky"), ("TCLIF", "same"), ("RTCLIF", "same"), ("Leaky -> TCLIF", "")],
)
def test_backprop_knows_our_layers_without_registration(kind, readout, algorithm, window):
    assert_trains_like_a_loop(kind, readout, algorithm, window)


@ALGORITHMS
@pytest.mark.parametrize("readout", ["same", "Leaky"])
@pytest.mark.parametrize("kind", ["PMSN", "TCLIF", "RTCLIF", "Leaky -> TCLIF"])
def test_backprop_trains_registered_layers(registered, kind, readout, algorithm, window):
    assert_trains_like_a_loop(kind, readout, algorithm, window)


def test_a_failing_run_leaves_no_hook_behind(registered):
    net = net_of("PMSN", "same")
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="num_steps"):
        backprop.TBPTT(net, batches(), optimizer, criterion=SF.ce_count_loss(), num_steps=T, time_var=True)
    assert not optimizer._optimizer_step_post_hooks


def test_backprop_in_steps_is_backprop_of_the_sequence(registered):
    """BPTT step by step and plain back-propagation through the sequence form update the same weights alike."""
    net = net_of("PMSN", "same")
    sequence = nn.Sequential(nn.Linear(C, 12), PMSN(12, output=False), nn.Linear(12, 2), PMSN(2, output=False))
    sequence.load_state_dict(net.state_dict())
    (x, y), criterion = batches()[0], SF.ce_count_loss()
    loss = backprop.BPTT(
        net, [(x, y)], torch.optim.SGD(net.parameters(), lr=0.1), criterion=criterion, num_steps=T, time_var=False
    )
    want = criterion(sequence(x.expand(T, *x.shape)), y)
    want.backward()
    torch.optim.SGD(sequence.parameters(), lr=0.1).step()
    torch.testing.assert_close(loss, want)
    for got, expected in zip(net.parameters(), sequence.parameters(), strict=True):
        torch.testing.assert_close(got, expected)
