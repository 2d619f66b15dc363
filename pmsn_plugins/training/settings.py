"""What decides the result of a run; every field can be overridden on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from .._checks import (
    check_choice,
    check_finite,
    check_flag,
    check_int_at_least,
    check_ints_at_least,
    check_not_negative,
    check_positive,
    check_type,
    shown,
)
from .objective import LOSSES, READOUTS, check_label_smoothing

OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("cosine", "milestones", "steps", "constant")
_BY_NAME = {"neuron_lr_scales": check_positive, "neuron_weight_decays": check_not_negative}


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result of a run; stored in its checkpoints.

    Attributes:
        dataset, dataset_options: a key of :data:`pmsn_plugins.training.DATASETS`, and what its function takes.
        network, network_options: a key of :data:`pmsn_plugins.training.NETWORKS`, and what its function takes.
        neuron, neuron_options, framework: for :func:`pmsn_plugins.models.neuron_factory`.
        epochs: passes over the training part.
        batch_size: samples per optimiser step, over all processes and accumulated parts together.
        accumulate: parts a process splits its share of the batch into, to save memory (batch normalisation sees one
            part at a time).
        drop_last: leave out the last batch of an epoch where it is short.
        optimizer: ``'adamw'``, ``'adam'`` or ``'sgd'`` (momentum 0.9).
        lr: learning rate of the weights.
        neuron_lr: learning rate of the neurons' parameters, see :func:`pmsn_plugins.param_groups`.
        weight_decay: of the weights.
        neuron_lr_scales, neuron_weight_decays: by name of a neuron's parameter, where its learning rate in units of
            ``neuron_lr``, or its weight decay, is another one than :func:`pmsn_plugins.param_groups` has.
        schedule: ``'cosine'`` to zero over all epochs; ``'milestones'``: times ``lr_factor`` at each epoch in
            ``milestones``; ``'steps'``: times ``lr_factor`` every ``milestones[0]`` epochs; ``'constant'``.
        readout: how the outputs of all time steps become one: ``'mean'`` or ``'sum'``.
        loss: ``'ce'``: cross-entropy of the readout; ``'tet'``: mean of every step's cross-entropy.
        label_smoothing: of the cross-entropy.
        mixup: mix pairs of images, by MixUp (0.2) or CutMix (1.0).
        amp: ``'no'``, or the type for mixed precision, ``'bf16'`` or ``'fp16'``.
        val_fraction, stratify: of the validation split, unless the data set has its own validation part.
        seed: of initial values, order, augmentation and split.

    Raises:
        TypeError: a setting is of another type, or of one that a checkpoint cannot hold.
        ValueError: a setting is outside its allowed values, or two exclude each other.
    """

    dataset: str
    network: str
    neuron: str = "pmsn"
    framework: str = "spikingjelly"
    dataset_options: dict[str, Any] = field(default_factory=dict)
    network_options: dict[str, Any] = field(default_factory=dict)
    neuron_options: dict[str, Any] = field(default_factory=dict)
    epochs: int = 200
    batch_size: int = 64
    accumulate: int = 1
    drop_last: bool = False
    optimizer: str = "adamw"
    lr: float = 1e-2
    neuron_lr: float = 1e-3
    weight_decay: float = 1e-2
    neuron_lr_scales: dict[str, float] = field(default_factory=dict)
    neuron_weight_decays: dict[str, float] = field(default_factory=dict)
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    lr_factor: float = 0.1
    readout: str = "mean"
    loss: str = "ce"
    label_smoothing: float = 0.0
    mixup: bool = False
    amp: str = "no"
    val_fraction: float = 0.1
    stratify: str = "class"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("dataset", "network", "neuron", "framework"):
            check_type(name, getattr(self, name), str, "a string")
        for name in ("dataset_options", "network_options", "neuron_options", *_BY_NAME):
            check_type(name, getattr(self, name), dict, "a dictionary of options")
        for name, check in _BY_NAME.items():
            for parameter, value in getattr(self, name).items():
                check(f"{name}[{parameter!r}]", value)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("readout", self.readout, READOUTS)
        check_choice("loss", self.loss, LOSSES)
        check_choice("amp", self.amp, ("no", "bf16", "fp16"))
        for name in ("epochs", "batch_size", "accumulate"):
            check_int_at_least(name, getattr(self, name), 1)
        for name in ("lr", "neuron_lr", "lr_factor"):
            check_positive(name, getattr(self, name))
        check_int_at_least("seed", self.seed, 0)
        check_type("milestones", self.milestones, (tuple, list), "a series of integers")
        check_ints_at_least("milestones", self.milestones, 1)
        check_not_negative("weight_decay", self.weight_decay)
        for name in ("mixup", "drop_last"):
            check_flag(name, getattr(self, name))
        check_choice("stratify", self.stratify, ("class", "speaker"))
        check_label_smoothing(self.label_smoothing)
        check_finite("val_fraction", self.val_fraction)
        if not 0.0 < self.val_fraction < 1.0:
            raise ValueError(f"val_fraction must be between 0 and 1, got {self.val_fraction}")
        for item in fields(self):
            _check_plain(item.name, getattr(self, item.name))
        if self.schedule in ("milestones", "steps") and not self.milestones:
            raise ValueError(f"schedule={self.schedule!r} needs milestones")
        if self.loss == "tet" and self.readout != "mean":
            raise ValueError("loss='tet' trains every step's output: it needs readout='mean'")


def _check_plain(name: str, value: Any) -> None:
    """Raise TypeError unless a checkpoint can hold ``value`` and give it back."""
    if type(value) in (tuple, list):
        for item in value:
            _check_plain(name, item)
    elif type(value) is dict:
        for key, item in value.items():
            check_type(f"the names of {name}", key, str, "strings")
            _check_plain(name, item)
    elif value is not None and type(value) not in (bool, int, float, str):
        raise TypeError(
            f"{name} must hold nothing but Python's own numbers, strings, lists, tuples and dictionaries, for a "
            f"checkpoint keeps nothing else, got {shown(value)}"
        )


def with_neuron(settings: Settings, neuron: str) -> Settings:
    """The same experiment with another neuron, which takes that neuron's default options and learning rates.

    Example:
        >>> from pmsn_plugins.training import PRESETS
        >>> with_neuron(PRESETS["digits"], "lif").neuron
        'lif'
    """
    check_type("settings", settings, Settings, "Settings")
    check_type("neuron", neuron, str, "a string")
    if neuron == settings.neuron:
        return settings
    return replace(settings, neuron=neuron, neuron_options={}, neuron_lr_scales={}, neuron_weight_decays={})
