"""How long the CUDA kernels would take, without a GPU: registers, loops of the machine code (SASS), modelled times.

    python tests/kernels/without_gpu/cycles.py --gpu H100 --shapes 250x40x352 4x32x64x56x56
    python tests/kernels/without_gpu/cycles.py --neuron tclif --json > after.json
    python tests/kernels/without_gpu/cycles.py --neuron tclif --compare before.json after.json

Needs CuPy (its NVRTC; no driver), g++ and nvdisasm. Kernel times that were measured on an H100 with the kernels of
November 2026, before PMSN's filters (float32, k = 4, modulo), by the modelled ones less LAUNCH_US:

                   pmsn forward, backward    tclif forward, backward
    4x32x64x56x56          1.03  1.11                1.07  1.09
    250x40x352             1.74  1.96                1.83  1.69
    1024x64x128            1.14  1.87                1.42  0.74      local 1.27 to 1.41, carry about 2, reduce 2.5

So a time is right to about a tenth where memory is the limit. Elsewhere it is mostly too short, by up to a factor of
two and by another one for each kernel: do not compare a kernel with another, and believe a ratio of two versions of one
kernel only beyond 1.2. No constant was fitted to these figures. The model assumes:

- a multiprocessor has four schedulers, each issues one instruction a cycle, each warp in order, waiting for its
  operands and for its unit; latencies are fixed numbers; all loads of a kernel come from DRAM, or from L2 when
  three tensors of the input's size fit there; no bank conflicts, no cache of x between recompute and sweep
- who waits for a load waits for all that are under way: ptxas counts them with one counter (a scoreboard)
- the steps of a loop are its global stores, or its loads if fewer; of loops for as many steps, the one with most loads,
  then the shortest, is meant
- both sides of branches inside a loop are executed (of TC-LIF's backward, they wait for loads that are never done:
  without these 1.15 in place of 0.74)
- of a loop that loads ahead for its next iteration, the wait for the first one is not counted
- a thread's steps are split over the loops as the plan cuts them, rows after each other; time is at least
  bytes / bandwidth; parameters, checkpoints and the sums at the end of backward are not counted
- reduce and carry run as PTX with a clock (instructions in PTX order, loads from L2), first block only, slowest thread
- instructions are there when it is their turn (no instruction cache); a kernel starts and ends at once
- LAUNCH_US for each launch, which was not measured; the host is not in it, discretization neither
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path.cwd()), str(Path(__file__).parent)]


class Gpu(NamedTuple):
    arch: str
    multiprocessors: int
    ghz: float
    l2_latency: int  # cycles of a load that hits L2
    dram_latency: int
    gb_per_s: float
    l2_bytes: float
    shared_bytes: int  # of a multiprocessor
    warps: int  # of a scheduler, at most
    fp32: int  # cycles a warp's instruction takes its unit (1: 32 lanes)
    fp64: int


GPUS = {
    "H100": Gpu("sm_90", 132, 1.7, 270, 800, 2900, 50e6, 227 << 10, 16, 1, 2),
    "A100": Gpu("sm_80", 108, 1.41, 220, 600, 1300, 40e6, 163 << 10, 16, 2, 4),
    "T4": Gpu("sm_75", 40, 1.3, 200, 500, 260, 4e6, 64 << 10, 8, 2, 64),
}
LAUNCH_US = 2.5  # from the end of one kernel to the start of the next
SHAPES = ("250x40x352", "784x64x128", "1024x2x8", "16384x1x64", "4x32x64x784")
LATENCY = (
    dict.fromkeys(("FSETP", "ISETP", "PLOP3", "UMOV", "UIADD3", "CS2R"), 6)
    | dict.fromkeys(("DADD", "DMUL", "DFMA"), 8)
    | {
        "MUFU": 22,
        "I2F": 18,
        "F2I": 18,
        "F2F": 20,
        "FRND": 18,
        "LDS": 28,
        "LDL": 34,
        "LDC": 30,
        "ULDC": 12,
        "UISETP": 8,
        "UIMAD": 8,
        "S2R": 30,
        "DSETP": 10,
        "SHFL": 24,
    }
)
TAKEN = 10  # cycles after a taken branch


# --- machine code ----------------------------------------------------------------------------------------------------


def nvdisasm() -> str:
    import importlib.util
    import shutil

    spec = importlib.util.find_spec("triton")
    beside = Path(spec.origin).parent / "backends/nvidia/bin/nvdisasm" if spec else None
    found = os.environ.get("NVDISASM") or (str(beside) if beside and beside.exists() else shutil.which("nvdisasm"))
    if not found:
        raise SystemExit(
            "no nvdisasm: it comes with triton (in Linux's torch), the CUDA toolkit, or "
            "pip install nvidia-cuda-nvdisasm; or set NVDISASM"
        )
    return found


def compile_sass(source: str, options: tuple, arch: str):
    """({kernel: figures}, {kernel: [("label" or "do", text)]})"""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*options, "-ftz=true", f"-arch={arch}", "--ptxas-options=-v"))
    except nvrtc.NVRTCError as error:
        raise SystemExit(nvrtc.getProgramLog(program)) from error
    pattern = (
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers([^\n]*)"
    )
    figures = {}
    for m in re.finditer(pattern, nvrtc.getProgramLog(program), re.S):
        shared = re.search(r"(\d+) bytes smem", m[6])
        figures[m[1]] = {
            "registers": int(m[5]),
            "spilled": int(m[3]) + int(m[4]),
            "local": int(m[2]),
            "shared": int(shared[1]) if shared else 0,
        }
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(nvrtc.getCUBIN(program) + b"\0")  # CuPy drops the last byte
        file.flush()
        text = subprocess.run([nvdisasm(), "-c", file.name], capture_output=True, text=True, check=True).stdout
    code, kernel = {}, None
    for line in text.splitlines():
        if m := re.match(r"\s*\.section\s+\.text\.(\w+)", line):
            kernel = code[m[1]] = []
        elif kernel is not None and (m := re.match(r"(\.L_x_\d+):", line)):
            kernel.append(("label", m[1]))
        elif kernel is not None and (m := re.match(r"\s+/\*[0-9a-f]{4,5}\*/\s+(.*?);", line)):
            kernel.append(("do", m[1].strip()))
    return figures, code


def opcode(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0]


class Loop:
    """An innermost loop. Its steps of time are taken to be its stores to global memory, or its loads if those are fewer
    (or there are no stores)."""

    def __init__(self, body: list[str]):
        self.body = body
        self.counts = collections.Counter(opcode(i).split(".")[0] for i in body)
        loads, stores = self.counts["LDG"], self.counts["STG"]
        self.loads, self.steps = loads, max(1, min(loads, stores) if loads and stores else loads)
        scratch = self.counts["STL"] + self.counts["STS"], self.counts["LDL"] + self.counts["LDS"]
        self.kind = "recompute" if scratch[0] and not scratch[1] else "back" if scratch[1] else "forward"
        self.decoded = [decode(i) for i in body]
        self.cache = {}

    @property
    def in_flight(self) -> float:
        """Loads that are under way together when the loop has to wait for one."""
        outstanding, waits = [], 0
        for base, _, reads, writes in self.decoded * 2:  # the second time round is the steady state
            if any(w & (reads | writes) for w in outstanding):
                outstanding, waits = [], waits + 1
            if base == "LDG":
                outstanding.append(writes)
        return round(2 * self.loads / max(1, waits), 1)

    def cycles(self, warps: int, load_latency: int, gpu: Gpu) -> float:
        """Per iteration, of all `warps` warps of a scheduler together."""
        key = warps, load_latency, gpu
        if key not in self.cache:
            self.cache[key] = simulate(self.decoded, warps, load_latency, gpu)
        return self.cache[key]


def loops(code: list) -> list[Loop]:
    at = {text: n for n, (kind, text) in enumerate(code) if kind == "label"}
    ends = {}
    for n, (kind, text) in enumerate(code):
        m = re.search(r"\bBRA\b.*?(\.L_x_\d+)", text) if kind == "do" else None
        if m and at.get(m[1], n) < n:
            ends[at[m[1]]] = n
    spans = [
        (s, e)
        for s, e in ends.items()
        if not any((s < s2 and e2 < e) or (s == s2 and e2 < e) for s2, e2 in ends.items())
    ]
    found = [Loop([text for kind, text in code[s : e + 1] if kind == "do"]) for s, e in sorted(spans)]
    return [loop for loop in found if len(loop.body) > 4 and loop.loads]


def distinct(found: list[Loop]) -> list[Loop]:
    """Of the loops of one kind and as many steps one: that with most loads, and of those the shortest."""
    best = {}
    for loop in sorted(found, key=lambda loop: (loop.loads, -len(loop.body))):
        best[loop.kind, loop.steps] = loop
    return [best[key] for key in sorted(best, key=lambda key: (key[0] == "back", key[0], -key[1]))]


def decode(i: str):
    """(opcode without suffixes, opcode, registers read, registers written)"""
    reads, writes, predicate = set(), set(), re.match(r"@!?(U?P\d)\s+(.*)", i)
    if predicate:
        reads.add(predicate[1])
    i = re.sub(r"^@!?U?P\w+\s+", "", i)
    name = i.split()[0]
    operands, base = [p.strip() for p in i[len(name) :].split(",")], name.split(".")[0]

    def add(to, text, width=1):
        for r in re.findall(r"(?<![A-Z])R(\d+)", text):
            to.update(("R", int(r) + k) for k in range(width))
        to.update(re.findall(r"(?<!\w)(?:UR\d+|U?P\d+)", text))

    double = base in ("DADD", "DMUL", "DFMA")
    address = 2 if base in ("LDG", "LD", "STG", "ST", "RED") else 1  # registers: local and shared memory is small
    if base in ("STG", "STL", "STS", "ST", "RED"):
        for p in operands:
            add(reads, p, address if "[" in p else 4 if "128" in name else 2 if "64" in name else 1)
    elif base in ("BRA", "BSYNC", "BSSY", "EXIT", "RET", "CALL", "NOP", "BAR", "WARPSYNC"):
        for p in operands:
            add(reads, p)
    else:
        first = 1
        pair = double or ".WIDE" in name or ("64" in name and base != "SHF")
        add(writes, operands[0], 4 if "128" in name else 2 if pair else 1)
        if base in ("ISETP", "FSETP", "DSETP", "UISETP", "PLOP3", "UPLOP3"):
            add(writes, operands[1])
            first = 2
        elif base in ("IADD3", "IMAD", "LOP3", "UIADD3", "VIADD"):
            while first < len(operands) and re.match(r"U?P[\dT]", operands[first]):
                add(writes, operands[first])
                first += 1
        for p in operands[first:]:
            add(reads, p, address if base.startswith("LD") else 2 if double or base == "F2F" else 1)
    return base, name, reads, writes


def simulate(code, warps, load_latency, gpu, iterations=8) -> float:
    """A scheduler: ``warps`` warps in turn, one instruction a cycle, each in order, waiting for operands and unit."""

    def unit(base):
        if base in ("DADD", "DMUL", "DFMA", "DSETP"):
            return "fp64", gpu.fp64
        if base in ("FFMA", "FADD", "FMUL", "IMAD"):
            return "fp32", gpu.fp32
        if base in ("MUFU", "I2F", "F2I", "F2F", "FRND"):
            return "special", 8
        if base[:2] in ("LD", "ST") and base != "LDC":
            return "memory", 4
        return "int", 2

    units = [unit(base) for base, *_ in code]
    ready, position, round_, next_ = [{} for _ in range(warps)], [0] * warps, [0] * warps, [7 * w for w in range(warps)]
    free, now, turn, marks = collections.Counter(), 0, 0, []
    loading, loaded = [set() for _ in range(warps)], [0] * warps  # one counter: who waits for a load waits for all
    while min(round_) < iterations:
        earliest = 1 << 60
        for j in range(warps):
            w = (turn + j) % warps
            if round_[w] >= iterations:
                continue
            base, _, reads, writes = code[position[w]]
            where, takes = units[position[w]]
            at = max(next_[w], free[where], max((ready[w].get(r, 0) for r in reads | writes), default=0))
            waits = bool(loading[w] & (reads | writes))
            at = max(at, loaded[w] if waits else 0)
            if at > now:
                earliest = min(earliest, at)
                continue
            if waits:
                loading[w].clear()
            if base == "LDG":
                loading[w] |= writes
                loaded[w] = now + load_latency
            for r in writes:
                ready[w][r] = now + (load_latency if base == "LDG" else LATENCY.get(base, 4))
            free[where], next_[w], turn, earliest = now + takes, now + 1, (w + 1) % warps, now + 1
            position[w] += 1
            if position[w] == len(code):
                position[w], round_[w], next_[w] = 0, round_[w] + 1, now + TAKEN
                if w == 0:
                    marks.append(now)
            break
        now = max(earliest, now + 1) if earliest < 1 << 60 else now + 1
    half = len(marks) // 2
    return (marks[-1] - marks[half - 1]) / (len(marks) - half)


# --- a launch --------------------------------------------------------------------------------------------------------


def resident(figures, gpu: Gpu) -> int:
    """Blocks of 128 threads that an SM holds."""
    registers = -(-figures["registers"] // 8) * 8
    return max(1, min(65536 // (registers * 128), gpu.warps, gpu.shared_bytes // (figures["shared"] + 1024)))


def kernel_cycles(kernel_loops, figures, layout, blocks, rows, gpu: Gpu, latency: int) -> float:
    def thread(warps):
        """Cycles of a scheduler that runs so many warps, from their first to their last step."""
        total = 0
        for kind in sorted({loop.kind for loop in kernel_loops}):
            best = {loop.steps: loop for loop in kernel_loops if loop.kind == kind}
            whole, rest = divmod(min(layout.segment, layout.T), layout.interval)
            for steps, times in ((layout.interval, whole), (rest, 1)):
                for size in sorted(best, reverse=True):
                    count, steps = divmod(steps, size)
                    total += times * count * best[size].cycles(warps, latency, gpu)
                if steps:
                    smallest = min(best)
                    total += times * steps / smallest * best[smallest].cycles(warps, latency, gpu)
        return total * rows + 2 * latency

    most = resident(figures, gpu)
    per_round = most * gpu.multiprocessors
    rounds, left = divmod(blocks, per_round)
    return rounds * thread(most) + (thread(-(-left // gpu.multiprocessors)) if left else 0)


class Recorded(NamedTuple):
    """A launch that a call of the project's operators has led to."""

    program: object
    launch: object
    layout: object


