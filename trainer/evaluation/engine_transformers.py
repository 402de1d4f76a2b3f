"""Batched generation with transformers and a key/value cache, with the entropy of every distribution drawn from.

In: requests. Out: responses (requests.py). Each step is one forward of the last tokens; from its logits z (B, V) come

    H = entropy of softmax(z / T)          cer_ext.logprobs_and_entropy: one read of z, nothing of size (B, V) is kept
    w = softmax(penalised(z) / T), zero outside top-k, then top-p, then min-p
    token = the first index where the running sum of w reaches u * sum(w)

with one uniform number u per response and step, from the response's own generator: a response does not depend on its
neighbours. `model.generate` was not used because it has one generator for the whole batch, computes finished rows until
the last one ends, and hands out either processed scores or all raw logits (L, B, V).

Prompts are padded on the left; equal ones (samples of a problem) are read once; finished rows leave the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

import cer_ext
from trainer.evaluation.requests import Request, Response, Sampling

_COMPACT_BELOW = 0.8  # finished rows leave once fewer than this share of the batch is still running
_CANDIDATES = 1024  # the nucleus is looked for among so many tokens before the whole vocabulary is sorted


def penalise(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Logits (B, V) of tokens that were seen (B, V), divided by the penalty where positive, multiplied where negative.

    Source: Keskar et al. 2019, arXiv 1909.05858, equation 2, in the form that transformers and vLLM use.
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def draw(logits: Tensor, uniform: Tensor, sampling: Sampling) -> Tensor:
    """One token per row by the inverse of the distribution function.

    Args:
        logits: (B, V), penalised already.
        uniform: (B,) float64 in [0, 1).
        sampling: temperature, top_k, top_p, min_p.

    Returns:
        (B,) int64.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    z = logits.float() / sampling.temperature
    vocabulary = z.shape[-1]
    order = None
    if sampling.top_p < 1 or sampling.top_k or sampling.min_p:
        probability, order = _nucleus_candidates(z, vocabulary, sampling)  # (B, C), likeliest first
        rank = torch.arange(probability.shape[-1], device=z.device)
        mass = 1.0
        if sampling.top_k:
            probability = probability * (rank < sampling.top_k)
            mass = probability.sum(-1, keepdim=True)  # the nucleus is one of what top-k left
        keep = probability.cumsum(-1) - probability < sampling.top_p * mass
        keep &= probability >= sampling.min_p * probability[:, :1]
        keep[:, 0] = True
        weight = probability * keep
    else:
        weight = z.softmax(-1, dtype=torch.float64)
    running = weight.cumsum(-1)
    index = torch.searchsorted(running, (uniform * running[:, -1])[:, None], right=True)  # (B, 1)
    # Rounding can put u * sum at the very sum: the last token that has any weight then.
    last = weight.shape[-1] - 1 - (weight > 0).flip(-1).int().argmax(-1, keepdim=True)
    index = torch.minimum(index, last)
    return (index if order is None else order.gather(-1, index))[:, 0]


