"""Making snnTorch itself know our layers: opt-in, idempotent, undoable."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import snntorch as snn
import torch
from snntorch import utils
from torch import nn

from .hidden import detach
from .layer import MultiCompartmentLayer
from .pmsn import PMSN
from .tclif import TCLIF
from .tclif_recurrent import RTCLIF

_ABSENT = object()
_replaced: list[tuple[ModuleType, str, object]] = []
"""What :func:`register` replaced, in order: module, name, and the value it had."""


def register() -> None:
    """Put our layers into snnTorch's namespace; call it before importing ``snntorch.backprop.TBPTT`` by name.

    ``snntorch.utils.reset``, ``snntorch.backprop`` and the monitors of ``snntorch.functional.probe`` know our layers
    anyway, as far as they know Leaky and Synaptic. Registered, they know them better than their own:

    - ``snntorch.PMSN``, ``snntorch.TCLIF`` and ``snntorch.RTCLIF`` exist.
    - ``snntorch.utils.reset(net)`` resets our layers inside ``net``, at any depth.
    - ``snntorch.backprop.TBPTT`` and ``RTRL`` detach *all* spiking layers between updates: of several kinds of neurons
      in one net, snnTorch itself detaches one.

    Doing it twice changes nothing; :func:`unregister` undoes it.

    Example:
        >>> import snntorch
        >>> register()
        >>> hasattr(snntorch, "PMSN")
        True
        >>> unregister()
    """
    if _replaced:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about importing backprop: that was not the user's doing
        from snntorch import backprop
    for module, name, value in (
        (snn, "PMSN", PMSN),
        (snn, "TCLIF", TCLIF),
        (snn, "RTCLIF", RTCLIF),
        (utils, "_layer_check", _resetting(utils._layer_check)),
        (backprop, "TBPTT", _detaching(backprop.TBPTT)),
    ):
        _replaced.append((module, name, getattr(module, name, _ABSENT)))
        setattr(module, name, value)


def unregister() -> None:
    """Undo :func:`register`; without effect when nothing is registered.

    Example:
        >>> import snntorch
        >>> unregister()
        >>> hasattr(snntorch, "PMSN")
        False
    """
    while _replaced:
        module, name, value = _replaced.pop()
        if value is _ABSENT:
            delattr(module, name)
        else:
            setattr(module, name, value)


def _resetting(layer_check: Callable) -> Callable:
    """``utils.reset`` calls this with the net, before it resets the classes it has found there."""

    @functools.wraps(layer_check)
    def wrapper(net: nn.Module) -> None:
        layer_check(net)
        for layer in net.modules():
            if isinstance(layer, MultiCompartmentLayer):
                layer.reset_mem()

    return wrapper


def _detaching(tbptt: Callable) -> Callable:
    """TBPTT detaches right after each update, and so do we."""

    @functools.wraps(tbptt)
    def wrapper(
        net: nn.Module, dataloader: object, optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        handle = optimizer.register_step_post_hook(lambda *_: detach(net))
        try:
            return tbptt(net, dataloader, optimizer, *args, **kwargs)
        finally:
            handle.remove()

    return wrapper
