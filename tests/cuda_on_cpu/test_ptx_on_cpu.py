"""What nvcc and NVRTC make of the kernels gives the right numbers: their PTX, thread by thread, without a GPU.

The same programs and cases as test_kernels_on_cpu.py, which runs the source as g++ understands it. Here inline
assembly, everything under __CUDA_ARCH__, contraction and the compiler's own code for exp, log1p, tanh and division are
in the run.
"""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kernel_programs import HERE, PROGRAMS, Run, run_program
from kernel_ptx import ARCHITECTURES, compile_translated, missing, nvcc_ptx, nvrtc_ptx, translate
from ptx_text import Unsupported
from ptx_to_cpp import HEADERS, write_headers

from cer_ext import nvrtc

SEEDS = (1, 2, 3)


@dataclass
class Translations:
    """Programs by (compiler, architecture). Equal translations (sm_80 and sm_90a, as a rule) are built and run once."""

    into: Path
    pool: ThreadPoolExecutor
    headers: dict[tuple[str, str], Future[tuple[Path, str]]] = field(default_factory=dict)
    programs: dict[tuple[str, str], Future[Path]] = field(default_factory=dict)
    runs: dict[tuple[str, str, int], Run] = field(default_factory=dict)

    def start(self, compiler: str) -> None:
        for architecture in ARCHITECTURES:
            if (compiler, architecture) not in self.headers and missing(compiler, architecture) is None:
                self.headers[compiler, architecture] = self.pool.submit(self.translated, compiler, architecture)
        digests = {}
        for job in self.headers.values():
            headers, digest = job.result()
            digests.setdefault(digest, headers)
        for (digest, headers), program in itertools.product(digests.items(), reversed(PROGRAMS)):
            if (digest, program) not in self.programs:
                self.programs[digest, program] = self.pool.submit(compile_translated, program, headers, headers)

    def translated(self, compiler: str, architecture: str) -> tuple[Path, str]:
        folder = self.into / f"{compiler}-{architecture}"
        folder.mkdir()
        modules = nvcc_ptx(architecture, folder) if compiler == "nvcc" else nvrtc_ptx(architecture)
        return folder, translate(modules, folder)

    def run(self, compiler: str, architecture: str, program: str, seed: int) -> Run:
        self.start(compiler)
        _, digest = self.headers[compiler, architecture].result()
        key = (digest, program, seed)
        if key not in self.runs:
            self.runs[key] = run_program(self.programs[digest, program].result(), seed)
        return self.runs[key]


@pytest.fixture(scope="session")
def translations(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Translations]:
    with ThreadPoolExecutor(2) as pool:
        yield Translations(tmp_path_factory.mktemp("ptx"), pool)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("compiler", ["nvrtc", "nvcc"])
def test_compiled_kernels_match_long_double_in_every_order_of_threads(
    translations: Translations, compiler: str, architecture: str, program: str, seed: int
) -> None:
    if reason := missing(compiler, architecture):
        pytest.skip(reason)
    run = translations.run(compiler, architecture, program, seed)
    assert run.status == 0, run.output
    assert "cases, largest error" in run.output


# ------------------------------------------------------------------------------------------------ the translator itself

MODULE = """
.version 9.0
.target sm_90a
.visible .entry cer_finish_rows(
    .param .align 8 .b8 cer_finish_rows_param_0[120]
)
.maxntid 256
{
    .reg .b32 %r<3>;
    BODY
    ret;
}
"""


def translated(body: str, into: Path) -> str:
    write_headers([MODULE.replace("BODY", body)], into)
    return (into / "finish_rows.cuh").read_text()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("lop3.b32 %r1, %r1, %r2, %r2, 0x96;", "lop3.b32"),
        ("ld.global.nc.u32 %r1, [%rd1];", "ld.global.nc.u32"),
        ("cvt.rm.f32.f64 %r1, %r2;", "cvt.rm.f32.f64"),
        ("add.sat.s32 %r1, %r1, %r2;", "add.sat.s32"),
        ("max.f32 %r1, %r1, %r2, %r2;", "max.f32 with 4 operands"),
        ("bar.sync 1;", "bar.sync"),
        ("mov.u32 %r1, %clock;", "%clock"),
        (".local .align 4 .b8 depot[16];", ".local"),
    ],
)
def test_what_the_translator_does_not_know_is_refused(body: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=re.escape(named)):
        translated(body, tmp_path)


