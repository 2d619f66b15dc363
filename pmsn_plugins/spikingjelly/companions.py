"""Whether torchvision and torchaudio, which SpikingJelly's models and datasets import, are made for this PyTorch."""

from __future__ import annotations

import re
import warnings
from importlib.metadata import PackageNotFoundError, requires, version

import torch


def warn_of_companions() -> None:
    """Warn of each that is not: it fails when it is imported, and what SpikingJelly has of it with it."""
    here = _release(torch.__version__)
    for package in ("torchvision", "torchaudio"):
        try:
            least, most = _made_for(package)
        except PackageNotFoundError:  # whoever needs it is told by Python
            continue
        if least <= here <= most:
            continue
        series = f"{here[0]}.{here[1]}"
        fitting = f'{package} "torch=={series}.*"'
        if package == "torchaudio":  # 2.11, the last one, does not say what it needs, so that pip would take it
            fitting = f'"torchaudio=={min(here, (2, 11))[0]}.{min(here, (2, 11))[1]}.*" "torch=={series}.*"'
        warnings.warn(
            f"{package} {version(package)} is not made for torch {torch.__version__}: SpikingJelly's neurons work, "
            f"its models and datasets do not. What fits: pip install {fitting}",
            stacklevel=3,
        )


def _made_for(package: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """The first and the last release of PyTorch, as far as the package says; otherwise its own and all later ones."""
    for requirement in requires(package) or ():
        found = re.match(r"torch\s*\(?\s*(==|>=)\s*(\d+\.\d+)", requirement)
        if found:
            release = _release(found[2])
            return release, release if found[1] == "==" else (float("inf"), 0.0)
    return _release(version(package)), (float("inf"), 0.0)


def _release(text: str) -> tuple[int, int]:
    major, minor = re.findall(r"\d+", text)[:2]
    return int(major), int(minor)
