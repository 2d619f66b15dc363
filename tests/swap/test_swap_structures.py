"""Small nets with the structures of SpikingJelly's examples and of public research code, before and after a swap."""

import functools
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron, surrogate

from pmsn_plugins import swap_neurons
from pmsn_plugins.spikingjelly import MultiCompartmentNode, PMSNNode, RecurrentTCLIFNode, TCLIFNode

sys.path.insert(0, str(Path(__file__).parent))
from swapping import check_swap, same, snapshot

T, N = 4, 2
PMSN = functools.partial(PMSNNode, preset="static")
NEURONS = pytest.mark.parametrize("new", [PMSN, TCLIFNode], ids=["PMSN", "TCLIF"])


def lif(**options):
    return neuron.LIFNode(step_mode="m", detach_reset=True, **options)


class Delays(nn.Module):
    """Blocks as nested Python lists, registered once more as a flat Sequential; the output reads the last v_seq."""

    def __init__(self, readout="spikes"):
        super().__init__()
        self.blocks = [
            [[nn.Conv1d(6, 8, 3), layer.BatchNorm1d(8, step_mode="m")], [lif(store_v_seq=True), nn.Dropout(0.1)]],
            [[nn.Conv1d(8, 5, 3)], [lif(store_v_seq=True)]],
        ]
        self.model = nn.Sequential(*(item for block in self.blocks for part in block for item in part))
        self.readout = readout

    def forward(self, x):
        for (synapses, *norm), (spiking, *_) in self.blocks:
            x = synapses(nn.functional.pad(x.permute(1, 2, 0), (2, 0))).permute(2, 0, 1)
            for each in norm:
                x = each(x.unsqueeze(3)).squeeze(3)
            x = spiking(4 * x)
        return x if self.readout == "spikes" else self.blocks[-1][1][0].v_seq


@NEURONS
@pytest.mark.parametrize("sample", [True, False])
def test_neurons_in_nested_lists(new, sample):
    x, others = torch.rand(T, N, 6), (torch.rand(T + 3, N + 1, 6),)
    net, report = check_swap(Delays, new, x, others=others, sample=sample)
    assert report == {"model.2": 8, "model.5": 5}
    assert net.blocks[0][1][0] is net.model[2] and type(net.model[2]).__name__ == report.replacements[0].new
    assert net.model[2].store_v_seq  # the output reads it
    functional.reset_net(net)
    net(x)
    assert all(torch.is_tensor(net.model[i].v) for i in (2, 5))
    functional.reset_net(net)
    assert all(net.model[i].v == 0.0 for i in (2, 5))


def test_a_net_that_reads_the_membrane():
    build = functools.partial(Delays, "membrane")
    check_swap(build, functools.partial(PMSNNode, reset_mode="memoryless"), torch.rand(T, N, 6))
    net = build()
    swap_neurons(net, PMSNNode, torch.rand(T, N, 6))
    with pytest.raises(RuntimeError, match="reset_mode='memoryless'"):
        net(4 * torch.rand(T, N, 6)).sum().backward()


