"""The papers' networks for sequences, for any neuron, on SpikingJelly's layers in multi-step mode.

All map inputs [T, N, *] to a linear readout of every time step, [T, N, classes]; what is trained is its mean (PMSN) or
sum (TC-LIF) over time. The readout of a mean is the mean of the readouts, so this is the papers' order of operations.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

import torch
from spikingjelly.activation_based import base, functional, layer
from torch import Tensor, nn

from .._checks import check_callable, check_int_at_least, check_ints_at_least, check_rate, check_type
from ..spikingjelly import RecurrentTCLIFNode, TCLIFNode
from .neurons import NeuronFactory, OverTime


class BatchNorm1d(nn.BatchNorm1d, base.StepModule):
    """Batch normalisation of [T, N, C] or [T, N, C, L] over all axes but C (SpikingJelly 0.0.0.0.14's own needs L)."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features)
        self.step_mode = "m"

    def forward(self, x: Tensor) -> Tensor:
        if self.step_mode == "m":
            return functional.seq_to_ann_forward(x, super().forward)
        return super().forward(x)


class Feedback(nn.Module):
    """Adds the layer's own last spikes, through a Linear, to its input current."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, spikes: Tensor, x: Tensor) -> Tensor:
        return self.linear(spikes) + x


class StepByStep(layer.ElementWiseRecurrentContainer):
    """SpikingJelly's container with the sequence taken apart at once: its own loop indexes ``x_seq[t]``, and backward
    then makes a gradient of the whole sequence at every step."""

    def multi_step_forward(self, x_seq: Tensor) -> Tensor:
        return torch.stack([self.single_step_forward(x) for x in x_seq.unbind(0)])


class SumInputs(nn.Module):
    """Sums neighbouring features, ``count`` at a time: [*, count C] -> [*, C]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.count)).sum(-1)

    def extra_repr(self) -> str:
        return str(self.count)


class Residual(nn.Module):
    """Adds the spikes that enter a block to the spikes that leave it; ``dropout`` is of the sum."""

    def __init__(self, body: nn.Module, dropout: float) -> None:
        super().__init__()
        self.body = body
        self.dropout = nn.Sequential(*_dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.body(x) + x)


