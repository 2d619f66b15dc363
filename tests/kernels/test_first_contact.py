"""Kernels that are compiled where they are used are tried before they are trusted: with the emulated device, sound,
spoilt and broken."""

import contextlib
import warnings

import pytest
import torch

from pmsn_plugins import functional, kernels
from pmsn_plugins.bench import __main__ as bench
from pmsn_plugins.bench import variants
from pmsn_plugins.functional import triangle
from pmsn_plugins.kernels import backend, cpu, first_contact, gpu, unwatched
from pmsn_plugins.kernels.variants import PmsnVariant, TclifVariant


@pytest.fixture
def unknown_device(emulated, monkeypatch):
    """The emulated device, met for the first time; ``spoil(kernel, old, new)`` changes its sources."""
    monkeypatch.setattr(backend, "_COMPILING", {"cpu": backend.FUSED[0]})
    monkeypatch.setattr(first_contact, "_found", {})
    monkeypatch.setattr(unwatched, "_known", {})
    monkeypatch.setattr(cpu.CpuDevice, "launch_once", lambda self, device: emulated.launch_once(device), raising=False)
    backend._announce_once.cache_clear()
    sources = {}

    def source(name):
        text = original(name)
        for old, new in sources.get(name, ()):
            assert old in text
            text = text.replace(old, new)
        return text

    original = gpu.source
    monkeypatch.setattr(gpu, "source", source)
    monkeypatch.setattr(emulated, "libraries", {})
    return lambda name, old, new: sources.setdefault(f"gpu_{name}.cu", []).append((old, new))


def gradient(x, coefficients, **options):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(kernels.pmsn_sequence(x, coefficients, **options).spikes.sum(), x)[0]


