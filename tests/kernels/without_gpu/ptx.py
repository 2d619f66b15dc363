"""Run the project's CUDA kernels from the PTX that NVRTC makes of them, on the CPU and with every access checked.

``translate`` writes the PTX of one kernel as C++; ``PtxDevice`` takes the place of the emulated device of the tests
(see ``run_ptx.py``). It raises PtxError when a check fires; checked are

- global memory: reads and writes outside the tensors handed over, misaligned ones, writes to what args.h declares
  ``const``, races between threads (of the whole grid; barriers inside a block and a warp are understood)
- shared memory: out of bounds, misaligned, races, reads of what was never written
- local memory: outside the thread's own
- barriers that not all threads reach, shuffles and votes that not all lanes of the mask reach

One thread runs at a time, in order, so a race shows as a report, not as a wrong number. Approximate functions are exact
here, and ``activemask`` is the thread's own lane: legal, but no GPU does it. PTX that is not known (named barriers,
carries, textures, cp.async, tensor cores, calls) is a NotImplementedError, never skipped. Not covered: ptxas, launches
through CuPy, streams.
"""

import collections
import ctypes
import hashlib
import os
import re
import subprocess
import tempfile
from pathlib import Path

import torch
from cupy.cuda import nvrtc

from pmsn_plugins.kernels import gpu

ARCH = os.environ.get("PTX_ARCH", "sm_90")
MULTIPROCESSORS = int(os.environ.get("PTX_SMS", "1"))
CONTRACT = os.environ.get("PTX_FMA", "0") == "1"  # mul + add to fma, as ptxas does
RACES = int(os.environ.get("PTX_RACES", "20000"))  # global races: in calls of at most so many steps * elements
CACHE = Path(os.environ.get("PTX_CACHE", Path(tempfile.gettempdir()) / "pmsn_ptx"))
RUNTIME = Path(__file__).with_name("ptx_runtime.h")
FLAGS = ("-ftz=true",)  # which CuPy adds


class PtxError(AssertionError):
    """A check of the running kernel fired."""


def compile_ptx(source: str, options: tuple, arch: str = ARCH) -> str:
    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*options, *FLAGS, f"-arch={arch}"))
    except nvrtc.NVRTCError as error:
        raise RuntimeError(nvrtc.getProgramLog(program)) from error
    text = nvrtc.getPTX(program)
    return text.decode() if isinstance(text, bytes) else text


# --- PTX to C++ ---------------------------------------------------------------------------------------------------

C = {f"{k}{n}": f"{'int' if k == 's' else 'uint'}{n}_t" for k in "sub" for n in (8, 16, 32, 64)}
C |= {"f32": "float", "f64": "double", "pred": "bool"}
SPECIAL = {
    f"%{p}.{d}": f"{c}.{d}"
    for d in "xyz"
    for p, c in (("tid", "threadIdx"), ("ctaid", "blockIdx"), ("ntid", "blockDim"), ("nctaid", "gridDim"))
}
SPECIAL |= {"%tid.y": "0u", "%tid.z": "0u", "%laneid": "(threadIdx.x % 32)", "WARP_SZ": "32u"}
COMPARE = {
    "eq": "==",
    "ne": "!=",
    "lt": "<",
    "le": "<=",
    "gt": ">",
    "ge": ">=",
    "lo": "<",
    "ls": "<=",
    "hi": ">",
    "hs": ">=",
}
OPPOSITE = {"equ": "!=", "neu": "==", "ltu": ">=", "leu": ">", "gtu": "<=", "geu": "<"}
BITWISE = {"and": "&", "or": "|", "xor": "^", "add": "+", "sub": "-", "mul": "*"}
ROUND = {"rni": "nearbyint", "rzi": "trunc", "rmi": "floor", "rpi": "ceil"}
# cycles from issue to use, and issue slots, of a timed kernel (those of SASS: 64-bit integers take several)
LATENCY = {
    "ld.global": 270,
    "ld.shared": 28,
    "ld.local": 34,
    "ld.param": 12,
    "mufu": 24,
    "cvt": 8,
    "f64": 8,
    "div": 100,
}


def registers(text: str) -> list[str]:
    return re.findall(r"%[a-zA-Z]+\d+", text)


def entries(ptx: str) -> dict[str, tuple[str, str]]:
    """{kernel: (parameters, body)}"""
    ptx = re.sub(r"/\*.*?\*/", "", re.sub(r"//.*", "", ptx), flags=re.S)
    pattern = r"\.visible\s+\.entry\s+(\w+)\((.*?)\)\s*(?:\.\w+[^{]*)?\{(.*?)\n\}"
    return {m[1]: (m[2], m[3]) for m in re.finditer(pattern, ptx, re.S)}


def statements(body: str) -> list[tuple[str, str]]:
    found = []
    for s in body.split(";"):
        while m := re.match(r"[{}\s]*(\$?\w+):(.*)", s, re.S):
            found.append(("label", m[1].replace("$", "L")))
            s = m[2]
        s = re.sub(r"^[{}\s]+", "", " ".join(s.split()))
        if s and not s.startswith((".loc ", ".pragma", "}")):
            found.append(("do", s))
    return found


def contract(body: list) -> list:
    """What ptxas does with -fmad=true: a product that only one sum uses becomes part of it."""
    uses, defined = collections.Counter(), collections.Counter()
    for kind, s in body:
        if kind == "label" or s.startswith("."):
            continue
        op, _, rest = re.sub(r"^@!?%\w+ ", "", s).partition(" ")
        names = registers(rest)
        if names and not op.startswith(("st", "bra")):
            defined[names[0]] += 1
            names = names[1:]
        uses.update(names)
    out, products = [], {}

    def forget(unwanted):
        for name in [n for n, (x, y, _) in products.items() if unwanted(x) or unwanted(y)]:
            del products[name]

    for kind, s in body:
        if kind == "label":
            forget(lambda q: defined[q] > 1)
        elif m := re.match(r"mul(?:\.ftz)?\.f(?:32|64) (%\w+), (\S+), (\S+)$", s):
            if uses[m[1]] == 1 and defined[m[1]] == 1:
                products[m[1]] = (m[2], m[3], len(out))
        elif m := re.match(r"(add|sub)((?:\.ftz)?\.f(?:32|64)) (%\w+), (\S+), (\S+)$", s):
            for name, op in ((m[5], {"add": "fma", "sub": "fnma"}[m[1]]), (m[4], {"add": "fma", "sub": "fms"}[m[1]])):
                if name in products:
                    x, y, at = products.pop(name)
                    out[at] = ("do", "")
                    s = f"{op}.rn{m[2]} {m[3]}, {x}, {y}, {m[4] if name == m[5] else m[5]}"
                    break
        if kind == "do":
            changed = registers(re.sub(r"\}.*", "", s.split(" ", 1)[-1]) if "{" in s else s.split(",")[0])
            forget(lambda q, changed=changed: q in changed)
        out.append((kind, s))
    return [(k, s) for k, s in out if s]


