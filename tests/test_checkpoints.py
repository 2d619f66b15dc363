"""State_dicts of the papers' scripts in our networks, SpikingJelly's and snnTorch's nets."""

import argparse
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pmsn_plugins import snntorch as ours_snntorch
from pmsn_plugins.checkpoints import convert_neuron, load_authors_checkpoint
from pmsn_plugins.models import feedforward, neuron_factory, pixel_cifar, reset_states, residual
from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode

GOLDEN = Path(__file__).parent / "golden"
PMSN_CASES = ["pmsn_sequential_n4", "pmsn_shd", "pmsn_imagenet", "pmsn_sequential_n1"]
TCLIF_CASES = ["tclif_smnist", "tclif_psmnist_rec", "tclif_gsc"]
TIME_FIRST = {"TBC": (0, 1, 2), "BCT": (2, 0, 1), "TBCHW": (0, 1, 2, 3, 4)}
PMSN, TCLIF = neuron_factory("pmsn"), neuron_factory("tclif")


def pmsn_state(channels=None, k=4, case=None, names="VinvB CV", prefix=""):
    """One PMSN as a script saves it: D outside, the rest in a submodule called kernel."""
    if case is not None:
        given = {key.removeprefix("param_"): torch.from_numpy(case[key]) for key in case if key.startswith("param_")}
    else:
        shapes = {"D": (channels,), "log_dt": (channels,)}
        matrices = ("log_A_real", "A_imag", "B_real", "B_imag", "C_real", "C_imag")
        given = {name: torch.randn(shapes.get(name, (channels, k))) for name in (*shapes, *matrices)}
    b, c = names.split()
    renamed = {re.sub("^C_", f"{c}_", re.sub("^B_", f"{b}_", name)): value for name, value in given.items()}
    return {prefix + ("D" if name == "D" else f"kernel.{name}"): value for name, value in renamed.items()}


def linear(out_features, in_features, prefix, extra=()):
    return {
        f"{prefix}.weight": torch.randn(out_features, in_features, *extra),
        f"{prefix}.bias": torch.randn(out_features),
    }


def norm(width, prefix):
    state = {f"{prefix}.{name}": torch.rand(width) for name in ("weight", "bias", "running_mean", "running_var")}
    return {**state, f"{prefix}.num_batches_tracked": torch.tensor(7)}


@pytest.mark.parametrize("case", PMSN_CASES)
@pytest.mark.parametrize("names", ["VinvB CV", "B C"])
def test_pmsn_gives_the_authors_spikes_in_both_frameworks(case, names):
    golden = np.load(GOLDEN / f"{case}.npz")
    axes = TIME_FIRST[str(golden["layout"])]
    x, expected = (torch.from_numpy(golden[key]).permute(axes) for key in ("x", "spikes"))
    channels, k = golden["param_A_imag"].shape
    for node in (
        PMSNNode(channels, n_compartments=k + 1, step_mode="m"),
        ours_snntorch.PMSN(channels, n_compartments=k + 1, output=False),
    ):
        load_authors_checkpoint(node.double(), pmsn_state(case=golden, names=names))
        assert torch.equal(node(x), expected)


@pytest.mark.parametrize("case", TCLIF_CASES)
@pytest.mark.parametrize("shape", [(1, 2), (2,)])
def test_tclif_gives_the_authors_spikes_in_both_frameworks(case, shape):
    golden = np.load(GOLDEN / f"{case}.npz")
    x, expected = torch.from_numpy(golden["x"]), torch.from_numpy(golden["spikes"]).double()
    state = {"decay_factor": torch.from_numpy(golden["c"]).view(shape)}
    gamma, theta = float(golden["gamma"]), float(golden["v_threshold"])
    node = TCLIFNode(gamma=gamma, v_threshold=theta, step_mode="m").double()
    load_authors_checkpoint(node, state)
    assert torch.equal(node(x), expected)
    layer = ours_snntorch.TCLIF(gamma=gamma, threshold=theta).double()
    load_authors_checkpoint(layer, state)
    torch.testing.assert_close([layer.c1.item(), layer.c2.item()], golden["c"].tolist())


def script_smnist(width=8, layers=3):
    """Names and order of the S-MNIST script: neurons, convolutions and norms in lists."""
    state = linear(width, 1, "encoder")
    for i in range(layers):
        state |= pmsn_state(width, prefix=f"PMSN_layers.{i}.")
    for i in range(layers - 1):
        state |= linear(width, width, f"linear_layers.{i}", (1,))
    for i in range(layers):
        state |= norm(width, f"norms.{i}")
    return state | linear(10, width, "decoder")


def test_smnist_script(tmp_path):
    state = script_smnist()
    path = tmp_path / "checkpoint.pth.tar"
    torch.save({"epoch": 3, "best_acc": argparse.Namespace(top1=1), "state_dict": state, "optimizer": {}}, path)
    net = residual(1, 8, 2, 10, PMSN)
    load_authors_checkpoint(net, path)
    assert torch.equal(net[0].weight, state["encoder.weight"])
    assert torch.equal(net[4].body[0].weight, state["linear_layers.1.weight"][..., 0])
    assert torch.equal(net[3].body[1].running_var, state["norms.1.running_var"])
    assert torch.equal(net[4].body[2].R_imag, state["PMSN_layers.2.kernel.CV_imag"])
    assert torch.equal(net[5].bias, state["decoder.bias"])


def test_plain_nets_of_both_frameworks_take_it_too():
    state = linear(6, 5, "hidden1.0") | pmsn_state(6, prefix="hidden1.1.") | linear(3, 6, "fc.0")
    spikes = []
    x = torch.randn(9, 2, 5)
    for neuron in (PMSNNode(6, step_mode="m"), ours_snntorch.PMSN(6, output=False)):
        net = nn.Sequential(nn.Linear(5, 6), neuron, nn.Linear(6, 3))
        load_authors_checkpoint(net, {"best_net": state, "best_acc": 0.9})
        spikes.append(net(x))
    torch.testing.assert_close(*spikes)


