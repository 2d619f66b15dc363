"""The fused kernels as PyTorch operators, derived from the records of :mod:`.calls`.

A neuron has two. ``*_forward`` takes its tensors, its options and what is wanted, and returns its results, empty where
they were not asked for. ``*_backward`` takes the results' gradients and the checkpoints, the same tensors and options,
and recomputes the rest. There are no second derivatives.

Nothing reaches a kernel unchecked: every tensor has the dtype, shape and device that its record says, forward and
backward, or an error names it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from functools import lru_cache
from itertools import compress, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional.surrogate import transforming
from .arguments import STORAGE, gradient_names, kinds, roles
from .autograd import backward_functions, forward_functions, register
from .backend import FUSED, backend_of
from .calls import (
    Call,
    DiscretizeResults,
    DiscretizeTensors,
    Geometry,
    LayerTensors,
    NoOptions,
    PmsnOptions,
    PmsnResults,
    PmsnTensors,
    TclifOptions,
    TclifRecurrentOptions,
    TclifRecurrentResults,
    TclifRecurrentTensors,
    TclifResults,
    TclifTensors,
    Wanted,
    WantedGradients,
    Where,
)
from .cpu import same_bits
from .plan import checkpoint_count, checkpoint_interval

_library = torch.library.Library("pmsn_plugins", "DEF")

_TYPES: dict[Any, str]
_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float", bool: "bool", str: "str"}

_REAL = (torch.float32, torch.float64)


class Look(NamedTuple):
    """What a tensor must look like; a shape of None stands for one number, of any shape."""

    shape: tuple[int, ...] | None
    dtype: torch.dtype
    optional: bool


class Expected(NamedTuple):
    """What a call is laid out like, and what its tensors, its results and their gradients look like."""

    geometry: Geometry
    tensors: list[Look]
    results: list[Look]
    gradients: list[Look]


class Operator:
    """A neuron's two operators. Called itself, it computes the results and records their gradients.

    Attributes:
        neuron: as in the names of kernels and operators.
        tensors, options, results: records of :mod:`.calls`.
        gradients: the record of what comes back: the results' gradients, and the checkpoints they left.
        is_state: which of the tensors are states.
        with_gradient: which of the results have a gradient.
        parts: the records that the arguments of the operators are made of, and where they lie.
        states: where the states lie among the tensors.
        unread: which of them the backward kernel does not read.
        forward, backward: the operators themselves.
    """

    def __init__(self, neuron: str, tensors: Any, options: Any, results: Any, timeless: bool = False) -> None:
        self.neuron = neuron
        self.tensors, self.options, self.results = tensors, options, results
        self.tensor_roles, self.result_roles = tuple(roles(tensors).values()), tuple(roles(results).values())
        self.with_gradient = [role.gradient != "never" for role in self.result_roles]
        self.is_state = [role.gradient == "wanted" for role in self.tensor_roles]
        self.differentiated = [role for role in self.tensor_roles if role.gradient != "never"]
        # gradients are returned for the first arguments of an operator, and None for the others
        assert self.tensor_roles[: len(self.differentiated)] == tuple(self.differentiated)
        self.always_differentiated = sum(role.gradient == "always" for role in self.tensor_roles)
        self.keeps = "checkpoints" in roles(results)
        self.unread = [index for index, role in enumerate(self.tensor_roles) if not role.read_back]
        self.nothing = results(*(None for _ in self.result_roles))
        self.gradients = self._gradient_record()
        self.gradient_roles = [*compress(self.result_roles, self.with_gradient), *self.result_roles[-1:][: self.keeps]]
        forward_wanted, backward_wanted = (Where, Where) if timeless else (Wanted, WantedGradients)
        self.parts = {
            "forward": _parts((tensors, options, forward_wanted)),
            "backward": _parts((self.gradients, tensors, options, backward_wanted)),
        }
        self.states = slice(self.always_differentiated, len(self.differentiated))
        self.forward = self._define("forward", len(self.result_roles))
        self.backward = self._define("backward", len(self.differentiated))
        self.forward_functions, self.backward_functions = forward_functions(self), backward_functions(self)
        register(_library, self.forward, self.forward_functions)
        register(_library, self.backward, self.backward_functions)

    def __call__(self, tensors: Any, options: Any, wanted: Any) -> Any:
        """The results, a record; tensors may be those of autograd and of ``torch.func``."""
        if transforming():
            return self.results(*self.forward_functions.transformable.apply(*tensors, *options, *wanted))
        return self.results(*self.forward(*tensors, *options, *wanted))

    def compute_forward(self, tensors: Any, options: Any, wanted: Any) -> Sequence[Tensor]:
        """Check, allocate, let the backend run."""
        expected = self._checked(tensors, options)
        results = self._allocate_results(tensors, expected.results, wanted)
        self.run_forward(tensors, options, wanted.backend, self.results._make(results), expected.geometry)
        return results

    def record_known(self, tensors: Any, options: Any, wanted: Any) -> Any:
        """The results, a record, of a known call (:mod:`.unwatched`), and their gradients, past the dispatcher. What
        is not wanted is None."""
        direct = self.forward_functions.direct
        assert direct is not None
        return self.results._make(direct.apply(*tensors, options, wanted))

    def compute_unwatched(self, tensors: Any, options: Any, wanted: Any, expected: Expected, into: Any = None) -> Call:
        """The call itself, of one that is known, past the dispatcher: its results have None for what is not wanted.
        ``into``: a record of tensors to be written, where it has one, in place of new ones."""
        results = self._allocate_results(tensors, expected.results, wanted, into or self.nothing)
        results = self.results._make(results)
        return self._run("forward", wanted.backend, tensors, options, results, (), (), expected.geometry)

    def compute_backward(self, gradients: Any, tensors: Any, options: Any, wanted: Any) -> Sequence[Tensor]:
        """The same; the gradient of a state is empty where it is not wanted."""
        expected = self._checked(tensors, options, gradients)
        made = self._allocate_gradients(tensors, wanted)
        self.run_backward(_contiguous(gradients), tensors, options, wanted.backend, made, expected.geometry)
        return made

    def run_forward(self, tensors: Any, options: Any, backend: str, results: Any, geometry: Geometry) -> None:
        """Let the backend write the results."""
        self._run("forward", backend, tensors, options, results, (), (), geometry)

    def run_backward(
        self, gradients: Any, tensors: Any, options: Any, backend: str, made: Sequence[Tensor], geometry: Geometry
    ) -> None:
        """Let the backend write the tensors' gradients, ``made``."""
        if self.keeps:
            *gradients, checkpoints = gradients
            results = self.nothing._replace(checkpoints=checkpoints)
        else:
            results = self.nothing
        self._run("backward", backend, tensors, options, results, gradients, made, geometry)

    def split(self, flat: tuple[Any, ...], direction: str) -> list[Any]:
        """An operator's arguments as the records that they come from."""
        return [tuple.__new__(record, flat[part]) for record, part in self.parts[direction]]

    def to_keep(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """The tensors as the backward kernel needs them: one that it does not read is kept as one number, expanded."""
        kept = list(tensors)
        for index in self.unread:
            kept[index] = tensors[index].new_empty(()).expand(tensors[index].shape)
        return kept

    def geometry(self, tensors: Any, options: Any) -> Geometry:
        """What a call is laid out like."""
        return self.expected(tensors, options).geometry

    def expected(self, tensors: Any, options: Any) -> Expected:
        """What a call is laid out like, and what its tensors look like."""
        return self._expected(*self._key(tensors, options))

    def _gradient_record(self) -> Any:
        types = {"needed": Tensor, "optional": Tensor | None}
        kinds_ = (types[role.gradient] for role in compress(self.result_roles, self.with_gradient))
        fields = list(zip(gradient_names(self.results), kinds_, strict=True))
        return NamedTuple(f"{self.results.__name__}Gradients", [*fields, *[("checkpoints", Tensor)][: self.keeps]])

    def _define(self, direction: str, results: int) -> torch._ops.OpOverload:
        name = f"{self.neuron}_{direction}"
        compute, fake = getattr(self, f"compute_{direction}"), getattr(self, f"_fake_{direction}")

        def kernel(*flat: Any) -> tuple[Tensor, ...]:
            return tuple(compute(*self.split(flat, direction)))

        def fake_kernel(*flat: Any) -> tuple[Tensor, ...]:
            return tuple(fake(*self.split(flat, direction)))

        arguments = (
            f"{_TYPES[kind]} {field}" for record, _ in self.parts[direction] for field, kind in kinds(record).items()
        )
        schema = f"{name}({', '.join(arguments)}) -> ({', '.join(['Tensor'] * results)})"
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for device_type in {backend.device_type for backend in FUSED}:
            _library.impl(name, kernel, device_type.upper())  # the dispatch key
        torch.library.register_fake(f"{_library.ns}::{name}", fake_kernel, lib=_library)
        return getattr(getattr(torch.ops, _library.ns), name).default

    def _fake_forward(self, tensors: Any, options: Any, wanted: Any) -> Sequence[Tensor]:
        expected = self._expected.__wrapped__(self, *self._key(tensors, options))  # symbolic sizes have no hash
        _check_device(tensors, tensors[0].device)
        return self._allocate_results(tensors, expected.results, wanted)

    def _fake_backward(self, gradients: Any, tensors: Any, options: Any, wanted: Any) -> Sequence[Tensor]:
        self._key(tensors, options)
        _check_device(tensors, tensors[0].device)
        _check_device(gradients, tensors[0].device)
        return self._allocate_gradients(tensors, wanted)

    def _allocate_results(self, tensors: Any, looks: Sequence[Look], wanted: Any, into: Any = None) -> list[Any]:
        made, first = [], tensors[0]
        for index, (role, (shape, dtype, _)) in enumerate(zip(self.result_roles, looks, strict=True)):
            like = first if dtype == first.dtype else tensors[1]  # which is real
            # (saying the dtype, or a tuple where a number does, takes as long as the allocation)
            if role.wanted is None or getattr(wanted, role.wanted):
                given = into and into[index]
                if given is None and shape == like.shape:  # a third of what naming the shape takes
                    given = torch.empty_like(like, memory_format=torch.contiguous_format)
                made.append(like.new_empty(shape) if given is None else given)
            else:
                made.append(None if into else like.new_empty(0))
        return made

    def _allocate_gradients(self, tensors: Any, wanted: Any) -> list[Tensor]:
        fields, contiguous = iter(tensors), torch.contiguous_format
        made = [torch.empty_like(t, memory_format=contiguous) for t in islice(fields, self.always_differentiated)]
        for state in islice(fields, len(self.differentiated) - self.always_differentiated):
            wanted_too = state is not None and wanted.state_gradients
            made.append(torch.empty_like(state, memory_format=contiguous) if wanted_too else tensors[1].new_empty(0))
        return made

    def _run(
        self,
        direction: str,
        backend: str,
        tensors: Any,
        options: Any,
        results: Any,
        gradients: Sequence[Tensor | None],
        tensor_gradients: Sequence[Tensor],
        geometry: Geometry,
    ) -> Call:
        tensors = self.tensors._make(_contiguous(tensors, self.unread if direction == "backward" else ()))
        has_state = any([state is not None for state in tensors[self.states]])
        call = Call(self.neuron, direction, tensors, options, results, gradients, tensor_gradients, geometry, has_state)
        backend_of(backend, tensors[0].device.type).run(call)
        return call

    def _key(self, tensors: Any, options: Any) -> tuple[Any, ...]:
        x = tensors[0]
        try:
            return x.shape, x.dtype, tensors.real, tensors.arrangement(options), options.sends_membrane
        except AttributeError:  # PyTorch hands on None even where the schema asks for a tensor
            missing = next(name for name in tensors.decisive if getattr(tensors, name) is None)
            raise TypeError(f"{missing} must be a tensor, got None") from None

    @lru_cache(1024)  # noqa: B019 (there are few operators, and they live as long as the process)
    def _expected(
        self,
        shape: torch.Size,
        memory: torch.dtype,
        real: torch.dtype,
        arrangement: tuple[int, ...],
        sends_membrane: bool,
    ) -> Expected:
        """What a call is laid out like, and what its tensors look like."""
        name = self.tensors._fields[0]
        if real not in _REAL or memory not in STORAGE or (memory == torch.float64) != (real == torch.float64):
            raise TypeError(
                f"{name} must be float16, bfloat16 or float32 with the others float32, or all must be float64, "
                f"got {memory} with {real}"
            )
        if math.prod(shape) == 0:
            raise ValueError(f"{name} must not be empty, got shape {tuple(shape)}")
        sizes = self.tensors.sizes(tuple(shape), tuple(arrangement))
        T, interval, kept = 0, 0, 0
        if self.keeps:
            T = shape[0]
            interval = checkpoint_interval(sizes.state, real.itemsize, memory.itemsize)
            kept = checkpoint_count(T, interval)
        geometry = Geometry(T, tuple(shape[1:]) if self.keeps else (), sizes, interval, kept)
        dtypes = {"real": real, "memory": memory, "sent": real if sends_membrane else memory}

        def shape_of(words: str) -> tuple[int, ...] | None:
            one = words == "C" and sizes.C == 1  # a number may have any shape: making it [1] would be recorded
            return geometry.shape("number" if one else words)

        def looks(record: Any) -> list[Look]:
            return [
                Look(shape_of(role.shape), dtypes[role.dtype], role.gradient == "optional" or kind is not Tensor)
                for role, kind in zip(roles(record).values(), kinds(record).values(), strict=True)
            ]

        results = looks(self.results)
        gradients = [*compress(results, self.with_gradient), *results[-1:][: self.keeps]]
        return Expected(geometry, looks(self.tensors), results, gradients)

    def _checked(self, tensors: Any, options: Any, gradients: Any = None) -> Expected:
        """What the call is laid out like, and what its results look like.

        Raises:
            TypeError: a tensor of another dtype.
            ValueError: one of another shape or device, nothing to compute, part of a state.
            RuntimeError: all that, backward: something was changed after the forward pass.
        """
        try:
            expected = self._expected(*self._key(tensors, options))
            device = tensors[0].device
            _check(tensors, expected.tensors, device)
            missing = [state is None for state in tensors[self.states]]
            if any(missing) and not all(missing):
                raise ValueError(f"{', '.join(compress(tensors._fields, self.is_state))} must be given all or none")
            if gradients is not None:
                _check(gradients, expected.gradients, device)
                options.check_backward(tensors)
        except (TypeError, ValueError) as error:
            if gradients is not None:
                raise RuntimeError(
                    f"{self.neuron}_backward: {error} (was a parameter or a state changed after the forward pass?)"
                ) from error
            raise type(error)(f"{self.neuron}_forward: {error}") from None
        return expected


class LayerOperator(Operator):
    """PMSN on a layer's parameters: the discretisation and PMSN on its coefficients, in one.

    A backend that takes layers does both. For another, parameters that have not changed since the last call, to the
    bit, are not discretised again.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._discretized: dict[tuple[int, torch.Size, torch.dtype], tuple[list[Tensor], Sequence[Tensor]]] = {}

    def compute_unwatched(
        self, tensors: LayerTensors, options: PmsnOptions, wanted: Wanted, expected: Expected, into: Any = None
    ) -> Call:
        if _takes_layers(wanted.backend, tensors):
            return super().compute_unwatched(tensors, options, wanted, expected, into)
        _, inner = self._inner(tensors, wanted.backend, expected.geometry)
        return PMSN.compute_unwatched(inner, options, wanted, expected, into)

    def run_forward(
        self, tensors: LayerTensors, options: PmsnOptions, backend: str, results: PmsnResults, geometry: Geometry
    ) -> None:
        if _takes_layers(backend, tensors):
            return super().run_forward(tensors, options, backend, results, geometry)
        _, inner = self._inner(tensors, backend, geometry)
        PMSN.run_forward(inner, options, backend, results, geometry)

    def run_backward(
        self,
        gradients: Any,
        tensors: LayerTensors,
        options: PmsnOptions,
        backend: str,
        made: Sequence[Tensor],
        geometry: Geometry,
    ) -> None:
        if _takes_layers(backend, tensors):
            return super().run_backward(gradients, tensors, options, backend, made, geometry)
        parameters, inner = self._inner(tensors, backend, geometry)
        grad_x, *grad_parameters, grad_D, grad_v, grad_h_real, grad_h_imag = made
        grad_coefficients = DISCRETIZE.gradients._make(map(torch.empty_like, inner[1:5]))
        made = grad_x, *grad_coefficients, grad_D, grad_v, grad_h_real, grad_h_imag
        PMSN.run_backward(gradients, inner, options, backend, made, geometry)
        DISCRETIZE.run_backward(
            grad_coefficients, parameters, NoOptions(), backend, grad_parameters, _timeless(geometry)
        )

    def _inner(self, tensors: LayerTensors, backend: str, geometry: Geometry) -> tuple[DiscretizeTensors, PmsnTensors]:
        parameters = DiscretizeTensors._make(_contiguous(tensors[1:8]))
        like = parameters.log_decay
        key = like.data_ptr(), like.shape, like.dtype
        found = self._discretized.get(key)
        if found is None or not same_bits(found[0], parameters):
            coefficients = DiscretizeResults._make(torch.empty_like(like) for _ in DiscretizeResults._fields)
            DISCRETIZE.run_forward(parameters, NoOptions(), backend, coefficients, _timeless(geometry))
            found = [p.clone() for p in parameters], coefficients
            if len(self._discretized) >= 256:
                self._discretized.clear()
            self._discretized[key] = found
        return parameters, PmsnTensors._make((tensors.x, *found[1], *tensors[8:]))


def _takes_layers(backend: str, tensors: LayerTensors) -> bool:
    return backend_of(backend, tensors.x.device.type).takes_layers


def _parts(records: Iterable[type]) -> list[tuple[type, slice]]:
    parts, start = [], 0
    for record in records:
        end = start + len(kinds(record))
        parts.append((record, slice(start, end)))
        start = end
    return parts


def _timeless(geometry: Geometry) -> Geometry:
    return Geometry(0, (), geometry.sizes, 0, 0)


def _contiguous(tensors: Iterable[Any], unread: Collection[int] = ()) -> list[Any]:
    # (asking is a fifth of what .contiguous() costs)
    return [t if t is None or i in unread or t.is_contiguous() else t.contiguous() for i, t in enumerate(tensors)]


def _check(tensors: Any, looks: Sequence[Look], device: torch.device) -> None:
    for tensor, (shape, dtype, optional) in zip(tensors, looks, strict=True):
        if not optional if tensor is None else tensor.dtype is not dtype or not _has_shape(tensor, shape):
            _refuse(tensors, looks)
    if device.type != "cpu":  # where one tensor is elsewhere, the dispatcher does not call the CPU
        _check_device(tensors, device)


def _has_shape(tensor: Tensor, shape: tuple[int, ...] | None) -> bool:
    return tensor.numel() == 1 if shape is None else tensor.shape == shape


def _check_device(tensors: Any, device: torch.device) -> None:
    for name, tensor in zip(tensors._fields, tensors, strict=True):
        if tensor is not None and tensor.device != device:
            raise ValueError(f"{name} must be on {device}, got {tensor.device}")


def _refuse(tensors: Any, looks: Sequence[Look]) -> None:
    for name, tensor, (shape, dtype, optional) in zip(tensors._fields, tensors, looks, strict=True):
        if tensor is None:
            if not optional:
                raise TypeError(f"{name} must be a tensor, got None")
        elif tensor.dtype is not dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        elif not _has_shape(tensor, shape):
            raise ValueError(f"{name} must have shape {shape or '()'}, got {tuple(tensor.shape)}")


DISCRETIZE = Operator("discretize", DiscretizeTensors, NoOptions, DiscretizeResults, timeless=True)
PMSN = Operator("pmsn", PmsnTensors, PmsnOptions, PmsnResults)
PMSN_LAYER = LayerOperator("pmsn_layer", LayerTensors, PmsnOptions, PmsnResults)
TCLIF = Operator("tclif", TclifTensors, TclifOptions, TclifResults)
TCLIF_RECURRENT = Operator("tclif_recurrent", TclifRecurrentTensors, TclifRecurrentOptions, TclifRecurrentResults)
