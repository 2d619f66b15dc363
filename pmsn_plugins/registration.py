"""Opt-in registration with every framework that is installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

FRAMEWORKS = ("spikingjelly", "snntorch")


def register() -> tuple[str, ...]:
    """Put the neurons into both frameworks' namespaces and teach their tools about them.

    Afterwards ``spikingjelly.activation_based.neuron.PMSNNode``, ``snntorch.PMSN`` and the like exist,
    ``snntorch.utils.reset`` and ``snntorch.backprop`` know our layers, and SpikingJelly's operation counters have rules
    for our nodes. Calling it again changes nothing; :func:`unregister` undoes it.

    Returns:
        The frameworks that were found.

    Raises:
        ImportError: neither framework is installed.

    Example:
        >>> import pmsn_plugins
        >>> pmsn_plugins.register()
        ('spikingjelly', 'snntorch')
        >>> from spikingjelly.activation_based import neuron
        >>> neuron.TCLIFNode()
        TCLIFNode(...)
        >>> pmsn_plugins.unregister()
        ('spikingjelly', 'snntorch')
    """
    return _in_every_framework("register")


def unregister() -> tuple[str, ...]:
    """Undo :func:`register`; returns the frameworks that were found.

    Example:
        >>> unregister()
        ('spikingjelly', 'snntorch')
    """
    return _in_every_framework("unregister")


def _in_every_framework(function: str) -> tuple[str, ...]:
    found = tuple(framework for framework in FRAMEWORKS if find_spec(framework))
    if not found:
        raise ImportError('neither SpikingJelly nor snnTorch is installed: pip install "pmsn_plugins[all]"')
    for framework in found:
        getattr(import_module(f"{__package__}.{framework}"), function)()
    return found
