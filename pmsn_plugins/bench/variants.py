"""``python -m pmsn_plugins.bench --check``: every kind of kernel against the reference, as a report."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import product

import torch

from .. import kernels
from ..functional.surrogate import SpikeFunction, TableSurrogate
from ..kernels.calls import FIRES, RESETS, SURROGATES
from ..kernels.first_contact import attempt
from ..kernels.variants import PmsnVariant, TclifVariant
from ..report import environment

PRECISIONS = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float16, torch.float32),
    (torch.bfloat16, torch.float32),
]
"""Of the input and of the arithmetic."""

Case = tuple[PmsnVariant | TclifVariant, SpikeFunction | None]

_NEURONS = {PmsnVariant: "PMSN", TclifVariant: "TC-LIF"}


NOT_TRIED = "NOT TRIED, the device has no memory left"

SHOWN = 3
"""Variants that are named where many fail in the same way."""


def check_variants(device: torch.device) -> int:
    """Print what a maintainer needs to know, and which variants agree with the reference; 1 unless all do."""
    from tqdm import tqdm

    for line in environment():
        print(line)
    backend = {"cpu": "cpu", "cuda": "cupy"}[device.type]
    status = kernels.backends()[backend]
    if not status.available:
        print(f"no kernels to check on {device}: {status.reason}")
        return 1
    agree: Counter[str] = Counter()
    faults: dict[str, list[str]] = {}
    cases = dict(variants())
    for variant, surrogate_function in tqdm(cases.items(), file=sys.stderr, leave=False, disable=None):
        name = f"{variant}, {surrogate_function}"
        try:
            found = attempt(partial(variant.trial, backend, device, surrogate_function), device)
        except torch.OutOfMemoryError:
            found = NOT_TRIED
        if found is None:
            agree[_NEURONS[type(variant)]] += 1
        else:
            faults.setdefault(found, []).append(name)
    for found, names in faults.items():
        count = f"{len(names)} of {len(cases)} variants"
        print(f"{found}: {count}" if found == NOT_TRIED else f"WRONG, {count}: {found}")
        for name in names[:SHOWN]:
            print(f"  {name}")
        if len(names) > SHOWN:
            print(f"  and {len(names) - SHOWN} more")
    kinds = Counter(_NEURONS[type(variant)] for variant in cases)
    parts = ", ".join(f"{neuron} {agree[neuron]} of {kinds[neuron]}" for neuron in kinds)
    print(f"{agree.total()} of {len(cases)} variants agree with the reference on {device}: {parts}")
    return int(agree.total() < len(cases))


def variants() -> Iterator[Case]:
    """Each choice beside the most common ones, and those that meet in one kernel with each other."""
    yield from _pmsn_variants()
    yield from _tclif_variants()


def _pmsn_variants() -> Iterator[Case]:
    def case(
        T: int = 100,
        k: int = 4,
        precision: int = 0,
        reset: str = "modulo",
        fire: str = "spike",
        name: str = "triangle",
        **options: bool,
    ) -> Case:
        memory, real = PRECISIONS[precision]
        state, recorded, final, gradients = (options.get(o, o == "gradients") for o in _OPTIONS)
        variant = PmsnVariant(
            *(PmsnVariant.steps_for(T, k, memory, real), memory, real, k, reset, fire == "burst", fire, name),
            *(state, recorded, final, gradients),
        )
        return variant, TableSurrogate(name, strict=fire == "strict")

    for T, precision in product((1, 4, 16, 17, 100, 10_000), range(len(PRECISIONS))):
        yield case(T, precision=precision)
    for reset, T in product(RESETS, (4, 100, 10_000)):
        yield case(T, reset=reset)
        yield case(T, reset=reset, with_state=True, return_v_seq=True, return_state=True)
    for fire, reset in product(FIRES, RESETS):
        if not (fire == "membrane" and reset == "serial"):  # PyTorch's
            yield case(reset=reset, fire=fire)
    for k in (1, 2, 3, 8, 16):
        yield case(k=k)
    for name in SURROGATES[:-1]:
        yield case(name=name)
    yield case(gradients=False)


def _tclif_variants() -> Iterator[Case]:
    for memory, real in PRECISIONS:
        for feedback, detach, strict in product(("post_reset", "pre_reset"), (False, True), (False, True)):
            variant = TclifVariant(memory, real, feedback, detach, strict, "triangle", strict, detach, True)
            yield variant, TableSurrogate("triangle", strict=strict)
    for name in SURROGATES[:-1]:
        variant = TclifVariant(torch.float32, torch.float32, "post_reset", False, False, name, False, False, True)
        yield variant, TableSurrogate(name)


_OPTIONS = ("with_state", "return_v_seq", "return_state", "gradients")
