"""Bad input: an error that names the argument and what is allowed, and nothing is changed."""

from functools import partial

import numpy as np
import pytest
import snntorch as snn
import torch

from pmsn_plugins.snntorch import PMSN, RTCLIF, TCLIF, reset

C = 4


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: PMSN(0), ValueError, "channels must be at least 1, got 0"),
        (lambda: PMSN(4.0), TypeError, "channels must be an integer, got 4.0"),
        (lambda: PMSN(C, n_compartments=1), ValueError, "n_compartments must be at least 2, got 1"),
        (lambda: PMSN(C, preset="speech"), ValueError, "preset must be one of 'general', 'sequential', 'shd'"),
        (lambda: PMSN(C, dt_range=(0.1, 0.01)), ValueError, r"0 < low <= high, got \(0.1, 0.01\)"),
        (lambda: PMSN(C, dt_range=(0, 1)), ValueError, "dt_range must be a finite number above 0, got 0"),
        (lambda: PMSN(C, dt_range=0.1), TypeError, r"dt_range must be two numbers \(low, high\), got 0.1"),
        (lambda: PMSN(C, coupling=-1), ValueError, "coupling must be a finite number, 0 or more, got -1"),
        (lambda: PMSN(C, time_scale=0), ValueError, "time_scale must be a finite number above 0, got 0"),
        (lambda: PMSN(C, time_scale="40"), TypeError, "time_scale must be a real number, got '40'"),
        (lambda: PMSN(C, time_scale=40, coupling=1.0), ValueError, "time_scale chooses dt_range and coupling"),
        (lambda: PMSN(C, threshold=0.0), ValueError, "threshold must be a finite number above 0, got 0.0"),
        (lambda: PMSN(C, threshold=-1), ValueError, "threshold must be a finite number above 0, got -1"),
        (lambda: PMSN(C, threshold=float("nan")), ValueError, "threshold must be a finite number above 0, got nan"),
        (lambda: PMSN(C, threshold=1e39), ValueError, r"threshold must be from .* in torch.float32, got 1e\+39"),
        (lambda: TCLIF(threshold=1e-50), ValueError, "threshold must be from .* in torch.float32, got 1e-50"),
        (lambda: PMSN(C, threshold=torch.ones(C)), ValueError, r"threshold must be one number, .* shape \(4,\)"),
        (lambda: TCLIF(leak=0.9), TypeError, r"leak must be two numbers \(a1, a2\), got 0.9"),
        (lambda: TCLIF(leak=(0.9, "1")), TypeError, "leak must be a real number, got '1'"),
        (lambda: TCLIF(leak=(0.9, 1.1)), ValueError, r"leak must be \(a1, a2\), both from 0 to 1 .* got \(0.9, 1.1\)"),
        (lambda: PMSN(C, reset_mode="zero"), ValueError, "reset_mode must be one of 'modulo', 'cumulative', "),
        (
            lambda: PMSN(C, reset_mechanism="zero"),
            ValueError,
            "reset_mechanism must be 'subtract'.*'cumulative'",
        ),
        (lambda: PMSN(C, context="both"), ValueError, "context must be one of 'local', 'global'"),
        (lambda: PMSN(C, step_mode="x"), ValueError, "step_mode must be one of 'm', 's'"),
        (lambda: PMSN(C, backend="cuda"), ValueError, "backend must be one of 'auto', 'torch'"),
        (lambda: PMSN(C, spike_grad="atan"), TypeError, "spike_grad must be a function"),
        (lambda: PMSN(C, inhibition=True), ValueError, "inhibition must be False"),
        (lambda: PMSN(C, state_quant=torch.round), ValueError, "state_quant must be False"),
        (lambda: PMSN(C, graded_spikes_factor=torch.ones(3)), ValueError, r"one per channel \(channels=4\).*\(3,\)"),
        (lambda: PMSN(C, graded_spikes_factor=float("inf")), ValueError, "graded_spikes_factor must be finite"),
        (lambda: PMSN(C, context="global", init_hidden=True), ValueError, "context='global' averages over the whole"),
        (lambda: PMSN(C, context="global", step_mode="s"), ValueError, "context='global' averages over the whole"),
        (lambda: TCLIF(beta=(0.5, 0.5)), ValueError, r"b1 in \(-1, 0\) and b2 in \(0, 1\), got \(0.5, 0.5\)"),
        (lambda: TCLIF(beta=(-0.5, 1.0)), ValueError, r"b1 in \(-1, 0\) and b2 in \(0, 1\)"),
        (lambda: TCLIF(beta=0.9), TypeError, r"beta must be two numbers \(b1, b2\), got 0.9"),
        (lambda: TCLIF(gamma=float("nan")), ValueError, "gamma must be finite, got nan"),
        (lambda: TCLIF(beta=("-0.5", "0.5")), TypeError, "beta must be a real number, got '-0.5'"),
        (lambda: TCLIF(gamma="0.5"), TypeError, "gamma must be a real number, got '0.5'"),
        (lambda: TCLIF(threshold=0), ValueError, "threshold must be a finite number above 0, got 0"),
        (lambda: TCLIF(threshold=torch.ones(C), channels=C), ValueError, "threshold must be one number"),
        (lambda: TCLIF(soma_feedback="post"), ValueError, "soma_feedback must be one of 'post_reset', 'pre_reset'"),
        (lambda: TCLIF(channels=0), ValueError, "channels must be at least 1, got 0"),
        (lambda: TCLIF(backend="lava"), ValueError, "backend must be one of"),
        (lambda: TCLIF(inhibition=True), ValueError, "inhibition must be False"),
        (lambda: TCLIF(state_quant=torch.round), ValueError, "state_quant must be False"),
        (lambda: TCLIF(reset_mechanism="none"), ValueError, "reset_mechanism must be 'subtract'.*gamma=0"),
        (lambda: TCLIF(graded_spikes_factor=torch.ones(C)), ValueError, r"one per channel \(channels=None\)"),
        (lambda: RTCLIF(), TypeError, "linear_features must be the number of neurons, got None"),
        (lambda: RTCLIF(linear_features=0), ValueError, "linear_features must be at least 1, got 0"),
        (lambda: RTCLIF(linear_features=4.0), TypeError, "linear_features must be an integer, got 4.0"),
        (lambda: RTCLIF(all_to_all=False, linear_features=C), TypeError, "for all_to_all=True.*linear_features=4"),
        (lambda: RTCLIF(all_to_all=False, per_channel=True), TypeError, "for all_to_all=True.*per_channel=True"),
        (lambda: RTCLIF(all_to_all=False, V="1"), TypeError, "V must be a real number, got '1'"),
        (lambda: RTCLIF(all_to_all=False, V=torch.ones(C, C)), ValueError, r"V must be one number or one per neuron"),
        (lambda: RTCLIF(all_to_all=False, V=torch.ones(C).long()), TypeError, "V must be a real floating-point"),
        (lambda: RTCLIF(linear_features=C, step_mode="x"), ValueError, "step_mode must be one of 'm', 's'"),
        (lambda: RTCLIF(linear_features=C, gamma="0.5"), TypeError, "gamma must be a real number, got '0.5'"),
        (lambda: RTCLIF(linear_features=C, beta=(0.5, 0.5)), ValueError, r"b1 in \(-1, 0\)"),
        (lambda: RTCLIF(linear_features=C, soma_feedback="x"), ValueError, "soma_feedback must be one of"),
        (lambda: RTCLIF(linear_features=C, reset_mechanism="zero"), ValueError, "reset_mechanism must be 'subtract'"),
        (lambda: RTCLIF.around(TCLIF(graded_spikes_factor=2.0), C), ValueError, "graded_spikes_factor"),
    ],
)
def test_constructors(build, error, message):
    with pytest.raises(error, match=message):
        build()


