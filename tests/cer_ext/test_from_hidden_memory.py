"""linear_logprobs_and_entropy and linear_token_loss take workspace_bytes + O(N D) of memory, whatever N and V.

Measured in a process of its own. The peak resident size is read before and after (ru_maxrss), so that whatever
allocates is counted: torch, the GEMM library's packing buffers, the kernels.
"""

import subprocess
import sys

import pytest

MEASURE = """
import resource, sys
import torch
from cer_ext import linear_logprobs_and_entropy, linear_token_loss

torch.set_num_threads(1)
rows, workspace_bytes, dtype = int(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
width, vocabulary = 32, 12000
frozen = sys.argv[4] == "frozen"
one_pass = sys.argv[5] == "one pass"

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def run(rows):
    hidden = torch.zeros(rows, width, dtype=dtype).requires_grad_()
    target = torch.zeros(rows, dtype=torch.long)
    options = {"workspace_bytes": workspace_bytes}
    if one_pass:
        linear_token_loss(hidden, weight, target, lambda lp, h, rows: lp.sum() + h.sum(), **options).loss.backward()
        return
    logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, target, **options)
    (logprobs.sum() + entropy.sum()).backward()

weight = torch.zeros(vocabulary, width, dtype=dtype).requires_grad_(not frozen)
weight.grad = None if frozen else torch.zeros_like(weight)
small = torch.zeros(8, 8, requires_grad=True)
(small @ small).sum().backward()  # autograd's thread and the GEMM library are up
before = peak_bytes()
run(rows)
print(peak_bytes() - before)
"""


def peak_extra_bytes(rows: int, workspace_bytes: int, dtype: str, frozen: bool, one_pass: bool = False) -> int:
    how = ["frozen" if frozen else "trained", "one pass" if one_pass else "two passes"]
    command = [sys.executable, "-c", MEASURE, str(rows), str(workspace_bytes), dtype, *how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


MIB = 2**20
WIDTH, VOCABULARY = 32, 12000


@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize(("rows", "dtype"), [(2048, "float32"), (16384, "float32"), (16384, "bfloat16")])
def test_peak_memory_is_the_workspace_and_a_few_times_n_d(rows, dtype, one_pass):
    """The logits would take 94 and 750 MiB in float32."""
    workspace_bytes = 8 * MIB
    extra = peak_extra_bytes(rows, workspace_bytes, dtype, frozen=True, one_pass=one_pass)
    # Per row: hidden, its float32 copy and gradient, twice (the accumulator and the result), and ~30 float64 of state.
    linear_in_rows = rows * (5 * WIDTH * 4 + 30 * 8)
    slack = 12 * MIB  # the allocator's and the GEMM library's own, the same for every size
    assert extra <= workspace_bytes + linear_in_rows + slack


def test_a_weight_gradient_adds_its_own_size_and_no_more():
    extra = peak_extra_bytes(2048, 8 * MIB, "bfloat16", frozen=False)
    weight_bytes = VOCABULARY * WIDTH * 2
    assert extra <= 8 * MIB + 2048 * (5 * WIDTH * 4 + 30 * 8) + 2 * weight_bytes + 12 * MIB
