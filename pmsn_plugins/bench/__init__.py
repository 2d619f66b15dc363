"""``python -m pmsn_plugins.bench``: are the kernels right, and how fast are they next to everything else."""
