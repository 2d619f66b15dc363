"""A run as its checkpoints know it: network, data, optimiser, progress, and how it goes on from a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_flag, check_module, check_type
from ..datasets import DataSource, View, validation_split
from ..datasets.source import Samples
from . import contents, snapshot
from .batches import steps_in
from .distributed import Process, all_gather, all_sum
from .logs import COLUMNS
from .optimizer import make_optimizer, make_scheduler
from .settings import Settings
from .sync_batchnorm import convert_sync_batchnorm


@dataclass
class Progress:
    """Where a run is: everything besides parameters and random generators that the next step depends on."""

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    best: float = -1.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Run:
    """What a run consists of. For its arguments and errors see :class:`.Trainer`, which makes it go."""

    def __init__(
        self, net: nn.Module, source: DataSource, settings: Settings, process: Process, *, sync_batchnorm: bool
    ) -> None:
        check_module("net", net)
        check_type("source", source, DataSource, "a DataSource")
        check_type("settings", settings, Settings, "Settings")
        check_type("process", process, Process, "a Process")
        check_flag("sync_batchnorm", sync_batchnorm)
        parts = process.world_size * settings.accumulate
        if settings.batch_size % parts:
            raise ValueError(
                f"batch_size={settings.batch_size} must be divisible by {process.world_size} processes times "
                f"accumulate={settings.accumulate}"
            )
        self.sync_batchnorm = sync_batchnorm and process.world_size > 1
        if self.sync_batchnorm:
            net = convert_sync_batchnorm(net)
        self.net = net.to(process.device)
        self.source, self.settings, self.process = source, settings, process
        self.micro_batch = settings.batch_size // parts
        self.train_set, self.val_set = _split(source, settings)
        if not steps_in(len(self.train_set), settings.batch_size, settings.drop_last):
            raise ValueError(
                f"drop_last=True leaves no batch of batch_size={settings.batch_size} of {len(self.train_set)} samples"
            )
        self.optimizer = make_optimizer(self.net, settings)
        self.scheduler = make_scheduler(self.optimizer, settings)
        self.scaler = torch.amp.grad_scaler.GradScaler(process.device.type, enabled=settings.amp == "fp16")
        self.progress = Progress()

    def identity(self) -> dict[str, Any]:
        """What it takes to use the network: settings, parameters, and the order of time steps it was trained on."""
        return {
            "settings": asdict(self.settings),
            "net": self.net.state_dict(),
            "permutation": self.source.permutation,
        }

    def resumable(self) -> dict[str, Any]:
        """All that ``last.pt`` holds. Every process has to ask for it."""
        random_states = all_gather(snapshot.random_state())
        sums = all_sum(torch.tensor(self.progress.sums, dtype=torch.float64, device=self.process.device)).tolist()
        return {
            **self.identity(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": {**asdict(self.progress), "sums": sums},
            "random": random_states,
            "source": self.source.name,
            "sync_batchnorm": self.sync_batchnorm,
        }

    def restore(self, payload: dict[str, Any]) -> None:
        """Continue where a checkpoint of this run (``last.pt``) left off. After an error nothing is changed.

        Raises:
            SnapshotError: something is missing in it, or of another type or range than what is written there.
            ValueError: it belongs to other settings, data, or network, or another number of processes.
        """
        contents.check_parts(payload, contents.RESUMABLE)
        settings, saved = asdict(self.settings), asdict(contents.settings_in(payload))
        differing = [name for name, value in saved.items() if _plain(value) != _plain(settings[name])]
        if differing:
            details = ", ".join(f"{n}: {saved[n]!r} there, {settings[n]!r} here" for n in differing)
            raise ValueError(f"the checkpoint belongs to a run with other settings ({details})")
        if len(payload["random"]) != self.process.world_size:
            raise ValueError(
                f"the checkpoint was written by {len(payload['random'])} processes, "
                f"this run has {self.process.world_size}"
            )
        source, sync_batchnorm = payload["source"], payload["sync_batchnorm"]
        if source != self.source.name:
            raise ValueError(f"the checkpoint was trained on {source}, this run has {self.source.name}")
        mine, theirs = (None if p is None else p.tolist() for p in (self.source.permutation, payload["permutation"]))
        if mine != theirs:
            raise ValueError("the checkpoint was trained on another order of the time steps")
        if sync_batchnorm != self.sync_batchnorm:
            raise ValueError(f"the checkpoint was written {'with' if sync_batchnorm else 'without'} sync_batchnorm")
        check_network(self.net, payload["net"])
        progress = self._progress_in(payload["progress"])
        contents.check_random_states(payload["random"])
        has_begun = (progress.epoch, progress.step) != (0, 0)
        optimizer = contents.optimizer_state(payload["optimizer"], self.optimizer, has_begun=has_begun)
        contents.check_same(payload["scheduler"].get("last_epoch"), progress.epoch, "scheduler.last_epoch")
        contents.check_like(payload["scaler"], self.scaler.state_dict(), "scaler")
        load_network(self.net, payload["net"])
        self.optimizer.load_state_dict(optimizer)
        self.scheduler.load_state_dict({"last_epoch": progress.epoch})  # the settings decide the rest
        self.scaler.load_state_dict(payload["scaler"])
        self.progress = progress
        if not self.process.is_main:
            self.progress.sums = [0.0, 0.0, 0.0]  # the main process holds the sum over all
        snapshot.set_random_state(payload["random"][self.process.rank])

    def _progress_in(self, saved: dict[str, Any]) -> Progress:
        """The progress in a checkpoint. Raises SnapshotError unless this run can be there."""
        contents.check_like(saved, asdict(Progress()), "progress", least=-1.0)
        for name in ("sums", "seconds"):
            contents.check_like(saved[name], getattr(Progress(), name), f"progress.{name}")
        progress, batch_size = Progress(**saved), self.settings.batch_size
        samples, epochs = len(self.train_set), self.settings.epochs
        contents.check_integer(progress.epoch, epochs, "progress.epoch")
        most = steps_in(samples, batch_size, self.settings.drop_last) if progress.epoch < epochs else 0
        contents.check_integer(progress.step, most, "progress.step")
        for i, row in enumerate(progress.curve):
            contents.check_like(row, dict.fromkeys(COLUMNS, 0.0), f"progress.curve[{i}]")
        best = max((row["val_accuracy"] for row in progress.curve), default=-1.0)
        listed = [row["epoch"] for row in progress.curve]
        contents.check_same(listed, list(range(1, progress.epoch + 1)), "epoch in progress.curve")
        contents.check_same(progress.best, best, "progress.best")
        contents.check_same(progress.sums[2], float(min(progress.step * batch_size, samples)), "progress.sums[2]")
        return progress


def load_network(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state_dict, or raise ValueError where it does not fit the net; then nothing is changed.

    Example:
        >>> load_network(nn.Linear(2, 3), nn.Linear(2, 3).state_dict())
    """
    check_network(net, state)
    net.load_state_dict(state)


