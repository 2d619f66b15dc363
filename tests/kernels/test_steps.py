"""Time steps one at a time: on the CPU kernels the same numbers as the sequence, to the last bit."""

import itertools

import pytest
import torch

from pmsn_plugins import kernels
from pmsn_plugins.functional import triangle
from pmsn_plugins.kernels import cpu

T = 3
SHAPES = [(1, 1), (3, 5), (2, 16), (5, 33), (2, 3, 7), (3, 2, 4, 4), (1, 2, 300)]
OPTIONS = {
    "modulo": {},
    "strict, another threshold": {"surrogate_function": triangle(strict=True), "v_threshold": 0.3},
    "cumulative": {"reset_mode": "cumulative"},
    "memoryless": {"reset_mode": "memoryless"},
    "serial": {"reset_mode": "serial"},
    "burst": {"burst": True, "v_threshold": 0.2},
    "membrane": {"surrogate_function": lambda u: (u >= 0.0).to(u.dtype)},
}


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def instruction_set(request, cpu_kernels):
    if cpu.library.pmsn_use_instruction_set(request.param.encode()):
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    cpu.library.pmsn_use_instruction_set(cpu.reason.split("(")[1].rstrip(")").encode())


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_steps_are_the_sequence(tools, instruction_set, poisoned, dtype, options):
    real = torch.promote_types(dtype, torch.float32)
    for shape, k in itertools.product(SHAPES, (1, 2, 3, 4, 5, 9)):
        x, coefficients, state = tools.pmsn_case((T, *shape), k, real, True)
        x = x.to(dtype)
        with torch.no_grad():
            whole = kernels.pmsn_sequence(x, coefficients, state, return_v_seq=True, **OPTIONS[options])
            for x_t, spikes, v in zip(x, whole.spikes, whole.v_seq, strict=True):
                step = kernels.pmsn_sequence(x_t[None], coefficients, state, return_v_seq=True, **OPTIONS[options])
                assert torch.equal(step.spikes[0], spikes) and torch.equal(step.v_seq[0], v)
                state = step.state
        assert all(torch.equal(a, b) for a, b in zip(state, whole.state, strict=True)), (shape, k)
