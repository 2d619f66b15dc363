"""Calls past PyTorch's dispatcher, and calls that are known: the same results and the same errors as any other call."""

import contextlib
import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import PMSNParameters, PMSNState, TCLIFState, pmsn_initial_parameters
from pmsn_plugins.kernels import unwatched

N, C, k = 3, 5, 4


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.add(str(function))
        return function(*args, **(kwargs or {}))


def pmsn(T=3, dtype=torch.float32, with_state=True):
    torch.manual_seed(0)
    x = torch.randn(T, N, C).to(dtype)
    real = torch.promote_types(dtype, torch.float32)
    parameters = PMSNParameters(*(p.to(real) for p in pmsn_initial_parameters(C, k + 1)))
    state = PMSNState(torch.rand(N, C), torch.randn(k, N, C), torch.randn(k, N, C))
    return x, parameters, PMSNState(*(s.to(real) for s in state)) if with_state else None


def tclif(T=3, dtype=torch.float32, with_state=True):
    torch.manual_seed(0)
    x = torch.randn(T, N, C).to(dtype)
    real = torch.promote_types(dtype, torch.float32)
    state = TCLIFState(torch.randn(N, C).to(real), torch.randn(N, C).to(real)) if with_state else None
    return x, torch.tensor(-0.4, dtype=real), torch.rand(C).to(real), state


NEURONS = {"pmsn": (kernels.pmsn_sequence, pmsn), "tclif": (kernels.tclif_sequence, tclif)}
OPTIONS = {
    "pmsn": [
        *({"reset_mode": mode} for mode in ("modulo", "cumulative", "memoryless", "serial")),
        {"burst": True},
        {"return_v_seq": True},
    ],
    "tclif": [{}, {"soma_feedback": "pre_reset"}, {"gamma": 0.2, "leak": (0.9, 0.8)}, {"return_v_seq": True}],
}
CASES = [(neuron, options) for neuron, all_options in OPTIONS.items() for options in all_options]


def flat(output):
    return [t for part in output for t in (part if isinstance(part, tuple) else (part,)) if t is not None]


def same(actual, expected):
    actual, expected = flat(actual), flat(expected)
    return len(actual) == len(expected) and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b) for a, b in zip(actual, expected, strict=True)
    )


@pytest.fixture(autouse=True)
def unknown(cpu_kernels):
    unwatched._known.clear()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("neuron", "options"), CASES)
def test_a_known_call_gives_what_the_operator_gives(neuron, options, with_state, dtype):
    function, case = NEURONS[neuron]
    arguments = case(dtype=dtype, with_state=with_state)
    options = {"surrogate_function": functional.triangle(strict=True), "v_threshold": 0.7, **options}
    with torch.no_grad():
        with Watching() as watching:
            expected = function(*arguments, **options)
        assert any("pmsn_plugins" in name for name in watching.seen) and not unwatched._known
        for _ in range(2):
            assert same(function(*arguments, **options), expected)
            assert len(unwatched._known) == 1
    with torch.inference_mode():
        assert same(function(*arguments, **options), expected)


def leaves(arguments):
    """Tensors that gradients are asked of, and the arguments made of them."""
    found = []

    def leaf(value):
        if isinstance(value, torch.Tensor):
            found.append(value.detach().clone().requires_grad_())
            return found[-1]
        return value if value is None else type(value)(*map(leaf, value))

    return found, tuple(map(leaf, arguments))


def gradients(function, arguments, watching=None, **options):
    """Outputs, and gradients of a random function of them."""
    found, arguments = leaves(arguments)
    with watching or contextlib.nullcontext():
        outputs = flat(function(*arguments, **options))
        generator = torch.Generator().manual_seed(3)
        sent = [t for t in outputs if t.requires_grad]
        weights = [torch.randn(t.shape, generator=generator).to(t) for t in sent]
        made = torch.autograd.grad(sent, found, weights, allow_unused=True)
    return [t.detach() for t in outputs], [torch.zeros(()) if g is None else g for g in made]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(("neuron", "options"), CASES)