LAYER_FLAGS = ("surrogate_disable", "init_hidden", "learn_threshold", "output", "learn_graded_spikes_factor")


@pytest.mark.parametrize("value", ["no", "", 0, 1, 1.0, float("nan"), None, [], torch.tensor(True), np.ones(2, bool)])
@pytest.mark.parametrize(
    ("layer", "flag"),
    [(partial(PMSN, C, step_mode="s"), flag) for flag in ("burst", "single_state", "inhibition", *LAYER_FLAGS)]
    + [(TCLIF, flag) for flag in ("detach_reset", "single_state", "inhibition", *LAYER_FLAGS)]
    + [
        (partial(RTCLIF, linear_features=C), flag)
        for flag in ("all_to_all", "bias", "learn_recurrent", "detach_reset", "per_channel", *LAYER_FLAGS[:-1])
    ],
)
def test_flags(layer, flag, value):
    if flag == "output" and value is None and layer is not TCLIF:
        return  # PMSN's default
    before = len(snn.SpikingNeuron.instances)
    with pytest.raises(TypeError, match=f"{flag} must be True or False, got"):
        layer(**{flag: value})
    assert len(snn.SpikingNeuron.instances) == before
    if flag != "inhibition":
        layer(**{flag: np.True_})


@pytest.mark.parametrize("layer", [partial(PMSN, C), TCLIF])
@pytest.mark.parametrize("value", [None, 0, "", [], torch.tensor(False)])
def test_state_quant_is_false(layer, value):
    with pytest.raises(ValueError, match="state_quant must be False"):
        layer(state_quant=value)


