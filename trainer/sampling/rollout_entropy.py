"""The entropies that decoding recorded of rollouts, in the form that training needs.

In: entropies per token and the place of an early exit, per completion (teca_requests.Decoded); the entropies that the
training forward finds for the same tokens. Out: TECA and total per completion; masks of forced tokens; how far the two
differ.

The two are the same quantity under the same weights: the entropy of softmax(z / T), before truncation. They differ
where the engine that decodes rounds differently. Measured (docs/vllm.md): in float32 2e-5 nats a token at most; in
bfloat16 0.01 to 0.04 nats a token in the mean, 0.7 and more on one, TECA 0.015 at most, which is the model's rounding.
They also differ where the engine samples from another distribution: penalties before the entropy is taken, a
quantised key/value cache or weights, stale weights. A mean difference beyond `bound` nats is therefore warned of.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainer.sampling.early_exit import EarlyExit, forced_places
from trainer.sampling.teca_requests import Decoded

FULL_PRECISION_BOUND = 1e-3  # nats a token, in the mean: fifty times the largest difference of one token in float32
HALF_PRECISION_BOUND = 0.1  # two and a half times the largest mean of a training step in bfloat16


def bound(dtypes: Sequence[torch.dtype]) -> float:
    """The mean difference, nats a token, that rounding explains, if the model's numbers have these dtypes."""
    half = any(dtype.is_floating_point and dtype.itemsize < 4 for dtype in dtypes)
    return HALF_PRECISION_BOUND if half else FULL_PRECISION_BOUND


def written_by_policy(decoded: Sequence[Decoded], rule: EarlyExit | None) -> list[list[int]]:
    """Per completion 1 for the tokens that the policy drew and 0 for those that the rule forced."""
    masks = []
    for one in decoded:
        mask = [1] * len(one.entropies)
        for place in forced_places(one.fired, rule, len(mask)):
            mask[place] = 0
        masks.append(mask)
    return masks


def teca_and_sum(entropies: Sequence[Sequence[float]], masks: Sequence[Sequence[int]]) -> tuple[list, list]:
    """(TECA at the last token, total entropy) of each completion over the tokens with mask 1; NaN where none has."""
    means, totals = [], []
    for row, mask in zip(entropies, masks, strict=True):
        kept = [entropy for entropy, counts in zip(row, mask, strict=True) if counts]
        total = math.fsum(kept)
        means.append(total / len(kept) if kept else math.nan)
        totals.append(total if kept else math.nan)
    return means, totals


def padded(entropies: Sequence[Sequence[float]], width: int, device: torch.device) -> Tensor:
    """(B, width) float32, zeros after the end of a completion."""
    made = torch.zeros((len(entropies), width))
    for row, values in zip(made, entropies, strict=True):
        row[: len(values)] = torch.tensor(list(values))
    return made.to(device)


def differences(rollout: Tensor, training: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, largest) absolute difference of entropies (B, C) over the tokens of a mask (B, C), nats; 0 for none."""
    error = (rollout - training.detach().float()).abs() * mask
    return error.sum() / mask.sum().clamp(min=1), error.max() if error.numel() else error.new_zeros(())
