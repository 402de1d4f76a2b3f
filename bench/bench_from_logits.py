"""logprobs_and_entropy on (N, V) logits beside plain torch, torch.compile, TRL's fold and the speed of memory."""

import pytest
import torch

import cer_ext
from bench import baselines
from bench.interleaved import compare
from bench.non_leaf import NonLeaf

DTYPES = [torch.float32, torch.bfloat16]


def inputs(head, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(head.tokens, head.vocabulary, device=device, generator=generator).mul_(3).to(dtype)
    target = torch.randint(head.vocabulary, (head.tokens,), device=device, generator=generator)
    return logits, target


def assert_same(outputs, expected, tolerance: float) -> None:
    for output, reference in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output.double(), reference.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def bench_forward(benchmark, logits_head, dtype, device, rounds):
    benchmark.group = "from_logits forward"
    logits, target = inputs(logits_head, dtype, device)
    words = baselines.as_words(logits)
    expected = cer_ext.logprobs_and_entropy(logits, target)
    for peer in baselines.FROM_LOGITS.values():
        assert_same(peer(logits, target), expected, 1e-3)
    compare(
        benchmark,
        lambda: cer_ext.logprobs_and_entropy(logits, target),
        {name: lambda peer=peer: peer(logits, target) for name, peer in baselines.FROM_LOGITS.items()}
        | {"limit: read once": lambda: baselines.read_once(words)},
        device=device,
        rounds=rounds,
        physical={"bytes": logits.nbytes},
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

    peers = {}
    for name in ("plain torch", "torch.compile"):
        variable = logits.clone().requires_grad_()
        outputs = baselines.FROM_LOGITS[name](variable, target)
        peers[name] = lambda o=outputs, v=variable: torch.autograd.grad(o, v, grads, retain_graph=True)[0]
    logprobs, entropy = (x.detach() for x in cer_ext.logprobs_and_entropy(logits, target))
    log_z = logits.gather(-1, target[:, None]).squeeze(-1).float() - logprobs
    trl_buffer = torch.empty_like(logits)

    def trl() -> torch.Tensor:
        return baselines.trl_grad(trl_buffer, target, log_z, entropy, grads)

    expected = peers["plain torch"]().float()
    fresh_graph()
    ours()
    torch.testing.assert_close(buffer.float(), expected, rtol=2e-2, atol=1e-5)
    trl_buffer.copy_(logits)
    torch.testing.assert_close(trl().float(), expected, rtol=2e-2, atol=1e-5)
    words = baselines.as_words(torch.zeros_like(logits))
    compare(
        benchmark,
        ours,
        peers | {"trl fold": trl, "limit: rewrite in place": lambda: baselines.rewrite_in_place(words)},
        device=device,
        rounds=rounds,
        before_each=fresh_graph,
        physical={"bytes": 2 * logits.nbytes},
    )