def record(shape, a, gpu: Gpu):
    """The launches of forward and of backward, and {kernel: (cycles of its slowest thread, its issue slots)} for the
    reduce and carry kernels."""
    import ptx
    import torch

    from pmsn_plugins import functional, kernels
    from pmsn_plugins.kernels import cpu

    ptx.LATENCY["ld.global"] = gpu.l2_latency
    timing, found = {}, []

    class Device(ptx.PtxDevice):
        multiprocessors = gpu.multiprocessors

        def _layout(self, call):
            self.now = super()._layout(call)
            return self.now

        def launch(self, program, launches, args, device):
            found.extend(Recorded(program, launch, self.now) for launch in launches)
            super().launch(program, launches, args, device)

    device = Device(timing=timing, skip=("forward", "backward", "local"))
    cpu.library = cpu.library or object()
    cpu.CpuDevice.run = lambda self, call: device.run(call)
    dtype = {"float": torch.float32, "double": torch.float64}[a.real]
    memory = {"Half": torch.float16, "Bfloat16": torch.bfloat16}.get(a.memory, dtype)
    x = torch.zeros(shape, dtype=memory).requires_grad_()
    if a.neuron == "pmsn":
        p = functional.discretize(functional.pmsn_initial_parameters(shape[2], a.k + 1, dtype=dtype))
        p = type(p)(*(t.detach().requires_grad_() for t in p))
        spikes = kernels.pmsn_sequence(x, p, return_state=False, reset_mode=a.reset, backend="cpu").spikes
    else:
        b = torch.tensor([-0.5, 0.5], dtype=dtype).requires_grad_()
        spikes = kernels.tclif_sequence(x, b[0], b[1], return_state=False, backend="cpu").spikes
    forward = len(found)
    spikes.sum().backward()
    return found[:forward], found[forward:], timing


