"""Who below a net holds an object, and putting another in its place: everywhere, or nowhere.

Nets keep modules beside their registered names: in lists, tuples, dicts, attributes of other objects, closures, bound
methods, partials, hooks. :class:`Holders` walks all of these; :func:`replace` exchanges objects in them.
"""

from __future__ import annotations

import copy
import dis
import functools
import gc
import re
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_ATOMS = (
    str, bytes, int, float, complex, type(None), type(Ellipsis), slice, range,
    type, ModuleType, BuiltinFunctionType, CodeType, torch.dtype, torch.device, torch.Size, torch.layout,
)  # fmt: skip
"""What holds no module, or what is shared by everything that runs."""

_CONTAINERS = (list, tuple, dict, set, frozenset, deque)
_LIBRARIES = {"torch", "numpy", "spikingjelly", "snntorch", "pmsn_plugins", *sys.stdlib_module_names}


class Reference(NamedTuple):
    """``holder`` holds ``held``; ``exchange(old, new)`` puts another object in its place."""

    holder: object
    label: str
    held: object
    exchange: Callable[[object, object], None] | None
    """None: there is no way, or (for an immutable holder) none but a new holder, see :func:`_rebuilt`."""
    common: bool = False
    """Held by a class or a global."""


class StillHeldError(ValueError):
    """An object that had to go is held where it cannot be exchanged; nothing was changed."""


class Holders:
    """Every object below ``root`` and who holds it; objects in ``leaves`` are not looked into.

    What is reached through a class or a global alone belongs to other nets as well: nothing is exchanged there.
    """

    def __init__(self, root: object, leaves: tuple[object, ...] = ()) -> None:
        self.found: dict[int, object] = {id(root): root}
        self.references: dict[int, list[Reference]] = {}
        self._first: dict[int, Reference] = {}
        closed = {id(leaf) for leaf in leaves}
        common: set[int] = set()
        queue = deque([root])
        while queue:
            holder = queue.popleft()
            for reference in _references(holder):
                held = reference.held
                if id(holder) in common:
                    reference = reference._replace(exchange=None, common=True)
                self.references.setdefault(id(held), []).append(reference)
                if id(held) not in self.found:
                    self.found[id(held)] = held  # kept alive, or another object could get its id
                    self._first[id(held)] = reference
                    if reference.common:
                        common.add(id(held))
                    if id(held) not in closed:
                        queue.append(held)

    def say(self, reference: Reference) -> str:
        """Where a reference is, in Python: ``net.blocks[0][1]``."""
        labels = [reference.label]
        while (holder := self._first.get(id(reference.holder))) is not None:
            labels.append(holder.label)
            reference = holder
        path = "net" + "".join(reversed(labels))
        path = re.sub(r"\._modules\['(\d+)'\]", r"[\1]", path)
        return re.sub(r"\._modules\['(\w+)'\]", r".\1", path)


def check_replaceable(root: object, objects: Iterable[Any]) -> None:
    """Raise StillHeldError if one of the objects is held where it cannot be exchanged."""
    _Plan(root, objects)


def replace(root: object, counterparts: Mapping[Any, Any]) -> Callable[[], None]:
    """Exchange every key of ``counterparts`` for its value, everywhere below ``root``; returns what undoes it.

    Raises:
        StillHeldError: an object is held where it cannot be exchanged; nothing was changed.
    """
    return _Plan(root, counterparts).execute({id(old): new for old, new in counterparts.items()})


class _Plan:
    """Which exchanges are needed to get some objects, and the immutable ones that hold them, out of ``root``."""

    def __init__(self, root: object, objects: Iterable[Any]) -> None:
        objects = tuple(objects)
        self.holders = Holders(root, objects)
        self.old = {id(obj): obj for obj in objects}
        self.exchanges: list[tuple[Callable[[object, object], None], object]] = []
        queue, problems = deque(objects), []
        while queue:
            old = queue.popleft()
            for reference in self.holders.references.get(id(old), ()):
                holder = reference.holder
                if reference.common:
                    problems.append(self.holders.say(reference))
                elif isinstance(holder, tuple | frozenset | MethodType) or type(holder) is weakref.ref:
                    if id(holder) not in self.old:
                        self.old[id(holder)] = holder
                        queue.append(holder)
                elif reference.exchange is None:
                    problems.append(self.holders.say(reference))
                else:
                    self.exchanges.append((reference.exchange, old))
        if problems:
            raise StillHeldError(", ".join(dict.fromkeys(problems)))
        # keys come last, for the values are found by the old ones
        self.exchanges.sort(key=lambda pair: getattr(pair[0], "func", None) is _set_key)

    def execute(self, new: dict[int, Any]) -> Callable[[], None]:
        """Do it, with new objects by the ids of the old ones; returns what undoes it."""

        def renewed(obj: Any) -> Any:
            if id(obj) in self.old and id(obj) not in new:
                try:
                    new[id(obj)] = _rebuilt(obj, renewed)
                except AttributeError as error:  # a method that the new module does not have
                    where = self.holders.say(self.holders.references[id(obj)][0])
                    raise StillHeldError(f"{where}: {error}") from error
            return new.get(id(obj), obj)

        exchanges = [(exchange, old, renewed(old)) for exchange, old in self.exchanges]
        for exchange, old, replacement in exchanges:
            exchange(old, replacement)

        def undo() -> None:
            for exchange, old, replacement in reversed(exchanges):
                exchange(replacement, old)

        return undo


