"""Batched generation with transformers and a key/value cache, with the entropy of every distribution drawn from.

In: requests. Out: responses (requests.py). Each step is one forward of the last tokens; from its logits z (B, V) come

    H = entropy of softmax(z / T)          trainer/sampling/batch_teca.py, which also makes early exits
    w = softmax(penalised(z) / T), zero outside top-k, then top-p, then min-p
    token = the first index where the running sum of w reaches u * sum(w)

with one uniform number u per response and step, from the response's own generator: a response does not depend on its
neighbours. The loop itself is trainer/sampling/decode.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from trainer.evaluation.requests import Request, Response, Sampling
from trainer.sampling.batch_teca import BatchTeca
from trainer.sampling.decode import decode
from trainer.sampling.early_exit import EarlyExit

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
        early_exit: when to end a response's thinking, or None.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        sampling: Sampling,
        *,
        stop_ids: Sequence[int],
        pad_id: int,
        early_exit: EarlyExit | None = None,
    ) -> None:
        self.model, self.sampling, self.stop_ids, self.pad_id = model, sampling, stop_ids, pad_id
        self.early_exit = early_exit

    @torch.inference_mode()
    def generate(self, requests: list[Request], on_step: Callable[[int], None] | None = None) -> list[Response]:
        if not requests:
            return []
        sampling, device, limit = self.sampling, self.model.device, self.sampling.max_new_tokens
        uniform = torch.stack([self._uniform(request.seed) for request in requests]).to(device)  # (B, limit)
        prompts = [request.prompt_ids for request in requests]
        teca = BatchTeca(prompts, temperature=sampling.temperature, limit=limit, device=device, rule=self.early_exit)
        seen: Tensor | None = None  # (B, V): the tokens of each prompt and response so far

        def next_tokens(logits: Tensor, rows: Tensor, step: int) -> Tensor:
            nonlocal seen
            teca.step(logits, rows, step)
            penalised = logits
            if sampling.repetition_penalty != 1:
                seen = self._seen(requests, logits.shape[-1]) if seen is None else seen
                penalised = penalise(logits.float(), seen[rows], sampling.repetition_penalty)
            chosen = draw(penalised, uniform[rows, step], sampling)
            teca.wrote(rows, chosen)
            if seen is not None:
                seen[rows, chosen] = True
            return chosen

        completions = decode(
            self.model,
            prompts,
            next_tokens,
            max_new_tokens=limit,
            end_ids=self.stop_ids,
            pad_id=self.pad_id,
            on_step=on_step,
        )
        decoded = teca.decoded([len(made.token_ids) for made in completions])
        return [
            Response(made.token_ids, of_it.entropies, "stop" if made.stopped else "length", of_it.fired)
            for made, of_it in zip(completions, decoded, strict=True)
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
