"""A tiny model that vLLM can run on a CPU, and engines on it.

vLLM's attention on a CPU needs heads of 32. An engine takes seconds to start, so tests share them where they can.
"""

from __future__ import annotations

import torch
from tiny_models import VOCABULARY, make_model

POSITIONS = 512
ENGINE = {"enforce_eager": True, "dtype": "float32", "seed": 0, "max_model_len": POSITIONS, "max_num_seqs": 16}


def save_model(path, tokenizer, **overrides) -> None:
    model = make_model("qwen3", head_dim=32, max_position_embeddings=POSITIONS, initializer_range=0.3, **overrides)
    model.generation_config.max_length = None
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def start(path, *, records: bool = True, **options):
    from vllm import LLM

    from trainer.sampling.vllm_processors import engine_options

    return LLM(model=str(path), **{**ENGINE, **engine_options(records=records), **options})


def draw_prompts(count: int, longest: int, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(6, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def float64_entropies(model, prompt, tokens, temperature) -> torch.Tensor:
    """(L,) entropies of the distributions of `tokens`, in nats."""
    with torch.no_grad():
        logits = model(torch.tensor([list(prompt) + list(tokens)])).logits[0, len(prompt) - 1 : -1] / temperature
    logp = logits.double().log_softmax(-1)
    return -(logp.exp() * logp).sum(-1)
