"""The benchmark: its baselines compute what they claim, its checks catch a wrong kernel, its command reports."""

import itertools
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from pmsn_plugins import functional, kernels
from pmsn_plugins.bench import __main__ as command
from pmsn_plugins.bench import checks, recurrent, steps, variants
from pmsn_plugins.bench.contenders import FFTPMSN, PMSN, Contender, PlainTCLIF, contenders
from pmsn_plugins.bench.measure import Measurement, measure
from pmsn_plugins.functional import pmsn_sequence

CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [(100, 3, 5), (50, 2, 3, 4, 2)])
def test_the_fft_baseline_is_a_pmsn(shape):
    layer = FFTPMSN(shape).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    spikes, expected = layer(x), pmsn_sequence(x, layer.coefficients()).spikes
    assert torch.equal(spikes, expected)
    weight = torch.randn_like(spikes)
    wrt = [x, *layer.parameters()]
    for a, b in zip(torch.autograd.grad(spikes, wrt, weight), torch.autograd.grad(expected, wrt, weight), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_every_contender_maps_a_sequence_to_spikes():
    shape = (12, 2, 3)
    found = contenders(CPU)
    assert {"PMSN (torch)", "TC-LIF (torch)", "PMSN, FFT (the paper's method)"} <= {c.name for c in found}
    for contender in found:
        x = torch.randn(shape, requires_grad=True)
        if contender.make is PlainTCLIF and shutil.which("g++") is None:
            continue  # the table says that it is left out
        spikes = contender.make(shape)(x)
        assert spikes.shape == shape, contender.name
        assert set(spikes.unique().tolist()) <= {0.0, 1.0}, contender.name
        spikes.sum().backward()
        assert x.grad.isfinite().all(), contender.name


@pytest.mark.parametrize("name", ["SpikingJelly FlexSN, TC-LIF", "TC-LIF, plain loop, torch.compile"])
@pytest.mark.parametrize("T", [3, 7])
def test_other_ways_to_tclif(name, T):
    found = {c.name: c for c in contenders(CPU)}
    if name not in found or ("compile" in name and shutil.which("g++") is None):
        pytest.skip("not here")
    x = torch.randn(T, 3, 5)
    assert torch.equal(found[name].make(x.shape)(x), found["TC-LIF (torch)"].make(x.shape)(x))


def test_steps_print_their_goals(monkeypatch, capsys):
    monkeypatch.setattr(steps, "SHAPES", [(40, 128)])
    monkeypatch.setattr(steps, "_fastest", lambda calls, rounds: _called(calls))
    found = list(steps.steps((40, 128)))
    results = steps.run_steps(quick=True)
    assert [r["name"] for r in results] == found
    printed = capsys.readouterr().out
    ours = [name for name in found if name.startswith(("TCLIF", "PMSN"))]
    ratios = ", ".join(f"{name} {found.index(name) + 1:.2f}" for name in ours)
    assert f"times as long as six operations of torch: {ratios} (goal: at most 3)" in printed


@pytest.mark.parametrize("missing", ["spikingjelly.activation_based", "snntorch"])
def test_steps_without_a_framework(missing, monkeypatch):
    for module in ("spikingjelly.activation_based", "snntorch"):
        pytest.importorskip(module)
    everything = steps.steps((4, 5))
    monkeypatch.setitem(sys.modules, missing, None)
    theirs = {"snntorch": {"snnTorch Leaky", "TCLIF", "PMSN", "TCLIF, states passed", "PMSN, states passed"}}.get(
        missing, {steps.LIF, "TCLIFNode", "PMSNNode"}
    )
    assert everything.keys() - steps.steps((4, 5)).keys() == theirs


def test_only_what_was_asked_for_is_timed(tmp_path, capsys):
    record = tmp_path / "record.json"
    common = ["--device", "cpu", "--quick", "--json", str(record), "--shape", "8,2,16", "--only"]
    assert command.main([*common, "FFT", "TC-LIF (torch)"]) == 0
    names = [row["name"] for row in json.loads(record.read_text())["results"]]
    assert names[1:] == ["TC-LIF (torch)", "PMSN, FFT (the paper's method)"] and names[0].startswith("PMSN (")
    with pytest.raises(SystemExit, match=r"--only 'fft': in the name of no contender \(PMSN \("):
        command.main([*common, "fft"])


@pytest.mark.parametrize(
    ("argv", "refused"),
    [
        ("--check --quick", "argument --quick: says nothing about what --check runs"),
        ("--steps --only FFT", "argument --only: says nothing about what --steps runs"),
        ("--recurrent --shape 8,2,16", "argument --shape: says nothing about what --recurrent runs"),
        ("--steps --plot figure.png", "argument --plot: says nothing about what --steps runs"),
        ("--steps --recurrent", "not allowed with argument --steps"),
    ],
)
def test_an_option_without_a_meaning_is_refused_before_anything_runs(argv, refused, monkeypatch, capsys):
    monkeypatch.setattr(command, "run_checks", None)
    with pytest.raises(SystemExit, match="2"):
        command.main(["--device", "cpu", *argv.split()])
    assert refused in capsys.readouterr().err


def test_the_fastest_round_counts(monkeypatch):
    now = 0.0
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: now))

    def lasting(seconds):
        def call():
            nonlocal now
            now += next(seconds)

        return call

    calls = {"slow": lasting(iter([9.0, 3.0, 9.0, 2.0])), "quick": lasting(itertools.repeat(2**-10))}
    assert steps._fastest(calls, 2) == {"slow": 2.0, "quick": 2**-10}  # the first call of each round is not timed


