"""Physical limits: what no implementation of an operation can beat, to be timed in the same run."""

from __future__ import annotations

from collections.abc import Callable

import torch


def as_words(tensor: torch.Tensor) -> torch.Tensor:
    """The same bytes (but for an odd rest) as int32, which torch streams at the speed of memory whatever the dtype."""
    flat, in_a_word = tensor.view(-1), max(1, 4 // tensor.element_size())
    return flat[: flat.numel() // in_a_word * in_a_word].view(torch.int32)


def read_once(words: torch.Tensor) -> torch.Tensor:
    """Every byte read, none written."""
    return words.max()


def rewrite_in_place(words: torch.Tensor) -> torch.Tensor:
    """Every byte read and written."""
    return words.bitwise_xor_(1)


def forward_limit(logits: torch.Tensor) -> dict[str, Callable[[], object]]:
    """One read. On CUDA a copy, which reads and writes: a reduction of torch's is slower than memory there."""
    if logits.device.type == "cuda":
        other = torch.empty_like(logits)
        return {"limit: copy (reads and writes: twice the bytes)": lambda: other.copy_(logits)}
    words = as_words(logits)
    return {"limit: read once": lambda: read_once(words)}


def bare_gemm(hidden: torch.Tensor, weight: torch.Tensor) -> dict[str, Callable[[], object]]:
    """hidden @ weight.T into memory that is there already: one product, nothing else."""
    hidden, weight = hidden.detach(), weight.detach()
    logits = torch.empty(hidden.shape[0], weight.shape[0], dtype=hidden.dtype, device=hidden.device)

    def product() -> torch.Tensor:
        with torch.no_grad():
            return torch.mm(hidden, weight.T, out=logits)

    return {"limit: bare GEMM": product}
