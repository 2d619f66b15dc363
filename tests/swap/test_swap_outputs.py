"""What the old neuron was used for: called by other names, returning other things, remembering along another axis."""

import functools
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron, surrogate

from pmsn_plugins import swap_neurons
from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode

sys.path.insert(0, str(Path(__file__).parent))
from swapping import check_swap, same, snapshot

NEURONS = pytest.mark.parametrize("new", [PMSNNode, TCLIFNode])
T, N = 6, 3


class NonSpikingLIFNode(neuron.LIFNode):
    """As in SpikingJelly's reinforcement learning examples."""

    def single_step_forward(self, x):
        super().single_step_forward(x)
        return self.v


class MembraneNode(NonSpikingLIFNode):
    """The same by a name that says nothing."""


# old neurons that return no spikes of 0 and 1


@NEURONS
@pytest.mark.parametrize("sample", [None, torch.randn(N, 4)])
def test_a_readout_by_its_name_is_left_alone(new, sample):
    net = nn.Sequential(nn.Linear(4, 8), neuron.IFNode(), nn.Linear(8, 2), NonSpikingLIFNode())
    assert swap_neurons(net, new, sample) == {"1": 8}
    assert type(net[3]) is NonSpikingLIFNode
    assert swap_neurons(net, new, sample, target="3") == {"3": 2}  # unless it is meant


@NEURONS
def test_a_readout_by_what_it_returns_is_left_alone_with_a_warning(new):
    net = nn.Sequential(nn.Linear(4, 8), neuron.IFNode(), nn.Linear(8, 2), MembraneNode())
    with pytest.warns(UserWarning, match=r"3 returned no spikes but .*, left as they are: name them with target="):
        report = swap_neurons(net, new, torch.randn(N, 4))
    assert report == {"1": 8} and type(net[3]) is MembraneNode
    alone = nn.Sequential(nn.Linear(4, 2), MembraneNode())
    with pytest.raises(ValueError, match=r"net has no neuron to swap: 1 returned no spikes but .*; name it with"):
        swap_neurons(alone, new, torch.randn(N, 4))
    assert swap_neurons(alone, new, torch.randn(N, 4), target=MembraneNode) == {"1": 2}


def test_a_surrogate_in_place_of_spikes_is_no_readout():
    smooth = surrogate.Sigmoid(spiking=False)
    net = nn.Sequential(nn.Linear(4, 8), neuron.IFNode(surrogate_function=smooth))
    assert swap_neurons(net, TCLIFNode, torch.randn(N, 4)) == {"1": 8}


