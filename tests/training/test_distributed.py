"""What processes tell one another: alone, and in a group of gloo that is this process alone."""

import socket

import pytest
import torch
import torch.distributed as dist

from pmsn_plugins.training import distributed

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")


@pytest.fixture(params=["no group", "a group of one"])
def process(request, monkeypatch):
    if request.param == "a group of one":  # as torchrun starts it
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
    yield distributed.start("cpu")
    distributed.stop()
    assert not dist.is_initialized()


def test_one_process_is_the_main_one_and_its_own_sum(process, request):
    assert dist.is_initialized() == ("group of one" in request.node.name)
    assert process == distributed.Process(0, 1, torch.device("cpu")) and process.is_main and distributed.is_main()
    assert distributed.start("cpu") == process  # it has joined already
    values = torch.tensor([1.0, 2.0])
    total = distributed.all_sum(values)
    assert torch.equal(total, values)
    if dist.is_initialized():
        total.zero_()
    distributed.copy_from_main([values])
    assert values.tolist() == [1.0, 2.0]  # the sum is a tensor of its own
    assert distributed.all_gather({"a": 1}) == [{"a": 1}]
    with distributed.main_first(process):
        distributed.barrier()