def measure(a) -> dict:
    gpu = GPUS[a.gpu]
    result, compiled = {"kernels": {}, "loops": {}, "shapes": {}}, {}
    for text in a.shapes:
        forward, backward, timing = record(tuple(map(int, text.split("x"))), a, gpu)
        times = result["shapes"][text] = {}
        for direction, launches in (("forward", forward), ("backward", backward)):
            total = 0.0
            for program, (name, grid, _), layout in launches:
                if program not in compiled:
                    compiled[program] = compile_sass(program.source, program.options, gpu.arch)
                    describe(program, *compiled[program], result, gpu)
                figures, code = compiled[program]
                times[name] = microseconds(name, grid, layout, figures[name], loops(code[name]), timing, a, gpu)
                total += times[name]
            times[f"= {direction}, {len(launches)} launches"] = round(total, 1)
    return result


def describe(program, figures, code, result, gpu: Gpu):
    """The rows of the first two tables."""
    at = next((f" T={value}" for name, value in program.constants if name == "T"), "")
    for name, f in figures.items():
        most = resident(f, gpu)
        instructions = sum(kind == "do" for kind, _ in code[name])
        result["kernels"][name + at] = {**f, "instructions": instructions, "blocks_per_SM": most}
        for loop in distinct(loops(code[name])):
            result["loops"][f"{name}{at} {loop.kind} x{loop.steps}"] = {
                "per_step": round(len(loop.body) / loop.steps, 1),
                "loads": loop.loads,
                "in_flight": loop.in_flight,
                **{f"W{w}": round(loop.cycles(w, gpu.dram_latency, gpu) / loop.steps) for w in (1, 4)},
                "full": round(loop.cycles(most, gpu.dram_latency, gpu) / loop.steps),
            }


