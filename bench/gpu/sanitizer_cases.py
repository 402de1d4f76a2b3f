"""Small cases of every kernel, to be run under compute-sanitizer (bench.gpu.prove does): `python -m
bench.gpu.sanitizer_cases`.

Every dtype, aligned and misaligned rows, one row split over many blocks, transforms, masks and packed responses, each
compared with the reference so that the run also proves its results. Run it with PYTORCH_NO_CUDA_MEMORY_CACHING=1: only
with plain allocations is an access one element too far seen.
"""

import torch

import cer_ext
from cer_ext import reference

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def close(actual: torch.Tensor, expected: torch.Tensor, what: str, tolerance: float) -> None:
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, msg=lambda text: f"{what}: {text}"
    )


def logits_case(device: torch.device, dtype: torch.dtype, rows: int, vocabulary: int, offset: int) -> None:
    """`offset` shifts the start of every row off its 16-byte alignment."""
    storage = torch.randn(rows, vocabulary + offset + 3, device=device).mul_(3).to(dtype)
    logits = storage[:, offset : offset + vocabulary].detach().requires_grad_()
    target = torch.randint(vocabulary, (rows,), device=device)
    target[0] = -100 if rows > 1 else target[0]
    temperature = torch.rand(rows, device=device) + 0.5
    options = {"temperature": temperature, "logit_scale": 0.7, "softcap": 20.0}
    outputs = cer_ext.logprobs_and_entropy(logits, target, **options)
    exact_logits = logits.detach().double().requires_grad_()
    exact = reference.logprobs_and_entropy(exact_logits, target, **options)
    name = f"logits {dtype} {rows}x{vocabulary}+{offset}"
    for output, reference_output in zip(outputs, exact, strict=True):
        close(output, reference_output, name, 1e-4)
    (grad,) = torch.autograd.grad(sum(o.sum() for o in outputs), logits)
    (exact_grad,) = torch.autograd.grad(sum(o.sum() for o in exact), exact_logits)
    close(grad, exact_grad, f"{name} gradient", 1e-2 if dtype in (torch.bfloat16, torch.float16) else 1e-4)


def hidden_case(device: torch.device, dtype: torch.dtype) -> None:
    tokens, width, vocabulary = 9, 16, 517
    hidden = torch.randn(tokens, width, device=device).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width, device=device).to(dtype).requires_grad_()
    bias = torch.randn(vocabulary, device=device).to(dtype).requires_grad_()
    target = torch.randint(vocabulary, (tokens,), device=device)
    outputs = cer_ext.linear_logprobs_and_entropy(hidden, weight, target, bias, workspace_bytes=1 << 16)
    exact = reference.linear_logprobs_and_entropy(hidden.double(), weight.double(), target, bias.double())
    for output, reference_output in zip(outputs, exact, strict=True):
        close(output.detach(), reference_output.detach(), f"hidden {dtype}", 1e-3)
    torch.autograd.grad(sum(o.sum() for o in outputs), (hidden, weight, bias))

    def total(logprobs, entropy, rows):
        return (logprobs + entropy).sum()

    one_pass = cer_ext.linear_token_loss(hidden, weight, target, total, bias, workspace_bytes=1 << 16)
    close(one_pass.loss.detach(), sum(o.sum() for o in exact).detach(), f"one pass {dtype}", 1e-3)
    torch.autograd.grad(one_pass.loss, (hidden, weight, bias))


def teca_case(device: torch.device, dtype: torch.dtype) -> None:
    entropy = torch.rand(5, 300, device=device, dtype=dtype, requires_grad=True)
    mask = torch.rand(5, 300, device=device) < 0.7
    close(cer_ext.teca(entropy, mask), reference.teca(entropy.double(), mask), f"teca {dtype}", 1e-5)
    cu_seqlens = torch.tensor([0, 0, 7, 300], device=device)
    flat = entropy[0]
    close(
        cer_ext.teca(flat, cu_seqlens=cu_seqlens),
        reference.teca(flat.double(), cu_seqlens=cu_seqlens),
        f"packed teca {dtype}",
        1e-5,
    )
    torch.autograd.grad(cer_ext.teca_last(entropy, mask).sum(), entropy)


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    cases = 0
    for dtype in DTYPES:
        for rows, vocabulary, offset in ((3, 1, 0), (2, 1000, 0), (2, 1003, 1), (1, 40003, 0), (1, 40003, 3)):
            logits_case(device, dtype, rows, vocabulary, offset)
            cases += 1
        hidden_case(device, dtype)
        cases += 1
    for dtype in (torch.float32, torch.float64):
        teca_case(device, dtype)
        cases += 1
    print(f"{cases} cases agree with the reference on {device}")


if __name__ == "__main__":
    main()
