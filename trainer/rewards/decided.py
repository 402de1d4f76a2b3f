r"""A price on what comes after the answer, while exploring does not pay: "explore briefly, then decide", no scale.

    decided_reward    1                        if right, and exploring pays in this batch
                      1 + weight e^(-A / A0)   if right, and it does not
                      0                        if wrong

    exploring pays    sum over prompts, over their completions, of (E - mean E) (c - mean c) > 0

c is 1 for a right answer and 0 for a wrong one. E is what a completion says after it first states the answer that it
will give, right or wrong. A is what it says after that answer stands for good: its first statement, or the first check
of it if one was made. A0 is the median of A over the right completions of the group. A and E are counted in characters.

Why. A mean of entropies is diluted by certain tokens, and a total hardly notices them: a model that knows its answer
can repeat it for nothing ("1 + 3 = 4. So 1 + 3 = 4."). A length penalty sees them, and makes the exploration before the
answer as dear as the repetition after it. Here only what follows the answer is priced; a check that computes something
new is free once, as it can find an error.

That alone is not enough (docs/rewards.md): a policy that cannot tell a confirmed answer from an unconfirmed one learns
from any such price to stop sooner after both. So the policy is asked first, by its own samples: where completions that
go on after stating their answer are right more often than those that stop, to the same prompt, going on is worth
something to this policy now, and nothing is priced. It needs no memory, and it closes again by itself as soon as the
price has made the policy stop too soon. Within prompts, as hard problems get long wrong answers.

Not "where all of a group are right", as an earlier form of this reward and others' have it: that gate opens where the
policy was lucky, and there the price is all that GRPO sees; divided by the group's deviation it is as strong as right
against wrong elsewhere. Not a share of the tokens: it differs a little between completions that stop at the same word,
and the same division makes whole advantages of it.

Where the answer stands is read off the text (`decided_at`): a reward function is given no tokenizer. The batch is that
of all processes.
"""

from __future__ import annotations

import itertools
import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

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

LEAST_SCALE_CHARACTERS = 1.0
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
    """See this file's header.

    Logs "exploring_pays" (0 or 1), and as "tokens_after_answer" the mean of A over the right completions, in tokens.

    Args:
        completions: what TRL hands over.
        ground_truth: dataset column; None leaves a row without a reward.
        completion_ids: TRL's, for the lengths in tokens, which are for the log only.
        prompts: TRL's; equal prompts are one group, also where it is spread over processes.
        weight: what stopping at the answer is worth beside a right answer.
    """
    lengths = lengths_of(completion_ids, "decided_reward")
    correct = grade_completions(completions, ground_truth, log_metric)
    places = [_places(completion_text(completion)) for completion in completions]
    if log_metric is not None:
        for place, tokens, right in zip(places, lengths, correct, strict=True):
            if right:
                log_metric("tokens_after_answer", place.share_after * tokens)

    def price(places: list[_Places], correct: list[bool | None], keys: list[str] | None) -> list[tuple]:
        groups = groups_of(keys, len(places))
        pays = exploring_pays([place.after_first for place in places], correct, groups)
        rewards: Rewards = [None if right is None else float(right) for right in correct]
        for group in [] if pays else groups:
            after = {i: places[i].after for i in group if correct[i]}
            if after:
                scale = max(statistics.median(after.values()), LEAST_SCALE_CHARACTERS)
                for i, characters in after.items():
                    rewards[i] = 1 + weight * math.exp(-characters / scale)
        return [(reward, pays) for reward in rewards]

    priced = over_ranks(price, places, correct, group_keys(prompts))
    if log_metric is not None and priced:
        log_metric("exploring_pays", float(priced[0][1]))
    return [reward for reward, _ in priced]


def exploring_pays(explored: Sequence[float], correct: Sequence[bool | None], groups: Sequence[Sequence[int]]) -> bool:
    """Whether the completions that explored more are right more often than the others to the same prompt.

    The sign of the covariance within groups, summed over groups. A tie, as where all are right, is a no.

    Args:
        explored: (completions,) what each said after it first stated its answer.
        correct: (completions,) right, wrong, or None, which is left out.
        groups: positions of the completions to each prompt.
    """
    covariance = Fraction(0)  # exact: a tie must not be decided by rounding
    for group in groups:
        rows = [(Fraction(explored[i]), Fraction(bool(correct[i]))) for i in group if correct[i] is not None]
        if rows:
            mean = sum(amount for amount, _ in rows) / len(rows)
            covariance += sum((amount - mean) * right for amount, right in rows)
    return covariance > 0


@dataclass(frozen=True)
class _Places:
    """What a completion says after its answer, in characters; nothing where it has no answer."""

    after_first: int  # after the answer was first stated: E
    after: int  # after it stands for good: A
    length: int

    @property
    def share_after(self) -> float:
        return self.after / self.length if self.length else 0.0


def _places(text: str) -> _Places:
    first, decided = stated_at(text), decided_at(text)
    if first is None or decided is None:
        return _Places(0, 0, len(text))
    return _Places(len(text) - first, len(text) - decided, len(text))


def stated_at(text: str) -> int | None:
    """Where in a completion its final answer is stated first: the offset behind it. None: no answer at all."""
    ends = [end for _, end in _statements(text)]
    return ends[0] if ends else None


def decided_at(text: str) -> int | None:
    """Where in a completion its answer stands for good: the offset behind its first statement, or behind a check of it.

    A later statement is a check if the other numbers between it and the one before it are new: not all of them come in
    this order before the first statement already, as they do in a repetition. One check is free: it can find an error.
    None: no answer at all.
    """
    stated = _statements(text)
    if not stated:
        return None
    answer = extract_answer(text)
    first = stated[0][1]
    before = _NUMBER.findall(text[:first])
    for (_, earlier), (later, end) in itertools.pairwise(stated):
        between = [number for number in _NUMBER.findall(text[earlier:later]) if number != answer]
        if not _in_order(between, before):
            return end
    return first


def _statements(text: str) -> list[tuple[int, int]]:
    """Where a completion states its final answer: offsets before and behind it; empty if it has no answer.

    A statement is the final answer, standing alone, behind what announces a result ("= 8", "that gives 8", "the answer
    is 8", a box). Where none is found before the end, the final answer is the only one.
    """
    answer = extract_answer(text)
    if not answer:
        return []
    alone = rf"(?<![\w.,]){re.escape(answer.strip())}(?!\w|[.,]\d)"
    stated = [found.span(1) for found in re.finditer(f"{_ANNOUNCED}({alone})", text, flags=re.IGNORECASE)]
    last = text.rfind(answer)
    return stated or [(last, last + len(answer)) if last >= 0 else (len(text), len(text))]


def _in_order(some: list[str], among: list[str]) -> bool:
    """Whether `some` can be read off `among` from left to right, with gaps."""
    rest = iter(among)
    return all(number in rest for number in some)
