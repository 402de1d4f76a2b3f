"""Compiles the C++ programs of this folder with the system's g++ and runs them.

In: the kernels (``csrc``, or a changed copy of it), a program's name, plain or under AddressSanitizer + UBSan.
Out: the program's exit status and what it printed. Contraction is off as it is in the kernels' own products; strict
aliasing is off because a vector access reads another type than was stored, as CUDA code does.
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
PROGRAMS = ("fold_tile_test", "grad_tile_test", "teca_test")

FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-strict-aliasing", "-Wno-unknown-pragmas")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
SANITIZERS = ("-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")

WRONG_RESULT, MISUSE, STRAY_ADDRESS = 1, 3, 4  # exit statuses (cuda_on_cpu.h, guarded_buffer.h)


@dataclass(frozen=True)
class Run:
    status: int
    output: str


def compile_program(
    program: str,
    into: Path,
    *,
    csrc: Path = CSRC,
    kernels: Path | None = None,
    sanitized: bool = False,
    optimisation: str = "-O1",
    warnings: tuple[str, ...] = WARNINGS,
    compiler: tuple[str, ...] = ("g++",),
) -> Path:
    """The executable of ``program`` in ``into``, built from the kernels in ``csrc``, or from headers of the same names
    in ``kernels``.

    Raises:
        RuntimeError: the compiler's own words, when it fails.
    """
    executable = into / (program + ("_sanitized" if sanitized else ""))
    command = [
        *compiler,
        *warnings,
        *FLAGS,
        optimisation,
        *(SANITIZERS if sanitized else ()),
        *(() if kernels is None else (f"-I{kernels}",)),
        f"-I{csrc}",
        f"-I{csrc / 'cuda'}",
        f"-I{HERE}",
        str(HERE / f"{program}.cpp"),
        "-o",
        str(executable),
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    return executable


def compile_library(name: str, into: Path, **options) -> Path:
    """``name``.cpp as a shared library; ``options`` of compile_program."""
    executable = compile_program(name, into, compiler=("g++", "-shared", "-fPIC"), **options)
    return executable.rename(into / f"{name}.so")


def run_program(executable: Path, seed: int, *, emulator: tuple[str, ...] = ()) -> Run:
    """Runs all cases of a program. A sanitizer's finding ends it with status 1 or 66 and its report."""
    environment = os.environ | {"ASAN_OPTIONS": "exitcode=66:detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=0"}
    result = subprocess.run(
        [*emulator, str(executable), str(seed)], capture_output=True, text=True, env=environment, timeout=600
    )
    return Run(result.returncode, result.stdout + result.stderr)
