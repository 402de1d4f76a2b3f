"""The kernels of csrc/cuda give the right numbers, thread by thread, without a GPU: plain and under ASan + UBSan."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kernel_programs import PROGRAMS, compile_program, run_program

SEEDS = (1, 2, 3)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """(program, sanitized) -> executable. All are compiled at once, side by side, when the first is asked for."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: it compiles the kernels for the CPU")
    into = tmp_path_factory.mktemp("kernels_on_cpu")
    with ThreadPoolExecutor(2) as pool:
        jobs = {
            (program, sanitized): pool.submit(compile_program, program, into, sanitized=sanitized)
            for program in PROGRAMS
            for sanitized in (True, False)
        }
    return lambda program, sanitized: jobs[program, sanitized].result()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_match_long_double_in_every_order_of_threads(built, program: str, seed: int) -> None:
    run = run_program(built(program, False), seed)
    assert run.status == 0, run.output
    assert "cases, largest error" in run.output


@pytest.mark.parametrize("program", PROGRAMS)
def test_kernels_are_clean_under_address_and_undefined_behaviour_sanitizers(built, program: str) -> None:
    run = run_program(built(program, True), seed=4)
    assert run.status == 0, run.output
    assert "cases, largest error" in run.output


@pytest.mark.skipif(
    shutil.which("aarch64-linux-gnu-g++") is None or shutil.which("qemu-aarch64") is None,
    reason="no aarch64 cross compiler and user-mode emulator here",
)
def test_the_harness_switches_stacks_on_aarch64(tmp_path: Path) -> None:
    executable = compile_program("teca_test", tmp_path, compiler=("aarch64-linux-gnu-g++", "-static"))
    run = run_program(executable, seed=1, emulator=("qemu-aarch64",))
    assert run.status == 0, run.output
