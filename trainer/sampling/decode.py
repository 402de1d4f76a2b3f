"""Our decoding loop: a key/value cache whose rows go to the next prompt when a completion has ended.

In: a causal LM of transformers, prompts as token ids, and a function that draws the next token of every row.
Out: completions, each up to and with its end token, as they end (`stream`) or all in order (`decode`).

`model.generate` keeps computing rows that ended until the longest has, has one random generator for the whole batch,
and hands out either processed scores or all raw logits (L, B, V). Here equal prompts (a GRPO group, the samples of a
problem) are read once, and the caller sees the logits (b, V) of each step.

A slot is a place in the batch. While prompts wait, freed slots are filled once a fifth of them is free: the new prompts
are read together and joined to the running rows. Shorter caches are padded on the left, and columns that no row needs
any more are cut off. With none waiting, the batch shrinks. So a batch does not wait for its longest response,
which at 16384 tokens is most of the time. Caches that do not keep every key in its place (sliding windows, recurrent
states) cannot be joined so: there the slots are filled again only when all are free.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from trainer.sampling.grouped_attention import without_repeated_keys

_COMPACT_BELOW = 0.8  # drop finished rows, or fill their slots, once fewer than this share of the slots is running

# (logits (b, V), slots (b,), steps (b,)) -> tokens (b,). slots: which slot each row of the batch is; steps: which token
# of its completion is drawn, below max_new_tokens. Rows that have ended and are not dropped yet are among them; what is
# drawn for them is ignored.
Draw = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class Completion:
    """One completion."""

    token_ids: list[int]  # up to and with the end token
    stopped: bool  # ended by an end token; False: cut off at the limit


@dataclass
class _Batch:
    """The rows that are decoded together."""

    cache: DynamicCache
    mask: Tensor  # (b, L), 0 where a row has no key in a column
    position: Tensor  # (b,), of the next token
    logits: Tensor  # (b, V), of the next token
    slot: Tensor  # (b,)
    step: Tensor  # (b,), of the next token, from 0
    running: Tensor  # (b,) bool; False: ended, not yet dropped

    def select(self, rows: Tensor) -> None:
        """Keep only these rows."""
        self.cache.batch_select_indices(rows)
        for name in ("mask", "position", "logits", "slot", "step", "running"):
            setattr(self, name, getattr(self, name)[rows])

    def join(self, other: _Batch) -> None:
        """Put the rows of another batch beneath these; right ends of the caches aligned."""
        _cut_left(self)
        width = max(self.mask.shape[1], other.mask.shape[1])
        for mine, its in zip(self.cache.layers, other.cache.layers, strict=True):
            mine.keys = torch.cat([_padded(mine.keys, width, -2), _padded(its.keys, width, -2)])
            mine.values = torch.cat([_padded(mine.values, width, -2), _padded(its.values, width, -2)])
        self.mask = torch.cat([_padded(self.mask, width, -1), _padded(other.mask, width, -1)])
        for name in ("position", "logits", "slot", "step", "running"):
            setattr(self, name, torch.cat([getattr(self, name), getattr(other, name)]))


def _padded(tensor: Tensor, width: int, dim: int) -> Tensor:
    """Zeros on the left of `dim` up to `width`."""
    missing = width - tensor.shape[dim]
    if not missing:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = missing
    return torch.cat([tensor.new_zeros(shape), tensor], dim=dim)


def _cut_left(batch: _Batch) -> None:
    """Drop the columns on the left in which no row has a key."""
    first = int(batch.mask.any(0).int().argmax())
    if first:
        batch.mask = batch.mask[:, first:]
        for layer in batch.cache.layers:
            layer.keys, layer.values = layer.keys[..., first:, :], layer.values[..., first:, :]


def _prefill(model: PreTrainedModel, prompts: Sequence[Sequence[int]], slots: Sequence[int], pad_id: int) -> _Batch:
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
    return _Batch(
        cache,
        mask[rows],
        positions[rows, -1] + 1,
        output.logits[rows, -1],
        torch.tensor(slots, device=device),
        torch.zeros(len(prompts), dtype=torch.long, device=device),
        torch.ones(len(prompts), dtype=torch.bool, device=device),
    )


def _forward(model: PreTrainedModel, batch: _Batch, chosen: Tensor) -> None:
    """Reads the tokens (b,) that were drawn."""
    batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(batch.mask), 1)], dim=1)
    output = model(
        input_ids=chosen[:, None],
        attention_mask=batch.mask,
        position_ids=batch.position[:, None],
        past_key_values=batch.cache,
        use_cache=True,
    )
    batch.logits = output.logits[:, -1]  # (b, V)
    batch.position = batch.position + 1
    batch.step = batch.step + 1


def _can_join(cache: DynamicCache) -> bool:
    return all(type(layer) is DynamicLayer for layer in cache.layers)


@torch.inference_mode()
def stream(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    draw: Draw,
    *,
    slots: int,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    on_begin: Callable[[int, int], None] | None = None,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[tuple[int, int, Completion]]:
    """Yields (which prompt, its slot, completion) as completions end.

    Args:
        model: in evaluation mode, on its device; bare or wrapped by PEFT.
        prompts: token ids, at least one each.
        draw: how a token is drawn (see `Draw`).
        slots: prompts decoded at once; the first so many prompts get the slots in order.
        max_new_tokens: at which length a completion is cut off, the end token included.
        end_ids: tokens that end a completion.
        pad_id: fills the left of short prompts; any token.
        on_begin: told (slot, prompt) before the first token of a prompt is drawn.
        on_step: told after every step how many completions are under way.
    """
    slots = min(slots, len(prompts))
    tokens = torch.full((slots, max_new_tokens), pad_id, device=model.device)
    ends = torch.tensor(sorted(end_ids), device=model.device)
    prompt_of = [-1] * slots  # which prompt is in each slot; -1: free
    waiting = 0  # the next prompt that has no slot yet

    def fill() -> _Batch:
        nonlocal waiting
        free = [slot for slot in range(slots) if prompt_of[slot] < 0][: len(prompts) - waiting]
        coming = list(range(waiting, waiting + len(free)))
        waiting += len(free)
        for slot, number in zip(free, coming, strict=True):
            prompt_of[slot] = number
            if on_begin is not None:
                on_begin(slot, number)
        return _prefill(model, [prompts[number] for number in coming], free, pad_id)

    with without_repeated_keys(model):
        while waiting < len(prompts):
            batch = fill()
            under_way = len(batch.slot)
            while under_way:
                chosen = draw(batch.logits, batch.slot, batch.step)  # (b,)
                tokens[batch.slot[batch.running], batch.step[batch.running]] = chosen[batch.running]
                stopped = batch.running & torch.isin(chosen, ends)
                over = stopped | (batch.running & (batch.step + 1 == max_new_tokens))
                batch.running = batch.running & ~over
                for row in over.nonzero()[:, 0].tolist():
                    slot, length = int(batch.slot[row]), int(batch.step[row]) + 1
                    yield prompt_of[slot], slot, Completion(tokens[slot, :length].tolist(), bool(stopped[row]))
                    prompt_of[slot] = -1
                    under_way -= 1
                if on_step is not None:
                    on_step(under_way)
                if not under_way:
                    break
                # A row that has ended is drawn for until it is dropped, but never a token beyond the limit.
                at_limit = bool((batch.step + 1 >= max_new_tokens).any())
                if at_limit or under_way < _COMPACT_BELOW * len(batch.running):
                    keep = batch.running.nonzero()[:, 0]
                    batch.select(keep)
                    chosen = chosen[keep]
                _forward(model, batch, chosen)
                if waiting < len(prompts) and len(batch.slot) < _COMPACT_BELOW * slots and _can_join(batch.cache):
                    coming = fill()
                    under_way += len(coming.slot)
                    batch.join(coming)


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
    """One completion per prompt, in order, all decoded at once: slot n is prompt n. The rest as in `stream`."""
    found: dict[int, Completion] = {}
    options = {"max_new_tokens": max_new_tokens, "end_ids": end_ids, "pad_id": pad_id, "on_step": on_step}
    for number, _, completion in stream(model, prompts, draw, slots=len(prompts), **options):
        found[number] = completion
    return [found[number] for number in range(len(prompts))]
