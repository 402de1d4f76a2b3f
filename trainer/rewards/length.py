r"""What others have proposed against overthinking, as reward functions in TRL's signature: length, and no entropy.

In: completions, the column `ground_truth`, TRL's `completion_ids` and `prompts` (equal prompts are one group).
Out: list[float | None], one per completion; None where the row has no ground truth.

With L the tokens of a completion, c = 1 if it is right and else 0, and statistics over its group (or over the group's
right completions, where a bar says so):

    kimi_reward          c + weight * (lam if c else min(0, lam)),  lam = 1/2 - (L - min L) / (max L - min L)
    dapo_reward          c - (0 up to L_max - L_cache, then rising linearly to 1 at L_max, and 1 beyond)
    efficient_reward     c (1 - alpha sigmoid((L - mean'L) / std'L))                  ' over the right completions
    grpo_lambda_reward   efficient_reward in the share of groups that has the highest accuracy, c in the others
    gr3_reward           c / (1 + alpha L / mean L)
    conciser_reward      c + weight (1 - L / L_max) in groups that are all right, c in the others
    l1_exact_reward      c - alpha |target - L|                                        target length: a data column
    l1_max_reward        c clip(alpha (target - L) + delta, 0, 1)

Constants that a paper states are the defaults. A group counts as a whole also where it is spread over processes
(ranks.py). Only the rewards are here. Sampling, filtering and losses of the papers are options of TRL, or missing.
"""

from __future__ import annotations

import math
import statistics

from trainer.rewards.completions import (
    Completion,
    LogMetric,
    Rewards,
    grade_completions,
    group_keys,
    groups_of,
    lengths_of,
)
from trainer.rewards.ranks import over_ranks


def kimi_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    prompts: list | None = None,
    *,
    weight: float = 0.5,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """The completion's place between the shortest and the longest of its group; a long wrong answer costs too.

    Args:
        weight: of the length term, which lies in [-1/2, 1/2]. The paper does not state its own, and warms it up.

    Source: Kimi k1.5, arXiv 2501.12599, section 2.3.3.
    """
    lengths = lengths_of(completion_ids, "kimi_reward")
    correct = grade_completions(completions, ground_truth, log_metric)

    def price(lengths: list[int], correct: list[bool | None], keys: list[str] | None) -> Rewards:
        rewards: Rewards = [None] * len(lengths)
        for group in groups_of(keys, len(lengths)):
            shortest, longest = min(lengths[i] for i in group), max(lengths[i] for i in group)
            for i in group:
                place = 0.5 - (lengths[i] - shortest) / (longest - shortest) if longest > shortest else 0.0
                right = correct[i]
                if right is not None:
                    rewards[i] = float(right) + weight * (place if right else min(0.0, place))
        return rewards

    return over_ranks(price, lengths, correct, group_keys(prompts))


def dapo_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    *,
    max_length: int | None = None,
    cache_share: float = 0.2,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """Accuracy with the soft overlong punishment: only the last stretch before the cut costs.

    Args:
        max_length: L_max, tokens at which a completion is cut off (the program passes --max_completion_length).
        cache_share: L_cache / L_max; the paper's is 4096 / 20480.

    Raises:
        ValueError: no max_length.

    Source: DAPO, arXiv 2503.14476, equation 13.
    """
    if not max_length:
        raise ValueError("dapo_reward needs max_length, the number of tokens at which a completion is cut off")
    lengths = lengths_of(completion_ids, "dapo_reward")
    correct = grade_completions(completions, ground_truth, log_metric)
    cache = cache_share * max_length
    punished = [min(max(0.0, (length - (max_length - cache)) / cache), 1.0) for length in lengths]
    return [None if right is None else float(right) - cost for right, cost in zip(correct, punished, strict=True)]


def efficient_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    prompts: list | None = None,
    *,
    alpha: float = 0.4,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """A right answer loses by the sigmoid of its standardised length among the right answers of its group.

    Args:
        alpha: at most so much of the reward is lost, in [0, 1); 0.4 is the largest that the paper trains with.

    Raises:
        ValueError: alpha outside of [0, 1).

    Source: Arora and Zanette, Training Language Models to Reason Efficiently, arXiv 2502.04463, section 3.
    """
    lengths = lengths_of(completion_ids, "efficient_reward")
    correct = grade_completions(completions, ground_truth, log_metric)

    def price(lengths: list[int], correct: list[bool | None], keys: list[str] | None) -> Rewards:
        rewards = _accuracy(correct)
        for group in groups_of(keys, len(lengths)):
            _price_by_sigmoid(rewards, lengths, correct, group, alpha)
        return rewards

    return over_ranks(price, lengths, correct, group_keys(prompts))


