"""snnTorch nets: loops with the states in the caller's hands, init_hidden in Sequential, time-first nets."""

import functools
import gc
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("snntorch")

import snntorch as snn
from snntorch import functional as SF
from snntorch import surrogate, utils

from pmsn_plugins import swap_neurons
from pmsn_plugins.snntorch import PMSN, RTCLIF, TCLIF
from pmsn_plugins.snntorch.instances import enlisted

sys.path.insert(0, str(Path(__file__).parent))
from swapping import check_swap, same, snapshot

T, B = 5, 3
GRAD = surrogate.fast_sigmoid(slope=25)
NEURONS = pytest.mark.parametrize("new", [PMSN, TCLIF], ids=["PMSN", "TCLIF"])
has_state_leaky = pytest.mark.skipif(not hasattr(snn, "StateLeaky"), reason="snnTorch 1.0")


class Loop(nn.Module):
    """Tutorial 5: fully connected, the membranes in the caller's loop, the same input at every step."""

    def __init__(self, **options):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.Leaky(beta=0.9, **options)
        self.fc2, self.lif2 = nn.Linear(8, 6), snn.Leaky(beta=0.9, **options)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(T):
            spk1, mem1 = self.lif1(4 * self.fc1(x), mem1)
            spk2, mem2 = self.lif2(4 * self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


class SynapticLoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.Synaptic(alpha=0.9, beta=0.8, spike_grad=GRAD)

    def forward(self, x):
        syn, mem = self.lif1.init_synaptic()
        rec = []
        for _ in range(T):
            spk, syn, mem = self.lif1(4 * self.fc1(x), syn, mem)
            rec.append(spk)
        return torch.stack(rec)


def convolutional():
    """Tutorials 6 and 7: init_hidden in a Sequential, the last neuron with its membrane."""
    options = {"beta": 0.5, "spike_grad": GRAD, "init_hidden": True}
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), snn.Leaky(**options), nn.Conv2d(4, 6, 3), nn.MaxPool2d(2),
        snn.Leaky(**options), nn.Flatten(), nn.Linear(6, 2), snn.Leaky(**options, output=True),
    )  # fmt: skip


class Convolutional(nn.Module):
    """The loop around it: reset, then the same input at every step."""

    def __init__(self):
        super().__init__()
        self.net = convolutional()

    def forward(self, x):
        utils.reset(self.net)
        spk_rec, mem_rec = zip(*(self.net(9 * x) for _ in range(T)), strict=True)
        return torch.stack(spk_rec), torch.stack(mem_rec)


class TimeFirst(nn.Module):
    """StateLeaky: whole sequences, no loop."""

    def __init__(self, channels_of_one=True):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.StateLeaky(beta=0.9, channels=8)
        self.fc2, self.lif2 = nn.Linear(8, 2), snn.StateLeaky(beta=0.9, channels=2)

    def forward(self, x):
        spk, _ = self.lif1(4 * self.fc1(x))
        return self.lif2(4 * self.fc2(spk))


@NEURONS
@pytest.mark.parametrize("sample", [True, False])
def test_tutorial_5(new, sample):
    build = functools.partial(Loop, spike_grad=GRAD, threshold=0.75)
    net, report = check_swap(build, new, torch.rand(B, 4), others=(torch.rand(1, 4),), sample=sample)
    assert report == {"lif1": 8, "lif2": 6}
    for lif in (net.lif1, net.lif2):
        assert isinstance(lif, new) and lif.threshold == 0.75 and lif.spike_grad is GRAD and lif.single_state
    settings = report.replacements[0].settings
    assert settings["spike_grad"] is GRAD and settings["threshold"] == 0.75 and "output" not in settings
    assert "spike_grad=fast_sigmoid" in str(report)
    y = torch.zeros(B, dtype=torch.long)
    SF.ce_rate_loss()(net(torch.rand(B, 4))[0], y).backward()
    if new is TCLIF:
        SF.ce_max_membrane_loss()(net(torch.rand(B, 4))[1], y).backward()


def test_synaptic_loops_take_tclif():
    net, report = check_swap(SynapticLoop, TCLIF, torch.rand(B, 4), others=(torch.rand(1, 4),))
    assert report == {"lif1": 8} and not net.lif1.single_state
    net, x = SynapticLoop(), torch.rand(B, 4)
    before = snapshot(net)
    with pytest.raises(
        ValueError, match=r"lif1: Synaptic returns \(spk, syn, mem\) and PMSN \(spk, mem\): put in TCLIF"
    ):
        swap_neurons(net, PMSN, x)
    assert same(before, snapshot(net))


