"""Running a copy of a net once, and watching what its neurons see."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.module import register_module_forward_pre_hook

from ..layers import reset_states
from .references import copied, replace
from .returned import Returned, describe_call


@dataclass
class Sighting:
    """A step [N, C, *] that came into a neuron, and how wide the layers are that it came from."""

    shape: tuple[int, ...]
    """Of the whole input."""
    step: tuple[int, ...]
    """Of one time step."""
    widths: dict[str, int | None] = field(default_factory=dict)
    """Channels of the layers (and neurons) that the input was computed from, by name; None of layers we do not know."""
    axes: set[int] = field(default_factory=set)
    """Axes of the step whose entries are, one to one, the channels of such a layer: seen by differentiating."""
    flat_axes: set[int] = field(default_factory=set)
    """Axes whose entries are places of such channels, [C * H * W]."""

    def is_certain(self) -> bool:
        """Whether one axis holds the channels, and no other is as large."""
        return len(self.axes) == 1 and self.step.count(self.step[min(self.axes)]) == 1


@dataclass
class Moving:
    """Axes of a neuron's steps whose size follows that of the sample."""

    taken: set[int] = field(default_factory=set)
    """With samples that the net takes: batch, time, places; never channels."""
    refused: set[int] = field(default_factory=set)
    """With samples that it does not, as far as it came: these may also be the channels of the sample itself."""


@dataclass
class Source:
    """An output of a layer that gives its width to what comes after it; ``leaf`` stands for it in the graph."""

    name: str
    width: int | None
    axis: int
    leaf: Tensor


