"""A neuron class that says what to do where SpikingJelly's builders call it without the number of channels."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from typing import Any


class NeedsChannels(ABCMeta):
    """``sew_resnet18(spiking_neuron=cls, detach_reset=True)`` calls ``cls(detach_reset=True)``."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if not args and "channels" not in kwargs:
            raise TypeError(
                f"{cls.__name__} needs the number of channels, which SpikingJelly's builders do not pass: build the "
                f"net with spiking_neuron=neuron.IFNode, then pmsn_plugins.swap_neurons(net, {cls.__name__})"
            )
        return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of ``__init__``: of a class with a metaclass, inspect would show ``__call__``'s."""
        parameters = list(inspect.signature(cls.__init__).parameters.values())  # type: ignore[misc]
        return inspect.Signature(parameters[1:])
