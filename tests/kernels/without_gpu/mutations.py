"""Are faults in the CUDA kernels found: each of these is put into their sources, and tests run from PTX must fail.

    python tests/kernels/without_gpu/mutations.py [word of a name ...]

Removed barriers and races show by the checks of ``ptx.py``, wrong indices by those or by the numbers.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
SOURCES = HERE.parents[2] / "pmsn_plugins" / "kernels" / "csrc"


class Mutation(NamedTuple):
    """``old`` is found once in ``file`` and replaced by ``new``; the tests with ``-k tests`` in ``test_file`` fail."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    test_file: str = "test_pmsn.py"


WHOLE = "without_the_final_state and emulated and 40-modulo-4"
SHARED = "without_the_final_state and emulated and 40-modulo-1"  # slopes of an interval lie in shared memory
ODD = "without_the_final_state and emulated and 17-modulo-4"  # not by the response, nor in batches alone
SHORT = "without_the_final_state and emulated and 4-modulo-4 and not 40"
CUT = "time_cut_into and 300-modulo and state"
CUT_FROM_REST = "time_cut_into and 431-modulo and rest-431"
FILTERS = "without_the_final_state and emulated and 40-modulo-3"
POLES = "any_pole and emulated"
LONG = "on_every_backend and emulated and shape1-modulo-False"
ROWS = "on_every_backend and emulated and shape2-modulo-False"
TCLIF = "on_every_backend and emulated and channels and post_reset"

