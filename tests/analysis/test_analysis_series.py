"""Learning curves, acceleration, and the sweeps on the digits at a tiny size."""

import json

import numpy as np
import pytest
from matplotlib.figure import Figure

from pmsn_plugins import analysis as A


def test_learning_curve_is_mean_and_sample_deviation():
    curve = A.learning_curve([[1.0, 4.0, 9.0], [3.0, 8.0, 9.0]])
    np.testing.assert_allclose(curve.mean, [2.0, 6.0, 9.0])
    np.testing.assert_allclose(curve.deviation, [2**0.5, 8**0.5, 0.0])
    np.testing.assert_array_equal(A.learning_curve([[1.0, 2.0]]).deviation, [0.0, 0.0])
    figure = A.plot_learning_curves({"PMSN": curve, "one epoch": A.learning_curve([[5.0]])})
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xdata(), [1, 2, 3])


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ([], "lengths"),
        ([[]], "lengths"),
        ([[1, 2], [1]], r"lengths \[1, 2\]"),
        ([[1.0, np.nan]], "nan in run 0, epoch 1"),
    ],
)
def test_bad_curves(runs, message):
    with pytest.raises(ValueError, match=message):
        A.learning_curve(runs)


def record(name, T, seconds, extra=(64, 128)):
    return {"name": name, "T": T, "shape": [T, *extra], "forward_s": seconds / 3, "forward_backward_s": seconds}


def test_acceleration_compares_on_the_same_shape():
    records = [
        record("serial", 64, 8.0),
        record("fast", 64, 2.0),
        record("fast", 32, 1.0),
        record("serial", 32, 2.0),
        record("fast", 4096, 1.0),  # the baseline is too slow for it
        record("serial", 64, 100.0, (1, 1)),  # a smaller shape of a length that is there already
        record("fast", 64, 1.0, (1, 1)),
    ]
    assert A.acceleration(records, "serial") == {"fast": {32: 2.0, 64: 4.0}}
    assert A.acceleration(records, "serial", "forward_s") == {"fast": {32: 2.0, 64: 4.0}}
    with pytest.raises(ValueError, match=r"baseline must be one of 'serial', 'fast', got 'slow'"):
        A.acceleration(records, "slow")
    with pytest.raises(ValueError, match="no records"):
        A.acceleration([])
    with pytest.raises(ValueError, match="a record lacks forward_s"):
        A.acceleration([{key: value for key, value in records[0].items() if key != "forward_s"}], "serial")
    with pytest.raises(ValueError, match=r"forward_s of 'serial', .* must be a finite number above 0, got 0\.0"):
        A.acceleration([record("serial", 8, 0.0)], "serial")


def test_step_times_are_of_one_width():
    records = [
        record("fast", 1024, 4.0, (64, 128)),
        record("fast", 64, 8.0, (2, 128)),
        record("fast", 64, 2.0, (64, 128)),  # the larger batch of this length
        record("fast", 256, 1.0, (64, 32)),  # another width
        record("slow", 64, 6.0, (64, 128)),
        record("fast", 32, 1.0, (64, 128, 8)),  # another layout
    ]
    steps = 64 * 64 * 128
    assert A.step_times(records) == {"fast": {64: 2.0 / steps, 1024: 0.25 / steps}, "slow": {64: 6.0 / steps}}
    assert list(A.step_times(records)["fast"]) == [64, 1024]
    assert A.step_times(records, 32, "forward_s") == {"fast": {256: 1.0 / 3 / (256 * 64 * 32)}}
    (ax,) = A.plot_acceleration(records, copy_bandwidth=2e10).axes
    fast, slow, floor = ax.lines
    np.testing.assert_allclose(fast.get_ydata(), [2e9 / steps, 0.25e9 / steps])
    assert list(slow.get_xdata()) == [64]
    np.testing.assert_allclose(floor.get_ydata(), 1.0)  # 20 bytes at 20 GB/s, in ns
    assert len(A.plot_acceleration(records).axes[0].lines) == 2
    with pytest.raises(ValueError, match=r"channels must be the width of a record .*, 32, 128, got 64"):
        A.step_times(records, 64)
    with pytest.raises(ValueError, match="none here, got 128"):
        A.step_times([])
    with pytest.raises(ValueError, match="copy_bandwidth must be a finite number above 0, got 0"):
        A.plot_acceleration(records, 0)


def test_default_baseline_is_a_contender_of_the_benchmark():
    import inspect

    import torch

    contenders = pytest.importorskip("pmsn_plugins.bench.contenders").contenders
    baseline = inspect.signature(A.acceleration).parameters["baseline"].default
    assert baseline in [contender.name for contender in contenders(torch.device("cpu"))]


def test_sweeps_run_resume_and_draw(tmp_path):
    pytest.importorskip("spikingjelly")
    options = {"epochs": 1, "width": 4, "folder": tmp_path}
    runs = A.compartment_sweep((2, 3), **options)
    assert [run.value for run in runs] == [2, 3] and all(0.0 <= run.accuracy <= 100.0 for run in runs)
    # what is finished is not trained again, what is missing is
    kept = sorted(tmp_path.glob("compartments-2-*/result.json"))
    assert len(kept) == 1
    kept[0].write_text(json.dumps({"accuracy": 12.5}))
    again = A.compartment_sweep((2, 3, 4), **options)
    assert again[0].accuracy == 12.5 and again[1] == runs[1] and again[2].value == 4
    assert isinstance(A.plot_compartment_sweep(again), Figure)

    runs = A.reset_ablation(("modulo", "memoryless"), **options)
    assert [run.value for run in runs] == ["modulo", "memoryless"]
    assert isinstance(A.plot_reset_ablation(runs), Figure)


def test_quadrants(tmp_path):
    pytest.importorskip("spikingjelly")
    runs = A.quadrant_search((0.5,), epochs=1, width=2, folder=tmp_path)
    assert [run.value for run in runs] == [(-0.5, -0.5), (-0.5, 0.5), (0.5, -0.5), (0.5, 0.5)]
    figure = A.plot_quadrant_search(runs)
    texts = [text.get_text() for text in figure.axes[0].texts]
    # drawn row by row from below: b2 = -0.5 first
    assert texts == [f"{runs[i].accuracy:.0f}" for i in (0, 2, 1, 3)]


def test_bad_sweeps():
    with pytest.raises(ValueError, match="n_compartments must be at least 2, got 1"):
        A.compartment_sweep((1,))
    with pytest.raises(ValueError, match="at least one value and one seed, got 0 and 1"):
        A.compartment_sweep(())
    with pytest.raises(ValueError, match="reset_modes must be one of"):
        A.reset_ablation(("hard",))
    with pytest.raises(ValueError, match=r"sizes must be above 0 and at most 1, got 1\.5"):
        A.quadrant_search((1.5,))
    with pytest.raises(ValueError, match="runs is empty"):
        A.plot_compartment_sweep([])