def test_an_instruction_becomes_a_statement_on_registers(tmp_path: Path) -> None:
    text = translated("@!%p1 bra $L1; add.s32 %r1, %r2, -5; $L1: mov.u32 %r2, %tid.x;", tmp_path)
    assert "if (!p1_) goto L1;" in text
    assert "put<u32>(r1_, as<u32>(r2_) + static_cast<u32>(18446744073709551611ull));" in text
    assert "put<u32>(r2_, u32(threadIdx.x));" in text


@pytest.mark.parametrize("compiler", ["nvrtc", "nvcc"])
def test_every_kernel_there_is_was_translated(translations: Translations, compiler: str) -> None:
    if reason := missing(compiler, "sm_90a"):
        pytest.skip(reason)
    translations.start(compiler)
    folder, _ = translations.headers[compiler, "sm_90a"].result()
    functions = re.findall(r"^using ptx::(\w+);", "".join((folder / h).read_text() for h in HEADERS), re.MULTILINE)
    assert sorted(functions) == sorted(nvrtc.kernel_names())


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], None]:
    """Compiles and runs a program that uses ptx_machine.h; it must end well."""
    if reason := missing("nvrtc", "sm_90a"):
        pytest.skip(reason)

    def run(body: str) -> None:
        source = tmp_path / "machine.cpp"
        source.write_text(f'#include <cassert>\n#include "ptx_machine.h"\nint main() {{\n{body}\n}}\n')
        executable = tmp_path / "machine"
        subprocess.run(
            ["g++", "-std=c++17", "-O0", f"-I{HERE}", f"-I{HERE.parents[1] / 'csrc'}", str(source), "-o", executable],
            check=True,
        )
        done = subprocess.run([executable], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return run


def test_the_machine_rounds_as_the_hardware_does(machine: Callable[[str], None]) -> None:
    """Halves of 16 bits against the host's own conversions for every pattern; ties, overflow, NaN; ex2 at integers."""
    machine(
        """
        using namespace ptx;
        const f32 nan = __builtin_nanf("");
        for (u32 bits = 0; bits < 0x10000u; ++bits) {
          const f32 x = f32_of_f16(static_cast<u16>(bits));
          if (x == x) assert(f16_rn(x) == bits && f16_rz(x) == bits);
          const f32 y = as<f32>(bits << 16);
          if (y == y) assert(bf16_rn(y) == bits && bf16_rz(y) == bits);
        }
        assert(f32_of_f16(0x3c01) == 1.0f + 0x1p-10f && f32_of_f16(1) == 0x1p-24f && f32_of_f16(0xfbff) == -65504.0f);
        assert(f16_rn(1.0f + 0x1p-11f) == 0x3c00 && f16_rn(1.0f + 0x3p-11f) == 0x3c02);
        assert(f16_rz(1.0f + 0x3p-11f) == 0x3c01 && f16_rz(1e9f) == 0x7bff);
        assert(f16_rn(65519.0f) == 0x7bff && f16_rn(65520.0f) == 0x7c00);
        assert(f16_rn(0x1p-25f) == 0 && f16_rn(0x1.8p-25f) == 1 && f16_rn(-0x1p-26f) == 0x8000);
        assert(bf16_rn(1.0f + 0x1p-8f) == 0x3f80 && bf16_rn(1.0f + 0x3p-8f) == 0x3f82);
        assert(bf16_rz(1.0f + 0x3p-8f) == 0x3f81 && bf16_rn(nan) == 0x7fff && f16_rn(nan) == 0x7fff);
        for (int i = -126; i < 128; ++i) assert(ex2_approx_ftz(static_cast<f32>(i)) == std::ldexp(1.0f, i));
        const f32 off = ex2_approx_ftz(0.3f) / std::exp2(0.3f) - 1.0f;
        assert(off != 0.0f && std::fabs(off) < 0x1p-21f);
        assert(ex2_approx_ftz(-127.5f) == 0.0f && ex2_approx(-127.5f) > 0.0f);
        assert(fma_downward(1.0f, 1.0f, 0x1p-30f) == 1.0f && fma_downward(1.0f, 1.0f, -0x1p-30f) == 1.0f - 0x1p-24f);
        assert(larger(nan, 1.0f) == 1.0f && std::signbit(smaller(0.0f, -0.0f)) && !std::signbit(larger(-0.0f, 0.0f)));
        assert(saturated(nan) == 0.0f && saturated(2.0f) == 1.0f);
        assert(shift_right<s32>(-8, 40) == -1 && shift_left<u32>(1, 32) == 0 && shift_right<s64>(-8, 1) == -4);
        """
    )
