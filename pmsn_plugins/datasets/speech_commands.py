"""Google Speech Commands v2 with 12 classes, as log-mel features, the input of the TC-LIF paper's GSC experiments."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._checks import check_choice, check_flag, check_int_at_least, check_path
from .source import DataSource, missing_files

CLASSES = ("unknown", "silence", "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SAMPLE_RATE = 16_000
SUBSETS = ("training", "validation", "testing")
_FOLDER = "SpeechCommands/speech_commands_v0.02"


def speech_commands_source(root: str | Path, *, seed: int = 0, download: bool = False) -> DataSource:
    """Speech Commands v2: ten words, 'silence' and 'unknown'; 101 frames of 40 log-mel features per second of sound.

    The official training, validation and test lists are kept. 'unknown' is a random choice among the other 25 words,
    'silence' random cuts of the background noise, each as many as an average word has.

    Features as in the authors' script: window 30 ms, step 10 ms, 40 mel bands between 40 and 4000 Hz, magnitude in dB
    below the loudest, normalised to mean 0 and deviation 1 per sample (computed by torchaudio, not librosa).

    Raises:
        FileNotFoundError: says which files are expected where.
        ValueError: a sound file is not one channel of 16-bit samples at 16 kHz (when it is read).
    """
    train = SpeechCommands12(root, "training", seed=seed, download=download)
    return DataSource(
        name="Speech Commands",
        num_classes=len(CLASSES),
        train=train,
        labels=train.labels,
        load_test=lambda: SpeechCommands12(root, "testing", seed=seed),
        validation=SpeechCommands12(root, "validation", seed=seed),
        speakers=train.speakers,
    )


class SpeechCommands12(Dataset):
    """One part (of :data:`SUBSETS`): item i is (features [101, 40] float32, label in the order of :data:`CLASSES`)."""

    def __init__(self, root: str | Path, subset: str, *, seed: int = 0, download: bool = False) -> None:
        check_path("root", root)
        check_choice("subset", subset, SUBSETS)
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
        self._archive = Path(root) / "SpeechCommands"
        known = [m for m in metadata if m[2] in CLASSES]
        others = [m for m in metadata if m[2] not in CLASSES]
        noises = sorted((folder / "_background_noise_").glob("*.wav"))
        found = {m[2] for m in known} | ({"unknown"} if others else set()) | ({"silence"} if noises else set())
        if missing := [name for name in CLASSES if name not in found]:
            names = {"unknown": "<any other word>", "silence": "_background_noise_"}
            expected = ", ".join(f"{names.get(name, name)}/*.wav" for name in missing)
            raise missing_files("Speech Commands", f"{expected} in {folder}", f"The {subset} part has none of these.")
        rng = np.random.default_rng((seed, SUBSETS.index(subset)))
        count = max(1, round(len(known) / (len(CLASSES) - 2)))
        chosen = rng.permutation(len(others))[:count]
        words = known + [others[i] for i in sorted(chosen)]
        self._files = [(self._archive / m[0], 0) for m in words]
        self.labels = np.array([CLASSES.index(m[2]) if m[2] in CLASSES else 0 for m in words])
        speakers = [m[3] for m in words]
        lengths = [len(_read_wav(path)) for path in noises]
        for i in rng.integers(len(noises), size=count):
            self._files.append((noises[i], int(rng.integers(max(1, lengths[i] - SAMPLE_RATE)))))
        self.labels = np.concatenate([self.labels, np.full(count, CLASSES.index("silence"))])
        speakers += ["silence"] * count
        self.speakers = np.unique(speakers, return_inverse=True)[1]
        self._spectrum = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, n_fft=480, hop_length=160, power=1.0, n_mels=40, f_min=40.0, f_max=4000.0
        )

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, start = self._files[i]
        wave = torch.from_numpy(_read_wav(path)[start : start + SAMPLE_RATE])
        wave = torch.nn.functional.pad(wave, (0, SAMPLE_RATE - len(wave)))
        magnitude = self._spectrum(wave).clamp(min=1e-5)
        decibel = 10.0 * torch.log10(magnitude / magnitude.max())
        # power_to_db of the authors' script keeps 80 dB
        features = decibel.clamp(min=-80.0)
        deviation = features.std()
        features = features - features.mean()
        if deviation > 0:  # digital silence stays zero
            features = features / deviation
        return features.T, int(self.labels[i])


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
