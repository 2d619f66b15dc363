"""Images as sequences, splits, augmentation that does not depend on circumstances, Speech Commands, synthetic data."""

import pickle

import numpy as np
import pytest
import torch
from scipy.io import wavfile
from torch.utils.data import DataLoader, TensorDataset

from pmsn_plugins import datasets
from pmsn_plugins.datasets import DataSource, View, validation_split
from pmsn_plugins.datasets.speech_commands import CLASSES
from pmsn_plugins.training import PRESETS, open_source


def make_source(labels, num_classes=10, **kwargs):
    labels = np.asarray(labels)
    data = TensorDataset(torch.arange(len(labels)).float(), torch.from_numpy(labels))
    return DataSource("data", num_classes, data, labels, lambda: data, **kwargs)


def test_pixels_and_columns_are_the_image_in_order():
    images = torch.rand(2, 3, 4, 5)
    by_pixel, by_column = datasets.pixels(images), datasets.columns(images)
    assert by_pixel.shape == (20, 2, 3) and torch.equal(by_pixel[7], images[:, :, 1, 2])
    assert by_column.shape == (5, 2, 3, 4) and torch.equal(by_column[3], images[..., 3])
    order = torch.randperm(20)
    assert torch.equal(datasets.pixels(images, order), by_pixel[order])
    assert torch.equal(datasets.repeated(images, 4)[2], images)


def test_digits_are_scikit_learns_and_the_parts_are_disjoint():
    source = datasets.digits_source()
    x, label = source.train[0]
    assert x.shape == (1, 8, 8) and x.min() >= 0 and x.max() == 1.0 and label == source.labels[0]
    test = source.load_test()
    assert len(source.train) + len(test) == 1797
    seen = {x.numpy().tobytes() for x, _ in source.train}
    assert not any(x.numpy().tobytes() in seen for x, _ in test)


def test_permutation_is_drawn_from_the_seed_or_given():
    first, again, other = (datasets.digits_source(permute=True, seed=s).permutation for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    source = datasets.digits_source(permute=True, permutation=other, seed=1)
    assert torch.equal(source.permutation, other)
    x = torch.rand(1, 1, 8, 8)
    assert torch.equal(source.to_sequence(x), datasets.pixels(x)[other])
    with pytest.raises(ValueError, match=r"0\.\.63 once each"):
        datasets.digits_source(permute=True, permutation=torch.zeros(64, dtype=torch.long))


def test_mnist_and_cifar_files_of_torchvision(tmp_path):
    rng = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = rng.integers(0, 256, (30, 28, 28), dtype=np.uint8)
    for part, count in (("train", 30), ("t10k", 20)):
        header = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images[:count].tobytes())
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(np.array([0x801, count], ">i4").tobytes() + labels.tobytes())
    source = datasets.mnist_source(tmp_path)
    x = torch.stack([source.train[i][0] for i in range(30)])
    assert torch.equal(source.to_sequence(x)[:, 4, 0], torch.from_numpy(images[4]).flatten() / 255.0)
    assert len(source.load_test()) == 20
    assert open_source(PRESETS["smnist"], tmp_path).permutation is None
    first, again = (open_source(PRESETS["psmnist"], tmp_path) for _ in range(2))
    assert torch.equal(first.permutation, again.permutation)
    stored = first.permutation.flip(0)
    restored = open_source(PRESETS["psmnist"], tmp_path, permutation=stored)
    assert torch.equal(restored.to_sequence(x), source.to_sequence(x)[stored])

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        batch = {"data": rng.integers(0, 256, (10, 3072), dtype=np.uint8), "labels": list(range(10))}
        (folder / name).write_bytes(pickle.dumps(batch))
    with pytest.raises(FileNotFoundError, match=r"cifar-10-batches-py.*download=True"):
        datasets.cifar_source(tmp_path)  # torchvision verifies checksums: these are not the real files


def test_augmentation_of_cifar_by_column(monkeypatch):
    class Images:
        data, targets = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8), [0, 1, 2, 3]

    monkeypatch.setattr(datasets.images, "_open_torchvision", lambda *args, **kwargs: Images)
    source = datasets.cifar_source("data", num_classes=100, by="column", augment=True)
    x = torch.stack([source.train_transform(image) for image, _ in source.train])
    assert source.to_sequence(x).shape == (32, 4, 3, 32) and x.dtype == torch.float32
    flip, trivial, *_, erase = source.train_transform.transforms
    assert (flip.p, trivial.interpolation.value, erase.p) == (0.5, "bilinear", 0.1)
    image = torch.from_numpy(Images.data[2]).permute(2, 0, 1) / 255
    normalised = (image - torch.tensor([0.5071, 0.4865, 0.4409]).view(3, 1, 1)) / 0.2673
    torch.testing.assert_close(source.eval_transform(source.train[2][0])[0], normalised[0], rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (datasets.mnist_source, "MNIST/raw"),
        (datasets.cifar_source, "cifar-10-batches-py"),
        (datasets.imagenet_source, "train/<class>"),
        (datasets.speech_commands_source, "speech_commands_v0.02/<word>"),
    ],
)
def test_missing_files_are_named(tmp_path, source, expected):
    with pytest.raises(FileNotFoundError, match=f"expected {tmp_path}/.*{expected}"):
        source(tmp_path)


