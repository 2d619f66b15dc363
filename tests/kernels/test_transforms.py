"""``torch.func`` around the fused kernels: equal to the reference, or an error that names ``backend='torch'``."""

import pytest
import torch
from torch.func import grad, jacrev, jvp, vjp, vmap

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import PMSNCoefficients, PMSNParameters, PMSNState, TCLIFRecurrentState, TCLIFState
from pmsn_plugins.kernels.calls import TclifOptions, TclifTensors, Wanted
from pmsn_plugins.kernels.operators import TCLIF

SHAPE = (20, 3, 5)


def pmsn_loss(module, **options):
    """(x, parameters, state) -> a number that depends on everything."""

    def loss(x, parameters, state):
        output = module.pmsn_sequence(
            x, PMSNParameters(*parameters), PMSNState(*state), reset_mode="cumulative", return_v_seq=True, **options
        )
        weight = torch.linspace(0.1, 1, x.numel(), dtype=x.dtype).view(x.shape)
        return (output.spikes * weight).sum() + output.v_seq.square().mean() + output.state.h_imag.square().sum()

    return loss


def tclif_loss(module, **options):
    def loss(x, couplings, state):
        output = module.tclif_sequence(x, *couplings, TCLIFState(*state), return_v_seq=True, **options)
        weight = torch.linspace(0.1, 1, x.numel(), dtype=x.dtype).view(x.shape)
        return (output.spikes * weight).sum() + output.v_seq.square().mean() + output.state.v_dendrite.square().sum()

    return loss


def recurrent_loss(module, **options):
    def loss(x, parameters, state):
        state = TCLIFRecurrentState(*state)
        output = module.tclif_recurrent_sequence(x, *parameters, state, return_v_seq=True, **options)
        weight = torch.linspace(0.1, 1, x.numel(), dtype=x.dtype).view(x.shape)
        return (output.spikes * weight).sum() + output.v_seq.square().mean() + output.state.v_dendrite.square().sum()

    return loss


def pmsn_arguments(tools):
    x, _, state = tools.pmsn_case(SHAPE, 2, torch.float64, True)
    return x, tuple(functional.pmsn_initial_parameters(SHAPE[2], 3, dtype=torch.float64)), tuple(state)


def tclif_arguments(tools, couplings=()):
    x, b1, b2, state = tools.tclif_case(SHAPE, couplings, torch.float64, True)
    return x, (b1, b2), tuple(state)


def recurrent_arguments(tools):
    x, *parameters, state = tools.recurrent_case(SHAPE, torch.float64, True)
    return x, tuple(parameters), tuple(state)


CASES = {
    "pmsn": (pmsn_loss, pmsn_arguments),
    "tclif": (tclif_loss, tclif_arguments),
    "tclif per channel": (tclif_loss, lambda tools: tclif_arguments(tools, (SHAPE[2],))),
    "tclif recurrent": (recurrent_loss, recurrent_arguments),
    "tclif per neuron": (tclif_loss, lambda tools: tclif_arguments(tools, SHAPE[1:])),
}


@pytest.fixture(params=CASES)
def case(request, tools, cpu_kernels):
    """(reference loss, fused loss, arguments)."""
    loss, arguments = CASES[request.param]
    return loss(functional), loss(kernels, backend="cpu"), arguments(tools)


def expected_gradients(loss, arguments):
    """By plain autograd, of the reference."""
    leaves, spec = torch.utils._pytree.tree_flatten(arguments)
    leaves = [t.detach().clone().requires_grad_() for t in leaves]
    value = loss(*torch.utils._pytree.tree_unflatten(leaves, spec))
    return torch.utils._pytree.tree_unflatten(list(torch.autograd.grad(value, leaves)), spec)


def assert_close(tools, actual, expected, tolerance=1e-9):
    actual, expected = (torch.utils._pytree.tree_leaves(tree) for tree in (actual, expected))
    assert len(actual) == len(expected)
    for value, want in zip(actual, expected, strict=True):
        assert value.shape == want.shape and tools.relative_error(value, want) < tolerance


def test_grad(tools, case):
    reference, fused, arguments = case
    expected = expected_gradients(reference, arguments)
    assert_close(tools, grad(fused, argnums=(0, 1, 2))(*arguments), expected)


def test_vjp(tools, case):
    reference, fused, arguments = case
    value, pull = vjp(fused, *arguments)
    assert_close(tools, value, reference(*arguments))
    expected = expected_gradients(lambda *args: 0.7 * reference(*args), arguments)
    assert_close(tools, pull(torch.tensor(0.7, dtype=torch.float64)), expected)


def batch_of(arguments, size=4):
    generator = torch.Generator().manual_seed(5)

    def several(t):
        noise = torch.randn((size, *t.shape), generator=generator, dtype=t.dtype)
        return t + 0.1 * noise * t.abs()

    return torch.utils._pytree.tree_map(several, arguments)


def one_by_one(function, in_dims, arguments, size=4):
    def take(argument, dim, i):
        return argument if dim is None else torch.utils._pytree.tree_map(lambda t: t.select(dim, i), argument)

    results = [function(*(take(a, d, i) for a, d in zip(arguments, in_dims, strict=True))) for i in range(size)]
    return torch.utils._pytree.tree_map(lambda *values: torch.stack(values), *results)