class Ternary(neuron.IFNode):
    def multi_step_forward(self, x_seq):
        return super().multi_step_forward(x_seq) * torch.tensor([1.0, -1.0]).repeat(x_seq.shape[-1] // 2)


class Loud(neuron.IFNode):
    def multi_step_forward(self, x_seq):
        return 2.5 * super().multi_step_forward(x_seq)


@NEURONS
@pytest.mark.parametrize("old, values", [(Ternary, "-1, 0, 1"), (Loud, "0, 2.5")])
def test_other_spikes_are_announced(new, old, values):
    torch.manual_seed(0)
    x = torch.randn(T, N, 4) * 20
    net = nn.Sequential(layer.Linear(4, 8, step_mode="m"), old(step_mode="m"))
    with pytest.warns(UserWarning, match=rf"1 \({old.__name__}\) returned {values}, .* spikes of 0 and 1"):
        swap_neurons(net, new, x)


def test_bursts_in_the_place_of_graded_spikes_are_not_announced(recwarn):
    net = nn.Sequential(layer.Linear(4, 8, step_mode="m"), Loud(step_mode="m"))
    x = torch.full((T, N, 4), 20.0) * torch.randn(T, N, 4)
    burst = functools.partial(PMSNNode, burst=True, v_threshold=0.05)
    swap_neurons(net, burst, x)
    assert not [w for w in recwarn if "returned" in str(w.message)]


class Vote(neuron.IFNode):
    def multi_step_forward(self, x_seq):
        return super().multi_step_forward(x_seq).amax(0)


class WithMembrane(neuron.IFNode):
    def multi_step_forward(self, x_seq):
        return super().multi_step_forward(x_seq), self.v


class First(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.sn = layer.Linear(4, 8, step_mode="m"), WithMembrane(step_mode="m")

    def forward(self, x):
        spikes, _ = self.sn(self.fc(x))
        return spikes


@NEURONS
@pytest.mark.parametrize("steps", [2, T])  # two steps can be unpacked like two values
def test_another_form_is_refused(new, steps):
    x = torch.randn(steps, N, 4)
    for net, message in (
        (nn.Sequential(layer.Linear(4, 8, step_mode="m"), Vote(step_mode="m")), r"1 \(Vote\) returned shape \(3, 8\)"),
        (First(), r"sn \(WithMembrane\) returned several values, the first of shape"),
    ):
        before = snapshot(net)
        with pytest.raises(ValueError, match=message + r".* and the new neuron returns shape .*exclude= it"):
            swap_neurons(net, new, x)
        assert same(before, snapshot(net))


def test_what_was_named_may_return_another_form():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()
            self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.pool(self.act(self.conv(x))).flatten(1))

    x = torch.randn(N, 3, 8, 8)
    with pytest.warns(UserWarning, match=r"act \(ReLU\) returned shape \(3, 4, 6, 6\) .* returns shape \(3, 4, 3, 3\)"):
        swap_neurons(Net(), lambda C: nn.Sequential(PMSNNode(C), nn.MaxPool2d(2)), x, target=nn.ReLU)


@pytest.mark.parametrize("device, dtype", [("meta", torch.float32), ("cpu", torch.bfloat16), ("cpu", torch.float64)])
def test_values_are_looked_at_where_they_can_be(device, dtype):
    net = nn.Sequential(nn.Linear(4, 8), neuron.LIFNode(), nn.Linear(8, 2), neuron.LIFNode()).to(device, dtype)
    assert swap_neurons(net, TCLIFNode, torch.randn(N, 4, device=device, dtype=dtype)) == {"1": 8, "3": 2}


# neurons called otherwise than by their forward


class Direct(nn.Module):
    def __init__(self, multi):
        super().__init__()
        self.fc, self.soma = nn.Linear(4, 8), neuron.LIFNode()
        self.fc2, self.out = nn.Linear(8, 2), neuron.LIFNode()
        self.method = "multi_step_forward" if multi else "single_step_forward"

    def forward(self, x):
        return getattr(self.out, self.method)(self.fc2(getattr(self.soma, self.method)(self.fc(x))))


@NEURONS
@pytest.mark.parametrize("multi", [False, True])
def test_neurons_whose_methods_are_called(new, multi):
    torch.manual_seed(0)
    x = 4 * torch.randn((T, N, 4) if multi else (N, 4))
    _, report = check_swap(lambda: Direct(multi), new, x, gradients=False)
    assert report == {"soma": 8, "out": 2}


class Joins(neuron.IFNode):
    def single_step_forward(self, x, y):
        return super().single_step_forward(x + y)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.sn = nn.Linear(4, 4), Joins()

    def forward(self, x):
        return self.sn(self.fc(x), x)


@NEURONS
def test_a_neuron_of_two_inputs_is_named(new):
    with pytest.raises(ValueError, match=r"in sn, called with a tensor \(3, 4\), a tensor \(3, 4\)"):
        swap_neurons(TwoInputs(), new, torch.randn(N, 4))


def test_what_fails_before_the_swap_says_so():
    class Trained(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if self.training else super().forward(x) + None

    with pytest.raises(TypeError) as caught:
        swap_neurons(Trained(nn.Linear(4, 2), neuron.IFNode()), TCLIFNode, torch.randn(N, 4))
    assert any("as it is, was run on sample_input in evaluation mode" in note for note in caught.value.__notes__)


# layers of no framework: where time is


class OwnLIF(nn.Module):
    """[T, N, *], as many repositories write it."""

    def __init__(self, axis=0):
        super().__init__()
        self.axis = axis

    def forward(self, x):
        membrane, spikes = 0.0, []
        for current in x.unbind(self.axis):
            membrane = 0.25 * membrane + current
            spikes.append((membrane > 0.5).to(x))
            membrane = membrane * (1 - spikes[-1])
        return torch.stack(spikes, self.axis)


class Own(nn.Module):
    """No layer of a framework anywhere."""

    def __init__(self, spike, dropout=None):
        super().__init__()
        self.conv, self.bn, self.spike = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), spike
        self.dropout = dropout or nn.Identity()

    def forward(self, x):
        return self.dropout(self.spike(self.bn(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])))


def later_spikes_know_the_first_step(net, x):
    functional.reset_net(net.eval())
    with torch.no_grad():
        spikes = net(x)
        functional.reset_net(net)
        changed = x.clone()
        changed[0] = -20
        return bool((spikes[1:] != net(changed)[1:]).any())


