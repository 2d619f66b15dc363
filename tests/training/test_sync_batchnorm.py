"""Batch normalisation over two gloo processes against one process with all samples, in float64.

This file is also the script that the two processes run: ``test_sync_batchnorm.py RANK FOLDER``.
"""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pmsn_plugins.layers import reset_states
from pmsn_plugins.models import neuron_factory, residual
from pmsn_plugins.training.sync_batchnorm import SyncBatchNorm, convert_sync_batchnorm

STEPS = 5


def samples():
    generator = torch.Generator().manual_seed(3)
    return torch.rand(STEPS, 7, 6, 2, generator=generator, dtype=torch.float64), torch.arange(6) % 3


def make_net():
    torch.manual_seed(0)
    return residual(2, 8, 2, 3, neuron_factory("pmsn")).double()


def train(net, module, share):
    """A few steps of SGD on this share of every batch [T, N, C]; the shares are of equal size."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    x, target = samples()
    for x_seq in x:
        loss = nn.functional.cross_entropy(net(x_seq[:, share]).mean(0), target[share])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reset_states(module)
    return module.state_dict()


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = convert_sync_batchnorm(make_net())
    state = train(DistributedDataParallel(net), net, slice(rank, None, 2))
    if rank == 0:
        torch.save(state, f"{folder}/state.pt")
    dist.destroy_process_group()


def test_two_processes_normalise_as_one_does(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment) for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    net = make_net()
    expected = train(net, net, slice(None))
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-10)


def test_conversion_keeps_parameters_buffers_and_evaluation():
    net = make_net()
    x = samples()[0][0]
    net(x)
    reset_states(net)
    net.eval()
    expected, parameters = net(x), dict(net.named_parameters())
    reset_states(net)
    converted = convert_sync_batchnorm(net)
    assert sum(isinstance(m, SyncBatchNorm) for m in converted.modules()) == 3
    assert all(p is parameters[name] for name, p in converted.named_parameters())
    assert torch.equal(converted(x), expected)
    with pytest.raises(ValueError, match=r"expected 8 channels on axis 1"):
        SyncBatchNorm(8)(torch.zeros(2, 7))


@pytest.fixture
def alone(tmp_path):
    """A group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
@pytest.mark.parametrize("multi_step", [False, True])
def test_alone_it_is_pytorchs(alone, options, multi_step):
    layers = pytest.importorskip("spikingjelly.activation_based.layer")
    plain = layers.BatchNorm2d(3, step_mode="m" if multi_step else "s", **options).double()
    synced = convert_sync_batchnorm(copy.deepcopy(plain))
    assert isinstance(synced, SyncBatchNorm)
    for _ in range(3):
        x = torch.randn(*(2,) * multi_step, 4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
        weight = torch.randn_like(x)
        outcomes = []
        for norm in (plain, synced):
            y = norm(x)
            outcomes.append((y, *torch.autograd.grad((y * weight).sum(), [x, *norm.parameters()])))
        torch.testing.assert_close(*outcomes, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(synced.state_dict(), plain.state_dict(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(alone, dtype):
    x = 3 * torch.rand(4000, 2) + 100
    norm = SyncBatchNorm(2)
    y = norm(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), SyncBatchNorm(2)(x.to(dtype).float()), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(norm.running_mean, 0.1 * x.to(dtype).float().mean(0))


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
