"""PTX -> C++ headers that take the place of csrc/cuda/*.cuh in the programs of this folder.

In: the PTX that a CUDA compiler made of the kernels. Out: one header per .cuh, with a function of the kernel's name and
parameters for each kernel, its registers as variables, its branches as gotos, its instructions by the list of
ptx_instructions.py. The programs compile against these headers unchanged and run what the compiler understood of the
source, not what g++ does: inline assembly, words under __CUDA_ARCH__, and the compiler's own work are then tested too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ptx_instructions import LOADS, SHUFFLES, STORES, form_of, split_memory_opcode
from ptx_text import TYPE_BYTES, Instruction, Kernel, Label, Registers, Scope, Statement, Unsupported, read_kernels

# The C++ parameters of the kernels, and the header that declares them, by the beginning of the name.
SIGNATURES = {
    "cer_fold_tile": ("fold_tile.cuh", ("cer::FoldTile", "double*", "std::int64_t")),
    "cer_merge_splits": ("fold_tile.cuh", ("cer::FoldTile", "const double*", "std::int64_t")),
    "cer_merge_states": ("merge_states.cuh", ("cer::MergeStates",)),
    "cer_finish_rows": ("finish_rows.cuh", ("cer::FinishRows",)),
    "cer_grad_tile": ("grad_tile.cuh", ("cer::GradTile", "std::int64_t")),
    "cer_teca_forward": ("teca.cuh", ("cer::Teca",)),
    "cer_teca_backward": ("teca.cuh", ("cer::TecaBackward",)),
}
HEADERS = ("fold_tile.cuh", "merge_states.cuh", "finish_rows.cuh", "grad_tile.cuh", "teca.cuh")

SPECIAL_REGISTERS = {
    "%tid.x": "threadIdx.x",
    "%ctaid.x": "blockIdx.x",
    "%ntid.x": "blockDim.x",
    "%nctaid.x": "gridDim.x",
}


def write_headers(texts: Iterable[str], into: Path) -> list[Kernel]:
    """The headers of every kernel in some PTX modules; returns the kernels."""
    kernels = list({kernel.name: kernel for text in texts for kernel in read_kernels(text)}.values())
    functions: dict[str, list[str]] = {header: [] for header in HEADERS}
    for kernel in kernels:
        header, parameters = _signature(kernel.name)
        functions[header].append(Function(kernel, parameters).text())
    for header, texts_of_functions in functions.items():
        body = "\n".join(texts_of_functions)
        (into / header).write_text(f'#pragma once\n#include "kernels.h"\n#include "ptx_machine.h"\n\n{body}')
    return kernels


def _signature(name: str) -> tuple[str, tuple[str, ...]]:
    for beginning, signature in SIGNATURES.items():
        if name.startswith(beginning):
            return signature
    raise Unsupported(f"kernel {name!r}: its C++ parameters are not in SIGNATURES")


class Function:
    """One kernel as a C++ function."""

    def __init__(self, kernel: Kernel, parameter_types: tuple[str, ...]) -> None:
        self.kernel = kernel
        self.shared = {name: index for index, name in enumerate(kernel.shared)}
        self.parameter_types = parameter_types
        self.registers = {
            name for statement in kernel.statements if isinstance(statement, Registers) for name in statement.names()
        }
        if len(parameter_types) != len(kernel.parameters):
            raise Unsupported(f"{kernel.name}: {len(kernel.parameters)} parameters, expected {parameter_types}")

    def text(self) -> str:
        parameters = list(self.kernel.parameters.items())
        declared = ", ".join(f"{t} {n}" for t, (n, _) in zip(self.parameter_types, parameters, strict=True))
        lines = [f"namespace ptx {{\ninline void {self.kernel.name}({declared}) {{"]
        lines += [f'  static_assert(sizeof({name}) == {size}, "{name}");' for name, size in parameters]
        if self.shared:
            sizes = self.kernel.shared.values()
            lines.append(f"  static const char keys[{len(sizes)}] = {{}};")
            arrays = ", ".join(f"{{&keys[{i}], {size}}}" for i, size in enumerate(sizes))
            lines.append(f"  static const SharedArray arrays[] = {{{arrays}}};")
            lines.append(f"  const Shared<{len(sizes)}> shared{{arrays}};")
        used = set(re.findall(r"[%\w]+", " ".join(_operand_text(self.kernel))))
        for statement in self.kernel.statements:
            try:
                lines.append(self.statement(statement, used))
            except Unsupported as error:
                raise Unsupported(f"{self.kernel.name}: {error} in {statement}") from None
        lines.append(f"}}\n}}  // namespace ptx\nusing ptx::{self.kernel.name};\n")
        return "\n".join(lines)

    def statement(self, statement: Statement, used: set[str]) -> str:
        match statement:
            case Label(name):
                return f" {_label(name)}:;"
            case Scope(opens):
                return "  {" if opens else "  }"
            case Registers(kind):
                start = "false" if kind == "pred" else f"b{8 * TYPE_BYTES[kind]}(~0ull)"
                declared = ", ".join(f"{_register(one)} = {start}" for one in statement.names() if one in used)
                return f"  {_register_type(kind)} {declared};" if declared else ""
            case Instruction():
                condition = ""
                if statement.guard is not None:
                    condition = f"if ({'!' if statement.guard_negated else ''}{_register(statement.guard)}) "
                return f"  {condition}{self.instruction(statement)}"

    def instruction(self, instruction: Instruction) -> str:
        opcode, operands = instruction.opcode, instruction.operands
        if memory := split_memory_opcode(opcode):
            return self.access(*memory, operands)
        if opcode in ("bra", "bra.uni"):
            return f"goto {_label(operands[0])};"
        if opcode == "ret":
            return "return;"
        if opcode == "bar.sync" and operands == ("0",):
            return "__syncthreads();"
        if opcode == "bar.warp.sync":
            return f"__syncwarp({self.value(operands[0], 'u32')});"
        if opcode.startswith("shfl.sync.") and opcode.endswith(".b32"):
            return self.shuffle(SHUFFLES[opcode.split(".")[2]], operands)
        if opcode.startswith("mov.b") and "{" in operands[0] + operands[1]:
            return self.move_parts(opcode.removeprefix("mov."), operands)
        form = form_of(opcode)
        if len(operands) - 1 != len({letter for letter in "abc" if f"{{{letter}}}" in form.cpp}):
            raise Unsupported(f"{opcode} with {len(operands)} operands")
        values = {
            letter: self.value(operand, kind)
            for letter, operand, kind in zip("abc", operands[1:], form.reads, strict=False)
        }
        return self.put(operands[0], form.writes, form.cpp.format(**values))

    def put(self, destination: str, kind: str, value: str) -> str:
        if destination == "_":  # a part of a vector that nobody wants
            return ""
        if destination not in self.registers:
            raise Unsupported(f"{destination!r} is no register")
        return f"put<{kind}>({_register(destination)}, {value});"

    def value(self, operand: str, kind: str) -> str:
        """An operand read as ``kind``."""
        if operand in SPECIAL_REGISTERS:
            return f"{kind}({SPECIAL_REGISTERS[operand]})"
        if operand.startswith("!"):
            return f"!{self.value(operand[1:], kind)}"
        if operand in self.registers:
            return f"as<{kind}>({_register(operand)})"
        if match := re.fullmatch(r"0([fd])([0-9A-Fa-f]+)", operand):
            bits = f"u{4 * len(match[2])}(0x{match[2]}ull)"
            return f"as<{kind}>({bits})"
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)U?", operand):
            if kind == "pred":
                return "false" if operand == "0" else "true"
            return f"static_cast<{kind}>({int(operand.rstrip('U'), 0) % 2**64}ull)"
        if operand in self.shared:
            return f"{kind}(shared_address({self.shared[operand]}))"
        if operand in self.kernel.parameters:
            return f"{kind}(address_of({operand}))"
        raise Unsupported(f"operand {operand!r}")

    def access(self, access: str, count: int, kind: str, operands: tuple[str, ...]) -> str:
        """ld and st, of one value or of a vector, whose address is then a multiple of the whole vector's size."""
        loads = access.startswith("ld")
        place = re.fullmatch(r"\[([^+\]]+)(?:\+(-?\d+))?\]", operands[1 if loads else 0])
        if place is None or kind not in TYPE_BYTES:
            raise Unsupported(f"{access}.{kind} {operands}")
        base, offset = place[1], int(place[2] or 0)
        values = _parts(operands[0 if loads else 1])
        if len(values) != count:
            raise Unsupported(f"{access} of {count} with {values}")
        if access.endswith(".shared"):
            where, memory = self.value(base, "u32"), "shared."
        elif access in LOADS | STORES:
            where, memory = self.value(base, "u64"), ""
        else:
            raise Unsupported(access)
        size = TYPE_BYTES[kind]
        steps = []
        for index, value in enumerate(values):
            address = f"at + {index * size}" if index else "at"
            if loads:
                steps.append(self.put(value, kind, f"{memory}load<{kind}>({address})"))
            else:
                steps.append(f"{memory}store<{kind}>({address}, {self.value(value, kind)});")
        at = f"{where} + ({offset})" if offset else where
        at = f"aligned({at}, {count * size})" if count > 1 else at
        return f"{{ const auto at = {at}; {' '.join(steps)} }}"

    def shuffle(self, mode: str, operands: tuple[str, ...]) -> str:
        """shfl.sync; a second destination is refused where somebody reads it."""
        destination, _, found = operands[0].partition("|")
        rest = ", ".join(self.value(operand, "u32") for operand in operands[1:])
        used = f"%{found.lstrip('%')}" in " ".join(_operand_text(self.kernel, skip_opcode="shfl"))
        if found and used:  # whether the source lane was there
            raise Unsupported("the predicate of a shuffle")
        return self.put(destination, "u32", f"shuffled(Shuffle::{mode}, {rest})")

    def move_parts(self, kind: str, operands: tuple[str, ...]) -> str:
        """mov between a register and its halves or quarters, the first part being the lowest."""
        to, source = (_parts(operand) for operand in operands)
        bits = 8 * TYPE_BYTES[kind] // max(len(to), len(source))
        if len(source) > 1:
            parts = (f"{kind}({self.value(part, f'b{bits}')}) << {i * bits}" for i, part in enumerate(source))
            return self.put(to[0], kind, " | ".join(parts))
        whole = f"const {kind} whole = {self.value(source[0], kind)};"
        puts = " ".join(self.put(part, f"b{bits}", f"b{bits}(whole >> {i * bits})") for i, part in enumerate(to))
        return f"{{ {whole} {puts} }}"


def _operand_text(kernel: Kernel, skip_opcode: str = "") -> Iterable[str]:
    for instruction in kernel.instructions():
        if not skip_opcode or not instruction.opcode.startswith(skip_opcode):
            yield from instruction.operands
            yield f"%{instruction.guard} "


def _parts(operand: str) -> list[str]:
    return [part.strip() for part in operand.strip("{}").split(",")]


def _label(name: str) -> str:
    return name.lstrip("$")


def _register(name: str) -> str:
    """The C++ variable: %f32 is a register, and f32 a type."""
    return f"{name.lstrip('%')}_"


def _register_type(kind: str) -> str:
    return "pred" if kind == "pred" else f"b{8 * TYPE_BYTES[kind]}"