def grpo_lambda_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    prompts: list | None = None,
    *,
    alpha: float = 0.4,
    share: float = 0.2,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """A price on length only for the prompts that are answered best; accuracy alone for the others.

    Of the groups in the batch the `share` with the highest accuracy gets `efficient_reward`, at least one group if it
    has a right answer. Ties are broken by the order of the prompts.

    Raises:
        ValueError: alpha outside of [0, 1), share outside of (0, 1].

    Source: after GRPO-lambda, arXiv 2505.18086: the switch by the groups' accuracy.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}: expected a number in (0, 1]")
    lengths = lengths_of(completion_ids, "grpo_lambda_reward")
    correct = grade_completions(completions, ground_truth, log_metric)

    def price(lengths: list[int], correct: list[bool | None], keys: list[str] | None) -> Rewards:
        rewards = _accuracy(correct)
        groups = groups_of(keys, len(lengths))
        best = sorted(groups, key=lambda group: -statistics.fmean(bool(correct[i]) for i in group))
        for group in best[: max(1, round(share * len(groups)))]:
            _price_by_sigmoid(rewards, lengths, correct, group, alpha)
        return rewards

    return over_ranks(price, lengths, correct, group_keys(prompts))


def gr3_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    prompts: list | None = None,
    *,
    alpha: float = 0.33,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """The reward is divided by a factor that grows with the length relative to the group's mean: a product, no sum.

    Args:
        alpha: strength of the rescaling, at least 0.

    Source: GR3, Group Relative Reward Rescaling, arXiv 2603.10535; its calibration of alpha is not here.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha is {alpha}: expected a number >= 0")
    lengths = lengths_of(completion_ids, "gr3_reward")
    correct = grade_completions(completions, ground_truth, log_metric)

    def price(lengths: list[int], correct: list[bool | None], keys: list[str] | None) -> Rewards:
        rewards = _accuracy(correct)
        for group in groups_of(keys, len(lengths)):
            mean = statistics.fmean(lengths[i] for i in group)
            for i in group:
                if correct[i]:
                    rewards[i] = 1 / (1 + alpha * (lengths[i] / mean))
        return rewards

    return over_ranks(price, lengths, correct, group_keys(prompts))


def conciser_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    prompts: list | None = None,
    *,
    max_length: int | None = None,
    weight: float = 0.5,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """Length counts only where every answer of the group is right.

    Args:
        max_length: tokens at which a completion is cut off (the program passes --max_completion_length).
        weight: of the length term, which lies in [0, 1].

    Raises:
        ValueError: no max_length.

    Source: after ConciseR, arXiv 2505.21178, its second stage.
    """
    if not max_length:
        raise ValueError("conciser_reward needs max_length, the number of tokens at which a completion is cut off")
    lengths = lengths_of(completion_ids, "conciser_reward")
    correct = grade_completions(completions, ground_truth, log_metric)
    longest: int = max_length

    def price(lengths: list[int], correct: list[bool | None], keys: list[str] | None) -> Rewards:
        rewards = _accuracy(correct)
        for group in groups_of(keys, len(lengths)):
            if all(correct[i] for i in group):
                for i in group:
                    rewards[i] = 1 + weight * (1 - lengths[i] / longest)
        return rewards

    return over_ranks(price, lengths, correct, group_keys(prompts))


def l1_exact_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    target_length: list[int] | None = None,
    *,
    alpha: float = 0.0003,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """Accuracy less the distance to the length that the prompt asks for.

    Args:
        target_length: dataset column: the tokens that the row's prompt asks for ("Think for 512 tokens.").

    Raises:
        ValueError: no such column.

    Source: L1, length controlled policy optimization (LCPO-Exact), arXiv 2503.04697, equation 1.
    """
    off = _off_target(completion_ids, target_length, "l1_exact_reward")
    correct = grade_completions(completions, ground_truth, log_metric)
    return [None if c is None else float(c) - alpha * abs(by) for c, by in zip(correct, off, strict=True)]


def l1_max_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    target_length: list[int] | None = None,
    *,
    alpha: float = 0.0003,
    delta: float = 0.5,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """A right answer within the length that the prompt allows; a little over it costs little.

    Args:
        target_length: dataset column: the most tokens that the row's prompt allows ("Think for at most 512 tokens.").

    Raises:
        ValueError: no such column.

    Source: L1, length controlled policy optimization (LCPO-Max), arXiv 2503.04697, equation 2.
    """
    off = _off_target(completion_ids, target_length, "l1_max_reward")
    correct = grade_completions(completions, ground_truth, log_metric)
    return [
        None if c is None else float(c) * min(max(alpha * -by + delta, 0.0), 1.0)
        for c, by in zip(correct, off, strict=True)
    ]


def _accuracy(correct: list[bool | None]) -> Rewards:
    return [None if right is None else float(right) for right in correct]


def _price_by_sigmoid(
    rewards: Rewards, lengths: list[int], correct: list[bool | None], group: list[int], alpha: float
) -> None:
    """Lowers the rewards of a group's right answers as `efficient_reward` says; all alike where all are as long."""
    if not 0 <= alpha < 1:
        raise ValueError(f"alpha is {alpha}: expected a number in [0, 1)")
    right = [i for i in group if correct[i]]
    if not right:
        return
    mean = statistics.fmean(lengths[i] for i in right)
    deviation = statistics.pstdev(lengths[i] for i in right)
    for i in right:
        standardised = (lengths[i] - mean) / deviation if deviation > 0 else 0.0
        rewards[i] = 1 - alpha / (1 + math.exp(-standardised))


def _off_target(completion_ids: list[list[int]] | None, target_length: list[int] | None, reward: str) -> list[int]:
    lengths = lengths_of(completion_ids, reward)
    if target_length is None:
        raise ValueError(f"{reward} needs the data column target_length: the tokens that each row's prompt asks for")
    return [length - target for length, target in zip(lengths, target_length, strict=True)]
