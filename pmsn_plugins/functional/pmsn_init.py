"""Parameters of the PMSN and their initial values (PMSN paper, Eq. 6-9 and Section VI)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .._checks import (
    check_choice,
    check_device,
    check_floating_dtype,
    check_int_at_least,
    check_not_negative,
    check_positive,
    check_range,
    check_type,
)


class PMSNParameters(NamedTuple):
    """Learnable parameters of one PMSN layer: C channels, k = n_compartments - 1 hidden compartments.

    The hidden compartments are kept in the basis of their eigenmodes, ``lam = -exp(log_decay) + i freq``.

    Attributes:
        log_dt: [C], logarithm of the time step ``dt``, in the (dimensionless) time unit of ``lam``.
        log_decay: [C, k], logarithm of the modes' decay rate, 1 / time unit.
        freq: [C, k], angular frequency of the modes, rad / time unit.
        B_real, B_imag: [C, k], how the input enters the modes.
        R_real, R_imag: [C, k], how the modes are read by the output compartment.
        D: [C], direct gain from the input to the output compartment.
    """

    log_dt: Tensor
    log_decay: Tensor
    freq: Tensor
    B_real: Tensor
    B_imag: Tensor
    R_real: Tensor
    R_imag: Tensor
    D: Tensor


class PMSNPreset(NamedTuple):
    """Where initial values come from: coupling strength, range of dt, which compartments are read, law of D."""

    coupling: float
    dt_range: tuple[float, float]
    readout: str
    direct: str


PRESETS = {
    "general": PMSNPreset(coupling=2.0, dt_range=(1e-2, 1.0), readout="last", direct="uniform"),
    "sequential": PMSNPreset(coupling=5.0, dt_range=(1e-3, 1e-1), readout="last", direct="normal"),
    "shd": PMSNPreset(coupling=5.0, dt_range=(1e-3, 1e-1), readout="all", direct="normal"),
    "static": PMSNPreset(coupling=0.25, dt_range=(0.2, 1.0), readout="last", direct="uniform"),
}
"""``general``: sequences of 4 to 1000 steps, ours; what was tried is in the README. The other three are the paper's:
``sequential``: S-MNIST, PS-MNIST, sequential CIFAR. ``shd``: spoken digits. ``static``: SEW ResNet on images."""


def initial_values(
    preset: str = "general",
    *,
    dt_range: tuple[float, float] | None = None,
    coupling: float | None = None,
    time_scale: float | None = None,
) -> PMSNPreset:
    """A preset with what the other arguments change in it; they are those of :func:`pmsn_initial_parameters`.

    Example:
        >>> initial_values("shd").readout
        'all'
    """
    check_choice("preset", preset, PRESETS)
    chosen = PRESETS[preset]
    if time_scale is not None:
        check_positive("time_scale", time_scale)
        if dt_range is not None or coupling is not None:
            raise ValueError(
                "time_scale chooses dt_range and coupling: give it or them, "
                f"got time_scale={time_scale!r}, dt_range={dt_range!r}, coupling={coupling!r}"
            )
        low, high = min(1.0 / time_scale, 1.0), min(100.0 / time_scale, 1.0)
        chosen = chosen._replace(dt_range=(low, high), coupling=min(0.2 * math.sqrt(time_scale), 5.0))
    if dt_range is not None:
        check_range("dt_range", dt_range)
        low, high = map(float, dt_range)
        chosen = chosen._replace(dt_range=(low, high))
    if coupling is not None:
        check_not_negative("coupling", coupling)
        chosen = chosen._replace(coupling=float(coupling))
    return chosen


def hidden_modes(
    n_compartments: int, preset: str = "general", *, coupling: float | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenmodes of the initial chain of k = n_compartments - 1 hidden compartments.

    The chain is ``dh/dt = S h + 1 x`` with ``S[i, i] = -0.5``, ``S[i, i+1] = s (i+1)``, ``S[i+1, i] = -s (i+1)``
    (PMSN Eq. 6), s the coupling, and ``S = V diag(lam) V^-1``. The readout row ``r`` takes the last compartment or the
    sum of all.

    Returns:
        ``lam``, ``B = V^-1 1`` and ``R = V^T r``, each complex128 of shape [k].

    Raises:
        TypeError: an argument is of another type.
        ValueError: fewer than two compartments, an unknown preset, or a coupling below 0.

    Example:
        >>> lam, B, R = hidden_modes(n_compartments=5)
        >>> lam.real  # all modes decay alike
        tensor([-0.5000, -0.5000, -0.5000, -0.5000], dtype=torch.float64)
    """
    check_int_at_least("n_compartments", n_compartments, 2)
    initial = initial_values(preset, coupling=coupling)
    k = n_compartments - 1
    couplings = initial.coupling * torch.arange(1, k, dtype=torch.float64)
    skew = torch.diag(couplings, 1) - torch.diag(couplings, -1)
    # S is -0.5 I plus a skew-symmetric matrix, so -i (S + 0.5 I) is Hermitian and V is unitary
    freq, V = torch.linalg.eigh(-1j * skew)
    lam = torch.complex(torch.full_like(freq, -0.5), freq)
    r = torch.ones(k, dtype=V.dtype)
    if initial.readout == "last":
        r[:-1] = 0
    return lam, V.mH @ torch.ones(k, dtype=V.dtype), V.mT @ r