MUTATIONS = [
    Mutation(
        "sum_by_channel: no barrier before the next columns overwrite the buffer",
        "gpu_common.h",
        "        __syncthreads();\n        PMSN_UNROLL\n        for (int j = 0; j < COLUMNS; ++j)\n"
        "            if (column",
        "        PMSN_UNROLL\n        for (int j = 0; j < COLUMNS; ++j)\n            if (column",
        WHOLE,
    ),
    Mutation(
        "sum_by_channel: no barrier before the buffer is read",
        "gpu_common.h",
        "        __syncthreads();\n        for (int output",
        "        for (int output",
        WHOLE,
    ),
    Mutation(
        "reduce_channel: no barrier between the rounds of the sum in pairs",
        "gpu_common.h",
        "            __syncthreads();\n            if (lane + half",
        "            if (lane + half",
        WHOLE,
    ),
    Mutation(
        "pmsn_short_reduce: no barrier before the sums are read",
        "gpu_pmsn_short_backward.cu",
        "    __syncthreads();\n",
        "",
        SHORT,
    ),
    Mutation("reduce: one lane too many", "gpu_common.h", "if (lane + half < left)", "if (lane + half <= left)", WHOLE),
    Mutation("reduce: the wrong run", "gpu_common.h", "from[run * apart]", "from[(run + 1) * apart]", WHOLE),
    Mutation("loads: a step too late", "gpu_common.h", "load(x + i * M)", "load(x + (i + 1) * M)", WHOLE),
    Mutation(
        "loads: those for the next steps go past the end",
        "gpu_common.h",
        "if (first + MOST < whole) load",
        "if (first < whole) load",
        WHOLE,
    ),
    Mutation("loads: the next steps' are not the next", "gpu_common.h", "x += MOST * M;", "", WHOLE),
    Mutation(
        "checkpoints: none where a batch is left over",
        "gpu_common.h",
        "&& end < steps) begin",
        "&& end < whole) begin",
        LONG,
    ),
    Mutation("checkpoints: none", "gpu_common.h", "&& end < steps) begin", "&& false) begin", LONG),
    Mutation("steps: the odd batch is left out", "gpu_common.h", "run(first + MOST, odd, even);", ";", LONG),
    Mutation(
        "steps: a batch is run twice",
        "gpu_common.h",
        "run(first + MOST, odd, even);",
        "run(first + MOST, even, odd);",
        LONG,
    ),
    Mutation(
        "steps: an interval ends a batch too late",
        "gpu_common.h",
        "? whole : first + PMSN_INTERVAL;",
        "? whole : first + PMSN_INTERVAL + 2 * MOST;",
        LONG,
    ),
    Mutation(
        "from rest: the final state is that of the filters",
        "gpu_pmsn.h",
        "            if (AS_FILTERS) {",
        "if (0) {",
        POLES,
    ),
    Mutation(
        "filters: without signs",
        "gpu_pmsn.h",
        "filters.s[j] = modes.E_real[j] < -1 ? -1 : 1;",
        "filters.s[j] = 1;",
        POLES,
    ),
    Mutation(
        "filters: the second run is a step ahead",
        "gpu_pmsn_filter.h",
        "        sums.rho[j] += x * a.second_d[j];\n        const L change",
        "        const L change",
        FILTERS,
    ),
    Mutation(
        "filters: the second run forgets the first at the borders of segments",
        "gpu_pmsn_filter.h",
        "+ p.second.of_w(w, d) + to_second_w",
        "+ to_second_w",
        CUT_FROM_REST,
    ),
    Mutation(
        "filters: segments in place of their steps", "gpu_pmsn_filter.h", "step = step * step;", "", CUT_FROM_REST
    ),
    Mutation(
        "back: by filters, though the final state has a gradient",
        "gpu_pmsn_backward.cu",
        "BackBy<AS_FILTERS && !PMSN_HIDDEN>",
        "BackBy<AS_FILTERS>",
        POLES,
    ),
    Mutation(
        "batches: a step is left out", "gpu_common.h", "for (; i < steps; ++i)", "for (; i + 1 < steps; ++i)", ODD
    ),
    Mutation(
        "rows: a row is done twice",
        "gpu_common.h",
        "(blockIdx.y + 1), layout.groups) :",
        "(blockIdx.y + 1), layout.groups) + 1 :",
        ROWS,
    ),
    Mutation(
        "checkpoints: a place too far", "gpu_pmsn.h", "PMSN_INTERVAL) - 1) * STATE", "PMSN_INTERVAL)) * STATE", LONG
    ),
    Mutation(
        "back: the slope of the next step",
        "gpu_pmsn_backward.cu",
        "(slope[at * APART],",
        "(slope[(at + 1) * APART],",
        WHOLE,
    ),
    Mutation(
        "sweep: two threads keep their slopes in one place",
        "gpu_pmsn_backward.cu",
        "shared + threadIdx.x",
        "shared + threadIdx.x / 2",
        SHARED,
    ),
    Mutation(
        "hidden_local: two segments leave their state in one place",
        "gpu_pmsn_forward.cu",
        "state.store(checkpoint(args, item.end, element), M);\n    });\n}\n\nextern",
        "state.store(checkpoint(args, args.layout.segment, element), M);\n    });\n}\n\nextern",
        CUT,
    ),
    Mutation(
        "hidden_carry: a segment too far",
        "gpu_pmsn_forward.cu",
        "    R* at = checkpoint(args, length, own.element) + (1 + own.j) * M;",
        "    R* at = checkpoint(args, 2 * length, own.element) + (1 + own.j) * M;",
        CUT,
    ),
    Mutation(
        "membrane_carry: every hidden compartment's thread carries the membrane of one element",
        "gpu_pmsn_forward.cu",
        "    R* at = checkpoint(args, length, own.element);",
        "    R* at = checkpoint(args, length, own.element / 2);",
        CUT,
    ),
    Mutation(
        "adjoint_carry: the last segment's length for all",
        "gpu_pmsn_backward.cu",
        "== segments ? last : whole",
        ">= 0 ? last : whole",
        CUT.replace("300", "431"),
    ),
    Mutation(
        "adjoint_carry: the compartment beside it",
        "gpu_pmsn_backward.cu",
        "+ (1 + own.j) * M;",
        "+ (2 + own.j) * M;",
        CUT,
    ),
    Mutation("short: a product too few", "gpu_pmsn_short.h", "if (m <= t)", "if (m < t)", SHORT),
    Mutation(
        "short: the input of the next element", "gpu_pmsn_short_backward.cu", "(from + t * M)", "(from + 1)", SHORT
    ),
    Mutation(
        "tclif: the next checkpoint", "gpu_tclif.h", "PMSN_INTERVAL) - 1)", "PMSN_INTERVAL))", TCLIF, "test_tclif.py"
    ),
    Mutation(
        "tclif: the gradient of the step before",
        "gpu_tclif_backward.cu",
        "n, a, sums, grad_spike[t],",
        "n, a, sums, grad_spike[t ? t - 1 : t],",
        TCLIF,
        "test_tclif.py",
    ),
    Mutation(
        "tclif: the soma before a step is that after it",
        "gpu_tclif_backward.cu",
        "State::after(n, u_soma[t - 1])",
        "State::after(n, u_soma[t])",
        TCLIF,
        "test_tclif.py",
    ),
    Mutation(
        "tclif: backward starts at the wrong checkpoint",
        "gpu_tclif.h",
        "const R* kept = checkpoint(args, time, element);",
        "const R* kept = checkpoint(args, PMSN_INTERVAL, element);",
        TCLIF,
        "test_tclif.py",
    ),
    Mutation(
        "tclif: backward looks ahead at the interval that it is in",
        "gpu_tclif_backward.cu",
        "load(start - STEPS, STEPS);",
        "load(start, STEPS);",
        "test_float32 and emulated",
        "test_tclif.py",
    ),
]


def main(words):
    missed = []
    chosen = [m for m in MUTATIONS if not words or any(word in m.name for word in words)]
    if not chosen:
        raise SystemExit(f"no mutation has {' or '.join(map(repr, words))} in its name")
    for mutation in chosen:  # a fault that is not put in would look like one that is found
        times = (SOURCES / mutation.file).read_text(encoding="utf-8").count(mutation.old)
        if times != 1:
            raise SystemExit(f"{mutation.name}: {times} times in {mutation.file}: {mutation.old}")
    for mutation in chosen:
        environment = {**os.environ, "PTX_MUTATION": json.dumps(mutation[1:4])}
        command = [
            sys.executable,
            HERE / "run_ptx.py",
            f"tests/kernels/{mutation.test_file}",
            "-x",
            "-k",
            mutation.tests,
        ]
        done = subprocess.run(command, env={**environment, "PTX_RUN": "1"}, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise SystemExit(f"the tests did not run: {done.stdout}{done.stderr}")
        found = done.returncode == 1
        reason = next((line for line in done.stdout.splitlines() if line.startswith("E  ")), done.stdout[-300:])
        print(f"{'found ' if found else 'MISSED'} {mutation.name}: {reason[1:].strip()[:120]}", flush=True)
        missed += [] if found else [mutation.name]
    return len(missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