@NEURONS
@pytest.mark.parametrize("dropout", [None, layer.Dropout(0.1)])  # left in step_mode='s', which says nothing
def test_own_layers_that_remember_along_time(new, dropout):
    torch.manual_seed(0)
    x = 4 * torch.randn(T, N, 3, 6, 6)
    net, report = check_swap(lambda: Own(OwnLIF(), dropout), new, x, target=OwnLIF)
    assert report == {"spike": 8} and net.spike.step_mode == "m" and net.spike.keep_state is False
    assert later_spikes_know_the_first_step(net, x)


def test_own_layers_that_remember_along_the_second_axis():
    x = torch.randn(N, T, 3, 6, 6)
    with pytest.raises(ValueError, match=r"spike remembers along axis 1 of its input .*say batch_first=True"):
        swap_neurons(Own(OwnLIF(1)), TCLIFNode, x, target=OwnLIF)
    assert swap_neurons(Own(OwnLIF(1)), PMSNNode, x, target=OwnLIF, batch_first=True) == {"spike": 8}


class Stateless(nn.Module):
    def forward(self, x):
        return (x > 0.5).to(x)


class Rivals(nn.Module):
    """Neurons of one step that inhibit each other, along the channels and in the batch: no memory."""

    def forward(self, x):
        return (x > x.mean((0, 1), keepdim=True) + 0.1).to(x)


def test_rivals_do_not_remember():
    net = nn.Sequential(nn.Linear(4, 8), Rivals(), nn.Linear(8, 2), neuron.IFNode())
    assert swap_neurons(net, PMSNNode, torch.randn(N, 4), target=(Rivals, neuron.IFNode)) == {"1": 8, "3": 2}
    assert net[1].step_mode == "s"


class Winner(nn.Module):
    """Where several are equal, the first."""

    def forward(self, x):
        return nn.functional.one_hot(x.argmax(1), x.shape[1]).to(x)


class Chance(nn.Module):
    def forward(self, x):
        return (torch.rand_like(x) < x.sigmoid()).to(x)


@pytest.mark.parametrize("old", [Winner, Chance])
@pytest.mark.parametrize("seed", range(5))
def test_neither_a_winner_nor_chance_remembers(old, seed):
    torch.manual_seed(seed)
    x = torch.randn(N, 4)
    with pytest.raises(ValueError, match="nothing tells whether it takes whole sequences"):
        swap_neurons(nn.Sequential(nn.Linear(4, 5), old(), nn.Linear(5, 2)), PMSNNode, x, target=old)
    net = nn.Sequential(nn.Linear(4, 5), old(), nn.Linear(5, 2), neuron.LIFNode())
    assert swap_neurons(net, lambda channels: PMSNNode(channels), x, target=old) == {"1": 5}
    assert net[1].step_mode == "s"


def test_random_numbers_and_hooks_are_left_alone():
    torch.manual_seed(0)
    net, x, seen = nn.Sequential(nn.Linear(4, 5), Chance(), nn.Linear(5, 2)), torch.randn(N, 4), []
    net[1].register_forward_hook(lambda *call: seen.append(call))
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="hooks on 1 are gone"):
        swap_neurons(net, lambda: nn.Identity(), x, target=Chance)
    assert torch.equal(torch.get_rng_state(), before) and not seen