class Attention(nn.Module):
    """Tokens [T, N, L, C]: the norms see [T N, C, L], the neurons the transposed; heads in between."""

    def __init__(self, C, heads=2):
        super().__init__()
        self.heads = heads
        for name in "qkv":
            setattr(self, f"{name}_linear", nn.Linear(C, C))
            setattr(self, f"{name}_bn", nn.BatchNorm1d(C))
            setattr(self, f"{name}_lif", lif())
        self.attn_lif = lif(v_threshold=0.5)
        self.proj_linear, self.proj_bn, self.proj_lif = nn.Linear(C, C), nn.BatchNorm1d(C), lif()

    def project(self, name, x):
        flat = x.flatten(0, 1)
        flat = getattr(self, f"{name}_linear")(flat).transpose(-1, -2)
        y = getattr(self, f"{name}_bn")(flat).transpose(-1, -2).reshape(x.shape).contiguous()
        return getattr(self, f"{name}_lif")(y)

    def forward(self, x):
        T, N, L, C = x.shape
        q, k, v = (
            self.project(name, x).reshape(T, N, L, self.heads, C // self.heads).permute(0, 1, 3, 2, 4) for name in "qkv"
        )
        x = (q @ k.transpose(-2, -1) * 0.25) @ v
        x = self.attn_lif(x.transpose(2, 3).reshape(T, N, L, C).contiguous())
        return self.project("proj", x)


class Tokens(nn.Module):
    """Patches by convolution, blocks of tokens: the structure of a spikformer."""

    def __init__(self, C=16):
        super().__init__()
        self.proj_conv, self.proj_bn, self.proj_lif = nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C), lif()
        self.pool = nn.MaxPool2d(4)
        self.block = nn.ModuleList([Attention(C)])
        self.head = nn.Linear(C, 5)

    def forward(self, x):
        x = x.unsqueeze(0).repeat(T, 1, 1, 1, 1)
        T_, N_, _, H, W = x.shape
        x = self.proj_bn(self.proj_conv(x.flatten(0, 1))).reshape(T_, N_, -1, H, W).contiguous()
        x = self.pool(self.proj_lif(3 * x).flatten(0, 1))
        x = x.reshape(T_, N_, *x.shape[1:]).flatten(-2).transpose(-1, -2)
        for block in self.block:
            x = x + block(x)
        return self.head(x.mean(2)).mean(0)


TOKEN_NEURONS = [f"block.0.{name}_lif" for name in ("q", "k", "v", "attn", "proj")]


@pytest.mark.parametrize("size", [8, 16], ids=["4 tokens", "as many tokens as channels"])
def test_tokens(size):
    x = torch.randn(N, 3, size, size)
    others = (torch.randn(N + 1, 3, size, size), torch.randn(N, 3, 2 * size, size))
    net = Tokens()
    before = snapshot(net)
    L = size * size // 16
    with pytest.raises(ValueError) as error:
        swap_neurons(net, PMSN, x)
    text = str(error.value)
    for name in TOKEN_NEURONS:
        assert f"{name} with step_mode='m' sees {L} on axis 1 of its steps (2, {L}, 16)" in text
    assert "q_bn (16 wide): say channel_axis=-1 for it (or channel_axis='auto')" in text
    assert "proj_lif with step_mode='m' sees" in text and "\n  proj_lif" not in text  # the convolution's is right
    assert same(before, snapshot(net))
    for axis in ("auto", lambda name: -1 if "block" in name else 1, lambda name: "auto" if "block" in name else None):
        net, report = check_swap(Tokens, PMSN, x, others=others, channel_axis=axis)
        assert report == dict.fromkeys(["proj_lif", *TOKEN_NEURONS], 16)
        assert [r.channel_axis for r in report.replacements] == [1, 2, 2, 2, 2, 2]
        assert [net.get_submodule(name).channel_axis for name in report] == [1, 2, 2, 2, 2, 2]
    check_swap(Tokens, TCLIFNode, x, others=others)


def test_a_long_error_is_cut():
    net = nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(3, 3), lif())))
    with pytest.raises(ValueError) as error:
        swap_neurons(net, PMSN, torch.rand(T, N, 5, 3))
    lines = str(error.value).split("\n")
    assert len(lines) == 14 and lines[1].startswith("  1 with") and lines[-1] == "  and of 8 more"


class Scrambled(nn.Module):
    """Slips of public code: tokens reshaped, not transposed, to [T, N, C, L]; and [T N, C, L] given as a sequence."""

    def __init__(self, C=16):
        super().__init__()
        self.k_linear, self.k_bn, self.k_lif = nn.Linear(3, C), nn.BatchNorm1d(C), lif()
        self.proj_conv, self.proj_bn, self.proj_lif = nn.Conv1d(C, C, 1), nn.BatchNorm1d(C), lif()

    def forward(self, x):
        T_, N_, L, _ = x.shape
        x = self.k_bn(self.k_linear(x.flatten(0, 1)).transpose(-1, -2)).transpose(-1, -2)
        x = self.k_lif(3 * x.reshape(T_, N_, -1, L).contiguous())
        return self.proj_lif(3 * self.proj_bn(self.proj_conv(x.flatten(0, 1)))).reshape(T_, N_, -1, L)


