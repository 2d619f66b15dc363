"""Parameters trained with the two papers' own scripts, loaded into networks with this package's neurons.

The scripts name a PMSN's parameters ``D``, ``log_dt``, ``log_A_real``, ``A_imag``, ``VinvB_real``, ``VinvB_imag`` (or
``B_*``), ``CV_real``, ``CV_imag`` (or ``C_*``), and a TC-LIF's ``decay_factor``, two numbers of shape [1, 2] or [2].
The ImageNet network's ``pe`` needs a network made with it: ``sew_resnet_static(..., T=4)``.
Modules are matched by kind (neuron, linear or convolution, norm, ``pe``) and order, so the target may be a network of
:mod:`pmsn_plugins.models`, or any SpikingJelly or snnTorch net with our neurons in the same order. Thresholds and
TC-LIF's gamma are not in a state_dict: give them to the neurons.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ._checks import check_mapping, check_module, check_type, shown
from .parameters import PMSNParametersMixin, TCLIFParametersMixin

_PMSN_NAMES = {
    "D": "D",
    "log_dt": "log_dt",
    "log_A_real": "log_decay",
    "A_imag": "freq",
    "VinvB_real": "B_real",
    "VinvB_imag": "B_imag",
    "B_real": "B_real",
    "B_imag": "B_imag",
    "CV_real": "R_real",
    "CV_imag": "R_imag",
    "C_real": "R_real",
    "C_imag": "R_imag",
}
_NORM_NAMES = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
_WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
_WRAPPERS = ("state_dict", "best_net", "model")
_KINDS = ("PMSN", "TC-LIF", "norm", "linear or convolution", "pe")


def convert_neuron(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One neuron's parameters under this package's names, from a script's names (without prefix).

    Raises:
        TypeError: ``state`` is no mapping of tensors.
        ValueError: a name is unknown or missing.

    Example:
        >>> sorted(convert_neuron({"decay_factor": torch.zeros(1, 2)}))
        ['c1', 'c2']
    """
    check_mapping("state", state, Tensor, "a mapping of tensors")
    if "decay_factor" in state:
        if len(state) > 1 or state["decay_factor"].numel() != 2:
            raise ValueError(f"decay_factor must be two numbers and stand alone, got {_shapes(state)}")
        c1, c2 = state["decay_factor"].flatten()
        return {"c1": c1, "c2": c2}
    unknown = sorted(set(state) - set(_PMSN_NAMES))
    converted = {_PMSN_NAMES[name]: value for name, value in state.items() if name in _PMSN_NAMES}
    missing = sorted(set(_PMSN_NAMES.values()) - set(converted))
    if unknown or missing:
        raise ValueError(f"not the parameters of a PMSN: unknown {unknown}, missing {missing}")
    return converted


@torch.no_grad()
def load_authors_checkpoint(net: nn.Module, checkpoint: str | Path | Mapping[str, object]) -> None:
    """Load a checkpoint of the papers' scripts into ``net``.

    Args:
        net: the network, or a single neuron.
        checkpoint: file, the dictionary it contains, or the state_dict in it.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: ``net`` is no module, or ``checkpoint`` neither a path nor a mapping.
        ValueError: the file is no checkpoint, has names that no script writes, does not fit ``net``, or holds values
            that are not finite. Then nothing is changed.

    Warns:
        UserWarning: the checkpoint is of the TC-LIF script's recurrent MNIST network, which has a threshold of 1.0
            whatever ``--threshold`` said, and a neuron of ``net`` has another one.

    Example:
        >>> from pmsn_plugins.spikingjelly import TCLIFNode
        >>> net = nn.Sequential(TCLIFNode())
        >>> load_authors_checkpoint(net, {"0.decay_factor": torch.ones(1, 2)})
        >>> net[0].c1
        Parameter containing:
        tensor(1., requires_grad=True)
    """
    check_module("net", net)
    check_type("checkpoint", checkpoint, (str, Path, Mapping), "a path, or what the file there contains")
    contents = _read(Path(checkpoint)) if isinstance(checkpoint, (str, Path)) else checkpoint
    given = _modules_of(_state_dict(contents))
    pairs: list[tuple[Tensor, Tensor]] = []
    for kind in _KINDS:
        theirs = given[kind]
        ours = [module for module in net.modules() if _kind(module) == kind]
        if len(theirs) != len(ours):
            names = ", ".join(prefix or "at the top" for prefix in theirs)
            raise ValueError(f"the checkpoint has {len(theirs)} {kind} layers ({names}), this network has {len(ours)}")
        for (prefix, state), module in zip(theirs.items(), ours, strict=True):
            if kind in ("PMSN", "TC-LIF"):
                state = convert_neuron(state)
                own = {name: getattr(module, name) for name in state}
            else:
                own = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
            pairs += _pairs(prefix, state, own)
    for target, value in pairs:
        target.copy_(value)
    if _is_recurrent_mnist(given):
        _check_thresholds(net)


