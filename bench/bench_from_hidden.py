"""linear_logprobs_and_entropy beside plain torch, torch.compile, TRL's function, torch's own head and the bare GEMM."""

import pytest
import torch

import cer_ext
from bench import baselines
from bench.interleaved import compare

DTYPES = [torch.float32, torch.bfloat16]


def inputs(head, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    hidden = torch.randn(head.tokens, head.width, device=device, generator=generator)
    weight = torch.randn(head.vocabulary, head.width, device=device, generator=generator).mul_(2 / head.width**0.5)
    target = torch.randint(head.vocabulary, (head.tokens,), device=device, generator=generator)
    return hidden.to(dtype), weight.to(dtype), target


def bare_gemm(hidden: torch.Tensor, weight: torch.Tensor):
    """hidden @ weight.T into memory that is there already: one product, nothing else."""
    logits = torch.empty(hidden.shape[0], weight.shape[0], dtype=hidden.dtype, device=hidden.device)
    return lambda: torch.mm(hidden, weight.T, out=logits)


def gemm_flops(head) -> int:
    return 2 * head.tokens * head.width * head.vocabulary


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def bench_forward(benchmark, hidden_head, dtype, device, rounds):
    benchmark.group = "from_hidden forward"
    hidden, weight, target = inputs(hidden_head, dtype, device)
    expected = cer_ext.linear_logprobs_and_entropy(hidden, weight, target)
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2  # peers round the logits to bfloat16
    for peer in baselines.FROM_HIDDEN.values():
        for output, reference in zip(peer(hidden, weight, target), expected, strict=True):
            if output is not None:
                torch.testing.assert_close(output.float(), reference, rtol=tolerance, atol=tolerance)
    compare(
        benchmark,
        lambda: cer_ext.linear_logprobs_and_entropy(hidden, weight, target),
        {name: lambda peer=peer: peer(hidden, weight, target) for name, peer in baselines.FROM_HIDDEN.items()}
        | {"limit: bare GEMM": bare_gemm(hidden, weight)},
        device=device,
        rounds=rounds,
        physical={"flops": gemm_flops(hidden_head)},
    )


def two_passes(head_function, inputs, wanted, grads):
    """Gradients of grads[0] * logprobs + grads[1] * entropy, by autograd through a head function."""
    outputs = [(o, g) for o, g in zip(head_function(*inputs), grads, strict=True) if o is not None]
    return torch.autograd.grad([o for o, _ in outputs], wanted, [g.to(o.dtype) for o, g in outputs])


def peers_with_entropy(inputs, wanted, grads) -> dict:
    return {
        name: lambda peer=peer: two_passes(peer, inputs, wanted, grads)
        for name, peer in baselines.FROM_HIDDEN.items()
        if "no entropy" not in name  # another gradient: one of the two outputs is missing
    }


def assert_same_gradients(expected, peers: dict, dtype: torch.dtype) -> None:
    tolerance = 1e-3 if dtype == torch.float32 else 1e-1
    for name, peer in peers.items():
        for output, reference in zip(peer(), expected, strict=True):
            error = (output.double() - reference.double()).norm() / reference.double().norm()
            assert error < tolerance, f"{name}: gradient differs by {error:.2e} of its norm"


@pytest.fixture
def step_inputs(hidden_head, dtype, head_is, device):
    """(hidden, weight, target), those that want a gradient, and upstream gradients of logprobs and entropy."""
    hidden, weight, target = inputs(hidden_head, dtype, device)
    hidden.requires_grad_()
    weight.requires_grad_(head_is == "trained")
    grads = tuple(torch.randn(hidden_head.tokens, device=device) for _ in range(2))
    return (hidden, weight, target), (hidden, weight) if head_is == "trained" else (hidden,), grads


@pytest.mark.parametrize("head_is", ["frozen", "trained"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def bench_forward_backward(benchmark, hidden_head, dtype, head_is, step_inputs, device, rounds):
    """A whole optimisation step of the head. Frozen (LoRA): only grad_hidden is asked for."""
    benchmark.group = f"from_hidden forward + backward, {head_is} weight"
    operands, wanted, grads = step_inputs
    peers = peers_with_entropy(*step_inputs)
    assert_same_gradients(two_passes(cer_ext.linear_logprobs_and_entropy, *step_inputs), peers, dtype)
    compare(
        benchmark,
        lambda: two_passes(cer_ext.linear_logprobs_and_entropy, operands, wanted, grads),
        peers | {"limit: bare GEMM": bare_gemm(operands[0].detach(), operands[1].detach())},
        device=device,
        rounds=max(3, rounds // 3),
        physical={"flops": (3 if head_is == "frozen" else 4) * gemm_flops(hidden_head)},
    )


@pytest.mark.parametrize("head_is", ["frozen", "trained"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def bench_one_pass(benchmark, hidden_head, dtype, head_is, step_inputs, device, rounds):
    """The same step where the loss is a sum over tokens: linear_token_loss, which makes the logits once."""
    benchmark.group = f"from_hidden loss and gradients in one pass, {head_is} weight"
    operands, wanted, grads = step_inputs

    def loss_fn(logprobs, entropy, rows):
        return (grads[0][rows] * logprobs + grads[1][rows] * entropy).sum()

    def one_pass():
        return torch.autograd.grad(cer_ext.linear_token_loss(*operands, loss_fn).loss, wanted)

    peers = peers_with_entropy(*step_inputs)
    peers["cer_ext, two passes"] = lambda: two_passes(cer_ext.linear_logprobs_and_entropy, operands, wanted, grads)
    assert_same_gradients(one_pass(), peers, dtype)
    compare(
        benchmark,
        one_pass,
        peers | {"limit: bare GEMM": bare_gemm(operands[0].detach(), operands[1].detach())},
        device=device,
        rounds=max(3, rounds // 3),
        physical={"flops": (2 if head_is == "frozen" else 3) * gemm_flops(hidden_head)},
    )