@pytest.mark.parametrize("source", [datasets.mnist_source, datasets.cifar_source, datasets.speech_commands_source])
def test_downloads_are_offered(tmp_path, source):
    with pytest.raises(FileNotFoundError, match=r"download=True \(--download\) fetches it"):
        source(tmp_path)


def test_switches_that_are_neither_on_nor_off():
    with pytest.raises(TypeError, match="permute must be True or False, got 'no'"):
        datasets.digits_source(permute="no")
    with pytest.raises(TypeError, match="augment must be True or False, got 1"):
        datasets.cifar_source("nowhere", augment=1)


def test_imagenet_folders(tmp_path):
    from PIL import Image

    for part in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (260, 240), (255, 0, 0)).save(folder / "1.jpg")
    source = datasets.imagenet_source(tmp_path, T=3, num_classes=2)
    x = torch.stack([source.train_transform(source.train[i][0]) for i in range(2)])
    assert source.to_sequence(x).shape == (3, 2, 3, 224, 224)
    assert source.eval_transform(source.load_test()[1][0]).shape == (3, 224, 224)
    with pytest.raises(ValueError, match="2 class folders, expected 1000"):
        datasets.imagenet_source(tmp_path)
    (tmp_path / "val" / "cat").rename(tmp_path / "val" / "emu")  # dogs would become class 0
    with pytest.raises(ValueError, match=r"val has other class folders than the training part: cat, emu"):
        source.load_test()


def test_labels_that_do_not_fit_the_classes():
    with pytest.raises(ValueError, match=r"labels 0\.\.10, but 10 classes"):
        make_source([0, 10])
    with pytest.raises(ValueError, match="train must have samples"):
        make_source([])


def test_split_keeps_the_proportions_of_the_classes():
    source = make_source([0] * 60 + [1] * 40)
    train, validation = validation_split(source, 0.2)
    assert np.bincount(source.labels[validation]).tolist() == [12, 8]
    assert sorted([*train, *validation]) == list(range(100))
    assert np.array_equal(validation, validation_split(source, 0.2)[1])
    assert not np.array_equal(validation, validation_split(source, 0.2, seed=1)[1])


def test_split_errors():
    with pytest.raises(ValueError, match="does not say who speaks"):
        validation_split(make_source([0, 1] * 10), 0.2, "speaker")
    with pytest.raises(ValueError, match="cannot split"):
        validation_split(make_source([0, 1, 2, 3]), 0.2)
    with pytest.raises(ValueError, match="between 0 and 1"):
        validation_split(make_source([0, 1] * 10), 1.0)


def test_augmentation_depends_on_seed_epoch_and_index_only():
    source = make_source([0] * 20)
    before = torch.get_rng_state()
    view = View(source.train, None, lambda x: x + torch.rand(()), seed=3)
    whole = [x.item() for x, _ in view]
    assert torch.equal(before, torch.get_rng_state())
    part = View(source.train, [5, 17], lambda x: x + torch.rand(()), seed=3)
    assert [x.item() for x, _ in part] == [whole[5], whole[17]]
    workers = DataLoader(view, batch_size=20, num_workers=2)
    assert next(iter(workers))[0].tolist() == whole
    view.epoch = 1
    assert all(a != b for a, b in zip(whole, [x.item() for x, _ in view], strict=True))
    assert len(set(np.round(np.array(whole) % 1.0, 6))) == 20


