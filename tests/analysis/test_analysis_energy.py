"""Energy: the paper's Table 3, hand counts, SpikingJelly's counters, and what cannot be counted."""

import warnings
from itertools import pairwise

import pytest
import torch
from torch import nn

from pmsn_plugins import analysis as A
from pmsn_plugins.analysis import energy

neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
layer = pytest.importorskip("spikingjelly.activation_based.layer")
SIZES, RECURRENT = (1, 64, 256, 256), (True, True, False)


def table_3(rates, cost):
    rates = (0.0, *rates)
    return 1e-3 * sum(
        A.step_energy(m, n, rates[i], rates[i + 1], cost, recurrent=RECURRENT[i])
        for i, (m, n) in enumerate(pairwise(SIZES))
    )


def test_table_3_of_the_tclif_paper():
    lstm = 1e-3 * sum(
        A.lstm_step_energy(m, n, recurrent=r) for (m, n), r in zip(pairwise(SIZES), RECURRENT, strict=True)
    )
    assert lstm == pytest.approx(2834.7, rel=1e-4)
    assert table_3((0.219, 0.145, 0.004), energy.LIF_COST) == pytest.approx(23.8, rel=0.01)
    assert table_3((0.294, 0.146, 0.030), energy.TCLIF_COST) == pytest.approx(28.2, rel=0.01)


def test_hand_count_of_a_small_net():
    # 3 inputs -> 4 LIF -> 2 LIF, T = 5, N = 2
    first = nn.Linear(3, 4, bias=False)
    net = nn.Sequential(first, lif(), nn.Linear(4, 2), lif())
    nn.init.constant_(first.weight, 2.0)
    nn.init.constant_(net[2].weight, -1.0)
    nn.init.constant_(net[2].bias, 0.0)
    x = torch.full((5, 2, 3), 0.5)  # no spikes: MACs
    with pytest.warns(UserWarning, match="3: no neuron of the layer fires"):
        report = A.measure_energy(net, [(x, torch.zeros(2))])
    rows = {row.name: row for row in report.layers}
    fired = 4 * 5  # membrane 1.5, 2.25 - ..., >= 1 at every step: every neuron, every step
    assert rows["1"].rate == 1.0
    assert (rows["0"].mac, rows["0"].ac) == (5 * 3 * 4, 0)
    assert (rows["1"].mac, rows["1"].ac) == (5 * 4, fired)
    assert (rows["2"].mac, rows["2"].ac) == (0, fired * 2)
    assert (rows["3"].mac, rows["3"].ac) == (5 * 2, 0)
    assert report.mac == 60 + 20 + 10 and report.ac == 20 + 40 and report.samples == 2
    assert report.energy_nj == pytest.approx(1e-3 * (90 * 4.6 + 60 * 0.9))


def test_measured_energy_equals_the_formula():
    torch.manual_seed(0)
    m, n, T, N = 6, 5, 20, 4
    net = nn.Sequential(nn.Linear(m, n), tclif())
    x = (torch.rand(T, N, m) < 0.4).float()
    with torch.no_grad():
        net[0].weight.mul_(3)
    report = A.measure_energy(net, [(x, torch.zeros(N))])
    expected = A.step_energy(m, n, x.mean().item(), report.layers[1].rate, energy.TCLIF_COST)
    assert report.energy_nj == pytest.approx(1e-3 * T * expected, rel=1e-6)


def lif():
    return neuron.LIFNode(tau=2.0, v_reset=None, decay_input=False, step_mode="m")


def tclif():
    from pmsn_plugins.spikingjelly import TCLIFNode

    return TCLIFNode(step_mode="m")


