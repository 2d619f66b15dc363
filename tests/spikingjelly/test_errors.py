"""Bad input gets an error that names it and what is allowed, and changes nothing."""

from functools import partial

import numpy as np
import pytest
import torch

pytest.importorskip("spikingjelly")

from spikingjelly.activation_based import functional

from pmsn_plugins.spikingjelly import MultiCompartmentNode, PMSNNode, TCLIFNode
from pmsn_plugins.spikingjelly._compat import StatefulNode

C = 4


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: PMSNNode(0), ValueError, "channels must be at least 1, got 0"),
        (lambda: PMSNNode(4.0), TypeError, "channels must be an integer, got 4.0"),
        (lambda: PMSNNode(C, n_compartments=1), ValueError, "n_compartments must be at least 2, got 1"),
        (lambda: PMSNNode(C, preset="mnist"), ValueError, "preset must be one of 'general', 'sequential', 'shd'"),
        (lambda: PMSNNode(C, dt_range=(0.1, 0.01)), ValueError, r"0 < low <= high, got \(0.1, 0.01\)"),
        (lambda: PMSNNode(C, dt_range=(0, 1)), ValueError, "dt_range must be a finite number above 0, got 0"),
        (lambda: PMSNNode(C, dt_range=0.1), TypeError, r"dt_range must be two numbers \(low, high\), got 0.1"),
        (lambda: PMSNNode(C, coupling=-1), ValueError, "coupling must be a finite number, 0 or more, got -1"),
        (lambda: PMSNNode(C, time_scale=0), ValueError, "time_scale must be a finite number above 0, got 0"),
        (lambda: PMSNNode(C, time_scale="40"), TypeError, "time_scale must be a real number, got '40'"),
        (lambda: PMSNNode(C, time_scale=40, coupling=1.0), ValueError, "time_scale chooses dt_range and coupling"),
        (lambda: PMSNNode(C, reset_mode="hard"), ValueError, "reset_mode must be one of 'modulo', 'cumulative', "),
        (lambda: PMSNNode(C, context="all"), ValueError, "context must be one of 'local', 'global', got 'all'"),
        (lambda: PMSNNode(C, backend="triton"), ValueError, "backend must be one of 'auto', 'torch'.* got 'triton'"),
        (lambda: PMSNNode(C, v_threshold=0), ValueError, "v_threshold must be a finite number above 0, got 0"),
        (lambda: PMSNNode(C, v_threshold=float("nan")), ValueError, "v_threshold must be a finite number above 0, got"),
        (lambda: PMSNNode(C, v_threshold=1e39), ValueError, "v_threshold must be from .* in torch.float32, got 1e.39"),
        (lambda: TCLIFNode(v_threshold=1e-50), ValueError, "v_threshold must be from .* in torch.float32, got 1e-50"),
        (lambda: PMSNNode(C, v_threshold="1"), TypeError, "v_threshold must be a real number, got '1'"),
        (lambda: PMSNNode(C, step_mode="x"), ValueError, "step_mode"),
        (lambda: TCLIFNode(v_threshold=-1.0), ValueError, "v_threshold must be a finite number above 0, got -1.0"),
        (lambda: TCLIFNode(beta=(0.5, 0.5)), ValueError, r"b1 in \(-1, 0\) and b2 in \(0, 1\), got \(0.5, 0.5\)"),
        (lambda: TCLIFNode(beta=(-0.5, 1.0)), ValueError, "beta"),
        (lambda: TCLIFNode(beta=0.5), TypeError, r"beta must be two numbers \(b1, b2\), got 0.5"),
        (lambda: TCLIFNode(beta=("-0.5", "0.5")), TypeError, "beta must be a real number, got '-0.5'"),
        (lambda: TCLIFNode(gamma=float("nan")), ValueError, "gamma must be finite, got nan"),
        (lambda: TCLIFNode(gamma=None), TypeError, "gamma must be a real number, got None"),
        (lambda: TCLIFNode(gamma=torch.tensor(0.5)), TypeError, "gamma must be a real number, got a Tensor of shape"),
        (lambda: TCLIFNode(gamma=float("inf")), ValueError, "gamma must be finite, got inf"),
        (lambda: TCLIFNode(leak=0.9), TypeError, r"leak must be two numbers \(a1, a2\), got 0.9"),
        (lambda: TCLIFNode(leak=(0.9, "1")), TypeError, "leak must be a real number, got '1'"),
        (lambda: TCLIFNode(leak=(0.9, 1.1)), ValueError, r"\(a1, a2\), both from 0 to 1 .* got \(0.9, 1.1\)"),
        (lambda: TCLIFNode(channels=0), ValueError, "channels must be at least 1, got 0"),
        (lambda: TCLIFNode(soma_feedback="post"), ValueError, "soma_feedback must be one of 'post_reset'"),
        (lambda: MultiCompartmentNode(0), ValueError, "n_compartments must be at least 1, got 0"),
        (lambda: MultiCompartmentNode(3, up=(0.1,)), ValueError, r"up must be one number or 2 of them, got \(0.1,\)"),
        (lambda: MultiCompartmentNode(2, leak=(0.5, float("nan"))), ValueError, "leak must be finite, got nan"),
        (lambda: MultiCompartmentNode(2, v_threshold=0.0), ValueError, "v_threshold must be a finite number above 0"),
    ],
)  # fmt: skip
def test_construction(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("value", ["no", "", 0, 1, 1.0, float("nan"), None, [], torch.tensor(True), np.ones(2, bool)])
@pytest.mark.parametrize(
    ("node", "flag"),
    [(MultiCompartmentNode, flag) for flag in ("store_v_seq", "detach_reset")]
    + [(TCLIFNode, flag) for flag in ("store_v_seq", "detach_reset", "keep_state")]
    + [(partial(PMSNNode, C), flag) for flag in ("store_v_seq", "burst", "keep_state")],
)
def test_flags(node, flag, value):
    with pytest.raises(TypeError, match=f"{flag} must be True or False, got"):
        node(**{flag: value})
    node(**{flag: np.True_})


@pytest.mark.parametrize("value", ["no", 0, 1, None, float("nan"), [], torch.tensor(True)])
def test_flags_that_are_set_later(make, value):
    node = make()
    with pytest.raises(TypeError, match="store_v_seq must be True or False, got"):
        node.store_v_seq = value
    assert node.store_v_seq is False
    node.store_v_seq = True
    node(torch.ones(2, C))
    assert node.v_seq.shape == (1, 2, C)


@pytest.mark.parametrize("value", [0, "triangle", 1.0, [], torch.ones(2)])
def test_surrogate_functions_that_cannot_be_called(make, value):
    """Found when the neuron is made, not in the first forward."""
    with pytest.raises(TypeError, match=r"surrogate_function must be a function of \(v - v_threshold\), got"):
        make(surrogate_function=value)


@pytest.mark.parametrize("value", [4.0, "4", True, None, [4], float("nan"), torch.tensor(4)])
def test_sizes_that_are_no_integers(value):
    cases = [("channels", PMSNNode), ("n_compartments", partial(PMSNNode, C)), ("n_compartments", MultiCompartmentNode)]
    cases += [("channels", TCLIFNode)] if value is not None else []
    for name, node in cases:
        with pytest.raises(TypeError, match=f"{name} must be an integer, got"):
            node(**{name: value})


@pytest.mark.parametrize("value", [None, 1, [], True, "x"])
def test_choices(make, value):
    node = make()
    error = ValueError if value == "x" else TypeError
    with pytest.raises(error, match=r"backend must be one of '.*, got"):
        node.backend = value
    if len(node.supported_backends) > 1:
        with pytest.raises(error, match=r"backend must be one of '.*, got"):
            make(backend=value)
    for call in (lambda: make(step_mode=value), lambda: setattr(node, "step_mode", value)):
        with pytest.raises(ValueError, match="step_mode"):  # SpikingJelly's own check
            call()
    for name in ("preset", "reset_mode", "context"):
        with pytest.raises(error, match=f"{name} must be one of '.*, got"):
            PMSNNode(C, **{name: value})
    with pytest.raises(error, match="soma_feedback must be one of"):
        TCLIFNode(soma_feedback=value)


@pytest.mark.parametrize("name", ["leak", "gain", "up", "down", "reset"])
@pytest.mark.parametrize("value", ["1", None, True, 1j, ["1", "1"], torch.tensor(1.0)])
def test_coefficients_that_are_no_numbers(name, value):
    with pytest.raises((TypeError, ValueError), match=f"{name} must be (a real number|one number or .* of them), got"):
        MultiCompartmentNode(3 if name in ("up", "down", "reset") else 2, **{name: value})


@pytest.mark.parametrize("value", ["0", None, [0.0], 1j, True, float("nan"), float("inf"), np.zeros(2)])
def test_memories_that_are_neither_numbers_nor_tensors(make, value):
    for step_mode, x in (("s", torch.ones(2, C)), ("m", torch.ones(3, 2, C))):
        node = make(step_mode=step_mode)
        node.v = value
        with pytest.raises((TypeError, ValueError), match=r"state v must be (a real number|finite), got"):
            node(x)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
def test_memories_of_another_dtype(make, dtype):
    node = make()
    node(torch.ones(2, C))
    for name in node.state_names:
        kept = getattr(node, name)
        setattr(node, name, kept.to(dtype))
        with pytest.raises(TypeError, match=rf"state {name} must be a real floating-point tensor .* got {dtype}"):
            node(torch.ones(2, C))
        setattr(node, name, kept)


@pytest.mark.parametrize("node", [PMSNNode(C), TCLIFNode(channels=C)], ids=["pmsn", "tclif"])
def test_wrong_channels_name_the_axes(node):
    with pytest.raises(ValueError, match=r"expected 4 channels, got 5 on axis 1 .*; step_mode='s' reads axis 1"):
        node(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"expected 4 channels, got 2 on axis 1 .* this neuron has step_mode='s'"):
        node(torch.zeros(7, 2, C))  # a sequence, but step_mode was forgotten
    node.step_mode = "m"
    with pytest.raises(ValueError, match="expected 4 channels, got 5 on axis 2 of the input"):
        node(torch.zeros(7, 2, 5))
    with pytest.raises(ValueError, match=r"takes \[T, N, C, \*\], got shape \(2, 4\); is the time .* axis missing"):
        node(torch.zeros(2, C))
    node.step_mode = "s"
    assert node.v == 0.0


def test_missing_axes_without_channels():
    with pytest.raises(ValueError, match=r"takes \[T, N, \*\], got shape \(3,\)"):
        TCLIFNode(step_mode="m")(torch.zeros(3))
    with pytest.raises(ValueError, match=r"takes \[N, \*\], got shape \(\)"):
        TCLIFNode()(torch.zeros(()))
    with pytest.raises(ValueError, match="at least one time step"):
        TCLIFNode(step_mode="m")(torch.zeros(0, 2, 3))


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_integer_complex_and_other_input(make, step_mode):
    node = make(step_mode=step_mode)
    for x in (torch.zeros(3, 2, C, dtype=torch.int64), torch.zeros(3, 2, C, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"must be a real floating-point tensor .* got torch\.(int64|complex64)"):
            node(x if step_mode == "m" else x[0])
    with pytest.raises(TypeError, match=r"must be a torch\.Tensor, got list"):
        node([0.0])
    assert node.v == 0.0


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_batch_changed_without_reset(make, step_mode):
    node = make(step_mode=step_mode)
    x = torch.ones(3, 2, C)
    node(x if step_mode == "m" else x[0])
    before = {name: value.clone() for name, value in node.named_memories()}
    with pytest.raises(
        ValueError, match=r"state v of .*Node has shape \(2, 4\), .* \(1, 4\); call functional.reset_net"
    ):
        node(x[:, :1] if step_mode == "m" else x[0, :1])
    assert all(torch.equal(value, before[name]) for name, value in node.named_memories())
    functional.reset_net(node)
    node(x[:, :1] if step_mode == "m" else x[0, :1])


def test_hidden_state_of_the_wrong_shape():
    node = PMSNNode(C)
    node(torch.ones(2, C))
    node.h_imag = torch.zeros(3, 2, C)
    with pytest.raises(ValueError, match=r"state h_imag of PMSNNode has shape \(3, 2, 4\), .* asks for \(4, 2, 4\)"):
        node(torch.ones(2, C))


def test_global_context_needs_the_sequence():
    with pytest.raises(ValueError, match=r"context='global' .* use step_mode='m'"):
        PMSNNode(C, context="global")(torch.zeros(2, C))


def test_broken_checkpoint(make):
    net, broken = torch.nn.Sequential(make()), torch.nn.Sequential(make())
    name, parameter = next(iter(broken.named_parameters()))
    with torch.no_grad():
        parameter.view(-1)[0] = float("nan")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(RuntimeError, match=f"NaN or infinite values in {name}"):
        net.load_state_dict(broken.state_dict())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_a_node_without_its_equations_cannot_be_made():
    class Unfinished(StatefulNode):
        pass

    with pytest.raises(TypeError, match=r"abstract.*_sequence.*_state_shapes.*_step.*step_operations"):
        Unfinished()
