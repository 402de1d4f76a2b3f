"""The tokens and nats of a response before and after its right number first appears.

In: a record of an evaluation.  Out: tokens and nats before and after that point.

Certain tokens lower a mean and leave a total as it is; neither tells whether a token comes before or after the answer
is known. This splits both at the token that completes the first appearance of the right number as a number of
its own (the 12 of "12", not of "112"). Tokens after it are repetition, checking, or a change of
mind: that is what can be saved.
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
