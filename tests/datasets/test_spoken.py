"""SHD and SSC: the file format through whichever SpikingJelly is installed, binning, and damaged files."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsn_plugins.datasets import SpokenEvents, spoken_source, validation_split

CLASSES = {"shd": 20, "ssc": 35}


def write_events(path, times, units, labels, num_classes=20, **changes):
    """A file in the format of the SHD and SSC downloads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        spikes = file.create_group("spikes")
        for name, values, dtype in (("times", times, np.float16), ("units", units, np.uint16)):
            data = spikes.create_dataset(name, (len(values),), dtype=h5py.vlen_dtype(dtype))
            for i, value in enumerate(values):
                data[i] = np.asarray(value, dtype)
        file["labels"] = np.asarray(labels, np.uint16)
        file["extra/speaker"] = np.asarray(changes.get("speakers", np.arange(len(labels)) % 2), np.uint16)
        names = [f"word {i}" for i in range(changes.get("named_classes", num_classes))]
        file["extra"].create_dataset("keys", data=names, dtype=h5py.string_dtype())


def write_both_layouts(root, name, part, *args, **kwargs):
    """The layout of SpikingJelly 2.0.0 (events_h5) and of 0.0.0.0.14 (extract)."""
    path = root / "events_h5" / f"{name}_{part}.h5"
    write_events(path, *args, **kwargs)
    (root / "extract").mkdir(exist_ok=True)
    shutil.copy(path, root / "extract" / path.name)


def random_events(count, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 60, count)
    times = [np.sort(rng.uniform(0, 1.39, n)).astype(np.float16) for n in sizes]
    return times, [rng.integers(0, 700, n).astype(np.uint16) for n in sizes]


@pytest.fixture
def shd(tmp_path):
    times, units = random_events(60, 0)
    write_both_layouts(tmp_path, "shd", "train", times, units, np.arange(60) % 20)
    write_both_layouts(tmp_path, "shd", "test", times[:20], units[:20], np.arange(20)[::-1])
    return tmp_path, times, units


def rewrite(root, name="shd", part="train", **changes):
    """The training file again, with some of its contents replaced."""
    times, units = random_events(60, 0)
    contents = {"times": times, "units": units, "labels": np.arange(60) % 20, **changes}
    write_both_layouts(root, name, part, **contents)


def test_labels_in_the_order_of_the_file(shd):
    source = spoken_source("shd", shd[0])
    assert source.labels.tolist() == list(np.arange(60) % 20)
    assert [source.train[i][1] for i in range(60)] == list(np.arange(60) % 20)
    assert [label for _, label in source.load_test()] == list(range(19, -1, -1))
    assert source.train.class_names == [f"word {i}" for i in range(20)]