@NEURONS
def test_tutorials_6_and_7(new):
    x, others = torch.rand(B, 1, 10, 10), (torch.rand(1, 1, 10, 10),)
    net, report = check_swap(Convolutional, new, x, others=others)
    assert report == {"net.2": 4, "net.5": 6, "net.8": 2}
    assert [m.output for m in (net.net[2], net.net[5], net.net[8])] == [False, False, True]
    assert all(m.init_hidden and m.spike_grad is GRAD for m in (net.net[2], net.net[5], net.net[8]))
    plain = convolutional()
    report = swap_neurons(plain, new)  # from the layers registered before
    assert report == {"2": 4, "5": 6, "8": 2}
    spk, mem = plain(9 * torch.rand(B, 1, 10, 10))
    assert spk.shape == mem.shape == (B, 2)


@has_state_leaky
def test_time_first():
    x, others = torch.rand(T, B, 4), (torch.rand(2 * T, 1, 4),)
    net, report = check_swap(TimeFirst, PMSN, x, others=others)
    assert report == {"lif1": 8, "lif2": 2} and net.lif1.step_mode == "m" and not net.lif1.init_hidden
    with pytest.raises(ValueError, match="lif1: StateLeaky takes whole sequences and TCLIF single steps: put in PMSN"):
        swap_neurons(TimeFirst(), TCLIF, x)
    net = nn.Sequential(nn.Linear(4, 8), snn.StateLeaky(beta=0.9, channels=8, output=False))
    with pytest.raises(ValueError, match="1: StateLeaky with output=False returns its membrane alone"):
        swap_neurons(net, PMSN, x)


@NEURONS
def test_what_has_weights_or_other_states_is_refused_by_name(new):
    for layer, message in (
        (snn.RLeaky(beta=0.9, linear_features=8), r"0: RLeaky has weights .*\(recurrent\).*, or put in RTCLIF"),
        (snn.RSynaptic(alpha=0.9, beta=0.9, linear_features=8), r"0: RSynaptic has weights of its own"),
        (snn.SLSTM(8, 8), r"0: SLSTM has weights of its own \(lstm_cell\)"),
        (snn.LeakyParallel(8, 8), r"0: LeakyParallel has weights of its own \(rnn\)"),
        (snn.Alpha(alpha=0.9, beta=0.8), r"0: Alpha returns other states than PMSN and TCLIF"),
    ):
        net = nn.Sequential(layer, nn.Linear(8, 8), snn.Leaky(0.9))
        before = snapshot(net)
        with pytest.raises(ValueError, match=message):
            swap_neurons(net, new, target=type(layer))
        assert same(before, snapshot(net))
        assert swap_neurons(net, new, exclude=type(layer)) == {"2": 8}
    hidden = nn.Sequential(nn.Linear(4, 8), snn.Alpha(alpha=0.9, beta=0.8, init_hidden=True), nn.Linear(8, 2))
    assert swap_neurons(hidden, new, torch.rand(B, 4)) == {"1": 8}


