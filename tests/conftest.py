"""Every test draws the same random numbers, alone or among others, and every process has one thread."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported: the workers share the cores

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