def test_a_known_recorded_call_gives_what_the_operator_gives(neuron, options, with_state, dtype):
    function, case = NEURONS[neuron]
    arguments = case(T=7, dtype=dtype, with_state=with_state)
    options = {"surrogate_function": functional.triangle(strict=True), "v_threshold": 0.7, **options}
    watching = Watching()
    expected = gradients(function, arguments, watching, **options)
    assert {name.split(".")[1] for name in watching.seen if "pmsn_plugins" in name} >= {
        f"{operator}_{direction}"
        for operator in ("pmsn_layer" if neuron == "pmsn" else "tclif",)
        for direction in ("forward", "backward")
    }
    assert not unwatched._known
    for _ in range(3):
        actual = gradients(function, arguments, **options)
        assert same(actual[0], expected[0]) and same(actual[1], expected[1])
        assert len(unwatched._known) == 1


@pytest.mark.parametrize("neuron", NEURONS)
def test_slopes_are_asked_for_in_every_call(neuron):
    """Of a function that the kernels know as a step, but not its slope."""
    function, case = NEURONS[neuron]
    options = {"surrogate_function": functional.TableSurrogate("rect", alpha=0.7)}
    options |= {"reset_mode": "serial"} if neuron == "pmsn" else {}
    expected = gradients(function, case(), Watching(), **options)
    for _ in range(3):
        actual = gradients(function, case(), **options)
        assert same(actual[0], expected[0]) and same(actual[1], expected[1])


@pytest.mark.parametrize("neuron", NEURONS)
def test_recorded_and_other_calls_are_told_apart(neuron):
    function, case = NEURONS[neuron]
    arguments = case()
    for _ in range(2):
        expected = gradients(function, arguments)
        with torch.no_grad():
            assert same(function(*arguments), expected[0])
        assert not function(*arguments).spikes.requires_grad
        assert function(*leaves(arguments)[1]).spikes.requires_grad
    assert len(unwatched._known) == 2


