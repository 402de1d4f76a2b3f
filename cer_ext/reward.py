"""The reward of Cumulative Entropy Regulation, and the scale of its variant on the total entropy.

In: TECA of each response, and whether its answer is right. Out: one reward per response.

    reward = 1 + weight e^(-TECA_last)   if the answer is right, else 0

weight = 1/2 is the published one: the mean of 1 and 1 + e^(-TECA_last). Few numbers, so plain torch.

The variant that padding cannot game takes S / S0 in the place of TECA_last: S is the sum of the token entropies, S0
what right answers to the same prompt usually need (group_scales). Why a group's median: trainer/rewards/entropy.py.

Source: Cumulative Entropy Regulation, arXiv 2510.02249.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from cer_ext import checks, ops
from cer_ext.teca import check_mask

LEAST_SCALE_NATS = 1.0  # e^S: how many responses a policy chooses among; below one nat hardly any choice


def _last(teca: Tensor, mask: Tensor | None) -> Tensor:
    """TECA (..., L) at the last position where mask is 1; 0 where there is none."""
    if not teca.shape[-1]:
        return teca.new_zeros(teca.shape[:-1])
    if mask is None:
        return teca[..., -1]
    mask = mask != 0
    position = (mask * torch.arange(1, teca.shape[-1] + 1, device=teca.device)).amax(-1)  # 1-based; 0: no token
    last = teca.gather(-1, (position - 1).clamp(min=0)[..., None])[..., 0]
    return torch.where(position > 0, last, 0.0)


def _check_correct(correct: Any, device: torch.device) -> Tensor:
    if not hasattr(correct, "__dlpack__"):
        try:
            correct = torch.tensor(correct, device=device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"correct: expected booleans, got {correct!r}") from error
    correct = checks.as_tensor("correct", correct)
    if correct.dtype == torch.bool:
        return correct
    bad = (correct != 0) & (correct != 1)
    if bool(bad.any()):
        raise ValueError(f"correct: expected booleans or 0 and 1, got {correct[bad].view(-1)[0].item()}")
    return correct != 0


def cer_reward(teca_or_last: Any, correct: Any, *, mask: Any = None, weight: float = 0.5) -> Tensor:
    """Reward of each response: the lower its cumulative entropy, the higher for a right answer.

        reward = 1 + weight * exp(-TECA_last) where right, 0 where wrong

    Args:
        teca_or_last: (B,) TECA at the last token of each response (`teca_last`), or (B, L), TECA at every token
            (`teca`); nats.
        correct: (B,), bool or 0 and 1, a tensor or a sequence: whether the answer is right.
        mask: None, or (B, L) with (B, L) TECA: which tokens belong to the response, whose last one counts; None: all.
        weight: what certainty is worth beside a right answer; 0.5 is the published value, 0 gives plain accuracy.

    Returns:
        (B,) float32 (float64 for float64 TECA). NaN for a right answer whose TECA is NaN.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or value that does not fit.

    Source: arXiv 2510.02249.

    Examples:
        >>> import torch
        >>> from cer_ext import cer_reward
        >>> cer_reward(torch.tensor([0.0, 0.6931, 0.1]), torch.tensor([True, True, False]))
        tensor([1.5000, 1.2500, 0.0000])
    """
    teca = checks.as_tensor("teca_or_last", teca_or_last)
    checks.check_floating("teca_or_last", teca)
    correct = _check_correct(correct, teca.device)
    checks.check_same_device("correct", correct, "teca_or_last", teca)
    weight = checks.check_number("weight", weight)
    if not -math.inf < weight < math.inf:
        raise ValueError(f"weight: expected a finite number, got {weight}")
    if teca.dim() == correct.dim() + 1:
        if mask is not None:
            mask = check_mask(mask, teca.shape, "teca_or_last", teca)
        teca = _last(teca, mask)
    elif mask is not None:
        raise ValueError(
            f"mask: goes with TECA (B, L) of every token, got TECA of shape {tuple(teca.shape)} and correct of shape "
            f"{tuple(correct.shape)}"
        )
    if teca.shape != correct.shape:
        raise ValueError(
            f"correct: expected one value per response, got shape {tuple(correct.shape)} for TECA of shape "
            f"{tuple(teca_or_last.shape)}"
        )
    teca = teca.to(ops.real_dtype(teca.dtype))
    return torch.where(correct, 1.0 + weight * torch.exp(-teca), 0.0)


def group_scales(
    values: Sequence[float],
    correct: Sequence[bool | None],
    groups: Sequence[Hashable] | None,
    *,
    least: float = LEAST_SCALE_NATS,
) -> list[float]:
    """The scale S0 of each response: the median of `values` over the right answers of its group, at least `least`.

    Args:
        values: (B,) what the reward is to fall with, here the sum of the token entropies, nats.
        correct: (B,) whether the answer is right; None counts as wrong.
        groups: (B,) equal for responses to the same prompt; None: all are.
        least: the scale of a group without a right answer, and the smallest of all, in the unit of `values`.

    Returns:
        (B,) floats.

    Raises:
        ValueError: arguments of different lengths.

    Examples:
        >>> from cer_ext.reward import group_scales
        >>> group_scales([10.0, 30.0, 99.0, 0.2], [True, True, False, True], ["a", "a", "a", "b"])
        [20.0, 20.0, 20.0, 1.0]
    """
    groups = [None] * len(values) if groups is None else groups
    if not len(values) == len(correct) == len(groups):
        raise ValueError(f"group_scales: {len(values)} values, {len(correct)} of correct, {len(groups)} of groups")
    right: dict[Hashable, list[float]] = {}
    for group, value, is_right in zip(groups, values, correct, strict=True):
        if is_right:
            right.setdefault(group, []).append(value)
    medians = {group: max(statistics.median(members), least) for group, members in right.items()}
    return [medians.get(group, least) for group in groups]
