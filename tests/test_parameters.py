"""Optimiser groups, checkpoint checks and the shared parameter mixins."""

import pytest
import torch
from torch import nn

from pmsn_plugins import param_groups
from pmsn_plugins.functional import PMSNParameters
from pmsn_plugins.parameters import PMSNParametersMixin, TCLIFParametersMixin


class PMSN(PMSNParametersMixin, nn.Module):
    def __init__(self, channels=3, n_compartments=5, preset="sequential", **changes):
        super().__init__()
        self._create_parameters(channels, n_compartments, preset, **changes)


class TCLIF(TCLIFParametersMixin, nn.Module):
    def __init__(self, beta=(-0.5, 0.5), channels=None, beta_range=None):
        super().__init__()
        self._create_parameters(beta, channels, beta_range)


def names_by_rate(net, groups):
    names = {id(p): n for n, p in net.named_parameters()}
    return {(g["lr"], g["weight_decay"]): {names[id(p)] for p in g["params"]} for g in groups}


def test_param_groups():
    neuron = PMSN()
    net = nn.Sequential(nn.Linear(2, 3), neuron, TCLIF(), neuron)
    groups = param_groups(net, lr=1e-2, neuron_lr=1e-3, weight_decay=0.1)
    assert names_by_rate(net, groups) == {
        (1e-2, 0.1): {"0.weight", "0.bias", "1.D"},
        (1e-3, 0.0): {"1.log_dt", "1.log_decay", "2.c1", "2.c2"},
        (1e-2, 0.0): {"1.freq", "1.B_real", "1.B_imag", "1.R_real", "1.R_imag"},
    }
    torch.optim.AdamW(groups)  # refuses parameters that appear twice
    assert names_by_rate(neuron, neuron.param_groups(lr=0.5, neuron_lr=0.1))[0.5, 0.0] == {"D"}


def test_param_groups_by_name():
    """The authors' scripts: weight decay of B_real, or B and R at neuron_lr."""
    net = nn.Sequential(nn.Linear(2, 3), PMSN(), TCLIF())
    decayed = param_groups(net, 1e-2, 1e-3, 0.1, neuron_weight_decays={"B_real": 0.01, "c1": 0.02})
    assert names_by_rate(net, decayed) == {
        (1e-2, 0.1): {"0.weight", "0.bias", "1.D"},
        (1e-3, 0.0): {"1.log_dt", "1.log_decay", "2.c2"},
        (1e-3, 0.02): {"2.c1"},
        (1e-2, 0.0): {"1.freq", "1.B_imag", "1.R_real", "1.R_imag"},
        (1e-2, 0.01): {"1.B_real"},
    }
    scales = dict.fromkeys(("B_real", "B_imag", "R_real", "R_imag"), 1.0)
    scaled = net[1].param_groups(1e-2, 1e-3, neuron_lr_scales=scales)
    names = {id(p): n for n, p in net[1].named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in scaled for p in group["params"]}
    slow = ("log_dt", "log_decay", *scales)
    assert rates == {name: 1e-3 if name in slow else 1e-2 for name in PMSNParameters._fields}


@pytest.mark.parametrize("option", ["neuron_lr_scales", "neuron_weight_decays"])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ({"B": 1.0}, ValueError, "has no option 'B'; its options are: B_imag, B_real, R_imag"),
        ({"D": 1.0}, ValueError, "has no option 'D'"),
        ({"freq": -1.0}, ValueError, r"\['freq'\] must be a finite number"),
        ({"freq": "1"}, TypeError, r"\['freq'\] must be a real number, got '1'"),
        ([("freq", 1.0)], TypeError, "must be a mapping of names to numbers"),
    ],
)
def test_rates_by_name_that_make_no_sense(option, value, error, message):
    with pytest.raises(error, match=f"{option} ?{message}"):
        param_groups(PMSN(), 1e-2, 1e-3, **{option: value})


def test_frozen_parameters_are_left_out():
    net = PMSN()
    net.freq.requires_grad_(False)
    assert all(p is not net.freq for g in param_groups(net, 1e-2, 1e-3) for p in g["params"])


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        (name, value, error, message)
        for name in ("lr", "neuron_lr")
        for value, error, message in [
            (0, ValueError, "must be a finite number above 0, got 0"),
            (-1.0, ValueError, "must be a finite number above 0, got -1.0"),
            (float("nan"), ValueError, "must be a finite number above 0, got nan"),
            (float("inf"), ValueError, "must be a finite number above 0, got inf"),
            ("1e-3", TypeError, "must be a real number, got '1e-3'"),
            (None, TypeError, "must be a real number, got None"),
            (True, TypeError, "must be a real number, got True"),
            (torch.tensor(1), TypeError, "must be a real floating-point tensor"),
            (torch.ones(2), ValueError, "must be one number"),
        ]
    ]
    + [
        ("weight_decay", float("nan"), ValueError, "must be finite, got nan"),
        ("weight_decay", -1, ValueError, "must be a finite number, 0 or more, got -1"),
        ("weight_decay", float("inf"), ValueError, "must be finite, got inf"),
        ("weight_decay", "0", TypeError, "must be a real number, got '0'"),
        ("weight_decay", None, TypeError, "must be a real number, got None"),
        ("module", None, TypeError, "must be a torch.nn.Module, got None"),
        ("module", [], TypeError, r"must be a torch.nn.Module, got \[\]"),
    ],
)
def test_param_groups_that_make_no_sense(name, value, error, message):
    arguments = {"module": PMSN(), "lr": 1e-2, "neuron_lr": 1e-3, name: value}
    with pytest.raises(error, match=f"{name} {message}"):
        param_groups(**arguments)
    if name != "module":
        neuron = arguments.pop("module")
        with pytest.raises(error, match=f"{name} {message}"):
            neuron.param_groups(**arguments)