class RecurrentLoop(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(4, 8), snn.RSynaptic(alpha=0.9, beta=0.8, spike_grad=GRAD, **options)

    def forward(self, x):
        spk, syn, mem = self.lif1.reset_mem()
        rec = []
        for _ in range(T):
            spk, syn, mem = self.lif1(4 * self.fc1(x), spk, syn, mem)
            rec.append(spk)
        return torch.stack(rec)


@pytest.mark.parametrize("sample", [True, False])
@pytest.mark.parametrize(
    "options", [{"linear_features": 8}, {"all_to_all": False, "V": 0.3}, {"all_to_all": False, "V": torch.rand(8)}]
)
def test_rsynaptic_loops_take_rtclif_with_their_feedback(options, sample):
    x = torch.rand(B, 4)
    old = RecurrentLoop(threshold=0.5, **options)
    feedback = [p for p in old.lif1.parameters() if p.requires_grad]
    report = swap_neurons(old, RTCLIF, x if sample else None)
    new = old.lif1
    assert type(new) is RTCLIF and new.threshold == 0.5 and new.spike_grad is GRAD
    assert report == {"lif1": options.get("linear_features")} and "RTCLIF" in str(report)
    assert len(feedback) == (2 if "linear_features" in options else 1)
    assert all(any(p is own for own in new.parameters()) for p in feedback)

    def build():
        torch.manual_seed(0)
        return RecurrentLoop(**options)

    check_swap(build, RTCLIF, x, others=(torch.rand(B + 1, 4),), sample=sample)
    fixed = RecurrentLoop(learn_recurrent=False, **options)
    swap_neurons(fixed, RTCLIF)
    assert {n for n, p in fixed.lif1.named_parameters() if p.requires_grad} == {"c1", "c2"}
    double = RecurrentLoop(**options).double()
    swap_neurons(double, RTCLIF)
    assert double(x.double()).dtype == torch.float64


def test_rleaky_that_keeps_its_states_takes_rtclif():
    def build():
        return nn.Sequential(nn.Linear(4, 8), snn.RLeaky(0.9, linear_features=8, init_hidden=True), nn.Linear(8, 2))

    _, report = check_swap(build, RTCLIF, 5 * torch.rand(B, 4))
    assert report == {"1": 8}
    for layer, message in (
        (snn.RLeaky(0.9, linear_features=8), r"1: RLeaky is not called like RTCLIF, which returns \(spk"),
        (snn.RSynaptic(0.9, 0.8, conv2d_channels=8, kernel_size=3), "1: RSynaptic feeds back through a Conv2d"),
    ):
        net = nn.Sequential(nn.Linear(4, 8), layer)
        before = snapshot(net)
        with pytest.raises(ValueError, match=message):
            swap_neurons(net, RTCLIF)
        assert same(before, snapshot(net))
    with pytest.raises(ValueError, match="2: Leaky is not called like RTCLIF"):
        swap_neurons(RecurrentAndNot(), functools.partial(RTCLIF, linear_features=8), target=snn.Leaky)
    with pytest.raises(ValueError, match="no recurrent layer"):
        swap_neurons(Loop(), RTCLIF)


class RecurrentAndNot(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), snn.RSynaptic(0.9, 0.8, linear_features=8), snn.Leaky(0.9))


@NEURONS
def test_what_is_taken_over(new):
    old = snn.Leaky(0.9, learn_threshold=True, threshold=0.5, surrogate_disable=True, init_hidden=True)
    net = nn.Sequential(nn.Linear(4, 8), old)
    report = swap_neurons(net, new)
    assert isinstance(net[1].threshold, nn.Parameter) and net[1].threshold == 0.5 and net[1].surrogate_disable
    assert "spike_grad" not in report.replacements[0].settings
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, threshold=0.5, init_hidden=True))
    swap_neurons(net, functools.partial(new, threshold=2.0, spike_grad=GRAD))
    assert net[1].threshold == 2.0 and net[1].spike_grad is GRAD
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, threshold=torch.full((8,), 0.5), init_hidden=True))
    with pytest.raises(ValueError, match="threshold must be one number"):
        swap_neurons(net, new)
    swap_neurons(net, functools.partial(new, threshold=1.0))


class NotPassed(nn.Module):
    """A loop that leaves the state to the layer."""

    def __init__(self, read=False, **options):
        super().__init__()
        self.fc, self.lif, self.read = nn.Linear(4, 8), snn.Leaky(beta=0.9, spike_grad=GRAD, **options), read

    def forward(self, x):
        self.lif.reset_mem()
        rec = []
        for _ in range(T):
            spk, _ = self.lif(4 * self.fc(x))
            rec.append(self.lif.mem if self.read else spk)
        return torch.stack(rec)


@NEURONS
def test_loops_that_do_not_pass_the_state(new):
    x = torch.rand(B, 4)
    net, _ = check_swap(NotPassed, new, x, others=(torch.rand(1, 4),))
    mem, want = net.lif.init_leaky(), []
    for _ in range(T):
        spk, mem = net.lif(4 * net.fc(x), mem)
        want.append(spk)
    assert torch.equal(net(x), torch.stack(want))
    reading = NotPassed(read=True)
    swap_neurons(reading, new, x)
    assert reading(x).shape == (T, B, 8)