@pytest.mark.parametrize("neuron", NEURONS)
def test_gradients_of_every_kind(neuron):
    """Negated, zero, batched, and with a graph of their own."""
    function, case = NEURONS[neuron]
    arguments = case()
    for _ in range(2):  # the second call is known
        (x, *_), given = leaves(arguments)
        spikes = function(*given, surrogate_function=functional.triangle()).spikes
        weight = torch.randn_like(spikes)

        def gradient(g, spikes=spikes, x=x, **options):
            return torch.autograd.grad(spikes, x, g, retain_graph=True, **options)[0]

        expected = gradient(weight)
        assert torch.equal(gradient(torch._neg_view(-weight)), expected)
        assert torch.equal(gradient(weight.mT.contiguous().mT), expected)
        assert not gradient(torch._efficientzerotensor(weight.shape)).any()
        both = gradient(torch.stack([weight, 2 * weight]), is_grads_batched=True)
        assert torch.allclose(both, torch.stack([expected, 2 * expected]))
        again = gradient(weight, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative"):
            again.sum().backward()


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_parameter_that_was_changed_before_backward_is_noticed(neuron):
    function, case = NEURONS[neuron]
    for _ in range(2):
        found, given = leaves(case())
        spikes = function(*given).spikes
        with torch.no_grad():
            found[1].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            spikes.sum().backward()


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("change", ["in place", "data", "new data", "numpy"])
def test_changed_parameters_are_seen(neuron, change):
    function, case = NEURONS[neuron]
    x, *parameters, state = case()
    parameters = [torch.nn.Parameter(p) for p in (parameters[0] if neuron == "pmsn" else parameters)]

    def call():
        return function(x, *([PMSNParameters(*parameters)] if neuron == "pmsn" else parameters), state)

    for index in range(len(parameters)):
        with torch.no_grad():
            before, _ = call(), call()
            p = parameters[index]
            if change == "in place":
                p.add_(0.3)
            elif change == "data":
                p.data.add_(0.3)
            elif change == "new data":
                p.data = p.data + 0.3
            else:
                p.numpy()[...] += 0.3
            with Watching():
                expected = call()
            assert same(call(), expected) and not same(before, expected)


WRONG = {
    "dtype": lambda x: x.long(),
    "double": lambda x: x.double(),
    "wide": lambda x: torch.cat([x, x], 2),
    "flat": lambda x: x.flatten(),
    "empty": lambda x: x[:, :0],
    "no time": lambda x: x[:0],
    "sparse": lambda x: x.to_sparse(),
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_input_is_refused_after_a_right_one(neuron, wrong):
    function, case = NEURONS[neuron]
    x, *others = case()

    def outcome(known):
        unwatched._known.clear()
        with torch.no_grad():
            if known:
                function(x, *others)
                function(x, *others)
            try:
                return flat(function(WRONG[wrong](x), *others))
            except Exception as error:
                return f"{type(error)} {error}"

    known, unknown = outcome(True), outcome(False)
    assert known == unknown if isinstance(unknown, str) else same(known, unknown)


@pytest.mark.parametrize(
    ("neuron", "option", "value"),
    [
        ("pmsn", "burst", 0),
        ("pmsn", "return_v_seq", 0),
        ("pmsn", "return_state", 1),
        ("pmsn", "v_threshold", True),
        ("pmsn", "v_threshold", -1.0),
        ("pmsn", "reset_mode", ["modulo"]),
        ("pmsn", "backend", "gpu"),
        ("pmsn", "surrogate_function", 1.0),
        ("tclif", "detach_reset", 0),
        ("tclif", "gamma", False),
        ("tclif", "leak", (True, 1.0)),
        ("tclif", "leak", [1.0]),
        ("tclif", "v_threshold", True),
        ("tclif", "soma_feedback", "none"),
    ],
)
def test_a_wrong_option_is_refused_after_a_right_one(neuron, option, value):
    function, case = NEURONS[neuron]
    with torch.no_grad():
        for _ in range(2):
            function(*case(), **({"gamma": 0.0} if option == "gamma" else {}))
        with pytest.raises((TypeError, ValueError)):
            function(*case(), **{option: value})


@pytest.mark.parametrize("neuron", NEURONS)
def test_tensors_that_are_not_what_lies_in_memory(neuron):
    function, case = NEURONS[neuron]
    x, *others = case()
    with torch.no_grad():
        for _ in range(2):
            expected = function(x, *others)
        assert same(function(torch._neg_view(-x), *others), expected)
        assert same(function(x.mT.contiguous().mT, *others), expected)
        assert same(function(torch._efficientzerotensor(x.shape), *others), function(torch.zeros_like(x), *others))
        batch = torch.func.vmap(lambda t: function(t, *others).spikes, 3)(torch.stack([x, x], 3))
        assert torch.equal(batch[0], expected.spikes)


@pytest.mark.parametrize("neuron", NEURONS)
def test_whoever_watches_sees_the_operator(neuron):
    function, case = NEURONS[neuron]
    arguments = case()
    with torch.no_grad():
        for _ in range(2):
            function(*arguments)
        with Watching() as watching:
            function(*arguments)
        assert any("pmsn_plugins" in name for name in watching.seen)
        with torch.profiler.profile() as profile:
            function(*arguments)
        assert any("pmsn_plugins" in event.name for event in profile.events())
    for _ in range(3):
        spikes = function(*leaves(arguments)[1]).spikes
    with torch.profiler.profile() as profile:
        spikes.sum().backward()
    assert any("_backward" in event.name and "pmsn_plugins" in event.name for event in profile.events())


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_step_may_overwrite_its_state(neuron):
    step, (_, case) = {"pmsn": kernels.pmsn_step, "tclif": kernels.tclif_step}[neuron], NEURONS[neuron]
    x, *others, state = case()
    with torch.no_grad():
        kept = copy.deepcopy(state)
        for t in range(3):
            spikes, kept = step(x[t], *others, kept)
            before = state
            again, state = step(x[t], *others, before, overwrite=[])
            assert torch.equal(spikes, again) and same(state, kept)
            assert t == 0 or all(a is b for a, b in zip(state, before, strict=True))  # the first one was not known yet
        strided = type(state)(*(s.clone().mT.contiguous().mT for s in state))
        spikes, kept = step(x[0], *others, state)
        assert same(step(x[0], *others, strided, overwrite=[])[1], kept)
    state = type(state)(*(s.clone() for s in state))
    copies = copy.deepcopy(state)
    step(x[0].clone().requires_grad_(), *others, state, overwrite=[])[0].sum().backward()
    assert same(state, copies)