@pytest.mark.parametrize("layer", [partial(PMSN, C), partial(TCLIF, channels=C)])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("1", TypeError, "must be a real number, got '1'"),
        (None, TypeError, "must be a real number, got None"),
        (True, TypeError, "must be a real number, got True"),
        (1j, TypeError, "must be a real number, got 1j"),
        ([1.0] * C, TypeError, r"must be a real number, got \[1.0, 1.0, 1.0, 1.0\]"),
        (float("nan"), ValueError, "must be finite, got nan"),
        (torch.tensor(1j), TypeError, "must be a real floating-point tensor .*got torch.complex64"),
        (torch.ones(C, dtype=torch.int64), TypeError, "must be a real floating-point tensor .*got torch.int64"),
        (torch.ones(C).to_sparse(), TypeError, "must be a dense tensor"),
        (torch.full((C,), float("nan")), ValueError, "must be finite"),
        (torch.ones(C, 1), ValueError, r"must be one number or one per channel .*got shape \(4, 1\)"),
    ],
)
def test_graded_spikes_factor(layer, value, error, message):
    with pytest.raises(error, match=f"graded_spikes_factor {message}"):
        layer(graded_spikes_factor=value)


@pytest.mark.parametrize("layer", [partial(PMSN, C), TCLIF])
@pytest.mark.parametrize("value", [torch.tensor(1j), torch.tensor(1), torch.tensor(True), torch.ones(1).to_sparse()])
def test_thresholds_that_are_no_real_tensors(layer, value):
    for learn_threshold in (False, True):
        with pytest.raises(TypeError, match=r"threshold must be a (real floating-point|dense) tensor"):
            layer(threshold=value, learn_threshold=learn_threshold)


@pytest.mark.parametrize("value", [None, 1, [], True])
def test_choices(value):
    for name in ("preset", "reset_mode", "context", "step_mode", "backend"):
        with pytest.raises(TypeError, match=f"{name} must be one of '.*, got"):
            PMSN(C, **{name: value})
    for name in ("soma_feedback", "backend"):
        with pytest.raises(TypeError, match=f"{name} must be one of '.*, got"):
            TCLIF(**{name: value})
    for layer in (partial(PMSN, C), TCLIF):
        with pytest.raises(ValueError, match="reset_mechanism must be 'subtract', got"):
            layer(reset_mechanism=value)