@pytest.mark.parametrize("L", [4, 16])
def test_slips_of_public_code(L):
    x = torch.randn(T, N, L, 3)
    with pytest.raises(ValueError, match=rf"proj_lif .* sees {L} on axis 1 of its steps \(16, {L}\).*channel_axis=0"):
        swap_neurons(Scrambled(), PMSN, x)
    _, report = check_swap(Scrambled, PMSN, x, others=(torch.randn(T, N + 1, L + 2, 3),), channel_axis="auto")
    assert report == {"k_lif": 16, "proj_lif": 16}
    assert [r.channel_axis for r in report.replacements] == [1, 0]


def test_a_wrong_axis_for_all_is_refused():
    net, x = Tokens(), torch.randn(N, 3, 8, 8)
    before = snapshot(net)
    with pytest.raises(ValueError, match=r"proj_lif with step_mode='m' sees 8 on axis 3 of its steps \(2, 16, 8, 8\)"):
        swap_neurons(net, PMSN, x, channel_axis=-1)
    with pytest.raises(ValueError, match=r"proj_lif .* without a channel axis"):
        swap_neurons(net, PMSN, x, channel_axis=7)
    with pytest.raises(TypeError, match="channel_axis must be an integer"):
        swap_neurons(net, PMSN, x, channel_axis="last")
    assert same(before, snapshot(net))


class PreActivation(nn.Module):
    """A spike-driven transformer's block: neurons before their convolution, one per block that is never called."""

    def __init__(self, C=8, heads=2):
        super().__init__()
        self.heads = heads
        self.stem = nn.Sequential(layer.Conv2d(3, C, 3, padding=1), layer.BatchNorm2d(C))
        self.q_conv, self.q_bn, self.q_lif = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), lif()
        self.k_conv, self.k_bn, self.k_lif = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), lif()
        self.attn_lif = lif(v_threshold=0.5)  # never called
        self.talking_heads = nn.Conv1d(heads, heads, 1)  # never called
        self.talking_heads_lif = lif(v_threshold=0.5)
        self.proj_conv, self.proj_bn, self.shortcut_lif = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), lif()
        self.fc1_conv, self.fc1_bn, self.fc1_lif = nn.Conv2d(C, 4 * C, 1), nn.BatchNorm2d(4 * C), lif()
        self.fc2_conv, self.fc2_bn, self.fc2_lif = nn.Conv2d(4 * C, C, 1), nn.BatchNorm2d(C), lif()
        functional.set_step_mode(self, "m")

    def apply_flat(self, name, x):
        y = getattr(self, f"{name}_bn")(getattr(self, f"{name}_conv")(x.flatten(0, 1)))
        return y.reshape(*x.shape[:2], *y.shape[1:]).contiguous()

    def forward(self, x, hook=None):
        x = self.stem(x.unsqueeze(0).repeat(T, 1, 1, 1, 1))
        T_, N_, C, H, W = x.shape
        s = self.shortcut_lif(2 * x)
        q, k = (
            getattr(self, f"{name}_lif")(2 * self.apply_flat(name, s))
            .flatten(3)
            .transpose(-1, -2)
            .reshape(T_, N_, H * W, self.heads, C // self.heads)
            .permute(0, 1, 3, 2, 4)
            for name in "qk"
        )
        kv = self.talking_heads_lif(k.sum(dim=-2, keepdim=True))  # [T, N, heads, 1, C / heads]
        a = q.mul(kv).transpose(3, 4).reshape(T_, N_, C, H, W)
        x = x + self.apply_flat("proj", a)
        y = self.apply_flat("fc1", self.fc1_lif(x))
        return x + self.apply_flat("fc2", self.fc2_lif(y)), hook


def test_neurons_that_are_never_called_and_neurons_before_their_layer():
    x, others = torch.randn(N, 3, 6, 6), (torch.randn(N + 1, 3, 4, 8),)
    net = PreActivation()
    with (
        pytest.warns(UserWarning, match="never called, left as they are: attn_lif"),
        pytest.raises(ValueError) as error,
    ):
        swap_neurons(net, PMSN, x)
    text = str(error.value)
    assert "talking_heads_lif with step_mode='m' sees 2 on axis 1 of its steps (2, 2, 1, 4)" in text
    assert "k_lif (8 wide)" in text and text.count("\n") == 1
    with pytest.warns(UserWarning, match="attn_lif"):
        options = {"channel_axis": lambda name: 1 if name == "talking_heads_lif" else None}
        net, report = check_swap(PreActivation, PMSN, x, others=others, gradients=False, **options)
    assert report["talking_heads_lif"] == 2 and report["fc1_lif"] == 8 and report["fc2_lif"] == 32
    assert report.unused == ("attn_lif",) and type(net.attn_lif) is neuron.LIFNode
    assert "left as they are: attn_lif" in str(report)
    with pytest.warns(UserWarning, match="attn_lif"):
        check_swap(PreActivation, PMSN, x, others=others, gradients=False, exclude="talking_heads_lif")
    with pytest.warns(UserWarning, match="attn_lif"):
        check_swap(PreActivation, TCLIFNode, x, others=others, gradients=False)


class ChannelsFirst(nn.Module):
    """Speech commands: the neurons see [T, C, N, mel], between transpositions."""

    def __init__(self, C=6):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, C, 3, padding=1), nn.BatchNorm2d(C))
        self.lif, self.fc = lif(), nn.Linear(C * 5, 3)

    def forward(self, x):  # [N, 1, T, mel]
        y = self.lif(3 * self.conv(x).transpose(0, 2).transpose(1, 2).transpose(1, 2))  # [T, C, N, mel]
        return self.fc(y.permute(2, 0, 1, 3).flatten(2)).mean(1)


