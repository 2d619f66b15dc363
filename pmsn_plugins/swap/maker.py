"""What the user gave as ``neuron``, and how a new neuron is made of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Maker:
    """A class of neurons, a partial of one, or a function of nothing, of ``channels``, or of ``(channels, old)``.

    Attributes:
        cls: the class, or None for a function.
        given: what a partial fixes.
        needs_channels: whether it cannot be called without the number of channels.
    """

    def __init__(self, neuron: Callable[..., nn.Module]) -> None:
        if isinstance(neuron, nn.Module):
            raise TypeError(
                f"neuron must be a class or a function that makes neurons, got an instance of {type(neuron).__name__}; "
                f"give the class, with options as functools.partial({type(neuron).__name__}, ...)"
            )
        if not callable(neuron):
            raise TypeError(f"neuron must be a class or a function that makes neurons, got {neuron!r}")
        self._neuron = neuron
        self.given: dict[str, Any] = {}
        inner = neuron
        while isinstance(inner, functools.partial):
            self.given = {**inner.keywords, **self.given}
            inner = inner.func
        self.cls = inner if isinstance(inner, type) and issubclass(inner, nn.Module) else None
        try:
            parameters = dict(inspect.signature(neuron).parameters)
        except ValueError:  # C code does not tell: a function of the channels
            parameters = {"channels": inspect.Parameter("channels", inspect.Parameter.POSITIONAL_ONLY)}
        for base in self.cls.__mro__[1:] if self.cls is not None else ():
            if not any(p.kind == p.VAR_KEYWORD for p in parameters.values()):
                break  # else __init__(*args, **kwargs) of a subclass: its options are those of the base
            options = dict(list(inspect.signature(base.__init__).parameters.items())[1:])  # type: ignore[misc]
            parameters = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
            parameters = options | parameters
        self._parameters = parameters
        required = [p for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD,)]
        if self.cls is not None:
            self._required = [p.name for p in required if p.kind != p.VAR_POSITIONAL]
            self.needs_channels = "channels" in self._required
            return
        self._required = [p.name for p in required]
        self._arguments = len(required)
        if self._arguments > 2 or any(p.kind not in (*_POSITIONAL, p.VAR_POSITIONAL) for p in required):
            raise TypeError(
                f"neuron must be a function of nothing, of (channels) or of (channels, old); it takes "
                f"({', '.join(self._required)})"
            )
        self.needs_channels = self._arguments > 0

    def makes(self, kind: type[nn.Module]) -> bool:
        """Whether the class is ``kind`` or one derived from it."""
        return self.cls is not None and issubclass(self.cls, kind)

    def takes(self, name: str) -> bool:
        """Whether the class has an option of that name which the user did not give."""
        return self.cls is not None and name in self._parameters and name not in self.given

    def default(self, name: str) -> Any:
        """What the class takes for an option that nobody gives; None if it has no such option."""
        parameter = self._parameters.get(name) if self.cls is not None else None
        return None if parameter is None or parameter.default is parameter.empty else parameter.default

    def lacking(self, settings: Mapping[str, Any]) -> list[str]:
        """Options without which the class cannot be called, and that nobody knows."""
        if self.cls is None:
            return []
        return [name for name in self._required if name != "channels" and name not in settings]

    def make(self, channels: int | None, old: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
        if self.cls is None:
            return self._neuron(*(channels, old)[: self._arguments])
        return self._neuron(**({"channels": channels} if self.needs_channels else {}), **settings)
