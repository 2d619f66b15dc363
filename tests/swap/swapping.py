"""What every swapped net has to do, whatever its structure."""

import pytest
import torch
from torch import nn

from pmsn_plugins import swap_neurons
from pmsn_plugins.layers import reset_states


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    return [t for item in output for t in tensors(item)] if isinstance(output, tuple | list) else []


def spikes(output):
    return tensors(output)[0]


def forbid(*modules):
    for module in modules:
        vars(module)["forward"] = lambda *args, **kwargs: pytest.fail("an old neuron is called")


def snapshot(net):
    """All that a failed swap must leave as it was."""
    modules = dict(net.named_modules(remove_duplicate=False))
    return (
        {name: (id(m), m.training, sorted(k for k in vars(m) if k != "_memories")) for name, m in modules.items()},
        {name: value.clone() for name, value in net.state_dict().items() if isinstance(value, torch.Tensor)},
        [(name, len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in modules.items()],
        torch.get_rng_state(),
    )


def same(before, after):
    return (
        before[0] == after[0]
        and before[1].keys() == after[1].keys()
        and all(torch.equal(value, after[1][name]) for name, value in before[1].items())
        and before[2] == after[2]
        and torch.equal(before[3], after[3])
    )


def check_swap(build, neuron, x, *, others=(), sample=True, gradients=True, **options):
    """Swap the neurons of ``build()`` and ask of the result what is asked of every swapped net; returns net, report.

    Args:
        others: inputs of other batches and sizes.
        sample: whether the swap gets ``x``.
    """
    net = build()
    before = set(net.modules())
    report = swap_neurons(net, neuron, x if sample else None, **options)
    registered = dict(net.named_modules(remove_duplicate=False))
    assert set(report) <= set(registered)
    new = [registered[name] for name in report]
    forbid(*(before - set(net.modules())))  # no old neuron is called
    inputs = x if isinstance(x, tuple) else (x,)

    net.train()
    output = spikes(net(*inputs))
    if gradients:  # every parameter gets a gradient
        (output * torch.randn(output.shape)).sum().backward()
        missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing
        assert any(p.grad.any() for module in new for p in module.parameters())
        net.zero_grad()

    net.eval()
    with torch.no_grad():
        for other in (*others, x):  # another size and batch
            reset_states(net)
            spikes(net(*other if isinstance(other, tuple) else (other,)))
        reset_states(net)
        first = spikes(net(*inputs))
        reset_states(net)  # reaches all
        assert torch.equal(spikes(net(*inputs)), first)
        twin = build()
        swap_neurons(twin, neuron, x if sample else None, **options)
        twin.load_state_dict(net.state_dict())
        assert torch.equal(spikes(twin.eval()(*inputs)), first)
    assert isinstance(net, nn.Module)
    return net, report
