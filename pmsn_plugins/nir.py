"""Export of our neurons to NIR, the Neuromorphic Intermediate Representation (needs ``pip install nir``).

NIR has no multi-compartment neuron, and its IF and LIF nodes set the membrane to a fixed value after a spike, where
ours subtract. But its integrator ``I``, ``Scale`` and ``Threshold`` nodes can be wired into a neuron that is exactly
ours, under one convention that NIR leaves open: forward Euler with a time step of 1, an integrator's new value being
passed on within the step, and feedback arriving one step later. The graph's ``metadata`` say so.

What cannot be exported is refused: see :func:`to_nir`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ._checks import check_int_at_least
from .functional import describe
from .parameters import PMSNParametersMixin, RecurrentTCLIFParametersMixin, TCLIFParametersMixin

if TYPE_CHECKING:
    import nir


class NIRExportError(NotImplementedError):
    """NIR has no way to express this neuron exactly."""


CONVENTION = (
    "forward Euler, dt = 1: v[t] = v[t-1] + r * (sum of inputs); edges carry the value of the same step, those from "
    "the nodes named in 'delayed' that of the step before"
)


def to_nir(layer: nn.Module, features: int) -> nir.NIRGraph:
    """The NIR graph of one TC-LIF layer, or of one PMSN layer that takes the signed current.

    It has one ``Input`` ("input", the current) and one ``Output`` ("output", the spikes), both of shape [features],
    and can be a node of a larger graph, e.g. ``nir.NIRGraph.from_list(nir.Affine(weight, bias), to_nir(layer, 128),
    ...)``.

    TC-LIF: a dendrite and a soma (``I``), couplings and resets (``Scale``), a ``Threshold``.
    ``soma_feedback='post_reset'`` is the same graph as ``'pre_reset'`` with the dendrite's reset ``gamma + b1
    v_threshold``.
    Recurrent TC-LIF: a ``Linear`` from the spikes back to the dendrite as well, and an ``Affine`` that adds the bias.
    PMSN: per mode one ``I`` for each part, real and imaginary, coupled by ``A - 1``; their sum and D into the
    output's ``I``, or with ``reset_mode='memoryless'`` into its ``Threshold``.

    A layer that fires at ``u >= v_threshold`` gets the next smaller number as NIR's strict threshold, in the layer's
    dtype.

    Args:
        layer: a layer of either framework.
        features: number of neurons; the channels, if the layer has them.

    Raises:
        NIRExportError: PMSN with ``reset_mode='modulo'`` (the default), bursts, global context, or graded spikes: NIR
            has no rectifier for max(I, 0), no rounding for floor(u / v_threshold), and no average over the sequence.
        TypeError: not one of our layers, or ``features`` is not an integer.
        ValueError: ``features`` is below 1 or not the number of channels.
        ImportError: nir is not installed.

    Example:
        >>> from pmsn_plugins.spikingjelly import TCLIFNode
        >>> graph = to_nir(TCLIFNode(), features=3)
    """
    try:
        import nir
    except ImportError as error:
        raise ImportError("pmsn_plugins.nir needs NIR: pip install nir") from error
    if not isinstance(layer, PMSNParametersMixin | TCLIFParametersMixin):
        raise TypeError(
            f"layer must be a PMSN or TC-LIF layer, got {type(layer).__name__}; convert a net layer by layer"
        )
    check_int_at_least("features", features, 1)
    if layer.channels is not None and features != layer.channels:
        raise ValueError(f"features must be the layer's {layer.channels} channels, got {features}")
    if getattr(layer, "graded_spikes_factor", None) is not None:
        raise NIRExportError(
            "graded_spikes_factor: multiply the following weights by it, and export the layer with factor 1"
        )
    with torch.no_grad():
        given: Any = getattr(layer, "v_threshold", None) or getattr(layer, "threshold", None)
        threshold = float(given)
        if isinstance(layer, TCLIFParametersMixin):
            nodes, edges, delayed = _tclif(nir, layer, features, threshold)
        else:
            nodes, edges, delayed = _pmsn(nir, layer, features, threshold)
        nodes["fire"] = nir.Threshold(np.full(features, _strict(layer, threshold)))
    nodes["input"] = nir.Input(input_type={"input": np.array([features])})
    nodes["output"] = nir.Output(output_type={"output": np.array([features])})
    edges.append(("fire", "output"))
    return nir.NIRGraph(nodes, edges, metadata={"convention": CONVENTION, "delayed": ", ".join(delayed)})


def _tclif(nir: Any, layer: TCLIFParametersMixin, features: int, threshold: float) -> tuple[dict, list, list[str]]:
    if layer.leak != (1.0, 1.0):
        raise NIRExportError(f"leak={layer.leak}: these integrators keep all of their potential")
    b1, b2 = (_row(b, features) for b in layer.couplings(2))
    gamma = float(layer.gamma) + (b1 * threshold if layer.soma_feedback == "post_reset" else 0.0)
    nodes = {
        "dendrite": nir.I(np.ones(features)),
        "soma": nir.I(np.ones(features)),
        "up": _scale(nir, b2),
        "down": _scale(nir, b1),
        "reset_dendrite": _scale(nir, -gamma * np.ones(features)),
        "reset_soma": _scale(nir, np.full(features, -threshold)),
    }
    edges = [
        ("input", "dendrite"),
        ("dendrite", "up"),
        ("up", "soma"),
        ("soma", "down"),
        ("down", "dendrite"),
        ("soma", "fire"),
        ("fire", "reset_dendrite"),
        ("reset_dendrite", "dendrite"),
        ("fire", "reset_soma"),
        ("reset_soma", "soma"),
    ]
    delayed = ["down", "reset_dendrite", "reset_soma"]
    if isinstance(layer, RecurrentTCLIFParametersMixin):
        weight, bias = layer.feedback(features)
        nodes["feedback"] = nir.Linear(weight.double().cpu().numpy())
        edges += [("fire", "feedback"), ("feedback", "dendrite")]
        delayed.append("feedback")
        if bias is not None:  # with the input, for it is there at the first step too
            nodes["bias"] = nir.Affine(np.eye(features), bias.double().cpu().numpy())
            edges[0] = ("input", "bias")
            edges.append(("bias", "dendrite"))
    return nodes, edges, delayed


def _pmsn(nir: Any, layer: PMSNParametersMixin, features: int, threshold: float) -> tuple[dict, list, list[str]]:
    lacking = []
    if layer.reset_mode == "modulo":
        lacking.append("reset_mode='modulo' rectifies the current, max(I, 0), and NIR has no rectifier")
        lacking.append("it resets by v_threshold floor(u / v_threshold), and NIR has no rounding")
    if layer.burst:
        lacking.append("burst=True fires floor(u / v_threshold) spikes at once, and NIR's spikes are 0 or 1")
    if layer.context == "global":
        lacking.append("context='global' averages over the whole sequence, and NIR nodes are causal")
    if lacking:
        raise NIRExportError(
            f"NIR cannot express this PMSN exactly: {'; '.join(lacking)}. A PMSN trained with "
            "reset_mode='serial', 'cumulative' or 'memoryless' can be exported"
        )
    E_real, E_imag, K_real, K_imag, D = (c.double().cpu().numpy() for c in layer.coefficients())
    nodes, delayed = {"direct": _scale(nir, D)}, []
    output = "fire" if layer.reset_mode == "memoryless" else "membrane"
    edges = [("input", "direct"), ("direct", output)]
    if output == "membrane":
        nodes["membrane"] = nir.I(np.ones(features))
        edges.append(("membrane", "fire"))
    if layer.reset_mode == "serial":
        nodes["reset"] = _scale(nir, np.full(features, -threshold))
        edges += [("fire", "reset"), ("reset", "membrane")]
        delayed.append("reset")
    for j in range(E_real.shape[1]):
        real, imag = f"real_{j}", f"imag_{j}"
        scales = {
            (real, real): E_real[:, j],
            (imag, real): -E_imag[:, j],
            (real, imag): E_imag[:, j],
            (imag, imag): E_real[:, j],
            ("input", real): K_real[:, j],
            ("input", imag): K_imag[:, j],
        }
        nodes[real], nodes[imag] = nir.I(np.ones(features)), nir.I(np.ones(features))
        for (source, target), scale in scales.items():
            name = f"{source}_to_{target}"
            nodes[name] = _scale(nir, scale)
            edges += [(source, name), (name, target)]
            if source != "input":
                delayed.append(name)
        edges.append((real, output))
    return nodes, edges, delayed


def _scale(nir: Any, factor: np.ndarray) -> Any:
    return nir.Scale(np.asarray(factor, dtype=float))


def _row(coupling: Tensor, features: int) -> np.ndarray:
    return coupling.double().cpu().expand(features).numpy()


def _strict(layer: nn.Module, threshold: float) -> float:
    """``v > result`` is what the layer does: fire at its threshold too, or only above it."""
    surrogate: Any = getattr(layer, "surrogate_function", None) or getattr(layer, "spike_grad", None)
    spec = describe(surrogate)
    strict = spec.strict if spec is not None else not bool(surrogate(torch.zeros(1)))
    dtype = np.float64 if next(layer.parameters()).dtype == torch.float64 else np.float32
    return threshold if strict else float(np.nextafter(dtype(threshold), dtype(-np.inf)))
