"""Decoding with a key/value cache from which finished rows are dropped: the one loop under every sampler of ours.

In: a causal LM of transformers, prompts as token ids, and a function that draws the next token of every row.
Out: completions, each up to and with its end token.

`model.generate` keeps computing rows that ended until the longest has, has one random generator for the whole batch,
and hands out either processed scores or all raw logits (L, B, V). Here equal prompts (a GRPO group, the samples of a
problem) are read once, the batch shrinks as rows end, and the caller sees the logits (b, V) of each step.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from trainer.sampling.grouped_attention import without_repeated_keys

_COMPACT_BELOW = 0.8  # drop finished rows once fewer than this share of the batch is still running

# (logits (b, V), rows (b,), step) -> tokens (b,). rows: which prompt each row of the batch belongs to. Rows that have
# ended and are not dropped yet are among them; what is drawn for them is ignored.
Draw = Callable[[Tensor, Tensor, int], Tensor]


@dataclass
class Completion:
    """One completion."""

    token_ids: list[int]  # up to and with the end token
    stopped: bool  # ended by an end token; False: cut off at the limit


@dataclass
class _Prefill:
    cache: DynamicCache
    mask: Tensor  # (B, L), 0 where a short prompt is padded
    position: Tensor  # (B,), of the next token
    logits: Tensor  # (B, V), of the first token


def _prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int) -> _Prefill:
    """Reads each different prompt once, then gives every row a cache of its own."""
    device = model.device
    unique = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    longest = max(len(prompt) for prompt in unique)
    ids = torch.full((len(unique), longest), pad_id)
    mask = torch.zeros((len(unique), longest), dtype=torch.long)
    for row, prompt in enumerate(unique):  # padded on the left: the last column is every prompt's last token
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    ids, mask, positions = ids.to(device), mask.to(device), positions.to(device)
    cache = DynamicCache(config=model.config)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
    output = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        **last_only,
    )
    place = {prompt: row for row, prompt in enumerate(unique)}
    rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=device)
    cache.batch_select_indices(rows)
    return _Prefill(cache, mask[rows], positions[rows, -1] + 1, output.logits[rows, -1])


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    draw: Draw,
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    on_step: Callable[[int], None] | None = None,
) -> list[Completion]:
    """One completion per prompt, in order.

    Args:
        model: in evaluation mode, on its device; bare or wrapped by PEFT.
        prompts: token ids, at least one each.
        draw: how a token is drawn (see `Draw`).
        max_new_tokens: at which length a completion is cut off, the end token included.
        end_ids: tokens that end a completion.
        pad_id: fills the left of short prompts; any token.
        on_step: told after every step how many completions go on.
    """
    with without_repeated_keys(model):
        read = _prefill(model, prompts, pad_id)
        cache, mask, position, logits = read.cache, read.mask, read.position, read.logits
        rows = len(prompts)
        tokens = torch.full((rows, max_new_tokens), pad_id, device=model.device)
        lengths = torch.full((rows,), max_new_tokens, device=model.device)
        stopped = torch.zeros(rows, dtype=torch.bool, device=model.device)
        ends = torch.tensor(sorted(end_ids), device=model.device)
        alive = torch.arange(rows, device=model.device)  # which prompt each row of the batch belongs to
        running = torch.ones(rows, dtype=torch.bool, device=model.device)  # of the batch; False: ended, not yet dropped
        for step in range(max_new_tokens):
            chosen = draw(logits, alive, step)  # (b,)
            tokens[alive[running], step] = chosen[running]
            ended = running & torch.isin(chosen, ends)
            lengths[alive[ended]] = step + 1
            stopped[alive[ended]] = True
            running = running & ~ended
            left = int(running.sum())
            if on_step is not None:
                on_step(left)
            if left == 0 or step + 1 == max_new_tokens:
                break
            if left < _COMPACT_BELOW * len(running):
                keep = running.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                alive, mask, position, chosen, running = (x[keep] for x in (alive, mask, position, chosen, running))
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]  # (b, V)
            position = position + 1
    return [
        Completion(row[:length], has_stopped)
        for row, length, has_stopped in zip(tokens.tolist(), lengths.tolist(), stopped.tolist(), strict=True)
    ]