@pytest.mark.parametrize("batch", [2, 6], ids=["batch 2", "a batch as large as the width"])
def test_channels_before_the_batch(batch):
    x, others = torch.randn(batch, 1, 7, 5), (torch.randn(3, 1, 9, 5),)
    net = ChannelsFirst()
    before = snapshot(net)
    with pytest.raises(ValueError, match=rf"lif .* sees {batch} on axis 1 .* conv\.1 \(6 wide\): say channel_axis=0"):
        swap_neurons(net, PMSN, x)
    assert same(before, snapshot(net))
    for axis in (0, "auto", -3):
        net, report = check_swap(ChannelsFirst, PMSN, x, others=others, channel_axis=axis)
        assert report == {"lif": 6} and net.lif.channel_axis % 3 == 0


class OwnSpike(nn.Module):
    """A spike layer of a repository's own: no step_mode, no reset; time on axis 1, as in TET's nets."""

    def __init__(self, thresh=1.0, tau=0.5):
        super().__init__()
        self.thresh, self.tau, self.act = thresh, tau, surrogate.ATan()

    def forward(self, x):
        mem, out = 0, []
        for t in range(x.shape[1]):
            mem = mem * self.tau + x[:, t]
            spike = self.act(mem - self.thresh)
            mem = (1 - spike) * mem
            out.append(spike)
        return torch.stack(out, dim=1)


class BatchFirst(nn.Module):
    """[N, T, C, H, W], made of [N, C, H, W] in place; one neuron for both places of a block."""

    def __init__(self, shared_with_head=False):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.spike = OwnSpike()
        self.fc1 = nn.Linear(4, 6)
        self.head_spike = self.spike if shared_with_head else OwnSpike()
        self.fc2 = nn.Linear(6, 3)

    def flat(self, f, x):
        y = f(x.flatten(0, 1))
        return y.view(*x.shape[:2], *y.shape[1:])

    def forward(self, x):
        x.unsqueeze_(1)
        x = x.repeat(1, T, 1, 1, 1)
        out = self.spike(2 * self.flat(lambda y: self.bn1(self.conv1(y)), x))
        out = self.flat(lambda y: self.bn2(self.conv2(y)), out)
        out += 0.5
        out = self.spike(out)
        out = self.head_spike(4 * self.flat(self.fc1, out.mean((-1, -2))))
        return self.flat(self.fc2, out)


