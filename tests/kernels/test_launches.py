"""What reaches the driver of a GPU, on a machine without one: the driver is a fake that computes nothing."""

import contextlib
import ctypes
import threading
from types import SimpleNamespace

import pytest
import torch

from pmsn_plugins import functional, kernels
from pmsn_plugins.kernels import cpu, gpu


class FakeDriver:
    """Counts what is compiled, what is looked up, and what is launched, and which threads it got to know."""

    def __init__(self):
        self.compiled, self.found, self.launched, self.threads = [], [], [], []

        self.device = None  # that of CPU tensors

    @contextlib.contextmanager
    def switched(self, device):
        before, self.device = self.device, device.index
        yield
        self.device = before

    def module(self, program, device):
        self.compiled.append(program.name)
        return SimpleNamespace(get_function=self.get_function)

    def get_function(self, name):
        self.found.append(name)
        return SimpleNamespace(kernel=SimpleNamespace(ptr=len(self.found) - 1))

    def launch(self, function, x, y, z, threads, y_threads, z_threads, shared, stream, parameters, extra):
        assert threading.get_ident() in self.threads and (y_threads, z_threads, shared, extra) == (1, 1, 0, 0)
        kernel = ctypes.cast(parameters, ctypes.POINTER(ctypes.c_void_p))[0]  # the address of its one argument
        T = ctypes.cast(kernel, ctypes.POINTER(ctypes.c_longlong))[0]
        self.launched.append((self.found[function], (x, y, z), threads, stream, T))


@pytest.fixture
def driver(monkeypatch):
    fake = FakeDriver()
    gpu._kernel.cache_clear()
    monkeypatch.setattr(gpu, "_module", fake.module)
    runtime = SimpleNamespace(getDevice=lambda: 0, setDevice=lambda device: fake.threads.append(threading.get_ident()))
    monkeypatch.setattr(gpu, "_cupy_interfaces", lambda: (SimpleNamespace(launchKernel=fake.launch), runtime))
    monkeypatch.setattr(gpu, "_thread", gpu._Thread())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: fake.device)
    monkeypatch.setattr(torch.cuda, "device", fake.switched)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 17, raising=False)
    device = gpu.CupyDevice()
    device.multiprocessors = 132
    monkeypatch.setattr(cpu, "library", cpu.library or object())
    monkeypatch.setattr(cpu.CpuDevice, "run", lambda self, call: device.run(call))
    monkeypatch.setattr(cpu.CpuDevice, "takes_layers", True)
    yield fake
    gpu._kernel.cache_clear()


def layer(T, **options):
    parameters = functional.pmsn_initial_parameters(64, 5)
    parameters = functional.PMSNParameters(*(p.requires_grad_() for p in parameters))
    x = torch.zeros(T, 2, 64, requires_grad=True)
    return kernels.pmsn_sequence(x, parameters, backend="cpu", **options).spikes


@pytest.mark.parametrize(
    ("T", "return_state", "forward", "backward"),
    [
        (4, False, ["pmsn_short_forward"], ["pmsn_short_backward", "pmsn_short_reduce"]),
        (24, False, ["pmsn_short_forward"], ["pmsn_short_backward", "pmsn_short_reduce"]),
        (32, False, ["pmsn_forward"], ["pmsn_short_backward", "pmsn_short_reduce"]),
        (33, False, ["pmsn_forward"], ["pmsn_backward", "pmsn_reduce"]),
        (4, True, ["pmsn_forward"], ["pmsn_short_backward", "pmsn_short_reduce"]),
        (100, False, ["pmsn_forward"], ["pmsn_backward", "pmsn_reduce"]),
        (
            *(1024, False),
            ["pmsn_hidden_local", "pmsn_hidden_carry", "pmsn_membrane_local", "pmsn_membrane_carry", "pmsn_forward"],
            ["pmsn_adjoint_local", "pmsn_adjoint_carry", "pmsn_backward", "pmsn_reduce"],
        ),
    ],
)
def test_launches_of_a_layer(driver, T, return_state, forward, backward):
    spikes = layer(T, return_state=return_state)
    assert [name for name, *_ in driver.launched] == ["discretize_forward", *forward]
    driver.launched.clear()
    spikes.sum().backward()
    assert [name for name, *_ in driver.launched] == ["discretize_forward", *backward, "discretize_backward"]


def test_kernels_are_looked_up_once(driver):
    for _ in range(3):
        layer(1024, return_state=False).sum().backward()
    assert len(driver.found) == len(set(driver.found)) == 11
    assert len(driver.launched) > 3 * 11


def test_inference_compiles_nothing_of_backward(driver):
    with torch.no_grad():
        layer(100)
        kernels.tclif_sequence(torch.zeros(9, 2, 3), -0.5, 0.5, backend="cpu")
    assert {*driver.compiled} == {"discretize", "pmsn_forward", "tclif_forward"}


def test_a_membrane_without_a_gradient_is_a_zero_gradient(driver):
    """Kernels read the gradient of what is sent in any case."""
    x = torch.zeros(5, 2, 3, requires_grad=True)
    kernels.tclif_sequence(x, -0.5, 0.5, backend="cpu").state.v.sum().backward()
    assert [name for name, *_ in driver.launched] == ["tclif_forward", "tclif_backward", "tclif_reduce"]


def test_arguments_stream_and_device(driver):
    driver.device = 1
    with torch.no_grad():
        layer(100)
    assert [(name, stream, T) for name, _, _, stream, T in driver.launched][-1] == ("pmsn_forward", 17, 100)
    assert driver.device == 1


def test_every_thread_is_made_known_once(driver):
    both = threading.Barrier(2)

    def work():
        both.wait(10)
        for _ in range(3):
            layer(9).sum().backward()
        both.wait(10)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(driver.threads) == len(set(driver.threads)) >= 2
