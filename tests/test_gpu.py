"""Nodes, layers, networks and the trainer on a CUDA GPU: the fused kernels are what runs, and they give what the CPU
gives in float64."""

import contextlib
import copy
import csv
import threading
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

import snntorch as snn
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based.model import sew_resnet

from pmsn_plugins import param_groups, swap_neurons, train
from pmsn_plugins import snntorch as st
from pmsn_plugins import spikingjelly as sj
from pmsn_plugins.kernels import gpu

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
T, N, C = 40, 3, 5


@pytest.fixture(autouse=True)
def _needs_a_gpu():
    if not gpu.status()[0]:
        pytest.skip(gpu.status()[1])


@pytest.fixture
def launches(monkeypatch):
    """Names of the calls that the CUDA kernels computed."""
    seen, run = [], gpu.CupyDevice.run

    def noted(self, call):
        seen.append(f"{call.neuron} {call.direction}")
        run(self, call)

    monkeypatch.setattr(gpu.CupyDevice, "run", noted)
    return seen


class InALoop(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return torch.stack([spikes_of(self.layer(x_t)) for x_t in x])


NEURONS = {
    "PMSNNode": lambda: sj.PMSNNode(C, step_mode="m"),
    "PMSNNode, no state": lambda: sj.PMSNNode(C, step_mode="m", keep_state=False),
    "PMSNNode, burst": lambda: sj.PMSNNode(C, step_mode="m", burst=True),
    "PMSNNode, serial": lambda: sj.PMSNNode(C, step_mode="m", reset_mode="serial"),
    "TCLIFNode": lambda: sj.TCLIFNode(step_mode="m"),
    "TCLIFNode, no state": lambda: sj.TCLIFNode(step_mode="m", keep_state=False),
    "snnTorch PMSN": lambda: st.PMSN(C),
    "snnTorch PMSN, hidden": lambda: st.PMSN(C, init_hidden=True),
    "snnTorch TCLIF": lambda: InALoop(st.TCLIF()),
    "snnTorch TCLIF, hidden": lambda: InALoop(st.TCLIF(init_hidden=True)),
}
RECURRENT = {
    "RecurrentTCLIFNode": lambda: sj.RecurrentTCLIFNode(C, step_mode="m"),
    "RTCLIF": lambda: st.RTCLIF(linear_features=C, step_mode="m"),
}


def spikes_of(output):
    return output[0] if isinstance(output, tuple) else output


def reset(net):
    for module in net.modules():
        if hasattr(module, "reset"):
            module.reset()
        elif hasattr(module, "reset_mem"):
            module.reset_mem()


def result(net, x):
    """Spikes, and the gradients of the input and of all parameters, on the CPU."""
    x = x.detach().clone().requires_grad_()
    spikes = spikes_of(net(x))
    weight = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(spikes)
    wrt = [p for p in net.parameters() if p.requires_grad]
    return [t.detach().cpu() for t in (spikes, *torch.autograd.grad((spikes * weight).sum(), [x, *wrt]))]


def assert_same(actual, expected, tolerance=1e-9):
    assert torch.equal(actual[0], expected[0])
    for value, want in zip(actual[1:], expected[1:], strict=True):
        assert want.abs().max() > 0
        assert (value - want).abs().max() <= tolerance * want.abs().max()


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype) + 0.2


@pytest.mark.parametrize("name", [*NEURONS, *RECURRENT])
@pytest.mark.parametrize("steps", [4, T])
def test_as_on_the_cpu(name, steps, launches):
    net = {**NEURONS, **RECURRENT}[name]().double()
    x = inputs(steps, N, C)
    expected = result(net, x)
    reset(net)
    actual = result(copy.deepcopy(net).to(DEVICE), x.to(DEVICE))
    assert_same(actual, expected)
    assert bool(launches) == (name in NEURONS)  # recurrent layers have no CUDA kernels