@pytest.mark.parametrize(("T", "channels", "time_span"), [(250, 140, 1.4), (7, 700, 1.4), (100, 1, 2.0)])
def test_counts_are_those_of_a_histogram_on_absolute_time(shd, T, channels, time_span):
    root, times, units = shd
    data = SpokenEvents("shd", root, "train", T=T, channels=channels, time_span=time_span)
    for i in range(0, 60, 7):
        expected = np.zeros((T, channels))
        for t, unit in zip(times[i].astype(np.float64), units[i].astype(int), strict=True):
            expected[int(t * T / time_span), unit * channels // 700] += 1
        assert torch.equal(data[i][0], torch.from_numpy(expected).float())


def test_the_authors_bins(shd):
    """np.digitize over T edges from 0 to 1.4 s: bin 0 is empty, and a bin is 1.4 / (T - 1) wide."""
    root, times, units = shd
    data = SpokenEvents("shd", root, "train", binning="authors")
    for i in range(0, 60, 7):
        expected = np.zeros((250, 700))
        np.add.at(expected, (np.digitize(times[i], np.linspace(0, 1.4, 250)), units[i].astype(int)), 1)
        assert torch.equal(data[i][0], torch.from_numpy(expected.reshape(250, 140, 5).sum(-1)).float())
        assert not data[i][0][0].any() and data[i][0].sum() == len(times[i])
    equal = SpokenEvents("shd", root, "train")
    assert not torch.equal(equal[0][0], data[0][0])


def test_no_bin_is_shifted_by_silence(shd):
    """Empty bins before, between and after the spikes stay empty."""
    times = [[0.71, 0.71, 1.05]] * 40
    rewrite(shd[0], times=times, units=[[0, 4, 699]] * 40, labels=np.arange(40) % 20)
    x, _ = SpokenEvents("shd", shd[0], "train", T=14)[3]
    assert x.nonzero().tolist() == [[7, 0], [10, 139]]
    assert x[7, 0] == 2 and x.sum() == 3


def test_sample_without_spikes_is_all_zero(shd):
    rewrite(shd[0], times=[[]] * 40, units=[[]] * 40, labels=np.arange(40) % 20)
    x, label = SpokenEvents("shd", shd[0], "train")[5]
    assert x.shape == (250, 140) and x.sum() == 0 and label == 5


def test_spikes_after_the_time_span_are_dropped_and_counted(shd):
    rewrite(shd[0], times=[[0.1, 0.9]] * 40, units=[[1, 2]] * 40, labels=np.arange(40) % 20)
    with pytest.warns(UserWarning, match="40 of 80 spikes"):
        data = SpokenEvents("shd", shd[0], "train", time_span=0.5)
    assert all(x.sum() == 1 for x, _ in data)


@given(
    seed=st.integers(0, 2**32 - 1),
    T=st.integers(2, 300),
    channels=st.sampled_from([1, 7, 140, 700]),
    binning=st.sampled_from(["equal", "authors"]),
)
@settings(deadline=None, max_examples=25)
def test_binning_keeps_every_spike_once(seed, T, channels, binning):
    rng = np.random.default_rng(seed)
    data = SpokenEvents.__new__(SpokenEvents)
    data.T, data.time_span, data.channels, data.binning = T, 1.4, channels, binning
    times = rng.uniform(0, 1.4, 200)
    times[:3] = 0.0, np.nextafter(1.4, 0), 1.3
    bins = data._bin(times, rng.integers(0, 700, 200), "sample")
    assert len(bins) == 200 and bins.min() >= 0 and bins.max() < T * channels


def test_ssc_has_its_own_validation_part(tmp_path):
    times, units = random_events(70, 1)
    for part in ("train", "valid", "test"):
        write_both_layouts(tmp_path, "ssc", part, times, units, np.arange(70) % 35, 35)
    source = spoken_source("ssc", tmp_path, channels=700)
    assert source.num_classes == 35 and len(source.validation) == 70
    assert source.validation[0][0].shape == (250, 700)
    assert [source.train[i][1] for i in range(70)] == list(np.arange(70) % 35)


def test_split_by_speaker_keeps_their_proportions(shd):
    source = spoken_source("shd", shd[0])
    train, validation = validation_split(source, 0.2, "speaker")
    assert sorted([*train, *validation]) == list(range(60))
    assert np.bincount(source.speakers[validation]).tolist() == [6, 6]


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected .*shd_train\.h5.*Unpack https://"):
        spoken_source("shd", tmp_path)


@pytest.mark.parametrize("keep", [10, 0.5, 0.97])
def test_truncated_file(shd, keep):
    for path in Path(shd[0]).glob("*/shd_train.h5"):
        contents = path.read_bytes()
        path.write_bytes(contents[: keep if keep > 1 else int(len(contents) * keep)])
    with pytest.raises(ValueError, match=r"shd_train\.h5 is (truncated|damaged)"):
        spoken_source("shd", shd[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": [[1, 700]] * 60, "times": [[0.1, 0.2]] * 60}, r"units must be in 0\.\.699, got 1\.\.700"),
        ({"units": [[1]] * 60, "times": [[0.1, 0.2]] * 60}, "2 times but 1 units"),
        ({"units": [[1]] * 60, "times": [[-0.5]] * 60}, "finite and not negative"),
        ({"units": [[1]] * 60, "times": [[np.nan]] * 60}, "finite and not negative"),
        ({"labels": np.arange(60)}, r"labels 0\.\.59, but 20 classes"),
        ({"labels": np.arange(59) % 20}, "59 labels but 60 times"),
        ({"named_classes": 10}, "names 10 classes, expected 20"),
        ({"speakers": [0]}, "60 labels but 1 speaker"),
    ],
)
def test_contents_that_do_not_fit(shd, changes, message):
    rewrite(shd[0], **changes)
    with pytest.raises(ValueError, match=message):
        spoken_source("shd", shd[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 99}, "divide 700"),
        ({"T": 0}, "T must be"),
        ({"T": 1, "binning": "authors"}, "T must be at least 2, got 1"),
        ({"time_span": -1.0}, "time_span must be"),
        ({"binning": "script"}, "binning must be one of 'equal', 'authors', got 'script'"),
    ],
)
def test_bad_options(shd, options, message):
    with pytest.raises(ValueError, match=message):
        spoken_source("shd", shd[0], **options)