def width_of(module: nn.Module) -> int | None:
    """Channels of the output of a norm, convolution or linear layer; None of any other."""
    if isinstance(module, _NormBase):
        return module.num_features
    if isinstance(module, _ConvNd):
        return module.out_channels
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[0] if len(module.normalized_shape) == 1 else None
    if isinstance(module, nn.Linear | nn.Bilinear):
        return module.out_features
    if isinstance(module, nn.Embedding):
        return module.embedding_dim
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    if isinstance(module, nn.RNNBase):
        return (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    return None


def _axis_of(module: nn.Module, output: Tensor) -> int:
    """Axis of the channels in such an output; SpikingJelly's layers have a time axis in front in step_mode='m'."""
    if isinstance(module, _ConvNd):
        return output.ndim - 1 - (module.weight.ndim - 2)
    if isinstance(module, _NormBase | nn.GroupNorm):
        return 2 if getattr(module, "step_mode", "s") == "m" else 1
    return output.ndim - 1


def first_tensor(value: Any) -> Tensor | None:
    """The first tensor among a call's arguments or results."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return next((found for item in value if (found := first_tensor(item)) is not None), None)
    return None


def _with_first_tensor(value: Any, tensor: Tensor) -> Any:
    """``value`` with its first tensor exchanged."""
    if isinstance(value, Tensor):
        return tensor
    if isinstance(value, tuple | list):
        items = list(value)
        for index, item in enumerate(items):
            if first_tensor(item) is not None:
                items[index] = _with_first_tensor(item, tensor)
                break
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    return value


class Calls:
    """The calls of some neurons (given with their names) while a copy of a net runs.

    Attributes:
        sightings: what each neuron has seen, by its name, one sighting per call with a new shape; empty if it was
            never called.
        shapes: the steps of each neuron's calls in order.
        returned: what each neuron has returned, in order.
        inputs: the arguments of each neuron's first call.
        strangers: modules that were called and that the net does not hold.
    """

    LOOKED_AT = 3
    """Calls of a neuron of which it is noted what they return."""

    def __init__(self, names: list[str]) -> None:
        self.sightings: dict[str, list[Sighting]] = {name: [] for name in names}
        self.shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in names}
        self.returned: dict[str, list[Returned]] = {name: [] for name in names}
        self.inputs: dict[str, tuple[Any, ...]] = {}
        self.strangers: list[nn.Module] = []

    def called(self) -> set[str]:
        return {name for name, shapes in self.shapes.items() if shapes}


class OriginalCalledError(ValueError):
    """A copy of a net called a module of the net itself."""


@dataclass(frozen=True)
class DryRun:
    """Runs of copies of ``net`` on ``sample``, which watch the neurons of these names.

    Attributes:
        time_axis: where time is in the input of a neuron; None if it is given single steps.
        methods: what nets call of a neuron besides its forward, and where time is in the input of that.
        originals: modules, by name, that no copy may call.
    """

    net: nn.Module
    names: list[str]
    sample: tuple[Any, ...]
    time_axis: Callable[[str], int | None]
    methods: dict[str, int | None]
    originals: dict[str, nn.Module]

    def run(self, *, trace: bool = False, training: bool = False, calls: Calls | None = None) -> Calls:
        """Run a copy, from reset states.

        Args:
            trace: also find out which layers an input comes from, and on which axis their channels are.
            training: leave the training flags as they are, instead of switching to evaluation.
            calls: where to write; kept up to date when the net fails in the middle.

        Raises:
            OriginalCalledError: the copy calls one of ``originals``.
        """
        calls = calls or Calls(self.names)
        with torch.inference_mode(False):  # its tensors cannot be differentiated; copies made outside can
            self._run_copy(copied(self.net), calls, trace, training)
        return calls

    def _run_copy(self, twin: nn.Module, calls: Calls, trace: bool, training: bool) -> None:
        if not training:
            twin.eval()
        reset_states(twin)
        watcher = _Watcher(twin, calls, self.time_axis, self.methods, trace)
        neurons = {twin.get_submodule(name): name for name in self.names}
        methods = ("forward", *self.methods)
        with (
            _exchanged(neurons, methods, watcher.around),
            _exchanged({module: name for name, module in self.originals.items()}, methods, _forbidden),
            untouched_random_numbers(self.net),
            _noticed_strangers(twin, calls),
            torch.set_grad_enabled(trace),
        ):
            # methods that were taken off a neuron before, self.fire = self.sn.forward, are taken anew
            replace(twin, {module: module for module in neurons})
            try:
                if trace:
                    watcher.listen(neurons)
                twin(*(item.detach().clone() if isinstance(item, Tensor) else item for item in self.sample))
            finally:
                watcher.stop()

    def moving_axes(self, calls: Calls) -> dict[str, Moving]:
        """What moves in each neuron's steps when every axis of the sample is doubled in turn."""
        moving = {name: Moving() for name in self.names}
        first = first_tensor(self.sample)
        for axis, length in enumerate(() if first is None else first.shape):
            sample = tuple(
                torch.cat([item, item], axis)
                if isinstance(item, Tensor) and item.ndim > axis and item.shape[axis] == length
                else item
                for item in self.sample
            )
            doubled, taken = Calls(self.names), True
            try:
                replace_fields(self, sample=sample).run(calls=doubled)
            except Exception:
                taken = False
            for name in self.names:
                axes = moving[name].taken if taken else moving[name].refused
                for before, after in zip(calls.shapes[name], doubled.shapes[name], strict=False):
                    if len(before) == len(after):
                        axes |= {i for i, (m, n) in enumerate(zip(before, after, strict=True)) if m != n}
        return moving


@contextmanager
def _exchanged(
    modules: dict[nn.Module, str],
    methods: tuple[str, ...],
    wrapped: Callable[[str, str, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Every module's methods, as far as it has them, are ``wrapped(name, method, function)`` for a while."""
    places = [(module, method) for module in modules for method in methods if hasattr(module, method)]
    before = [vars(module).get(method) for module, method in places]
    for module, method in places:
        vars(module)[method] = wrapped(modules[module], method, getattr(module, method))
    try:
        yield
    finally:
        for (module, method), function in zip(places, before, strict=True):
            del vars(module)[method]  # of a copy too: it would be a cycle that lives on
            if function is not None:
                vars(module)[method] = function


def _forbidden(name: str, method: str, _: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> None:
        raise OriginalCalledError(f"a copy of the net calls the original {name}: something outside the net holds it")

    return forward


class _Watcher:
    """What happens in one run."""

    def __init__(
        self,
        net: nn.Module,
        calls: Calls,
        time_axis: Callable[[str], int | None],
        methods: dict[str, int | None],
        trace: bool,
    ) -> None:
        self.net, self.calls, self.time_axis, self.methods, self.trace = net, calls, time_axis, methods, trace
        self.running: set[str] = set()
        self.sources: dict[str, Source] = {}
        self.loose: dict[str, Tensor] = {}
        self.handles: list[Any] = []

    def around(self, name: str, method: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if name in self.running:  # a forward calls the other methods
                return function(*args, **kwargs)
            x = first_tensor((args, kwargs))
            if x is None:
                raise ValueError(f"{name} is called without a tensor")
            time_axis = self.methods[method] if method in self.methods else self.time_axis(name)
            sighting = self.see(name, x, time_axis)
            self.calls.inputs.setdefault(name, args)
            self.running.add(name)
            try:
                output = function(*args, **kwargs)
            except Exception as error:
                error.add_note(f"in {name}, called with {describe_call(args, kwargs)}")
                raise
            finally:
                self.running.remove(name)
            if len(self.calls.returned[name]) < Calls.LOOKED_AT:
                self.calls.returned[name].append(Returned.of(x, output))
            if not self.trace:
                return output
            if len(sighting.axes) != 1:
                return self.source(name, output, None, 0)
            (axis,) = sighting.axes
            return self.source(name, output, sighting.step[axis], axis + (time_axis is not None and axis >= time_axis))

        return watched

    def listen(self, neurons: dict[nn.Module, str]) -> None:
        """Cut the graph behind every layer that has parameters, so that the next neuron's input begins there."""
        inside = {child for neuron in neurons for child in neuron.modules()}
        for name, module in self.net.named_modules():
            own = {f"{name}.{n}".lstrip("."): p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
            if module in inside or not any(True for _ in module.parameters(recurse=False)):
                continue
            if width_of(module) is None and any(width_of(child) is not None for child in module.modules()):
                self.loose |= own  # say a positional embedding, added to what its layers compute
                continue
            if isinstance(module, torch.jit.ScriptModule):
                self.loose |= own  # takes no hooks
                continue
            self.handles.append(module.register_forward_hook(self._hook(name or type(module).__name__)))

    def _hook(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, _: Any, output: Any) -> Any:
            tensor = first_tensor(output)
            return None if tensor is None else self.source(name, output, width_of(module), _axis_of(module, tensor))

        return hook

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.sources.clear()

    def source(self, name: str, output: Any, width: int | None, axis: int) -> Any:
        """``output``, cut from its graph, as the beginning of another."""
        tensor = first_tensor(output)
        if tensor is None or not tensor.is_floating_point() or not torch.is_grad_enabled():
            return output
        leaf = tensor.detach().requires_grad_()
        if width is not None and (axis >= leaf.ndim or leaf.shape[axis] != width):
            width = None  # a layer called otherwise than we think
        self.sources[name] = Source(name, width, axis, leaf)
        return _with_first_tensor(output, leaf * 1)  # a leaf could not be changed in place

    def see(self, name: str, x: Tensor, axis: int | None) -> Sighting:
        shape = tuple(x.shape)
        step = shape if axis is None else shape[:axis] + shape[axis + 1 :]
        self.calls.shapes[name].append(step)
        for sighting in self.calls.sightings[name]:
            if sighting.shape == shape:
                return sighting
        sighting = Sighting(shape, step)
        self.calls.sightings[name].append(sighting)
        if self.trace and x.requires_grad and self.sources:
            with suppress(RuntimeError):  # the net did something that cannot be differentiated
                self._trace(sighting, x if axis is None else x.movedim(axis, 0), axis is not None)
        return sighting

    def _trace(self, sighting: Sighting, x: Tensor, sequence: bool) -> None:
        starts = [*(s.leaf for s in self.sources.values()), *self.loose.values()]
        gradients = torch.autograd.grad(x.sum(), starts, retain_graph=True, allow_unused=True)
        reached = [gradient is not None for gradient in gradients]  # the rest belongs to other branches
        near = list(compress(self.sources.values(), reached))
        sighting.widths |= dict.fromkeys(compress(self.loose, reached[len(self.sources) :]))
        sighting.widths |= {source.name: source.width for source in near}
        for source in near:
            if not source.width:
                continue
            for axis, size in enumerate(sighting.step):
                if size % source.width == 0 and _holds_channels(x, axis + sequence, [source]):
                    (sighting.axes if size == source.width else sighting.flat_axes).add(axis)
        widths = [source.width for source in near if source.width]
        if len(near) > 1 and not sighting.axes and len(widths) == len(near):
            for axis, size in enumerate(sighting.step):
                if size == sum(widths) and _holds_channels(x, axis + sequence, near):
                    sighting.axes.add(axis)


def _holds_channels(x: Tensor, axis: int, sources: list[Source]) -> bool:
    """Whether each entry of ``x`` along ``axis`` is computed from one channel: of one source, in order; or of several,
    concatenated."""
    size, seen = x.shape[axis], False
    for index in sorted({0, size // 2, size - 1}):
        gradients = torch.autograd.grad(
            x.select(axis, index).sum(), [s.leaf for s in sources], retain_graph=True, allow_unused=True
        )
        channels = []
        for source, gradient in zip(sources, gradients, strict=True):
            if gradient is not None:
                touched = gradient.movedim(source.axis, 0).flatten(1).ne(0).any(1)
                channels += touched.nonzero().flatten().tolist()
        width = sources[0].width
        assert width is not None  # nobody asks for a source of unknown width
        in_order = len(sources) > 1 or channels in ([index * width // size], [index % width])
        if channels and (len(channels) > 1 or not in_order):
            return False
        seen = seen or bool(channels)
    return seen


@contextmanager
def _noticed_strangers(net: nn.Module, calls: Calls) -> Iterator[None]:
    """Modules that are called for a while, and that ``net`` does not hold, are noted."""
    held = set(net.modules())
    if any(
        hasattr(m, "_orig_mod") or getattr(m, "_compiled_call_impl", None) or isinstance(m, nn.DataParallel)
        for m in held
    ):  # compiled, it takes no such hook; and DataParallel calls copies
        yield
        return

    me, strangers = threading.get_ident(), []

    def notice(module: nn.Module, _: Any) -> None:
        if module not in held and threading.get_ident() == me:
            strangers.append(module)

    hook = register_module_forward_pre_hook(notice)
    try:
        yield
    finally:
        hook.remove()
        held = set(net.modules())  # with those that it has made and registered
        calls.strangers += [module for module in strangers if module not in held]


@contextmanager
def untouched_random_numbers(net: nn.Module) -> Iterator[None]:
    """Leave the state of every random number generator as it was: torch's, Python's and NumPy's."""
    devices = {p.device for p in net.parameters() if p.is_cuda}
    python = random.getstate()
    numpy = sys.modules["numpy"].random.get_state() if "numpy" in sys.modules else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            sys.modules["numpy"].random.set_state(numpy)
