"""Spiking Heidelberg Digits (SHD) and Spiking Speech Commands (SSC), read by SpikingJelly, binned here.

SpikingJelly's own frame mode is not used: 2.0.0 permutes the labels, and splitting by time fails on empty bins.
Bins are of equal width on absolute time, so that silence at the beginning or the end stays where it is:

- ``binning='equal'``: bin i holds the times in [i, i + 1) time_span / T;
- ``binning='authors'``, as in the scripts of both papers: with T edges from 0 to time_span (both included), bin i holds
  the times in [edge i-1, edge i). Bin 0 stays empty, and a bin is time_span / (T - 1) wide.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._checks import check_choice, check_flag, check_int_at_least, check_path, check_positive, shown
from .source import DataSource, check_labels, missing_files

UNITS = 700
CLASSES = {"shd": 20, "ssc": 35}
_SPLITS = {"shd": ("train", "test"), "ssc": ("train", "valid", "test")}
BINNINGS = ("equal", "authors")
_ARCHIVES = "https://zenkelab.org/datasets/"


def spoken_source(
    name: str,
    root: str | Path,
    *,
    T: int = 250,
    time_span: float = 1.4,
    channels: int = 140,
    binning: str = "equal",
    download: bool = False,
) -> DataSource:
    """SHD (20 spoken digits) or SSC (35 spoken words) as spike counts [T, channels] per sample.

    Args:
        name: ``'shd'`` or ``'ssc'``. SSC comes with its own validation part.
        root: folder that holds the ``.h5`` files the way the installed SpikingJelly expects them.
        T: number of time bins.
        time_span: seconds covered by the bins, [0, time_span); later spikes are dropped, with a warning.
        channels: neighbouring units are summed, 700 / channels at a time.
        binning: ``'equal'`` or ``'authors'``, see above.
        download: let SpikingJelly fetch SHD and verify its checksums (SSC has to be downloaded by hand).
    """
    check_choice("name", name, _SPLITS)
    check_path("root", root)
    check_binning(T, time_span, channels, binning)
    check_flag("download", download)
    if download and name == "shd":
        Path(root).mkdir(parents=True, exist_ok=True)
        try:
            _open_loader(name, Path(root), "train")
        except (RuntimeError, OSError) as error:  # no network, or an earlier attempt that was stopped
            _h5_path(name, Path(root), "train", f"SpikingJelly could not fetch it ({error}). ")
    part = partial(SpokenEvents, name, root, T=T, time_span=time_span, channels=channels, binning=binning)
    train = part("train")
    return DataSource(
        name=name,
        num_classes=CLASSES[name],
        train=train,
        labels=train.labels,
        load_test=partial(part, "test"),
        validation=part("valid") if name == "ssc" else None,
        speakers=train.speakers,
    )


def check_binning(T: int, time_span: float, channels: int, binning: str = "equal") -> None:
    """Raise unless the options of :func:`spoken_source` make sense.

    Example:
        >>> check_binning(T=250, time_span=1.4, channels=99)
        Traceback (most recent call last):
        ValueError: channels must divide 700, got 99
    """
    check_choice("binning", binning, BINNINGS)
    check_int_at_least("T", T, 1 if binning == "equal" else 2)
    check_positive("time_span", time_span)
    check_int_at_least("channels", channels, 1)
    if UNITS % channels:
        raise ValueError(f"channels must divide {UNITS}, got {channels}")


class SpokenEvents(Dataset):
    """One part of SHD or SSC: item i is (spike counts [T, channels] float32, label).

    Held in memory as one bin number per spike; frames are made on access.

    Attributes:
        labels: [n], in the order of the file.
        speakers: [n], or None if the file does not say.
        class_names: the file's words in the order of the labels, or None.

    Raises:
        FileNotFoundError: says which file is expected where.
        ValueError: the file is damaged or not of this format: truncated, units outside 0..699, times that are negative
            or not numbers, labels that do not fit the classes; labels, speakers or units that are not integers, words
            that are no text.
    """

    def __init__(
        self,
        name: str,
        root: str | Path,
        split: str,
        *,
        T: int = 250,
        time_span: float = 1.4,
        channels: int = 140,
        binning: str = "equal",
    ) -> None:
        check_choice("name", name, _SPLITS)
        check_path("root", root)
        check_choice("split", split, _SPLITS[name])
        check_binning(T, time_span, channels, binning)
        self.T, self.time_span, self.channels, self.binning = T, time_span, channels, binning
        path = _h5_path(name, Path(root), split)
        self.labels, self.speakers, self.class_names = _read_labels(path, CLASSES[name])
        loader = _open_loader(name, Path(root), split)
        bins, lengths, labels, dropped = [], [], [], 0
        for i in range(len(self.labels)):
            try:
                events, label = loader[i]
            except OSError as error:
                raise ValueError(f"{path} is damaged at sample {i} ({error}); fetch it again") from error
            sample = self._bin(events["t"], events["x"], f"{path}, sample {i}")
            dropped += len(events["t"]) - len(sample)
            bins.append(sample)
            lengths.append(len(sample))
            labels.append(label)
        if not np.array_equal(labels, self.labels):
            raise ValueError(f"SpikingJelly's loader returns other labels than {path} holds: refusing to use them")
        if dropped:
            total = dropped + sum(lengths)
            warnings.warn(
                f"{path}: {dropped} of {total} spikes come after time_span={time_span:g} s and were dropped",
                stacklevel=2,
            )
        self._bins = np.concatenate(bins)
        self._starts = np.concatenate([[0], np.cumsum(lengths)])

    def _bin(self, times: np.ndarray, units: np.ndarray, where: str) -> np.ndarray:
        """Number ``bin * channels + channel`` of each spike inside the time span, int32."""
        if len(times) != len(units):
            raise ValueError(f"{where}: {len(times)} times but {len(units)} units")
        times = np.asarray(times, dtype=np.float64)  # the file's float16 overflows when multiplied by T
        units = _integers(where, "units", units)
        if times.size and not (np.isfinite(times).all() and times.min() >= 0.0):
            raise ValueError(f"{where}: spike times must be finite and not negative, in seconds")
        if units.size and not (units.min() >= 0 and units.max() < UNITS):
            raise ValueError(f"{where}: units must be in 0..{UNITS - 1}, got {units.min()}..{units.max()}")
        inside = times < self.time_span
        if self.binning == "authors":
            steps = np.digitize(times[inside], np.linspace(0.0, self.time_span, self.T))
        else:  # a time just below time_span may round up to T
            steps = np.minimum((times[inside] / self.time_span * self.T).astype(np.int64), self.T - 1)
        return (steps * self.channels + units[inside] // (UNITS // self.channels)).astype(np.int32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        bins = self._bins[self._starts[i] : self._starts[i + 1]]
        counts = np.bincount(bins, minlength=self.T * self.channels).astype(np.float32)
        return torch.from_numpy(counts.reshape(self.T, self.channels)), int(self.labels[i])


def _h5_path(name: str, root: Path, split: str, reason: str = "") -> Path:
    """Where the installed SpikingJelly looks for one part. FileNotFoundError, with a ``reason``, if it is not there."""
    path = root / ("events_h5" if _is_spikingjelly_2() else "extract") / f"{name}_{split}.h5"
    if not path.exists():
        remedy = f"{reason}Unpack {_ARCHIVES}{name}_{split}.h5.zip there"
        raise missing_files(
            name.upper(), str(path), remedy + (", or pass download=True (--download)." if name == "shd" else ".")
        )
    return path


def _is_spikingjelly_2() -> bool:
    try:
        import spikingjelly.datasets.shd
    except ImportError as error:
        raise ImportError(
            f"SHD and SSC are read by SpikingJelly and h5py ({error}): pip install 'pmsn_plugins[spikingjelly]' h5py"
        ) from error
    return hasattr(spikingjelly.datasets.shd, "SpikingSpeechCommands")


def _read_labels(path: Path, num_classes: int) -> tuple[np.ndarray, np.ndarray | None, list[str] | None]:
    """Labels, speakers and class names as the file holds them."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            labels = np.asarray(file["labels"])
            sizes = {key: len(file["spikes"][key]) for key in ("times", "units")}
            extra = file.get("extra", {})
            speakers = np.asarray(extra["speaker"]) if "speaker" in extra else None
            keys = list(extra["keys"]) if "keys" in extra else None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # h5py raises them all
        raise ValueError(f"{path} is truncated or not a file of this format ({error}); fetch it again") from error
    labels = _integers(str(path), "labels", labels)
    speakers = None if speakers is None else _integers(str(path), "extra/speaker", speakers)
    check_labels(str(path), labels, num_classes)
    names = None if keys is None else [_text(path, key) for key in keys]
    if names is not None and len(names) != num_classes:
        raise ValueError(f"{path} names {len(names)} classes, expected {num_classes}")
    for key, size in {**sizes, **({} if speakers is None else {"speaker": len(speakers)})}.items():
        if size != len(labels):
            raise ValueError(f"{path} holds {len(labels)} labels but {size} {key}")
    return labels, speakers, names


