"""What CUDA compilers make of the kernels: PTX from nvcc and from NVRTC, and the programs of this folder built from it.

In: ``csrc`` (or a changed copy of it), a compiler, an architecture. Out: PTX modules; executables and libraries whose
kernels are that PTX (ptx_to_cpp.py). NVRTC comes with pip (the ``test`` extra) and needs no CUDA toolkit.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from kernel_programs import CSRC, compile_program
from ptx_to_cpp import HEADERS, write_headers

from cer_ext import nvrtc

ARCHITECTURES = ("sm_80", "sm_90a", "sm_100")
NVCC_FLAGS = ("-std=c++17", "-O3")  # as csrc/cuda/cuda.cmake compiles
# Translated kernels are long functions: -Og compiles them in half the time of -O1, and they run nearly as fast.
OPTIMISATION = "-Og"


def missing(compiler: str, architecture: str) -> str | None:
    """Why a compiler cannot be asked for an architecture here; None if it can."""
    if shutil.which("g++") is None:
        return "no g++ here: it compiles the translated kernels"
    if compiler == "nvrtc":
        try:
            from cuda.bindings import nvrtc as _  # noqa: F401
        except ImportError:
            return "no cuda-bindings here: it brings NVRTC"
        return None
    if shutil.which("nvcc") is None:
        return "no nvcc here"
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    virtual = architecture.rstrip("a").replace("sm_", "compute_")
    return None if virtual in known.split() else f"this nvcc does not know {architecture}"


def nvcc_ptx(architecture: str, into: Path, csrc: Path = CSRC) -> list[str]:
    """One module per .cu file, with the flags of the build."""
    modules = []
    for source in sorted((csrc / "cuda").glob("*.cu")):
        target = into / f"{source.stem}.ptx"
        command = ["nvcc", "-ptx", *NVCC_FLAGS, f"-arch={architecture}", f"-I{csrc}", str(source), "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
        modules.append(target.read_text())
    return modules


def nvrtc_ptx(architecture: str, csrc: Path = CSRC, headers: tuple[str, ...] = HEADERS) -> list[str]:
    """The modules that cer_ext.nvrtc compiles, of the kernels in ``headers``. A module may hold several kernels."""
    modules: list[str] = []
    found: set[str] = set()
    for name in nvrtc.kernel_names():
        if name in found or nvrtc.kernel_header(name) not in headers:
            continue
        # A virtual architecture: the same PTX, without ptxas after it.
        ptx, _ = compile_by_nvrtc(architecture.replace("sm_", "compute_"), nvrtc.source_text(name, csrc))
        modules.append(ptx)
        found |= {other for other in nvrtc.kernel_names() if f".entry {other}(" in ptx}
    return modules


def compile_by_nvrtc(architecture: str, source: str) -> tuple[str, bytes]:
    """(PTX, binary) of a source, with the options that CuPy is given; fails with the compiler's words.

    The binary is empty for a virtual architecture ("compute_90a").
    """
    from cuda.bindings import nvrtc as compiler

    def text(size_of, get) -> bytes:
        _, size = size_of(program)
        written = b" " * (size + 1)  # in place: never one byte alone, which CPython shares with everyone
        get(program, written)
        return written[:size]

    success = compiler.nvrtcResult.NVRTC_SUCCESS
    status, program = compiler.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    assert status == success
    options = [option.encode() for option in (*nvrtc.OPTIONS, f"--gpu-architecture={architecture}")]
    (status,) = compiler.nvrtcCompileProgram(program, len(options), options)
    log = text(compiler.nvrtcGetProgramLogSize, compiler.nvrtcGetProgramLog)
    assert status == success, log.decode()
    ptx = text(compiler.nvrtcGetPTXSize, compiler.nvrtcGetPTX)
    binary = text(compiler.nvrtcGetCUBINSize, compiler.nvrtcGetCUBIN)
    compiler.nvrtcDestroyProgram(program)
    return ptx.rstrip(b"\0").decode(), binary


def translate(modules: list[str], into: Path) -> str:
    """The modules as headers in ``into``; returns a digest of them. Architectures may well share one translation."""
    into.mkdir(exist_ok=True)
    write_headers(modules, into)
    return hashlib.sha256(b"".join((into / header).read_bytes() for header in HEADERS)).hexdigest()


def compile_translated(
    program: str, headers: Path, into: Path, *, csrc: Path = CSRC, optimisation: str = OPTIMISATION, **options
) -> Path:
    """A program of this folder (kernel_programs.py) whose kernels are the translated ones in ``headers``."""
    return compile_program(
        program, into, csrc=csrc, kernels=headers, optimisation=optimisation, warnings=("-w",), **options
    )
