"""Training and evaluation of the papers' experiments; ``python -m pmsn_plugins.train`` is its command line."""

from .evaluation import Evaluation, evaluate, firing_rates
from .experiment import DATASETS, NETWORKS, build_network, open_source
from .lock import FolderInUseError, hold_folder
from .loop import DivergedError, InterruptedRunError, Trainer
from .objective import loss_of, read_out
from .presets import PRESETS
from .run import load_network
from .settings import Settings, with_neuron
from .snapshot import SnapshotError

__all__ = [
    "DATASETS",
    "NETWORKS",
    "PRESETS",
    "DivergedError",
    "Evaluation",
    "FolderInUseError",
    "InterruptedRunError",
    "Settings",
    "SnapshotError",
    "Trainer",
    "build_network",
    "evaluate",
    "firing_rates",
    "hold_folder",
    "load_network",
    "loss_of",
    "open_source",
    "read_out",
    "with_neuron",
]
