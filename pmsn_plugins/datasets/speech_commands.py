"""Google Speech Commands v2 with 12 classes, as log-mel features, the input of the TC-LIF paper's GSC experiments."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._checks import check_choice, check_flag, check_floating, check_int_at_least, check_path
from .source import DataSource, missing_files

CLASSES = ("unknown", "silence", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SAMPLE_RATE = 16_000
FRAMES = 101
SUBSETS = ("training", "validation", "testing")
_WINDOW = 480
_FOLDER = "SpeechCommands/speech_commands_v0.02"


def speech_commands_source(
    root: str | Path, *, balanced: bool = False, seed: int = 0, download: bool = False
) -> DataSource:
    """Speech Commands v2: ten words, 'unknown' and 'silence'; 101 frames of 40 log-mel features, see :func:`log_mel`.

    The official training, validation and test lists are kept.

    Args:
        balanced: False is the data of the TC-LIF authors' script: every one of the other 25 words is 'unknown' (64 %
            of the samples), and 'silence' is the beginning of each file of background noise, in the training
            part alone. True is the usual task: a random choice among the other words, and random cuts of the noise, in
            every part, each as many as an average word has.
        seed: of the choice and the cuts.
        download: let torchaudio fetch the data.

    Raises:
        FileNotFoundError: says which files are expected where.
        ValueError: a sound file is too short, or not one channel of 16-bit samples at 16 kHz (when it is read).
    """
    train = SpeechCommands12(root, "training", balanced=balanced, seed=seed, download=download)
    return DataSource(
        name="Speech Commands",
        num_classes=len(CLASSES),
        train=train,
        labels=train.labels,
        load_test=lambda: SpeechCommands12(root, "testing", balanced=balanced, seed=seed),
        validation=SpeechCommands12(root, "validation", balanced=balanced, seed=seed),
        speakers=train.speakers,
    )


class SpeechCommands12(Dataset):
    """One part (of ``SUBSETS``): item i is (features [101, 40] float32, label in the order of ``CLASSES``)."""

    def __init__(
        self, root: str | Path, subset: str, *, balanced: bool = False, seed: int = 0, download: bool = False
    ) -> None:
        check_path("root", root)
        check_choice("subset", subset, SUBSETS)
        check_flag("balanced", balanced)
        check_int_at_least("seed", seed, 0)
        check_flag("download", download)
        try:
            import torchaudio
        except ImportError as error:
            raise ImportError("Speech Commands needs torchaudio and scipy: pip install torchaudio scipy") from error
        folder = Path(root) / _FOLDER
        try:
            listing = torchaudio.datasets.SPEECHCOMMANDS(str(root), subset=subset, download=download)
        except (RuntimeError, OSError) as error:
            raise missing_files(
                "Speech Commands",
                f"{folder}/<word>/*.wav",
                f"download=True (--download) fetches it (torchaudio: {error})",
            ) from error
        metadata = [listing.get_metadata(i) for i in range(len(listing))]
        known = [m for m in metadata if m[2] in CLASSES]
        others = [m for m in metadata if m[2] not in CLASSES]
        has_silence = balanced or subset == "training"
        noises = sorted((folder / "_background_noise_").glob("*.wav")) if has_silence else []
        found = {m[2] for m in known} | ({"unknown"} if others else set()) | ({"silence"} if noises else set())
        if missing := [name for name in CLASSES if name not in found and (has_silence or name != "silence")]:
            names = {"unknown": "<any other word>", "silence": "_background_noise_"}
            expected = ", ".join(f"{names.get(name, name)}/*.wav" for name in missing)
            raise missing_files("Speech Commands", f"{expected} in {folder}", f"The {subset} part has none of these.")
        silences: list[tuple[Path, int | None]] = [(path, None) for path in noises]
        if balanced:
            rng = np.random.default_rng((seed, SUBSETS.index(subset)))
            count = max(1, round(len(known) / (len(CLASSES) - 2)))
            others = [others[i] for i in sorted(rng.permutation(len(others))[:count])]
            lengths = [len(_read_wav(path)) for path in noises]
            silences = [
                (noises[i], int(rng.integers(max(1, lengths[i] - SAMPLE_RATE))))
                for i in rng.integers(len(noises), size=count)
            ]
        words = known + others
        # file, and where in it a second begins; None takes the whole file
        self._files = [(Path(root) / "SpeechCommands" / m[0], None) for m in words] + silences
        labels = [CLASSES.index(m[2]) if m[2] in CLASSES else 0 for m in words]
        self.labels = np.array(labels + [CLASSES.index("silence")] * len(silences))
        self.speakers = np.unique([m[3] for m in words] + ["silence"] * len(silences), return_inverse=True)[1]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, start = self._files[i]
        wave = _read_wav(path)
        wave = wave if start is None else wave[start : start + SAMPLE_RATE]
        try:
            return log_mel(torch.from_numpy(wave)), int(self.labels[i])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def log_mel(wave: Tensor) -> Tensor:
    """Features [101, 40] of a sound [samples] at 16 kHz, as in the TC-LIF authors' script.

    Magnitudes in 40 mel bands (Slaney's scale and norm) from 40 to 4000 Hz, windows of 30 ms every 10 ms, reflected at
    the ends; in dB below the loudest value of the whole sound, ``10 log10(max(x, 1e-10))``, at least -80. Then the
    first 101 frames, or with zeros (the loudest value) up to so many, and last mean 0 and deviation 1 over all of them.
    These are librosa's features (checked in the tests; the script has release 0.7, which reflects), made by torchaudio.

    Raises:
        ValueError: ``wave`` is no series of more than 240 samples.

    Example:
        >>> log_mel(torch.rand(16000)).shape
        torch.Size([101, 40])
    """
    check_floating("wave", wave)
    if wave.ndim != 1 or len(wave) <= _WINDOW // 2:
        raise ValueError(f"wave must be a series of more than {_WINDOW // 2} samples, got shape {tuple(wave.shape)}")
    mel = _mel()(wave).clamp(min=1e-10)
    decibel = 10.0 * torch.log10(mel) - 10.0 * torch.log10(mel.max())
    features = decibel.clamp(min=-80.0).T[:FRAMES]
    features = torch.nn.functional.pad(features, (0, 0, 0, FRAMES - len(features)))
    deviation = features.std()
    return (features - features.mean()) / deviation if deviation > 0 else features  # digital silence stays zero


@cache
def _mel() -> torch.nn.Module:
    from torchaudio.transforms import MelSpectrogram

    return MelSpectrogram(
        SAMPLE_RATE,
        n_fft=_WINDOW,
        hop_length=160,
        power=1.0,
        n_mels=40,
        f_min=40.0,
        f_max=4000.0,
        norm="slaney",
        mel_scale="slaney",
    )


def _read_wav(path: Path) -> np.ndarray:
    """One channel of 16-bit sound as float32 in [-1, 1)."""
    from scipy.io import wavfile

    try:
        rate, samples = wavfile.read(path)
    except ValueError as error:
        raise ValueError(f"{path} is not a readable WAV file: {error}") from error
    if rate != SAMPLE_RATE or samples.dtype != np.int16 or samples.ndim != 1:
        raise ValueError(
            f"{path} must be one channel of 16-bit samples at {SAMPLE_RATE} Hz, got {samples.dtype} at {rate} Hz"
        )
    return samples.astype(np.float32) / 32768.0
