"""How TC-LIF passes gradients from step to step: its Jacobian and norm (TC-LIF paper, Eq. 14-15 and Fig. 2)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from .._checks import check_choice, check_int_at_least, check_named, shown
from .style import COLOR_MAP, COLORS, new_figure

FORMS = ("derived", "printed")


def tclif_jacobian(b1: float | np.ndarray, b2: float | np.ndarray, form: str = "derived") -> np.ndarray:
    """dU[t] / dU[t-1] over U = (U_D, U_S), away from spikes.

    ``'derived'`` from the equations ``U_D' = U_D + b1 U_S + I`` and ``U_S' = U_S + b2 U_D'``::

        [[1,  b1       ],
         [b2, 1 + b1 b2]]

    ``'printed'`` in the paper (Eq. 14)::

        [[1 + b1 b2,         b1       ],
         [b1 b2^2 + 2 b2,    1 + b1 b2]]

    The printed one is the derived one times ``[[1, 0], [b2, 1]]``: it takes the soma's update twice per step. Both have
    determinant 1. The derived one has trace ``2 + b1 b2``, so for -4 < b1 b2 < 0 (within the unit square: b1 and b2 of
    opposite sign) its eigenvalues are ``exp(+-i w)``, ``cos w = 1 + b1 b2 / 2``: the gradient turns but neither fades
    nor grows (per step; its norm varies within a turn). For couplings of equal sign one eigenvalue is above 1 and it
    explodes.

    Args:
        b1, b2: couplings soma -> dendrite and dendrite -> soma, numbers or arrays of one shape.
        form: ``'derived'`` or ``'printed'``.

    Returns:
        [*, 2, 2]: one matrix for each pair of couplings.

    Raises:
        TypeError: a coupling is neither a number nor an array of them.
        ValueError: unknown form, couplings that are not finite, or shapes that do not agree.

    Example:
        >>> tclif_jacobian(-0.5, 0.5)
        array([[ 1.  , -0.5 ],
               [ 0.5 ,  0.75]])
    """
    check_choice("form", form, FORMS)
    b1, b2 = _couplings("b1", b1), _couplings("b2", b2)
    try:
        b1, b2 = np.broadcast_arrays(b1, b2)
    except ValueError:
        raise ValueError(f"b1 and b2 must be of one shape, got {b1.shape} and {b2.shape}") from None
    product = b1 * b2
    if form == "derived":
        entries = (np.ones_like(product), b1, b2, 1 + product)
    else:
        entries = (1 + product, b1, product * b2 + 2 * b2, 1 + product)
    return np.stack(entries, -1).reshape(*product.shape, 2, 2)


def _couplings(name: str, value: float | np.ndarray) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name} must be a real number or an array of them, got {shown(value)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {shown(value)}")
    return array.astype(float)


def tclif_infinity_norm(b1: float | np.ndarray, b2: float | np.ndarray, form: str = "derived") -> np.ndarray:
    """Infinity norm of :func:`tclif_jacobian`, the largest row sum of absolute values.

    ``'derived'``: ``max(1 + |b1|, |b2| + |1 + b1 b2|)``; it is 1 at b1 = b2 = 0 only, and larger elsewhere.
    ``'printed'`` (Eq. 15): ``max(b1 b2^2 + b1 b2 + 2 b2 + 1, b1 b2 + b1 + 1)``. The absolute values are missing, so
    where b1 < 0 it is not always the norm of the printed matrix; but the paper's Table 7 has values of this form.

    Example:
        >>> float(tclif_infinity_norm(-0.5, 0.5))
        1.5
    """
    jacobian = tclif_jacobian(b1, b2, form)
    if form == "derived":
        jacobian = np.abs(jacobian)
    return jacobian.sum(-1).max(-1)


class NormPlane(NamedTuple):
    """Norms over the (b1, b2) plane: ``b`` [P] is the axis of both, each norm is [P, P] with b2 along the rows."""

    b: np.ndarray
    printed: np.ndarray
    derived: np.ndarray


def norm_plane(points: int = 201) -> NormPlane:
    """Infinity norms of the paper and of the equations over b1, b2 in [-1, 1].

    Raises:
        ValueError: fewer than 2 points.

    Example:
        >>> plane = norm_plane(points=11)
    """
    check_int_at_least("points", points, 2)
    b = np.linspace(-1.0, 1.0, points)
    return NormPlane(b, *(tclif_infinity_norm(b[None, :], b[:, None], form) for form in ("printed", "derived")))


def plot_norm_plane(plane: NormPlane) -> Figure:
    """Both norms, the unit contour of the printed one, and the quadrants where the derived eigenvalues have size 1.

    Raises:
        TypeError: ``plane`` is no NormPlane.

    Example:
        >>> figure = plot_norm_plane(norm_plane(points=11))
    """
    check_named("plane", plane, NormPlane)
    figure, axes = new_figure(4.0, columns=2, sharey=True)
    levels = np.linspace(0.0, 5.0, 21)
    for ax, title, values in zip(axes[0], ("printed (Eq. 15)", "derived"), plane[1:], strict=True):
        colours = ax.contourf(plane.b, plane.b, values, levels, cmap=COLOR_MAP)
        ax.plot(-0.5, 0.5, marker="o", markersize=8, linestyle="", color=COLORS[4], markeredgecolor="black")
        ax.set_title(title, fontsize=10)
        ax.set_xlabel("b1, soma to dendrite")
        ax.set_aspect("equal")
        ax.set_xticks([-1, 0, 1])
        ax.set_yticks([-1, -0.5, 0, 0.5, 1])
    axes[0, 0].contour(plane.b, plane.b, plane.printed, [1.0], colors=COLORS[4], linewidths=2.5)
    for corner in ((-1, 0), (0, -1)):
        axes[0, 1].add_patch(Rectangle(corner, 1, 1, fill=False, hatch="//", edgecolor=(1, 1, 1, 0.6), linewidth=0))
    axes[0, 0].set_ylabel("b2, dendrite to soma")
    figure.colorbar(colours, ax=axes[0].tolist(), label="infinity norm of dU[t]/dU[t-1]", ticks=range(6), shrink=0.8)
    handles = [
        Line2D([], [], color=COLORS[4], linewidth=2.5, label="norm 1"),
        Line2D([], [], color=COLORS[4], marker="o", linestyle="", markeredgecolor="black", label="initial (-0.5, 0.5)"),
        Patch(facecolor="0.4", hatch="//", edgecolor="white", label="both eigenvalues of size 1"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure
