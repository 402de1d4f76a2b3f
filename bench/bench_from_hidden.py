"""linear_logprobs_and_entropy and linear_token_loss beside the heads of bench/peers.py that run here and the bare GEMM.

pytest bench/bench_from_hidden.py --benchmark-json=FILE        python -m bench.table FILE
"""

from __future__ import annotations

import pytest
import torch

import cer_ext
from bench import peers
from bench.comparison import ERROR_ROWS, by_entry, by_norm, compare, disagreements, entropy_errors
from bench.limits import bare_gemm
from bench.records import OURS
from cer_ext import reference

DTYPES = [torch.float32, torch.bfloat16]
in_each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
frozen_and_trained = pytest.mark.parametrize("head_is", ["frozen", "trained"])


def ours(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, with_entropy: bool) -> peers.Outputs:
    return cer_ext.linear_logprobs_and_entropy(hidden, weight, target, return_entropy=with_entropy)


def inputs(head, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(head.tokens, head.width, device=device, generator=generator)
    weight = torch.randn(head.vocabulary, head.width, device=device, generator=generator).mul_(2 / head.width**0.5)
    target = torch.randint(head.vocabulary, (head.tokens,), device=device, generator=generator)
    return hidden.to(dtype), weight.to(dtype), target


def gemm_flops(head) -> int:
    return 2 * head.tokens * head.width * head.vocabulary


def measured_here(dtype: torch.dtype, device: torch.device) -> None:
    if device.type == "cuda" and dtype == torch.float32:
        pytest.skip("no model is trained with a float32 head on a GPU")


@in_each_dtype
@pytest.mark.parametrize("entropy", [True, False], ids=["", "without"])
def bench_forward(benchmark, hidden_head, dtype, entropy, head_peers, device, rounds):
    """With the entropy, and without: the log-probabilities alone."""
    measured_here(dtype, device)
    benchmark.group = "from_hidden forward" + ("" if entropy else ", without entropy")
    operands = inputs(hidden_head, dtype, device)
    calls = {name: lambda peer=peer: peer(*operands, entropy) for name, peer in head_peers.items()}
    expected = [None if output is None else output for output in ours(*operands, entropy)]
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2  # peers round the logits to bfloat16

    def differs(output: torch.Tensor, wanted: torch.Tensor | None) -> str | None:
        if wanted is None:  # an entropy that nobody asked for
            return None
        return by_entry(tolerance)(output, wanted.sum() if output.dim() == 0 else wanted)

    with torch.no_grad():
        failures = disagreements(calls, expected, differs, "plain torch")
        rows = slice(0, ERROR_ROWS)
        hidden, weight, target = operands
        exact = reference.linear_logprobs_and_entropy(hidden[rows].double(), weight.double(), target[rows])[1]
        errors = entropy_errors({OURS: lambda: expected} | calls, exact) if entropy else {}
        compare(
            benchmark,
            lambda: ours(*operands, entropy),
            calls | bare_gemm(hidden, weight),
            device=device,
            rounds=rounds,
            physical={"flops": gemm_flops(hidden_head)},
            failures=failures,
            entropy_error=errors,
        )


def two_passes(head: peers.Head, operands, wanted, grads) -> tuple[torch.Tensor, ...]:
    """Gradients of grads[0] * logprobs + grads[1] * entropy, by autograd through a head."""
    pairs = [(o, g) for o, g in zip(head(*operands, True), grads, strict=True) if o is not None]
    upstream = [g.sum() if o.dim() == 0 else g.to(o.dtype) for o, g in pairs]
    return torch.autograd.grad([o for o, _ in pairs], wanted, upstream)


@pytest.fixture
def step(hidden_head, dtype, head_is, device):
    """(hidden, weight, target), those that want a gradient, and upstream gradients of logprobs and entropy."""
    measured_here(dtype, device)
    hidden, weight, target = inputs(hidden_head, dtype, device)
    hidden.requires_grad_()
    weight.requires_grad_(head_is == "trained")
    grads = tuple(torch.randn(hidden_head.tokens, device=device) for _ in range(2))
    return (hidden, weight, target), (hidden, weight) if head_is == "trained" else (hidden,), grads


def steps_of(heads: dict, step) -> dict:
    return {name: lambda head=head: two_passes(head, *step) for name, head in heads.items()}


def other_gradients(expected, calls: dict, dtype: torch.dtype) -> dict[str, str]:
    """Peers whose gradients are not ours. Without the entropy a gradient is another: nothing to compare."""
    tolerance = 1e-3 if dtype == torch.float32 else 1e-1
    comparable = {name: call for name, call in calls.items() if not name.endswith(peers.NO_ENTROPY)}
    return disagreements(comparable, expected, by_norm(tolerance), "plain torch")


@in_each_dtype
@frozen_and_trained
def bench_forward_backward(benchmark, hidden_head, dtype, head_is, step, head_peers, device, rounds):
    """A whole optimisation step of the head. Frozen (LoRA): only grad_hidden is asked for."""
    benchmark.group = f"from_hidden forward + backward, {head_is} weight"
    operands, calls = step[0], steps_of(head_peers, step)
    compare(
        benchmark,
        lambda: two_passes(ours, *step),
        calls | bare_gemm(*operands[:2]),
        device=device,
        rounds=max(3, rounds // 3),
        physical={"flops": (3 if head_is == "frozen" else 4) * gemm_flops(hidden_head)},
        failures=other_gradients(two_passes(ours, *step), calls, dtype),
    )


@in_each_dtype
@frozen_and_trained
def bench_one_pass(benchmark, hidden_head, dtype, head_is, step, head_peers, device, rounds):
    """The same step where the loss is a sum over tokens: linear_token_loss, which makes the logits once."""
    benchmark.group = f"from_hidden loss and gradients in one pass, {head_is} weight"
    operands, wanted, grads = step

    def loss_fn(logprobs, entropy, rows):
        return (grads[0][rows] * logprobs + grads[1][rows] * entropy).sum()

    def one_pass():
        return torch.autograd.grad(cer_ext.linear_token_loss(*operands, loss_fn).loss, wanted)

    calls = steps_of(head_peers, step) | {f"{OURS}, two passes": lambda: two_passes(ours, *step)}
    compare(
        benchmark,
        one_pass,
        calls | bare_gemm(*operands[:2]),
        device=device,
        rounds=max(3, rounds // 3),
        physical={"flops": (2 if head_is == "frozen" else 3) * gemm_flops(hidden_head)},
        failures=other_gradients(one_pass(), calls, dtype),
    )