def test_reset_takes_a_net():
    for value in (None, [TCLIF()], "net"):
        with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got"):
            reset(value)


@pytest.mark.parametrize("layer", [PMSN(C), TCLIF()])
def test_reset_mechanism_cannot_be_changed_later(layer):
    with pytest.raises(ValueError, match="reset_mechanism must be 'subtract', got 'zero'"):
        layer.reset_mechanism = "zero"
    assert layer.reset_mechanism == "subtract"


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(7, 2, 5), ValueError, r"4 channels on axis 2.*\(7, 2, 5\)"),
        (torch.ones(2, C), ValueError, "is the time axis missing"),
        (torch.ones(0, 2, C), ValueError, "at least one time step"),
        (torch.ones(7, 2, C, dtype=torch.int64), TypeError, "floating-point tensor.*got torch.int64"),
        (torch.ones(7, 2, C, dtype=torch.complex64), TypeError, "floating-point tensor.*got torch.complex64"),
        ([[1.0]], TypeError, "must be a torch.Tensor, got list"),
    ],
)
@pytest.mark.parametrize("init_hidden", [False, True])
def test_pmsn_sequences(x, error, message, init_hidden):
    layer = PMSN(C, init_hidden=init_hidden)
    with pytest.raises(error, match=message):
        layer(x)
    assert layer.mem.numel() == 0


BAD_STEPS = [
    (torch.ones(2, 5), ValueError, r"4 channels on axis 1, got shape \(2, 5\)"),
    (torch.ones(2, 1), ValueError, r"4 channels on axis 1, got shape \(2, 1\)"),
    (torch.ones(C), ValueError, r"one time step \[B, C, \*\]"),
    (torch.ones(2, C, dtype=torch.int64), TypeError, "floating-point tensor.*got torch.int64"),
    (torch.ones(2, C, dtype=torch.complex64), TypeError, "floating-point tensor.*got torch.complex64"),
    (1.0, TypeError, "must be a torch.Tensor, got float"),
]


@pytest.mark.parametrize(("x", "error", "message"), BAD_STEPS)
@pytest.mark.parametrize(
    "step",
    [
        PMSN(C).step,
        PMSN(C, step_mode="s"),
        PMSN(C, init_hidden=True).step,
        TCLIF(channels=C),
        TCLIF(channels=C, init_hidden=True),
    ],
)
def test_steps(step, x, error, message):
    with pytest.raises(error, match=message):
        step(x)


def test_states_of_pmsn():
    x, layer = torch.ones(2, C), PMSN(C)
    _, state = layer.step(x)
    with pytest.raises(ValueError, match=r"state v has shape \(2, 4\), but the input asks for \(3, 4\)"):
        layer.step(torch.ones(3, C), state)
    with pytest.raises(ValueError, match=r"state h_real has shape \(3, 2, 4\)"):
        layer.step(x, state._replace(h_real=state.h_real[:3]))
    with pytest.raises(TypeError, match=r"state must be a PMSNState\(v, h_real, h_imag\), got a Tensor of shape"):
        layer.step(x, state.v)
    for convert in (tuple, list):
        with pytest.raises(
            TypeError, match=rf"state must be .* got {convert.__name__}; PMSNState\(\*state\) makes one"
        ):
            layer.step(x, convert(state))
    for name in state._fields:
        for value in (None, 0.0, [0.0]):
            with pytest.raises(TypeError, match=rf"state {name} must be a torch.Tensor, got {type(value).__name__}"):
                layer.step(x, state._replace(**{name: value}))
        with pytest.raises(TypeError, match=f"state {name} must be a real floating-point tensor .*got torch.complex64"):
            layer.step(x, state._replace(**{name: getattr(state, name).to(torch.complex64)}))
    with pytest.raises(TypeError, match=r"a sequence takes no state: use step\(x, state\)"):
        layer(torch.ones(7, 2, C), state)
    with pytest.raises(TypeError, match="state must not be passed while init_hidden=True"):
        PMSN(C, init_hidden=True).step(x, state)


