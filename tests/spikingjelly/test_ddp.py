"""A swapped net trained by two processes: the same parameters as one process with the whole batch.

This file is also the script that the two processes run: ``test_ddp.py RANK FOLDER``.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional, layer, neuron

from pmsn_plugins import swap_neurons
from pmsn_plugins.spikingjelly import PMSNNode, RecurrentTCLIFNode, TCLIFNode


def build_net():
    torch.manual_seed(0)
    features = layer.Conv2d(3, 4, 3), neuron.IFNode(), layer.AdaptiveAvgPool2d(2)
    recurrent = layer.Linear(16, 5), RecurrentTCLIFNode(5, v_threshold=0.1)
    net = torch.nn.Sequential(*features, layer.Flatten(), *recurrent, layer.Linear(5, 6), neuron.IFNode())
    functional.set_step_mode(net, "m")
    swap_neurons(net, lambda C: PMSNNode(C, preset="static") if C == 4 else TCLIFNode())
    return net


def batch():
    return torch.randn(4, 4, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def train(net, x):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):  # a parameter without gradient would make DistributedDataParallel raise in the second step
        optimizer.zero_grad()
        net(x).mean().backward()
        optimizer.step()
        functional.reset_net(net)


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    net = torch.nn.parallel.DistributedDataParallel(build_net())
    train(net, batch().chunk(2, 1)[rank])
    torch.save(net.module.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_two_processes_equal_one(tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    workers = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment) for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=300) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    single, initial = build_net(), build_net().state_dict()
    train(single, batch())
    for rank in range(2):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, single.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert all(not torch.equal(value, initial[name]) for name, value in single.state_dict().items())


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