@pytest.fixture
def speech(tmp_path):
    """One second of every word of every part, a shorter one in the training part, and two noises."""
    folder = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    rng = np.random.default_rng(0)

    def write(word, name, samples):
        (folder / word).mkdir(parents=True, exist_ok=True)
        wavfile.write(folder / word / name, 16_000, (rng.normal(size=samples) * 1000).astype(np.int16))

    lists = {"validation_list.txt": [], "testing_list.txt": []}
    for word in (*CLASSES[2:], "bed", "cat"):
        for i, part in enumerate(("", "validation_list.txt", "testing_list.txt", "")):
            write(word, f"speaker{i}_nohash_0.wav", 16_000 if i else 9_000)
            if part:
                lists[part].append(f"{word}/speaker{i}_nohash_0.wav")
    for name, words in lists.items():
        (folder / name).write_text("\n".join(words))
    write("_background_noise_", "hum.wav", 50_000)
    write("_background_noise_", "rain.wav", 20_000)
    return tmp_path


def test_speech_commands_as_in_the_authors_script(speech):
    """All other words are unknown; the noises are silence, once each, in the training part."""
    source = datasets.speech_commands_source(speech)
    assert np.bincount(source.labels).tolist() == [4, 2] + [2] * 10
    for part in (source.validation, source.load_test()):
        assert np.bincount(part.labels).tolist() == [2, 0] + [1] * 10
    folder = speech / "SpeechCommands" / "speech_commands_v0.02"
    _, noise = wavfile.read(folder / "_background_noise_" / "hum.wav")
    hum = datasets.log_mel(torch.from_numpy(noise / np.float32(32768)))
    assert torch.equal(source.train[list(source.labels).index(1)][0], hum)
    for name in ("_background_noise_", "yes"):
        (folder / name).rename(speech / name)
        expected = rf"expected {name}/\*\.wav in .*The training part has none of these"
        with pytest.raises(FileNotFoundError, match=expected):
            datasets.speech_commands_source(speech)
        (speech / name).rename(folder / name)
    for samples, rate, message in (
        (8_000, 8_000, "16000 Hz, got int16 at 8000 Hz"),
        (240, 16_000, r"speaker0_nohash_0\.wav: wave must be a series of more than 240 samples, got shape \(240,\)"),
    ):
        wavfile.write(folder / "yes" / "speaker0_nohash_0.wav", rate, np.zeros(samples, np.int16))
        with pytest.raises(ValueError, match=message):
            [source.train[i] for i in range(len(source.train))]


def test_balanced_speech_commands(speech):
    source = datasets.speech_commands_source(speech, balanced=True)
    assert np.bincount(source.labels).tolist() == [2, 2] + [2] * 10
    assert len(source.validation) == len(source.load_test()) == 12
    for i in (0, len(source.labels) - 1):
        x, label = source.train[i]
        assert x.shape == (101, 40) and label == source.labels[i]
        assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-4
        assert torch.equal(x, datasets.speech_commands_source(speech, balanced=True).train[i][0])


@pytest.mark.parametrize("samples", [16_000, 9_000, 5_920, 50_000, 300])
def test_log_mel_is_that_of_librosa(samples):
    """The TC-LIF script's features: short sounds are padded after the logarithm, long ones cut."""
    librosa = pytest.importorskip("librosa")
    rng = np.random.default_rng(samples)
    wave = (rng.normal(size=samples) * np.hanning(samples) * 0.1).astype(np.float32)
    wave[samples // 4 : samples // 2] = 0  # 80 dB down
    mel = librosa.feature.melspectrogram(
        y=wave, sr=16_000, n_fft=480, hop_length=160, power=1.0, n_mels=40, fmin=40.0, fmax=4000.0, pad_mode="reflect"
    )
    expected = librosa.power_to_db(mel, ref=np.max)
    assert samples == 300 or expected.min() == -80
    expected = np.pad(expected, ((0, 0), (0, max(0, 101 - expected.shape[1]))))[:, :101]
    expected = (expected - expected.mean()) / expected.std(ddof=1)
    torch.testing.assert_close(datasets.log_mel(torch.from_numpy(wave)).numpy().T, expected, rtol=0, atol=1e-4)


def test_log_mel_of_digital_silence_is_zero():
    assert torch.equal(datasets.log_mel(torch.zeros(16_000)), torch.zeros(101, 40))
    with pytest.raises(TypeError, match="wave must be a real floating-point tensor"):
        datasets.log_mel(torch.zeros(16_000, dtype=torch.int16))


def test_synthetic_data_can_be_told_apart():
    source = datasets.synthetic_source((6, 4), 20, samples=80)
    x = torch.stack([x for x, _ in source.train]).flatten(1)
    labels = torch.from_numpy(source.labels)
    means = torch.stack([x[labels == c].mean(0) for c in range(10)])
    assert (torch.cdist(x, means).argmin(1) == labels).float().mean() == 1.0
    assert torch.equal(source.train[3][0], source.train[3][0])
    assert source.to_sequence(x.view(80, 6, 4)).shape == (6, 80, 4)