def test_the_six_operations_are_tclif():
    step, reference = steps._operations((4, 5)), None
    for x in torch.randn(6, 4, 5):
        spikes, reference = functional.tclif_step(x, -0.5, 0.5, reference)
        assert torch.equal(step(x), spikes)


def test_the_checks_pass_and_catch_a_wrong_kernel(monkeypatch):
    assert all(check.passed for check in checks.run_checks(CPU, quick=True))
    right = kernels.pmsn_sequence

    def wrong(x, *args, **kwargs):
        output = right(x, *args, **kwargs)
        return output._replace(spikes=output.spikes.roll(1, 0))

    monkeypatch.setattr(kernels, "pmsn_sequence", wrong)
    found = checks.run_checks(CPU, quick=True)
    assert not any(check.passed for check in found if check.name == "PMSN (torch)")


def test_measurement_counts_what_is_kept():
    class Square(torch.nn.Module):
        def forward(self, x):
            return x * x.exp()

    result = measure("square", Square(), (8, 4, 4), CPU, budget_s=0.01)
    assert 0 < result.forward_s < result.forward_backward_s * 100
    assert result.kept_bytes == 2 * 8 * 4 * 4 * 4  # the input and its exponential
    kept = measure("pmsn", PMSN((64, 8, 16), "torch"), (64, 8, 16), CPU, budget_s=0.01).kept_bytes
    assert kept > 64 * 8 * 16 * 4


def test_measurement_finds_the_peak():
    class Through(torch.nn.Module):
        def forward(self, x):
            return (x.repeat(100) * x.repeat(100)).view(100, -1).sum(0)

    result = measure("through", Through(), (4000,), CPU, budget_s=0.01)
    # forward holds the two copies and their product, backward the two copies and up to four gradients of this size
    assert 3 * 400_000 * 4 <= result.peak_bytes <= 7 * 400_000 * 4


