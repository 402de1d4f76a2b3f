"""The run of compiled kernels notices what the run of their source cannot: faults in what only a GPU's compiler sees.

Each is planted where g++ does not look (inline assembly, words under __CUDA_ARCH__), so that the source emulation is
the same program as before, to the letter. The last two are of the kind that the source emulation catches too: they show
that translated kernels meet the same harness. Compiled by NVRTC, which comes with pip.
"""

from __future__ import annotations

import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from kernel_programs import CSRC, HERE, MISUSE, WRONG_RESULT, run_program
from kernel_ptx import compile_translated, missing, nvrtc_ptx, translate
from planted_bugs import Bug, planted

ARCHITECTURE = "sm_90a"
SEEDS = (1, 2)
HEADERS = {
    "fold_tile_test": ("fold_tile.cuh", "finish_rows.cuh"),
    "grad_tile_test": ("grad_tile.cuh",),
}

UNSEEN = {
    "bfloat16 rounded towards zero": Bug(
        "wrong instruction",
        "grad_tile_test",
        "scalar_types.h",
        'asm("cvt.rn.bf16.f32',
        'asm("cvt.rz.bf16.f32',
        (WRONG_RESULT,),
    ),
    "the exponential of the wrong operand": Bug(
        "wrong inline assembly",
        "fold_tile_test",
        "logit_transform.cuh",
        'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));',
        'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.0001f));',
        (WRONG_RESULT,),
    ),
    "a float without its last bits": Bug(
        "wrong word under __CUDA_ARCH__",
        "grad_tile_test",
        "scalar_types.h",
        "return __uint_as_float(bits);",
        "return __uint_as_float(bits & 0xffffff00u);",
        (WRONG_RESULT,),
    ),
}
SEEN = {
    "no barrier before the warps' states are read": Bug(
        "missing __syncthreads", "fold_tile_test", "state_reduce.cuh", "  __syncthreads();\n", "", (WRONG_RESULT,)
    ),
    "the output's boundary taken for both": Bug(
        "misaligned vector load",
        "grad_tile_test",
        "grad_tile.cuh",
        "const bool together = row.zero || ",
        "const bool together = true || ",
        (MISUSE,),
    ),
}
BUGS = UNSEEN | SEEN


@pytest.fixture(scope="session")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Path]]:
    """Every bug's program, translated from NVRTC's PTX and compiled side by side."""
    if reason := missing("nvrtc", ARCHITECTURE):
        pytest.skip(reason)

    def build(name: str) -> Path:
        into = tmp_path_factory.mktemp("ptx_seeded_bug")
        bug = BUGS[name]
        modules = nvrtc_ptx(ARCHITECTURE, planted(bug, into), HEADERS[bug.program])
        translate(modules, into / "headers")
        return compile_translated(bug.program, into / "headers", into, optimisation="-O0")

    with ThreadPoolExecutor(2) as pool:
        return {name: pool.submit(build, name) for name in BUGS}


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_planted_for_the_gpus_compiler_alone_is_caught(mutants: dict[str, Future[Path]], name: str) -> None:
    runs = [run_program(mutants[name].result(), seed) for seed in SEEDS]
    missed = [seed for seed, run in zip(SEEDS, runs, strict=True) if run.status not in BUGS[name].statuses]
    assert not missed, f"{BUGS[name].kind}: not caught with seeds {missed}\n" + "\n".join(run.output for run in runs)


def preprocessed(program: str, csrc: Path) -> str:
    """What g++ compiles of a program, without line markers."""
    command = ["g++", "-std=c++17", "-E", "-P", f"-I{csrc}", f"-I{csrc / 'cuda'}", f"-I{HERE}", HERE / f"{program}.cpp"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", UNSEEN)
def test_the_source_emulation_cannot_see_it(name: str, tmp_path: Path) -> None:
    if reason := missing("nvrtc", ARCHITECTURE):
        pytest.skip(reason)
    program = UNSEEN[name].program
    assert preprocessed(program, planted(UNSEEN[name], tmp_path)) == preprocessed(program, CSRC)
