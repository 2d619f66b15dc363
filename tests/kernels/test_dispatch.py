"""Which backend is used, and what is said when it cannot be."""

import sys
import warnings
from types import SimpleNamespace

import pytest
import torch

from pmsn_plugins import functional, kernels
from pmsn_plugins.kernels import backend, cpu, gpu


def case(tools, device="cpu"):
    return tools.pmsn_case((5, 2, 3), 2, torch.float32, False, device)[:2]


def test_backends_lists_each_with_a_reason():
    status = kernels.backends()
    assert list(status) == ["torch", "cpu", "cupy"]
    assert status["torch"].available
    assert all(reason for _, reason in status.values())


def test_auto_takes_the_fused_kernels(tools, cpu_kernels):
    assert kernels.explain(kernels.pmsn_sequence, *case(tools)).startswith("cpu: fused kernels (")
    assert kernels.explain(kernels.tclif_sequence, torch.randn(3, 4), -0.5, 0.5).startswith("cpu: ")
    assert kernels.explain(kernels.pmsn_sequence, *case(tools), backend="torch") == "torch: asked for"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (dict(surrogate_function=lambda x: x, reset_mode="serial"), "surrogate function"),
        (dict(v_threshold=torch.tensor(1.0, requires_grad=True), reset_mode="serial"), "learnable threshold"),
    ],
)
def test_what_the_kernels_cannot_do_runs_on_torch(tools, cpu_kernels, options, reason):
    explanation = kernels.explain(kernels.pmsn_sequence, *case(tools), **options)
    assert explanation.startswith("torch: ") and reason in explanation


def test_tclif_with_learnable_gamma_runs_on_torch(cpu_kernels):
    x, gamma = torch.randn(4, 2, 3), torch.tensor(0.5, requires_grad=True)
    assert "gamma" in kernels.explain(kernels.tclif_sequence, x, -0.5, 0.5, gamma=gamma)
    kernels.tclif_sequence(x, -0.5, 0.5, gamma=gamma, backend="cpu").spikes.sum().backward()
    assert gamma.grad is not None


def test_empty_batch(tools, cpu_kernels):
    x, coefficients = case(tools)
    output = kernels.pmsn_sequence(x[:, :0], coefficients, backend="cpu")
    assert output.spikes.shape == (5, 0, 3) and output.state.h_real.shape == (2, 0, 3)


def test_unknown_backend(tools):
    calls = ((kernels.pmsn_sequence, case(tools)), (kernels.tclif_sequence, (torch.randn(3, 4), -0.5, 0.5)))
    for function, arguments in calls:
        with pytest.raises(ValueError, match=r"'auto', 'torch', 'cpu', 'cupy'.*got 'cuda'"):
            function(*arguments, backend="cuda")


def test_tensors_on_another_device(tools, cpu_kernels, monkeypatch):
    x, coefficients = case(tools)
    with pytest.raises(ValueError, match="'cpu' needs tensors on a cpu device, x_seq is on meta"):
        kernels.pmsn_sequence(x.to("meta"), coefficients, backend="cpu")
    assert "meta" in kernels.explain(kernels.pmsn_sequence, x.to("meta"), coefficients)
    monkeypatch.setattr(gpu, "status", lambda: (True, "works"))
    with pytest.raises(ValueError, match="'cupy' needs tensors on a cuda device, x_seq is on cpu"):
        kernels.pmsn_sequence(x, coefficients, backend="cupy")


def test_a_backend_that_is_not_available_names_the_remedy(tools, monkeypatch):
    monkeypatch.setattr(gpu, "status", lambda: (False, f"no GPU: {gpu._INSTALL}"))
    with pytest.raises(RuntimeError, match=r"'cupy' cannot be used: .*pip install \"pmsn_plugins\[cuda13\]\""):
        kernels.pmsn_sequence(*case(tools), backend="cupy")


@pytest.mark.parametrize("function", ["pmsn", "tclif"])
def test_bad_input_is_the_reference_error(tools, function):
    x, coefficients = case(tools)
    wrong = {
        "pmsn": [(x[0, 0], coefficients), (x.int(), coefficients), (x[:, :, :2], coefficients), (x[:0], coefficients)],
        "tclif": [(x[0, 0, 0], -0.5, 0.5), (x.int(), -0.5, 0.5), (x[:0], -0.5, 0.5)],
    }[function]
    for arguments in wrong:
        messages = []
        for module in (functional, kernels):
            with pytest.raises((TypeError, ValueError)) as error:
                getattr(module, f"{function}_sequence")(*arguments)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


def without_library(monkeypatch, reason="not built"):
    monkeypatch.setattr(cpu, "library", None)
    monkeypatch.setattr(cpu, "reason", reason)


def test_without_the_library_everything_runs_on_torch(tools, monkeypatch):
    without_library(monkeypatch)
    x, coefficients = case(tools)
    expected = functional.pmsn_sequence(x, coefficients)
    backend._announce_once.cache_clear()
    with pytest.warns(UserWarning, match="PyTorch operations.*not built"):
        assert torch.equal(kernels.pmsn_sequence(x, coefficients).spikes, expected.spikes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernels.pmsn_sequence(x, coefficients)  # said once
        assert kernels.explain(kernels.pmsn_sequence, x, coefficients) == "torch: not built"
    parameters = functional.pmsn_initial_parameters(3, 4)
    assert torch.equal(kernels.discretize(parameters).E_real, functional.discretize(parameters).E_real)
    with pytest.raises(RuntimeError, match="'cpu' cannot be used: not built"):
        kernels.pmsn_sequence(x, coefficients, backend="cpu")


def test_a_missing_or_broken_library_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "_LIBRARY", tmp_path / "_cpu.so")
    library, reason = cpu._load()
    assert library is None and "compiler" in reason and "pip install" in reason
    (tmp_path / "_cpu.so").write_bytes(b"not a library")
    library, reason = cpu._load()
    assert library is None and "cannot be loaded" in reason


def fake_cuda(monkeypatch, **found):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: found.get("device", True))
    monkeypatch.setattr(torch.version, "hip", found.get("hip"))
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: found.get("cupy", True) or None)
    return gpu.status.__wrapped__()


def test_reasons_against_cupy(monkeypatch):
    available, reason = fake_cuda(monkeypatch, device=False)
    assert not available and "pmsn_plugins[cuda13]" in reason
    available, reason = fake_cuda(monkeypatch, cupy=False)
    assert not available and "CuPy is not installed" in reason and 'pip install "pmsn_plugins[cuda13]"' in reason
    available, reason = fake_cuda(monkeypatch, hip="6.0")
    assert not available and "ROCm" in reason
    monkeypatch.setitem(sys.modules, "cupy", None)  # importing it fails
    available, reason = fake_cuda(monkeypatch)
    assert not available and "CuPy does not work here" in reason


def test_a_gpu_is_said_with_its_compiler_and_driver(monkeypatch):
    cuda = SimpleNamespace(
        nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)),
        runtime=SimpleNamespace(getDeviceCount=lambda: 1, driverGetVersion=lambda: 13010),
    )
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(__version__="14.1", cuda=cuda))
    assert fake_cuda(monkeypatch) == (
        True,
        "fused CUDA kernels (CuPy 14.1, NVRTC 12.9, a driver for CUDA 13.1)",
    )