def test_sound_kernels_are_tried_once(tools, unknown_device, monkeypatch):
    x, coefficients, _ = tools.pmsn_case((40, 2, 3), 2, torch.float32, False)
    tries = []
    compare = first_contact.disagreement
    monkeypatch.setattr(
        "pmsn_plugins.kernels.variants.disagreement", lambda *args: tries.append(args[3]) or compare(*args)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            gradient(x, coefficients)
            kernels.pmsn_sequence(x, coefficients)
            kernels.tclif_sequence(x, -0.5, 0.5)
    assert tries == [True, False, False]  # with gradients; without; TC-LIF
    assert set(first_contact._found.values()) == {None}
    kernels.pmsn_sequence(x, coefficients, reset_mode="serial")
    assert len(tries) == 4  # another variant


SPOILT = {
    "forward": ("pmsn_forward", "state.step(n, x, u, sent);", "state.step(n, x, u, sent); sent = 1 - sent;"),
    "backward": ("pmsn_backward", "sum_D += dI[i] * x_now;", "sum_D += dI[i];"),
    "input's gradient": ("pmsn_backward", "Memory::store(dx, grad_x);", "Memory::store(dx, grad_x * R(1.01));"),
    "a parameter's gradient": ("discretize", "write(args.grad_freq, i, g.freq);", "write(args.grad_freq, i, -g.freq);"),
    "not even C++": ("pmsn_forward", "state.step(n, x, u, sent);", "state.step(;"),
}


@pytest.mark.parametrize("spoilt", SPOILT)
def test_auto_goes_on_with_pytorch(tools, unknown_device, spoilt):
    unknown_device(*SPOILT[spoilt])
    x, coefficients, _ = tools.pmsn_case((40, 2, 3), 2, torch.float32, False)
    with pytest.warns(UserWarning, match=r"PyTorch operations.*do not work on cpu.*report it.*bench --check"):
        actual = gradient(x, coefficients)
    assert torch.equal(actual, gradient(x, coefficients, backend="torch"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradient(x, coefficients)  # said once
    with pytest.raises(RuntimeError, match="'cpu' cannot be used: the kernels do not work on cpu"):
        gradient(x, coefficients, backend="cpu")


def test_a_device_that_nothing_can_be_launched_on(tools, unknown_device):
    unknown_device("discretize", "extern", "extrn")
    x, coefficients, _ = tools.pmsn_case((40, 2, 3), 2, torch.float32, False)
    with pytest.warns(UserWarning, match="PyTorch operations"):
        spikes = kernels.pmsn_sequence(x, coefficients).spikes
    assert torch.equal(spikes, functional.pmsn_sequence(x, coefficients).spikes)
    parameters = functional.pmsn_initial_parameters(3, 4)
    assert torch.equal(kernels.discretize(parameters).E_real, functional.discretize(parameters).E_real)
    with pytest.raises(RuntimeError, match="'cpu' cannot be used"):
        kernels.tclif_sequence(x, -0.5, 0.5, backend="cpu")


def test_comparisons_can_be_turned_off(tools, unknown_device, monkeypatch):
    unknown_device(*SPOILT["input's gradient"])
    monkeypatch.setenv("PMSN_SELF_CHECK", "0")
    x, coefficients, _ = tools.pmsn_case((40, 2, 3), 2, torch.float32, False)
    wrong = gradient(x, coefficients, backend="cpu")
    assert not torch.allclose(wrong, gradient(x, coefficients, backend="torch"), rtol=1e-3)


def test_nothing_is_tried_in_a_transformation(tools, unknown_device):
    x, coefficients, _ = tools.pmsn_case((40, 2, 3), 2, torch.float32, False)
    torch.func.vmap(lambda x: kernels.pmsn_sequence(x, coefficients).spikes)(x.expand(2, *x.shape))
    assert not first_contact._found


def test_running_out_of_memory_says_nothing(tools, unknown_device, monkeypatch):
    def full(self, *args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr("pmsn_plugins.kernels.variants.PmsnVariant.trial", full)
    x, coefficients, _ = tools.pmsn_case((40, 2, 3), 2, torch.float32, False)
    kernels.pmsn_sequence(x, coefficients, backend="cpu")
    assert len(first_contact._found) == 1  # the launch


@pytest.mark.parametrize("options", [{}, dict(burst=True), dict(reset_mode="cumulative"), dict(surrogate_function=abs)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_sound_kernels_pass_in_every_precision(tools, unknown_device, dtype, options):
    x, coefficients, _ = tools.pmsn_case((300, 2, 3), 2, torch.float64, False)
    real = dtype if dtype == torch.float64 else torch.float32
    coefficients = type(coefficients)(*(c.to(real) for c in coefficients))
    if "surrogate_function" in options:
        options = dict(surrogate_function=lambda u: triangle()(u))
    gradient(x.to(dtype), coefficients, backend="cpu", **options)
    assert len(first_contact._found) == 2


FLOAT = (torch.float32, torch.float32)
SHORT = PmsnVariant(4, *FLOAT, 4, "modulo", False, "spike", "triangle", False, False, False, True)
WHOLE = SHORT._replace(steps=67)  # beyond a checkpoint
CUT = SHORT._replace(steps=259)
FORWARD = WHOLE._replace(gradients=False)
TCLIF = TclifVariant(*FLOAT, "post_reset", False, False, "triangle", False, False, True)


@pytest.fixture
def check(unknown_device, monkeypatch, capsys):
    """Run ``bench --check`` on some variants and the emulated device; its status, and what it prints in the end."""

    def check(*chosen):
        monkeypatch.setattr(variants, "variants", lambda: [(variant, triangle()) for variant in chosen])
        status = bench.main(["--device", "cpu", "--check"])
        text = capsys.readouterr().out
        assert text.startswith("pmsn_plugins ") and "\nbackend cpu: available" in text and "\nprocessor: " in text
        return status, text[text.index("auto on cpu, TC-LIF: ") :].splitlines()[1:]

    return check


def test_the_report_where_all_agree(check):
    assert check(SHORT, CUT, FORWARD, TCLIF) == (
        0,
        ["4 of 4 variants agree with the reference on cpu: PMSN 3 of 3, TC-LIF 1 of 1"],
    )


def test_the_report_where_a_gradient_is_wrong(check, unknown_device):
    unknown_device(*SPOILT["backward"])
    status, lines = check(SHORT, WHOLE, FORWARD)
    assert status == 1
    assert lines[0].startswith("WRONG, 1 of 3 variants: gradient of D: ") and "away from the reference" in lines[0]
    assert lines[1] == f"  {WHOLE}, {triangle()}"
    assert lines[2:] == ["2 of 3 variants agree with the reference on cpu: PMSN 2 of 3"]


@pytest.mark.parametrize(
    ("spoilt", "wrong"),
    [
        (("pmsn_forward", "element, h[1]);", "element, -h[1]);"), "h_imag: "),
        (
            ("pmsn_backward", "return hidden_adjoint_step", "return 2 * hidden_adjoint_step"),
            "gradient of x_seq from the final state: ",
        ),
    ],
)
def test_the_report_where_only_the_final_state_is_wrong(check, unknown_device, spoilt, wrong):
    """What is sent goes back another way, as filters."""
    unknown_device(*spoilt)
    status, lines = check(WHOLE, WHOLE._replace(return_state=True))
    assert status == 1
    assert lines[0].startswith(f"WRONG, 1 of 2 variants: {wrong}")


def test_the_report_where_nothing_can_be_compiled(check, unknown_device):
    unknown_device(*SPOILT["not even C++"])
    status, lines = check(SHORT, *(WHOLE._replace(steps=67 + i) for i in range(5)))
    assert status == 1
    assert lines[0].startswith("WRONG, 5 of 6 variants: CalledProcessError: ")
    assert [line[:20] for line in lines[1:4]] == ["  PmsnVariant(steps="] * 3
    assert lines[4:] == ["  and 2 more", "1 of 6 variants agree with the reference on cpu: PMSN 1 of 6"]


def test_the_report_where_memory_runs_out(check, monkeypatch):
    def full(self, *args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(PmsnVariant, "trial", full)
    status, lines = check(WHOLE, TCLIF)
    assert status == 1
    assert lines[0] == "NOT TRIED, the device has no memory left: 1 of 2 variants"
    assert lines[-1] == "1 of 2 variants agree with the reference on cpu: PMSN 0 of 1, TC-LIF 1 of 1"


def test_nothing_is_tried_while_a_graph_is_captured(unknown_device, monkeypatch):
    capturing, tries = [True], []
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])

    def found():
        return first_contact.obstacle("a variant", torch.device("cuda", 0), lambda: tries.append(0), compares=True)

    assert found() is None and not tries
    capturing[0] = False
    assert found() is None and len(tries) == 1  # a later call tries it
    assert found() is None and len(tries) == 1  # once


def test_nothing_is_tried_in_a_trace(tools, unknown_device):
    x, coefficients, _ = tools.pmsn_case((40, 2, 3), 2, torch.float32, False)

    def layer(x):
        return kernels.pmsn_sequence(x, coefficients, backend="cpu").spikes

    with torch.no_grad():
        torch.jit.trace(layer, x, check_trace=False)
        assert not first_contact._found
        layer(x)
    assert len(first_contact._found) == 2  # a later call tries it


def test_what_was_not_tried_is_not_taken_as_known(tools, unknown_device, monkeypatch):
    x, coefficients, _ = tools.pmsn_case((40, 2, 3), 2, torch.float32, False)
    monkeypatch.setattr(first_contact, "_at_liberty", lambda device: False)
    for _ in range(2):
        kernels.pmsn_sequence(x, coefficients)
        kernels.tclif_sequence(x, -0.5, 0.5)
    assert not first_contact._found and not unwatched._known


def test_a_trial_is_not_taken_as_known(tools, unknown_device):
    """A call that looks like the trial of a kernel that is wrong."""
    unknown_device("tclif_forward", "Memory::store(out, ", "Memory::store(out, 1 - ")
    x = torch.randn(35, 2, 3)
    expected = functional.tclif_sequence(x, -torch.full((3,), 0.5), torch.full((3,), 0.5), v_threshold=0.7).spikes
    for said in (pytest.warns(UserWarning, match="do not work"), contextlib.nullcontext()):
        with said:
            found = kernels.tclif_sequence(x, -torch.full((3,), 0.5), torch.full((3,), 0.5), v_threshold=0.7).spikes
        assert torch.equal(found, expected)
