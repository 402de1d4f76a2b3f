"""PTX as text -> kernels with their parameters, shared arrays and statements.

In: what nvcc -ptx or NVRTC writes for csrc/cuda. Out: one Kernel per ``.entry``. Only what those compilers emit for
these kernels is read; the rest (functions that are called, local memory, dynamic shared memory) raises Unsupported.

Source: NVIDIA, "Parallel Thread Execution ISA", chapters 4 (syntax), 5 (state spaces), 9.3 (predication), 11
(directives).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

TYPE_BYTES = {"pred": 1} | {f"{kind}{bits}": bits // 8 for kind in "usb" for bits in (8, 16, 32, 64)}
TYPE_BYTES |= {"f32": 4, "f64": 8}


class Unsupported(Exception):
    """PTX that this reader or the list of instructions does not know. Nothing is guessed."""


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Scope:
    """The beginning or the end of a block with registers of its own."""

    opens: bool


@dataclass(frozen=True)
class Registers:
    """``.reg .b32 %r<3>;`` declares %r0, %r1, %r2 (count 3); ``.reg .b32 %t;`` or ``.reg .b32 t;`` one (count None)."""

    type: str
    name: str
    count: int | None

    def names(self) -> list[str]:
        return [self.name] if self.count is None else [f"{self.name}{i}" for i in range(self.count)]


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple[str, ...]
    guard: str | None = None  # predicate register
    guard_negated: bool = False


Statement = Label | Scope | Registers | Instruction


@dataclass
class Kernel:
    name: str
    parameters: dict[str, int]  # name -> bytes, in order
    max_threads: int | None
    min_blocks: int | None  # per multiprocessor
    shared: dict[str, int] = field(default_factory=dict)  # name -> bytes
    statements: list[Statement] = field(default_factory=list)

    def instructions(self) -> list[Instruction]:
        return [statement for statement in self.statements if isinstance(statement, Instruction)]


_ENTRY = re.compile(r"\.entry\s+(\w+)\s*\(([^)]*)\)([^{]*)\{", re.DOTALL)
_PARAMETER = re.compile(r"\.param(?:\s+\.align\s+\d+)?\s+\.(\w+)(?:\s+\.ptr(?:\s+\.\w+\s*\d*)*)?\s+(\w+)(?:\[(\d+)\])?")
_SHARED = re.compile(r"\.shared\s+\.align\s+\d+\s+\.b8\s+([\w$]+)\[(\d+)\]")
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+(%?\w+?)(?:<(\d+)>)?$")
_GUARD = re.compile(r"@(!?)%(\w+)\s+")


def read_kernels(text: str) -> list[Kernel]:
    """Every kernel of a PTX module."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text.replace("\0", ""), flags=re.DOTALL)
    module_shared = {name: int(size) for name, size in _SHARED.findall(_outside_of_bodies(text))}
    return [_read_kernel(match, text, module_shared) for match in _ENTRY.finditer(text)]


def _outside_of_bodies(text: str) -> str:
    kept, end = [], 0
    for match in _ENTRY.finditer(text):
        kept.append(text[end : match.start()])
        end = _end_of_body(text, match.end())
    return "".join(kept) + text[end:]


def _end_of_body(text: str, position: int) -> int:
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, position):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.start()
    raise Unsupported("a kernel's body does not end")


def _read_kernel(match: re.Match, text: str, module_shared: dict[str, int]) -> Kernel:
    name, parameters, directives = match.groups()
    sizes = {p: int(n) if n else TYPE_BYTES[t] for t, p, n in _PARAMETER.findall(parameters)}
    if len(sizes) != parameters.count(".param"):
        raise Unsupported(f"{name}: parameters {parameters.strip()!r}")
    threads = re.search(r"\.maxntid\s+(\d+)", directives)
    blocks = re.search(r"\.minnctapersm\s+(\d+)", directives)
    kernel = Kernel(name, sizes, threads and int(threads[1]), blocks and int(blocks[1]))
    body = text[match.end() : _end_of_body(text, match.end())]
    _read_body(body, kernel)
    kernel.shared |= {array: size for array, size in module_shared.items() if re.search(re.escape(array), body)}
    return kernel


def _read_body(body: str, kernel: Kernel) -> None:
    """Statements end with a semicolon; labels and the braces of scopes stand before them."""
    label = re.compile(r"\s*(\$\w+):")
    brace = re.compile(r"\s*([{}])")
    position = 0
    while body[position:].strip():
        if found := label.match(body, position):
            kernel.statements.append(Label(found[1]))
        elif found := brace.match(body, position):
            kernel.statements.append(Scope(found[1] == "{"))
        else:
            found = re.compile(r"[^;]*;").match(body, position)
            if found is None:
                raise Unsupported(f"{kernel.name}: {body[position:].strip()[:80]!r}")
            _read_statement(" ".join(found[0][:-1].split()), kernel)
        position = found.end()


def _read_statement(text: str, kernel: Kernel) -> None:
    if registers := _REGISTERS.match(text):
        count = int(registers[3]) if registers[3] else None
        kernel.statements.append(Registers(registers[1], registers[2], count))
    elif shared := _SHARED.match(text):
        kernel.shared[shared[1]] = int(shared[2])
    elif text.startswith(".pragma"):
        pass  # advice on unrolling
    elif text.startswith("."):
        raise Unsupported(f"{kernel.name}: directive {text!r}")
    else:
        guard = _GUARD.match(text)
        opcode, _, operands = text[guard.end() if guard else 0 :].partition(" ")
        kernel.statements.append(Instruction(opcode, _operands(operands), guard and guard[2], bool(guard and guard[1])))


def _operands(text: str) -> tuple[str, ...]:
    """Split at commas, but not inside {} of a vector."""
    return tuple(part.strip() for part in re.findall(r"(?:\{[^}]*\}|[^,{])+", text))