def feedforward(
    widths: Sequence[int],
    neuron: NeuronFactory,
    *,
    feedback: Collection[int] = (),
    dropout: float = 0.0,
    current_dropout: float = 0.0,
    sum_inputs: int = 1,
) -> nn.Module:
    """Fully connected network ``widths[0] - widths[1] - ... - widths[-1]`` with neurons on the hidden layers.

    With TC-LIF: 1-40-256-128-10 44.8K parameters (S-MNIST), 1-64-256-256-10 85.1K (PS-MNIST),
    700-128-128-20 108.8K (SHD), 700-128-128-35 110.8K (SSC), 40-300-300-12 106.2K (GSC); with PMSN and
    ``sum_inputs=5``: 700-256-256-20 120.3K, 700-352-352-20 199.3K (SHD).

    Args:
        widths: inputs, hidden layers, classes.
        neuron: factory of the hidden layers' neurons.
        feedback: hidden layers, counted from 0, that also receive their own last spikes through a Linear (the TC-LIF
            paper's recurrent networks): TC-LIF in one recurrent layer, other neurons step by step.
        dropout: of the input and of each hidden layer's spikes, the same units over the whole sequence.
        current_dropout: of each hidden layer's input current, drawn anew at each step (GSC).
        sum_inputs: neighbouring inputs are summed, so many at a time, after their dropout (PMSN's SHD network: 700
            units in fives, so the first Linear has 140 inputs).

    Raises:
        TypeError: a width, a feedback layer or a rate is no number, or ``neuron`` makes no modules.
        ValueError: fewer than two widths or one below 1, a feedback layer that does not exist, a dropout rate outside
            [0, 1), ``sum_inputs`` that does not divide the inputs, or neurons that need the whole sequence where
            feedback is asked for.

    Example:
        >>> from pmsn_plugins.models import neuron_factory
        >>> net = feedforward((140, 32, 20), neuron_factory("pmsn"))
        >>> net(torch.rand(10, 8, 140)).shape  # [T, N, classes]
        torch.Size([10, 8, 20])
    """
    check_ints_at_least("widths", widths, 1)
    if len(widths) < 2:
        raise ValueError(f"widths must name inputs and classes at least, got {tuple(widths)}")
    check_ints_at_least("feedback", feedback, 0)
    check_rate("dropout", dropout)
    check_rate("current_dropout", current_dropout)
    check_int_at_least("sum_inputs", sum_inputs, 1)
    if widths[0] % sum_inputs:
        raise ValueError(f"sum_inputs must divide the {widths[0]} inputs, got {sum_inputs}")
    hidden = range(len(widths) - 2)
    if not set(feedback) <= set(hidden):
        raise ValueError(f"feedback must be among the hidden layers {list(hidden)}, got {sorted(feedback)}")
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(pairwise((widths[0] // sum_inputs, *widths[1:]))):
        if dropout:
            layers.append(layer.Dropout(dropout))
        if i == 0 and sum_inputs > 1:
            layers.append(SumInputs(sum_inputs))
        layers.append(layer.Linear(fan_in, fan_out))
        if i in hidden:
            if current_dropout:
                layers.append(nn.Dropout(current_dropout))
            made = _made(neuron, fan_out)
            layers.append(_recurrent(made, fan_out) if i in feedback else made)
    return _multi_step(*layers)


def _recurrent(neuron: nn.Module, width: int) -> nn.Module:
    if type(neuron) is TCLIFNode:
        return RecurrentTCLIFNode.around(neuron, width)
    if isinstance(neuron, OverTime):
        from ..snntorch import RTCLIF, TCLIF

        if type(neuron.neuron) is TCLIF:
            return RTCLIF.around(neuron.neuron, width, step_mode="m")
    if "s" not in getattr(neuron, "supported_step_mode", lambda: ())():
        raise ValueError(f"{type(neuron).__name__} does not run step by step in SpikingJelly: it cannot have feedback")
    neuron.step_mode = "s"  # type: ignore[assignment]  # to torch, a module's attributes are modules
    return StepByStep(neuron, Feedback(width))


def residual(
    in_features: int, width: int, blocks: int, num_classes: int, neuron: NeuronFactory, *, dropout: float = 0.0
) -> nn.Module:
    """PMSN paper, S-MNIST and PS-MNIST: FC-BN-neuron, then residual blocks (1x1 conv-BN-neuron, spikes added).

    The paper writes two blocks and 66.3K (width 128) or 156.4K (width 208) parameters; the authors' script has three
    blocks, and 65,418 or 156,218: that is what ``blocks=3`` gives.

    Args:
        dropout: of the blocks' currents and of the last spikes, the same channels over the whole sequence; and a fifth
            of this rate of every layer's spikes (where they are added, of the sum), as in the script.

    Raises:
        ValueError: a size below 1, ``blocks`` below 0, or a dropout rate outside [0, 1).

    Example:
        >>> from pmsn_plugins.models import neuron_factory
        >>> residual(1, 16, 2, 10, neuron_factory("pmsn"))(torch.rand(10, 8, 1)).shape
        torch.Size([10, 8, 10])
    """
    check_int_at_least("in_features", in_features, 1)
    check_int_at_least("width", width, 1)
    check_int_at_least("blocks", blocks, 0)
    check_int_at_least("num_classes", num_classes, 1)
    check_rate("dropout", dropout)
    return _multi_step(
        layer.Linear(in_features, width),
        BatchNorm1d(width),
        _made(neuron, width),
        *_dropout(dropout / 5),
        *(_block(width, neuron, dropout) for _ in range(blocks)),
        *_dropout(dropout),
        layer.Linear(width, num_classes),
    )


def pixel_cifar(neuron: NeuronFactory, *, num_classes: int = 10, dropout: float = 0.0) -> nn.Module:
    """PMSN paper, sequential CIFAR-10 pixel by pixel, T = 1024: input [T, N, 3]; 206,474 parameters.

    (FC128-BN-neuron)-RB128-RB128-AP4-(FC256-BN-neuron)-RB256-RB256-AP4-FC; the pooling averages neighbouring features.
    The authors' script registers one more 1x1 convolution per stage, whose output is never used: left out here.
    ``dropout`` is as in :func:`residual`, the last one of each stage before the pooling.

    Example:
        >>> from pmsn_plugins.models import count_parameters, neuron_factory
        >>> count_parameters(pixel_cifar(neuron_factory("pmsn")))
        206474
    """
    check_int_at_least("num_classes", num_classes, 1)
    check_rate("dropout", dropout)
    stages: list[nn.Module] = []
    for fan_in, width in ((3, 128), (32, 256)):
        stages += [layer.Linear(fan_in, width), BatchNorm1d(width), _made(neuron, width), *_dropout(dropout / 5)]
        stages += [_block(width, neuron, dropout) for _ in range(2)]
        stages += [*_dropout(dropout), nn.AvgPool1d(4)]  # of [T, N, C] it pools C
    return _multi_step(*stages, layer.Linear(64, num_classes))


def column_cifar(neuron: NeuronFactory, *, num_classes: int = 10) -> nn.Module:
    """PMSN paper, sequential CIFAR column by column, T = 32: input [T, N, 3, 32]; 539,776 parameters for 10 classes.

    Three (conv1d 3x128-BN-neuron), AP2, three more, AP2, FC256-neuron-FC; no biases.

    Example:
        >>> from pmsn_plugins.models import count_parameters, neuron_factory
        >>> count_parameters(column_cifar(neuron_factory("pmsn")))
        539776
    """
    check_int_at_least("num_classes", num_classes, 1)
    layers: list[nn.Module] = []
    for i in range(6):
        layers += [
            layer.Conv1d(128 if i else 3, 128, kernel_size=3, padding=1, bias=False),
            BatchNorm1d(128),
            _made(neuron, 128),
        ]
        if i in (2, 5):
            layers.append(layer.AvgPool1d(2))
    layers += [layer.Flatten(), layer.Linear(128 * 8, 256, bias=False), _made(neuron, 256)]
    return _multi_step(*layers, layer.Linear(256, num_classes, bias=False))


def _block(width: int, neuron: NeuronFactory, dropout: float) -> nn.Module:
    """A residual block; its 1x1 convolution over time is a Linear."""
    inside = layer.Linear(width, width), *_dropout(dropout), BatchNorm1d(width), _made(neuron, width)
    return Residual(nn.Sequential(*inside), dropout / 5)


def _made(neuron: NeuronFactory, width: int) -> nn.Module:
    check_callable("neuron", neuron, "a function that makes a neuron for a number of channels")
    made = neuron(width)
    check_type("what neuron makes", made, nn.Module, "a torch.nn.Module")
    return made


def _dropout(rate: float) -> list[nn.Module]:
    return [layer.Dropout(rate)] if rate else []


def _multi_step(*layers: nn.Module) -> nn.Sequential:
    net = nn.Sequential(*layers)
    functional.set_step_mode(net, "m")
    return net
