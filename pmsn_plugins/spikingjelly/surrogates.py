"""SpikingJelly's surrogate functions as rows of :data:`pmsn_plugins.functional.SURROGATES`."""

from __future__ import annotations

from typing import Any

from spikingjelly.activation_based import surrogate

from ..functional.surrogate import OWN, SURROGATES, Known, register_surrogates

# not here: MultiLevelSpikeCount sends several spikes, PoissonPass random ones
_ROWS = {
    "PiecewiseQuadratic": "triangle",
    "Sigmoid": "sigmoid",
    "ATan": "atan",
    "PiecewiseExp": "piecewise_exp",
    "SoftSign": "soft_sign",
    "SuperSpike": "super_spike",
    "Erf": "erf",
    "Rect": "rect",
    "LeakyKReLU": "leaky_k_relu",
    "PiecewiseLeakyReLU": "piecewise_leaky_relu",
    "NonzeroSignLogAbs": "nonzero_sign_log_abs",
    "LogTailedReLU": "log_tailed_relu",
    "S2NN": "s2nn",
    "QPseudoSpike": "q_pseudo_spike",
    "DeterministicPass": "straight_through",
    "SquarewaveFourierSeries": OWN,
    "FakeNumericalGradient": OWN,
}
_KINDS = {getattr(surrogate, kind): name for kind, name in _ROWS.items() if hasattr(surrogate, kind)}
_OWN_PARAMETERS = ("alpha", "n", "T_period")
_HALVED_SLOPE = hasattr(surrogate.SurrogateFunctionBase, "_sg_params")
"""SpikingJelly 2.0 halved the slope that PiecewiseLeakyReLU has in 0.0.0.0.14."""


def _known(function: Any) -> Known | None:
    name = _KINDS.get(type(function))
    if name is None or not function.spiking:
        return None
    parameters = _OWN_PARAMETERS if name == OWN else SURROGATES[name].defaults
    values = {parameter: getattr(function, parameter) for parameter in parameters if hasattr(function, parameter)}
    if name == "piecewise_leaky_relu":
        values["slope"] = (0.5 if _HALVED_SLOPE else 1.0) / function.w
    return name, values, False


register_surrogates(surrogate.__name__, _known)