RESETS = {
    "zeros_like": lambda lif: setattr(lif, "mem", torch.zeros_like(lif.mem)),
    "zero_": lambda lif: lif.mem.zero_(),
    "reset_mem": lambda lif: setattr(lif, "mem", lif.reset_mem()),
    "init_leaky": lambda lif: lif.init_leaky(),
    "of all Leaky": lambda lif: [m.reset_mem() for m in nn.Sequential(lif).modules() if isinstance(m, snn.Leaky)],
    "of the class": lambda lif: snn.Leaky.reset_hidden(),
}


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("output", [False, True])
@NEURONS
def test_whatever_resets_a_leaky_resets_what_stands_in_its_place(new, output, reset):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.lif = nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True, output=output)

        def forward(self, x):
            RESETS[reset](self.lif)
            out = [self.lif(4 * self.fc(x)) for _ in range(4 * T)]
            return torch.stack([spk for spk, _ in out] if output else out)

    torch.manual_seed(0)
    net, x = Net(), torch.rand(B, 4)
    swap_neurons(net, new, x)
    with torch.no_grad():
        net.fc.bias.fill_(1.0)
        first = net(x)
        assert first.any() and torch.equal(net(x), first)


class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        soft = torch.sigmoid(self.slope * x)
        return (x > 0).to(x) + (soft - soft.detach())


@NEURONS
def test_a_surrogate_with_weights_is_taken_over(new):
    grad = Slope()
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True, spike_grad=grad, threshold=0.3))
    swap_neurons(net, new, torch.rand(B, 4))
    assert net[1].spike_grad is grad and "1.spike_grad.slope" in dict(net.named_parameters())
    net(5 * torch.rand(B, 4)).sum().backward()
    assert grad.slope.grad is not None


@NEURONS
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("factor", [2.5, torch.tensor(3.0), torch.arange(1.0, 9.0)])
def test_graded_spikes_are_taken_over(new, factor, learned):
    old = snn.Leaky(0.9, init_hidden=True, graded_spikes_factor=factor, learn_graded_spikes_factor=learned)
    net = nn.Sequential(nn.Linear(4, 8), old)
    if new is TCLIF and torch.as_tensor(factor).ndim:
        with pytest.raises(ValueError, match=r"one per channel \(channels=None\)"):
            swap_neurons(net, new)
        new = functools.partial(TCLIF, channels=8)
    swap_neurons(net, new)
    assert torch.equal(net[1].graded_spikes_factor, torch.as_tensor(factor))
    assert isinstance(net[1].graded_spikes_factor, nn.Parameter) == learned
    net[0].bias.data.fill_(9.0)
    assert torch.equal(net(torch.rand(B, 4)), torch.as_tensor(factor).expand(B, 8))


@NEURONS
def test_what_a_new_neuron_would_refuse_is_refused(new):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of snnTorch, about inhibition
        layers = {
            "inhibition=True": snn.Leaky(0.9, init_hidden=True, inhibition=True),
            "state_quant=": snn.Leaky(0.9, init_hidden=True, state_quant=torch.round),
        }
    for option, layer in layers.items():
        net = nn.Sequential(nn.Linear(4, 8), layer)
        before = snapshot(net)
        with pytest.raises(ValueError, match=f"1: Leaky has {option}.*which no {new.__name__} has; exclude= it"):
            swap_neurons(net, new)
        assert same(before, snapshot(net))
        swap_neurons(net, functools.partial(new, **{option.partition("=")[0]: False}))


def test_rtclif_has_no_graded_spikes():
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True, graded_spikes_factor=2.0))
    with pytest.raises(ValueError, match="1: Leaky has a graded_spikes_factor, which no RTCLIF has"):
        swap_neurons(net, functools.partial(RTCLIF, linear_features=8), target=snn.Leaky)


@NEURONS
def test_another_reset_is_said(new):
    def net(reset):
        return nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True, reset_mechanism=reset))

    with pytest.warns(
        UserWarning, match=f"^1: Leaky has reset_mechanism='none', and the {new.__name__} in its place resets"
    ) as seen:
        swap_neurons(net("none"), new)
    assert ("reset_mode='memoryless'" in str(seen[0].message)) == (new is PMSN) and seen[0].filename == __file__
    with pytest.warns(UserWarning, match=f"reset_mechanism='zero', and the {new.__name__} in its place subtracts"):
        swap_neurons(net("zero"), new)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap_neurons(net("subtract"), new)
        swap_neurons(net("none"), functools.partial(PMSN, reset_mode="memoryless"))
        swap_neurons(nn.Sequential(nn.Linear(4, 8), snn.Alpha(0.9, 0.8, init_hidden=True)), new)