@pytest.mark.parametrize("name", NEURONS)
def test_sequence_and_chunks(name):
    if "no state" in name or name == "snnTorch PMSN":
        pytest.skip("keeps no state")
    net, x = NEURONS[name]().double().to(DEVICE), inputs(T, N, C, 2).to(DEVICE)
    whole = spikes_of(net(x))
    for chunk in (1, 7, T // 2):
        reset(net)
        assert torch.equal(torch.cat([spikes_of(net(part)) for part in x.split(chunk)]), whole)


@pytest.mark.parametrize("recorded", [False, True])
def test_single_steps(recorded):
    x = inputs(12, N, C).to(DEVICE)
    with torch.set_grad_enabled(recorded):
        for make in (partial(sj.PMSNNode, C), sj.TCLIFNode):
            multi, single = (make(step_mode=mode).double().to(DEVICE) for mode in "ms")
            single.load_state_dict(multi.state_dict())
            assert torch.equal(torch.stack([single(x_t) for x_t in x]), multi(x))
        layer, state, spikes = st.PMSN(C).double().to(DEVICE), None, []
        for x_t in x:
            spk, state = layer.step(x_t, state)
            spikes.append(spk)
        assert torch.equal(torch.stack(spikes), layer(x)[0])
        layer, spikes = st.TCLIF().double().to(DEVICE), []
        states = layer.reset_mem()
        for x_t in x:
            spk, *states = layer(x_t, *states)
            spikes.append(spk)
        assert torch.equal(torch.stack(spikes), sj.TCLIFNode(step_mode="m").double().to(DEVICE)(x))


def test_the_state_is_there_when_asked_for():
    for make, names in [
        (NEURONS["PMSNNode"], ("v", "h_real", "h_imag")),
        (NEURONS["TCLIFNode"], ("v", "v_dendrite")),
    ]:
        node, x = make().double(), inputs(4, N, C, 8, 8)
        node(x)
        expected = [getattr(node, name) for name in names if hasattr(node, name)]
        node.reset()
        node.to(DEVICE)(x.to(DEVICE))
        found = [getattr(node, name) for name in names if hasattr(node, name)]
        assert len(found) >= 1
        for value, want in zip(found, expected, strict=True):
            assert value.device.type == DEVICE
            assert (value.cpu() - want).abs().max() <= 1e-9 * want.abs().max()


def test_state_dict_deepcopy_and_back_to_the_cpu():
    node, x = NEURONS["PMSNNode"]().double().to(DEVICE), inputs(T, N, C)
    node(x.to(DEVICE))
    twin = copy.deepcopy(node)
    assert torch.equal(node(x.to(DEVICE)), twin(x.to(DEVICE)))
    other = NEURONS["PMSNNode"]().double()
    other.load_state_dict({k: v for k, v in node.state_dict().items() if k in dict(node.named_parameters())})
    node.reset()
    assert torch.equal(node(x.to(DEVICE)).cpu(), other(x))
    node.cpu()
    node.reset()
    other.reset()
    assert torch.equal(node(x), other(x))


def test_inputs_of_any_layout(launches):
    node = sj.PMSNNode(C, step_mode="m", keep_state=False).double()
    image = inputs(N, C, 6, 8)
    for x in (
        image.expand(4, *image.shape),
        inputs(4, N, C, 6, 8).flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, (4, N)),
        inputs(N, 4, C, 6, 8).transpose(0, 1),
        inputs(8, N, C, 12, 8)[::2, :, :, ::2],
    ):
        expected = node(x)
        assert torch.equal(node.to(DEVICE)(x.to(DEVICE)).cpu(), expected)
        node.cpu()
    assert len([name for name in launches if name == "pmsn forward"]) >= 4