def _integers(where: str, name: str, values: Any) -> np.ndarray:
    """The values as int64. A conversion alone would cut off fractions."""
    array = np.asarray(values)
    if array.ndim != 1 or not (array.dtype.kind in "iu" or array.size == 0):
        raise ValueError(f"{where}: {name} must be a series of integers, got {shown(array)}")
    return array.astype(np.int64)


def _text(path: Path, key: Any) -> str:
    """A word of extra/keys."""
    try:
        return key.decode()
    except (AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: extra/keys must be UTF-8 text, got {shown(key)} ({error})") from None


def _open_loader(name: str, root: Path, split: str) -> Any:
    """SpikingJelly's data set of raw events. It downloads SHD if the files are not there."""
    two = _is_spikingjelly_2()
    from spikingjelly.datasets import shd

    if name == "shd":
        return shd.SpikingHeidelbergDigits(str(root), train=split == "train", data_type="event", target_transform=int)
    if two:
        return shd.SpikingSpeechCommands(str(root), split=split, data_type="event", target_transform=int)
    return _events_of_014(shd.SpikingHeidelbergDigits, root / "extract" / f"ssc_{split}.h5")


def _events_of_014(base: type, path: Path) -> Any:
    """SpikingJelly 0.0.0.0.14 reads the format but has no class for SSC: its SHD reader, on another file."""
    import h5py

    loader: Any = object.__new__(base)
    loader.data_type, loader.transform, loader.target_transform = "event", None, int
    loader.h5_file = h5py.File(path, "r")
    loader.length = len(loader.h5_file["labels"])
    return loader