def pmsn_initial_parameters(
    channels: int,
    n_compartments: int = 5,
    preset: str = "general",
    *,
    dt_range: tuple[float, float] | None = None,
    coupling: float | None = None,
    time_scale: float | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> PMSNParameters:
    """Draw initial parameters of a PMSN layer.

    Args:
        channels: number of channels C.
        n_compartments: compartments per neuron including the output one, n >= 2; k = n - 1 are hidden.
        preset: ``'general'``, ``'sequential'``, ``'shd'`` or ``'static'``, see :data:`PRESETS`.
        dt_range: (low, high), where ``dt`` is drawn from, uniformly on a logarithmic scale; None takes the preset's.
        coupling: s, the strength of the chain's couplings (:func:`hidden_modes`), 0 or more; None takes the preset's.
        time_scale: chooses both for sequences of about ``time_scale`` time steps: ``dt_range = (1, 100) / time_scale``,
            at most 1, and ``coupling = 0.2 sqrt(time_scale)``, at most 5. A mode decays as ``exp(-dt t / 2)``: the
            slowest remember twice the sequence, the fastest a fiftieth of it and at least two steps. ``'general'`` is a
            time scale of 100, ``'sequential'`` about one of 1000.
        generator: source of randomness for ``log_dt`` and ``D``; the rest is deterministic. The same numbers are drawn
            for every dtype.
        dtype: default ``torch.get_default_dtype()``.

    Raises:
        TypeError: ``generator``, ``dtype`` or another argument is of another type.
        ValueError: channels < 1, n_compartments < 2, unknown preset or device; ``dt_range`` without 0 < low <= high,
            ``coupling`` below 0, ``time_scale`` not above 0 or beside one of the two.

    Example:
        >>> parameters = pmsn_initial_parameters(channels=3, n_compartments=5, preset="shd")
        >>> parameters.log_decay.shape  # [C, k]
        torch.Size([3, 4])
    """
    check_int_at_least("channels", channels, 1)
    if generator is not None:
        check_type("generator", generator, torch.Generator, "a torch.Generator or None")
    dtype = torch.get_default_dtype() if dtype is None else dtype
    check_floating_dtype("dtype", dtype)
    if device is not None:
        check_device("device", device)
    initial = initial_values(preset, dt_range=dt_range, coupling=coupling, time_scale=time_scale)
    lam, B, R = hidden_modes(n_compartments, preset, coupling=initial.coupling)
    low, high = (math.log(bound) for bound in initial.dt_range)
    log_dt = low + (high - low) * torch.rand(channels, generator=generator, dtype=torch.float32)
    draw = torch.randn if initial.direct == "normal" else torch.rand
    D = draw(channels, generator=generator, dtype=torch.float32)
    modes = (torch.log(-lam.real), lam.imag, B.real, B.imag, R.real, R.imag)
    per_channel = (mode.expand(channels, -1) for mode in modes)
    return PMSNParameters(*(p.to(dtype=dtype, device=device, copy=True) for p in (log_dt, *per_channel, D)))