def resnet(new, **options):
    net = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=10)
    swap_neurons(net, new, **options)
    functional.set_step_mode(net, "m")
    return net


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("neuron_name", ["PMSN", "TC-LIF"])
def test_a_swapped_resnet_learns(neuron_name, precision, launches):
    new = {"PMSN": partial(sj.PMSNNode, preset="static"), "TC-LIF": sj.TCLIFNode}[neuron_name]
    net = resnet(new).to(DEVICE)
    if precision == torch.bfloat16:
        net = net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(param_groups(net, lr=1e-3, neuron_lr=1e-3))
    scaler = torch.amp.GradScaler(DEVICE, enabled=precision == torch.float16)
    x, target = torch.randn(8, 3, 32, 32, device=DEVICE), torch.randint(10, (8,), device=DEVICE)
    losses = []
    for _ in range(12):
        functional.reset_net(net)
        with torch.autocast(DEVICE, precision, enabled=precision != torch.float32):
            loss = F.cross_entropy(net(x.expand(4, *x.shape)).mean(0), target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    name = {"PMSN": "pmsn", "TC-LIF": "tclif"}[neuron_name]
    assert launches.count(f"{name} forward") >= 12 * 20 and launches.count(f"{name} backward") >= 12 * 20


def test_swap_with_an_input_on_the_gpu():
    x = torch.randn(4, 2, 3, 32, 32, device=DEVICE)
    net = sew_resnet.sew_resnet18(cnf="ADD", spiking_neuron=neuron.IFNode, num_classes=10).to(DEVICE)
    functional.set_step_mode(net, "m")
    swap_neurons(net, sj.PMSNNode, x)
    nodes = [m for m in net.modules() if isinstance(m, sj.PMSNNode)]
    assert len(nodes) == 20 and all(p.device.type == DEVICE for p in net.parameters())
    assert net(x).shape == (4, 2, 10)


def test_a_swapped_snntorch_loop():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.lif1 = nn.Linear(20, 30), snn.Leaky(0.9)
            self.fc2, self.lif2 = nn.Linear(30, 10), snn.Leaky(0.9)

        def forward(self, x):
            mem1, mem2, out = self.lif1.reset_mem(), self.lif2.reset_mem(), []
            for x_t in x:
                spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                out.append(spk2)
            return torch.stack(out)

    for new in (st.PMSN, st.TCLIF):
        net, x = Net().to(DEVICE), torch.randn(9, 4, 20, device=DEVICE)
        swap_neurons(net, new, x)
        spikes = net(x)
        assert spikes.device.type == DEVICE and spikes.shape == (9, 4, 10)
        spikes.sum().backward()


def test_backends_by_name():
    net = resnet(sj.PMSNNode).double().to(DEVICE)
    x = torch.randn(4, 2, 3, 32, 32, device=DEVICE, dtype=torch.float64)
    outputs = []
    for backend in ("cupy", "torch"):
        for node in net.modules():
            if isinstance(node, sj.PMSNNode):
                node.backend = backend
        functional.reset_net(net)
        outputs.append(net.eval()(x))
    assert torch.allclose(*outputs, atol=1e-9)


@pytest.mark.parametrize("name", NEURONS)
def test_torch_compile(name, launches):
    net, x = NEURONS[name]().to(DEVICE), inputs(T, N, C, dtype=torch.float32).to(DEVICE)
    expected = result(net, x)
    reset(net)
    torch._dynamo.reset()
    compiled = torch.compile(net)
    del launches[:]
    x = x.clone().requires_grad_()
    spikes = spikes_of(compiled(x))
    assert torch.equal(spikes.detach().cpu(), expected[0])
    spikes.sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() > 0
    assert any(call.endswith("forward") for call in launches) and any(call.endswith("backward") for call in launches)


def test_graphed_network():
    """A training step as CUDA graphs, through PyTorch's own helper."""
    net = nn.Sequential(
        nn.Linear(20, C),
        sj.PMSNNode(C, step_mode="m", keep_state=False),
        nn.Linear(C, C),
        sj.TCLIFNode(step_mode="m", keep_state=False),
    ).to(DEVICE)
    x = torch.randn(T, N, 20, device=DEVICE, requires_grad=True)
    expected = result(net, x)
    graphed = torch.cuda.make_graphed_callables(net, (x,))
    assert_same(result(graphed, x), expected, 1e-5)


def test_gradient_checkpointing():
    node, x = NEURONS["PMSNNode"]().double().to(DEVICE), inputs(T, N, C).to(DEVICE)
    expected = result(node, x)
    for use_reentrant in (False, True):
        node.reset()

        def repeated(x, use_reentrant=use_reentrant):
            return checkpoint(node, x, use_reentrant=use_reentrant)

        repeated.parameters = node.parameters
        leaf = x.clone().requires_grad_()
        spikes = repeated(leaf)
        weight = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).to(spikes)
        (spikes * weight).sum().backward()
        assert torch.equal(spikes.detach().cpu(), expected[0])
        assert (leaf.grad.cpu() - expected[1]).abs().max() <= 1e-9 * expected[1].abs().max()


def test_threads_with_streams_of_their_own():
    nodes = [NEURONS["PMSNNode, no state"]().double().to(DEVICE) for _ in range(4)]
    x = inputs(300, 16, C).to(DEVICE)
    expected = [result(node, x) for node in nodes]
    found = [None] * len(nodes)
    torch.cuda.synchronize()

    def work(i):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(20):
                found[i] = result(nodes[i], x)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(nodes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for actual, want in zip(found, expected, strict=True):
        assert_same(actual, want, 0.0)


def test_no_memory_is_lost():
    net = nn.Sequential(nn.Linear(20, 64), sj.PMSNNode(64, step_mode="m"), sj.TCLIFNode(step_mode="m")).to(DEVICE)
    x, held = torch.randn(100, 8, 20, device=DEVICE), []
    for step in range(60):
        functional.reset_net(net)
        net(x).sum().backward()
        net.zero_grad(set_to_none=True)
        if step >= 10:
            held.append(torch.cuda.memory_allocated())
    assert held[-1] <= held[0]


def test_no_memory_left_is_said_and_survived():
    node = NEURONS["PMSNNode, no state"]().to(DEVICE)
    x = torch.randn(T, N, C, device=DEVICE)
    expected = node(x)
    huge = torch.zeros(1, 1, 1, 1, device=DEVICE).expand(1 << 20, 1 << 10, C, 64)
    with pytest.raises(torch.OutOfMemoryError):
        node(huge)
    assert torch.equal(node(x), expected)


SMALL = ["digits", "--network-option", "width=8", "--network-option", "blocks=1", "--quiet", "--save-every", "2"]


def curve(folder):
    with (folder / "curve.csv").open() as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


class Stop(BaseException):
    """Like a kill, but of the training alone."""


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_a_resumed_run_is_the_same(precision, tmp_path, monkeypatch):
    common = [*SMALL, "--amp", precision, "--device", DEVICE, "--epochs", "3", "--output-dir"]
    assert train.main([*common, str(tmp_path / "whole")]) == 0
    steps, step = [], torch.optim.AdamW.step

    def stopped(self, *args, **kwargs):
        steps.append(None)
        if len(steps) == 20:
            raise Stop
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch, contextlib.suppress(Stop):
        patch.setattr(torch.optim.AdamW, "step", stopped)
        train.main([*common, str(tmp_path / "parts")])
    assert len(steps) == 20
    assert train.main([*common, str(tmp_path / "parts"), "--resume"]) == 0
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