@pytest.mark.parametrize(
    "weights",
    [
        layer.Linear(6, 4, step_mode="m"),
        layer.Conv2d(3, 4, 3, padding=1, step_mode="m"),
        layer.Conv2d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, bias=False, step_mode="m"),
        layer.Conv1d(3, 4, 5, step_mode="m"),
    ],
    ids=["linear", "conv2d", "grouped", "conv1d"],
)
@pytest.mark.parametrize("spiking", [True, False])
def test_agreement_with_spikingjelly_counters(weights, spiking):
    op_counter = pytest.importorskip("spikingjelly.activation_based.op_counter")
    if not hasattr(op_counter, "SynOpCounter"):
        pytest.skip("op counters came with SpikingJelly 2.0")
    torch.manual_seed(0)
    shape = {layer.Linear: (6,), layer.Conv1d: (3, 9)}.get(type(weights), (getattr(weights, "in_channels", 0), 8, 7))
    x = torch.rand(3, 2, *shape)
    x = (x < 0.3).float() if spiking else x
    always = neuron.IFNode(v_threshold=1e-6, v_reset=None, step_mode="m")
    net = nn.Sequential(always, weights) if spiking else nn.Sequential(weights, always)
    if not spiking:
        nn.init.constant_(weights.weight, 0.5)
    synops, macs = op_counter.SynOpCounter(), op_counter.MACCounter()
    with torch.no_grad(), op_counter.DispatchCounterMode([synops, macs]):
        weights(always(x) if spiking else x)
    always.reset()
    (row,) = [row for row in A.measure_energy(net, [(x, torch.zeros(2))]).layers if row.rate is None]
    assert row.ac * 2 == synops.get_total()
    assert row.mac * 2 == macs.get_total()
    assert (row.ac > 0) == spiking and (row.mac > 0) == (not spiking)


def test_added_spikes_count_as_many():
    net = nn.Sequential(nn.Linear(2, 3, bias=False), neuron.IFNode(v_reset=None, step_mode="m"))
    nn.init.constant_(net[0].weight, 1.0)
    report = A.measure_energy(net, [(torch.tensor([[[2.0, 1.0]]]), torch.zeros(1))])
    assert report.layers[0].ac == (2 + 1) * 3


def test_both_kinds_of_our_layers_cost_the_same_in_both_frameworks():
    from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode

    assert A.pmsn_cost(5) == PMSNNode(2).step_operations == (25, 5, 1)
    assert TCLIFNode().step_operations == energy.TCLIF_COST
    leaky = TCLIFNode(leak=(1.0, 0.9))
    assert leaky.step_operations == energy._neuron_cost("leaky", leaky, {}) == (3, 0, 2)
    for reset_mode, cost in {"cumulative": (13, 3, 0), "memoryless": (13, 2, 0), "serial": (13, 3, 1)}.items():
        assert A.pmsn_cost(3, reset_mode) == PMSNNode(2, 3, reset_mode=reset_mode).step_operations == cost
    pytest.importorskip("snntorch")
    from pmsn_plugins.snntorch import PMSN

    torch.manual_seed(0)
    x = torch.rand(6, 2, 3)
    node, ours = PMSNNode(3, step_mode="m", preset="static"), PMSN(3, preset="static")
    ours.load_state_dict(node.state_dict())
    batches = [(x, torch.zeros(2))]
    with pytest.warns(UserWarning, match="PMSNNode are all alike, as before training"):
        expected = A.measure_energy(node, batches).energy_nj
    with torch.no_grad():
        ours.freq[0] += 1e-6  # "trained"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert A.measure_energy(ours, batches).energy_nj == expected


def test_psn_family():
    T, x = 8, torch.rand(8, 2, 3) + 1.0
    assert A.psn_cost(8).mac == 8 and A.sliding_psn_cost(4).mac == 4
    if not hasattr(neuron, "PSN"):
        pytest.skip("this SpikingJelly has no PSN")
    for node, mac in ((neuron.PSN(T), T), (neuron.SlidingPSN(4, step_mode="m"), 4)):
        nn.init.constant_(node.weight, 1.0)
        report = A.measure_energy(node, [(x, torch.zeros(2))])
        assert (report.mac, report.ac) == (mac * T * 3, 0)


def test_recurrent_tclif_costs_what_the_formula_says():
    from pmsn_plugins.models import feedforward, neuron_factory

    torch.manual_seed(0)
    net = feedforward((6, 5, 4), neuron_factory("tclif", v_threshold=0.5), feedback=(0,))
    x = (torch.rand(20, 4, 6) < 0.4).float()
    rows = {row.name: row for row in A.measure_energy(net, [(x, torch.zeros(4))]).layers}
    rate = rows["1"].rate
    formula = A.step_energy(6, 5, x.mean().item(), rate, energy.TCLIF_COST, recurrent=True)
    assert rate > 0.1 and set(rows) == {"0", "1", "2"}
    assert rows["0"].energy_nj + rows["1"].energy_nj == pytest.approx(20e-3 * formula, rel=1e-5)


def test_recurrent_snntorch_layers():
    snntorch = pytest.importorskip("pmsn_plugins.snntorch")
    torch.manual_seed(0)
    x = 2 * torch.rand(20, 4, 3)
    for options, fan_out in (({"linear_features": 3}, 3), ({"all_to_all": False, "V": -0.5}, 1)):
        layer = snntorch.RTCLIF(step_mode="m", init_hidden=True, **options)
        (row,) = A.measure_energy(layer, [(x, torch.zeros(4))]).layers
        assert row.rate > 0 and row.ac == pytest.approx(row.rate * 20 * 3 * (2 + fan_out))


def test_recurrent_container_and_lazy_batches():
    from pmsn_plugins.models import feedforward, neuron_factory

    torch.manual_seed(0)
    net = feedforward((2, 3, 2), neuron_factory("lif"), feedback=(0,))
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    batches = ((torch.ones(4, n, 2), torch.zeros(n)) for n in (2, 1))
    report = A.measure_energy(net, batches)
    rows = {row.name: row for row in report.layers}
    spikes_per_sample = next(row.rate for row in report.layers if row.rate) * 3 * 4
    (feedback,) = [row for name, row in rows.items() if name.endswith("linear")]
    assert report.samples == 3
    assert 0 < feedback.ac <= 3 * spikes_per_sample and feedback.mac == 0  # the last step's spikes go nowhere


def test_what_is_wrong_is_said():
    x, y = torch.rand(4, 2, 3), torch.zeros(2)
    net = nn.Sequential(nn.Linear(3, 3), lif())
    with pytest.raises(ValueError, match="batches is empty"):
        A.measure_energy(net, [])
    with pytest.raises(ValueError, match="batches is empty"):
        A.measure_energy(net, [(torch.zeros(4, 0, 3), torch.zeros(0))])
    with pytest.raises(ValueError, match="not one spike in 2 samples"):
        A.measure_energy(net, [(torch.zeros(4, 2, 3), y)])
    with pytest.raises(ValueError, match="Linear has no neuron layer"):
        A.measure_energy(nn.Linear(3, 3), [(x, y)])
    with pytest.raises(ValueError, match="compiled"):
        A.measure_energy(torch.compile(net), [(x, y)])
    with pytest.raises(ValueError, match=r"operations of 0 \(LSTM\) are not known"):
        A.measure_energy(nn.Sequential(nn.LSTM(3, 3), lif()), [(x, y)])
    assert not any(module._forward_hooks for module in net.modules())


def test_costs_of_other_neurons():
    node = neuron.KLIFNode(step_mode="m")
    x, y = torch.full((4, 2, 3), 5.0), torch.zeros(2)
    with pytest.raises(ValueError, match=r"neuron layer KLIFNode \(KLIFNode\) are not known; pass costs=\{KLIFNode"):
        A.measure_energy(node, [(x, y)])
    report = A.measure_energy(node, [(x, y)], {neuron.KLIFNode: A.NeuronCost(3, 2, 0)})
    assert (report.mac, report.ac) == (3 * 12, 2 * 12)


@pytest.mark.parametrize(
    "arguments",
    [(0, 1, 0.1, 0.1), (1, 0, 0.1, 0.1), (1, 1, -0.1, 0.1), (1, 1, 0.1, float("nan"))],
)
def test_bad_formula_arguments(arguments):
    with pytest.raises(ValueError, match="must be"):
        A.step_energy(*arguments, energy.LIF_COST)


def test_figure():
    figure = A.plot_accuracy_energy([A.EnergyPoint("PMSN", 96.0, 400.0), A.EnergyPoint("LIF", 50.0, 90.0)])
    assert "nJ" in figure.axes[0].get_xlabel() and "%" in figure.axes[0].get_ylabel()
    with pytest.raises(ValueError, match="points is empty"):
        A.plot_accuracy_energy([])
    with pytest.raises(ValueError, match=r"energy_nj of 'LIF' must be a finite number above 0, got 0\.0"):
        A.plot_accuracy_energy([A.EnergyPoint("LIF", 50.0, 0.0)])
