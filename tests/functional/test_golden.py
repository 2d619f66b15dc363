"""Parity with numbers computed by the two papers' own code in float64."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pmsn_plugins.functional import (
    METHODS,
    PMSNParameters,
    discretize,
    pmsn_impulse_response,
    pmsn_initial_parameters,
    pmsn_sequence,
    tclif_sequence,
    triangle,
)

GOLDEN = Path(__file__).parents[1] / "golden"
PMSN_CASES = sorted(p.stem for p in GOLDEN.glob("pmsn_*.npz") if p.stem != "pmsn_initial_kernels")
TCLIF_CASES = sorted(p.stem for p in GOLDEN.glob("tclif_*.npz"))
AUTHORS_NAMES = {
    "log_dt": "log_dt",
    "log_decay": "log_A_real",
    "freq": "A_imag",
    "B_real": "B_real",
    "B_imag": "B_imag",
    "R_real": "C_real",
    "R_imag": "C_imag",
    "D": "D",
}


def load(case: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{case}.npz") as file:
        return {k: torch.from_numpy(file[k]) for k in file.files if file[k].dtype.kind == "f"}


def time_first(golden: dict, key: str) -> torch.Tensor:
    # [B, C, T] files hold three axes with the batch, not the time, in front
    value = golden[key]
    return value.permute(2, 0, 1) if value.shape[-1] == golden["kernel"].shape[-1] and value.ndim == 3 else value


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def test_all_golden_files_are_here():
    assert len(PMSN_CASES) == 8
    assert len(TCLIF_CASES) == 3


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", PMSN_CASES)
def test_pmsn_float64(case, method):
    golden = load(case)
    parameters = PMSNParameters(
        *(golden[f"param_{AUTHORS_NAMES[f]}"].clone().requires_grad_() for f in PMSNParameters._fields)
    )
    x = time_first(golden, "x").clone().requires_grad_()
    coefficients = discretize(parameters)
    T = len(x)
    torch.testing.assert_close(
        pmsn_impulse_response(coefficients, T), golden["kernel"] + _direct(golden, T), rtol=0, atol=1e-12
    )
    spikes = pmsn_sequence(x, coefficients, method=method).spikes
    assert torch.equal(spikes, time_first(golden, "spikes"))
    spikes.backward(time_first(golden, "grad_spikes"))
    assert relative(x.grad, time_first(golden, "grad_x")) < 1e-9
    for field in PMSNParameters._fields:
        assert relative(getattr(parameters, field).grad, golden[f"grad_{AUTHORS_NAMES[field]}"]) < 1e-9, field


def _direct(golden: dict, T: int) -> torch.Tensor:
    """The authors' kernel leaves the direct gain out."""
    return torch.nn.functional.pad(golden["param_D"][:, None], (0, T - 1))


def test_pmsn_float32_changes_at_most_one_spike_in_ten_thousand():
    wrong = total = 0
    for case in PMSN_CASES:
        golden = load(case)
        parameters = PMSNParameters(*(golden[f"param_{AUTHORS_NAMES[f]}"].float() for f in PMSNParameters._fields))
        spikes = pmsn_sequence(time_first(golden, "x").float(), discretize(parameters)).spikes
        wrong += (spikes != time_first(golden, "spikes")).sum().item()
        total += spikes.numel()
    assert total > 10_000
    assert wrong <= total / 10_000


def test_pmsn_initial_kernels():
    golden = load("pmsn_initial_kernels")
    assert len(golden) == 45
    for key, expected in golden.items():
        preset, k, dt = key.split("_")
        preset = "static" if preset == "imagenet" else preset
        initial = pmsn_initial_parameters(1, int(k[1:]) + 1, preset, dtype=torch.float64)
        initial = initial._replace(
            log_dt=torch.tensor([float(dt[2:])], dtype=torch.float64).log(), D=torch.zeros(1, dtype=torch.float64)
        )
        response = pmsn_impulse_response(discretize(initial), len(expected))[0]
        torch.testing.assert_close(response, expected, rtol=0, atol=1e-6, msg=key)