class Kernel:
    """The C++ of one kernel; timed: it also counts cycles, issuing in the order of the PTX."""

    def __init__(self, parameters: str, body: str, contracted: bool, timed: bool):
        self.types, self.declarations, self.code, self.timed = {}, [], [], timed
        self.shared, self.shared_size, self.local, self.parameters, at = {}, 0, None, {}, 0
        for m in re.finditer(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\S* .*?)?(\w+)(?:\[(\d+)\])?\s*(?:,|$)",
            parameters.strip(),
        ):
            size = int(m[4]) if m[4] else int(re.search(r"\d+", m[2])[0]) // 8
            align = int(m[1] or size)
            at = -(-at // align) * align
            self.parameters[m[3]], at = at, at + size
        body = statements(body)
        for kind, s in contract(body) if contracted else body:
            if kind == "label":
                self.code.append(f"{s}: ;")
            elif s.startswith("."):
                self.declare(s)
            else:
                m = re.match(r"@(!?)%(\w+) (.*)$", s)
                try:
                    line = self.instruction(m[3] if m else s)
                except (KeyError, IndexError, TypeError, ValueError) as error:
                    raise NotImplementedError(f"PTX that ptx.py does not know: {s}") from error
                self.code.append((f"if ({m[1]}{m[2]}) " if m else "") + "{ " + line + self.time(s) + " }")

    def declare(self, s):
        if m := re.match(r"\.reg \.(\w+) %(\w+)<(\d+)>$", s):
            names = [f"{m[2]}{i}" for i in range(int(m[3]))]
        elif m := re.match(r"\.reg \.(\w+) %?(\w+)$", s):
            names = [m[2]]
        elif m := re.match(r"\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\]$", s):
            at = -(-self.shared_size // int(m[1])) * int(m[1])
            self.shared[m[2]], self.shared_size = at, at + int(m[3])
            return
        elif m := re.match(r"\.local \.align \d+ \.b8 (\w+)\[(\d+)\]$", s):
            self.local = m[1]
            self.declarations.append(
                f"alignas(16) char {m[1]}[{m[2]}]; memset({m[1]}, 0xff, {m[2]});"
                f" const Local local = {{(uint64_t){m[1]}, (uint64_t){m[1]} + {m[2]}}};"
            )
            return
        else:
            raise NotImplementedError(s)
        if m[2] in self.types:  # inline assembler, in braces of its own, once more
            if self.types[m[2]] != C[m[1]]:
                raise NotImplementedError(s)
            return
        self.types[m[2]] = C[m[1]]
        self.declarations.append(f"{C[m[1]]} " + ", ".join(f"{n} = 0" for n in names) + ";")
        if self.timed:
            self.declarations.append("double " + ", ".join(f"t_{n} = 0" for n in names) + ";")

    def reg(self, x):
        if x in SPECIAL:
            return SPECIAL[x]
        if x.startswith("%") or x in self.types:
            return x.lstrip("%")
        if m := re.match(r"0f([0-9A-Fa-f]{8})$", x):
            return f"bits<float>(0x{m[1]}u)"
        if m := re.match(r"0d([0-9A-Fa-f]{16})$", x):
            return f"bits<double>(uint64_t(0x{m[1]}ull))"
        if re.match(r"-?\d+$", x):
            return "((int64_t)(1ull << 63))" if x == "-9223372036854775808" else f"({x}ll)"
        if re.match(r"0x[0-9a-fA-F]+$", x):
            return x + "ull"
        for names in (self.shared, self.parameters):
            if x in names:
                return f"((uint64_t){names[x]})"
        if x == self.local:
            return f"((uint64_t){x})"
        raise ValueError(x)

    def type(self, x):
        return self.types.get(x.lstrip("%")) or (
            self.types.get(x[1:].rstrip("0123456789")) if x.startswith("%") else None
        )

    def get(self, x, t):
        """Operand x as type t: registers hold bits."""
        c, d, r = C[t], self.type(x), self.reg(x)
        floats = ("float", "double")
        return f"bits<{c}>({r})" if d and (c in floats) != (d in floats) else f"({c}){r}"

    def set(self, x, value, t):
        c, d = C[t], self.type(x)
        floats = ("float", "double")
        if (c in floats) != (d in floats):
            return f"{self.reg(x)} = bits<{d}>(({c})({value}));"
        return f"{self.reg(x)} = ({d})({c})({value});"

    def address(self, a):
        m = re.match(r"\[([%\w$]+)(?:\s*\+\s*(-?\d+))?\]$", a)
        return (
            f"({self.reg(m[1])} + {m[2] or 0}ull)"
            if not (m[2] or "").startswith("-")
            else f"({self.reg(m[1])} - {m[2][1:]}ull)"
        )

    def instruction(self, s):
        name, _, rest = s.partition(" ")
        A = [x.strip() for x in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,])+", rest)] if rest else []
        parts = name.split(".")
        o, t, ftz = parts[0], parts[-1], "ftz" in parts

        def z(e, type_=None):
            return f"flush({e})" if ftz and (type_ or t) == "f32" else f"({e})"

        def f(i):
            return z(self.get(A[i], t))

        def g(i, type_=None):
            return self.get(A[i], type_ or t)

        real = t in ("f32", "f64")
        u = t.replace("s", "u") if not real else t
        if o == "bra":
            return f"goto {A[0].replace('$', 'L')};"
        if o in ("ret", "exit"):
            return "goto done;"
        if o in ("bar", "barrier"):
            if "warp" in parts:
                return f"warp_barrier({self.get(A[0], 'u32')});"
            if "sync" not in parts or A[0] != "0" or len(A) > 1:
                raise ValueError(s)
            return "wait(AT_BARRIER);"
        if o in ("membar", "fence", "prefetch", "prefetchu"):
            return ";"
        if o == "activemask":
            return self.set(A[0], "1u << threadIdx.x % 32", "b32")  # any set that holds the thread itself may be
        if o in ("ld", "st", "ldu"):
            space = next((p for p in parts if p in ("global", "shared", "local", "param")), "generic")
            vector = A[0] if o != "st" else A[1]
            regs, size = [r.strip() for r in vector.strip("{}").split(",")], int(re.search(r"\d+", t)[0]) // 8
            at = self.address(A[1] if o != "st" else A[0])
            more = ", local" if space in ("local", "generic") else ""
            check = ""
            if len(regs) > 1 and space in ("global", "shared"):
                check = (
                    f'if ({at} % {size * len(regs)}) complain("misaligned vector access", {at}, {size * len(regs)});'
                )
            if o == "st":
                return check + " ".join(
                    f"st_{space}<{C[t]}>({at} + {i * size}, {self.get(r, t)}{more});" for i, r in enumerate(regs)
                )
            if any(f"[{r}" in A[1] for r in regs[:-1]):  # the address is overwritten by a part of what is read
                check, at = check + f"const uint64_t at = {at};", "at"
            return check + " ".join(
                self.set(r, f"ld_{space}<{C[t]}>({at} + {i * size}{more})", t) for i, r in enumerate(regs)
            )
        if o in ("atom", "red"):
            b, c = (g(2), g(3) if len(A) > 3 else "") if o == "atom" else (g(1), "")
            how = next(p for p in parts if p in ("add", "min", "max", "exch", "cas", "and", "or", "xor", "inc"))
            e = {
                "exch": b,
                "cas": f"old == {b} ? {c} : old",
                "min": f"std::min<{C[t]}>(old, {b})",
                "max": f"std::max<{C[t]}>(old, {b})",
            }.get(how) or f"old {BITWISE[how]} {b}"
            where = f"{self.address(A[o == 'atom'])}, {str('shared' in parts).lower()}"
            call = f"atomic<{C[t]}>({where}, [&]({C[t]} old) -> {C[t]} {{ return {e}; }})"
            return self.set(A[0], call, t) if o == "atom" else call + ";"
        if o == "shfl":
            d, _, p = A[0].partition("|")
            return self.set(
                d,
                f"shuffle('{parts[2][0]}', {', '.join(self.get(x, 'u32') for x in A[1:])}, "
                f"{'&' + self.reg(p) if p else 'nullptr'})",
                "b32",
            )
        if o == "vote":
            value = f"ballot({'!' if A[1][0] == '!' else ''}{self.reg(A[1].lstrip('!'))}, {self.get(A[2], 'u32')})"
            e = {"ballot": value, "any": f"{value} != 0", "all": f"{value} == {self.get(A[2], 'u32')}"}[parts[2]]
            return self.set(A[0], e, t)
        if o == "cvta":
            shift = (
                ""
                if "shared" not in parts
                else "- (uint64_t)shared_memory"
                if "to" in parts
                else "+ (uint64_t)shared_memory"
            )
            return self.set(A[0], f"{g(1)} {shift}", t)
        if o == "mov":
            if A[0][0] == "{" or A[1][0] == "{":
                wide = int(t[1:])
                regs = [r.strip() for r in (A[0] if A[0][0] == "{" else A[1]).strip("{}").split(",")]
                n = wide // len(regs)
                if A[0][0] == "{":
                    return " ".join(
                        self.set(r, f"{g(1, f'u{wide}')} >> {n * i}", f"u{n}") for i, r in enumerate(regs) if r != "_"
                    )
                return self.set(
                    A[0],
                    " | ".join(f"(uint{wide}_t){self.get(r, f'u{n}')} << {n * i}" for i, r in enumerate(regs)),
                    f"u{wide}",
                )
            return self.set(A[0], g(1), t)
        if real:
            fma = f"__builtin_fma{'f' if t == 'f32' else ''}"
            value = {
                "add": lambda: f"{f(1)} + {f(2)}",
                "sub": lambda: f"{f(1)} - {f(2)}",
                "mul": lambda: f"{f(1)} * {f(2)}",
                "div": lambda: f"{f(1)} / {f(2)}",
                "fma": lambda: f"{fma}({f(1)}, {f(2)}, {f(3)})",
                "mad": lambda: f"{fma}({f(1)}, {f(2)}, {f(3)})",
                "fnma": lambda: f"{fma}(-{f(1)}, {f(2)}, {f(3)})",
                "fms": lambda: f"{fma}({f(1)}, {f(2)}, -{f(3)})",
                "rcp": lambda: f"({C[t]})1 / {f(1)}",
                "sqrt": lambda: f"std::sqrt({f(1)})",
                "rsqrt": lambda: f"({C[t]})1 / std::sqrt({f(1)})",
                "abs": lambda: f"std::fabs({f(1)})",
                "neg": lambda: f"-{f(1)}",
                "min": lambda: f"std::fmin({f(1)}, {f(2)})",
                "max": lambda: f"std::fmax({f(1)}, {f(2)})",
                "ex2": lambda: f"std::exp2({f(1)})",
                "lg2": lambda: f"std::log2({f(1)})",
                "sin": lambda: f"std::sin({f(1)})",
                "cos": lambda: f"std::cos({f(1)})",
                "tanh": lambda: f"std::tanh({f(1)})",
                "copysign": lambda: f"std::copysign({f(2)}, {f(1)})",
            }.get(o)
            if value:
                if "sat" in parts:
                    raise ValueError(s)
                if "NaN" in parts:  # of min and max: NaN where one is
                    return self.set(A[0], z(f"{f(1)} != {f(1)} || {f(2)} != {f(2)} ? NAN : {value()}"), t)
                return self.set(A[0], z(value()), t)
        if o == "setp":
            c, x, y = parts[1], *((f(1), f(2)) if real else (f"({g(1)})", f"({g(2)})"))
            e = {"nan": f"{x} != {x} || {y} != {y}", "num": f"{x} == {x} && {y} == {y}"}.get(c)
            if e is None:
                e = f"!({x} {OPPOSITE[c]} {y})" if c in OPPOSITE else f"{x} {COMPARE[c]} {y}"
            if real and c in ("ne", "equ"):
                e = f"{'!' if c == 'equ' else ''}({x} < {y} || {x} > {y})"
            if len(A) == 4:
                e = f"({e}) {BITWISE[parts[2]]} {'!' if A[3][0] == '!' else ''}{self.reg(A[3].lstrip('!'))}"
            if "|" in A[0]:
                raise ValueError(s)
            return f"{self.reg(A[0])} = {e};"
        if o == "selp":
            return self.set(A[0], f"{self.reg(A[3])} ? {g(1)} : {g(2)}", t)
        if o == "cvt":
            to = parts[-2]
            if "f16" in parts or "bf16" in parts:
                if to == "f32" and t == "f16":
                    return self.set(A[0], f"from_half({self.get(A[1], 'u16')})", "f32")
                return self.set(A[0], f"to_{ {'f16': 'half', 'bf16': 'bfloat16'}[to] }({self.get(A[1], 'f32')})", "u16")
            value = z(self.get(A[1], t), t) if t in ("f32", "f64") else self.get(A[1], t)
            if to[0] != "f" and real:
                return self.set(
                    A[0], f"to_integer<{C[to]}>({ROUND[next(p for p in parts if p in ROUND)]}({value}))", to
                )
            if to == t and real and any(p in ROUND for p in parts):
                value = f"{ROUND[next(p for p in parts if p in ROUND)]}({value})"
            if "sat" in parts:
                raise ValueError(s)
            return self.set(A[0], z(f"({C[to]})({value})", to), to)
        if o in ("mul", "mad") or (o == "mul24"):
            mode = parts[1]
            if mode == "lo":
                e, wide = f"({g(1, u)}) * ({g(2, u)})", u
            elif mode == "wide":
                wide = f"{t[0]}{int(t[1:]) * 2}"
                e = f"({C[wide]})({g(1)}) * ({C[wide]})({g(2)})"
            else:
                double = {"s64": "__int128", "u64": "unsigned __int128", "s32": "int64_t", "u32": "uint64_t"}[t]
                e, wide = f"(({double})({g(1)}) * ({double})({g(2)})) >> {t[1:]}", t
            return self.set(A[0], f"({C[wide]})({e})" + (f" + {g(3, wide)}" if o == "mad" else ""), wide)
        if o in ("shl", "shr"):
            n, width = f"(uint32_t){self.reg(A[2])}", int(t[1:])
            if o == "shl":
                return self.set(A[0], f"{n} >= {width} ? 0 : {g(1)} << {n}", t)
            return self.set(
                A[0],
                f"{g(1)} >> ({n} >= {width} ? {width - 1} : {n})"
                if t[0] == "s"
                else f"{n} >= {width} ? 0 : {g(1)} >> {n}",
                t,
            )
        if o == "shf":
            pair, n = (
                f"((uint64_t){g(2)} << 32 | {g(1)})",
                f"({g(3)} & 31)" if "wrap" in parts else f"std::min<uint32_t>({g(3)}, 32)",
            )
            return self.set(A[0], f"{pair} << {n} >> 32" if parts[1] == "l" else f"{pair} >> {n}", "b32")
        if o == "lop3":
            table = int(A[4], 0)
            terms = [
                " & ".join(("" if i >> b & 1 else "~") + f"({g(x)})" for x, b in ((1, 2), (2, 1), (3, 0)))
                for i in range(8)
                if table >> i & 1
            ]
            return self.set(A[0], " | ".join(f"({x})" for x in terms) or "0", t)
        if any(p in ("cc", "sat") for p in parts):
            raise ValueError(s)
        value = {
            "add": lambda: f"{g(1, u)} + {g(2, u)}",
            "sub": lambda: f"{g(1, u)} - {g(2, u)}",
            "neg": lambda: f"0 - {g(1, u)}",
            "div": lambda: f"{g(1)} / {g(2)}",
            "rem": lambda: f"{g(1)} % {g(2)}",
            "abs": lambda: f"{g(1)} < 0 ? 0 - {g(1)} : {g(1)}",
            "min": lambda: f"std::min<{C[t]}>({g(1)}, {g(2)})",
            "max": lambda: f"std::max<{C[t]}>({g(1)}, {g(2)})",
            "and": lambda: f"{g(1)} & {g(2)}",
            "or": lambda: f"{g(1)} | {g(2)}",
            "xor": lambda: f"{g(1)} ^ {g(2)}",
            "not": lambda: f"{'!' if t == 'pred' else '~'}{g(1)}",
            "popc": lambda: f"__builtin_popcountll({g(1)})",
            "clz": lambda: f"{g(1)} ? __builtin_clzll({g(1)}) - {64 - int(t[1:])} : {t[1:]}",
            "prmt": lambda: f"prmt({g(1)}, {g(2)}, {g(3)})",
            "bfe": lambda: f"bfe({g(1)}, {g(2, 'u32')} & 255, {g(3, 'u32')} & 255)" if t == "u32" else None,
        }[o]()
        return self.set(A[0], value, "u32" if o in ("popc", "clz") else u if o in ("add", "sub", "neg") else t)

    def time(self, s):
        """Statements that advance the clock: an instruction waits for its operands, its result for the latency."""
        if not self.timed:
            return ""
        name, _, rest = re.sub(r"^@!?%\w+ ", "", s).partition(" ")
        parts = name.split(".")
        o, t = parts[0], parts[-1]
        kind = f"{o}.{parts[1]}" if o == "ld" else "f64" if t == "f64" else o
        latency = LATENCY.get("mufu" if o in ("rcp", "sqrt", "ex2", "rsqrt", "lg2") else kind, 4)
        slots = 0.5 if o in ("mov", "cvta", "not") else 1
        if t[-2:] == "64" and t[0] in "sub" and o not in ("ld", "st", "mov", "cvta"):
            slots, latency = {"mul": (4, 12), "mad": (4, 12), "div": (40, 300), "rem": (40, 300)}.get(
                o, (2, max(6, latency))
            )
        elif o in ("div", "rem"):
            slots, latency = (18, LATENCY["div"])
        names = [r for r in re.findall(r"%[\w.]+", s) if self.type(r)]
        target = (
            []
            if o in ("st", "bra", "bar", "ret", "red")
            else [r for r in re.findall(r"%[\w.]+", rest.split("}")[0] if rest.startswith("{") else rest.split(",")[0])]
        )
        wait = "".join(f" now = std::max(now, t_{r[1:]});" for r in dict.fromkeys(names) if r not in target)
        advance = f"{wait} now += {slots}; slots += {slots};" + "".join(
            f" t_{r[1:]} = now + {latency};" for r in target
        )
        return advance if o not in ("bra", "ret") else ""


def translate(ptx: str, kernel: str, contracted: bool = CONTRACT, timed: bool = False) -> str:
    k = Kernel(*entries(ptx)[kernel], contracted, timed)
    clock = "double now = 0, slots = 0;" if timed else ""
    local = "" if k.local else "const Local local = {0, 0};"
    end = "longest = std::max(longest, now); issued = std::max(issued, slots);" if timed else ";"
    lines = "\n".join((*k.declarations, *k.code))
    return (
        f'#define SHARED {k.shared_size}\n#include "{RUNTIME}"\n'
        f'extern "C" void {kernel}(char*) {{\n{clock}{local}\n{lines}\n'
        f"done: {end}\n}}\n"
    )


# --- the device -----------------------------------------------------------------------------------------------------

_extent = {}  # {address: end} of the tensors whose address was taken
_data_ptr = torch.Tensor.data_ptr


def _remembered(tensor):
    address = _data_ptr(tensor)
    bytes_ = tensor.numel() * tensor.element_size()
    _extent[address] = (
        address + bytes_
        if tensor.is_contiguous()
        else tensor.untyped_storage().data_ptr() + tensor.untyped_storage().nbytes()
    )
    return address


torch.Tensor.data_ptr = _remembered


class PtxDevice(gpu.CupyDevice):
    """A GPU with ``multiprocessors`` that runs translated PTX. ``timing``, when a dict, receives for every kernel
    launched (cycles of the slowest thread, its issue slots) of its first block, and kernels in ``skip`` do not run."""

    multiprocessors = MULTIPROCESSORS
    launched = 0

    def __init__(self, folder=None, timing=None, skip=()):
        self.kernels, self.ptx, self.timing, self.skip = {}, {}, timing, skip

    def launch(self, program, launches, args, device):
        struct = re.search(rf"struct {type(args).__name__} \{{(.*?)\n\}};", program.source, re.S)[1]
        inputs = set(re.findall(r"\w+", " ".join(re.findall(r"const void([^;]*);", struct))))
        fields = [(name, getattr(args, name)) for name, kind in args._fields_ if kind is ctypes.c_void_p]
        given = [(name, a) for name, a in fields if a]
        low = (ctypes.c_uint64 * len(given))(*(a for _, a in given))
        high = (ctypes.c_uint64 * len(given))(*(_extent[a] for _, a in given))
        constant = (ctypes.c_int * len(given))(*(name in inputs for name, _ in given))
        elements = args.T * args.M if hasattr(args, "T") else args.C * args.k
        text, cycles = ctypes.create_string_buffer(4096), (ctypes.c_double * 2)()
        for name, grid, threads in launches:
            if name.endswith(self.skip):
                continue
            run, kernel = self.kernel(program, name)
            fired = run(
                kernel,
                ctypes.c_void_p(ctypes.addressof(args)),
                ctypes.sizeof(args),
                *grid,
                threads,
                len(given),
                low,
                high,
                constant,
                int(elements <= RACES),
                ctypes.c_longlong(1 << 60 if self.timing is None else 1),
                text,
                len(text),
                cycles,
            )
            PtxDevice.launched += 1
            if self.timing is not None:
                self.timing[name] = tuple(cycles)
            elif fired:
                buffers = ", ".join(f"{n} {a:#x}..{_extent[a]:#x}" for n, a in given)
                raise PtxError(
                    f"{name} {dict(program.constants)} grid {grid}: {fired} checks fired\n"
                    f"{text.value.decode()}buffers: {buffers}"
                )

    def kernel(self, program, name):
        key = program, name
        if key not in self.kernels:
            if program not in self.ptx:
                self.ptx[program] = compile_ptx(program.source, program.options)
            code = translate(self.ptx[program], name, timed=self.timing is not None)
            CACHE.mkdir(parents=True, exist_ok=True)
            path = CACHE / (hashlib.sha1((code + RUNTIME.read_text()).encode()).hexdigest() + ".so")
            if not path.exists():
                new = f"{path}.{os.getpid()}"
                command = [
                    "g++",
                    "-x",
                    "c++",
                    "-std=c++17",
                    "-O1",
                    "-march=native",
                    "-ffp-contract=off",
                    "-fno-strict-aliasing",
                    "-w",
                ]
                result = subprocess.run(
                    [*command, "-fpermissive", "-shared", "-fPIC", "-", "-o", new],
                    input=code,
                    text=True,
                    capture_output=True,
                )
                if result.returncode:
                    raise RuntimeError(f"g++ on the translated {name}: {result.stderr[:2000]}")
                os.replace(new, path)
            library = ctypes.CDLL(str(path))
            self.kernels[key] = library.run, ctypes.cast(getattr(library, name), ctypes.c_void_p)
        return self.kernels[key]