def _is_recurrent_mnist(given: Mapping[str, Mapping[str, object]]) -> bool:
    """Three TC-LIF layers, the first two with feedback: of the scripts' networks only this one has them."""
    return [prefix.endswith(".sub_module") for prefix in given["TC-LIF"]] == [True, True, False]


def _check_thresholds(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if _kind(module) == "TC-LIF":
            threshold = float(module.v_threshold if hasattr(module, "v_threshold") else module.threshold)
            if threshold != 1.0:
                warnings.warn(
                    f"{name or 'the neuron'} has threshold {threshold:g}, but the script of this checkpoint (recurrent "
                    "MNIST) ignores its --threshold: its neurons fire at 1.0. With another threshold this network's "
                    "outputs are not those of the script; build it with v_threshold=1.0",
                    stacklevel=4,  # of the caller, around no_grad
                )
                return


def _read(path: Path) -> object:
    """What a script saved; no code in the file is run."""
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # the scripts store their settings as one
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is damaged, no checkpoint, or holds more than tensors and numbers ({reason}). If you trust it, "
            "pass what torch.load(..., weights_only=False) returns"
        ) from error


def _pairs(prefix: str, state: Mapping[str, Tensor], own: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(our tensor, their value in our shape) for one module."""
    if set(state) != set(own):
        raise ValueError(f"{prefix or 'the checkpoint'} holds {sorted(state)}, this network's layer {sorted(own)}")
    pairs = []
    for name, value in state.items():
        # a 1x1 convolution is a linear map, and a number per channel may be a column; anything else must agree
        if _squeezed(value) != _squeezed(own[name]):
            raise ValueError(f"{prefix}.{name} has shape {tuple(value.shape)}, this network's {tuple(own[name].shape)}")
        if value.is_complex() or value.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{prefix}.{name} must be {own[name].dtype}, got {shown(value)}")
        if not value.isfinite().all():
            raise ValueError(f"{prefix}.{name} holds NaN or infinite values: the checkpoint is broken")
        pairs.append((own[name], value.reshape(own[name].shape)))
    return pairs


def _squeezed(tensor: Tensor) -> tuple[int, ...]:
    return tuple(size for size in tensor.shape if size != 1)


def _kind(module: nn.Module) -> str | None:
    if isinstance(module, PMSNParametersMixin):
        return "PMSN"
    if isinstance(module, TCLIFParametersMixin):
        return "TC-LIF"
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "norm"
    if isinstance(getattr(module, "pe", None), nn.Parameter):
        return "pe"
    return "linear or convolution" if isinstance(module, _WEIGHT_LAYERS) else None


def _state_dict(checkpoint: object) -> dict[str, Tensor]:
    """The state_dict inside whatever a script saved, without the prefix of DataParallel."""
    while isinstance(checkpoint, Mapping) and (inner := [key for key in _WRAPPERS if key in checkpoint]):
        checkpoint = checkpoint[inner[0]]
    if not isinstance(checkpoint, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in checkpoint.items()
    ):
        raise ValueError(f"no state_dict found (looked for {', '.join(_WRAPPERS)}); is this a checkpoint of a script?")
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}


def _modules_of(state: Mapping[str, Tensor]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """kind -> module name -> its tensors, in the order of the state_dict."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        prefix, _, name = key.rpartition(".")
        # the scripts keep D outside the module that holds the other parameters
        prefix = re.sub(r"(^|\.)kernel$", "", prefix)
        modules.setdefault(prefix, {})[name] = value
    for unused in _unused(modules):
        del modules[unused]
    kinds: dict[str, dict[str, dict[str, Tensor]]] = {kind: {} for kind in _KINDS}
    for prefix, tensors in modules.items():
        names = set(tensors)
        if names & {"log_dt", "log_A_real", "A_imag"}:
            kind = "PMSN"
        elif "decay_factor" in names:
            kind = "TC-LIF"
        elif names == {"pe"}:
            kind = "pe"
        elif "running_mean" in names and names <= _NORM_NAMES:
            kind = "norm"
        elif "weight" in names and names <= {"weight", "bias"} and tensors["weight"].ndim > 1:
            kind = "linear or convolution"
        else:
            raise ValueError(f"{prefix or 'the checkpoint'} holds {_shapes(tensors)}: no layer of the papers' scripts")
        kinds[kind][prefix] = tensors
    return kinds


def _unused(modules: Mapping[str, object]) -> list[str]:
    """The sequential CIFAR-10 script's convolution after the last neuron of each stage, whose output it never uses."""
    unused = []
    for stage in ("", "2"):
        neurons = [name for name in modules if re.fullmatch(rf"PMSN_layers{stage}\.\d+", name)]
        convolutions = [name for name in modules if re.fullmatch(rf"linear_layers{stage}\.\d+", name)]
        if neurons and len(neurons) == len(convolutions):
            unused.append(convolutions[-1])
    return unused


def _shapes(state: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in state.items())