def test_states_of_tclif():
    layer = TCLIF()
    _, dend, mem = layer(torch.ones(2, C))
    kept = layer.syn, layer.mem
    with pytest.raises(ValueError, match=r"state dend has shape \(2, 4\), but the input asks for \(3, 4\)"):
        layer(torch.ones(3, C), dend, mem)
    with pytest.raises(ValueError, match=r"state mem has shape \(2, 4\), but the input asks for \(3, 4\)"):
        layer(torch.ones(3, C), torch.zeros(0), mem)
    for value in (0.0, [0.0], (dend, mem)):
        kind = type(value).__name__
        with pytest.raises(TypeError, match=rf"state dend must be a torch.Tensor, got {kind}"):
            layer(torch.ones(2, C), value, mem)
        with pytest.raises(TypeError, match=rf"state mem must be a torch.Tensor, got {kind}"):
            layer(torch.ones(2, C), dend, value)
    assert layer.syn is kept[0] and layer.mem is kept[1]
    for states in ((dend, None), (None, mem)):
        with pytest.raises(TypeError, match="must not be passed while init_hidden=True"):
            TCLIF(init_hidden=True)(torch.ones(2, C), *states)


def test_global_context_has_no_step():
    with pytest.raises(ValueError, match="context='global' averages over the whole sequence and has no single step"):
        PMSN(C, context="global").step(torch.ones(2, C))


@pytest.mark.parametrize("make", [partial(PMSN, C), TCLIF, partial(RTCLIF, linear_features=C)])
def test_errors_of_the_kernels_have_the_names_of_the_layers(make):
    x = torch.rand(3, 2, C) if isinstance(make(), PMSN) else torch.rand(2, C)
    with pytest.raises(TypeError, match=r"^spike_grad must return a floating-point tensor of spikes, got function"):
        make(spike_grad=snn.surrogate.atan)(x)  # which was not called
    layer = make()
    layer.threshold = 0.0
    with pytest.raises(ValueError, match=r"^threshold must be a finite number above 0, got 0.0"):
        layer(x)
    layer = make(learn_threshold=True)
    layer.threshold.data.fill_(-1.0)
    with pytest.raises(ValueError, match=r"^threshold must be a finite number above 0, got -1.0"):
        layer(x)


def test_step_mode_is_checked_when_it_is_set():
    for layer in (PMSN(C), RTCLIF(linear_features=C)):
        before = layer.step_mode
        with pytest.raises(ValueError, match="step_mode must be one of 'm', 's', got 'S'"):
            layer.step_mode = "S"
        assert layer.step_mode == before
        layer.step_mode = "s"


def test_sequences_of_rtclif():
    layer = RTCLIF(linear_features=C, step_mode="m")
    with pytest.raises(ValueError, match=r"x must have at least one time step, got shape \(0, 2, 4\)"):
        layer(torch.rand(0, 2, C))
    with pytest.raises(ValueError, match=r"a sequence \[T, B, C\] with 4 channels on axis 2, got shape \(3, 2, 5\)"):
        layer(torch.rand(3, 2, C + 1))
    for step_mode, x in (("m", torch.rand(3, 2, C)), ("s", torch.rand(2, C))):
        on_meta = RTCLIF(linear_features=C, step_mode=step_mode).to("meta")
        assert on_meta(x.to("meta"))[0].shape == x.shape


@pytest.mark.parametrize("factor", [1.0, 2.0, torch.arange(1.0, C + 1)])
def test_fire(factor):
    x = 2 * torch.rand(3, C)
    for layer in (PMSN(C, graded_spikes_factor=factor), TCLIF(channels=C, graded_spikes_factor=factor)):
        assert torch.equal(layer.fire(x), (x > 1).float() * factor)
    if not isinstance(factor, torch.Tensor):
        assert torch.equal(snn.Leaky(0.9, graded_spikes_factor=factor).fire(x), (x > 1).float() * factor)
