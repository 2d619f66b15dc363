"""channel_axis: PMSN on another axis is PMSN on axis 1 of the moved input."""

import copy

import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

from spikingjelly.activation_based import functional

from pmsn_plugins.channel_axis import Fold
from pmsn_plugins.snntorch import PMSN
from pmsn_plugins.spikingjelly import PMSNNode

T, C = 5, 3
STEPS = {0: (C, 2, 4), 2: (2, 4, C), -1: (2, 4, C), -3: (C, 2, 4), 3: (2, 3, 2, C)}


def moved(x, axis, leading):
    """With the channels on axis 1 of a step."""
    step_ndim = x.ndim - leading
    return x.movedim(leading + axis % step_ndim, leading + 1)


def moved_back(y, axis, step_ndim):
    leading = y.ndim - step_ndim
    return y.movedim(leading + 1, leading + axis % step_ndim)


def gradients(layer, y):
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    (y * weight).sum().backward()
    return [p.grad for p in layer.parameters()]


@pytest.mark.parametrize("backend", ["torch", "auto"])
@pytest.mark.parametrize("axis", STEPS)
def test_node(axis, backend):
    x = (2 * torch.randn(T, *STEPS[axis])).requires_grad_()
    z = x.detach().clone().requires_grad_()
    node = PMSNNode(C, channel_axis=axis, step_mode="m", backend=backend, store_v_seq=True)
    plain = PMSNNode(C, step_mode="m", backend=backend, store_v_seq=True)
    plain.load_state_dict(node.state_dict())
    for _ in range(2):  # the second sequence begins with a state
        y, expected = node(x), moved_back(plain(moved(z, axis, 1)), axis, x.ndim - 1)
        assert y.shape == x.shape and torch.equal(y, expected)
    assert y.any() and not y.all()
    assert node.v.shape == x.shape[1:] and node.h_real.shape == (4, *x.shape[1:]) and node.v_seq.shape == x.shape
    torch.testing.assert_close(node.v, moved_back(plain.v, axis, x.ndim - 1))
    torch.testing.assert_close(node.h_imag, moved_back(plain.h_imag, axis, x.ndim - 1))
    for got, want in zip(gradients(node, y), gradients(plain, expected), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(x.grad, z.grad, rtol=1e-4, atol=1e-5)
    functional.detach_net(node)  # in place: a view would refuse
    functional.reset_net(node)
    functional.set_step_mode(node, "s")
    steps = torch.stack([node(x[t]) for t in range(T)])
    functional.reset_net(plain)
    assert torch.equal(steps, moved_back(plain(moved(z, axis, 1)), axis, x.ndim - 1))


@pytest.mark.parametrize("axis", STEPS)
def test_layer(axis):
    x = 2 * torch.randn(T, *STEPS[axis])
    factor = torch.tensor([1.0, 2.0, 0.5])
    layer = PMSN(C, channel_axis=axis, graded_spikes_factor=factor)
    plain = PMSN(C, graded_spikes_factor=factor)
    plain.load_state_dict(layer.state_dict())
    spk, mem = layer(x)
    want = [moved_back(out, axis, x.ndim - 1) for out in plain(moved(x, axis, 1))]
    assert torch.equal(spk, want[0]) and spk.any()
    torch.testing.assert_close(mem, want[1])
    stepwise, kept = (
        PMSN(C, channel_axis=axis, graded_spikes_factor=factor, step_mode="s", init_hidden=hidden)
        for hidden in (False, True)
    )
    state = stepwise.reset_mem()
    for other in (stepwise, kept):
        other.load_state_dict(layer.state_dict())
    for t in range(T):
        spk_t, state = stepwise(x[t], state)
        assert torch.equal(spk_t, spk[t]) and torch.equal(kept(x[t]), spk[t])
        assert state.v.shape == x.shape[1:]


def test_contiguous_tokens_are_not_copied():
    for shape, axis, folded in (((2, 4, C), -1, (T, 8, C)), ((C, 2, 4), 0, (T, 1, C, 2, 4))):
        fold, x = Fold(shape, axis), torch.randn(T, *shape)
        y = fold.folded(x, 1)
        assert y.shape == folded and y.data_ptr() == x.data_ptr()
        z = fold.unfolded(y, 1)
        assert z.shape == x.shape and z.data_ptr() == x.data_ptr() and not z._is_view()


def test_channel_axis_compiles_copies_and_shows():
    node = PMSNNode(C, channel_axis=-1, step_mode="m")
    x = torch.randn(T, 2, 4, C)
    compiled = torch.compile(copy.deepcopy(node), fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert torch.equal(compiled(x), node(x))
    assert "channel_axis=-1" in repr(node)


def test_errors():
    for cls in (PMSNNode, PMSN):
        with pytest.raises(TypeError, match=r"channel_axis must be an integer, got 1\.0"):
            cls(C, channel_axis=1.0)
        with pytest.raises(ValueError, match=r"expected 3 channels, got 4 on channel_axis=-1 of steps \(2, 3, 4\)"):
            cls(C, channel_axis=-1, step_mode="m")(torch.randn(T, 2, 3, 4))
        with pytest.raises(ValueError, match=r"there is no channel_axis=3 in steps \(2, 3, 4\)"):
            cls(C, channel_axis=3, step_mode="m")(torch.randn(T, 2, 3, 4))
    layer = PMSN(C, channel_axis=-1, step_mode="s")
    state = layer(torch.randn(2, 4, C))[1]
    with pytest.raises(ValueError, match="state"):
        layer(torch.randn(4, 2, C), state)  # as many elements, another batch
    node = PMSNNode(C, channel_axis=-1)
    node(torch.randn(2, 4, C))
    with pytest.raises(ValueError, match="reset_net"):
        node(torch.randn(4, 2, C))
