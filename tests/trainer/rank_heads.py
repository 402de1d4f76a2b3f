"""What one process does with a head in an FSDP2 group of its own: multiplied where its rows lie, and gathered."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from tiny_models import make_model
from torch.distributed.fsdp import fully_shard

from trainer import head_over_ranks
from trainer.lm_head import add_fused_lm_head

WAYS = {"tokens": True, "weight": False}  # which is gathered


def sharded(family: str, **overrides):
    model = make_model(family, **overrides)
    add_fused_lm_head(model, temperature=0.9, outputs=("log_probs", "entropy"))
    for module in [*model.model.layers, model.lm_head, model]:
        fully_shard(module)
    return model


def loss_of(model, way: str, ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """Values, and the loss whose gradients are left in the model."""
    model.zero_grad(set_to_none=True)
    with patch.object(head_over_ranks, "tokens_are_fewer", lambda *_: WAYS[way]):
        got = model(input_ids=ids, labels=labels, fused_lm_head=True)
        (got.log_probs.sum() - 0.3 * got.entropy.square().sum()).backward()
    return {"log_probs": got.log_probs.detach(), "entropy": got.entropy.detach()}


def both_ways(rank: int, ranks: int, family: str, frozen: bool) -> dict[str, Any]:
    """Each process has another number of scored tokens; the last has none."""
    model = sharded(family)
    model.lm_head.requires_grad_(not frozen)
    ids = torch.randint(1, 49, (2, 6), generator=torch.Generator().manual_seed(rank))
    labels = ids.clone()
    labels[:, : rank + 2] = -100
    if rank == ranks - 1:
        labels[:] = -100
    found = {}
    for way in WAYS:
        values = loss_of(model, way, ids, labels)
        gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
        found[way] = {name: value.numpy() for name, value in {**values, **gradients}.items()}  # sent by value
    return found


def cost(rank: int, ranks: int, rounds: int = 5) -> dict[str, dict[str, float]]:
    """CPU seconds, and bytes that this process hands to collectives of the head, by way: interleaved medians."""
    vocabulary, width, tokens = 32768, 128, 64
    overrides = {"vocab_size": vocabulary, "hidden_size": width, "tie_word_embeddings": False}
    model = sharded("llama", **overrides)
    ids = torch.randint(vocabulary, (1, tokens + 1))
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    sent: Counter[str] = Counter()
    for way in WAYS:
        sent[way] = bytes_of(lambda way=way: loss_of(model, way, ids, ids))
    for _ in range(rounds):
        for way, times in seconds.items():
            began = time.process_time()
            loss_of(model, way, ids, ids)
            times.append(time.process_time() - began)
    return {way: {"cpu_s": sorted(seconds[way])[rounds // 2], "bytes": sent[way]} for way in WAYS}


def bytes_of(call) -> int:
    """What this process hands to gathers and reduce-scatters, as the profiler sees them; float32."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as seen:
        call()
    # FSDP2's own and cer_ext's take (output, input), the functional ones of DTensor the input alone.
    given = {"c10d::_allgather_base_": 1, "c10d::_reduce_scatter_base_": 1}
    given |= {"_c10d_functional::all_gather_into_tensor": 0, "_c10d_functional::reduce_scatter_tensor": 0}
    events = [event for event in seen.events() or () if event.name in given]
    return sum(4 * torch.Size(event.input_shapes[given[event.name]]).numel() for event in events)


def misfit(rank: int, ranks: int) -> str:
    """A rank whose hidden states have another width says so on every rank, and none waits."""
    model = sharded("llama")
    hidden = torch.zeros(3, 16 - (rank == 1))
    with torch.no_grad():
        try:
            head_over_ranks.score_over_ranks(
                model.lm_head, hidden, torch.ones(3, dtype=torch.long), return_entropy=True, temperature=1.0
            )
        except ValueError as error:
            return str(error)
    dist.barrier()
    return "went on"