def test_a_learning_rate_may_be_a_tensor():
    """Optimisers take one, so that a captured graph can change it."""
    groups = param_groups(PMSN(), lr=torch.tensor(0.5), neuron_lr=torch.tensor(0.25))
    assert {float(group["lr"]) for group in groups} == {0.5, 0.25, 2.5}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_broken_checkpoint_changes_nothing(bad):
    neuron = PMSN()
    before = {n: p.clone() for n, p in neuron.named_parameters()}
    checkpoint = {n: torch.zeros_like(p) for n, p in neuron.named_parameters()}
    checkpoint["freq"][1, 2] = bad
    with pytest.raises(RuntimeError, match=r"NaN or infinite values in freq"):
        neuron.load_state_dict(checkpoint)
    for n, p in neuron.named_parameters():
        assert torch.equal(p, before[n])


def test_parameters_have_the_documented_shapes():
    neuron = PMSN(channels=6, n_compartments=9)
    shapes = {n: tuple(p.shape) for n, p in neuron.named_parameters()}
    assert shapes == {n: (6,) if n in ("log_dt", "D") else (6, 8) for n in PMSNParameters._fields}


def test_reset_parameters_keeps_to_the_range_and_the_coupling_that_were_asked_for():
    neuron = PMSN(64, dt_range=(0.5, 0.6), coupling=0.0)
    neuron.reset_parameters()
    dt = neuron.log_dt.exp()
    assert dt.min() > 0.49 and dt.max() < 0.61 and (neuron.freq == 0).all()


def test_reset_parameters_draws_the_initial_values_again():
    neuron = PMSN(64)
    torch.manual_seed(0)
    neuron.reset_parameters()
    first = neuron.D.clone()
    with torch.no_grad():
        neuron.freq.zero_()
    torch.manual_seed(0)
    neuron.reset_parameters()
    assert torch.equal(neuron.D, first)
    assert neuron.freq.abs().max() > 1


@pytest.mark.parametrize("channels", [None, 4])
def test_couplings_return_beta(channels):
    neuron = TCLIF(beta=(-0.2, 0.8), channels=channels)
    b1, b2 = neuron.couplings(step_ndim=4)
    assert b1.shape == (() if channels is None else (4, 1, 1))
    torch.testing.assert_close(b1, torch.full_like(b1, -0.2))
    torch.testing.assert_close(b2, torch.full_like(b2, 0.8))


@pytest.mark.parametrize(
    "beta", [(0.5, 0.5), (-0.5, -0.5), (-1.0, 0.5), (-0.5, 1.0), (-0.5, float("nan")), (0.5,), (-0.5, 0.5, 0.5), []]
)
def test_beta_outside_the_second_quadrant(beta):
    with pytest.raises(ValueError, match="beta must be"):
        TCLIF(beta=beta)


@pytest.mark.parametrize(
    "beta", [("-0.5", "0.5"), "12", 0.5, None, (None, 0.5), (True, 0.5), (-0.5, 1j), [[-0.5], 0.5]]
)
def test_beta_that_is_no_pair_of_numbers(beta):
    with pytest.raises(TypeError, match=r"beta must be (two numbers \(b1, b2\)|a real number), got"):
        TCLIF(beta=beta)


def test_beta_range_spreads_the_couplings():
    torch.manual_seed(0)
    b1, b2 = TCLIF(channels=2000, beta_range=(0.03, 0.9)).couplings(step_ndim=2)
    for size in (-b1, b2):
        assert 0.03 <= size.min() < 0.031 and 0.89 < size.max() <= 0.9
        torch.testing.assert_close(size.log().mean(), torch.tensor(0.03 * 0.9).log() / 2, atol=0.1, rtol=0)
    assert torch.corrcoef(torch.stack([b1, b2]))[0, 1].abs() < 0.1
    torch.set_default_dtype(torch.float64)
    try:
        assert TCLIF(channels=2, beta_range=(0.5, 0.5)).c1.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("beta_range", "error", "message"),
    [
        ((0.5, 0.1), ValueError, r"0 < low <= high, got \(0.5, 0.1\)"),
        ((0.1, 1.0), ValueError, r"0 < low <= high < 1, got \(0.1, 1.0\)"),
        ((0.0, 0.5), ValueError, "beta_range must be a finite number above 0, got 0.0"),
        (0.5, TypeError, r"beta_range must be two numbers \(low, high\), got 0.5"),
    ],
)
def test_beta_range_that_is_none(beta_range, error, message):
    with pytest.raises(error, match=message):
        TCLIF(channels=2, beta_range=beta_range)
    with pytest.raises(ValueError, match=r"one pair of couplings per channel, got \(0.1, 0.5\) without channels"):
        TCLIF(beta_range=(0.1, 0.5))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("preset", ["sequential", "static"])
def test_parameters_have_the_default_dtype(dtype, preset):
    torch.manual_seed(3)
    expected = [p.detach() for p in PMSN(5, preset=preset).parameters()]
    try:
        torch.set_default_dtype(dtype)
        torch.manual_seed(3)
        actual = [p.detach() for p in PMSN(5, preset=preset).parameters()]
        assert all(p.dtype == dtype for p in TCLIF(channels=2).parameters())
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(p.dtype == torch.float32 for p in expected)
    assert all(p.dtype == dtype for p in actual)
    for a, e in zip(actual, expected, strict=True):  # the same neurons, whatever the dtype
        torch.testing.assert_close(a.float(), e, rtol=1e-2 if dtype == torch.bfloat16 else 1e-7, atol=0)
