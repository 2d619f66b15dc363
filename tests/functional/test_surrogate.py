"""The surrogate table against the functions of both frameworks."""

import pytest
import torch

from pmsn_plugins.functional import SURROGATES, SurrogateSpec, TableSurrogate, describe, triangle

GRID = torch.cat([torch.linspace(-3, 3, 601, dtype=torch.float64), torch.tensor([0.0, -0.0, 1e-9, -1e-9, 30.0, -30.0])])


def spikes_and_derivative(function, x):
    x = x.clone().requires_grad_()
    spikes = function(x)
    spikes.sum().backward()
    return spikes.detach(), x.grad


def spikingjelly_functions():
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    calls = [
        ("PiecewiseQuadratic", {"alpha": 1.0}),
        ("PiecewiseQuadratic", {"alpha": 0.4}),
        ("Sigmoid", {"alpha": 3.0}),
        ("ATan", {"alpha": 2.5}),
        ("PiecewiseExp", {"alpha": 1.5}),
        ("SoftSign", {"alpha": 3.0}),
        ("SuperSpike", {"alpha": 1.2}),
        ("Erf", {"alpha": 1.7}),
        ("Rect", {"alpha": 0.8}),
        ("LeakyKReLU", {"leak": 0.1, "k": 0.9}),
        ("PiecewiseLeakyReLU", {"w": 0.5, "c": 0.02}),
        ("NonzeroSignLogAbs", {"alpha": 2.0}),
        ("LogTailedReLU", {"alpha": 0.1}),
        ("S2NN", {"alpha": 4.0, "beta": 0.7}),
        ("QPseudoSpike", {"alpha": 2.5}),
    ]
    functions = [getattr(surrogate, name)(**p) for name, p in calls if hasattr(surrogate, name)]
    # the backward pass of 0.0.0.0.14's NonzeroSignLogAbs raises: there is nothing to compare with
    broken = not hasattr(surrogate.ATan(), "_sg_params")
    return [f for f in functions if not (broken and isinstance(f, surrogate.NonzeroSignLogAbs))]


def snntorch_functions():
    surrogate = pytest.importorskip("snntorch.surrogate")
    return [
        surrogate.atan(alpha=1.5),
        surrogate.fast_sigmoid(slope=10),
        surrogate.straight_through_estimator(),
        surrogate.spike_rate_escape(beta=2, slope=3),
    ]


@pytest.mark.parametrize("framework", [spikingjelly_functions, snntorch_functions])
def test_known_functions_are_recognised_with_their_numbers(framework):
    functions = framework()
    assert len(functions) >= 4
    for function in functions:
        spec = describe(function)
        assert spec is not None, function
        ours = TableSurrogate(
            spec.name, spec.strict, **dict(zip(SURROGATES[spec.name].defaults, spec.parameters, strict=True))
        )
        assert describe(ours) == spec
        expected = spikes_and_derivative(function, GRID)
        actual = spikes_and_derivative(ours, GRID)
        torch.testing.assert_close(actual[0], expected[0].double(), msg=repr(ours))
        torch.testing.assert_close(actual[1], expected[1].double(), rtol=1e-6, atol=1e-9, msg=repr(ours))


def test_unknown_functions_are_not_guessed():
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")

    class Mine(surrogate.ATan):
        pass

    relaxed = surrogate.ATan(spiking=False)
    learnable = surrogate.ATan()
    learnable.alpha = torch.nn.Parameter(torch.tensor(2.0))
    for function in (Mine(), relaxed, learnable, lambda x: x, torch.tanh, None):
        assert describe(function) is None


def test_unstable_and_random_snntorch_functions_are_left_to_the_user():
    surrogate = pytest.importorskip("snntorch.surrogate")
    for function in (surrogate.sigmoid(), surrogate.SSO(), surrogate.LSO(), surrogate.triangular()):
        assert describe(function) is None


@pytest.mark.parametrize("strict", [False, True])
def test_triangle(strict):
    x = torch.tensor([-2.0, -0.5, 0.0, 0.25, 1.5], dtype=torch.float64)
    spikes, derivative = spikes_and_derivative(triangle(strict=strict), x)
    assert spikes.tolist() == [0, 0, 0 if strict else 1, 1, 1]
    assert derivative.tolist() == [0, 0.5, 1, 0.75, 0]
    assert describe(triangle(2.0, strict)) == SurrogateSpec("triangle", (2.0,), strict)


def test_every_row_is_finite_everywhere():
    for name, row in SURROGATES.items():
        derivative = row.derivative(GRID, *row.defaults.values())
        assert derivative.shape == GRID.shape, name
        assert derivative.isfinite().all(), name
        assert (derivative >= 0).all(), name


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"surrogate name must be one of 'triangle'.*got 'square'"):
        TableSurrogate("square")
    with pytest.raises(ValueError, match="parameter of surrogate 'atan' must be one of 'alpha', got 'slope'"):
        TableSurrogate("atan", slope=2.0)
    with pytest.raises(ValueError, match="alpha"):
        triangle(0.0)