def copied(net: nn.Module) -> nn.Module:
    """A deep copy that shares no module, tensor or closure with ``net``, and has no autograd graph."""
    memo: dict[int, Any] = {}
    cells: dict[int, tuple[CellType, CellType]] = {}
    functions: list[tuple[FunctionType, FunctionType]] = []
    found = Holders(net).found
    for obj in found.values():
        if isinstance(obj, Tensor) and obj.grad_fn is not None:  # torch cannot copy it
            memo[id(obj)] = obj.detach().clone()
        elif isinstance(obj, FunctionType) and any(r.exchange is not None for r in _references(obj)):
            closure = tuple(cells.setdefault(id(c), (c, CellType()))[1] for c in obj.__closure__ or ())
            twin = FunctionType(obj.__code__, obj.__globals__, obj.__name__, obj.__defaults__, closure or None)
            functools.update_wrapper(twin, obj)
            del twin.__dict__["__wrapped__"]
            twin.__dict__.update(obj.__dict__)
            functions.append((obj, twin))
            memo[id(obj)] = twin
    try:
        memo = dict(begun := memo)
        net_copy = copy.deepcopy(net, memo)
    except Exception:
        memo = begun | {id(obj): obj for obj in _not_copyable(found)}  # a lock, a file, ...: shared with the copy
        net_copy = copy.deepcopy(net, memo)
    for obj, twin in functions:
        twin.__defaults__ = copy.deepcopy(obj.__defaults__, memo)
        twin.__kwdefaults__ = copy.deepcopy(obj.__kwdefaults__, memo)
    for cell, twin_cell in cells.values():
        if not _is_empty(cell):
            twin_cell.cell_contents = copy.deepcopy(cell.cell_contents, memo)
    weak = [ref for ref in found.values() if type(ref) is weakref.ref and id(ref()) in memo]
    if weak:
        _Plan(net_copy, weak).execute({id(ref): weakref.ref(memo[id(ref())]) for ref in weak})
    return net_copy


def _not_copyable(found: dict[int, object]) -> list[object]:
    """Objects that cannot be copied, though all they hold can."""
    broken = {}
    for obj in found.values():
        if not isinstance(obj, (*_CONTAINERS, nn.Module, Tensor, FunctionType, MethodType)):
            try:
                copy.deepcopy(obj)
            except Exception:
                broken[id(obj)] = obj
    return [obj for obj in broken.values() if not any(id(r.held) in broken for r in _references(obj))]


def _rebuilt(obj: Any, renewed: Callable[[object], Any]) -> object:
    """A new immutable object that holds the counterparts of what ``obj`` holds."""
    if isinstance(obj, MethodType):
        owner = renewed(obj.__self__)
        if owner is obj.__self__ and renewed(obj.__func__) is not obj.__func__:
            return MethodType(renewed(obj.__func__), owner)
        return getattr(owner, obj.__func__.__name__)
    if isinstance(obj, weakref.ref):
        return weakref.ref(renewed(obj()), obj.__callback__)
    items = [renewed(item) for item in obj]
    return obj._make(items) if hasattr(obj, "_make") else type(obj)(items)


def _references(holder: Any) -> Iterator[Reference]:
    for label, held, exchange in _held(holder):
        if not isinstance(held, _ATOMS):
            yield Reference(holder, label, held, exchange)
    for label, held in _held_in_common(holder):
        yield Reference(holder, label, held, None, common=True)


_Held = Iterator[tuple[str, Any, Callable[[object, object], None] | None]]


