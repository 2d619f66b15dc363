"""What a run's checkpoint must hold before anything of it is used: every part, of the right type and range.

A file may be readable and still be from another version, edited, or put together by hand.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._checks import shown
from .settings import Settings
from .snapshot import SnapshotError

WHERE = "the checkpoint"

NETWORK = {"settings": dict, "net": dict, "permutation": (Tensor, type(None))}
"""What it takes to use a network."""

SELECTED = {**NETWORK, "epoch": int, "val_accuracy": float}
"""``best.pt``."""

RESUMABLE = {
    **NETWORK,
    "optimizer": dict,
    "scheduler": dict,
    "scaler": dict,
    "progress": dict,
    "random": list,
    "source": str,
    "sync_batchnorm": bool,
}
"""``last.pt``."""

_OPTIMIZER_STATES = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.Adam: {"step", "exp_avg", "exp_avg_sq"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}


def check_parts(payload: object, parts: Mapping[str, Any], where: object = WHERE) -> dict[str, Any]:
    """The payload itself; SnapshotError unless it has all ``parts``, each of its type."""
    if not isinstance(payload, dict):
        raise SnapshotError(f"{where} must be a dictionary, got {shown(payload)}")
    missing = [name for name in parts if name not in payload]
    if missing:
        raise SnapshotError(f"{where} lacks {', '.join(missing)}: it is damaged, or of another kind or version")
    for name, kind in parts.items():
        _check_type(payload[name], kind, name, where)
    return payload


def settings_in(payload: dict[str, Any], where: object = WHERE) -> Settings:
    """The settings of a checkpoint; SnapshotError unless they are those of this version, all of them allowed."""
    _check_names(payload["settings"], [item.name for item in fields(Settings)], "settings", where)
    try:
        return Settings(**payload["settings"])
    except (TypeError, ValueError) as error:
        raise _damaged(f"in its settings {error}", where) from error


def check_like(given: Any, own: Any, name: str, least: float = 0.0) -> None:
    """SnapshotError unless ``given`` has the names and lengths of ``own``, and finite numbers from ``least`` on."""
    if isinstance(own, dict):
        _check_type(given, dict, name)
        _check_names(given, own, name)
        for key in own:
            check_like(given[key], own[key], f"{name}.{key}", least)
    elif isinstance(own, list):
        _check_type(given, list, name)
        if own and len(given) != len(own):
            raise _damaged(f"{name} must have {len(own)} entries, got {len(given)}")
        for i, (value, mine) in enumerate(zip(given, own, strict=False)):
            check_like(value, mine, f"{name}[{i}]", least)
    elif isinstance(given, bool) or not isinstance(given, int | float) or not least <= given < math.inf:
        raise _damaged(f"{name} must be a finite number of at least {least:g}, got {shown(given)}")


def check_same(given: object, own: object, name: str) -> None:
    """SnapshotError unless a number or a list of them is what the rest of the checkpoint makes it."""
    if isinstance(given, bool | Tensor) or given != own:
        raise _damaged(f"{name} must be {own}, got {shown(given)}")


def check_integer(given: object, most: int, name: str) -> None:
    """SnapshotError unless ``given`` is an integer from 0 to ``most``."""
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given <= most:
        raise _damaged(f"{name} must be an integer in 0..{most}, got {shown(given)}")


def optimizer_state(given: dict[str, Any], optimizer: torch.optim.Optimizer, *, has_begun: bool) -> dict[str, Any]:
    """What ``optimizer`` is to load; SnapshotError unless it is a state of this optimiser.

    Of the options only the learning rates are taken from the checkpoint: the settings decide the others, and releases
    of torch add some. Before the first step there is no state.
    """
    own = optimizer.state_dict()["param_groups"]
    _check_names(given, ("state", "param_groups"), "optimizer")
    groups, states = given["param_groups"], given["state"]
    _check_type(groups, list, "optimizer.param_groups")
    _check_type(states, dict, "optimizer.state")
    if len(groups) != len(own):
        raise _damaged(f"optimizer.param_groups must have {len(own)} entries, got {len(groups)}")
    for i, (group, mine) in enumerate(zip(groups, own, strict=True)):
        name = f"optimizer.param_groups[{i}]"
        _check_type(group, dict, name)
        if missing := [key for key in ("params", "lr") if key not in group]:
            raise _damaged(f"{name} lacks {', '.join(missing)}")
        _check_type(group["params"], list, f"{name}.params")
        if [type(number) for number in group["params"]] != [int] * len(mine["params"]):
            raise _damaged(f"{name}.params must be {len(mine['params'])} integers, got {shown(group['params'])}")
        check_same(group["params"], mine["params"], f"{name}.params")
        check_like(group["lr"], 0.0, f"{name}.lr")
    if has_begun and not states:
        raise _damaged("optimizer.state must not be empty after the first step")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, state in states.items():
        check_integer(i, len(parameters) - 1, "a number in optimizer.state")
        _check_type(state, dict, f"optimizer.state[{i}]")
        _check_names(state, _OPTIMIZER_STATES[type(optimizer)], f"optimizer.state[{i}]")
        for key, value in state.items():
            name, shape = f"optimizer.state[{i}].{key}", () if key == "step" else parameters[i].shape
            _check_type(value, Tensor, name)
            if value.shape != shape or not value.isfinite().all():
                raise _damaged(f"{name} must be finite and of shape {tuple(shape)}, got {shown(value)}")
    groups = [{**mine, "lr": group["lr"]} for group, mine in zip(groups, own, strict=True)]
    return {"state": states, "param_groups": groups}


def check_random_states(given: list[Any]) -> None:
    """SnapshotError unless generators can be put into these states, one entry per process."""
    for i, state in enumerate(given):
        _check_type(state, dict, f"random[{i}]")
        _check_names(state, ("python", "numpy", "torch", "cuda"), f"random[{i}]")
        _check_type(state["cuda"], (Tensor, type(None)), f"random[{i}].cuda")
        if state["cuda"] is not None and state["cuda"].dtype != torch.uint8:
            raise _damaged(f"random[{i}].cuda must be bytes, got {shown(state['cuda'])}")
        try:
            random.Random().setstate(state["python"])
            kind, keys, *rest = state["numpy"]
            np.random.RandomState().set_state((kind, keys.numpy().astype(np.uint32), *rest))
            torch.Generator().set_state(state["torch"])
        except Exception as error:  # each generator has its own way to refuse
            reason = str(error).partition("\n")[0]
            raise _damaged(f"random[{i}] must be the states of generators ({reason})") from error


def _damaged(what: str, where: object = WHERE) -> SnapshotError:
    return SnapshotError(f"{where} is damaged: {what}")


def _check_type(given: object, kind: type | tuple[type, ...], name: str, where: object = WHERE) -> None:
    if not isinstance(given, kind) or (isinstance(given, bool) and kind is not bool):
        kinds = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise _damaged(f"{name} must be of type {kinds}, got {shown(given)}", where)


def _check_names(given: Collection[Any], names: Collection[str], what: str, where: object = WHERE) -> None:
    missing = ", ".join(str(name) for name in names if name not in given)
    unknown = ", ".join(str(name) for name in given if name not in names)
    problems = [text for text, found in ((f"lacks {missing}", missing), (f"has unknown {unknown}", unknown)) if found]
    if problems:
        raise SnapshotError(f"{where} is damaged or of another version: {what} {' and '.join(problems)}")
