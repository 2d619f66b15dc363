"""The fused kernels as PyTorch operators, derived from the records of :mod:`.calls`.

A neuron has two. ``*_forward`` takes its tensors, its options and what is wanted, and returns its results, empty where
they were not asked for. ``*_backward`` takes the results' gradients and the checkpoints, the same tensors and options,
and recomputes the rest. There are no second derivatives.

Nothing reaches a kernel unchecked: every tensor has the dtype, shape and device that its record says, forward and
backward, or an error names it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import compress, islice
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import STORAGE, gradient_names, kinds, roles
from .autograd import backward_functions, call, forward_functions, register
from .backend import backend_of
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
    TclifResults,
    TclifTensors,
    Wanted,
    WantedGradients,
    Where,
)
from .plan import checkpoint_count, checkpoint_interval

_library = torch.library.Library("pmsn_plugins", "DEF")

_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", float: "float", bool: "bool", str: "str"}

_REAL = (torch.float32, torch.float64)

Look = tuple[tuple[int, ...] | None, torch.dtype]
"""Shape (None: one number, of any shape) and dtype of a tensor."""


class Operator:
    """A neuron's two operators. Called itself, it computes the results and records their gradients.

    Attributes:
        neuron: as in the names of kernels and operators.
        tensors, options, results: records of :mod:`.calls`.
        gradients: the record of what comes back: the results' gradients, and the checkpoints they left.
        is_state: which of the tensors are states.
        with_gradient: which of the results have a gradient.
        forward_records, backward_records: what the arguments of the operators are made of.
        forward, backward: the operators themselves.
    """

    def __init__(self, neuron: str, tensors: type, options: type, results: type, timeless: bool = False) -> None:
        self.neuron = neuron
        self.tensors, self.options, self.results = tensors, options, results
        self.tensor_roles, self.result_roles = tuple(roles(tensors).values()), tuple(roles(results).values())
        self.with_gradient = [role.gradient != "never" for role in self.result_roles]
        self.is_state = [role.gradient == "wanted" for role in self.tensor_roles]
        self.differentiated = [role for role in self.tensor_roles if role.gradient != "never"]
        # gradients are returned for the first arguments of an operator, and None for the others
        assert self.tensor_roles[: len(self.differentiated)] == tuple(self.differentiated)
        self.keeps = "checkpoints" in results._fields
        self.gradients = self._gradient_record()
        self.gradient_roles = [*compress(self.result_roles, self.with_gradient), *self.result_roles[-1:][: self.keeps]]
        forward_wanted, backward_wanted = (Where, Where) if timeless else (Wanted, WantedGradients)
        self.forward_records = (tensors, options, forward_wanted)
        self.backward_records = (self.gradients, tensors, options, backward_wanted)
        self.forward = self._define("forward", self.forward_records, len(self.result_roles))
        self.backward = self._define("backward", self.backward_records, len(self.differentiated))
        self.forward_functions, self.backward_functions = forward_functions(self), backward_functions(self)
        register(_library, self.forward, self.forward_functions)
        register(_library, self.backward, self.backward_functions)

    def __call__(self, tensors: Any, options: Any, wanted: Any) -> Any:
        """The results, a record; tensors may be those of autograd and of ``torch.func``."""
        return self.results(*call(self.forward, self.forward_functions, *tensors, *options, *wanted))

    def compute_forward(self, tensors: Any, options: Any, wanted: Any) -> Sequence[Tensor]:
        """Check, allocate, let the device run."""
        geometry, looks = self._checked(tensors, options)
        results = self._allocate_results(tensors, looks, wanted)
        self._run("forward", wanted.backend, tensors, options, self.results(*results), (), (), geometry)
        return results

    def compute_backward(self, gradients: Any, tensors: Any, options: Any, wanted: Any) -> Sequence[Tensor]:
        """The same; the gradient of a state is empty where it is not wanted."""
        geometry, _ = self._checked(tensors, options, gradients)
        made = self._allocate_gradients(tensors, wanted)
        results = self.results(*(None for _ in self.result_roles))
        if self.keeps:
            results = results._replace(checkpoints=gradients.checkpoints.contiguous())
            gradients = gradients[:-1]
        self._run("backward", wanted.backend, tensors, options, results, gradients, made, geometry)
        return made

    def split(self, flat: Iterable[Any], records: Iterable[type]) -> list[Any]:
        """An operator's arguments as the records that they come from."""
        rest = iter(flat)
        return [record._make(islice(rest, len(record._fields))) for record in records]

    def split_saved(self, saved: Sequence[Tensor | None]) -> tuple[Any, Sequence[Tensor]]:
        """What a forward pass kept: its tensors, and the checkpoints if there are any."""
        rest = iter(saved)
        return self.tensors._make(islice(rest, len(self.tensor_roles))), tuple(rest)

    def geometry(self, tensors: Any, options: Any) -> Geometry:
        """What a call is laid out like."""
        return self._expected(*self._key(tensors, options))[0]

    def _gradient_record(self) -> type:
        types = {"needed": Tensor, "optional": Tensor | None}
        kinds_ = (types[role.gradient] for role in compress(self.result_roles, self.with_gradient))
        fields = list(zip(gradient_names(self.results), kinds_, strict=True))
        return NamedTuple(f"{self.results.__name__}Gradients", [*fields, *[("checkpoints", Tensor)][: self.keeps]])

    def _define(self, direction: str, records: Iterable[type], results: int) -> torch._ops.OpOverload:
        name = f"{self.neuron}_{direction}"
        compute, fake = getattr(self, f"compute_{direction}"), getattr(self, f"_fake_{direction}")

        def kernel(*flat: Any) -> tuple[Tensor, ...]:
            return tuple(compute(*self.split(flat, records)))

        def fake_kernel(*flat: Any) -> tuple[Tensor, ...]:
            return tuple(fake(*self.split(flat, records)))

        arguments = (f"{_TYPES[kind]} {field}" for record in records for field, kind in kinds(record).items())
        schema = f"{name}({', '.join(arguments)}) -> ({', '.join(['Tensor'] * results)})"
        _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CPU", "CUDA"):
            _library.impl(name, kernel, key)
        torch.library.register_fake(f"{_library.ns}::{name}", fake_kernel, lib=_library)
        return getattr(getattr(torch.ops, _library.ns), name).default

    def _fake_forward(self, tensors: Any, options: Any, wanted: Any) -> Sequence[Tensor]:
        _, _, looks = self._expected.__wrapped__(self, *self._key(tensors, options))  # symbolic sizes have no hash
        return self._allocate_results(tensors, looks, wanted)

    def _fake_backward(self, gradients: Any, tensors: Any, options: Any, wanted: Any) -> Sequence[Tensor]:
        return self._allocate_gradients(tensors, wanted)

    def _allocate_results(self, tensors: Any, looks: Sequence[Look], wanted: Any) -> list[Tensor]:
        new_empty = tensors[0].new_empty
        return [
            new_empty(shape if role.wanted is None or getattr(wanted, role.wanted) else (0,), dtype=dtype)
            for role, (shape, dtype) in zip(self.result_roles, looks, strict=True)
        ]

    def _allocate_gradients(self, tensors: Any, wanted: Any) -> list[Tensor]:
        made = []
        for role, tensor in zip(self.differentiated, tensors, strict=False):
            if role.gradient == "always" or (tensor is not None and wanted.state_gradients):
                made.append(torch.empty_like(tensor, memory_format=torch.contiguous_format))
            else:
                made.append(tensors[0].new_empty((0,), dtype=tensors.real))
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
    ) -> None:
        tensors, gradients = self.tensors(*_contiguous(tensors)), _contiguous(gradients)
        has_state = any(t is not None for t in compress(tensors, self.is_state))
        call = Call(
            *(self.neuron, direction, tensors, options, results, gradients, tensor_gradients, geometry, has_state)
        )
        backend_of(backend, tensors[0].device.type).run(call)

    def _key(self, tensors: Any, options: Any) -> tuple[Any, ...]:
        x = tensors[0]
        return x.shape, x.dtype, tensors.real, tensors.sizes(options), options.sends_membrane

    @lru_cache(1024)  # noqa: B019 (there are few operators, and they live as long as the process)
    def _expected(self, shape, memory, real, sizes, sends_membrane) -> tuple[Geometry, list[Look], list[Look]]:
        """What a call is laid out like, and what its tensors and results look like."""
        T, step, interval, kept = 0, (), 0, 0
        if self.keeps:
            T, *step = shape
            interval = checkpoint_interval(sizes.state, real.itemsize, memory.itemsize)
            kept = checkpoint_count(T, interval)
        geometry = Geometry(T, tuple(step), sizes, interval, kept)
        dtypes = {"real": real, "memory": memory, "sent": real if sends_membrane else memory}
        tensors, results = (
            [(geometry.shape(role.shape), dtypes[role.dtype]) for role in group]
            for group in (self.tensor_roles, self.result_roles)
        )
        return geometry, tensors, results

    def _checked(self, tensors: Any, options: Any, gradients: Any = None) -> tuple[Geometry, list[Look]]:
        """What the call is laid out like, and what its results look like.

        Raises:
            TypeError: a tensor of another dtype.
            ValueError: one of another shape or device, nothing to compute, part of a state.
            RuntimeError: all that, backward: something was changed after the forward pass.
        """
        try:
            x, real = tensors[0], tensors.real
            if real not in _REAL or x.dtype not in STORAGE or (x.dtype == torch.float64) != (real == torch.float64):
                raise TypeError(
                    f"{tensors._fields[0]} must be float16, bfloat16 or float32 with the others float32, or all "
                    f"must be float64, got {x.dtype} with {real}"
                )
            if x.numel() == 0:
                raise ValueError(f"{tensors._fields[0]} must not be empty, got shape {tuple(x.shape)}")
            geometry, looks, result_looks = self._expected(*self._key(tensors, options))
            _check(tensors, looks, x.device)
            given = sum(t is not None for t in compress(tensors, self.is_state))
            if given not in (0, sum(self.is_state)):
                raise ValueError(f"{', '.join(compress(tensors._fields, self.is_state))} must be given all or none")
            if gradients is not None:
                returned = compress(result_looks, self.with_gradient)
                _check(gradients, [*returned, *result_looks[-1:][: self.keeps]], x.device)
                options.check_backward(tensors)
        except (TypeError, ValueError) as error:
            if gradients is not None:
                raise RuntimeError(
                    f"{self.neuron}_backward: {error} (was a parameter or a state changed after the forward pass?)"
                ) from error
            raise type(error)(f"{self.neuron}_forward: {error}") from None
        return geometry, result_looks


