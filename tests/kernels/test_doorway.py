"""Whatever a caller hands to the operators: a Python error that names it, or the right result. Never a crash."""

import ctypes
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmsn_plugins import functional, kernels
from pmsn_plugins.functional import pmsn_initial_parameters
from pmsn_plugins.kernels import arguments, backend, calls
from pmsn_plugins.kernels.calls import (
    DiscretizeTensors,
    LayerTensors,
    NoOptions,
    PmsnOptions,
    PmsnTensors,
    TclifOptions,
    TclifRecurrentOptions,
    TclifRecurrentTensors,
    TclifTensors,
    Wanted,
    WantedGradients,
    Where,
)
from pmsn_plugins.kernels.operators import DISCRETIZE, PMSN, PMSN_LAYER, TCLIF, TCLIF_RECURRENT

T, N, C, k, S = 40, 3, 5, 2, 4
PMSN_OPTIONS = PmsnOptions("modulo", "spike", "triangle", 1.0, 1.0, 0.0, 0.0)
TCLIF_OPTIONS = TclifOptions(C, S, False, False, False, "triangle", 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0)
RECURRENT_OPTIONS = TclifRecurrentOptions(False, False, False, "triangle", 1.0, 1.0, 0.0, 0.0, 0.5, 1.0, 1.0)
WANTED, GRADIENTS = Wanted(True, True, True, "cpu"), WantedGradients(True, "cpu")


