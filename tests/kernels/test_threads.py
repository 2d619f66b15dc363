"""The kernels' pool of threads, where threads and memory run out, and in forked processes."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pmsn_plugins.kernels import cpu

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="takes the place of functions of Linux, reads /proc")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    if shutil.which("g++") is None:
        pytest.skip("no g++ to compile the pool with")
    path = tmp_path_factory.mktemp("pool") / "pool"
    sources = (Path(__file__).with_name("pool_program.cpp"), cpu._SOURCES / "cpu_pool.cpp")
    subprocess.run(["g++", "-std=c++17", "-pthread", "-I", cpu._SOURCES, *sources, "-ldl", "-o", path], check=True)
    return path


@pytest.mark.parametrize("row", [1, 1000000], ids=["once", "ever"])
@pytest.mark.parametrize("first", range(1, 9))
@pytest.mark.parametrize("kind", ["memory", "threads"])
def test_every_item_is_run_once_whatever_cannot_be_had(program, kind, first, row):
    failing = {"memory": (first, 0, 0), "threads": (0, 0, first)}[kind]
    result = subprocess.run([program, *map(str, failing), str(row)], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "1" * 20), result


@pytest.mark.parametrize("row", [1, 1000000], ids=["once", "ever"])
@pytest.mark.parametrize("first", range(1, 9))
def test_without_memory_to_work_in_nothing_is_run(program, first, row):
    result = subprocess.run([program, "0", str(first), "0", str(row)], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and set(result.stdout) <= {"0", "1"}, result
    if first == 1:  # by the caller; later ones may be a helper's, which others then do without
        assert result.stdout.count("0") == min(row, 20)


def test_a_forked_process_can_call_whatever_its_parent_did(program):
    assert subprocess.run([program, "1000"], timeout=120).returncode == 0


LIMITED = """
import os, resource, torch
from pmsn_plugins import functional, kernels

generator = torch.Generator().manual_seed(0)
parameters = functional.pmsn_initial_parameters(1024, generator=generator)
x = torch.randn(32, 1, 1024, generator=generator).requires_grad_()  # eight items

def results():
    pmsn = kernels.pmsn_sequence(x, parameters, backend="cpu").spikes
    tclif = kernels.tclif_sequence(x, -0.5, 0.5, backend="cpu").spikes
    return pmsn.detach(), tclif.detach(), *torch.autograd.grad((pmsn + tclif).sum(), x)

torch.set_num_threads(1)
expected = results()
before = len(os.listdir("/proc/self/task"))
torch.set_num_threads(8)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + SPARE, resource.RLIM_INFINITY))
for _ in range(5):
    assert all(map(torch.equal, results(), expected))
print(len(os.listdir("/proc/self/task")) - before)
"""


@pytest.mark.parametrize(("spare", "threads"), [(4, range(1)), (40, range(1, 7)), (1000, range(7, 8))])
def test_where_no_more_threads_can_be_started(cpu_kernels, spare, threads):
    """A thread takes 8 MB of address space. The process goes on with those that there are."""
    import resource

    stack = resource.getrlimit(resource.RLIMIT_STACK)
    resource.setrlimit(resource.RLIMIT_STACK, (2**23, stack[1]))
    try:
        command = [sys.executable, "-c", LIMITED.replace("SPARE", str(spare * 2**20))]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        resource.setrlimit(resource.RLIMIT_STACK, stack)
    assert result.returncode == 0, (result.returncode, result.stderr)
    assert int(result.stdout) in threads
