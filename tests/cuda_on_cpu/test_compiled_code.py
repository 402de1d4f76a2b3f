"""What the compilers' output must look like: wide loads and stores, registers, spills. A split shows here.

In PTX, which NVRTC makes everywhere: how many 16-byte accesses a kernel has, and the bounds it asks for. From ptxas,
where nvcc is: registers and spills of every kernel for every architecture. The bounds are the source's (two blocks of
512 threads, four of 256: 64 registers a thread), so a kernel that needs more than that spills, and shows.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from kernel_programs import CSRC
from kernel_ptx import ARCHITECTURES, NVCC_FLAGS, missing, nvrtc_ptx
from ptx_text import Kernel, read_kernels

from cer_ext import nvrtc

# Vectors that a thread of fold_tile has in flight, in a full round and in the masked last one.
FOLD_LOADS = {"float32": 8, "bfloat16": 8, "float16": 8, "float64": 4}
VECTOR_BYTES = 16


@pytest.fixture(scope="session")
def kernels() -> dict[str, Kernel]:
    if reason := missing("nvrtc", "sm_90a"):
        pytest.skip(reason)
    modules = nvrtc_ptx("sm_90a", headers=("fold_tile.cuh", "grad_tile.cuh"))
    return {kernel.name: kernel for module in modules for kernel in read_kernels(module)}


def accesses(kernel: Kernel) -> Counter[tuple[str, int]]:
    """("ld" or "st", bytes) of global memory -> how many instructions."""
    found: Counter[tuple[str, int]] = Counter()
    for instruction in kernel.instructions():
        if match := re.fullmatch(r"(ld|st)\.global(?:\.v([24]))?\.[bfus](\d+)", instruction.opcode):
            found[match[1], int(match[2] or 1) * int(match[3]) // 8] += 1
    return found


@pytest.mark.parametrize("name", [name for name in nvrtc.kernel_names() if name.startswith("cer_fold_tile")])
def test_a_thread_of_fold_tile_reads_whole_vectors(kernels: dict[str, Kernel], name: str) -> None:
    dtype = name.split("_")[3]
    assert accesses(kernels[name])["ld", VECTOR_BYTES] == FOLD_LOADS[dtype]


@pytest.mark.parametrize("name", [name for name in nvrtc.kernel_names() if name.startswith("cer_grad_tile")])
def test_a_thread_of_grad_tile_reads_and_writes_whole_vectors(kernels: dict[str, Kernel], name: str) -> None:
    """Four of each a round; of float32 logits and 16-bit gradients the wider one fills 16 bytes."""
    element = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
    read, written = (element[dtype] for dtype in name.split("_")[3:5])
    found = accesses(kernels[name])
    assert found["ld", VECTOR_BYTES] == 4
    assert found["st", VECTOR_BYTES * written // read] == 4
    # Not whole: head, tail and the target's column, each for a row of zeros and for any other.
    del found["st", VECTOR_BYTES * written // read]
    narrow = {size: count for (way, size), count in found.items() if way == "st" and count}
    assert set(narrow) <= {written}
    assert narrow.get(written, 0) <= 6


@pytest.mark.parametrize(
    ("name", "threads", "blocks"),
    [
        ("cer_fold_tile_bfloat16_plain", 512, 2),
        ("cer_fold_tile_float64_plain", 512, 1),
        ("cer_grad_tile_float32_bfloat16_plain", 256, 4),
        ("cer_grad_tile_float64_float64_plain", 256, 2),
    ],
)
def test_kernels_ask_for_the_blocks_that_their_launch_plan_counts_on(
    kernels: dict[str, Kernel], name: str, threads: int, blocks: int
) -> None:
    assert (kernels[name].max_threads, kernels[name].min_blocks) == (threads, blocks)


def test_a_warp_merges_by_one_exponential_a_thread(kernels: dict[str, Kernel]) -> None:
    """Twice (in a warp, and over the warps): one maximum and three sums of five shuffles each, no pairwise merges."""
    shuffles = [i for i in kernels["cer_fold_tile_float32_plain"].instructions() if i.opcode.startswith("shfl")]
    assert len(shuffles) == 2 * 4 * 5
    assert all(i.opcode == "shfl.sync.bfly.b32" for i in shuffles)


def ptxas_report(architecture: str, file: str, into: Path) -> dict[str, tuple[int, int]]:
    """Kernel -> (registers, bytes of stack and spills)."""
    command = ["nvcc", "-cubin", *NVCC_FLAGS, "-Xptxas", "-v", f"-arch={architecture}", f"-I{CSRC}"]
    command += [str(CSRC / "cuda" / file), "-o", str(into / "kernels.cubin")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = {}
    for entry in re.split(r"Compiling entry function '", done.stderr)[1:]:
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = re.search(r"Used (\d+) registers", entry)
        assert memory is not None, entry
        assert registers is not None, entry
        report[entry.split("'")[0]] = (int(registers[1]), sum(int(count) for count in memory.groups()))
    return report


@pytest.mark.parametrize("file", ["fold_tile.cu", "grad_tile.cu", "teca.cu", "finish_rows.cu"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_kernel_spills_and_registers_leave_room_for_the_blocks_of_its_plan(
    architecture: str, file: str, tmp_path: Path
) -> None:
    if reason := missing("nvcc", architecture):
        pytest.skip(reason)
    report = ptxas_report(architecture, file, tmp_path)
    assert report
    for name, (registers, spilled) in report.items():
        assert spilled == 0, f"{name} for {architecture} spills {spilled} bytes"
        if name.startswith(("cer_fold_tile", "cer_grad_tile")) and "float64" not in name:
            assert registers <= 64, f"{name} for {architecture} takes {registers} registers"