def test_other_neurons_of_snntorch_get_these_options():
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True, reset_mechanism="zero"))
    swap_neurons(net, functools.partial(snn.Synaptic, alpha=0.9, beta=0.8))
    assert net[1].reset_mechanism == "zero"


@NEURONS
def test_dtype(new):
    net = convolutional().double()  # which Leaky's float32 spikes would not run through
    swap_neurons(net, new)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert net(torch.rand(B, 1, 10, 10, dtype=torch.float64))[0].dtype == torch.float64


@NEURONS
def test_a_function_makes_what_it_likes(new):
    options = {"init_hidden": True} | ({"step_mode": "s"} if new is PMSN else {})
    make = lambda C: new(C, **options) if new is PMSN else new(**options)  # noqa: E731
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True))
    assert swap_neurons(net, make, torch.rand(B, 4)) == {"1": 8}
    loop, x = Loop(), torch.rand(B, 4)
    before = snapshot(loop)
    with pytest.raises(ValueError, match="the swapped net does not take sample_input"):
        swap_neurons(loop, make, x)
    assert same(before, snapshot(loop))


@NEURONS
def test_activations_of_other_kinds(new):
    def build():
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2), snn.Leaky(0.9, init_hidden=True))

    x = torch.rand(B, 4)
    net, report = check_swap(build, new, x, others=(torch.rand(1, 4),), target=(nn.ReLU, snn.Leaky), gradients=False)
    assert report == {"1": 8, "3": 2} and net[1].init_hidden


def test_leaky_can_be_put_in_as_well():
    net = convolutional()
    swap_neurons(net, functools.partial(snn.Synaptic, alpha=0.9, beta=0.8), torch.rand(B, 1, 10, 10))
    assert type(net[8]) is snn.Synaptic and net[8].output and net[2].init_hidden and net[2].spike_grad is GRAD
    with pytest.raises(TypeError, match=r"Leaky needs beta: give it with functools\.partial"):
        swap_neurons(net, snn.Leaky)


def test_a_regression_net_trains_on_its_membrane():
    """The regression tutorials: the last neuron never fires, its membrane is the output."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(1, 8), snn.Leaky(beta=0.9, learn_beta=True)
            self.fc2, self.lif2 = nn.Linear(8, 1), snn.Leaky(beta=0.9, reset_mechanism="none")

        def forward(self, x):
            mem1, mem2, rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
            for step in range(x.shape[0]):
                spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
                _, mem2 = self.lif2(self.fc2(spk1), mem2)
                rec.append(mem2)
            return torch.stack(rec)

    x = torch.rand(T, B, 1)
    net = Net()
    swap_neurons(net, PMSN, x, exclude="lif2")
    net(x).sum().backward()
    net = Net()
    with pytest.warns(UserWarning, match="reset_mechanism='none'"):
        swap_neurons(net, PMSN, x)
    with pytest.raises(RuntimeError, match="reset_mode='memoryless'"):
        net(x).sum().backward()
    net = Net()
    swap_neurons(net, PMSN, x, target="lif1")
    swap_neurons(net, functools.partial(PMSN, reset_mode="memoryless"), x)
    net(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@NEURONS
def test_nothing_of_a_swap_stays_with_snntorch(new):
    gc.collect()
    before = [*enlisted(new)]  # of other tests
    net = Loop()
    swap_neurons(net, new, torch.rand(B, 4))
    gc.collect()
    assert [*enlisted(new)] == [*before, net.lif1, net.lif2]
    del net
    gc.collect()
    assert [*enlisted(new)] == before


def test_graded_and_straight_through_spikes_are_no_readouts():
    factor = torch.rand(8)
    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True, graded_spikes_factor=factor))
    assert swap_neurons(net, PMSN, 5 * torch.randn(B, 4)) == {"1": 8}
    assert torch.equal(net[1].graded_spikes_factor, factor)

    def straight_through(x):
        smooth = torch.sigmoid(3 * x)
        return (x > 0).to(x) + smooth - smooth.detach()

    net = nn.Sequential(nn.Linear(4, 8), snn.Leaky(0.9, init_hidden=True, spike_grad=straight_through))
    assert swap_neurons(net, PMSN, 5 * torch.randn(B, 4)) == {"1": 8}
