"""What torch.compile is told. Its own decorators would import it, which takes almost as long as importing PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import TypeVar

Function = TypeVar("Function", bound=Callable)


def assume_constant_result(function: Function) -> Function:
    """As ``torch.compiler.assume_constant_result``."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def disable(function: Function) -> Function:
    """As ``torch.compiler.disable``, once somebody compiles."""

    @wraps(function)
    def call(*args, **kwargs):  # type: ignore[no-untyped-def]
        compiler = sys.modules.get("torch._dynamo")
        return (function if compiler is None else compiler.disable(function))(*args, **kwargs)

    return call  # type: ignore[return-value]