def check_network(net: nn.Module, state: dict[str, Tensor]) -> None:
    """Raise unless a state_dict is one of this network; the error says in what the two differ.

    Raises:
        TypeError: ``net`` is no module, or ``state`` no dictionary of tensors.
        ValueError: it is of another network, or holds parameters that are not finite.
    """
    check_module("net", net)
    check_type("state", state, dict, "a state_dict")
    for name, value in state.items():
        check_type(f"{name} of state", value, Tensor, "a torch.Tensor")
    own = net.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)} there, {tuple(own[name].shape)} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems += [
        f"{name} is {state[name].dtype} there, {own[name].dtype} here"
        for name in own
        if name in state and _kind(state[name]) != _kind(own[name])
    ]
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(f"the checkpoint is of another network: {'; '.join(problems[:5])}{more}")
    broken = [name for name, _ in net.named_parameters() if name in state and not state[name].isfinite().all()]
    if broken:
        raise ValueError(f"the checkpoint is broken: NaN or infinite values in {', '.join(broken[:5])}")


def _kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "integer"


def _plain(value: Any) -> Any:
    """Tuples as lists, for comparing settings."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _split(source: DataSource, settings: Settings) -> tuple[View, Samples]:
    if source.validation is not None:
        return View(source.train, None, source.train_transform, settings.seed), source.validation
    train, validation = validation_split(source, settings.val_fraction, settings.stratify, settings.seed)
    return View(source.train, train, source.train_transform, settings.seed), View(source.train, validation)