def _held(holder: Any) -> _Held:
    if isinstance(holder, FunctionType):
        yield from _held_by_function(holder)
    elif isinstance(holder, MethodType):
        yield ".__self__", holder.__self__, None
        yield ".__func__", holder.__func__, None
    elif isinstance(holder, functools.partial):
        for name in ("func", "args", "keywords"):
            yield f".{name}", getattr(holder, name), functools.partial(_set_in_partial, holder)
    elif isinstance(holder, weakref.ref):
        yield "()", holder(), None
    elif isinstance(holder, dict):
        for key, value in list(dict.items(holder)):
            if not isinstance(value, _ATOMS):
                label = f"[{key!r}]" if isinstance(key, _ATOMS) else "[...]"
                yield label, value, _setter(dict.__setitem__, holder, key)
            if not isinstance(key, _ATOMS):
                yield f", a key of type {type(key).__name__}", key, functools.partial(_set_key, holder)
    elif isinstance(holder, list | deque):
        for index, item in enumerate(list(holder)):
            if not isinstance(item, _ATOMS):  # the quick way past long lists of numbers
                yield f"[{index}]", item, _setter(type(holder).__setitem__, holder, index)
    elif isinstance(holder, tuple | frozenset):
        for index, item in enumerate(holder):
            yield f"[{index}]", item, None
    elif isinstance(holder, set):
        for item in list(holder):
            yield ", an element", item, functools.partial(_set_element, holder)
    elif not (isinstance(holder, Tensor) or hasattr(holder, "__dict__") or hasattr(type(holder), "__slots__")):
        for item in gc.get_referents(holder):  # a generator, an iterator, an object of C code, ...
            yield f", a {type(holder).__name__}", item, None
    if isinstance(holder, Tensor):
        yield "._backward_hooks", holder._backward_hooks, None
    if isinstance(attributes := getattr(holder, "__dict__", None), dict):
        for name, value in list(attributes.items()):
            if not isinstance(value, _ATOMS):
                yield f".{name}", value, _setter(dict.__setitem__, attributes, name)
    for name in _slots(type(holder)):  # type: ignore[arg-type]  # a class is hashable
        if hasattr(holder, name):
            yield f".{name}", getattr(holder, name), _setter(object.__setattr__, holder, name)


def _held_by_function(function: FunctionType) -> _Held:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if not _is_empty(cell):
            yield f" (variable {name})", cell.cell_contents, _setter(setattr, cell, "cell_contents")
    for name in ("__defaults__", "__kwdefaults__"):
        yield f".{name}", getattr(function, name), _setter(setattr, function, name)


def _held_in_common(holder: object) -> Iterator[tuple[str, Any]]:
    """What the code of a function reads from its module, and what the class of a module holds."""
    if isinstance(holder, FunctionType) and _is_foreign(holder.__module__):
        for name in _globals_read(holder.__code__):
            value = holder.__globals__.get(name)
            if isinstance(value, (*_CONTAINERS, nn.Module, FunctionType, MethodType, functools.partial)):
                yield f" (global {name})", value
    for base in type(holder).__mro__ if isinstance(holder, nn.Module) else ():
        if _is_foreign(base.__module__):
            for name, value in vars(base).items():
                value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                for part in (value.fget, value.fset) if isinstance(value, property) else (value,):
                    if isinstance(part, (*_CONTAINERS, nn.Module, FunctionType)):
                        yield f".{name}", part


def _is_foreign(module: str | None) -> bool:
    """Whether code is the user's: libraries' own globals hold no modules of a net."""
    return module is not None and module.partition(".")[0] not in _LIBRARIES


@functools.cache
def _globals_read(code: CodeType) -> frozenset[str]:
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return frozenset(names.union(*map(_globals_read, inner)))


@functools.cache
def _slots(cls: type) -> tuple[str, ...]:
    names = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                private = name.startswith("__") and not name.endswith("__")
                names.append(f"_{base.__name__.lstrip('_')}{name}" if private else name)
    return tuple(names)


def _is_empty(cell: CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _setter(function: Callable[..., None], holder: object, key: object) -> Callable[[object, object], None]:
    return lambda old, new: function(holder, key, new)


def _set_in_partial(holder: functools.partial, old: object, new: object) -> None:
    reduced: Any = holder.__reduce__()
    func, args, keywords, attributes = reduced[2]
    func, args, keywords = (new if part is old else part for part in (func, args, keywords))
    holder.__setstate__((func, args, keywords, attributes))  # type: ignore[attr-defined]


def _set_key(holder: dict, old: object, new: object) -> None:
    items = list(dict.items(holder))
    dict.clear(holder)
    for key, value in items:
        dict.__setitem__(holder, new if key is old else key, value)


def _set_element(holder: set, old: object, new: object) -> None:
    holder.discard(old)
    holder.add(new)