def fresh_input():
    return torch.randn(N, 3, 6, 6, generator=torch.Generator().manual_seed(0))


@NEURONS
def test_own_spike_layers_batch_first(new):
    x = fresh_input()
    net = BatchFirst()
    report = swap_neurons(net, new, x, target=OwnSpike, batch_first=True)
    assert x.shape == (N, 3, 6, 6)  # the net works on its input in place
    assert report == {"spike": 4, "head_spike": 6} and report.replacements[0].old == "OwnSpike"
    assert report.replacements[0].settings["keep_state"] is False  # the old one began every call at rest
    y = net(fresh_input())
    (y * torch.randn_like(y)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert torch.equal(net(fresh_input()), y)  # nothing to reset
    assert net(torch.randn(N + 1, 3, 8, 4)).shape == (N + 1, T, 3)
    other = BatchFirst()
    swap_neurons(other, new, fresh_input(), target=OwnSpike, batch_first=True)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other.eval()(fresh_input()), net.eval()(fresh_input()))


def test_one_shared_neuron_of_two_widths():
    build = functools.partial(BatchFirst, shared_with_head=True)
    with pytest.raises(ValueError, match=r"spike = head_spike .* is one shared neuron, but sees \[4, 6\] channels"):
        swap_neurons(build(), PMSN, fresh_input(), target=OwnSpike, batch_first=True)
    net = build()
    swap_neurons(net, TCLIFNode, fresh_input(), target=OwnSpike, batch_first=True)
    assert net.spike is net.head_spike
    net(fresh_input()).sum().backward()


def test_one_shared_neuron_in_steps_of_several_shapes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.sn = nn.Conv2d(3, 4, 3), nn.Linear(4, 4), neuron.IFNode()

        def forward(self, x):
            y = self.sn(3 * self.conv(x))
            functional.reset_net(self.sn)
            return self.sn(3 * self.fc(y.mean((-1, -2)) if self.pooled else y.transpose(1, -1)))

    Net.pooled = True
    assert swap_neurons(Net(), PMSN, torch.randn(N, 3, 6, 5)) == {"sn": 4}
    Net.pooled = False
    with pytest.raises(ValueError, match=r"sn .* is one shared neuron, but has its channels on axes \[1, 3\]"):
        swap_neurons(Net(), PMSN, torch.randn(N, 3, 7, 8), channel_axis="auto")


class ParallelNeuron(nn.Module):
    """A neuron of another class, without the frameworks: all steps at once."""

    def __init__(self):
        super().__init__()
        self.surrogate_function, self.fc = surrogate.ATan(alpha=3.0), nn.Linear(T, T)

    def forward(self, x_seq):
        h = torch.addmm(self.fc.bias.unsqueeze(1), self.fc.weight, x_seq.flatten(1))
        return self.surrogate_function(h).view(x_seq.shape)


def columns(*neurons):
    """Sequential CIFAR by column: [N, C, H, W] to [W, N, C, H], convolutions over H."""
    first, second, third = neurons

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Sequential(
                layer.Conv1d(3, 6, 3, padding=1, bias=False), layer.BatchNorm1d(6), first(),
                layer.Conv1d(6, 6, 3, padding=1, bias=False), layer.BatchNorm1d(6), second(), layer.AvgPool1d(2),
            )  # fmt: skip
            self.fc = nn.Sequential(layer.Flatten(), layer.Linear(24, 8), third(), layer.Linear(8, 3))
            functional.set_step_mode(self, "m")

        def forward(self, x):
            return self.fc(self.conv(4 * x.permute(3, 0, 1, 2))).mean(0)

    return Net


