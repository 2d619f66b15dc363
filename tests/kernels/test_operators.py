"""The kernels as PyTorch operators: autograd, torch.compile, autocast."""

import pytest
import torch

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import PMSNParameters, pmsn_initial_parameters
from pmsn_plugins.kernels.calls import (
    DiscretizeTensors,
    LayerTensors,
    NoOptions,
    PmsnOptions,
    PmsnTensors,
    TclifOptions,
    TclifTensors,
    Wanted,
    Where,
)
from pmsn_plugins.kernels.operators import DISCRETIZE, PMSN, PMSN_LAYER, TCLIF

PMSN_OPTIONS = PmsnOptions("modulo", "spike", "sigmoid", 1.0, 2.0, 0.0, 0.0)
TCLIF_OPTIONS = TclifOptions(5, 1, True, False, False, "triangle", 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0)
WANTED = Wanted(with_state=True, with_v_seq=True, save=False, backend="cpu")


def leaves(*tensors):
    return [t.detach().clone().requires_grad_() for t in tensors]


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("reset", ["modulo", "cumulative", "memoryless"])
def test_opcheck_pmsn(tools, cpu_kernels, with_state, reset):
    x, coefficients, state = tools.pmsn_case((40, 2, 3), 2, torch.float64, with_state)
    tensors = PmsnTensors(*leaves(x, *coefficients), *(leaves(*state) if with_state else ()))
    torch.library.opcheck(PMSN.forward, (*tensors, *PMSN_OPTIONS._replace(reset=reset), *WANTED))


@pytest.mark.parametrize("with_state", [False, True])
def test_opcheck_pmsn_layer(tools, cpu_kernels, with_state):
    x, _, state = tools.pmsn_case((40, 2, 3), 2, torch.float64, with_state)
    parameters = pmsn_initial_parameters(3, 3, dtype=torch.float64)
    tensors = LayerTensors(*leaves(x, *parameters), *(leaves(*state) if with_state else ()))
    torch.library.opcheck(PMSN_LAYER.forward, (*tensors, *PMSN_OPTIONS, *WANTED))


def test_opcheck_tclif(tools, cpu_kernels):
    x, b1, b2, state = tools.tclif_case((40, 2, 5), (5,), torch.float64, True)
    tensors = TclifTensors(*leaves(x, b1, b2, *state))
    torch.library.opcheck(TCLIF.forward, (*tensors, *TCLIF_OPTIONS, *WANTED))
    given = tensors._replace(slopes=torch.rand(41, 2, 5).double())
    torch.library.opcheck(TCLIF.forward, (*given, *TCLIF_OPTIONS._replace(surrogate="given"), *WANTED))


def test_opcheck_discretize(cpu_kernels):
    *parameters, _ = pmsn_initial_parameters(3, 4, dtype=torch.float64)
    tensors = DiscretizeTensors(*leaves(*parameters))
    torch.library.opcheck(DISCRETIZE.forward, (*tensors, *NoOptions(), *Where("cpu")))


@pytest.mark.parametrize("reset_mode", ["cumulative", "memoryless", "serial"])
def test_gradcheck_where_the_gradient_is_true(tools, cpu_kernels, reset_mode):
    """With the membrane as output nothing is a surrogate, apart from a reset that does not happen."""
    x, coefficients, state = tools.pmsn_case((5, 2, 3), 2, torch.float64, True)

    def outputs(x, *rest):
        result = kernels.pmsn_sequence(
            x,
            functional.PMSNCoefficients(*rest[:5]),
            functional.PMSNState(*rest[5:]),
            v_threshold=1e3,
            surrogate_function=functional.TableSurrogate("leaky_k_relu", leak=0.0, k=0.0),
            reset_mode=reset_mode,
            return_v_seq=True,
            backend="cpu",
        )
        return result.v_seq, result.state.h_real, result.state.h_imag

    assert torch.autograd.gradcheck(outputs, leaves(x, *coefficients, *state))


