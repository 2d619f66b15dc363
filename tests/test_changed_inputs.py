"""A neuron's input that is changed in place after the call, as in ``x += f(sn(x))``."""

import pytest
import torch
from torch import nn

pytest.importorskip("spikingjelly")

from pmsn_plugins.kernels import backends
from pmsn_plugins.spikingjelly import PMSNNode, RecurrentTCLIFNode, TCLIFNode

C = 6
NODES = {
    "PMSN": lambda **options: PMSNNode(C, **options),
    "PMSN, serial": lambda **options: PMSNNode(C, reset_mode="serial", **options),
    "PMSN, burst": lambda **options: PMSNNode(C, burst=True, **options),
    "TCLIF": lambda **options: TCLIFNode(**options),
    "recurrent TCLIF": lambda **options: RecurrentTCLIFNode(C, **options),
}


def residual(node, x, in_place):
    spikes = node(x)
    if in_place:
        x += spikes
    else:
        x = x + spikes
    return x


def gradients(make, in_place, step_mode, backend):
    torch.manual_seed(0)
    node, linear = make(step_mode=step_mode, backend=backend).double(), nn.Linear(C, C).double()
    x = linear(3 * torch.randn((5, 2, C) if step_mode == "m" else (2, C)).double())
    x = residual(node, x, in_place)
    (x * torch.randn_like(x)).sum().backward()
    return [p.grad for p in (*node.parameters(), *linear.parameters()) if p.grad is not None]


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("kind", NODES)
def test_on_torch_the_input_may_be_changed(kind, step_mode):
    one, other = (gradients(NODES[kind], in_place, step_mode, "torch") for in_place in (True, False))
    assert len(one) == len(other) > 2
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("step_mode", ["s", "m"])
@pytest.mark.parametrize("kind", list(NODES)[:4])
def test_fused_the_error_says_what_to_do(kind, step_mode):
    if not backends()["cpu"].available:
        pytest.skip(backends()["cpu"].reason)
    with pytest.raises(RuntimeError, match=r"make a new tensor \(x = x \+ \.\.\.\), or use backend='torch'"):
        gradients(NODES[kind], True, step_mode, "cpu")


@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("kind", NODES)
def test_the_output_may_be_changed(kind, backend):
    results = []
    for inplace in (True, False):
        torch.manual_seed(0)
        node = NODES[kind](step_mode="m", backend=backend).double()
        x = (3 * torch.randn(5, 2, C)).double().requires_grad_()
        y = nn.Dropout(0.5, inplace=inplace)(node(x))
        y = y.relu_() if inplace else y.relu()
        (y * torch.randn_like(y)).sum().backward()
        results.append([x.grad, *(p.grad for p in node.parameters() if p.grad is not None)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", NODES)
def test_on_torch_a_buffer_without_a_gradient_may_be_filled_again(kind):
    results = []
    for refill in (True, False):
        node, buffer = NODES[kind](backend="torch").double(), torch.full((2, C), 0.7, dtype=torch.float64)
        torch.manual_seed(0)
        for p in node.parameters():
            torch.nn.init.uniform_(p, 0.1, 0.5)
        spikes = node(buffer)
        if refill:
            buffer.zero_()
        spikes.sum().backward()
        results.append([p.grad for p in node.parameters() if p.grad is not None])
    assert results[0] and all(torch.equal(a, b) for a, b in zip(*results, strict=True))
