"""Of one response: how far it goes before its right number first appears, and what it spends after.

In: a record of an evaluation.  Out: tokens and nats before and after that point.

A mean over tokens is moved by certain tokens, a total is not, and neither sees whether a token comes before the answer
is known or after. This splits both at the token that completes the first appearance of the right number as a number of
its own (the 12 of "12", not of "112"). It says where there is something to save: tokens after it are repetition,
checking, or talking oneself out of the answer.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

from trainer.records.record_files import Record


@dataclass(frozen=True)
class Split:
    """A response at the first appearance of its right number; tokens up to and with it are `before`."""

    tokens_before: int
    tokens_after: int
    nats_before: float
    nats_after: float


def split_at_answer(record: Record) -> Split | None:
    """None where the right number never appears."""
    number = re.escape(record["ground_truth"])
    found = re.search(rf"(?<![\d.]){number}(?!\d|\.\d)", "".join(record["tokens"]))
    if found is None:
        return None
    ends = list(accumulate(len(token) for token in record["tokens"]))  # characters up to and with each token
    count = bisect_left(ends, found.end()) + 1
    entropies = record["token_entropies"]
    return Split(count, len(entropies) - count, sum(entropies[:count]), sum(entropies[count:]))