def test_gradcheck_discretize(cpu_kernels):
    parameters = pmsn_initial_parameters(3, 4, dtype=torch.float64)
    parameters = leaves(*(p + 0.1 * torch.randn_like(p) for p in parameters))
    assert torch.autograd.gradcheck(lambda *p: kernels.discretize(PMSNParameters(*p), "cpu"), parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 4, 5, 16])
def test_discretize_equals_the_reference(tools, backend, dtype, k):
    if backend.emulated and k > 1:
        pytest.skip("one case is enough: k is a loop")
    parameters = pmsn_initial_parameters(37, k + 1, dtype=dtype)
    parameters = [(p + 0.3 * torch.randn_like(p)).to(backend.device) for p in parameters]
    results = []
    for function in (functional.discretize, lambda p: kernels.discretize(p, backend.name)):
        leaf = PMSNParameters(*leaves(*parameters))
        coefficients = function(leaf)
        generator = torch.Generator().manual_seed(0)
        loss = sum((c * torch.randn(c.shape, generator=generator).to(c)).sum() for c in coefficients)
        results.append((*coefficients, *torch.autograd.grad(loss, leaf)))
    for value, want in zip(results[1], results[0], strict=True):
        assert value.dtype == dtype
        assert tools.relative_error(value, want) < (1e-12 if dtype == torch.float64 else 3e-7)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("reset_mode", functional.pmsn.RESET_MODES)
def test_parameters_in_place_of_coefficients(tools, backend, poisoned, reset_mode, with_state):
    x, _, state = tools.pmsn_case((70, 2, 5), 3, torch.float64, with_state, backend.device)
    initial = pmsn_initial_parameters(5, 4, dtype=torch.float64)
    parameters = PMSNParameters(*((p + 0.3 * torch.randn_like(p)).to(backend.device) for p in initial))
    expected = tools.run(functional.pmsn_sequence, x, parameters, state, reset_mode=reset_mode)
    actual = tools.run(kernels.pmsn_sequence, x, parameters, state, reset_mode=reset_mode, backend=backend.name)
    tools.assert_equal(actual, expected, 1e-9)