@NEURONS
def test_sequential_images_with_neurons_of_several_classes(new):
    psn = functools.partial(neuron.PSN, T=T) if hasattr(neuron, "PSN") else lif
    x, others = torch.randn(N, 3, 8, T), (torch.randn(N + 1, 3, 8, T),)
    build = columns(psn, lif, ParallelNeuron)
    for sample in (True, False):
        net, report = check_swap(build, new, x, others=others, sample=sample)
        assert report == {"conv.2": 6, "conv.5": 6}  # no neuron of the frameworks stays
        assert type(net.fc[2]) is ParallelNeuron
    every = [ParallelNeuron, neuron.BaseNode, *([neuron.PSN] if hasattr(neuron, "PSN") else [])]
    net, report = check_swap(build, new, x, others=(torch.randn(N, 3, 8, T + 3),), target=every)
    assert report == {"conv.2": 6, "conv.5": 6, "fc.2": 8}
    parallel = report.replacements[2]
    assert net.fc[2].step_mode == "m" and parallel.settings["step_mode"] == "m"  # like the rest of the net
    assert net.fc[2].surrogate_function.alpha == 3.0 and net.fc[2].keep_state is False
    assert net.conv[5].keep_state is True  # an LIF goes on from its state


@NEURONS
def test_any_class_may_be_a_target(new):
    def build():
        net = nn.Sequential(layer.Conv2d(3, 4, 3), nn.ReLU(), layer.Flatten(), layer.Linear(64, 5), nn.GELU())
        functional.set_step_mode(net, "m")
        return net

    x = 3 * torch.randn(T, N, 3, 6, 6)
    for sample in (True, False):
        net, report = check_swap(build, new, x, others=(x[:, :1],), sample=sample, target=(nn.ReLU, nn.GELU))
        assert report == {"1": 4, "4": 5} and net[1].step_mode == "m"


def test_odd_places():
    """First in the net; after LayerNorm; after Flatten, a module or not; two in a row; before any layer."""

    class Flat(nn.Module):
        def forward(self, x):
            return 2 * x.flatten(1)

    def build():
        return nn.Sequential(
            neuron.IFNode(), nn.Conv2d(3, 4, 3), Flat(), neuron.IFNode(), nn.Linear(16, 6), nn.LayerNorm(6),
            neuron.IFNode(), neuron.LIFNode(), nn.Unflatten(1, (2, 3)), nn.Flatten(), neuron.IFNode(), nn.Linear(6, 2),
        )  # fmt: skip

    x = 4 * torch.rand(N, 3, 4, 4)
    _, report = check_swap(build, PMSN, x, others=(torch.rand(5, 3, 4, 4),), gradients=False)
    assert report == {"0": 3, "3": 16, "6": 6, "7": 6, "10": 6}
    with pytest.raises(ValueError, match="the channels of 0, 3, 7, 10 cannot be told"):
        swap_neurons(build(), PMSN)
    _, report = check_swap(build, TCLIFNode, x, sample=False, gradients=False)  # needs no channels: goes in anywhere
    assert list(report) == ["0", "3", "6", "7", "10"] and report["6"] == 6 and report["0"] is None
    assert "any" in str(report)


@NEURONS
def test_recurrent_containers_keep_their_feedback(new):
    def build():
        container = layer.LinearRecurrentContainer(neuron.LIFNode(), 5, 5)
        return nn.Sequential(layer.MultiStepContainer(nn.Linear(3, 5), container), nn.Linear(5, 2))

    x = 3 * torch.rand(T, N, 3)
    net, report = check_swap(build, new, x, others=(torch.rand(T, N + 1, 3),))
    assert report == {"0.1.sub_module": 5} and type(net[0][1]) is layer.LinearRecurrentContainer
    assert net[0][1].sub_module.step_mode == "s"


class Adds(nn.Module):
    """An element_wise_function as people write it."""

    def __init__(self, width, sign=1.0):
        super().__init__()
        self.fc, self.sign = nn.Linear(width, width), sign

    def forward(self, y, x):
        return x + self.sign * self.fc(y)


