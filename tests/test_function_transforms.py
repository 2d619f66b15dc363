"""torch.func (grad, vjp, vmap, jacrev, jvp, jacfwd) and forward-mode differentiation, against autograd and loops."""

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from pmsn_plugins import functional
from pmsn_plugins.functional import PMSNParameters, pmsn_initial_parameters

T, N, C = 7, 2, 3
DOUBLE = {"dtype": torch.float64}


def pmsn(x, parameters, v_threshold, **options):
    return functional.pmsn_sequence(
        x, PMSNParameters(*parameters), v_threshold=v_threshold, return_v_seq=True, **options
    )


def pmsn_parameters():
    parameters = pmsn_initial_parameters(C, 3, **DOUBLE)
    return tuple(parameters._replace(D=torch.linspace(0.2, 0.8, C, **DOUBLE)))  # some of a random D would be silent


def tclif(x, parameters, v_threshold, **options):
    return functional.tclif_sequence(x, *parameters, v_threshold=v_threshold, return_v_seq=True, **options)


def multicompartment(x, parameters, v_threshold):
    leak, gain = parameters
    output = functional.multicompartment_sequence(
        x, leak=leak, up=(0.5,), down=(-0.5,), gain=gain, reset=(0.2,), v_threshold=v_threshold, return_v_seq=True
    )
    return output._replace(v_seq=output.v_seq[:, -1])


def tensors(*values):
    return tuple(torch.tensor(value, **DOUBLE) for value in values)


FUNCTIONS = {
    **{
        f"pmsn {options}": (pmsn, pmsn_parameters(), options)
        for options in (
            {},
            {"method": "recurrence"},
            {"method": "fft"},
            {"reset_mode": "cumulative"},
            {"reset_mode": "memoryless"},
            {"reset_mode": "serial"},
            {"burst": True},
            {"burst": True, "reset_mode": "serial"},
            {"context": "global"},
        )
    },
    **{
        f"tclif {options}": (tclif, tensors(-0.6, 0.4), options)
        for options in ({}, {"soma_feedback": "pre_reset"}, {"detach_reset": True}, {"leak": (0.9, 0.8)})
    },
    "multicompartment": (multicompartment, tensors((0.9, 0.8), (1.0, 0.5)), {}),
}


@pytest.fixture(params=FUNCTIONS.values(), ids=FUNCTIONS)
def loss(request):
    """A loss of the input, the parameters and the threshold, and a place to evaluate it."""
    function, parameters, options = request.param
    weight = torch.linspace(-1, 1, T * N * C, **DOUBLE).view(T, N, C)

    def evaluate(x, parameters, v_threshold):
        output = function(x, parameters, v_threshold, **options)
        return (output.spikes * weight).sum() + (output.v_seq * weight.flip(0)).sum()

    return evaluate, (torch.rand(T, N, C, **DOUBLE) * 1.5, parameters, torch.tensor(0.9, **DOUBLE))


def by_autograd(evaluate, place):
    leaves, spec = torch.utils._pytree.tree_flatten(place)
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    value = evaluate(*torch.utils._pytree.tree_unflatten(leaves, spec))
    gradients = torch.autograd.grad(value, leaves, materialize_grads=True)
    return torch.utils._pytree.tree_unflatten(gradients, spec)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_reverse_mode(loss):
    evaluate, place = loss
    expected = by_autograd(evaluate, place)
    assert any(leaf.any() for leaf in expected[1])
    assert_close(grad(evaluate, (0, 1, 2))(*place), expected)
    assert_close(vjp(evaluate, *place)[1](torch.ones((), **DOUBLE)), expected)
    assert_close(jacrev(evaluate, (0, 1, 2))(*place), expected)


def test_forward_mode(loss):
    evaluate, place = loss
    expected = by_autograd(evaluate, place)
    assert_close(jacfwd(evaluate, (0, 1, 2))(*place), expected)
    leaves, spec = torch.utils._pytree.tree_flatten(place)
    directions = [torch.randn_like(leaf) for leaf in leaves]
    slope = sum((g * d).sum() for g, d in zip(torch.utils._pytree.tree_leaves(expected), directions, strict=True))
    _, actual = jvp(evaluate, place, torch.utils._pytree.tree_unflatten(directions, spec))
    assert_close(actual, slope)
    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(leaf, direction) for leaf, direction in zip(leaves, directions, strict=True)]
        value = evaluate(*torch.utils._pytree.tree_unflatten(dual, spec))
        assert_close(forward_ad.unpack_dual(value).tangent, slope)


def test_vmap(loss):
    evaluate, (x, parameters, v_threshold) = loss
    xs = torch.stack([x, 0.5 * x, 2 * x])
    thresholds = v_threshold * torch.tensor([1.0, 0.8, 1.2], **DOUBLE)
    places = [(xi, parameters, theta) for xi, theta in zip(xs, thresholds, strict=True)]
    in_dims = (0, None, 0)
    assert_close(vmap(evaluate, in_dims)(xs, parameters, thresholds), torch.stack([evaluate(*p) for p in places]))
    expected = [by_autograd(evaluate, p)[0] for p in places]
    assert_close(vmap(grad(evaluate), in_dims)(xs, parameters, thresholds), torch.stack(expected))
    total = grad(lambda xs: vmap(evaluate, in_dims)(xs, parameters, thresholds).sum())
    assert_close(total(xs), torch.stack(expected))


def test_second_derivatives(loss):
    evaluate, (x, parameters, v_threshold) = loss

    def of_input(x):
        return evaluate(x, parameters, v_threshold)

    assert_close(hessian(of_input)(x), torch.autograd.functional.hessian(of_input, x))


class SpikingJellyNet(nn.Module):
    """[T, N, C] -> [T, N, C], one sequence after a reset."""

    def __init__(self, step_mode, backend):
        super().__init__()
        from spikingjelly.activation_based import surrogate

        from pmsn_plugins import spikingjelly as sj

        options = {"step_mode": step_mode, "surrogate_function": surrogate.ATan()}
        chain = sj.MultiCompartmentNode(2, **options)
        options["backend"] = backend
        self.body = nn.Sequential(
            nn.Linear(C, C),
            sj.PMSNNode(C, **options),
            nn.Linear(C, C),
            sj.TCLIFNode(channels=C, v_threshold=0.1, **options),
            nn.Linear(C, C),
            chain,
        )
        self.multi_step = step_mode == "m"

    def forward(self, x):
        out = self.body(x) if self.multi_step else torch.stack([self.body(x_t) for x_t in x])
        self.forget()
        return out

    def forget(self):
        from spikingjelly.activation_based import functional

        functional.reset_net(self)


class SnnTorchNet(nn.Module):
    """The same, with hidden states kept by the layers, or in the loop's hands."""

    def __init__(self, init_hidden, backend):
        super().__init__()
        from snntorch import surrogate

        from pmsn_plugins import snntorch as snn

        options = {"init_hidden": init_hidden, "backend": backend, "spike_grad": surrogate.atan()}
        self.first, self.second, self.third = (nn.Linear(C, C) for _ in range(3))
        self.sequence = snn.PMSN(C, output=False, **options)
        self.tclif = snn.TCLIF(threshold=0.1, learn_threshold=backend == "torch", **options)
        self.pmsn = snn.PMSN(C, step_mode="s", **options)
        self.init_hidden, self.forget = init_hidden, lambda: snn.reset(self)

    def forward(self, x):
        hidden, out = self.second(self.sequence(self.first(x))), []
        dend, mem = self.tclif.reset_mem()
        state = self.pmsn.reset_mem()
        for x_t in hidden:
            if self.init_hidden:
                out.append(self.pmsn(self.third(self.tclif(x_t))))
            else:
                spk, dend, mem = self.tclif(x_t, dend, mem)
                spk, state = self.pmsn(self.third(spk), state)
                out.append(spk)
        self.forget()
        return torch.stack(out)


NETS = {
    "SpikingJelly, sequence": ("spikingjelly", SpikingJellyNet, "m"),
    "SpikingJelly, steps": ("spikingjelly", SpikingJellyNet, "s"),
    "snnTorch, init_hidden": ("snntorch", SnnTorchNet, True),
    "snnTorch, explicit states": ("snntorch", SnnTorchNet, False),
}


@pytest.fixture(params=NETS.values(), ids=NETS)
def make_net(request):
    framework, kind, option = request.param
    pytest.importorskip(framework)

    def make(backend):
        net = kind(option, backend).double()
        for name, parameter in net.named_parameters():
            if name.endswith((".D", ".bias")):
                parameter.data.abs_().add_(0.5)  # a neuron driven below zero would be silent
        return net

    return make


def per_sample_loss(net):
    weight = torch.linspace(-1, 1, T * N * C, **DOUBLE).view(T, N, C)

    def evaluate(parameters, x):
        return (functional_call(net, parameters, (x,)) * weight).sum()

    return evaluate, {name: parameter.detach() for name, parameter in net.named_parameters()}


def loop_over_samples(net, evaluate, xs):
    names, parameters = zip(*net.named_parameters(), strict=True)
    gradients = []
    for x in xs:
        loss = evaluate(dict(zip(names, parameters, strict=True)), x)
        gradients.append(torch.autograd.grad(loss, parameters, materialize_grads=True))
    return {name: torch.stack(g) for name, g in zip(names, zip(*gradients, strict=True), strict=True)}


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_per_sample_gradients_equal_a_loop(make_net, backend):
    net = make_net(backend)
    evaluate, parameters = per_sample_loss(net)
    xs = 3 * torch.rand(4, T, N, C, **DOUBLE)
    expected = loop_over_samples(net, evaluate, xs)
    silent = [name for name, gradient in expected.items() if not gradient.any()]
    assert not silent
    for _ in range(2):  # nothing is left behind that a second call would meet
        assert_close(vmap(grad(evaluate), (None, 0))(parameters, xs), expected)
    assert_close(grad(evaluate)(parameters, xs[0]), {name: g[0] for name, g in expected.items()})
    assert_close(jacrev(evaluate)(parameters, xs[1]), {name: g[1] for name, g in expected.items()})
    assert_close(loop_over_samples(net, evaluate, xs), expected)


def test_forward_mode_of_nets(make_net):
    net = make_net("torch")
    evaluate, parameters = per_sample_loss(net)
    x = 3 * torch.rand(T, N, C, **DOUBLE)
    expected = {name: g[0] for name, g in loop_over_samples(net, evaluate, x[None]).items()}
    assert_close(jacfwd(evaluate)(parameters, x), expected)


def test_an_ensemble_of_nets(make_net):
    """vmap over stacked parameters, as torch.func.stack_module_state makes them."""
    nets = [make_net("torch") for _ in range(3)]
    parameters, buffers = torch.func.stack_module_state(nets)
    x = 3 * torch.rand(T, N, C, **DOUBLE)

    def run(parameters, buffers):
        return functional_call(nets[0], (parameters, buffers), (x,))

    assert_close(vmap(run)(parameters, buffers), torch.stack([net(x) for net in nets]))


def stateful(kind):
    if kind == "spikingjelly":
        pytest.importorskip("spikingjelly")
        from pmsn_plugins.spikingjelly import TCLIFNode

        node = TCLIFNode(backend="torch")
        return node, node.reset
    pytest.importorskip("snntorch")
    from pmsn_plugins.snntorch import TCLIF

    layer = TCLIF(init_hidden=True, backend="torch")
    return layer, layer.reset_mem


@pytest.mark.parametrize("kind", ["spikingjelly", "snntorch"])
def test_a_state_left_behind_by_a_transformation(kind):
    neuron, reset = stateful(kind)
    x = torch.rand(4, N, C)
    expected = neuron(x[0]).detach()
    reset()
    for transformed in (vmap(neuron), vmap(grad(lambda x: neuron(x).sum()))):
        transformed(x)
        with pytest.raises(RuntimeError, match=r"state .*torch.func.*reset the net"):
            neuron(x[0])
        reset()
        assert torch.equal(neuron(x[0]), expected)
        reset()


def test_a_state_of_the_wrong_shape_under_vmap():
    pytest.importorskip("snntorch")
    from pmsn_plugins.snntorch import TCLIF

    layer = TCLIF(backend="torch")
    dend, mem = torch.rand(2, 4, N, C + 1)
    with pytest.raises(ValueError, match="shape"):
        vmap(layer)(torch.rand(4, N, C), dend, mem)
