"""Bad arguments and bad contents of data sets: the error names the argument or the file, and nothing is rounded."""

import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

from pmsn_plugins import datasets
from pmsn_plugins.datasets import DataSource, View, spoken, validation_split

NAN = float("nan")
SAMPLES = TensorDataset(torch.rand(20, 3, 4), torch.arange(20) % 2)
LABELS = np.arange(20) % 2
SOURCE = DataSource("data", 2, SAMPLES, LABELS, lambda: SAMPLES)
IMAGES = torch.rand(2, 1, 4, 4)
NOWHERE = "/nonexistent"

SOURCES = {
    "digits": (datasets.digits_source, {}),
    "mnist": (datasets.mnist_source, {"root": NOWHERE}),
    "cifar": (datasets.cifar_source, {"root": NOWHERE}),
    "imagenet": (datasets.imagenet_source, {"root": NOWHERE}),
    "speech commands": (datasets.speech_commands_source, {"root": NOWHERE}),
    "speech commands, part": (datasets.SpeechCommands12, {"root": NOWHERE, "subset": "testing"}),
    "spoken": (datasets.spoken_source, {"name": "shd", "root": NOWHERE}),
    "spoken, part": (datasets.SpokenEvents, {"name": "shd", "root": NOWHERE, "split": "test"}),
    "synthetic": (datasets.synthetic_source, {"sample_shape": (3, 4), "num_classes": 5}),
    "synthetic, part": (
        datasets.SyntheticSamples,
        {"sample_shape": (3, 4), "num_classes": 5, "samples": 9, "seed": 0},
    ),
}
ARGUMENTS = {
    "flag": {
        "digits": ["permute"],
        "mnist": ["permute", "download"],
        "cifar": ["augment", "download"],
        "speech commands": ["download"],
        "speech commands, part": ["download"],
        "spoken": ["download"],
    },
    "path": {name: ["root"] for name, (_, arguments) in SOURCES.items() if "root" in arguments},
    "integer": {
        "digits": ["seed"],
        "mnist": ["seed"],
        "cifar": ["num_classes"],
        "imagenet": ["T", "num_classes"],
        "speech commands": ["seed"],
        "speech commands, part": ["seed"],
        "spoken": ["T", "channels"],
        "spoken, part": ["T", "channels"],
        "synthetic": ["num_classes", "samples", "seed"],
        "synthetic, part": ["num_classes", "samples", "seed"],
    },
    "number": {"spoken": ["time_span"], "spoken, part": ["time_span"]},
    "choice": {
        "cifar": ["by"],
        "speech commands, part": ["subset"],
        "spoken": ["name"],
        "spoken, part": ["name", "split"],
    },
    "integers": {"synthetic": ["sample_shape"], "synthetic, part": ["sample_shape"]},
}
CASES = {
    "flag": (["no", 0, 1, None, NAN, []], "must be True or False, got"),
    "path": ([None, 3, [], True], "must be a path, got"),
    "integer": ([None, "3", 3.0, True, NAN, [], torch.tensor(3)], "must be an integer, got"),
    "number": ([None, "3", True, [], 1j], "must be a real number, got"),
    "choice": ([None, 3, [], True], "must be one of '.*, got"),
    "integers": ([None, 3, "34", torch.ones(2), (3.0, 4), (None,)], "must be (a series of integers|an integer), got"),
}


@pytest.mark.parametrize(
    ("source", "argument", "kind"),
    [(s, a, kind) for kind, table in ARGUMENTS.items() for s, arguments in table.items() for a in arguments],
)
def test_arguments_of_another_type(source, argument, kind):
    build, arguments = SOURCES[source]
    values, message = CASES[kind]
    for value in values:
        with pytest.raises(TypeError, match=f"{argument} {message}"):
            build(**{**arguments, argument: value})


@pytest.mark.parametrize(
    ("source", "changes", "message"),
    [
        ("digits", {"seed": -1}, "seed must be at least 0, got -1"),
        ("cifar", {"num_classes": 11}, "num_classes must be 10 or 100, got 11"),
        ("cifar", {"by": "row"}, "by must be one of 'pixel', 'column', got 'row'"),
        ("imagenet", {"T": 0}, "T must be at least 1, got 0"),
        ("speech commands, part", {"subset": "test"}, "subset must be one of 'training', 'validation', 'testing'"),
        ("spoken", {"time_span": NAN}, "time_span must be a finite number above 0, got nan"),
        ("synthetic", {"sample_shape": (3, 0)}, "sample_shape must be at least 1, got 0"),
        ("synthetic", {"sample_shape": ()}, "sample_shape must have at least one axis"),
        ("synthetic", {"seed": -1}, "seed must be at least 0, got -1"),
        ("synthetic, part", {"samples": 0}, "samples must be at least 1, got 0"),
    ],
)
def test_values_that_are_not_allowed(source, changes, message):
    build, arguments = SOURCES[source]
    with pytest.raises(ValueError, match=message):
        build(**{**arguments, **changes})