def containers(sub_module=TCLIFNode, **options):
    """One of each, in multi-step mode."""
    return nn.Sequential(
        nn.Linear(3, 5), layer.LinearRecurrentContainer(sub_module(**options), 5, 5, step_mode="m"),
        nn.Linear(5, 6), layer.ElementWiseRecurrentContainer(sub_module(**options), Adds(6), step_mode="m"),
        nn.Linear(6, 2),
    )  # fmt: skip


@pytest.mark.parametrize("sample", [True, False])
def test_recurrent_containers_become_recurrent_neurons(sample):
    x = 3 * torch.rand(T, N, 3)
    net = containers(neuron.LIFNode, v_threshold=0.7, detach_reset=True)
    learned = set(net.parameters())
    report = swap_neurons(net, RecurrentTCLIFNode, x if sample else None)
    assert report == {"1": 5, "3": 6}
    assert "LinearRecurrentContainer" in str(report) and "recurrent=Linear" in str(report)
    (project, first), second = net[1], net[3]
    assert type(first) is type(second) is RecurrentTCLIFNode
    assert second.recurrent.weight in learned and first.recurrent.bias in learned
    assert first.v_threshold == second.v_threshold == 0.7 and first.detach_reset and first.step_mode == "m"
    assert (project.weight.shape, project.bias) == ((5, 5), None)

    def build():
        return containers(neuron.LIFNode)

    check_swap(build, RecurrentTCLIFNode, x, others=(torch.rand(T, N + 1, 3),), sample=sample)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_container_around_tclif_computes_the_same_as_a_recurrent_neuron(per_channel):
    x = 3 * torch.rand(4 * T, N, 3)
    options = dict(beta=(-0.3, 0.6), gamma=0.4, leak=(0.9, 0.8), soma_feedback="pre_reset", v_threshold=0.8)
    net = containers(**options)
    if per_channel:
        for index, width in ((1, 5), (3, 6)):
            net[index].sub_module = TCLIFNode(channels=width, **options)
            nn.init.normal_(net[index].sub_module.c1)
    net = net.double()
    expected = net(x.double())
    expected.sum().backward()
    kept = {name: p.grad for name, p in net.named_parameters()}
    assert swap_neurons(net, RecurrentTCLIFNode) == {"1": 5, "3": 6}
    functional.reset_net(net), net.zero_grad()
    actual = net(x.double())
    actual.sum().backward()
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)
    found = {
        "1.rc.weight": torch.cat([net[1][0].weight.grad, net[1][1].recurrent.weight.grad], 1),
        "1.rc.bias": net[1][1].recurrent.bias.grad,
        "1.sub_module.c1": net[1][1].c1.grad,
        "3.element_wise_function.fc.weight": net[3].recurrent.weight.grad,
        "3.sub_module.c2": net[3].c2.grad,
        "0.weight": net[0].weight.grad,
    }
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, kept[name], rtol=0, atol=1e-12)


def test_what_is_no_recurrent_neuron_is_refused_by_name():
    for container, message in (
        (layer.ElementWiseRecurrentContainer(neuron.LIFNode(), lambda y, x: y + x), "0: has an element_wise_function"),
        (layer.ElementWiseRecurrentContainer(neuron.LIFNode(), Adds(4, -1.0)), "0: has an element_wise_function"),
        (layer.LinearRecurrentContainer(nn.Sequential(nn.Linear(4, 2), neuron.LIFNode()), 4, 2), "0: holds a Seq"),
    ):
        net = nn.Sequential(container, nn.Linear(4, 2))
        before = snapshot(net)
        with pytest.raises(ValueError, match=message):
            swap_neurons(net, RecurrentTCLIFNode)
        assert same(before, snapshot(net))
    with pytest.raises(ValueError, match="net has no recurrent layer to swap"):
        swap_neurons(nn.Sequential(nn.Linear(4, 2), neuron.LIFNode()), RecurrentTCLIFNode)
    net = nn.Sequential(nn.Linear(4, 2), neuron.LIFNode())
    assert swap_neurons(net, RecurrentTCLIFNode, target=neuron.LIFNode) == {"1": 2}
    assert net[1].recurrent.weight.shape == (2, 2)


