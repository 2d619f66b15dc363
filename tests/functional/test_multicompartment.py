"""The serial n-compartment neuron and the neurons it contains."""

import pytest
import torch

from pmsn_plugins.functional import multicompartment_sequence, tclif_sequence, triangle


def inputs(*shape, seed=1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(spikes, wrt):
    return torch.autograd.grad((spikes * inputs(*spikes.shape, seed=3)).sum(), wrt)


def test_one_compartment_is_lif():
    """v <- v + (x - v) / tau with soft reset."""
    x, tau = (inputs(80, 2, 3) + 0.8).requires_grad_(), torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    v, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for x_t in x:
        v = v + (x_t - v) / tau
        s = triangle()(v - 1.0)
        v = v - s
        expected.append(s)
    expected = torch.stack(expected)
    spikes = multicompartment_sequence(x, leak=(1 - 1 / tau,), gain=(1 / tau,)).spikes
    assert expected.sum() > 20
    assert torch.equal(spikes, expected)
    for a, e in zip(gradients(spikes, (x, tau)), gradients(expected, (x, tau)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("detach_reset", [False, True])
def test_two_compartments_are_tclif(detach_reset):
    x = inputs(80, 2, 3).requires_grad_()
    b1, b2 = (torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (-0.4, 0.7))
    expected = tclif_sequence(x, b1, b2, gamma=0.6, v_threshold=1.2, detach_reset=detach_reset)
    output = multicompartment_sequence(
        x,
        leak=(1.0, 1.0),
        up=(b2,),
        down=(b1,),
        gain=(1.0, 0.0),
        reset=(0.6,),
        v_threshold=1.2,
        detach_reset=detach_reset,
    )
    assert torch.equal(output.spikes, expected.spikes)
    torch.testing.assert_close(output.state, torch.stack([expected.state.v_dendrite, expected.state.v]))
    for a, e in zip(gradients(output.spikes, (x, b1, b2)), gradients(expected.spikes, (x, b1, b2)), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9)


def test_four_compartments_below_threshold_are_a_linear_system():
    """Without spikes one step is v' = (I - L)^-1 (diag(leak) + U) v + (I - L)^-1 gain x."""
    n, T = 4, 40
    leak, gain = inputs(n, seed=2) * 0.4, inputs(n, seed=3)
    up, down = inputs(n - 1, seed=4) * 0.3, inputs(n - 1, seed=5) * 0.3
    x = inputs(T, 2)
    output = multicompartment_sequence(
        x, leak=leak, up=up, down=down, gain=gain, reset=(0.0,) * (n - 1), v_threshold=1e6, return_v_seq=True
    )
    forward = torch.linalg.inv(torch.eye(n).double() - torch.diag(up, -1))
    old = forward @ (torch.diag(leak) + torch.diag(down, 1))
    v, expected = torch.zeros(n, 2).double(), []
    for x_t in x:
        v = old @ v + forward @ gain[:, None] * x_t
        expected.append(v)
    assert output.spikes.sum() == 0
    torch.testing.assert_close(output.v_seq, torch.stack(expected))


def test_gradcheck():
    def run(x, *c):
        leak, up, down, gain, reset = c
        return multicompartment_sequence(
            x, leak=leak, up=up, down=down, gain=gain, reset=reset, surrogate_function=torch.tanh
        ).spikes

    lengths = (3, 2, 2, 3, 2)
    coefficients = [(inputs(n, seed=i) * 0.5).requires_grad_() for i, n in enumerate(lengths)]
    assert torch.autograd.gradcheck(run, [inputs(6, 2).requires_grad_(), *coefficients])


def test_chunks_equal_the_whole():
    x = inputs(100, 2, 3)
    options = {"leak": (0.9, 0.8, 0.7), "up": (0.5, 0.6), "down": (-0.3, -0.2), "gain": (1, 0, 0), "reset": (0.1, 0.2)}
    whole = multicompartment_sequence(x, **options)
    state, spikes = None, []
    for chunk in x.split([1, 42, 57]):
        s, state, _ = multicompartment_sequence(chunk, state=state, **options)
        spikes.append(s)
    assert whole.spikes.sum() > 0
    assert torch.equal(torch.cat(spikes), whole.spikes)
    assert torch.equal(state, whole.state)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("up must have 1 entries.*got 0", {"leak": (1, 1), "down": (0,), "gain": (1, 0), "reset": (0,)}),
        ("gain must have 1 entries.*got 2", {"leak": (1,), "gain": (1, 0)}),
        ("entries", {"leak": ()}),
        ("v_threshold", {"leak": (1,), "v_threshold": 0.0}),
        ("state v has shape", {"leak": (1,), "state": inputs(1, 9, 3)}),
    ],
)
def test_bad_input(match, options):
    with pytest.raises(ValueError, match=match):
        multicompartment_sequence(inputs(5, 2, 3), **options)
