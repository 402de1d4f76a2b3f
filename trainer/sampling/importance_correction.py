"""TRL's correction for the engine that samples, computed from the training forward instead of a pass of its own.

In: log-probabilities that the engine (vLLM) sampled tokens with, and the policy's of the same tokens. Out: the factors
that TRL puts on the loss of each token or sequence,

    w = exp(log p_policy - log p_sampled)       truncated to [low, high], or 0 outside of it; per token, or per sequence
                                                from the sum over its tokens

(trl.GRPOTrainer._generate_and_score_completions, TRL 1.16; tests/trainer/test_importance_correction.py runs its code
beside this.) p_policy is the policy's before the update. TRL makes a pass over every batch of rollouts for it. Where
each batch serves one update, the training forward has the same weights and tokens, so its log-probabilities are
p_policy: that is also why TRL makes no such pass without vLLM.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


def weights(
    policy: Tensor, sampled: Tensor, mask: Tensor, *, mode: str, low: float | None, high: float | None
) -> Tensor:
    """The factors on the loss.

    Args:
        policy: (B, C) log-probabilities under the policy, at the sampling temperature; no gradient goes through them.
        sampled: (B, C) those the engine sampled with; NaN where it has none: no correction there.
        mask: (B, C), 1 for the tokens that the policy wrote.
        mode: one of MODES.
        low, high: the range that truncation clamps to and masking keeps; None: open.

    Returns:
        (B, C), or (B, 1) for the modes by sequence.

    Raises:
        ValueError: no such mode.
    """
    if mode not in MODES:
        raise ValueError(f"vllm_importance_sampling_mode is {mode!r}: expected one of {', '.join(MODES)}")
    difference = torch.nan_to_num((policy.detach() - sampled) * mask, nan=0.0)
    if mode.startswith("sequence"):
        difference = difference.sum(-1, keepdim=True)
    ratio = difference.exp()
    low, high = (-math.inf if low is None else low), (math.inf if high is None else high)
    if mode.endswith("truncate"):
        return ratio.clamp(low, high)
    return ratio.masked_fill((ratio < low) | (ratio > high), 0.0)


def measurements(policy: Tensor, sampled: Tensor, mask: Tensor, ratio: Tensor) -> Tensor:
    """(5,): mean and largest |log p_policy - log p_sampled|; smallest, mean and largest factor. Zeros for no tokens."""
    mask = mask.bool()
    difference = (policy.detach() - sampled).abs()
    difference = difference[mask & ~difference.isnan()]
    factors = ratio.flatten() if ratio.shape != mask.shape else ratio[mask]
    zero = policy.new_zeros(())
    return torch.stack(
        [
            *((difference.mean(), difference.max()) if difference.numel() else (zero, zero)),
            *((factors.min(), factors.mean(), factors.max()) if factors.numel() else (zero, zero, zero)),
        ]
    ).float()


MEASUREMENT_NAMES = (  # TRL's
    "sampling/sampling_logp_difference/mean",
    "sampling/sampling_logp_difference/max",
    "sampling/importance_sampling_ratio/min",
    "sampling/importance_sampling_ratio/mean",
    "sampling/importance_sampling_ratio/max",
)