class _FloatReset(torch.autograd.Function):
    """``v - amount * spike`` with a float32 spike, rounding its gradient once, as the authors' scripted reset does."""

    @staticmethod
    def forward(ctx, v, spike, amount):
        ctx.amount = amount
        return v - spike * amount

    @staticmethod
    def backward(ctx, grad):
        return grad, (-grad * ctx.amount).float(), None


def _tclif_equations(x, c, gamma, v_threshold, rounded):
    """The TC-LIF equations one by one, ``rounded`` with the float32 spikes the authors' code has in float64."""
    v = v_dendrite = torch.zeros_like(x[0])
    spikes, v_seq, v_dendrite_seq = [], [], []
    for x_t in x:
        v_dendrite = v_dendrite - torch.sigmoid(c[0]) * v + x_t
        v = v + torch.sigmoid(c[1]) * v_dendrite
        spike = triangle()(v - v_threshold)
        if rounded:
            spike = spike.float()
            v_dendrite = _FloatReset.apply(v_dendrite, spike, gamma)
            v = _FloatReset.apply(v, spike, v_threshold)
        else:
            v_dendrite = v_dendrite - gamma * spike
            v = v - v_threshold * spike
        spikes.append(spike)
        v_seq.append(v)
        v_dendrite_seq.append(v_dendrite)
    return torch.stack(spikes), torch.stack(v_seq), torch.stack(v_dendrite_seq)


@pytest.mark.parametrize("case", TCLIF_CASES)
def test_tclif(case):
    """The golden run mixes float32 spikes into float64, which alone moves its gradients by 1e-7.

    The equations with the same rounding reproduce it to 1e-9; our function equals the equations without rounding to
    1e-12, and therefore the golden run to float32 accuracy.
    """
    golden = load(case)
    gamma, v_threshold = golden["gamma"].item(), golden["v_threshold"].item()

    def equations(rounded):
        x, c = golden["x"].clone().requires_grad_(), golden["c"].clone().requires_grad_()
        spikes, v_seq, v_dendrite_seq = _tclif_equations(x, c, gamma, v_threshold, rounded)
        (spikes * golden["grad_spikes"]).sum().backward()
        return spikes, v_seq, v_dendrite_seq, x.grad, c.grad

    spikes, v_seq, v_dendrite_seq, grad_x, grad_c = equations(rounded=True)
    assert torch.equal(spikes, golden["spikes"])
    torch.testing.assert_close(v_seq, golden["v_soma"], rtol=0, atol=1e-12)
    torch.testing.assert_close(v_dendrite_seq, golden["v_dendrite"], rtol=0, atol=1e-12)
    assert relative(grad_x, golden["grad_x"]) < 1e-9
    assert relative(grad_c, golden["grad_c"]) < 1e-9

    x, c = golden["x"].clone().requires_grad_(), golden["c"].clone().requires_grad_()
    output = tclif_sequence(
        x, -torch.sigmoid(c[0]), torch.sigmoid(c[1]), gamma=gamma, v_threshold=v_threshold, return_v_seq=True
    )
    output.spikes.backward(golden["grad_spikes"])
    spikes, v_seq, v_dendrite_seq, grad_x, grad_c = equations(rounded=False)
    assert torch.equal(output.spikes, spikes)
    assert torch.equal(output.spikes.float(), golden["spikes"])
    torch.testing.assert_close(output.v_seq, v_seq, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.state.v_dendrite, v_dendrite_seq[-1], rtol=0, atol=1e-12)
    assert relative(x.grad, grad_x) < 1e-12
    assert relative(c.grad, grad_c) < 1e-12
    assert relative(x.grad, golden["grad_x"]) < 1e-6
    assert relative(c.grad, golden["grad_c"]) < 1e-6