class Looped(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.spike = nn.Linear(4, 8), Stateless()

    def forward(self, x):
        return torch.stack([self.spike(self.fc(step)) for step in x])


@NEURONS
def test_what_is_called_once_per_step_takes_steps(new):
    net = Looped()
    assert swap_neurons(net, new, torch.randn(T, N, 4), target=Stateless) == {"spike": 8} and net.spike.step_mode == "s"


@NEURONS
@pytest.mark.parametrize("sample", [None, torch.randn(T, N, 3, 6, 6)])
def test_where_nothing_tells_the_user_is_asked(new, sample):
    with pytest.raises(
        ValueError, match=rf"spike \(Stateless\) is of no framework, .*partial\({new.__name__}, step_mode"
    ):
        swap_neurons(Own(Stateless()), new, sample, target=Stateless)
    net = Own(Stateless())
    assert swap_neurons(net, functools.partial(new, step_mode="m"), sample, target=Stateless) == {"spike": 8}
    assert later_spikes_know_the_first_step(net, 4 * torch.randn(T, N, 3, 6, 6))


# channels


class Variables(nn.Module):
    """Time-series encoder: variables are the channels, and the sample's last axis."""

    def __init__(self):
        super().__init__()
        self.conv, self.sn = nn.Conv2d(1, T, (1, 3), padding=(0, 1)), neuron.LIFNode(step_mode="m")

    def forward(self, x):
        return self.sn(self.conv(x.transpose(1, 2).unsqueeze(1)).transpose(0, 1))


@pytest.mark.parametrize("axis", [1, lambda name: 1])
def test_an_axis_that_the_user_says_wins_over_what_follows_the_sample(axis):
    x = torch.randn(N, 10, 4)
    with pytest.warns(UserWarning, match=r"sn: axis 1 of its steps \(3, 4, 10\) follows the size of sample_input"):
        assert swap_neurons(Variables(), PMSNNode, x, channel_axis=axis) == {"sn": 4}
    with pytest.raises(
        ValueError, match=r"follows the size of sample_input: .*functools\.partial\(\.\.\., channels=\.\.\.\)"
    ):
        swap_neurons(Variables(), PMSNNode, x)


def test_a_sequence_for_a_net_in_single_step_mode():
    net = nn.Sequential(layer.Linear(4, 8), neuron.LIFNode())
    with pytest.raises(
        ValueError, match=r"if that is a whole sequence .*set_step_mode\(net, 'm'\)\); if it is one step"
    ):
        swap_neurons(net, PMSNNode, torch.randn(T, N, 4))


@NEURONS
def test_a_scripted_part(new):
    def build():
        return nn.Sequential(torch.jit.script(nn.Linear(4, 8)), neuron.LIFNode(), nn.Linear(8, 2), neuron.LIFNode())

    assert swap_neurons(build(), new, torch.randn(N, 4)) == {"1": 8, "3": 2}


# settings


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.9])
def test_the_threshold_of_a_gated_lif_is_not_its_logit(threshold):
    if not hasattr(neuron, "GatedLIFNode"):
        pytest.skip("not in this release")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), neuron.GatedLIFNode(T=T, init_v_threshold=threshold))
    swap_neurons(net, TCLIFNode)
    assert net[1].v_threshold == pytest.approx(threshold)


def test_a_setting_that_cannot_be_taken_over_says_what_to_do():
    cases = [(neuron.IFNode(v_threshold=float("inf")), "above 0, got inf")]
    if hasattr(neuron, "GatedLIFNode"):
        cases.append((neuron.GatedLIFNode(T=T, inplane=4), "must be one number"))
    for old, error in cases:
        with pytest.raises(ValueError, match=error) as caught:
            swap_neurons(nn.Sequential(nn.Conv2d(3, 4, 3), old), TCLIFNode)
        (note,) = caught.value.__notes__
        assert "with the v_threshold of the old" in note and "functools.partial" in note and "exclude= it" in note


# neurons that the net holds in no way that a swap can reach


class InList(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.neurons = nn.Linear(4, 8), [neuron.LIFNode()]

    def forward(self, x):
        return self.neurons[0](self.fc(x))


@NEURONS
@pytest.mark.parametrize("sample", [None, torch.randn(N, 4)])
def test_neurons_in_a_plain_list_alone(new, sample):
    with pytest.raises(ValueError, match=r"no neuron to swap: .*neurons\[0\] is no registered module .*ModuleList"):
        swap_neurons(InList(), new, sample)


class MadeInForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.sn, self.fc2 = nn.Linear(4, 8), neuron.LIFNode(), nn.Linear(8, 2)

    def forward(self, x):
        return neuron.IFNode()(self.fc2(self.sn(self.fc(x))))


class MadeOnce(MadeInForward):
    def forward(self, x):
        if not hasattr(self, "late"):
            self.late = neuron.IFNode()
        return self.late(self.fc2(self.sn(self.fc(x))))


def test_neurons_registered_in_forward_and_of_other_threads_are_no_strangers(recwarn):
    other, stop = nn.Sequential(nn.Linear(4, 4), neuron.IFNode()), threading.Event()

    def run():
        while not stop.is_set():
            functional.reset_net(other)
            other(torch.randn(2, 4))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        for _ in range(5):
            swap_neurons(MadeOnce(), TCLIFNode, torch.randn(N, 4))
    finally:
        stop.set()
        thread.join()
    assert not [w for w in recwarn if "still calls" in str(w.message)]


@NEURONS
def test_neurons_made_in_forward(new):
    with pytest.warns(UserWarning, match="the net still calls IFNode that it does not hold"):
        assert swap_neurons(MadeInForward(), new, torch.randn(N, 4)) == {"sn": 8}
