"""The training loop: epochs, validation, stopping.

It is a plain loop over torch's own parts (DataLoader, DistributedDataParallel, autocast, GradScaler, optimisers,
schedulers): a training framework would hide what is hard here, that a run killed amid an epoch continues bit for bit,
and that many processes see the batches that one process would see.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from .._checks import check_flag, check_int_at_least, check_path
from ..datasets import DataSource, View
from ..datasets.source import Samples
from ..layers import reset_states
from . import contents, snapshot
from .batches import Step, plan_epoch
from .distributed import Process, all_sum, barrier, copy_from_main
from .evaluation import Evaluation, evaluate
from .lock import hold_folder
from .logs import TensorBoard, write_csv
from .objective import check_class_numbers, correct, loss_of, read_out
from .run import Run, load_network
from .settings import Settings

LAST, BEST, CURVE = "last.pt", "best.pt", "curve.csv"
_CHECK_EVERY = 10
"""Optimiser steps between looks at the loss and, where several processes have to agree on it, at SIGTERM."""


class DivergedError(RuntimeError):
    """The loss or a parameter is not a number any more."""


class InterruptedRunError(Exception):
    """SIGTERM arrived; the run was saved."""


class Trainer(Run):
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
        check_path("output_dir", output_dir)
        check_flag("tensorboard", tensorboard)
        check_flag("quiet", quiet)
        check_int_at_least("save_every", save_every, 0)
        check_int_at_least("workers", workers, 0)
        super().__init__(net, source, settings, process, sync_batchnorm=sync_batchnorm)
        self.output_dir = Path(output_dir)
        self.save_every, self.workers, self.tensorboard, self.quiet = save_every, workers, tensorboard, quiet
        self.mixup = _mixup(self.train_set, source.num_classes) if settings.mixup else None
        self.terminated = False
        torch.manual_seed(settings.seed + process.rank)
        self.parallel = (
            DistributedDataParallel(self.net, device_ids=None if process.device.type == "cpu" else [process.device])
            if process.world_size > 1
            else self.net
        )

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

    def test_batches(self, samples: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first samples of the test set, as pairs of what the network takes, [T, N, *], and class numbers [N]."""
        check_int_at_least("samples", samples, 1)
        for x, target in self._loader(self._test_set, np.arange(min(samples, len(self._test_set)))):
            yield self.source.to_sequence(x.to(self.process.device)), target

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
                best = {**self.identity(), "epoch": row["epoch"], "val_accuracy": validation.accuracy}
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

    def _save(self) -> None:
        payload = self.resumable()
        if self.process.is_main:
            snapshot.save(self.output_dir / LAST, payload)

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

    @contextmanager
    def _watch_sigterm(self) -> Iterator[None]:
        def note(signum: int, frame: Any) -> None:
            self.terminated = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


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
