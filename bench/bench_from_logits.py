"""logprobs_and_entropy on (N, V) logits beside plain torch, torch.compile, TRL's fold and the speed of memory."""

from __future__ import annotations

import pytest
import torch

import cer_ext
from bench import limits, peers
from bench.comparison import ERROR_ROWS, by_entry, compare, disagreements, entropy_errors
from bench.non_leaf import NonLeaf
from bench.records import OURS
from cer_ext import reference

DTYPES = [torch.float32, torch.bfloat16]


def inputs(head, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(head.tokens, head.vocabulary, device=device, generator=generator).mul_(3).to(dtype)
    target = torch.randint(head.vocabulary, (head.tokens,), device=device, generator=generator)
    return logits, target


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def bench_forward(benchmark, logits_head, dtype, device, rounds):
    benchmark.group = "from_logits forward"
    logits, target = inputs(logits_head, dtype, device)
    calls = {name: lambda fold=fold: fold(logits, target) for name, fold in peers.FROM_LOGITS.items()}
    expected = cer_ext.logprobs_and_entropy(logits, target)
    exact = reference.logprobs_and_entropy(logits[:ERROR_ROWS].double(), target[:ERROR_ROWS])[1]
    compare(
        benchmark,
        lambda: cer_ext.logprobs_and_entropy(logits, target),
        calls | limits.forward_limit(logits),
        device=device,
        rounds=rounds,
        physical={"bytes": logits.nbytes},
        failures=disagreements(calls, expected, by_entry(1e-3), "plain torch"),
        entropy_error=entropy_errors({OURS: lambda: expected} | calls, exact),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def bench_backward(benchmark, logits_head, dtype, device, rounds):
    benchmark.group = "from_logits backward"
    logits, target = inputs(logits_head, dtype, device)
    generator = torch.Generator(device).manual_seed(1)
    grads = tuple(torch.randn(logits_head.tokens, device=device, generator=generator) for _ in range(2))
    leaf = torch.zeros((), device=device, requires_grad=True)
    buffer = torch.empty_like(logits)
    graph: dict[str, tuple] = {}

    def fresh_graph() -> None:
        """The forward pass of ours, untimed: its backward destroys the logits."""
        buffer.copy_(logits)
        graph["outputs"] = cer_ext.logprobs_and_entropy(NonLeaf.apply(leaf, buffer), target, inplace_backward=True)

    def ours() -> None:
        torch.autograd.backward(graph["outputs"], grads)

    calls = {}
    for name in ("plain torch", "torch.compile"):
        variable = logits.clone().requires_grad_()
        outputs = peers.FROM_LOGITS[name](variable, target)
        calls[name] = lambda o=outputs, v=variable: torch.autograd.grad(o, v, grads, retain_graph=True)
    logprobs, entropy = (x.detach() for x in cer_ext.logprobs_and_entropy(logits, target))
    log_z = logits.gather(-1, target[:, None]).squeeze(-1).float() - logprobs
    trl_buffer = logits.clone()  # once the truth, then gradients of gradients: its time does not depend on the values
    calls["trl fold"] = lambda: (peers.trl_grad(trl_buffer, target, log_z, entropy, grads),)

    fresh_graph()
    ours()
    failures = disagreements(calls, (buffer.clone(),), by_entry(2e-2, absolute=1e-5), "plain torch")
    words = limits.as_words(torch.zeros_like(logits))
    compare(
        benchmark,
        ours,
        calls | {"limit: rewrite in place": lambda: limits.rewrite_in_place(words)},
        device=device,
        rounds=rounds,
        before_each=fresh_graph,
        physical={"bytes": 2 * logits.nbytes},
        failures=failures,
    )
