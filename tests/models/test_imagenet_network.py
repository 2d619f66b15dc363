"""The ImageNet network of the PMSN authors' script against plain PyTorch under the script's parameter names."""

import pytest
import torch
from torch import nn

from pmsn_plugins.checkpoints import load_authors_checkpoint
from pmsn_plugins.models import count_parameters, neuron_factory, reset_states, sew_resnet_static
from pmsn_plugins.training import evaluate
from pmsn_plugins.training.evaluation import check_chunk

T, N, CLASSES = 3, 2, 5
PMSN = neuron_factory("pmsn", preset="static")


class Kernel(nn.Module):
    def __init__(self, channels, k=4):
        super().__init__()
        for name in ("log_A_real", "A_imag", "B_real", "B_imag", "C_real", "C_imag"):
            setattr(self, name, nn.Parameter(torch.randn(channels, k)))
        self.log_dt = nn.Parameter(-1.6 * torch.rand(channels))


class Spikes(nn.Module):
    """PMSN written out step by step: [T N, C, H, W] -> [T N, C, H, W]."""

    def __init__(self, channels):
        super().__init__()
        self.D = nn.Parameter(torch.rand(channels))
        self.kernel = Kernel(channels)

    def forward(self, x):
        p = self.kernel
        lam = torch.complex(-p.log_A_real.exp(), p.A_imag)
        A = torch.exp(p.log_dt.exp()[:, None] * lam)
        B = (A - 1) / lam * torch.complex(p.B_real, p.B_imag)
        C = torch.complex(p.C_real, p.C_imag)
        columns = [value.T[:, None, :, None, None] for value in (A, B, C)]  # [k, 1, C, 1, 1]
        h, v, spikes = 0, 0, []
        for x_t in x.unflatten(0, (T, N)):
            h = columns[0] * h + columns[1] * x_t
            current = (columns[2] * h).sum(0).real + self.D[:, None, None] * x_t
            u = v + current.relu()
            spikes.append((u >= 1).to(x))
            v = u - u.floor()
        return torch.cat(spikes)


def conv_norm(fan_in, fan_out, size, stride=1):
    norm = nn.BatchNorm2d(fan_out)
    nn.init.uniform_(norm.bias, 0, 1)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return [nn.Conv2d(fan_in, fan_out, size, stride, size // 2, bias=False), norm]


class Block(nn.Module):
    def __init__(self, fan_in, width, stride):
        super().__init__()
        self.conv1, self.bn1 = conv_norm(fan_in, width, 3, stride)
        self.sn1 = Spikes(width)
        self.conv2, self.bn2 = conv_norm(width, width, 3)
        self.sn2 = Spikes(width)
        changes = stride > 1 or fan_in != width
        self.downsample = nn.Sequential(*conv_norm(fan_in, width, 1, stride), Spikes(width)) if changes else None

    def forward(self, x):
        y = self.sn2(self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class Script(nn.Module):
    """SEW ResNet-18 (ADD) with ``pe`` and an average in the stem."""

    def __init__(self):
        super().__init__()
        self.pe = nn.Parameter(torch.randn(T, 1, 1, 1, 1))
        self.conv1, self.bn1 = conv_norm(3, 64, 7, 2)
        self.sn1 = Spikes(64)
        self.maxpool = nn.AvgPool2d(3, 2, 1)
        fan_in = 64
        for i, width in enumerate((64, 128, 256, 512), 1):
            blocks = Block(fan_in, width, 1 if i == 1 else 2), Block(width, width, 1)
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
            fan_in = width
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, images):
        x = (images.unsqueeze(0).repeat(T, 1, 1, 1, 1) + self.pe).flatten(0, 1)
        x = self.maxpool(self.sn1(self.bn1(self.conv1(x))))
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3))).unflatten(0, (T, N))


def test_a_checkpoint_of_the_script_gives_its_logits():
    script = Script().double().eval()
    net = sew_resnet_static(18, PMSN, num_classes=CLASSES, T=T).double().eval()
    assert count_parameters(net) == count_parameters(script)
    load_authors_checkpoint(net, {f"module.{name}": value for name, value in script.state_dict().items()})
    images = torch.rand(N, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        expected = script(images)
        logits = net(images.expand(T, *images.shape))
    assert expected.std() > 0.1 and not torch.allclose(expected[0], expected[2])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-12)


def test_pe_is_learned_and_belongs_to_its_time_steps():
    net = sew_resnet_static(18, PMSN, num_classes=CLASSES, T=T)
    assert net.pe.shape == (T, 1, 1, 1, 1) and 0 < net.pe.std() < 0.1
    x = torch.rand(1, N, 3, 16, 16)
    net(x.expand(T, *x.shape[1:])).sum().backward()
    assert net.pe.grad.all()
    with pytest.raises(ValueError, match=r"x_seq must have the 3 time steps of pe, got 1"):
        net(x)
    reset_states(net)
    with pytest.raises(ValueError, match=r"cannot stream: pe belongs to .* got chunk=1"):
        check_chunk(net, 1)
    with pytest.raises(ValueError, match="T must be at least 1, got 0"):
        sew_resnet_static(18, PMSN, T=0)


def test_a_checkpoint_with_pe_needs_a_network_with_it():
    net = sew_resnet_static(18, PMSN, num_classes=CLASSES)
    with pytest.raises(ValueError, match=r"has 1 pe layers \(at the top\), this network has 0"):
        load_authors_checkpoint(net, Script().state_dict())


def test_weights_of_an_ann_for_the_network_with_pe(tmp_path):
    from torchvision import models

    state = models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "resnet.pt")
    net = sew_resnet_static(18, PMSN, T=T, init_from=tmp_path / "resnet.pt")
    assert torch.equal(net.net.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    assert torch.equal(net.net.fc.bias, state["fc.bias"])


def test_evaluation_feeds_whole_sequences():
    net = sew_resnet_static(18, PMSN, num_classes=CLASSES, T=T)
    batches = [(torch.rand(N, 3, 16, 16), torch.tensor([0, 4]))]
    assert evaluate(net, batches, lambda x: x.expand(T, *x.shape)).samples == N