def test_cifar_script_with_its_unused_convolutions():
    state = linear(128, 3, "encoder")
    for stage, width in (("", 128), ("2", 256)):
        if stage:
            state |= linear(256, 32, "fc1")
        for i in range(3):
            state |= pmsn_state(width, prefix=f"PMSN_layers{stage}.{i}.")
        for i in range(3):
            state |= linear(width, width, f"linear_layers{stage}.{i}", (1,))
        for i in range(3):
            state |= norm(width, f"norms{stage}.{i}")
    state |= linear(10, 64, "decoder")
    net = pixel_cifar(PMSN)
    load_authors_checkpoint(net, state)
    weights = [m for m in net.modules() if isinstance(m, nn.Linear)]
    names = ["encoder", "linear_layers.0", "linear_layers.1", "fc1", "linear_layers2.0", "linear_layers2.1", "decoder"]
    for layer, name in zip(weights, names, strict=True):
        assert torch.equal(layer.bias, state[f"{name}.bias"])


def test_recurrent_tclif_script():
    state = linear(6, 5, "module.features.0") | linear(6, 6, "module.features.1.hid_weight")
    state["module.features.1.sub_module.decay_factor"] = torch.tensor([[0.3, -0.4]])
    state |= linear(7, 6, "module.features.2") | {"module.features.3.decay_factor": torch.tensor([[1.0, 2.0]])}
    state |= linear(3, 7, "module.features.4")
    net = feedforward((5, 6, 7, 3), TCLIF, feedback=(0,))
    load_authors_checkpoint(net, state)
    assert torch.equal(net[1].recurrent.weight, state["module.features.1.hid_weight.weight"])
    assert net[1].c2.item() == pytest.approx(-0.4) and net[3].c1.item() == 1.0
    net(torch.randn(4, 2, 5))
    reset_states(net)


def tclif_script(recurrent):
    """Names of the TC-LIF scripts; ``recurrent`` says which layers have feedback."""
    state, position = {}, 0
    for i, feedback in enumerate(recurrent):
        state |= linear(6, 6 if i else 1, f"features.{position}")
        if feedback:
            state |= linear(6, 6, f"features.{position + 1}.hid_weight")
        inside = ".sub_module" if feedback else ""
        state[f"features.{position + 1}{inside}.decay_factor"] = torch.zeros(1, 2)
        position += 2
    return state | linear(10, 6, f"features.{position}")


@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
def test_the_threshold_that_the_recurrent_mnist_script_ignores(framework, recwarn):
    def load(threshold, recurrent):
        neuron = neuron_factory("tclif", framework=framework, v_threshold=threshold)
        feedback = [i for i, has in enumerate(recurrent) if has]
        net = feedforward((1, *(6 for _ in recurrent), 10), neuron, feedback=feedback)
        load_authors_checkpoint(net, tclif_script(recurrent))

    load(1.0, (True, True, False))  # the script's own
    for recurrent in ((False, False, False), (True, False), (True, True)):  # MNIST feedforward, GSC, SHD
        load(1.8, recurrent)
    assert not recwarn
    message = r"1(\.neuron)? has threshold 1.8, but the script .* ignores its --threshold: its neurons fire at 1.0"
    with pytest.warns(UserWarning, match=message) as caught:
        load(1.8, (True, True, False))
    assert len(caught) == 1 and caught[0].filename == __file__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s | {"PMSN_layers.0.kernel.A_phase": torch.zeros(8)}, "unknown .'A_phase'"),
        (lambda s: s | {"attention.q": torch.zeros(8, 8)}, "attention holds q .8, 8.: no layer"),
        (lambda s: {k: v for k, v in s.items() if "log_dt" not in k}, "missing .'log_dt'"),
        (
            lambda s: {k: v for k, v in s.items() if "norms.2" not in k},
            "2 norm layers .norms.0, norms.1., this network has 3",
        ),
        (lambda s: s | pmsn_state(8, k=3, prefix="PMSN_layers.0."), "PMSN_layers.0.log_decay has shape .8, 3."),
        (lambda s: s | linear(9, 8, "decoder"), r"decoder.weight has shape \(9, 8\), this network's \(10, 8\)"),
        (lambda s: s | {"encoder.weight": torch.full((8, 1), torch.nan)}, "encoder.weight holds NaN"),
        (lambda s: {k: v for k, v in s.items() if k != "encoder.bias"}, "encoder holds .'weight'., this network's"),
        (lambda s: {"traces": s}, "no state_dict found"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(change, message):
    net = residual(1, 8, 2, 10, PMSN)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_authors_checkpoint(net, change(script_smnist()))
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_files_that_cannot_be_read(tmp_path):
    net, path = residual(1, 8, 2, 10, PMSN), tmp_path / "checkpoint.pth"
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*checkpoint\.pth"):
        load_authors_checkpoint(net, path)
    path.write_text("text")
    with pytest.raises(ValueError, match=r"checkpoint\.pth is damaged, no checkpoint"):
        load_authors_checkpoint(net, path)
    torch.save({"state_dict": script_smnist(), "criterion": nn.CrossEntropyLoss()}, path)
    with pytest.raises(ValueError, match=r"holds more than tensors.*weights_only=False"):
        load_authors_checkpoint(net, path)


def test_convert_neuron_refuses_a_third_coupling():
    with pytest.raises(ValueError, match=r"two numbers.*\(3,\)"):
        convert_neuron({"decay_factor": torch.zeros(3)})
