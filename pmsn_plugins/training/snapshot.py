"""Checkpoints of a run: written atomically, and with every source of randomness."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from .._checks import check_path

FORMAT = 1
"""Version of the layout of a run's checkpoint."""


class SnapshotError(RuntimeError):
    """A checkpoint could not be written or read."""


def save(path: Path, payload: dict[str, Any]) -> None:
    """Write a checkpoint so that ``path`` holds either the old one or the complete new one, whatever happens.

    Raises:
        SnapshotError: it could not be written (full disk, no permission); the old checkpoint is untouched.
    """
    try:
        write_whole(path, lambda file: torch.save({"format": FORMAT, **payload}, file))
    except (OSError, RuntimeError) as error:
        # on a full disk torch.save ends with a RuntimeError about positions; what happened is in its context
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        kept = "; the previous one is kept" if path.exists() else ""
        raise SnapshotError(f"cannot write checkpoint {path}: {reason}{kept}") from error


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file beside ``path`` that then takes its place; an error leaves ``path`` as it was."""
    temporary = path.with_name(f".{path.name}.partial")  # one name: what a kill leaves behind does not add up
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # write() does not name it
        raise


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint, tensors on the CPU. Runs no code from the file.

    Raises:
        SnapshotError: not there, damaged, or not written by this package.
    """
    check_path("path", path)
    path = Path(path)
    if not path.is_file():
        raise SnapshotError(f"no checkpoint at {path}")
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = str(error).partition("\n")[0]
        raise SnapshotError(f"{path} is damaged or not a checkpoint of this package ({reason})") from error
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        found = payload.get("format") if isinstance(payload, dict) else type(payload).__name__
        raise SnapshotError(f"{path} is not a checkpoint of this package (format {found}, expected {FORMAT})")
    return payload


def random_state() -> dict[str, Any]:
    """The state of the random generators of Python, NumPy and torch."""
    legacy: Any = np.random.get_state()
    kind, keys, *rest = legacy
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    """The inverse of :func:`random_state`."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
