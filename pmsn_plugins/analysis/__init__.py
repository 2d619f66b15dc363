"""See what the neurons of a net do: the papers' figures, and energy.

Each analysis is a function of a net (or of data) that returns data; a ``plot_*`` function next to it draws them as a
``matplotlib.figure.Figure``, to be saved with ``figure.savefig(...)`` or shown as the last line of a notebook cell.
"""

try:
    import matplotlib  # noqa: F401
except ImportError as error:
    raise ImportError('pmsn_plugins.analysis needs matplotlib: pip install "pmsn_plugins[all]"') from error

from ..neuron_cost import NeuronCost
from .acceleration import acceleration, plot_acceleration, step_times
from .curves import LearningCurve, learning_curve, plot_learning_curves
from .energy import (
    EnergyPoint,
    EnergyReport,
    LayerEnergy,
    lstm_step_energy,
    measure_energy,
    plot_accuracy_energy,
    pmsn_cost,
    psn_cost,
    sliding_psn_cost,
    step_energy,
)
from .gradients import compare_gradients, gradient_over_time, last_step_loss, plot_gradient_over_time
from .impulse_response import ImpulseResponse, impulse_response, plot_impulse_response
from .jacobian import NormPlane, norm_plane, plot_norm_plane, tclif_infinity_norm, tclif_jacobian
from .landscape import Landscape, filter_normalised_direction, loss_landscape, plot_landscape
from .oscillations import Oscillations, oscillations, plot_oscillations
from .sweeps import (
    Run,
    compartment_sweep,
    plot_compartment_sweep,
    plot_quadrant_search,
    plot_reset_ablation,
    quadrant_search,
    reset_ablation,
)

__all__ = [
    "EnergyPoint",
    "EnergyReport",
    "ImpulseResponse",
    "Landscape",
    "LayerEnergy",
    "LearningCurve",
    "NeuronCost",
    "NormPlane",
    "Oscillations",
    "Run",
    "acceleration",
    "compare_gradients",
    "compartment_sweep",
    "filter_normalised_direction",
    "gradient_over_time",
    "impulse_response",
    "last_step_loss",
    "learning_curve",
    "loss_landscape",
    "lstm_step_energy",
    "measure_energy",
    "norm_plane",
    "oscillations",
    "plot_acceleration",
    "plot_accuracy_energy",
    "plot_compartment_sweep",
    "plot_gradient_over_time",
    "plot_impulse_response",
    "plot_landscape",
    "plot_learning_curves",
    "plot_norm_plane",
    "plot_oscillations",
    "plot_quadrant_search",
    "plot_reset_ablation",
    "pmsn_cost",
    "psn_cost",
    "quadrant_search",
    "reset_ablation",
    "sliding_psn_cost",
    "step_energy",
    "step_times",
    "tclif_infinity_norm",
    "tclif_jacobian",
]