def test_command(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "QUICK_SHAPES", [(4, 2, 128), (16, 2, 128)])
    monkeypatch.setattr(command, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(
        command, "measure", lambda name, layer, shape, *_: Measurement(name, shape[0], shape, 1e-3, 2e-3, 96, 96)
    )
    record, figure = tmp_path / "bench.json", tmp_path / "bench.png"
    arguments = ["--device", "cpu", "--quick", "--json", str(record), "--plot", str(figure)]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "copy bandwidth 10.0 GB/s" in printed
    assert "2.00 ms     1.0" in printed
    results = json.loads(record.read_text())["results"]
    assert {tuple(r["shape"]) for r in results} == {(4, 2, 128), (16, 2, 128)}
    assert figure.stat().st_size > 1000
    assert command.main(["--device", "cpu", "--quick", "--json", str(record), "--shape", "8,2,128", "4,2,128,3"]) == 0
    assert f", {kernels.backends()['cpu'].reason}, " in capsys.readouterr().out  # which instruction set it was
    written = json.loads(record.read_text())
    assert {tuple(r["shape"]) for r in written["results"]} == {(8, 2, 128), (4, 2, 128, 3)}
    assert written["kernels"] == kernels.backends()["cpu"].reason
    for wrong in ("8,2", "8,0,3", "8x2x3"):
        with pytest.raises(SystemExit):
            command.main(["--device", "cpu", "--shape", wrong])
        assert repr(wrong) in capsys.readouterr().err


def test_the_recurrent_contenders_compute_what_they_say():
    found = {c.name: c for c in recurrent.contenders()}
    assert next(iter(found)) == recurrent.OURS and recurrent.PLAIN in found
    x = 2 * torch.rand(20, 2, 6, dtype=torch.float64)
    ours = found[recurrent.OURS].make(6).double()
    expected = ours(x)
    assert expected.any()
    for name, contender in found.items():
        layer = contender.make(6)
        if name.startswith("TC-LIF"):
            layer = layer.double()
            (layer.layer if contender.copies else layer).load_state_dict(_in_container(ours, contender.copies))
            for _ in range(2):  # nothing is left of the sequence before
                assert torch.equal(layer(x), expected), name
        else:
            spikes = layer(x.float())  # snnTorch's spikes are
            assert spikes.shape == x.shape and set(spikes.unique().tolist()) <= {0.0, 1.0}, name


def _in_container(layer, wanted):
    state = layer.state_dict()
    if not wanted:
        return state
    return {
        **{f"sub_module.{name}": state[name] for name in ("c1", "c2")},
        **{f"element_wise_function.linear.{name}": state[f"recurrent.{name}"] for name in ("weight", "bias")},
    }


def test_the_bias_gives_the_firing_rate():
    for channels in (5, 40):
        layer = recurrent.Recurrent(channels)
        torch.nn.init.constant_(layer.recurrent.bias, recurrent.bias_for_rate(channels))
        assert 0.7 < layer(torch.randn(200, 20, channels)).mean() / recurrent.RATE < 1.4


def test_the_recurrent_goals_are_printed_for_one_thread_and_two(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(recurrent, "LENGTHS", (4, 8))
    monkeypatch.setattr(recurrent, "WIDTHS", (40,))
    monkeypatch.setattr(recurrent, "BATCH", 2)
    monkeypatch.setattr(recurrent, "_interleaved", lambda calls, rounds: _called(calls))
    monkeypatch.setattr(command, "copy_bandwidth", lambda device: 1e10)
    monkeypatch.setattr(command, "run_checks", lambda *_: [])
    threads, record = torch.get_num_threads(), tmp_path / "bench.json"
    assert command.main(["--device", "cpu", "--quick", "--recurrent", "--json", str(record)]) == 0
    assert torch.get_num_threads() == threads
    printed = capsys.readouterr().out
    assert "firing rate 0.1, 1 thread\n" in printed and "firing rate 0.1, 2 threads\n" in printed
    assert printed.count("width 40: 3.0 times as fast as the plain loop at T = 4 (goal on one thread: 25)") == 2
    results = json.loads(record.read_text())["recurrent"]
    assert {(r["threads"], tuple(r["shape"])) for r in results} == {(1, (4, 2, 40)), (2, (4, 2, 40))}


def _called(calls):
    for call in calls.values():
        call()
    return {name: float(i) for i, name in enumerate(calls, 1)}


def test_each_contender_is_timed_twice_and_the_faster_counts(monkeypatch, capsys):
    times = {
        "PMSN (torch)": iter([(2e-3, 5e-3), (3e-3, 4e-3)]),
        "TC-LIF (torch)": iter([(1.0, 2.0)]),
        "PMSN, FFT (the paper's method)": iter([(3e-3, 4e-3), (2e-3, 5e-3)]),
    }

    def fake(name, layer, shape, *_):
        if name not in times:
            raise ValueError("takes no such input")
        return Measurement(name, shape[0], shape, *next(times[name]), 96, 96)

    monkeypatch.setattr(command, "measure", fake)
    monkeypatch.setattr(command, "contenders", lambda device: [c._replace(fused=False) for c in contenders(device)])
    rows = command._measure_shape((4, 2, 3), CPU, budget_s=0.4)
    assert [(r.forward_s, r.forward_backward_s) for r in rows] == [(2e-3, 4e-3), (1.0, 2.0), (2e-3, 4e-3)]
    left_out = [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert left_out == [c.name for c in contenders(CPU) if c.name not in times]  # each said once


def test_command_times_nothing_when_a_kernel_is_wrong(capsys, monkeypatch):
    bad = [checks.Check("PMSN (torch)", torch.float32, (4, 2, 3), 0.5, 0.1)]
    monkeypatch.setattr(command, "run_checks", lambda *_: bad)
    assert command.main(["--device", "cpu", "--quick"]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shape", "4,x,3"], "must be three numbers or more, all above 0: T,N,C,*, got '4,x,3'"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
        (["--device", "cpu", "--json", "/no/such/folder/b.json"], "the folder /no/such/folder does not exist"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        command.main(arguments)
    assert message in str(error.value) + capsys.readouterr().err


def test_a_fault_of_ours_is_not_left_out(monkeypatch):
    """Others may be unable to take a shape; our kernels have no excuse."""

    def failing(shape):
        raise RuntimeError("out of order")

    for fused in (False, True):
        monkeypatch.setattr(command, "contenders", lambda device, fused=fused: [Contender("x", failing, fused=fused)])
        if fused:
            with pytest.raises(RuntimeError, match="out of order"):
                command._measure_shape((4, 2, 3), CPU, 0.01)
        else:
            assert command._measure_shape((4, 2, 3), CPU, 0.01) == []


def test_every_variant_is_checked(capsys, monkeypatch):
    chosen = [*variants.variants()][::12]
    monkeypatch.setattr(variants, "variants", lambda: chosen)
    if not kernels.backends()["cpu"].available:
        pytest.skip(kernels.backends()["cpu"].reason)
    assert command.main(["--device", "cpu", "--check"]) == 0
    assert f"{len(chosen)} of {len(chosen)} variants agree with the reference on cpu" in capsys.readouterr().out
    monkeypatch.setattr(variants.PmsnVariant, "trial", lambda *args: "spikes differ")
    assert command.main(["--device", "cpu", "--check"]) == 1
    wrong = sum(isinstance(variant, variants.PmsnVariant) for variant, _ in chosen)
    assert f"WRONG, {wrong} of {len(chosen)} variants: spikes differ\n  PmsnVariant(" in capsys.readouterr().out
