"""What a reward says of a group, where the group's completions are spread over processes.

TRL hands a reward function the completions of its own process, gathers the rewards and takes advantages over whole
groups. A reward that compares completions (a median, the shortest, the share that is right) would compare with a part
of its group wherever the batch of a process is no multiple of num_generations. So what is compared is exchanged first:

    columns of this process's completions -> columns of all, in rank order -> rewards of all -> those of this process

Texts stay where they are, and each is graded once: what travels are a few numbers and the prompt of each completion.
Every process must call the reward function, as TRL has them do. In one process nothing is exchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, TypeVar

import torch.distributed as dist

Value = TypeVar("Value")


def over_ranks(compute: Callable[..., Sequence[Value]], *columns: Sequence | None) -> list[Value]:
    """compute(*columns) over the completions of every process; of what it returns, those of this process.

    Args:
        compute: takes the columns and returns one value per completion; the same on every process.
        columns: one value per completion, which can be pickled; None stays None.
    """
    count = next(len(column) for column in columns if column is not None)
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return list(compute(*columns))
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (count, columns))
    whole = [
        None if column is None else list(chain.from_iterable(part[index] for _, part in parts))
        for index, column in enumerate(columns)
    ]
    first = sum(part_count for part_count, _ in parts[: dist.get_rank()])
    return list(compute(*whole))[first : first + count]