def run_python(code):
    """In a process of its own: the present one survives a crash."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, f"rc {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def draw(*shape):
    return torch.rand(shape) + 0.1


def forward_case(name):
    """(operator, tensors, options, what is wanted), with everything that is optional."""
    x, step, hidden = torch.randn(T, N, C, S), (N, C, S), (k, N, C, S)
    states, slopes = (draw(*step), draw(*hidden), draw(*hidden), torch.tensor(1.0)), draw(T, *step)
    if name == "discretize":
        *parameters, _ = pmsn_initial_parameters(C, k + 1)
        return DISCRETIZE, DiscretizeTensors(*parameters), NoOptions(), Where("cpu")
    if name == "tclif":
        tensors = TclifTensors(
            x, -draw(C) / 2, draw(C) / 2, draw(*step), draw(*step), torch.tensor(1.0), draw(T + 1, *step)
        )
        return TCLIF, tensors, TCLIF_OPTIONS, WANTED
    if name == "tclif_recurrent":
        states, slopes = (draw(N, C) for _ in range(3)), draw(T + 1, N, C)
        parameters = (draw(C, C) - 0.5, draw(C), -draw(C) / 2, draw(C) / 2)
        tensors = TclifRecurrentTensors(torch.randn(T, N, C), *parameters, *states, torch.tensor(1.0), slopes)
        return TCLIF_RECURRENT, tensors, RECURRENT_OPTIONS, WANTED
    parameters = pmsn_initial_parameters(C, k + 1)
    if name == "pmsn_layer":
        return PMSN_LAYER, LayerTensors(x, *parameters, *states, slopes), PMSN_OPTIONS, WANTED
    return PMSN, PmsnTensors(x, *functional.discretize(parameters), *states, slopes), PMSN_OPTIONS, WANTED


def flat_case(name, direction):
    """(operator, {argument: value} in order)."""
    torch.manual_seed(0)
    op, tensors, options, wanted = forward_case(name)
    if direction == "forward":
        records = (tensors, options, wanted)
        return op.forward, {f: v for record in records for f, v in record._asdict().items()}
    results = op.results(*op.forward(*tensors, *options, *wanted))
    grads = [torch.randn_like(r) for r, has in zip(results, op.with_gradient, strict=True) if has]
    kept = (results.checkpoints,) if op.keeps else ()
    wanted = GRADIENTS if op.keeps else Where("cpu")
    records = (op.gradients(*grads, *kept), tensors, options, wanted)
    return op.backward, {f: v for record in records for f, v in record._asdict().items()}


NEURONS = ("pmsn", "pmsn_layer", "tclif", "tclif_recurrent", "discretize")
OPERATORS = [(name, way) for name in NEURONS for way in ("forward", "backward")]


def strided(t):
    wide = torch.zeros(*t.shape[:-1], 2 * t.shape[-1], dtype=t.dtype) if t.ndim else torch.zeros(2, dtype=t.dtype)
    view = wide[..., ::2] if t.ndim else wide[0]
    view.copy_(t)
    return view


SAME_VALUE = {
    "strided": strided,
    "transposed": lambda t: t.movedim(0, -1).contiguous().movedim(-1, 0) if t.ndim else t,
    "offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "negated view": lambda t: torch._neg_view(-t),
    "requires grad": lambda t: t.clone().requires_grad_(),
}
OTHERS = {
    "float64": lambda t: t.double(),
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "int64": lambda t: t.long(),
    "bool": lambda t: t.bool(),
    "complex": lambda t: t.to(torch.complex64),
    "short": lambda t: t[:-1] if t.ndim else t,
    "short at the end": lambda t: t[..., :-1] if t.ndim else t,
    "long": lambda t: torch.cat([t, t]) if t.ndim else t[None].expand(2),
    "another axis": lambda t: t[..., None].expand(*t.shape, 3),
    "one axis less": lambda t: t.flatten(0, 1) if t.ndim > 1 else t.sum(),
    "empty": lambda t: t.new_empty(0),
    "no element": lambda t: t[:0] if t.ndim else t.new_empty(0),
    "scalar": lambda t: t.sum(),
    "meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse(),
    "None": lambda t: None,
    "text": lambda t: "x",
    "number": lambda t: 1.0,
}


DECISIVE = {"x", "log_dt", "log_decay", "E_real", "b1", "D", "weight"}


def equal(actual, expected):
    return len(actual) == len(expected) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(actual, expected, strict=True)
    )


@pytest.mark.parametrize("change", SAME_VALUE)
@pytest.mark.parametrize(("name", "direction"), OPERATORS)
def test_any_strides_are_read_right(cpu_kernels, name, direction, change):
    operator, call = flat_case(name, direction)
    expected = operator(*call.values())
    for argument, value in call.items():
        if isinstance(value, torch.Tensor) and value.numel():
            actual = operator(*{**call, argument: SAME_VALUE[change](value)}.values())
            assert equal(actual, expected), argument


@pytest.mark.parametrize("change", OTHERS)
@pytest.mark.parametrize(("name", "direction"), OPERATORS)
def test_a_wrong_tensor_is_an_error_or_harmless(cpu_kernels, name, direction, change):
    """The error names the argument where we raise it; what PyTorch refuses by itself it may word itself."""
    operator, call = flat_case(name, direction)
    for argument, value in call.items():
        if not isinstance(value, torch.Tensor) or value.numel() == 0:
            continue
        wrong = OTHERS[change](value)
        if wrong is value:
            continue
        try:
            actual = operator(*{**call, argument: wrong}.values())
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            ours = str(error).startswith(operator.name().split("::")[1].split(".")[0])
            if ours and argument not in DECISIVE:  # for those say what the others must look like
                assert re.search(rf"\b{argument}\b", str(error)), str(error)
            continue
        if change == "meta":
            assert all(r.device.type == "meta" for r in actual)
        else:  # a state or a gradient may be missing, x may have another size, a number be a tensor of one element
            assert wrong is None or argument in ("x", "theta_tensor"), (argument, change)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_several_wrong_at_once(cpu_kernels, data):
    operator, call = flat_case(*data.draw(st.sampled_from(OPERATORS)))
    tensors = [a for a, v in call.items() if isinstance(v, torch.Tensor) and v.numel()]
    for argument in data.draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=4, unique=True)):
        changes = {**OTHERS, **SAME_VALUE}
        call[argument] = changes[data.draw(st.sampled_from(sorted(changes)))](call[argument])
    words = {
        "reset": [*calls.RESETS, "no"],
        "fire": [*calls.FIRES, ""],
        "surrogate": [*calls.SURROGATES, "given"],
        "backend": ["cpu", "cupy", "torch", "x"],
        "channels": [C, 0, -1, 1, 7, 2**62],
        "inner": [S, 0, -4, 1, 3, 2**62],
        "theta": [1.0, 0.0, -1.0, float("nan"), float("inf")],
        "gamma": [0.5, float("nan")],
        "save": [True, False],
        "state_gradients": [True, False],
    }
    for option in data.draw(st.lists(st.sampled_from(sorted(words.keys() & call.keys())), max_size=3, unique=True)):
        call[option] = data.draw(st.sampled_from(words[option]))
    try:
        results = operator(*call.values())
    except (TypeError, ValueError, RuntimeError, NotImplementedError, MemoryError):
        return
    assert all(isinstance(r, torch.Tensor) for r in results)


def test_options_are_checked(cpu_kernels):
    operator, call = flat_case("pmsn", "forward")
    wrong = [
        ("reset", "x", "reset must be one of 'modulo', 'cumulative', 'memoryless', 'serial', got 'x'"),
        ("fire", "x", "fire must be one of"),
        ("surrogate", "x", "surrogate must be one of"),
        ("backend", "cupy", r"backend must be one for cpu tensors \('cpu'\), got 'cupy'"),
    ]
    for option, value, message in wrong:
        with pytest.raises(ValueError, match=message):
            operator(*{**call, option: value}.values())
    with pytest.raises(ValueError, match="fire must not be 'membrane' with reset 'serial'"):
        operator(*{**call, "fire": "membrane", "reset": "serial"}.values())
    operator, call = flat_case("tclif", "forward")
    for channels, inner in [(7, 1), (0, 4), (5, 0), (-5, -4), (2**62, 4)]:
        with pytest.raises(ValueError, match=r"channels.*inner"):
            operator(*{**call, "channels": channels, "inner": inner}.values())
    for name in ("pmsn", "tclif", "tclif_recurrent"):
        operator, call = flat_case(name, "backward")
        with pytest.raises(RuntimeError, match="slopes must be a tensor with surrogate 'given'"):
            operator(*{**call, "surrogate": "given", "slopes": None}.values())


CHANGES = {
    "double": "node.double()",
    "half": "node.half()",
    "shape": "node.{parameter}.data = node.{parameter}.data[:2].clone()",
    "another shape": "node.{parameter}.data = torch.zeros(7, 9)",
    "no memory": "node.{parameter}.data = torch.empty(0)",
    "in place": "\nwith torch.no_grad(): node.{parameter}.add_(1)",
}


CHANGED = """
node = {node}
x = torch.randn({shape}).requires_grad_()
y = node(x)
expected, = torch.autograd.grad(y.sum(), x, retain_graph=True)
print({change!r}, "of", node, flush=True)  # what a crash is to be blamed on
{change}
try:
    y.sum().backward()
