"""The neurons as stateless functions of tensors with explicit states: the reference all else is tested against."""

from .multicompartment import MultiCompartmentOutput, multicompartment_sequence
from .pmsn import (
    CONTEXTS,
    METHODS,
    RESET_MODES,
    PMSNCoefficients,
    PMSNOutput,
    PMSNState,
    discretize,
    pmsn_impulse_response,
    pmsn_initial_state,
    pmsn_sequence,
    pmsn_step,
)
from .pmsn_init import PRESETS, PMSNParameters, PMSNPreset, hidden_modes, pmsn_initial_parameters
from .surrogate import SURROGATES, SurrogateRow, SurrogateSpec, TableSurrogate, describe, triangle
from .tclif import SOMA_FEEDBACK, TCLIFOutput, TCLIFState, tclif_initial_state, tclif_sequence, tclif_step

__all__ = [
    "CONTEXTS",
    "METHODS",
    "PRESETS",
    "RESET_MODES",
    "SOMA_FEEDBACK",
    "SURROGATES",
    "MultiCompartmentOutput",
    "PMSNCoefficients",
    "PMSNOutput",
    "PMSNParameters",
    "PMSNPreset",
    "PMSNState",
    "SurrogateRow",
    "SurrogateSpec",
    "TCLIFOutput",
    "TCLIFState",
    "TableSurrogate",
    "describe",
    "discretize",
    "hidden_modes",
    "multicompartment_sequence",
    "pmsn_impulse_response",
    "pmsn_initial_parameters",
    "pmsn_initial_state",
    "pmsn_sequence",
    "pmsn_step",
    "tclif_initial_state",
    "tclif_sequence",
    "tclif_step",
    "triangle",
]