def _nucleus_candidates(z: Tensor, vocabulary: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Probabilities in falling order, and their tokens: enough of them to hold what top-k, top-p and min-p keep."""
    lse = z.double().logsumexp(-1, keepdim=True)
    if vocabulary > 2 * _CANDIDATES and sampling.top_k <= _CANDIDATES:
        top, order = z.topk(_CANDIDATES, dim=-1)
        probability = (top.double() - lse).exp()
        if sampling.top_k:
            return probability, order
        enough = probability[:, -1] < sampling.min_p * probability[:, 0]
        if sampling.top_p < 1:
            enough |= probability.sum(-1) >= sampling.top_p
        if bool(enough.all()):
            return probability, order
    top, order = z.sort(-1, descending=True)
    return (top.double() - lse).exp(), order


class TransformersEngine:
    """Generation by a causal language model of transformers, bare or wrapped by PEFT.

    Args:
        model: in evaluation mode, on its device.
        sampling: how tokens are drawn.
        stop_ids: tokens that end a response.
        pad_id: fills the left of short prompts; any token.
    """

    def __init__(self, model: PreTrainedModel, sampling: Sampling, *, stop_ids: Sequence[int], pad_id: int) -> None:
        self.model, self.sampling, self.pad_id = model, sampling, pad_id
        self.stop_ids = torch.tensor(sorted(stop_ids), device=model.device)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._last_only = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(base.forward).parameters else {}
        )

    @torch.inference_mode()
    def generate(self, requests: list[Request], on_step: Callable[[int], None] | None = None) -> list[Response]:
        if not requests:
            return []
        sampling, device, rows, limit = self.sampling, self.model.device, len(requests), self.sampling.max_new_tokens
        uniform = torch.stack([self._uniform(request.seed) for request in requests]).to(device)  # (B, limit)
        cache, mask, position, logits = self._read([request.prompt_ids for request in requests])
        seen = self._seen(requests, logits.shape[-1]) if sampling.repetition_penalty != 1 else None
        tokens = torch.full((rows, limit), self.pad_id, device=device)
        entropies = torch.zeros((rows, limit), device=device)
        lengths = torch.full((rows,), limit, device=device)
        stopped = torch.zeros(rows, dtype=torch.bool, device=device)

        alive = torch.arange(rows, device=device)  # which request each row of the batch answers
        running = torch.ones(rows, dtype=torch.bool, device=device)  # of the batch; False: ended, not gone yet
        for step in range(limit):
            chosen = draw(
                logits if seen is None else penalise(logits.float(), seen, sampling.repetition_penalty),
                uniform[alive, step],
                sampling,
            )
            _, entropy = cer_ext.logprobs_and_entropy(logits, chosen, temperature=sampling.entropy_temperature)
            tokens[alive[running], step] = chosen[running]
            entropies[alive[running], step] = entropy[running].float()
            ended = running & torch.isin(chosen, self.stop_ids)
            lengths[alive[ended]] = step + 1
            stopped[alive[ended]] = True
            running = running & ~ended
            left = int(running.sum())
            if on_step is not None:
                on_step(left)
            if left == 0 or step + 1 == limit:
                break
            if seen is not None:
                seen[torch.arange(len(chosen), device=device), chosen] = True
            if left < _COMPACT_BELOW * len(running):
                keep = running.nonzero()[:, 0]
                cache.batch_select_indices(keep)
                alive, mask, position, chosen, running = (x[keep] for x in (alive, mask, position, chosen, running))
                seen = None if seen is None else seen[keep]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            output = self.model(
                input_ids=chosen[:, None],
                attention_mask=mask,
                position_ids=position[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            logits = output.logits[:, -1]  # (rows of the batch, V)
            position = position + 1

        return [
            Response(row[:length], row_entropies[:length], "stop" if has_stopped else "length")
            for row, row_entropies, length, has_stopped in zip(
                tokens.tolist(), entropies.tolist(), lengths.tolist(), stopped.tolist(), strict=True
            )
        ]

    def _uniform(self, seed: int) -> Tensor:
        """The response's numbers: on the CPU, so that they are the same whatever the model's device is."""
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(self.sampling.max_new_tokens, dtype=torch.float64, generator=generator)

    def _seen(self, requests: list[Request], vocabulary: int) -> Tensor:
        seen = torch.zeros((len(requests), vocabulary), dtype=torch.bool)
        for row, request in enumerate(requests):
            seen[row, list(request.prompt_ids)] = True
        return seen.to(self.model.device)

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> tuple[DynamicCache, Tensor, Tensor, Tensor]:
        """Every different prompt once: cache, mask (B, L), next positions (B,) and the first logits (B, V)."""
        unique = list(dict.fromkeys(prompts))
        longest = max(map(len, unique))
        ids = torch.full((len(unique), longest), self.pad_id)
        mask = torch.zeros((len(unique), longest), dtype=torch.long)
        for row, prompt in enumerate(unique):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        device = self.model.device
        cache = DynamicCache(config=self.model.config)
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            **self._last_only,
        )
        place = {prompt: row for row, prompt in enumerate(unique)}
        rows = torch.tensor([place[prompt] for prompt in prompts], device=device)
        cache.batch_select_indices(rows)
        return cache, mask.to(device)[rows], positions.to(device)[rows, -1] + 1, output.logits[rows, -1]
