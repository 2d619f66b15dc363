"""How work is cut: plain numbers, no device."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmsn_plugins.kernels.plan import (
    GPU_BLOCK,
    GPU_REDUCERS,
    checkpoint_count,
    checkpoint_interval,
    cpu_layout,
    gpu_launches,
    gpu_layout,
)

SHAPE = dict(
    T=st.integers(1, 20000),
    N=st.integers(1, 10**6),
    C=st.integers(1, 3000),
    S=st.integers(1, 60000),
    k=st.integers(1, 16),
)


def check(layout, T, N, C, S):
    assert layout.M == N * C * S
    assert layout.P * layout.rows >= layout.M > layout.P * (layout.rows - 1)
    assert layout.C == C
    # every row begins with the first channel
    assert layout.P % (C * layout.S) == 0 or layout.rows == 1
    assert C == 1 or layout.S == S
    assert 1 <= layout.groups <= layout.rows
    assert layout.strips * layout.strip >= layout.P > (layout.strips - 1) * layout.strip
    # slots: the channels between the first and the last position of any strip
    assert layout.slots * layout.S >= layout.strip - 1 + layout.S
    assert layout.segments * layout.segment >= T > (layout.segments - 1) * layout.segment


@given(**SHAPE, threads=st.integers(1, 256), cut_time=st.booleans())
def test_cpu_layout_covers_everything_once(T, N, C, S, k, threads, cut_time):
    interval = checkpoint_interval(1 + 2 * k, 4, 4)
    layout = cpu_layout(T, N, C, S, interval, threads, cut_time)
    check(layout, T, N, C, S)
    assert layout.segments == 1 or (cut_time and layout.segment % interval == 0)
    assert layout.strip % 16 == 0 and layout.strip <= 256
    # sums of the items stay small next to one step's input
    assert layout.items <= max(64, layout.strips, 2 * threads)


@given(**SHAPE, multiprocessors=st.integers(1, 150), cut_time=st.booleans())
def test_gpu_layout_covers_everything_once(T, N, C, S, k, multiprocessors, cut_time):
    interval = checkpoint_interval(1 + 2 * k, 4, 4)
    layout = gpu_layout(T, N, C, S, interval, multiprocessors, cut_time)
    check(layout, T, N, C, S)
    assert layout.segments == 1 or cut_time
    assert layout.segment % interval == 0 or layout.segments == 1
    for launch in gpu_launches("pmsn", "backward", layout, ("grad_v", "adjoint"), k):
        x, y, z = launch.grid
        assert x < 2**31 and y < 2**16 and z < 2**16  # the limits of CUDA
        assert launch.threads == (GPU_REDUCERS if launch.kernel == "pmsn_reduce" else GPU_BLOCK)


@pytest.mark.parametrize(
    ("shape", "P", "strip"),
    [
        ((250, 40, 352, 1), 352, 128),
        ((250, 40, 10, 1), 80, 16),  # eight samples fill five lanes of 16
        ((250, 40, 250, 1), 2000, 128),
        ((4, 32, 10, 1), 30, 32),  # nearly, with few steps: three samples have fewer parameters
        ((4, 32, 64, 3136), 200704, 256),
        ((100, 64, 1, 40), 256, 128),  # one channel: rows are cut anywhere
        ((1000, 1, 3, 1), 3, 16),
    ],
)
def test_rows_of_the_cpu(shape, P, strip):
    layout = cpu_layout(*shape, 64, 2, True)
    assert (layout.P, layout.strip) == (P, strip)


def test_few_neurons_are_shared_between_threads():
    assert cpu_layout(16384, 1, 64, 1, 64, 2, True).items == 4


def test_time_is_cut_for_many_threads_only():
    assert cpu_layout(16384, 1, 64, 1, 64, 8, True).segments == 1
    assert cpu_layout(16384, 1, 64, 1, 64, 32, True).segments == 16
    assert cpu_layout(16384, 1, 64, 1, 64, 32, False).segments == 1
    assert cpu_layout(512, 1, 64, 1, 64, 32, True).segments == 1
    assert cpu_layout(16384, 64, 64, 1, 64, 32, True).segments == 1


def test_gpu_cuts_time_only_for_few_neurons():
    assert gpu_layout(4, 32, 64, 3136, 64, 132, True).segments == 1
    assert gpu_layout(1024, 64, 128, 1, 64, 132, True).segments == 16
    assert gpu_layout(16384, 1, 64, 1, 64, 132, True).segments == 256
    assert gpu_layout(16384, 1, 64, 1, 64, 132, False).segments == 1


def test_gpu_threads_take_several_rows_only_where_there_are_many():
    assert gpu_layout(4, 32, 64, 3136, 64, 132, True).groups == 2
    assert gpu_layout(250, 40, 352, 1, 64, 132, True).groups == 40


def test_launches():
    whole, cut = gpu_layout(100, 64, 128, 64, 64, 132, True), gpu_layout(16384, 1, 64, 1, 64, 132, True)

    def names(*args):
        return [launch.kernel for launch in gpu_launches(*args, 4)]

    assert names("pmsn", "forward", whole, ("hidden", "membrane")) == ["pmsn_forward"]
    assert names("tclif", "backward", whole, ()) == ["tclif_backward", "tclif_reduce"]
    assert names("pmsn", "forward", cut, ("hidden", "membrane")) == [
        *("pmsn_hidden_local", "pmsn_hidden_carry", "pmsn_membrane_local", "pmsn_membrane_carry", "pmsn_forward"),
    ]
    assert names("pmsn", "backward", cut, ("adjoint",)) == [
        *("pmsn_adjoint_local", "pmsn_adjoint_carry", "pmsn_backward", "pmsn_reduce"),
    ]
    assert names("pmsn", "backward", cut, ("grad_v", "adjoint"))[:2] == ["pmsn_grad_v_local", "pmsn_grad_v_carry"]
    grids = {launch.kernel: launch.grid for launch in gpu_launches("pmsn", "backward", cut, ("grad_v", "adjoint"), 4)}
    assert grids["pmsn_adjoint_carry"] == (1, 4, 1) and grids["pmsn_grad_v_carry"] == (1, 1, 1)
    assert grids["pmsn_reduce"] == (64, 1, 1)


@given(T=st.integers(1, 10**5), k=st.integers(1, 16), input_bytes=st.sampled_from([2, 4, 8]))
def test_checkpoints_take_a_sixth_of_the_input(T, k, input_bytes):
    state_bytes = max(4, input_bytes)
    interval = checkpoint_interval(1 + 2 * k, state_bytes, input_bytes)
    assert checkpoint_count(T, interval) * (1 + 2 * k) * state_bytes <= 0.16 * T * input_bytes
    assert checkpoint_count(T, interval) == len(range(interval, T, interval))


def test_huge_layers_need_64_bits():
    layout = cpu_layout(4, 2**20, 64, 3136, 64, 2, True)
    assert layout.M == 2**20 * 64 * 3136 > 2**37
    assert gpu_layout(4, 2**20, 64, 3136, 64, 132, True).M == layout.M