@pytest.mark.parametrize("value", ["0", 1, [0], np.arange(64), torch.rand(64), torch.ones(64, dtype=torch.bool)])
def test_permutations_that_are_no_integer_tensors(value):
    with pytest.raises(TypeError, match=r"permutation must be a torch.Tensor of integers or None, got"):
        datasets.digits_source(permute=True, permutation=value)
    with pytest.raises(TypeError, match=r"permutation must be a torch.Tensor of integers or None, got"):
        datasets.pixels(torch.rand(2, 1, 8, 8), value)


def test_permutations_that_do_not_fit():
    for value in (torch.arange(63), torch.zeros(64, dtype=torch.long), torch.arange(64).view(8, 8)):
        with pytest.raises(ValueError, match=r"permutation must hold 0\.\.63 once each, got"):
            datasets.digits_source(permute=True, permutation=value)
    with pytest.raises(ValueError, match=r"permutation must hold 0\.\.15 once each, got shape \(64,\)"):
        datasets.pixels(IMAGES, torch.arange(64))
    with pytest.raises(ValueError, match="permutation must be None unless permute=True"):
        datasets.digits_source(permutation=torch.arange(64))


def test_batches_that_are_no_images():
    for convert in (datasets.pixels, datasets.columns, lambda x: datasets.repeated(x, 2)):
        for value in (None, [1.0], IMAGES.numpy()):
            with pytest.raises(TypeError, match=r"images must be a torch.Tensor, got"):
                convert(value)
    for convert in (datasets.pixels, datasets.columns):
        with pytest.raises(ValueError, match=r"images must be \[N, C, H, W\], got shape \(1, 4, 4\)"):
            convert(IMAGES[0])
    with pytest.raises(TypeError, match=r"batch must be a torch.Tensor, got"):
        datasets.time_first([1.0])
    with pytest.raises(ValueError, match=r"batch must be \[N, T, \*\], got shape \(3,\)"):
        datasets.time_first(torch.ones(3))
    for value in (None, 2.0, "2", True):
        with pytest.raises(TypeError, match="T must be an integer, got"):
            datasets.repeated(IMAGES, value)
    with pytest.raises(ValueError, match="T must be at least 1, got 0"):
        datasets.repeated(IMAGES, 0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", None, "name must be a string, got None"),
        ("num_classes", 2.0, "num_classes must be an integer, got 2.0"),
        ("num_classes", True, "num_classes must be an integer, got True"),
        ("train", None, "train must be a data set .*, got None"),
        ("train", "files", "train must be a data set .*, got 'files'"),
        ("labels", None, "labels of data must be a series of integers, got"),
        ("labels", LABELS.astype(float), "labels of data must be a series of integers, got .* dtype float64"),
        ("labels", LABELS + 0.7, "labels of data must be a series of integers, got .* dtype float64"),
        ("labels", LABELS.astype(bool), "labels of data must be a series of integers, got .* dtype bool"),
        ("labels", LABELS.reshape(4, 5), r"labels of data must be a series of integers, got .* shape \(4, 5\)"),
        ("labels", ["a"] * 20, "labels of data must be a series of integers, got"),
        ("load_test", SAMPLES, "load_test must be a function that opens the test set, got"),
        ("to_sequence", None, "to_sequence must be a function of a batch of samples, got None"),
        ("validation", 3, "validation must be a data set .*, got 3"),
        ("speakers", np.full(20, 0.5), "speakers of data must be a series of integers, got"),
        ("train_transform", "flip", "train_transform must be a function of a sample or None, got 'flip'"),
        ("eval_transform", 0, "eval_transform must be a function of a sample or None, got 0"),
        ("validation", torch.ones(3), "validation must be a data set .*, got a Tensor"),
        ("permutation", [0, 1], r"permutation must be a torch.Tensor or None, got \[0, 1\]"),
        ("permutation", torch.rand(3), "permutation must be a series of integers, got a"),
    ],
)
def test_fields_of_a_source_of_another_type(field, value, message):
    with pytest.raises(TypeError, match=message):
        replace(SOURCE, **{field: value})


def test_sources_without_samples():
    for field in ("train", "validation"):
        with pytest.raises(ValueError, match=f"{field} must have samples, got an empty list"):
            replace(SOURCE, **{field: []})


