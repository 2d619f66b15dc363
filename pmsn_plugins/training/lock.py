"""One run per folder: a lock of the operating system, and a note on who holds it.

The lock ends with the process that holds it, however it ends; so a note that is found without a lock was left by a
process that was killed.
"""

from __future__ import annotations

import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # not POSIX
    fcntl = None  # type: ignore[assignment]

from .._checks import check_path
from .distributed import all_gather, is_main

LOCK = ".lock"

_held: set[Path] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)  # the lock is its parent's


class FolderInUseError(OSError):
    """Another run holds the folder."""


@contextmanager
def hold_folder(folder: str | Path) -> Iterator[None]:
    """Keep a run's folder to this run, that is to all its processes together, inside the block.

    Whoever reads a checkpoint to continue from it has to hold the folder from before reading until after the last
    writing. :meth:`Trainer.fit` holds it, too: inside this block, that adds nothing. The folder is made if it is not
    there; a file ``.lock`` stays in it, empty unless a run holds it or was killed.

    On Windows, and on file systems that cannot lock (then with a warning), nothing is held.

    Raises:
        FolderInUseError: names the process that holds the folder; raised in all processes of this run.
        OSError: the folder cannot be made or written to; likewise.

    Warns:
        UserWarning: the last run in this folder was killed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, hold_folder(folder):
        ...     pass  # no other run writes here
    """
    check_path("folder", folder)
    folder = Path(folder).resolve()
    if folder in _held:
        yield
        return
    file, refusal = None, None
    if is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = _lock(folder)
        except OSError as error:
            refusal = error
    refusal = all_gather(refusal)[0]
    if refusal is not None:
        raise refusal
    _held.add(folder)
    try:
        yield
    finally:
        _held.remove(folder)
        if file is not None:
            os.truncate(file, 0)
            os.close(file)


def _lock(folder: Path) -> int | None:
    """The open file that is locked, or None where nothing can be locked."""
    if fcntl is None:
        return None
    file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        # not flock: processes that load data would inherit it, and may outlive a killed run for ever
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = _note(file) or "another process"
        os.close(file)
        raise FolderInUseError(f"{folder} is in use by {holder}: wait until it ends, or take another folder") from None
    except OSError as error:
        os.close(file)
        warnings.warn(f"{folder} cannot be locked ({error}): start no second run in it", stacklevel=4)
        return None
    if killed := _note(file):
        warnings.warn(f"{folder} was in use by {killed}, which was killed: taking it over", stacklevel=4)
    note = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now().isoformat(" ", "seconds")}
    os.truncate(file, 0)
    os.pwrite(file, json.dumps(note).encode(), 0)
    return file


def _note(file: int) -> str:
    """Who wrote the note in an open lock file; '' if there is none."""
    text = os.pread(file, 4096, 0)
    try:
        note = json.loads(text)
        return f"process {note['pid']} on {note['host']} since {note['since']}"
    except (ValueError, KeyError, TypeError):  # between the lock and the note, or not written by us
        return "another process" if text else ""