def microseconds(name, grid, layout, figures, found, timing, a, gpu: Gpu) -> float:
    """Of one launch."""
    stored = {"Plain": {"float": 4, "double": 8}[a.real]}.get(a.memory, 2)
    blocks, bytes_x = grid[0] * grid[1] * grid[2], layout.T * layout.M * stored
    in_l2 = 3 * bytes_x < gpu.l2_bytes
    if name in timing:
        fit = resident(figures, gpu)
        warps = min(-(-blocks // gpu.multiprocessors), fit)
        rounds = max(1, blocks / (gpu.multiprocessors * fit))
        cycles = max(timing[name][0], warps * timing[name][1]) * rounds
    else:
        rows, latency = -(-layout.rows // layout.groups), gpu.l2_latency if in_l2 else gpu.dram_latency
        cycles = kernel_cycles(distinct(found), figures, layout, blocks, rows, gpu, latency)
    passes = 3 if name.endswith("backward") else 1 if name.endswith("local") else 0 if name in timing else 2
    bandwidth = passes * bytes_x / (2 * gpu.gb_per_s if in_l2 else gpu.gb_per_s) / 1e3
    return round(max(cycles / gpu.ghz / 1e3, bandwidth) + LAUNCH_US, 1)


# --- tables ----------------------------------------------------------------------------------------------------------


def show(title, sides, key, columns):
    """Rows by name; a cell that differs between the sides is printed as old > new."""
    print(f"\n{title}")
    names = list(dict.fromkeys(n for side in sides for n in side[key]))
    print(f"{'':34}" + "".join(f"{c:>15}" for c in columns))
    for name in names:
        rows = [side[key].get(name, {}) for side in sides]
        cells = [[str(r.get(c, "-")) for r in rows] for c in columns]
        print(f"{name:34}" + "".join(f"{c[0] if len(set(c)) == 1 else ' > '.join(c):>15}" for c in cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=GPUS, default="H100")
    parser.add_argument("--neuron", default="pmsn", help="gpu_NEURON.cu; times only for pmsn and tclif")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--real", default="float", choices=("float", "double"))
    parser.add_argument("--memory", default="Plain", choices=("Plain", "Half", "Bfloat16"))
    parser.add_argument("--reset", default="modulo", choices=("modulo", "cumulative", "memoryless", "serial"))
    parser.add_argument("--shapes", nargs="*", default=SHAPES, help="TxNxC or TxNxCxS")
    parser.add_argument("--compare", nargs=2, metavar=("BASE", "NEW"), help="two files that --json has printed")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    if a.compare:
        sides = [json.loads(Path(path).read_text()) for path in a.compare]
    else:
        sides = [measure(a)]
        if a.json:
            print(json.dumps(sides[0]))
            return
    print(
        f"{a.neuron} {f'k={a.k} ' if a.neuron == 'pmsn' else ''}{a.real} {a.memory} {a.reset}, "
        f"{a.gpu} ({GPUS[a.gpu].arch}): modelled"
    )
    show("kernels", sides, "kernels", ("registers", "spilled", "local", "shared", "instructions", "blocks_per_SM"))
    show(
        "innermost loops that load, by steps of an iteration: instructions a step, loads of an iteration, loads in"
        "\nflight at a wait; cycles a step of all warps of a scheduler (1, 4, all that fit) when loads come from DRAM",
        sides,
        "loops",
        ("per_step", "loads", "in_flight", "W1", "W4", "full"),
    )
    for shape in dict.fromkeys(s for side in sides for s in side["shapes"]):
        print(f"\n{shape}: microseconds")
        for name in dict.fromkeys(n for side in sides for n in side["shapes"].get(shape, ())):
            cells = [side["shapes"].get(shape, {}).get(name) for side in sides]
            ratio = f"   x {cells[0] / cells[1]:.2f}" if len(cells) == 2 and all(cells) else ""
            print(f"  {name:34}" + "  ->".join(f"{'-' if c is None else c:>10}" for c in cells) + ratio)


if __name__ == "__main__":
    main()