@pytest.mark.parametrize("x_dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_parameters_of_another_dtype(cpu_kernels, dtype, x_dtype):
    parameters = pmsn_initial_parameters(5, 4, dtype=dtype)
    x = torch.randn(20, 2, 5).to(x_dtype)
    expected = kernels.pmsn_sequence(x, functional.discretize(parameters), backend="cpu")
    actual = kernels.pmsn_sequence(x, parameters, backend="cpu")
    assert torch.equal(actual.spikes, expected.spikes)
    rtol = 1e-12 if torch.float64 in (dtype, x_dtype) else 1e-6
    torch.testing.assert_close(actual.state.h_real, expected.state.h_real, rtol=rtol, atol=rtol)


def test_wrong_parameters_are_named(cpu_kernels):
    parameters = pmsn_initial_parameters(5, 4)
    for sequence in (functional.pmsn_sequence, kernels.pmsn_sequence):
        with pytest.raises(ValueError, match="freq must have shape"):
            sequence(torch.randn(3, 2, 5), parameters._replace(freq=torch.zeros(5, 2)))


def test_sine_and_exponential_far_from_zero(cpu_kernels):
    """Fast modes: many turns and strong decay in one step."""
    log_dt = torch.linspace(-8, 5, 200, dtype=torch.float64)
    shape = (200, 1)
    parameters = PMSNParameters(
        log_dt,
        torch.full(shape, 0.3, dtype=torch.float64),
        torch.linspace(-600, 600, 200, dtype=torch.float64)[:, None],
        *(torch.ones(shape, dtype=torch.float64) for _ in range(4)),
        torch.ones(200, dtype=torch.float64),
    )
    for value, want in zip(kernels.discretize(parameters, "cpu"), functional.discretize(parameters), strict=True):
        torch.testing.assert_close(value, want, rtol=1e-9, atol=1e-12)


class Layer(torch.nn.Module):
    def __init__(self, surrogate_function=None):
        super().__init__()
        self.linear = torch.nn.Linear(5, 5)
        self.parameters_ = torch.nn.ParameterList(pmsn_initial_parameters(5, 3))
        self.coupling = torch.nn.Parameter(torch.tensor(0.5))
        self.surrogate_function = surrogate_function

    def forward(self, x):
        coefficients = kernels.discretize(PMSNParameters(*self.parameters_), "cpu")
        spikes = kernels.pmsn_sequence(
            self.linear(x), coefficients, surrogate_function=self.surrogate_function, backend="cpu"
        ).spikes
        return kernels.tclif_sequence(self.linear(spikes), -self.coupling, self.coupling, backend="cpu").spikes


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("kind", ["default", "snntorch", "spikingjelly"])
def test_compile_without_a_graph_break(cpu_kernels, kind, dynamic):
    if kind == "snntorch":
        layer = Layer(pytest.importorskip("snntorch.surrogate").atan())
    elif kind == "spikingjelly":
        layer = Layer(pytest.importorskip("spikingjelly.activation_based.surrogate").Sigmoid())
    else:
        layer = Layer()
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for T in (6, 40):
        x = torch.randn(T, 4, 5)
        results = []
        for module in (layer, compiled):
            layer.zero_grad()
            spikes = module(x)
            (spikes * x).sum().backward()
            results.append([spikes.detach(), *(p.grad.clone() for p in layer.parameters())])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing_but_the_input(tools, cpu_kernels, dtype):
    x, coefficients, _ = tools.pmsn_case((20, 3, 5), 2, torch.float32, False)
    x = x.to(dtype)
    expected = kernels.pmsn_sequence(x, coefficients, backend="cpu")
    with torch.autocast("cpu", dtype=dtype):
        actual = kernels.pmsn_sequence(x, coefficients, backend="cpu")
    assert actual.spikes.dtype == dtype and actual.state.h_real.dtype == torch.float32
    assert torch.equal(actual.spikes, expected.spikes)
    assert all(torch.equal(a, b) for a, b in zip(actual.state, expected.state, strict=True))


def test_second_derivative_raises(tools, cpu_kernels):
    x, coefficients, _ = tools.pmsn_case((6, 2, 3), 2, torch.float64, False)
    x.requires_grad_()
    spikes = kernels.pmsn_sequence(x, coefficients, backend="cpu").spikes
    (gradient,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match=r"second derivative.*backend='torch'"):
        gradient.sum().backward()


def test_part_of_the_gradients(tools, cpu_kernels):
    """Frozen parameters, inputs that are data, an unused state: only what is asked for is returned, and it is right."""
    x, coefficients, state = tools.pmsn_case((30, 2, 3), 2, torch.float64, True)
    expected = tools.run(functional.pmsn_sequence, x, coefficients, state)
    D = coefficients.D.clone().requires_grad_()
    h_real = state.h_real.clone().requires_grad_()
    results = []
    for function, options in ((functional.pmsn_sequence, {}), (kernels.pmsn_sequence, {"backend": "cpu"})):
        output = function(x, coefficients._replace(D=D), state._replace(h_real=h_real), **options)
        results.append(torch.autograd.grad((output.spikes * x).sum() + output.state.h_imag.sum(), (D, h_real)))
    for value, want in zip(results[1], results[0], strict=True):
        assert tools.relative_error(value, want) < 1e-9
    assert expected.spikes.shape == x.shape


def test_activation_checkpointing(tools, cpu_kernels):
    from torch.utils.checkpoint import checkpoint

    x, coefficients, _ = tools.pmsn_case((80, 2, 3), 2, torch.float64, False)
    gradients = []
    for wrap in (lambda function, *args: function(*args), lambda f, *args: checkpoint(f, *args, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        spikes = wrap(lambda x: kernels.pmsn_sequence(x, coefficients, backend="cpu").spikes, leaf)
        gradients.append(torch.autograd.grad((spikes * x).sum(), leaf)[0])
    assert torch.equal(*gradients)
