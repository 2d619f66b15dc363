"""What the shared checks take and how they show what they refuse."""

import numpy as np
import pytest
import torch

from pmsn_plugins import _checks


@pytest.mark.parametrize("value", [True, False, np.True_, np.False_])
def test_flags_are_the_bools_of_python_and_numpy(value):
    _checks.check_flag("flag", value)


@pytest.mark.parametrize("value", [0, 1])
def test_the_numbers_0_and_1_are_no_flags(value):
    with pytest.raises(TypeError, match=f"flag must be True or False, got {value}"):
        _checks.check_flag("flag", value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("x", "'x'"),
        (None, "None"),
        ([1, 2], "[1, 2]"),
        ("x" * 1000, "str"),
        ([0] * 1000, "list"),
        (torch.nn.Linear(1, 1), "Linear(in_features=1, out_features=1, bias=True)"),
        (torch.nn.Sequential(torch.nn.Linear(1, 1)), "Sequential"),
        (torch.zeros(2, 3), "a Tensor of shape (2, 3) and dtype torch.float32"),
        (np.zeros(2), "a ndarray of shape (2,) and dtype float64"),
    ],
)
def test_long_values_are_shown_by_what_they_are(value, expected):
    assert _checks.shown(value) == expected


def test_numbers_may_be_numpys():
    for value in (np.float32(0.5), np.float64(0.5), np.int64(1)):
        _checks.check_finite("number", value)
        _checks.check_positive("number", value)


def test_series_that_are_read_once_are_refused():
    """The check would leave nothing of them."""
    for check in (
        lambda values: _checks.check_ints_at_least("values", values, 0),
        lambda values: _checks.check_items("values", values, int, "a series of integers"),
    ):
        check(range(3))
        with pytest.raises(TypeError, match="values must be a series of integers, got"):
            check(i for i in range(3))
