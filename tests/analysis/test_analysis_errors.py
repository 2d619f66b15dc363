"""Bad arguments of the analyses: the error names the argument, its value and what is allowed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pmsn_plugins import analysis as A
from pmsn_plugins import nir
from pmsn_plugins.checkpoints import convert_neuron, load_authors_checkpoint
from pmsn_plugins.spikingjelly import PMSNNode, TCLIFNode

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), PMSNNode(4, step_mode="m"), nn.Linear(4, 2))


X, TARGET = 20 * torch.rand(6, 2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1])
BATCHES = [(X, TARGET)]
COST = A.pmsn_cost(5)
RECORD = {"name": "PMSN, serial reset (torch)", "T": 4, "shape": [4, 1, 1], "forward_s": 1.0, "forward_backward_s": 1.0}


def mean_loss(output, target):
    return nn.functional.cross_entropy(output[-1], target)


@pytest.mark.parametrize("value", [None, 3, "net", []])
def test_nets(value):
    for call in (
        A.impulse_response,
        A.oscillations,
        A.filter_normalised_direction,
        lambda net: A.measure_energy(net, BATCHES),
        lambda net: A.gradient_over_time(net, X, TARGET),
        lambda net: A.loss_landscape(net, BATCHES, mean_loss),
        lambda net: load_authors_checkpoint(net, {}),
    ):
        with pytest.raises(TypeError, match=r"net must be a torch.nn.Module, got"):
            call(value)


@pytest.mark.parametrize("value", [None, "3", 3.0, True, NAN, [], torch.tensor(3)])
def test_sizes_and_seeds_that_are_no_integers(net, value):
    response = A.impulse_response(net, 3)["1"]
    for name, call in (
        ("T", lambda: A.impulse_response(net, value)),
        ("channel", lambda: A.plot_impulse_response(response, value)),
        ("points", lambda: A.norm_plane(value)),
        ("n_compartments", lambda: A.pmsn_cost(value)),
        ("T", lambda: A.psn_cost(value)),
        ("k", lambda: A.sliding_psn_cost(value)),
        ("fan_in", lambda: A.step_energy(value, 1, 0.0, 0.0, COST)),
        ("neurons", lambda: A.step_energy(1, value, 0.0, 0.0, COST)),
        ("fan_in", lambda: A.lstm_step_energy(value, 1)),
        ("neurons", lambda: A.lstm_step_energy(1, value)),
        ("T", lambda: A.compare_gradients(T=value)),
        ("width", lambda: A.compare_gradients(width=value)),
        ("batch", lambda: A.compare_gradients(batch=value)),
        ("seed", lambda: A.compare_gradients(seed=value)),
        ("points", lambda: A.loss_landscape(net, BATCHES, mean_loss, points=value)),
        ("seed", lambda: A.loss_landscape(net, BATCHES, mean_loss, seed=value)),
        ("n_compartments", lambda: A.compartment_sweep((value,))),
        ("seeds", lambda: A.reset_ablation(seeds=(value,))),
        ("epochs", lambda: A.quadrant_search(epochs=value)),
        ("width", lambda: A.compartment_sweep(width=value)),
        ("features", lambda: nir.to_nir(TCLIFNode(), value)),
    ):
        with pytest.raises(TypeError, match=f"{name} must be an integer, got"):
            call()


def test_sizes_and_seeds_that_are_too_small(net):
    response = A.impulse_response(net, 3)["1"]
    for message, call in (
        ("channel must be at least 0, got -1", lambda: A.plot_impulse_response(response, -1)),
        (r"channel must be in 0\.\.3, got 4", lambda: A.plot_impulse_response(response, 4)),
        ("T must be at least 1, got 0", lambda: A.psn_cost(0)),
        ("T must be at least 1, got 0", lambda: A.compare_gradients(T=0)),
        ("seed must be at least 0, got -1", lambda: A.compare_gradients(seed=-1)),
        ("seed must be at least 0, got -1", lambda: A.loss_landscape(net, BATCHES, mean_loss, seed=-1)),
        ("seeds must be at least 0, got -1", lambda: A.compartment_sweep(seeds=(-1,))),
        ("features must be at least 1, got 0", lambda: nir.to_nir(TCLIFNode(), 0)),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("value", ["no", 0, 1, None, NAN, []])
def test_flags(value):
    for name, call in (
        ("recurrent", lambda: A.step_energy(1, 1, 0.0, 0.0, COST, recurrent=value)),
        ("recurrent", lambda: A.lstm_step_energy(1, 1, recurrent=value)),
    ):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got"):
            call()


NUMBERS = [
    ("0.5", TypeError, "must be a real number, got '0.5'"),
    (None, TypeError, "must be a real number, got None"),
    (True, TypeError, "must be a real number, got True"),
    (1j, TypeError, "must be a real number, got 1j"),
    (NAN, ValueError, "must be (finite|a finite number above 0), got nan"),
    (INF, ValueError, "must be (finite|a finite number above 0), got inf"),
]


@pytest.mark.parametrize(("value", "error", "message"), [*NUMBERS, (-1.0, ValueError, "must be .*, got -1.0")])
def test_rates_costs_and_spans(net, value, error, message):
    for name, call in (
        ("rate_in", lambda: A.step_energy(1, 1, value, 0.0, COST)),
        ("rate_out", lambda: A.step_energy(1, 1, 0.0, value, COST)),
        ("cost.mac", lambda: A.step_energy(1, 1, 0.0, 0.0, COST._replace(mac=value))),
        ("cost.ac_per_spike", lambda: A.step_energy(1, 1, 0.0, 0.0, COST._replace(ac_per_spike=value))),
        ("costs of PMSNNode.ac", lambda: A.measure_energy(net, BATCHES, {PMSNNode: COST._replace(ac=value)})),
        ("span", lambda: A.loss_landscape(net, BATCHES, mean_loss, span=value)),
        ("sizes", lambda: A.quadrant_search((value,))),
        ("energy_nj of 'a'", lambda: A.plot_accuracy_energy([A.EnergyPoint("a", 50.0, value)])),
        ("forward_backward_s of .*", lambda: A.acceleration([{**RECORD, "forward_backward_s": value}])),
        ("forward_s of .*", lambda: A.acceleration([{**RECORD, "forward_s": value}])),
    ):  # fmt: skip
        with pytest.raises(error, match=f"{name} {message}"):
            call()


@pytest.mark.parametrize(("value", "error", "message"), NUMBERS)
def test_accuracies(value, error, message):
    with pytest.raises(error, match=f"accuracy of 'a' {message}"):
        A.plot_accuracy_energy([A.EnergyPoint("a", value, 1.0)])
    for plot, key in (
        (A.plot_compartment_sweep, 2),
        (A.plot_reset_ablation, "modulo"),
        (A.plot_quadrant_search, (0, 1)),
    ):
        with pytest.raises(error, match=f"accuracy in runs {message}"):
            plot([A.Run(key, 0, value)])


def test_couplings_of_two_shapes():
    for function in (A.tclif_jacobian, A.tclif_infinity_norm):
        with pytest.raises(ValueError, match=r"b1 and b2 must be of one shape, got \(3,\) and \(2,\)"):
            function([1.0, 2.0, 3.0], [1.0, 2.0])


@pytest.mark.parametrize("value", ["0.5", None, True, 1j, ["a"], {}, np.ones(2, bool), torch.tensor(1j)])
def test_couplings_that_are_no_numbers(value):
    for function in (A.tclif_jacobian, A.tclif_infinity_norm):
        for name in ("b1", "b2"):
            with pytest.raises(TypeError, match=f"{name} must be a real number or an array of them, got"):
                function(**{"b1": -0.5, "b2": 0.5, name: value})


@pytest.mark.parametrize("value", [NAN, INF, np.array([0.5, NAN])])
def test_couplings_that_are_not_finite(value):
    for name in ("b1", "b2"):
        with pytest.raises(ValueError, match=f"{name} must be finite, got"):
            A.tclif_infinity_norm(**{"b1": -0.5, "b2": 0.5, name: value})


@pytest.mark.parametrize("value", [None, 3, [], True])
def test_choices(value):
    for name, call in (
        ("form", lambda: A.tclif_jacobian(-0.5, 0.5, value)),
        ("field", lambda: A.acceleration([RECORD], field=value)),
        ("field", lambda: A.step_times([RECORD], 1, field=value)),
        ("reset_mode", lambda: A.pmsn_cost(5, value)),
        ("reset_modes", lambda: A.reset_ablation((value,))),
        *((("value in runs", lambda: A.plot_reset_ablation([A.Run(value, 0, 50.0)])),) if value != [] else ()),
    ):
        with pytest.raises(TypeError, match=f"{name} must be one of '.*, got"):
            call()
    with pytest.raises(TypeError, match="baseline must be a string, got"):
        A.acceleration([RECORD], value)


def test_field_of_a_record_that_is_no_time():
    with pytest.raises(ValueError, match="field must be one of 'forward_backward_s', 'forward_s', got 'T'"):
        A.acceleration([RECORD], field="T")


@pytest.mark.parametrize("value", [None, 3, "x", X, {"a": 1}, [3], [(X, TARGET, 1)], [X], iter(())])
def test_batches(net, value):
    with pytest.raises((TypeError, ValueError), match=r"batches (must be a series of pairs|is empty)"):
        A.measure_energy(net, value)
    with pytest.raises(TypeError, match=r"batches (must be a series of pairs|is gone through several times)"):
        A.loss_landscape(net, value, mean_loss, points=3)
    for target in (1, [0, 1], None, torch.tensor(1)):
        with pytest.raises(TypeError, match=r"batches must be a series of pairs \(input, target\), .*, got the target"):
            A.measure_energy(net, [(X, target)])


@pytest.mark.parametrize("value", [None, 3, "ce", []])
def test_losses_that_cannot_be_called(net, value):
    for call in (
        lambda: A.gradient_over_time(net, X, TARGET, value),
        lambda: A.loss_landscape(net, BATCHES, value, points=3),
    ):
        with pytest.raises(TypeError, match=r"loss must be a function of \(net\(x\), target\), got"):
            call()


@pytest.mark.parametrize("value", [None, 1.0, torch.ones(2), torch.tensor(1)])
def test_losses_that_return_no_number(net, value):
    with pytest.raises(TypeError, match="loss must return the mean loss as a tensor of one number, got"):
        A.loss_landscape(net, BATCHES, lambda output, target: value, points=3)
    if not isinstance(value, torch.Tensor):
        with pytest.raises(TypeError, match=r"what loss returns must be a torch.Tensor, got"):
            A.gradient_over_time(net, X, TARGET, lambda output, target: value)


def test_last_step_loss():
    outputs = torch.randn(4, 2, 3)
    for value in (None, [1.0], outputs.numpy()):
        with pytest.raises(TypeError, match=r"output must be a torch.Tensor, got"):
            A.last_step_loss(value, TARGET)
    for value in (None, [0, 1], np.zeros(2, int)):
        with pytest.raises(TypeError, match=r"target must be a torch.Tensor of class numbers \[N\], got"):
            A.last_step_loss(outputs, value)
    for value in (TARGET.float(), TARGET[:1], TARGET.int()):
        with pytest.raises(ValueError, match=r"target must be class numbers \[N\] \(torch.int64\), got"):
            A.last_step_loss(outputs, value)


@pytest.mark.parametrize("value", [None, 3, "x", [], ((),), object(), X])
def test_what_is_no_result_to_draw(value):
    for name, plot in (
        ("response", A.plot_impulse_response),
        ("plane", A.plot_norm_plane),
        ("landscape", A.plot_landscape),
        ("layers", A.plot_oscillations),
        ("nets", A.plot_gradient_over_time),
        ("curves", A.plot_learning_curves),
    ):
        with pytest.raises(TypeError, match=f"{name} must be .*, got"):
            plot(value)
    for plot in (A.plot_oscillations, A.plot_gradient_over_time, A.plot_learning_curves):
        with pytest.raises(TypeError, match=r"must be .*, got .* for 'a'"):
            plot({"a": value})


@pytest.mark.parametrize("value", [None, 3, "x", {}, X, [1], [None], iter(())])
def test_what_is_no_series(net, value):
    for name, call in (
        ("points", A.plot_accuracy_energy),
        ("records", A.acceleration),
        ("records", A.step_times),
        ("runs", A.learning_curve),
        ("runs", A.plot_compartment_sweep),
        ("runs", A.plot_reset_ablation),
        ("runs", A.plot_quadrant_search),
    ):
        if name == "records" and not isinstance(value, list | str | dict | int | None | torch.Tensor):
            continue  # an iterator is read into a list
        with pytest.raises(TypeError, match=f"{name} must be a series of .*, got"):
            call(value)
    if not isinstance(value, list):
        for name, sweep in (
            ("n_compartments", A.compartment_sweep),
            ("reset_modes", A.reset_ablation),
            ("sizes", A.quadrant_search),
        ):
            if value != {}:
                with pytest.raises(TypeError, match=f"{name} must be a series of .*, got"):
                    sweep(value)
                with pytest.raises(TypeError, match="seeds must be a series of integers, got"):
                    sweep(seeds=value)


def test_costs_of_neurons(net):
    for value in ([], "x", 3, {PMSNNode: (1, 2, 3)}, {PMSNNode: None}):
        with pytest.raises(TypeError, match="costs must be a mapping of neuron classes to NeuronCosts, or None, got"):
            A.measure_energy(net, BATCHES, value)
    with pytest.raises(TypeError, match="a key of costs must be a class of neurons, got 'PMSNNode'"):
        A.measure_energy(net, BATCHES, {"PMSNNode": COST})
    with pytest.raises(TypeError, match=r"cost must be a NeuronCost\(mac, ac, ac_per_spike\), got \(1, 2, 3\)"):
        A.step_energy(1, 1, 0.0, 0.0, (1, 2, 3))


@pytest.mark.parametrize("runs", [[["a", "b"]], [[None, 1.0]], [[1j]], [[True]], [[[1.0]]], [["1", "2"]]])
def test_learning_curves_of_what_are_no_numbers(runs):
    with pytest.raises(TypeError, match="runs must be a series of curves, each a series of numbers, got"):
        A.learning_curve(runs)


def test_what_is_empty():
    for name, plot in (
        ("layers", A.plot_oscillations),
        ("nets", A.plot_gradient_over_time),
        ("curves", A.plot_learning_curves),
    ):
        with pytest.raises(ValueError, match=f"{name} is empty: there is nothing to draw"):
            plot({})
    with pytest.raises(ValueError, match=r"shape of .* must be \[T, N, C, \*\], got \[\]"):
        A.acceleration([{**RECORD, "shape": []}])
    with pytest.raises(TypeError, match="runs must be a series of curves"):
        A.learning_curve([[[1.0], 2.0]])
    for accuracy in (-1.0, 100.5):
        with pytest.raises(ValueError, match=f"accuracy of 'a' must be a percentage, got {accuracy}"):
            A.plot_accuracy_energy([A.EnergyPoint("a", accuracy, 1.0)])


def test_labels_and_shapes():
    with pytest.raises(TypeError, match="ylabel must be a string, got None"):
        A.plot_learning_curves({"a": A.learning_curve([[1.0]])}, None)
    with pytest.raises(TypeError, match="label must be a string, got 3"):
        A.plot_accuracy_energy([A.EnergyPoint(3, 50.0, 1.0)])
    with pytest.raises(TypeError, match="name of a record must be a string, got 3"):
        A.acceleration([{**RECORD, "name": 3}])
    for shape in (None, 3, "4, 1", [4.0, 1], [None]):
        with pytest.raises(TypeError, match=r"shape of .* must be (a series of integers|an integer), got"):
            A.acceleration([{**RECORD, "shape": shape}])
    with pytest.raises(TypeError, match=r"generator must be a torch.Generator or None, got 0"):
        A.filter_normalised_direction(nn.Linear(1, 1), 0)
    for runs, plot in (
        ([A.Run("modulo", 0, 1.0)], A.plot_compartment_sweep),
        ([A.Run(2, 0, 1.0)], A.plot_quadrant_search),
    ):
        with pytest.raises(TypeError, match="value in runs must be"):
            plot(runs)


@pytest.mark.parametrize("value", [3, [], True])
def test_folders(value):
    for sweep in (A.compartment_sweep, A.reset_ablation, A.quadrant_search):
        with pytest.raises(TypeError, match="folder must be a path, got"):
            sweep(folder=value)


@pytest.mark.parametrize("text", ["", "{}", '{"accuracy": "high"}', "[1]", "null", '{"accuracy": 9'])
def test_a_series_whose_result_is_damaged(tmp_path, text):
    place = tmp_path / "reset-modulo-seed0-epochs1-width4"
    place.mkdir()
    (place / "result.json").write_text(text)
    with pytest.raises(ValueError, match=r"result\.json is damaged \(.*\): remove it to train again"):
        A.reset_ablation(("modulo",), epochs=1, width=4, folder=tmp_path)


def test_a_series_that_another_process_works_on(tmp_path, monkeypatch):
    from pmsn_plugins.training import FolderInUseError, lock

    def held(*args):
        raise BlockingIOError

    place = tmp_path / "reset-modulo-seed0-epochs1-width4"
    place.mkdir()
    (place / lock.LOCK).write_text(json.dumps({"pid": 7, "host": "there", "since": "2026-01-01 00:00:00"}))
    monkeypatch.setattr(lock.fcntl, "lockf", held)
    with pytest.raises(FolderInUseError, match="is in use by process 7 on there since 2026-01-01 00:00:00"):
        A.reset_ablation(("modulo",), epochs=1, width=4, folder=str(tmp_path))
    assert [path.name for path in Path(place).iterdir()] == [lock.LOCK]


def test_checkpoints_of_the_scripts():
    for value in (None, 3, "x", [("decay_factor", torch.zeros(2))], {"decay_factor": [0.0, 0.0]}):
        with pytest.raises(TypeError, match="state must be a mapping of tensors, got"):
            convert_neuron(value)
    for value in (None, 3, [1]):
        with pytest.raises(TypeError, match="checkpoint must be a path, or what the file there contains, got"):
            load_authors_checkpoint(TCLIFNode(), value)
    with pytest.raises(ValueError, match="no state_dict found"):
        load_authors_checkpoint(TCLIFNode(), {3: torch.zeros(2)})
    for dtype in (torch.complex64, torch.int64):
        node = TCLIFNode()
        before = node.c1.item()
        with pytest.raises(ValueError, match=f"c1 must be torch.float32, got a Tensor .* {dtype}"):
            load_authors_checkpoint(node, {"decay_factor": torch.zeros(2, dtype=dtype)})
        assert node.c1.item() == before
