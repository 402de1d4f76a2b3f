"""The PTX instructions that the translator knows, and the C++ each becomes (words of ptx_machine.h).

This list is the whole of it: an opcode that is not here raises Unsupported. ``{a} {b} {c}`` are the operands after the
destination, read as the types in ``reads``. Instructions whose operands are not plain values (addresses, vectors,
labels, the warp) are written by ptx_to_cpp.py itself; their names are at the end.

Rounding: without a modifier add, sub, mul round to nearest; so they do here, one by one, and fma once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ptx_text import Unsupported


@dataclass(frozen=True)
class Form:
    cpp: str
    reads: tuple[str, ...]
    writes: str


FORMS: dict[str, Form] = {}

FLOATS = "f32 f64"
SIGNED = "s32 s64"
UNSIGNED = "u32 u64"
BITS = "b16 b32 b64"
ANY = f"u16 s16 {BITS} {UNSIGNED} {SIGNED} {FLOATS}"


def define(opcodes: str, types: str, cpp: str, *, reads: str = "T T T", writes: str = "T", wraps: bool = False) -> None:
    """Each opcode with each type behind it. ``T`` is that type; ``wraps`` computes signed integers modulo 2^n."""
    for opcode in opcodes.split():
        for kind in types.split():
            own = kind.replace("s", "u") if wraps else kind
            operands = tuple(own if read == "T" else read for read in reads.split())
            FORMS[f"{opcode}.{kind}"] = Form(cpp, operands, own if writes == "T" else writes)


# Arithmetic
define("add add.rn", FLOATS, "{a} + {b}")
define("sub sub.rn", FLOATS, "{a} - {b}")
define("mul mul.rn", FLOATS, "{a} * {b}")
define("div.rn", FLOATS, "{a} / {b}")
define("fma.rn", FLOATS, "std::fma({a}, {b}, {c})")
define("fma.rm", "f32", "fma_downward({a}, {b}, {c})")
define("neg", FLOATS, "-{a}")
define("abs", FLOATS, "std::fabs({a})")
define("copysign", FLOATS, "std::copysign({b}, {a})")
define("min", FLOATS, "smaller({a}, {b})")
define("max", FLOATS, "larger({a}, {b})")
define("ex2.approx", "f32", "ex2_approx({a})")
define("ex2.approx.ftz", "f32", "ex2_approx_ftz({a})")
define("rcp.approx.ftz", FLOATS, "rcp_approx_ftz({a})")

define("add", f"{SIGNED} {UNSIGNED}", "{a} + {b}", wraps=True)
define("sub", f"{SIGNED} {UNSIGNED}", "{a} - {b}", wraps=True)
define("mul.lo", f"{SIGNED} {UNSIGNED}", "{a} * {b}", wraps=True)
define("mad.lo", f"{SIGNED} {UNSIGNED}", "{a} * {b} + {c}", wraps=True)
define("neg", SIGNED, "0u - {a}", wraps=True)
define("mul.wide", "u32", "u64({a}) * {b}", writes="u64")
define("mul.wide", "s32", "s64({a}) * {b}", writes="s64")
define("div", f"{SIGNED} {UNSIGNED}", "quotient({a}, {b})")
define("rem", f"{SIGNED} {UNSIGNED}", "remainder({a}, {b})")
define("min", f"{SIGNED} {UNSIGNED}", "std::min({a}, {b})")
define("max", f"{SIGNED} {UNSIGNED}", "std::max({a}, {b})")

# Bits
define("and", BITS, "{a} & {b}")
define("or", BITS, "{a} | {b}")
define("xor", BITS, "{a} ^ {b}")
define("not", BITS, "~{a}")
define("and", "pred", "{a} && {b}")
define("or", "pred", "{a} || {b}")
define("xor", "pred", "{a} != {b}")
define("not", "pred", "!{a}")
define("shl", BITS, "shift_left({a}, {b})", reads="T u32")
define("shr", f"{BITS} {SIGNED} {UNSIGNED}", "shift_right({a}, {b})", reads="T u32")

# Choice and comparison. With a NaN the ordered comparisons are false and the ...u ones true.
define("selp", ANY, "({c} ? {a} : {b})", reads="T T pred")
for name, cpp in (
    ("eq", "{a} == {b}"),
    ("ne", "{a} != {b}"),
    ("lt", "{a} < {b}"),
    ("le", "{a} <= {b}"),
    ("gt", "{a} > {b}"),
    ("ge", "{a} >= {b}"),
):
    define(f"setp.{name}", f"u16 s16 {BITS} {UNSIGNED} {SIGNED}", cpp, writes="pred")
for name, cpp in (
    ("eq", "{a} == {b}"),
    ("ne", "({a} < {b} || {a} > {b})"),
    ("lt", "{a} < {b}"),
    ("le", "{a} <= {b}"),
    ("gt", "{a} > {b}"),
    ("ge", "{a} >= {b}"),
    ("equ", "!({a} < {b} || {a} > {b})"),
    ("neu", "{a} != {b}"),
    ("ltu", "!({a} >= {b})"),
    ("leu", "!({a} > {b})"),
    ("gtu", "!({a} <= {b})"),
    ("geu", "!({a} < {b})"),
    ("num", "({a} == {a} && {b} == {b})"),
    ("nan", "({a} != {a} || {b} != {b})"),
):
    define(f"setp.{name}", FLOATS, cpp, writes="pred")

# Conversion
INTEGERS = [f"{sign}{bits}" for sign in "us" for bits in (8, 16, 32, 64)]
for to in INTEGERS:
    define(f"cvt.{to}", " ".join(INTEGERS), f"static_cast<{to}>({{a}})", writes=to)
for to in FLOATS.split():
    define(f"cvt.rn.{to}", " ".join(INTEGERS), f"static_cast<{to}>({{a}})", writes=to)
define("cvt.f64", "f32", "static_cast<f64>({a})", writes="f64")
define("cvt.rn.f32", "f64", "static_cast<f32>({a})", writes="f32")
define("cvt.rni.f32", "f32", "std::nearbyint({a})")
define("cvt.sat.f32", "f32", "saturated({a})")
define("cvt.f32", "f16", "f32_of_f16({a})", reads="u16", writes="f32")
for rounding in ("rn", "rz"):
    define(f"cvt.{rounding}.bf16", "f32", f"bf16_{rounding}({{a}})", writes="u16")
    define(f"cvt.{rounding}.f16", "f32", f"f16_{rounding}({{a}})", writes="u16")

# Moves. Addresses of global memory are addresses.
define("mov", f"{ANY} pred", "{a}")
define("cvta.to.global", "u64", "{a}")


# Instructions with other operands.
LOADS = {f"ld{space}" for space in ("", ".global", ".param")}
STORES = {"st.global"}
SHUFFLES = {"up": "kUp", "down": "kDown", "bfly": "kXor", "idx": "kIndex"}


def split_memory_opcode(opcode: str) -> tuple[str, int, str] | None:
    """``ld.global.v4.u32`` -> ("ld.global", 4, "u32"); None if the opcode is no access that is known."""
    access, _, kind = opcode.rpartition(".")
    count = 1
    if access.endswith((".v2", ".v4")):
        access, count = access[:-3], int(access[-1])
    known = LOADS | STORES | {"ld.shared", "st.shared"}
    return (access, count, kind) if access in known else None


def form_of(opcode: str) -> Form:
    if opcode not in FORMS:
        raise Unsupported(f"instruction {opcode!r} is not in the list of ptx_instructions.py")
    return FORMS[opcode]