def test_labels_that_are_too_few():
    for field in ("labels", "speakers"):
        with pytest.raises(ValueError, match=f"data has 20 training samples but 19 {field}"):
            replace(SOURCE, **{field: LABELS[:-1]})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": SAMPLES}, TypeError, "source must be a DataSource, got TensorDataset|source must be a DataSource"),
        ({"fraction": "0.1"}, TypeError, "fraction must be a real number, got '0.1'"),
        ({"fraction": True}, TypeError, "fraction must be a real number, got True"),
        ({"fraction": NAN}, ValueError, "fraction must be finite, got nan"),
        ({"stratify": None}, TypeError, "stratify must be one of 'class', 'speaker', got None"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_splits(changes, error, message):
    with pytest.raises(error, match=message):
        validation_split(**{"source": SOURCE, "fraction": 0.2, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": None}, TypeError, "dataset must be a data set .*, got None"),
        ({"indices": "01"}, TypeError, "indices must be a series of integers, got '01'"),
        ({"indices": 3}, TypeError, "indices must be a series of integers, got 3"),
        ({"indices": [0.0, 1.5]}, TypeError, "indices must be a series of integers, got .* dtype float64"),
        ({"indices": LABELS == 0}, TypeError, "indices must be a series of integers, got .* dtype bool"),
        ({"indices": [0, 20]}, ValueError, r"indices must be in 0\.\.19 for 20 samples, got 0\.\.20"),
        ({"indices": [-1]}, ValueError, r"indices must be in 0\.\.19 for 20 samples, got -1\.\.-1"),
        ({"transform": "flip"}, TypeError, "transform must be a function of a sample or None, got 'flip'"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_views(changes, error, message):
    with pytest.raises(error, match=message):
        View(**{"dataset": SAMPLES, **changes})
    assert len(View(SAMPLES, [])) == 0


@pytest.mark.parametrize("label", [0.7, 1.0, "1", None, torch.tensor(0.7), np.float32(1)])
def test_a_label_that_is_no_integer_is_not_cut_off(label):
    with pytest.raises(TypeError, match="label of sample 1 must be an integer, got"):
        View([(torch.zeros(1), 0), (torch.zeros(1), label)])[1]


@pytest.mark.parametrize("label", [1, np.int8(1), np.uint16(1), torch.tensor(1)])
def test_labels_of_all_integer_types(label):
    assert View([(torch.zeros(1), label)])[0][1] == 1


def write_events(root, **changes):
    """An SHD file of 40 samples with one spike each, in the folders of both SpikingJelly releases."""
    path = root / "events_h5" / "shd_train.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        spikes = file.create_group("spikes")
        for name, dtype in (("times", np.float16), ("units", changes.get("units", np.uint16))):
            data = spikes.create_dataset(name, (40,), dtype=h5py.vlen_dtype(dtype))
            for i in range(40):
                data[i] = np.array([0.5], dtype)
        file["labels"] = changes.get("labels", (np.arange(40) % 20).astype(np.uint16))
        file["extra/speaker"] = changes.get("speakers", np.zeros(40, np.uint16))
        file["extra/keys"] = changes.get("keys", np.array([f"word {i}".encode() for i in range(20)]))
    (root / "extract").mkdir(exist_ok=True)
    shutil.copy(path, root / "extract" / path.name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.arange(40) % 20 + 0.7}, r"shd_train\.h5: labels must be a series of integers, got .* float64"),
        ({"labels": np.full(40, NAN)}, r"shd_train\.h5: labels must be a series of integers, got .* float64"),
        ({"labels": np.array([b"one"] * 40)}, r"shd_train\.h5: labels must be a series of integers, got"),
        ({"labels": np.zeros((40, 2), int)}, r"shd_train\.h5: labels must be a series of integers, got .* \(40, 2\)"),
        ({"labels": np.full(40, 20)}, r"shd_train\.h5 has labels 20\.\.20, but 20 classes allow 0\.\.19"),
        ({"labels": np.full(40, -1)}, r"shd_train\.h5 has labels -1\.\.-1"),
        ({"speakers": np.full(40, 0.5)}, r"shd_train\.h5: extra/speaker must be a series of integers, got"),
        ({"units": np.float32}, r"shd_train\.h5, sample 0: units must be a series of integers, got .* float32"),
        ({"keys": np.array([b"f\xfcnf"] * 20)}, r"shd_train\.h5: extra/keys must be UTF-8 text, got .*b'f\\xfcnf'"),
        ({"keys": np.arange(20)}, r"shd_train\.h5: extra/keys must be UTF-8 text, got"),
        ({"keys": 3}, r"shd_train\.h5 is truncated or not a file of this format"),
    ],
)
def test_contents_of_a_file_that_are_wrong(tmp_path, changes, message):
    write_events(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        datasets.spoken_source("shd", tmp_path)


def test_the_file_of_these_tests_is_right(tmp_path):
    write_events(tmp_path)
    assert datasets.spoken_source("shd", tmp_path).train.class_names[3] == "word 3"


@pytest.mark.parametrize("error", [OSError("no network"), RuntimeError("unfinished")])
def test_a_download_that_fails_says_why(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(spoken, "_open_loader", fail)
    expected = rf"expected {tmp_path}/.*shd_train\.h5\. SpikingJelly could not fetch it \({error}\)\. Unpack https://"
    with pytest.raises(FileNotFoundError, match=expected):
        datasets.spoken_source("shd", tmp_path, download=True)
