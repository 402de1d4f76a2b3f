r"""A price on what comes after the answer, and on nothing before it: "explore briefly, then decide", without a scale.

    decided_reward    1 + weight e^(-A / A0)   if right and all of its group are right
                      1                        if right, and some of its group are wrong
                      0                        if wrong

A is the number of tokens after the point where the answer stands for good: its first statement, or the first check of
it if one was made. A0 is the median of A over the group, at least one token.

Why. A mean of entropies is diluted by certain tokens, and a total hardly notices them: a model that knows its answer
can repeat it for nothing ("1 + 3 = 4. So 1 + 3 = 4."). A length penalty sees them, and makes the exploration before the
answer as dear as the repetition after it. Here only what follows the answer is priced. A check of it that computes
something new follows it too, and is of use where answers go wrong: so one is free, and the price is off in every group
in which an answer is wrong. If checking less makes answers wrong, the price goes by itself until they are right again.

Where the answer stands is read off the text (`decided_at`), and tokens after it are counted by their share of the
characters: a reward function is given no tokenizer.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics

from trainer.grading import extract_answer
from trainer.rewards.completions import (
    Completion,
    LogMetric,
    Rewards,
    completion_text,
    grade_completions,
    group_keys,
    groups_of,
    lengths_of,
)
from trainer.rewards.ranks import over_ranks

LEAST_SCALE_TOKENS = 1.0
# What announces a result; at most two words may stand between it and the answer ("is now 8", "gives her 8").
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_ANNOUNCED = (
    r"(?:=|≈|\\boxed\s*\{|\b(?:is|are|gives?|gets?|makes|equals|leaves|totals?|answer:?)\b)"
    r"\s*\$?\s*(?:[\w']+\s+){0,2}?"
)


def decided_reward(
    completions: list[Completion],
    ground_truth: list,
    completion_ids: list[list[int]] | None = None,
    prompts: list | None = None,
    *,
    weight: float = 0.5,
    log_metric: LogMetric = None,
    **kwargs,
) -> Rewards:
    """See this file's header. The mean of A over the right completions is logged as "tokens_after_answer".

    Args:
        completions: what TRL hands over.
        ground_truth: dataset column; None leaves a row without a reward.
        completion_ids: TRL's, for the lengths in tokens.
        prompts: TRL's; equal prompts are one group, also where it is spread over processes.
        weight: what stopping at the answer is worth beside a right answer.
    """
    lengths = lengths_of(completion_ids, "decided_reward")
    correct = grade_completions(completions, ground_truth, log_metric)
    after = [tokens_after_answer(completion_text(c), length) for c, length in zip(completions, lengths, strict=True)]
    if log_metric is not None:
        for tokens, right in zip(after, correct, strict=True):
            if right:
                log_metric("tokens_after_answer", tokens)

    def price(after: list[float], correct: list[bool | None], keys: list[str] | None) -> Rewards:
        rewards: Rewards = [None if right is None else float(right) for right in correct]
        for group in groups_of(keys, len(after)):
            if all(correct[i] for i in group):
                scale = max(statistics.median(after[i] for i in group), LEAST_SCALE_TOKENS)
                for i in group:
                    rewards[i] = 1 + weight * math.exp(-after[i] / scale)
        return rewards

    return over_ranks(price, after, correct, group_keys(prompts))


def tokens_after_answer(text: str, tokens: int) -> float:
    """How many of a completion's tokens come after its final answer was stated first; 0 where it has no answer."""
    end = decided_at(text)
    return tokens * (len(text) - end) / len(text) if text and end is not None else 0.0


def decided_at(text: str) -> int | None:
    """Where in a completion its answer stands for good: the offset behind its first statement, or behind a check of it.

    A statement is the final answer, standing alone, behind what announces a result ("= 8", "that gives 8", "the answer
    is 8", a box). A later one is a check if the other numbers between it and the one before it are new: not all of them
    come in this order before the first statement already, as they do in a repetition. One check is free: it can find an
    error. Where no statement is found before the end, the final one is the first. None: no answer at all.
    """
    answer = extract_answer(text)
    if not answer:
        return None
    alone = rf"(?<![\w.,]){re.escape(answer.strip())}(?!\w|[.,]\d)"
    stated = list(re.finditer(f"{_ANNOUNCED}({alone})", text, flags=re.IGNORECASE))
    if not stated:
        last = text.rfind(answer)
        return len(text) if last < 0 else last + len(answer)
    first = stated[0].end()
    before = _NUMBER.findall(text[:first])
    for earlier, later in itertools.pairwise(stated):
        between = [number for number in _NUMBER.findall(text[earlier.end() : later.start(1)]) if number != answer]
        if not _in_order(between, before):
            return later.end()
    return first


def _in_order(some: list[str], among: list[str]) -> bool:
    """Whether `some` can be read off `among` from left to right, with gaps."""
    rest = iter(among)
    return all(number in rest for number in some)
