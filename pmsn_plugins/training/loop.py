"""The training loop: epochs, checkpoints, resuming, stopping.

It is a plain loop over torch's own parts (DataLoader, DistributedDataParallel, autocast, GradScaler, optimisers,
schedulers): a training framework would hide what is hard here, that a run killed amid an epoch continues bit for bit,
and that many processes see the batches that one process would see.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader
from tqdm import tqdm

from .._checks import check_flag, check_int_at_least, check_module, check_path, check_type
from ..datasets import DataSource, View, validation_split
from ..datasets.source import Samples
from ..layers import reset_states
from ..parameters import param_groups
from . import contents, snapshot
from .batches import Step, plan_epoch, steps_in
from .distributed import Process, all_gather, all_sum, barrier, copy_from_main
from .evaluation import Evaluation, evaluate
from .lock import hold_folder
from .logs import COLUMNS, TensorBoard, write_csv
from .objective import check_class_numbers, correct, loss_of, read_out
from .settings import Settings
from .sync_batchnorm import convert_sync_batchnorm

LAST, BEST, CURVE = "last.pt", "best.pt", "curve.csv"
_CHECK_EVERY = 10
"""Optimiser steps between looks at the loss and, where several processes have to agree on it, at SIGTERM."""


class DivergedError(RuntimeError):
    """The loss or a parameter is not a number any more."""


class InterruptedRunError(Exception):
    """SIGTERM arrived; the run was saved."""


@dataclass
class Progress:
    """Where a run is: everything besides parameters and random generators that the next step depends on."""

    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    seconds: float = 0.0
    best: float = -1.0
    curve: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One run of one network on one data source.

    Args:
        net: maps [T, N, *] to [T, N, classes]; moved to the process's device.
        source: the data.
        settings: what decides the result.
        output_dir: receives ``last.pt`` (to resume), ``best.pt`` (best on the validation part) and ``curve.csv``.
        process: from ``pmsn_plugins.training.distributed.start``.
        save_every: optimiser steps between checkpoints inside an epoch, 0 for none.
        workers: processes that load data.
        sync_batchnorm: batch normalisation over the samples of all processes.
        tensorboard: also write TensorBoard files.
        quiet: no progress bar.

    Raises:
        TypeError: an argument is of another type.
        ValueError: the batch cannot be shared equally, no validation part can be split off, ``drop_last`` leaves
            nothing, ``mixup`` is set for samples that are no images, or the settings name parameters that the network's
            neurons do not have.

    With several processes, each takes its part of every batch of ``settings.batch_size``, and the result is that of one
    process up to rounding, with two exceptions: each process draws its own dropout and mixing, and batch normalisation
    sees only its process's part unless ``sync_batchnorm`` is set.
    """

    def __init__(
        self,
        net: nn.Module,
        source: DataSource,
        settings: Settings,
        output_dir: Path,
        process: Process,
        *,
        save_every: int = 0,
        workers: int = 0,
        sync_batchnorm: bool = False,
        tensorboard: bool = False,
        quiet: bool = False,
    ) -> None:
        check_module("net", net)
        check_type("source", source, DataSource, "a DataSource")
        check_type("settings", settings, Settings, "Settings")
        check_path("output_dir", output_dir)
        check_type("process", process, Process, "a Process")
        for name, flag in (("sync_batchnorm", sync_batchnorm), ("tensorboard", tensorboard), ("quiet", quiet)):
            check_flag(name, flag)
        parts = process.world_size * settings.accumulate
        if settings.batch_size % parts:
            raise ValueError(
                f"batch_size={settings.batch_size} must be divisible by {process.world_size} processes times "
                f"accumulate={settings.accumulate}"
            )
        check_int_at_least("save_every", save_every, 0)
        check_int_at_least("workers", workers, 0)
        self.sync_batchnorm = sync_batchnorm and process.world_size > 1
        if self.sync_batchnorm:
            net = convert_sync_batchnorm(net)
        self.net = net.to(process.device)
        self.source, self.settings, self.output_dir, self.process = source, settings, Path(output_dir), process
        self.save_every, self.workers, self.tensorboard, self.quiet = save_every, workers, tensorboard, quiet
        self.micro_batch = settings.batch_size // parts
        self.train_set, self.val_set = _split(source, settings)
        if not steps_in(len(self.train_set), settings.batch_size, settings.drop_last):
            raise ValueError(
                f"drop_last=True leaves no batch of batch_size={settings.batch_size} of {len(self.train_set)} samples"
            )
        self.optimizer = _optimizer(self.net, settings)
        self.scheduler = _scheduler(self.optimizer, settings)
        self.scaler = torch.amp.grad_scaler.GradScaler(process.device.type, enabled=settings.amp == "fp16")
        self.mixup = _mixup(self.train_set, source.num_classes) if settings.mixup else None
        self.progress = Progress()
        self.terminated = False
        torch.manual_seed(settings.seed + process.rank)
        self.parallel = (
            DistributedDataParallel(self.net, device_ids=None if process.device.type == "cpu" else [process.device])
            if process.world_size > 1
            else self.net
        )

    # ------------------------------------------------------------------------------------------------------ the run

    def fit(self) -> None:
        """Train to the last epoch. The folder is held meanwhile: see :func:`hold_folder` for what to do before.

        Raises:
            FolderInUseError: another run is in the folder.
            DivergedError: the last good checkpoint is kept.
            InterruptedRunError: SIGTERM arrived; the run can be resumed from its checkpoint.
            SnapshotError: a checkpoint could not be written; the previous one is kept.
        """
        with hold_folder(self.output_dir), self._watch_sigterm():
            board = None
            if self.tensorboard and self.process.is_main:
                board = TensorBoard(self.output_dir / "tensorboard", self.progress.epoch)
            while self.progress.epoch < self.settings.epochs:
                self._train_epoch()
                self._finish_epoch(board)
                if all_sum(torch.tensor(float(self.terminated), device=self.process.device)):
                    raise self._interrupted()
            if board is not None:
                board.close()

    def test(self, chunk: int | None = None) -> Evaluation:
        """Open the test set and evaluate the network as it is; call :meth:`load_best` first to get the selected one."""
        return self._evaluate(self._test_set, chunk)

    @cached_property
    def _test_set(self) -> Samples:
        return self.source.load_test()

    def load_best(self) -> float:
        """Take the parameters that were best on the validation part; returns that accuracy."""
        barrier()
        path = self.output_dir / BEST
        payload = contents.check_parts(snapshot.load(path), contents.SELECTED, path)
        load_network(self.net, payload["net"])
        return payload["val_accuracy"]

    def _train_epoch(self) -> None:
        settings, progress = self.settings, self.progress
        steps = plan_epoch(
            len(self.train_set),
            settings.batch_size,
            epoch=progress.epoch,
            seed=settings.seed,
            rank=self.process.rank,
            world_size=self.process.world_size,
            accumulate=settings.accumulate,
            drop_last=settings.drop_last,
        )
        self.train_set.epoch = progress.epoch
        loader = DataLoader(
            self.train_set,
            batch_sampler=[part for step in steps[progress.step :] for part in step.parts],
            num_workers=self.workers,
            worker_init_fn=_ignore_sigterm,
            pin_memory=self.process.device.type == "cuda",
            generator=torch.Generator().manual_seed(settings.seed),  # the global one must not depend on restarts
        )
        sums = torch.tensor(progress.sums, dtype=torch.float64, device=self.process.device)
        began = time.perf_counter() - progress.seconds
        self.net.train()
        samples = iter(loader)
        bar = tqdm(
            steps[progress.step :],
            initial=progress.step,
            total=len(steps),
            desc=f"epoch {progress.epoch + 1}/{settings.epochs}",
            disable=self.quiet or not self.process.is_main,
            leave=False,
        )
        for step in bar:
            sums += self._step(step, samples)
            progress.step += 1
            saving = bool(self.save_every) and progress.step % self.save_every == 0
            last = progress.step == len(steps)
            told_to_stop = self.terminated and self.process.world_size == 1
            if saving or last or told_to_stop or progress.step % _CHECK_EVERY == 0:
                progress.sums, progress.seconds = sums.tolist(), time.perf_counter() - began
                terminated = self._check(sums)
                if terminated or (saving and not last):
                    self._save()
                if terminated:
                    raise self._interrupted()

    def _interrupted(self) -> InterruptedRunError:
        return InterruptedRunError(f"SIGTERM: saved {self.output_dir / LAST}; continue with --resume")

    def _step(self, step: Step, samples: Iterator[tuple[Tensor, Tensor]]) -> Tensor:
        """One optimiser step; returns (summed loss, correct predictions, samples) of this process."""
        settings, device = self.settings, self.process.device
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        dtype = torch.float16 if settings.amp == "fp16" else torch.bfloat16
        self.optimizer.zero_grad(set_to_none=True)
        for i, count in enumerate(step.counts):
            x, target = next(samples)
            check_class_numbers(target, self.source.num_classes)
            x, target = (tensor.to(device, non_blocking=True) for tensor in (x, target))
            if self.mixup is not None:
                x, target = self.mixup(x, target)
            reduce_gradients = i == len(step.counts) - 1 or self.parallel is self.net
            with nullcontext() if reduce_gradients else self.parallel.no_sync():  # type: ignore[operator]
                with torch.autocast(device.type, dtype, enabled=settings.amp != "no"):
                    outputs = self.parallel(self.source.to_sequence(x))
                outputs = outputs.float() if settings.amp != "no" else outputs
                loss = loss_of(
                    outputs,
                    target,
                    readout=settings.readout,
                    loss=settings.loss,
                    label_smoothing=settings.label_smoothing,
                )
                # DistributedDataParallel averages over processes; the batch's mean is over samples
                self.scaler.scale(loss * (count * self.process.world_size / step.batch)).backward()
            reset_states(self.net)
            with torch.no_grad():
                hits = correct(read_out(outputs, settings.readout), target) if count else sums.new_zeros(())
                sums += torch.stack([loss.detach() * count, hits, sums.new_tensor(count)])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return sums

    def _check(self, sums: Tensor) -> bool:
        """Whether any process was told to stop. Raises DivergedError if any loss or parameter is not finite."""
        finite = torch.stack([p.detach().isfinite().all() for p in self.net.parameters()]).all()
        bad = (~finite).to(sums) + (~sums[0].isfinite()).to(sums)
        terminated, diverged = all_sum(torch.stack([sums.new_tensor(float(self.terminated)), bad])).tolist()
        if diverged:
            path = self.output_dir / LAST
            kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint had been written yet"
            raise DivergedError(
                f"loss or parameters not finite in epoch {self.progress.epoch + 1}, step {self.progress.step}; {kept}"
            )
        return bool(terminated)

    def _finish_epoch(self, board: TensorBoard | None) -> None:
        progress = self.progress
        loss, hits, count = all_sum(
            torch.tensor(progress.sums, dtype=torch.float64, device=self.process.device)
        ).tolist()
        # running averages of batch normalisation are each process's own; what is saved are the main process's
        copy_from_main(self.net.buffers())
        validation = self._evaluate(self.val_set)
        row = {
            "epoch": progress.epoch + 1,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": loss / count,
            "train_accuracy": hits / count,
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
            "seconds": round(progress.seconds, 3),
        }
        progress.curve.append(row)
        improved = validation.accuracy > progress.best
        progress.best = max(progress.best, validation.accuracy)
        self.scheduler.step()
        progress.epoch, progress.step, progress.sums, progress.seconds = progress.epoch + 1, 0, [0.0, 0.0, 0.0], 0.0
        if self.process.is_main:  # before last.pt: a kill in between only repeats this epoch
            if improved:
                best = {**self._identity(), "epoch": row["epoch"], "val_accuracy": validation.accuracy}
                snapshot.save(self.output_dir / BEST, best)
            write_csv(self.output_dir / CURVE, progress.curve)
        self._save()
        if self.process.is_main:
            if board is not None:
                board.write(row)
            if not self.quiet:
                tqdm.write(
                    f"epoch {row['epoch']:3d}  train loss {row['train_loss']:.4f} accuracy {row['train_accuracy']:.4f} "
                    f" validation loss {row['val_loss']:.4f} accuracy {row['val_accuracy']:.4f}  {row['seconds']:.1f} s"
                )

    def test_batches(self, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first samples of the test set, as pairs of what the network takes, [T, N, *], and class numbers [N]."""
        check_int_at_least("samples", samples, 1)
        for x, target in self._loader(self._test_set, np.arange(min(samples, len(self._test_set)))):
            yield self.source.to_sequence(x.to(self.process.device)), target

    def _loader(self, dataset: Samples, indices: np.ndarray) -> DataLoader:
        view = View(dataset, indices, self.source.eval_transform)
        return DataLoader(
            view,
            self.micro_batch,
            num_workers=self.workers,
            worker_init_fn=_ignore_sigterm,
            generator=torch.Generator().manual_seed(0),
        )

    def _evaluate(self, dataset: Samples, chunk: int | None = None) -> Evaluation:
        share = np.arange(self.process.rank, len(dataset), self.process.world_size)
        return evaluate(
            self.net,
            self._loader(dataset, share),
            self.source.to_sequence,
            readout=self.settings.readout,
            chunk=chunk,
            device=self.process.device,
        )

    # -------------------------------------------------------------------------------------------------- checkpoints

    def _identity(self) -> dict[str, Any]:
        """What it takes to use the network: settings, parameters, and the order of time steps it was trained on."""
        return {
            "settings": asdict(self.settings),
            "net": self.net.state_dict(),
            "permutation": self.source.permutation,
        }

    def _save(self) -> None:
        random_states = all_gather(snapshot.random_state())
        sums = all_sum(torch.tensor(self.progress.sums, dtype=torch.float64, device=self.process.device)).tolist()
        if self.process.is_main:
            snapshot.save(
                self.output_dir / LAST,
                {
                    **self._identity(),
                    "optimizer": self.optimizer.state_dict(),
                    "scheduler": self.scheduler.state_dict(),
                    "scaler": self.scaler.state_dict(),
                    "progress": {**asdict(self.progress), "sums": sums},
                    "random": random_states,
                    "source": self.source.name,
                    "sync_batchnorm": self.sync_batchnorm,
                },
            )

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

    @contextmanager
    def _watch_sigterm(self) -> Iterator[None]:
        def note(signum: int, frame: Any) -> None:
            self.terminated = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


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


def _optimizer(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    groups = param_groups(
        net,
        settings.lr,
        settings.neuron_lr,
        settings.weight_decay,
        neuron_lr_scales=settings.neuron_lr_scales,
        neuron_weight_decays=settings.neuron_weight_decays,
    )
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer](groups, lr=settings.lr)


def _scheduler(optimizer: torch.optim.Optimizer, settings: Settings) -> lr_scheduler.LRScheduler:
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    if settings.schedule == "milestones":
        return lr_scheduler.MultiStepLR(optimizer, settings.milestones, settings.lr_factor)
    if settings.schedule == "steps":
        return lr_scheduler.StepLR(optimizer, settings.milestones[0], settings.lr_factor)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)


def _ignore_sigterm(worker: int) -> None:
    """Job schedulers signal every process of a job: those that load data go on until the step is finished."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _mixup(samples: Samples, num_classes: int) -> nn.Module:
    from torchvision.transforms import v2

    shape = tuple(samples[0][0].shape)
    if len(shape) != 3:
        raise ValueError(f"mixup=True mixes images [C, H, W], but the samples of this data set have shape {shape}")

    return v2.RandomChoice(
        [v2.MixUp(alpha=0.2, num_classes=num_classes), v2.CutMix(alpha=1.0, num_classes=num_classes)]
    )