class LayerOperator(Operator):
    """PMSN on a layer's parameters: the discretisation and PMSN on its coefficients, in one."""

    def compute_forward(self, tensors: LayerTensors, options: PmsnOptions, wanted: Wanted) -> Sequence[Tensor]:
        self._checked(tensors, options)
        _, inner = self._inner(tensors, wanted.backend)
        return PMSN.compute_forward(inner, options, wanted)

    def compute_backward(
        self, gradients: Any, tensors: LayerTensors, options: PmsnOptions, wanted: WantedGradients
    ) -> Sequence[Tensor]:
        self._checked(tensors, options, gradients)
        parameters, inner = self._inner(tensors, wanted.backend)
        grad_x, grad_E_real, grad_E_imag, grad_K_real, grad_K_imag, *rest = PMSN.compute_backward(
            gradients, inner, options, wanted
        )
        coefficients = DISCRETIZE.gradients(grad_E_real, grad_E_imag, grad_K_real, grad_K_imag)
        of_parameters = DISCRETIZE.compute_backward(coefficients, parameters, NoOptions(), Where(wanted.backend))
        return grad_x, *of_parameters, *rest

    def _inner(self, tensors: LayerTensors, backend: str) -> tuple[DiscretizeTensors, PmsnTensors]:
        x, log_dt, log_decay, freq, B_real, B_imag, R_real, R_imag, *rest = tensors
        parameters = DiscretizeTensors(log_dt, log_decay, freq, B_real, B_imag, R_real, R_imag)
        return parameters, PmsnTensors(x, *DISCRETIZE.compute_forward(parameters, NoOptions(), Where(backend)), *rest)


def _contiguous(tensors: Iterable[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.contiguous() for t in tensors]


def _check(tensors: Any, looks: Sequence[Look], device: torch.device) -> None:
    elsewhere = device.type != "cpu"  # the dispatcher mixes no other tensors with those of the CPU
    for name, tensor, (shape, dtype) in zip(tensors._fields, tensors, looks, strict=True):
        if tensor is None:
            continue
        if tensor.dtype is not dtype:
            raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
        if tensor.numel() != 1 if shape is None else tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape or '()'}, got {tuple(tensor.shape)}")
        if elsewhere and tensor.device != device:
            raise ValueError(f"{name} must be on {device}, got {tensor.device}")


DISCRETIZE = Operator("discretize", DiscretizeTensors, NoOptions, DiscretizeResults, timeless=True)
PMSN = Operator("pmsn", PmsnTensors, PmsnOptions, PmsnResults)
PMSN_LAYER = LayerOperator("pmsn_layer", LayerTensors, PmsnOptions, PmsnResults)
TCLIF = Operator("tclif", TclifTensors, TclifOptions, TclifResults)
