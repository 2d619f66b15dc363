"""Fused surrogates equal their rows of the table; all others run as the user's own code around the fused kernels."""

import itertools
import re
from pathlib import Path

import pytest
import torch
from snntorch import surrogate as snn_surrogate
from spikingjelly.activation_based import surrogate as sj_surrogate

import pmsn_plugins.snntorch
import pmsn_plugins.spikingjelly  # noqa: F401  (only then are the functions of the two known)
from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import SURROGATES, TableSurrogate
from pmsn_plugins.kernels import calls, cpu
from pmsn_plugins.kernels.firing import firing


def test_names_are_those_of_the_c_enum():
    text = (Path(calls.__file__).parent / "csrc" / "surrogate.h").read_text()
    names = re.findall(r"^ {4}SURROGATE_(\w+),$", text, re.MULTILINE)
    assert tuple(name.lower() for name in names) == calls.SURROGATES
    assert {*calls.SURROGATES} - {"given"} <= {*SURROGATES}


@pytest.mark.parametrize("name", [name for name in calls.SURROGATES if name != "given"])
@pytest.mark.parametrize("instruction_set", ["baseline", "avx2", "avx512"])
def test_formula_equals_the_row(cpu_kernels, name, instruction_set):
    if cpu.library.pmsn_use_instruction_set(instruction_set.encode()):
        pytest.skip(f"this processor has no {instruction_set}")
    try:
        row = SURROGATES[name]
        x = torch.cat([torch.linspace(-60, 60, 1001), torch.linspace(-2, 2, 1001)]).double()
        parameters = torch.tensor([*(v * 1.3 + 0.1 for v in row.defaults.values()), 0.0, 0.0, 0.0], dtype=torch.float64)
        actual = x.clone()
        cpu.library.pmsn_surrogate(calls.SURROGATES.index(name), parameters.data_ptr(), x.numel(), actual.data_ptr())
        expected = row.derivative(x, *parameters[: len(row.defaults)].tolist())
        torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-15)
    finally:
        cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())


SPIKINGJELLY = {
    kind: getattr(sj_surrogate, kind)()
    for kind in (
        *("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf", "LeakyKReLU"),
        "PiecewiseLeakyReLU",
    )
    if hasattr(sj_surrogate, kind)
}
FUSED = {
    **SPIKINGJELLY,
    "snnTorch atan": snn_surrogate.atan(alpha=1.5),
    "snnTorch fast_sigmoid": snn_surrogate.fast_sigmoid(slope=3),
    "snnTorch straight-through": snn_surrogate.straight_through_estimator(),
    "triangle": functional.triangle(alpha=0.8),
}
NOT_FUSED = {  # known steps: the kernels fire, and ask the function for its slopes
    "rect": TableSurrogate("rect", alpha=0.7),
    "strict": TableSurrogate("log_tailed_relu", strict=True, alpha=0.1),
}
UNKNOWN = {  # called as they are
    "own": lambda x: (x >= 0).to(x) + (torch.sigmoid(3 * x) - torch.sigmoid(3 * x).detach()),
    "ramp": lambda x: (1e6 * x).clamp(0, 1),
}
OTHERS = {"snnTorch sigmoid": snn_surrogate.sigmoid(slope=2), **NOT_FUSED, **UNKNOWN}


def tolerance_of(surrogate_function):
    """Spikes of snnTorch's own code are float32, and so is what passes through them."""
    return 1e-6 if getattr(surrogate_function, "__module__", "").startswith("snntorch") else 1e-9


@pytest.mark.parametrize("surrogate_function", FUSED.values(), ids=FUSED)
def test_fused_in_both_neurons(tools, cpu_kernels, surrogate_function):
    assert firing(surrogate_function, 1.0, False, True).fire in ("spike", "strict")
    assert firing(surrogate_function, 1.0, True, True).fire == "burst"
    tolerance = 1e-12  # also with snnTorch's functions, which by themselves send float32
    case = tools.pmsn_case((20, 3, 5), 2, torch.float64, False)
    for reset_mode, burst in itertools.product(functional.RESET_MODES, (False, True)):
        options = dict(surrogate_function=surrogate_function, reset_mode=reset_mode, burst=burst)
        expected = tools.run(functional.pmsn_sequence, *case, **options)
        tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend="cpu", **options), expected, tolerance)
    case = tools.tclif_case((20, 3, 5), (), torch.float64, False)
    expected = tools.run(functional.tclif_sequence, *case, surrogate_function=surrogate_function)
    actual = tools.run(kernels.tclif_sequence, *case, surrogate_function=surrogate_function, backend="cpu")
    tools.assert_equal(actual, expected, tolerance)


@pytest.mark.parametrize("burst", [False, True])
@pytest.mark.parametrize("reset_mode", ["modulo", "cumulative", "memoryless", "serial"])
@pytest.mark.parametrize("surrogate_function", OTHERS.values(), ids=OTHERS)
def test_other_functions(tools, cpu_kernels, surrogate_function, reset_mode, burst):
    case = tools.pmsn_case((20, 3, 5), 2, torch.float64, True)
    options = dict(surrogate_function=surrogate_function, reset_mode=reset_mode, burst=burst)
    tolerance = tolerance_of(surrogate_function)
    expected = tools.run(functional.pmsn_sequence, *case, **options)
    tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend="cpu", **options), expected, tolerance)


