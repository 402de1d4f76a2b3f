"""The shapes that are timed and why: heads of real models, with as many rows as the machine carries."""

from typing import NamedTuple

import torch


class Head(NamedTuple):
    """An output head and the tokens it scores at once."""

    model: str
    tokens: int  # N, rows scored in one call
    width: int  # D, hidden size
    vocabulary: int  # V

    def __str__(self) -> str:
        return f"{self.model}-N{self.tokens}-D{self.width}-V{self.vocabulary}"


# One size per regime: a few rows, where each row is split over the threads, and enough rows to fill every core.
CPU_LOGITS = [Head("qwen3", 512, 0, 151936), Head("llama3", 512, 0, 128256), Head("qwen3", 2, 0, 151936)]
CPU_HIDDEN = [Head("qwen3-0.6b", 512, 1024, 151936), Head("llama3.2-1b", 256, 2048, 128256)]
CUDA_LOGITS = [
    *(Head("qwen3", tokens, 0, 151936) for tokens in (8192, 2048, 16, 1)),
    Head("llama3", 8192, 0, 128256),
]
# Tokens of a usual, a small and a large step; the most telling first, should the time run out.
CUDA_HIDDEN = [
    Head(model, tokens, width, vocabulary)
    for tokens in (8192, 2048, 32768)
    for model, width, vocabulary in (
        ("qwen3-8b", 4096, 151936),
        ("qwen3-4b", 2560, 151936),
        ("llama3-8b", 4096, 128256),
    )
]
# Small enough that the whole suite runs in a test, still larger than one tile in every direction.
SMOKE_LOGITS = [Head("smoke", 7, 0, 3001)]
SMOKE_HIDDEN = [Head("smoke", 33, 24, 3001)]
TECA = {  # responses, length
    "cpu": [(64, 4096)],
    "cuda": [(1024, 4096), (64, 16384)],
    "smoke": [(5, 33)],
}


def heads(kind: str, size: str, device: torch.device) -> list[Head]:
    """kind: "logits" or "hidden"; size: "full" or "smoke"."""
    table = {
        ("logits", "cpu"): CPU_LOGITS,
        ("hidden", "cpu"): CPU_HIDDEN,
        ("logits", "cuda"): CUDA_LOGITS,
        ("hidden", "cuda"): CUDA_HIDDEN,
        ("logits", "smoke"): SMOKE_LOGITS,
        ("hidden", "smoke"): SMOKE_HIDDEN,
    }
    return table[kind, "smoke" if size == "smoke" else device.type]
