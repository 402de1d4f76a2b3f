"""The suite that runs the kernels on a CPU notices the bugs it is there for.

Each bug is planted in a copy of the real kernels by replacing text; the programs must then fail, whatever the order of
the threads, and for the reason that fits. Without a change they pass (test_kernels_on_cpu.py).
"""

from __future__ import annotations

import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from kernel_programs import MISUSE, STRAY_ADDRESS, WRONG_RESULT, compile_program, run_program
from planted_bugs import Bug, planted

SEEDS = range(1, 9)


BUGS = {
    "fold: no barrier before the warps' states are read": Bug(
        "missing __syncthreads", "fold_tile_test", "state_reduce.cuh", "  __syncthreads();\n", "", (WRONG_RESULT,)
    ),
    "teca: no barrier before the warps' sums are read": Bug(
        "missing __syncthreads", "teca_test", "teca.cuh", "    __syncthreads();\n", "", (WRONG_RESULT,), 0
    ),
    "teca: rounds share one set of sums": Bug(
        "missing __syncthreads", "teca_test", "teca.cuh", "round ^= 1", "round ^= 0", (WRONG_RESULT,), 0
    ),
    "teca: staged tokens read at once": Bug(
        "missing __syncwarp", "teca_test", "teca.cuh", "    __syncwarp();\n", "", (WRONG_RESULT,), 0
    ),
    "teca backward: results stored at once": Bug(
        "missing __syncwarp", "teca_test", "teca.cuh", "    __syncwarp();\n", "", (WRONG_RESULT,), 3
    ),
    "fold: states of warps that do not exist": Bug(
        "uninitialised shared memory",
        "fold_tile_test",
        "state_reduce.cuh",
        "lane < warps ? warp_states[lane] : SoftmaxState<Real>::empty()",
        "warp_states[lane]",
        (WRONG_RESULT,),
    ),
    "teca: flags of masked tokens not written": Bug(
        "uninitialised shared memory",
        "teca_test",
        "teca.cuh",
        "kept[stage_slot(warp, token)] = keep ? 1 : 0;",
        "if (keep) kept[stage_slot(warp, token)] = 1;",
        (WRONG_RESULT,),
    ),
    "fold: one element beyond the row": Bug(
        "out of bounds by one",
        "fold_tile_test",
        "fold_tile.cuh",
        "in_tail < end - begin",
        "in_tail <= end - begin",
        (STRAY_ADDRESS, WRONG_RESULT),
        1,
    ),
    "grad: one element beyond the row": Bug(
        "out of bounds by one",
        "grad_tile_test",
        "grad_tile.cuh",
        "j < count; j += threads",
        "j <= count; j += threads",
        (STRAY_ADDRESS, MISUSE, WRONG_RESULT),
    ),
    "teca: one token beyond the response": Bug(
        "out of bounds by one",
        "teca_test",
        "teca.cuh",
        "const bool keep = i < response.length",
        "const bool keep = i <= response.length",
        (STRAY_ADDRESS, WRONG_RESULT),
    ),
    "teca: a stage one slot too short": Bug(
        "out of bounds by one",
        "teca_test",
        "teca.cuh",
        "kTecaWarps * kStagePerWarp);",
        "kTecaWarps * kStagePerWarp - 2);",
        (MISUSE, WRONG_RESULT),
    ),
    "fold: threads without columns leave early": Bug(
        "exited threads at a barrier",
        "fold_tile_test",
        "fold_tile.cuh",
        "  s = merge_block(",
        "  if (piece.begin + threadIdx.x >= piece.end) return;\n  s = merge_block(",
        (MISUSE,),
    ),
    "teca: threads without tokens leave early": Bug(
        "exited threads at a barrier",
        "teca_test",
        "teca.cuh",
        "  double sum_carry = 0.0;\n",
        "  if (threadIdx.x >= response.length) return;\n  double sum_carry = 0.0;\n",
        (MISUSE,),
    ),
    "fold: half a warp shuffles": Bug(
        "divergent shuffle",
        "fold_tile_test",
        "state_reduce.cuh",
        "  if (warp == 0) {\n",
        "  if (warp == 0 && lane < warps) {\n",
        (MISUSE,),
    ),
    "fold: vectors from the row's start": Bug(
        "misaligned vector load",
        "fold_tile_test",
        "fold_tile.cuh",
        "elements_to_boundary<T, kWidth>(first)",
        "0",
        (MISUSE,),
    ),
    "grad: the output's boundary taken for both": Bug(
        "misaligned vector load",
        "grad_tile_test",
        "grad_tile.cuh",
        "const bool together = row.zero || ",
        "const bool together = true || ",
        (MISUSE,),
    ),
    "grad: in-place vectors beyond the piece": Bug(
        "out of bounds by one",
        "grad_tile_test",
        "vector_access.cuh",
        "run.vectors = (count - run.head) / kCount;",
        "run.vectors = (count - run.head + kCount - 1) / kCount;",
        (STRAY_ADDRESS, MISUSE, WRONG_RESULT),
    ),
}


@pytest.fixture(scope="session")
def mutants(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Path]]:
    """Every bug's program, compiled side by side."""
    if shutil.which("g++") is None:
        pytest.skip("no g++ here: it compiles the kernels for the CPU")

    def build(name: str) -> Path:
        into = tmp_path_factory.mktemp("seeded_bug")
        return compile_program(
            BUGS[name].program, into, csrc=planted(BUGS[name], into), optimisation="-O0", warnings=()
        )

    with ThreadPoolExecutor(2) as pool:
        return {name: pool.submit(build, name) for name in BUGS}


@pytest.mark.parametrize("name", BUGS)
def test_a_seeded_bug_is_caught_in_every_order_of_threads(mutants: dict[str, Future[Path]], name: str) -> None:
    runs = [run_program(mutants[name].result(), seed) for seed in SEEDS]
    missed = [seed for seed, run in zip(SEEDS, runs, strict=True) if run.status not in BUGS[name].statuses]
    assert not missed, f"{BUGS[name].kind}: not caught with seeds {missed}\n" + "\n".join(run.output for run in runs)


def test_every_kind_of_bug_is_seeded() -> None:
    assert {bug.kind for bug in BUGS.values()} >= {
        "missing __syncthreads",
        "missing __syncwarp",
        "uninitialised shared memory",
        "out of bounds by one",
        "exited threads at a barrier",
        "misaligned vector load",
    }