@pytest.mark.parametrize("detach_reset", [False, True])
@pytest.mark.parametrize("soma_feedback", ["post_reset", "pre_reset"])
@pytest.mark.parametrize("surrogate_function", OTHERS.values(), ids=OTHERS)
def test_other_functions_in_tclif(tools, backend, poisoned, surrogate_function, soma_feedback, detach_reset):
    options = dict(surrogate_function=surrogate_function, soma_feedback=soma_feedback, detach_reset=detach_reset)
    tolerance = tolerance_of(surrogate_function)
    for shape, with_state in [((100, 3, 21), True), ((4, 9, 40), False), ((1, 2, 3), True)]:
        case = tools.tclif_case(shape, (), torch.float64, with_state, backend.device)
        chosen = kernels.explain(kernels.tclif_sequence, *case, backend=backend.name, **options)
        if surrogate_function in NOT_FUSED.values():
            assert chosen.startswith(backend.name), chosen
        if surrogate_function in UNKNOWN.values():
            assert chosen.startswith("torch: the gradient passes through this surrogate function"), chosen
        expected = tools.run(functional.tclif_sequence, *case, **options)
        tools.assert_equal(
            tools.run(kernels.tclif_sequence, *case, backend=backend.name, **options), expected, tolerance
        )


@pytest.mark.parametrize("surrogate_function", OTHERS.values(), ids=OTHERS)
def test_other_functions_with_the_serial_reset(tools, backend, poisoned, surrogate_function):
    case = tools.pmsn_case((100, 2, 21), 2, torch.float64, True, backend.device)
    options = dict(surrogate_function=surrogate_function, reset_mode="serial")
    tolerance = tolerance_of(surrogate_function)
    chosen = kernels.explain(kernels.pmsn_sequence, *case, backend=backend.name, **options)
    if surrogate_function in NOT_FUSED.values():
        assert chosen.startswith(backend.name), chosen
    expected = tools.run(functional.pmsn_sequence, *case, **options)
    tools.assert_equal(tools.run(kernels.pmsn_sequence, *case, backend=backend.name, **options), expected, tolerance)


class Noisy:
    """A stochastic neuron: fires where the membrane and a random number together reach the threshold."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x):
        self.calls += 1
        return functional.triangle()(x + 0.1 * torch.randn(x.shape, dtype=x.dtype))


@pytest.mark.parametrize("neuron", ["pmsn", "pmsn serial", "tclif"])
def test_an_unknown_function_is_never_probed(tools, cpu_kernels, neuron):
    """Not called but on the membranes, so that random numbers come in the reference's order, and are those."""
    if neuron == "tclif":
        name, case, options = "tclif_sequence", tools.tclif_case((40, 3, 5), (), torch.float64, False), {}
    else:
        name, case = "pmsn_sequence", tools.pmsn_case((40, 3, 5), 2, torch.float64, False)
        options = {"reset_mode": "serial"} if "serial" in neuron else {}
    outcomes = []
    for module in (functional, kernels):
        torch.manual_seed(3)
        noisy = Noisy()
        spikes = getattr(module, name)(*case, surrogate_function=noisy, **options).spikes
        outcomes.append((spikes, noisy.calls, torch.rand(1)))
    (expected, calls, drawn), (actual, our_calls, our_draw) = outcomes
    assert torch.equal(actual, expected) and our_calls == calls and torch.equal(our_draw, drawn)
    quiet = getattr(kernels, name)(*case, **options).spikes
    assert not torch.equal(actual, quiet)


class Learning(torch.nn.Module):
    """A spike function with a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x):
        soft = torch.sigmoid(self.slope * x)
        return (x >= 0).to(x) + soft - soft.detach()


@pytest.mark.parametrize(
    "surrogate_function",
    [Learning(), torch.sigmoid, lambda x: x.relu().sign() - 0.5, lambda x: (x >= 0).to(x)],
    ids=["learning", "soft", "no spikes", "flat"],
)
def test_functions_that_are_no_step_run_on_torch(tools, cpu_kernels, surrogate_function):
    """The kernel fires by itself, so it must not be used for a function that does something else."""
    case = tools.tclif_case((20, 3, 5), (), torch.float64, True)
    options = dict(surrogate_function=surrogate_function)
    assert kernels.explain(kernels.tclif_sequence, *case, **options).startswith("torch")
    expected = functional.tclif_sequence(*case, **options)
    actual = kernels.tclif_sequence(*case, **options)
    assert torch.equal(actual.spikes, expected.spikes)
    if isinstance(surrogate_function, Learning):
        grads = [torch.autograd.grad(o.spikes.sum(), surrogate_function.slope)[0] for o in (actual, expected)]
        assert torch.equal(*grads) and grads[0] != 0


@pytest.mark.parametrize("reset_mode", ["modulo", "cumulative", "memoryless", "serial"])
@pytest.mark.parametrize("burst", [False, True])
def test_learnable_threshold(tools, cpu_kernels, reset_mode, burst):
    x, coefficients, _ = tools.pmsn_case((20, 3, 5), 2, torch.float64, False)
    gradients = []
    for function, backend in ((functional.pmsn_sequence, {}), (kernels.pmsn_sequence, {"backend": "cpu"})):
        v_threshold = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        output = function(x, coefficients, v_threshold=v_threshold, reset_mode=reset_mode, burst=burst, **backend)
        gradients.append(torch.autograd.grad((output.spikes * x).sum(), v_threshold)[0])
    assert tools.relative_error(gradients[1], gradients[0]) < 1e-9


@pytest.mark.parametrize("v_threshold", [torch.tensor(0.7), torch.tensor([0.7]), torch.tensor(0.7, requires_grad=True)])
def test_threshold_as_a_tensor(tools, backend, v_threshold):
    v_threshold = v_threshold.to(backend.device)
    case = tools.pmsn_case((9, 3, 5), 2, torch.float64, False, backend.device)
    with torch.no_grad():
        expected = functional.pmsn_sequence(*case, v_threshold=v_threshold)
        actual = kernels.pmsn_sequence(*case, v_threshold=v_threshold, backend=backend.name)
    assert torch.equal(actual.spikes, expected.spikes)