class WithoutLayers(nn.Module):
    """Weights that are used by functions, and branches that are joined right before a neuron."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (layer.Conv2d(2, C, 3, padding=1, step_mode="m") for C in (3, 5))
        self.sn1, self.weight, self.sn2 = lif(), nn.Parameter(torch.randn(6, 8)), lif()
        self.scale = nn.Parameter(torch.ones(8, 1, 1))

    def forward(self, x):
        y = self.sn1(4 * self.scale * torch.cat([self.a(x), self.b(x)], 2))
        return self.sn2(torch.einsum("dc,tnchw->tndhw", self.weight, y))


def test_weights_without_layers_and_joined_branches():
    x, others = torch.randn(T, N, 2, 4, 4), (torch.randn(T, N + 1, 2, 6, 5),)
    _, report = check_swap(WithoutLayers, PMSN, x, others=others)
    assert report == {"sn1": 8, "sn2": 6}


def test_wrapped_nets():
    x = torch.rand(T, N, 3)
    for wrap in (nn.DataParallel, functools.partial(torch.compile, backend="eager")):
        inner = nn.Sequential(layer.Linear(3, 4, step_mode="m"), lif())
        net = wrap(inner)
        net(x)
        functional.reset_net(net)
        assert list(swap_neurons(net, PMSN, x).values()) == [4] and type(inner[1]) is PMSNNode
        assert net(x).shape == (T, N, 4)
    lazy = nn.Sequential(nn.LazyLinear(4), lif(), nn.LazyLinear(2))
    assert swap_neurons(lazy, PMSN, x) == {"1": 4}
    lazy(x)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_axis_is_found_without_gradients(context):
    with context():
        net, x = Tokens(), torch.randn(N, 3, 16, 16)
        with pytest.raises(ValueError, match="say channel_axis=-1"):
            swap_neurons(net, PMSN, x)
        assert len(swap_neurons(net, PMSN, x, channel_axis="auto")) == 6


def test_serial_general_neuron_goes_in_too():
    check_swap(Delays, MultiCompartmentNode, torch.rand(T, N, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@NEURONS
def test_dtype_of_the_net(new, dtype):
    net = Delays().to(dtype)
    x = torch.rand(T, N, 6, dtype=dtype)
    report = swap_neurons(net, new, x)
    assert {p.dtype for p in net.parameters()} == {dtype} and len(report) == 2
    assert net(x).dtype == dtype
    moved = Delays().to("meta")
    swap_neurons(moved, new)
    assert {p.device.type for p in moved.parameters()} == {"meta"}


@pytest.mark.skipif(not hasattr(functional, "invalidate_reset_cache"), reason="SpikingJelly 2.0's model zoo")
@pytest.mark.parametrize("new", [TCLIFNode, functools.partial(PMSN, keep_state=False)])
def test_model_zoo_of_spikingjelly_2(new):
    from spikingjelly.activation_based.model.qkformer import QKFormer
    from spikingjelly.activation_based.model.spike_driven_transformer import SpikeDrivenTransformer

    for cls, options in (
        (SpikeDrivenTransformer, {"embed_dims": 16, "num_heads": 2, "depths": 1, "pooling_stat": "0011"}),
        (QKFormer, {"embed_dims": 16, "num_heads": (2, 2, 2), "depths": (1, 1, 1)}),
    ):
        net = cls(T=2, num_classes=3, **options)
        x = torch.randn(1, 3, 16, 16)
        try:
            report = swap_neurons(net, new, x, channel_axis="auto" if new is not TCLIFNode else None)
        except ValueError as error:  # heads
            names = [line.split()[0] for line in str(error).split("\n")[1:]]
            report = swap_neurons(net, new, x, channel_axis="auto", exclude=names)
            assert all("attn" in name or "heads" in name for name in names)
        assert len(report) > 10
        functional.reset_net(net)
        net(x).sum().backward()
