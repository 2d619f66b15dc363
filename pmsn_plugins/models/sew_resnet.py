"""SEW ResNet on static images, the PMSN paper's ImageNet network, and initial weights from torchvision's ResNets."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from .._checks import check_callable, check_int_at_least, check_mapping, check_module, check_path
from .neurons import NeuronFactory


class TimeEmbedded(nn.Module):
    """A network fed with ``x_seq + pe``: the learned ``pe`` [T, 1, 1, 1, 1] tells the steps of a static image apart.

    Raises:
        ValueError: in forward, ``x_seq`` has another number of time steps than ``pe``.
    """

    def __init__(self, net: nn.Module, T: int) -> None:
        super().__init__()
        check_int_at_least("T", T, 1)
        self.pe = nn.Parameter(nn.init.trunc_normal_(torch.empty(T, 1, 1, 1, 1), std=0.02))
        self.net = net

    def forward(self, x_seq: Tensor) -> Tensor:
        if len(x_seq) != len(self.pe):
            raise ValueError(f"x_seq must have the {len(self.pe)} time steps of pe, got {len(x_seq)}")
        return self.net(x_seq + self.pe)


def sew_resnet_static(
    depth: int,
    neuron: NeuronFactory,
    *,
    num_classes: int = 1000,
    T: int | None = None,
    init_from: str | Path | None = None,
) -> nn.Module:
    """SEW ResNet-18 or -34 (any depth SpikingJelly has), ADD connections: images [T, N, 3, H, W] -> [T, N, classes].

    The paper's network has PMSN with ``preset='static'`` everywhere; with ``context='global'`` every step sees the
    time-average of the input, with ``'local'`` (default) only the past: both are options of the neuron.

    Args:
        T: number of time steps of the network in the PMSN authors' script: a learned ``pe`` [T, 1, 1, 1, 1] is added to
            the repeated image, and the stem pools by AvgPool2d(3, stride 2, padding 1). None is SpikingJelly's SEW
            ResNet, for any number of steps: no ``pe``, and a maximum in the stem.
        init_from: ``'torchvision'`` downloads torchvision's ImageNet weights of the ResNet of the same depth; a path
            loads such a state_dict from a file.

    Raises:
        ValueError: the file holds no state_dict, or one of another ResNet.
        FileNotFoundError: there is no such file, or it could not be downloaded: says where it is expected.

    Example:
        >>> from pmsn_plugins.models import neuron_factory
        >>> net = sew_resnet_static(18, neuron_factory("tclif"), num_classes=10)
        >>> net(torch.rand(2, 1, 3, 32, 32)).shape
        torch.Size([2, 1, 10])
    """
    from spikingjelly.activation_based import layer

    from ..spikingjelly.resnet import sew_resnet

    check_callable("neuron", neuron, "a function that makes a neuron for a number of channels")
    if T is not None:
        check_int_at_least("T", T, 1)
    if init_from is not None:
        check_path("init_from", init_from)
    net = sew_resnet(depth, neuron, cnf="ADD", num_classes=num_classes)
    if init_from == "torchvision":
        load_torchvision_resnet(net, _download(depth))
    elif init_from is not None:
        load_torchvision_resnet(net, _read(Path(init_from)))
    if T is None:
        return net
    net.maxpool = layer.AvgPool2d(kernel_size=3, stride=2, padding=1, step_mode="m")  # the name is SpikingJelly's
    return TimeEmbedded(net, T)


def _download(depth: int) -> dict[str, Tensor]:
    from torchvision import models

    weights = models.get_model_weights(f"resnet{depth}").DEFAULT
    try:
        return weights.get_state_dict(check_hash=True)
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise FileNotFoundError(
            f"init_from='torchvision': cannot download ({error}). Put {weights.url} into {folder}, or name a file"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(
            f"init_from must be 'torchvision' or a file with its state_dict; there is no file {path}"
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = str(error).partition("\n")[0]
        raise ValueError(f"init_from: {path} is damaged or no state_dict ({reason})") from error
    if not (isinstance(state, dict) and all(isinstance(value, Tensor) for value in state.values())):
        raise ValueError(f"init_from: {path} holds no state_dict")
    return state


@torch.no_grad()
def load_torchvision_resnet(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy the convolutions, norms and, if the classes agree, last layer of a torchvision ResNet into a SEW ResNet.

    Both list their layers in the same order; only SpikingJelly's downsampling branches are nested one level deeper.
    Neurons keep their values.

    Raises:
        TypeError: ``net`` is no module, or ``state`` no dictionary of tensors.
        ValueError: the state_dict is not of the ResNet of this depth; nothing is copied.

    Example:
        >>> from torchvision.models import resnet18
        >>> from pmsn_plugins.models import neuron_factory
        >>> load_torchvision_resnet(sew_resnet_static(18, neuron_factory("tclif")), resnet18().state_dict())
    """
    check_module("net", net)
    check_mapping("state", state, Tensor, "a state_dict of tensors")
    own = {name: value for name, value in net.state_dict().items() if _is_ann(net, name)}
    source = list(state.items())
    if len(source) != len(own):
        raise ValueError(f"the state_dict has {len(source)} entries, this network {len(own)} outside its neurons")
    pairs = list(zip(own.items(), source, strict=True))
    last = {"fc.weight", "fc.bias"}
    for (name, value), (source_name, source_value) in pairs:
        same = name.rpartition(".")[2] == source_name.rpartition(".")[2] and value.shape == source_value.shape
        if not same and name not in last:
            raise ValueError(
                f"{source_name} {tuple(source_value.shape)} does not fit {name} {tuple(value.shape)}: "
                "the state_dict is of another ResNet"
            )
    copied = {name: new for (name, value), (_, new) in pairs if value.shape == new.shape}
    net.load_state_dict(copied, strict=False)


def _is_ann(net: nn.Module, name: str) -> bool:
    owner = net.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.Linear))
