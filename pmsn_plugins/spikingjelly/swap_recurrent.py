"""What :func:`pmsn_plugins.swap_neurons` has to know of SpikingJelly's recurrent containers."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn

from ..swap.frameworks import RecurrentLayers
from .tclif import TCLIFNode
from .tclif_recurrent import RecurrentTCLIFNode


def settings(container: nn.Module) -> dict[str, Any]:
    """What the new neuron takes over besides the options of the neuron inside."""
    inner = container.sub_module
    own: dict[str, Any] = {"bias": _feedback(container).bias is not None}
    if isinstance(inner, TCLIFNode):
        own |= {"gamma": inner.gamma, "leak": inner.leak, "soma_feedback": inner.soma_feedback}
        own |= {"per_channel": inner.c1.ndim > 0}
    return own


def _width(container: nn.Module) -> int:
    return _feedback(container).out_features


def _adopt(container: nn.Module, node: RecurrentTCLIFNode) -> nn.Module:
    node.recurrent = _feedback(container)
    inner = container.sub_module
    if isinstance(inner, TCLIFNode):
        node.c1, node.c2 = inner.c1, inner.c2
    if isinstance(container, layer.LinearRecurrentContainer):
        weight = container.rc.weight[:, : node.channels]
        return nn.Sequential(_linear(weight, None, container.rc.weight.requires_grad), node)
    return node


def _feedback(container: nn.Module) -> nn.Linear:
    """The Linear through which the last spikes come back."""
    inner = container.sub_module
    if not hasattr(inner, "v_threshold"):
        raise ValueError(
            f"holds a {type(inner).__name__} where RecurrentTCLIFNode takes the place of one neuron: exclude= it, or "
            "put TCLIFNode in, which keeps the container"
        )
    if isinstance(container, layer.LinearRecurrentContainer):
        rc, width = container.rc, container.sub_module_out_features
        return _linear(rc.weight[:, -width:], rc.bias, rc.weight.requires_grad)
    function = container.element_wise_function
    linears = [m for m in function.modules() if isinstance(m, nn.Linear)] if isinstance(function, nn.Module) else []
    if isinstance(function, nn.Module) and len(linears) == 1 and _adds(function, linears[0]):
        return linears[0]
    raise ValueError(
        f"has an element_wise_function ({function!r}) that is no module adding one Linear of the last spikes to the "
        "input: exclude= it, or put TCLIFNode in, which keeps the container"
    )


def _adds(function: nn.Module, linear: nn.Linear) -> bool:
    """Whether the function of (spikes, x) is ``linear(spikes) + x``: asked of some numbers."""
    if linear.in_features != linear.out_features:
        return False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        y, x = (torch.rand(3, linear.in_features).to(linear.weight) for _ in range(2))
        result = function(y, x)
        return isinstance(result, Tensor) and result.shape == x.shape and torch.allclose(result, linear(y) + x)


def _linear(weight: Tensor, bias: nn.Parameter | None, learned: bool) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), learned)
    if bias is not None:
        made.bias = bias
    return made


RECURRENT = RecurrentLayers(
    layers=(layer.LinearRecurrentContainer, layer.ElementWiseRecurrentContainer),
    neuron=RecurrentTCLIFNode,
    width=_width,
    adopt=_adopt,
)
