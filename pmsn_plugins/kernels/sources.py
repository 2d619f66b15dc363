"""The C++ files that the CPU library is compiled from, and their stamp, which the library carries.

``setup.py`` runs this file by its path: it imports nothing of the package.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def library_sources(folder: Path) -> list[Path]:
    """Those of ``csrc``, sorted by name: all but the CUDA sources."""
    files = (path for path in folder.iterdir() if path.suffix in (".h", ".cpp") and not path.name.startswith("gpu_"))
    return sorted(files, key=lambda path: path.name)


def sources_stamp(folder: Path) -> str:
    """A hash of their names and contents: a library with another one was compiled from other sources."""
    digest = hashlib.sha256()
    for path in library_sources(folder):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