@pytest.mark.parametrize("in_dims", [(0, None, None), (None, 0, None), (0, 0, 0), (None, None, 0)])
def test_vmap(tools, case, in_dims):
    reference, fused, arguments = case
    batch = batch_of(arguments)
    mixed = [a if d is None else b for a, b, d in zip(arguments, batch, in_dims, strict=True)]
    expected = one_by_one(reference, in_dims, mixed)
    assert_close(tools, vmap(fused, in_dims)(*mixed), expected)


@pytest.mark.parametrize("in_dims", [(0, None, None), (0, 0, 0)])
def test_gradients_per_sample(tools, case, in_dims):
    reference, fused, arguments = case
    batch = batch_of(arguments)
    mixed = [a if d is None else b for a, b, d in zip(arguments, batch, in_dims, strict=True)]
    expected = one_by_one(lambda *args: expected_gradients(reference, args), in_dims, mixed)
    assert_close(tools, vmap(grad(fused, argnums=(0, 1, 2)), in_dims)(*mixed), expected)


def test_vmap_inside_grad(tools, case):
    reference, fused, arguments = case
    batch = batch_of(arguments)

    def total(loss):
        return lambda *args: loss(*args).sum()

    expected = expected_gradients(
        lambda *args: one_by_one(reference, (0, None, 0), args).sum(), (batch[0], *arguments[1:2], batch[2])
    )
    actual = grad(total(vmap(fused, (0, None, 0))), argnums=(0, 1, 2))(batch[0], arguments[1], batch[2])
    assert_close(tools, actual, expected)


def test_another_axis_than_the_first(tools, case):
    reference, fused, (x, couplings, state) = case
    batch = batch_of(x).movedim(0, 2)
    actual = vmap(fused, (2, None, None))(batch, couplings, state)
    assert_close(tools, actual, one_by_one(reference, (2, None, None), (batch, couplings, state)))


def test_jacrev(tools, cpu_kernels):
    x, parameters, _ = pmsn_arguments(tools)
    x = x[:6, :1]

    def outputs(module, **options):
        def function(x):
            output = module.pmsn_sequence(
                x, PMSNParameters(*parameters), reset_mode="cumulative", return_v_seq=True, **options
            )
            return output.v_seq.sum((1, 2)), output.state.h_real.sum()

        return function

    leaf = x.clone().requires_grad_()
    values = torch.cat([v.reshape(-1) for v in outputs(functional)(leaf)])
    rows = torch.stack([torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in values])
    v_seq, h_real = jacrev(outputs(kernels, backend="cpu"))(x)
    assert_close(tools, torch.cat([v_seq, h_real[None]]), rows)


def test_vectorised_jacobian(tools, case):
    reference, fused, (x, couplings, state) = case
    actual = torch.autograd.functional.jacobian(lambda x: fused(x, couplings, state)[None].expand(2), x, vectorize=True)
    expected, _, _ = expected_gradients(reference, (x, couplings, state))
    assert_close(tools, actual, expected.expand(2, *x.shape))


def test_compositions_with_the_discretisation(tools, cpu_kernels):
    x, parameters, _ = pmsn_arguments(tools)

    def loss(module, backend):
        def function(*parameters):
            arguments = (PMSNParameters(*parameters), "cpu") if backend else (PMSNParameters(*parameters),)
            coefficients = module.discretize(*arguments)
            return module.pmsn_sequence(x, PMSNCoefficients(*coefficients), **backend).state.h_real.square().sum()

        return function

    argnums = tuple(range(7))
    expected = grad(loss(functional, {}), argnums)(*parameters)
    assert_close(tools, grad(loss(kernels, {"backend": "cpu"}), argnums)(*parameters), expected)
    batch = [torch.stack([p, 1.1 * p]) for p in parameters]
    assert_close(
        tools,
        vmap(grad(loss(kernels, {"backend": "cpu"}), argnums))(*batch),
        vmap(grad(loss(functional, {}), argnums))(*batch),
    )


def test_forward_mode_names_the_backend_that_has_it(case):
    _, fused, (x, couplings, state) = case
    with pytest.raises(NotImplementedError, match=r"forward-mode.*backend='torch'"):
        jvp(lambda x: fused(x, couplings, state), (x,), (torch.ones_like(x),))
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(NotImplementedError, match=r"forward-mode.*backend='torch'"),
    ):
        fused(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)), couplings, state)


def test_inside_a_dual_level_without_tangents(case):
    _, fused, arguments = case
    expected = fused(*arguments)
    with torch.autograd.forward_ad.dual_level():
        assert torch.equal(fused(*arguments), expected)


def test_second_derivative_names_the_backend_that_has_it(case):
    _, fused, (x, couplings, state) = case
    with pytest.raises(NotImplementedError, match=r"second derivative.*backend='torch'"):
        grad(lambda x: grad(fused)(x, couplings, state).sum())(x)


def test_vmap_over_the_threshold_is_refused(tools, cpu_kernels):
    x, b1, b2, _ = tools.tclif_case((5, 2, 3), (), torch.float64, False)
    options = TclifOptions(1, 6, False, False, False, "triangle", 0.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0)
    wanted = Wanted(False, False, False, "cpu")
    with pytest.raises(NotImplementedError, match=r"threshold.*backend='torch'"):
        vmap(lambda v: TCLIF(TclifTensors(x, b1[None], b2[None], theta_tensor=v), options, wanted))(
            torch.ones(2).double()
        )
