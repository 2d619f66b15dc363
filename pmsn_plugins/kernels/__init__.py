"""The neurons with a choice of backend: the same functions as :mod:`pmsn_plugins.functional`, plus ``backend``.

``'torch'`` is the reference in PyTorch operations. ``'cpu'`` and ``'cupy'`` are fused kernels for CPU and CUDA tensors:
one pass over the sequence, nothing kept for the backward pass but the input and a few checkpoints of the state.
``'auto'`` takes the fused kernels where they can run and PyTorch otherwise; :func:`explain` tells which, and why.
"""

from .backend import BACKENDS, BackendStatus, backends, check_backend
from .explanation import explain
from .pmsn import discretize, pmsn_sequence, pmsn_step
from .tclif import tclif_sequence, tclif_step
from .tclif_recurrent import tclif_recurrent_sequence, tclif_recurrent_step

__all__ = [
    "BACKENDS",
    "BackendStatus",
    "backends",
    "check_backend",
    "discretize",
    "explain",
    "pmsn_sequence",
    "pmsn_step",
    "tclif_recurrent_sequence",
    "tclif_recurrent_step",
    "tclif_sequence",
    "tclif_step",
]
