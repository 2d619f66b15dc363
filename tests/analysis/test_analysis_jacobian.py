"""The Jacobian and norm of TC-LIF against autograd, and where the paper's print differs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pmsn_plugins.analysis import norm_plane, plot_norm_plane, tclif_infinity_norm, tclif_jacobian
from pmsn_plugins.functional import TCLIFState, tclif_step

coupling = st.floats(-1.0, 1.0)


def autograd_jacobian(b1: float, b2: float, soma_feedback: str) -> np.ndarray:
    def step(u):
        state = TCLIFState(v=u[1].view(1, 1), v_dendrite=u[0].view(1, 1))
        x = torch.full((1, 1), 0.3, dtype=torch.float64)
        _, new = tclif_step(x, b1, b2, state, v_threshold=1e3, soma_feedback=soma_feedback)
        return torch.stack([new.v_dendrite.squeeze(), new.v.squeeze()])

    return torch.autograd.functional.jacobian(step, torch.tensor([0.2, -0.1], dtype=torch.float64)).numpy()


@settings(deadline=None, max_examples=30)
@given(b1=coupling, b2=coupling, soma_feedback=st.sampled_from(["post_reset", "pre_reset"]))
def test_derived_jacobian_and_norm_equal_autograd(b1, b2, soma_feedback):
    expected = autograd_jacobian(b1, b2, soma_feedback)
    np.testing.assert_allclose(tclif_jacobian(b1, b2), expected, atol=1e-12)
    np.testing.assert_allclose(tclif_infinity_norm(b1, b2), np.linalg.norm(expected, np.inf), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(b1=coupling, b2=coupling)
def test_printed_jacobian_takes_the_soma_twice(b1, b2):
    printed = tclif_jacobian(b1, b2, "printed")
    np.testing.assert_allclose(printed, tclif_jacobian(b1, b2) @ [[1.0, 0.0], [b2, 1.0]], atol=1e-12)
    assert tclif_infinity_norm(b1, b2, "printed") == pytest.approx(
        max(b1 * b2**2 + b1 * b2 + 2 * b2 + 1, b1 * b2 + b1 + 1)
    )
    for form in ("derived", "printed"):
        assert np.linalg.det(tclif_jacobian(b1, b2, form)) == pytest.approx(1.0)


def test_gradient_neither_fades_nor_grows_in_the_second_quadrant_only():
    radius = lambda b1, b2: np.abs(np.linalg.eigvals(tclif_jacobian(b1, b2))).max()  # noqa: E731
    assert radius(-0.5, 0.5) == pytest.approx(1.0)
    assert radius(0.5, -0.5) == pytest.approx(1.0)
    assert radius(0.5, 0.5) > 1.5
    assert radius(-0.5, -0.5) > 1.5


def test_arrays_and_plane():
    plane = norm_plane(5)
    assert plane.printed.shape == plane.derived.shape == (5, 5)
    assert plane.printed[4, 0] == tclif_infinity_norm(-1.0, 1.0, "printed")  # row: b2, column: b1
    assert plane.derived[2, 2] == 1.0
    assert tclif_jacobian(np.zeros(3), 0.5).shape == (3, 2, 2)
    figure = plot_norm_plane(plane)
    assert [ax.get_title() for ax in figure.axes[:2]] == ["printed (Eq. 15)", "derived"]


def test_bad_arguments():
    with pytest.raises(ValueError, match="form must be one of 'derived', 'printed'"):
        tclif_jacobian(0.1, 0.1, "other")
    with pytest.raises(ValueError, match="points must be at least 2"):
        norm_plane(1)
