"""The optimiser and the schedule of its learning rate that settings name."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import lr_scheduler

from ..parameters import param_groups
from .settings import Settings


def make_optimizer(net: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    groups = param_groups(
        net,
        settings.lr,
        settings.neuron_lr,
        settings.weight_decay,
        neuron_lr_scales=settings.neuron_lr_scales,
        neuron_weight_decays=settings.neuron_weight_decays,
    )
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=0.9)
    return {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.optimizer](groups, lr=settings.lr)


def make_scheduler(optimizer: torch.optim.Optimizer, settings: Settings) -> lr_scheduler.LRScheduler:
    if settings.schedule == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    if settings.schedule == "milestones":
        return lr_scheduler.MultiStepLR(optimizer, settings.milestones, settings.lr_factor)
    if settings.schedule == "steps":
        return lr_scheduler.StepLR(optimizer, settings.milestones[0], settings.lr_factor)
    return lr_scheduler.ConstantLR(optimizer, factor=1.0)
