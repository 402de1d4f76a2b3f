"""A step of the head where some rows add nothing: zero advantages, clipped ratios, padding. One pass and two.

pytest bench/bench_dead_rows.py --benchmark-json=FILE        python -m bench.table FILE

In a GRPO step whole groups have the same reward, and with it no gradient. cer_ext leaves their rows out of the
backward products; its peers multiply zeros. On a machine that is not ours alone: --clock cpu, one thread
(OMP_NUM_THREADS=1), and in pieces, `--minutes 8 -k bfloat16`, which `python -m bench.join` makes one file of.
"""

from __future__ import annotations

import pytest
import torch

import cer_ext
from bench.bench_from_hidden import (
    frozen_and_trained,
    gemm_flops,
    in_each_dtype,
    inputs,
    measured_here,
    other_gradients,
    ours,
    steps_of,
    two_passes,
)
from bench.comparison import compare
from bench.limits import bare_gemm
from bench.peers import NO_ENTROPY
from bench.records import OURS


@in_each_dtype
@frozen_and_trained
@pytest.mark.parametrize("dead", [0, 40, 80], ids=lambda percent: f"{percent}% dead")
def bench_dead_rows(benchmark, hidden_head, dtype, head_is, dead, head_peers, device, rounds):
    """Loss and gradients by linear_token_loss, and by linear_logprobs_and_entropy as "cer_ext, two passes"."""
    measured_here(dtype, device)
    benchmark.group = f"one step of the head, {head_is} weight, {dead}% dead rows"
    hidden, weight, target = inputs(hidden_head, dtype, device)
    hidden.requires_grad_()
    weight.requires_grad_(head_is == "trained")
    wanted = (hidden, weight) if head_is == "trained" else (hidden,)
    alive = torch.arange(hidden_head.tokens, device=device) % 5 >= dead // 20
    grads = tuple(torch.randn(hidden_head.tokens, device=device) * alive for _ in range(2))
    step = (hidden, weight, target), wanted, grads

    def loss_fn(logprobs, entropy, rows):
        return (grads[0][rows] * logprobs + grads[1][rows] * entropy).sum()

    def one_pass():
        return torch.autograd.grad(cer_ext.linear_token_loss(*step[0], loss_fn).loss, wanted)

    heads = {name: head for name, head in head_peers.items() if not name.endswith(NO_ENTROPY)}
    calls = steps_of(heads, step) | {f"{OURS}, two passes": lambda: two_passes(ours, *step)}
    products = 1 + len(wanted) * int(alive.sum()) / hidden_head.tokens
    compare(
        benchmark,
        one_pass,
        calls | bare_gemm(hidden, weight),
        device=device,
        rounds=rounds,
        physical={"flops": products * gemm_flops(hidden_head)},
        failures=other_gradients(one_pass(), calls, dtype),
    )
