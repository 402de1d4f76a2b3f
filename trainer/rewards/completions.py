"""Completions as reward functions get them from TRL: their text, whether they are right, which belong together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from trainer.grading import extract_answer, grade

Completion = str | list[dict]
Rewards = list[float | None]
LogMetric = Callable[[str, float], None] | None  # TRL's hook


def completion_text(completion: Completion) -> str:
    """Returns the text of a completion: the string itself, or the content of its last message."""
    if isinstance(completion, str):
        return completion
    content = (completion[-1].get("content") or "") if completion else ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content if part.get("type") == "text")


def grade_completions(
    completions: list[Completion], ground_truth: list, log_metric: LogMetric = None
) -> list[bool | None]:
    """Returns right, wrong or None (no ground truth) per completion.

    Logs the share of right ones as "accuracy", and the share in which no final answer was found as "no_answer": a
    number per completion, of which TRL takes the mean over all processes.
    """
    if len(completions) != len(ground_truth):
        raise ValueError(f"{len(ground_truth)} values of ground_truth for {len(completions)} completions")
    texts = [completion_text(completion) for completion in completions]
    correct = [None if truth is None else grade(text, truth) for text, truth in zip(texts, ground_truth, strict=True)]
    if log_metric is not None:
        for text, right in zip(texts, correct, strict=True):
            if right is not None:
                log_metric("accuracy", float(right))
                log_metric("no_answer", float(not right and extract_answer(text) is None))  # a right one has one
    return correct


def group_keys(prompts: Sequence | None) -> list[str] | None:
    """One hashable key per prompt, equal for equal prompts: the completions of a group. None: all are one group."""
    if prompts is None:
        return None
    return [p if isinstance(p, str) else json.dumps(p, sort_keys=True, default=repr) for p in prompts]


def groups_of(keys: Sequence[str] | None, count: int) -> list[list[int]]:
    """The positions of the completions of each group, in order."""
    members: dict[str | None, list[int]] = {}
    for position, key in enumerate(keys or [None] * count):
        members.setdefault(key, []).append(position)
    return list(members.values())


def lengths_of(completion_ids: Sequence[Sequence[int]] | None, reward: str) -> list[int]:
    """Tokens of each completion. Raises ValueError where TRL's `completion_ids` are missing."""
    if completion_ids is None:
        raise ValueError(f"{reward} needs completion_ids, which TRL hands to every reward function")
    return [len(ids) for ids in completion_ids]