except RuntimeError as error:
    assert 'must' in str(error) or 'modified by an inplace' in str(error), error
else:  # TC-LIF keeps what it made of its parameters
    assert 'TCLIF' in type(node).__name__ and torch.equal(x.grad, expected)
"""


@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_a_parameter_changed_between_forward_and_backward(cpu_kernels, framework):
    pytest.importorskip(framework)
    nodes = {
        "spikingjelly": (("PMSNNode(5, step_mode='m')", "freq"), ("TCLIFNode(channels=5, step_mode='m')", "c1")),
        "snntorch": (("PMSN(5, output=False)", "freq"), ("TCLIF(channels=5, init_hidden=True)", "c1")),
    }
    code = f"import torch\nfrom pmsn_plugins.{framework} import *\n"
    for (node, parameter), change in itertools.product(nodes[framework], CHANGES.values()):
        shape = "2, 5" if "init_hidden" in node else "4, 2, 5"
        code += CHANGED.format(node=node, shape=shape, change=change.format(parameter=parameter))
    assert run_python(code).count(" of ") == 2 * len(CHANGES)


@pytest.mark.parametrize("field", ["E_real", "E_imag", "K_real", "K_imag", "D"])
def test_coefficients_of_another_shape(field):
    coefficients = functional.discretize(pmsn_initial_parameters(C, k + 1))
    for wrong in (getattr(coefficients, field)[:2], getattr(coefficients, field)[..., None], torch.zeros(0)):
        for module in (functional, kernels):
            with pytest.raises(ValueError, match=f"{field}|coefficients|channels"):
                module.pmsn_sequence(torch.randn(T, N, C), coefficients._replace(**{field: wrong}))


def c_fields(struct):
    text = (Path(calls.__file__).parent / "csrc" / "args.h").read_text()
    body = re.search(rf"struct {struct} \{{(.*?)\n\}};", text, re.DOTALL)[1]
    body = re.sub(r"//.*", "", body)
    fields = []
    for kind, names in re.findall(r"(long long|double|const void|void|Layout)\b([^;]*);", body):
        for name in names.replace("*", "").split(","):
            if kind == "Layout":
                fields += c_fields("Layout")
            else:
                kinds = {"long long": ctypes.c_longlong, "double": ctypes.c_double}
                fields.append((name.strip(), kinds.get(kind, ctypes.c_void_p)))
    return fields


@pytest.mark.parametrize("neuron", arguments.STRUCTURES)
def test_the_c_structs_are_those_of_the_records(neuron):
    structure = arguments.STRUCTURES[neuron]
    assert c_fields(structure.__name__) == list(structure._fields_)


def test_words_are_those_of_the_c_enums():
    csrc = Path(calls.__file__).parent / "csrc"
    for header, enum, words in [("pmsn.h", "Reset", calls.RESETS), ("pmsn.h", "Fire", calls.FIRES)]:
        names = re.search(rf"enum {enum} \{{([^}}]*)\}}", (csrc / header).read_text())[1].split(",")
        assert tuple(n.strip().removeprefix(f"{enum.upper()}_").lower() for n in names) == words


class Counting:
    """A second backend for the CPU: computes nothing itself."""

    device_type = "cpu"

    def __init__(self, name, available):
        self.name, self.available, self.calls = name, available, []

    def status(self):
        return self.available, f"{self.name} {'works' if self.available else 'is missing'}"

    def run(self, call):
        self.calls.append(call)
        backend.backend_of("cpu", "cpu").run(call)


def test_backends_of_one_device_are_asked_in_order(tools, cpu_kernels, monkeypatch):
    missing, second = Counting("first", False), Counting("second", True)
    monkeypatch.setattr(backend, "FUSED", [missing, second, *backend.FUSED])
    x, coefficients, _ = tools.pmsn_case((6, 2, 3), 2, torch.float32, False)
    assert kernels.explain(kernels.pmsn_sequence, x, coefficients) == "second: second works"
    expected = tools.run(functional.pmsn_sequence, x, coefficients, None)
    actual = tools.run(kernels.pmsn_sequence, x, coefficients, None)
    assert torch.equal(actual.spikes, expected.spikes)
    forward, backward = second.calls
    # it is handed records, by name
    assert (forward.name, backward.name) == ("pmsn_forward", "pmsn_backward")
    assert torch.equal(forward.tensors.x, x) and forward.options.reset == "modulo"
    assert torch.equal(forward.results.out, expected.spikes)
    second.available = False
    assert kernels.explain(kernels.pmsn_sequence, x, coefficients).startswith("cpu: ")
