"""A head spread over ranks: which rows of the weight each rank has, and what the ranks exchange.

In: a process group, of whose ranks each calls with its shard of the weight (V_r, D), r = 0, 1, ... in the order of the
vocabulary. A shard may have any number of rows, none too. Out: the layout of the vocabulary, and these sums over ranks:

    states (5, n) of every rank -> the states over the whole vocabulary
        one all_gather, merged in rank order: the same bits everywhere
    what each rank adds to grad_hidden -> grad_hidden
        one all_reduce where every rank has all tokens, one reduce_scatter where each has its own

Errors: a rank that finds a wrong argument tells the others before anything else is sent (`agree`), so that all of them
raise and none waits for ever. That takes one exchange of a few integers a call, where arguments are validated.

Source: csrc/softmax_state.h for the merge; Megatron-LM, arXiv 1909.08053, section 3, for the cut of the vocabulary.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d

from cer_ext import ops
from cer_ext.transform import Transform


class Shards(NamedTuple):
    """How the rows of a head's weight lie on the ranks of a group."""

    group: ProcessGroup
    rank: int  # of this process in the group
    sizes: tuple[int, ...]  # rows of each rank's shard

    @property
    def ranks(self) -> int:
        return len(self.sizes)

    @property
    def first(self) -> int:
        """The index in the vocabulary of this rank's first row."""
        return sum(self.sizes[: self.rank])

    @property
    def vocabulary(self) -> int:
        return sum(self.sizes)

    @property
    def largest(self) -> int:
        return max(self.sizes)

    def merge(self, states: Tensor, transform: Transform) -> Tensor:
        """The states (5, n) of the rows over the whole vocabulary, from those over this rank's part of it."""
        return ops.merge_states(gather(states, self.group), transform)

    def sum_gradient(self, grad_hidden: Tensor) -> Tensor:
        """What every rank adds to (n, D), in place: the same bits on every rank."""
        dist.all_reduce(grad_hidden, group=self.group)
        return grad_hidden

    def sum_own_rows(self, grad_hidden: Tensor) -> Tensor:
        """This rank's rows (n, D) of the sum of every rank's (ranks * n, D)."""
        rows = grad_hidden.new_empty((grad_hidden.shape[0] // self.ranks, grad_hidden.shape[1]))
        dist.reduce_scatter_tensor(rows, grad_hidden, group=self.group)
        return rows


def process_group(name: str) -> ProcessGroup:
    """The group of a name, which is what an op can take."""
    resolve = cast(Any, distributed_c10d)._resolve_process_group  # private; what functional collectives call, too
    return resolve(name)


def gather(tensor: Tensor, group: ProcessGroup) -> Tensor:
    """(...) of every rank -> (ranks, ...)."""
    ranks = dist.get_world_size(group)
    everyone = tensor.new_empty((ranks * tensor.numel(),))
    dist.all_gather_into_tensor(everyone, tensor.contiguous().view(-1), group=group)
    return everyone.view(ranks, *tensor.shape)


def even_shards(group: ProcessGroup, vocabulary: int) -> Shards:
    """The layout of torch.chunk, which DTensor's Shard(0) has too."""
    ranks = dist.get_world_size(group)
    rows = -(-vocabulary // ranks)
    starts = [min(rank * rows, vocabulary) for rank in range(ranks + 1)]
    sizes = tuple(stop - start for start, stop in pairwise(starts))
    return Shards(group, dist.get_rank(group), sizes)


# ---------------------------------------------------------------------------------------------------------- agreement


class Description(NamedTuple):
    """What a rank says of its call. All but `shard` must be the same everywhere."""

    shard: int  # rows of the weight
    tokens: int
    width: int  # D
    dtype: int  # code of csrc/kernels.h
    temperature: float
    logit_scale: float
    softcap: float
    ignore_index: int
    return_entropy: bool
    return_lse: bool
    split_tokens: bool
    vocabulary: int  # 0: not stated
    targets: int  # a checksum; 0 where tokens are split


_IS_FLOAT = tuple(name in ("temperature", "logit_scale", "softcap") for name in Description._fields)
_SAME = {
    "tokens": "hidden: expected as many tokens on every rank",
    "width": "hidden: expected one width D on every rank",
    "dtype": "hidden: expected one dtype on every rank (codes of csrc/kernels.h)",
    "temperature": "temperature: expected one on every rank",
    "logit_scale": "logit_scale: expected one on every rank",
    "softcap": "softcap: expected one on every rank (0: none)",
    "ignore_index": "ignore_index: expected one on every rank",
    "return_entropy": "return_entropy: expected one on every rank",
    "return_lse": "return_lse: expected one on every rank",
    "split_tokens": "split_tokens: expected one on every rank",
    "vocabulary": "vocabulary: expected one on every rank (0: not stated)",
    "targets": "target: expected the same tokens on every rank, unless split_tokens (checksums",
}


def _pack(description: Description) -> list[int]:
    return [
        struct.unpack("<q", struct.pack("<d", value))[0] if is_float else int(value)
        for value, is_float in zip(description, _IS_FLOAT, strict=True)
    ]


def _unpack(numbers: list[int]) -> Description:
    values: list[Any] = [
        struct.unpack("<d", struct.pack("<q", value))[0] if is_float else value
        for value, is_float in zip(numbers, _IS_FLOAT, strict=True)
    ]
    return Description(*values)


def checksum(target: Tensor) -> int:
    """Of token indices in their order; wraps around."""
    return int((target * torch.arange(1, target.numel() + 1, device=target.device)).sum())


def agree(group: ProcessGroup, device: torch.device, mine: Description) -> Shards:
    """The layout of the vocabulary. Raises ValueError, the same on every rank, where the calls do not fit together."""
    table = [_unpack(row) for row in _exchange(group, device, _pack(mine), None)]
    for name, expected in _SAME.items():
        found = [getattr(row, name) for row in table]
        if any(value != found[0] for value in found):
            closing = ")" if expected.endswith("(checksums") else ""
            raise ValueError(f"{expected} of the group, got {', '.join(map(str, found))}{closing} in rank order")
    sizes = tuple(row.shard for row in table)
    added = f"{' + '.join(map(str, sizes))} = {sum(sizes)}"
    if mine.vocabulary and sum(sizes) != mine.vocabulary:
        raise ValueError(f"weight: expected shards that add up to {mine.vocabulary} rows over the group, got {added}")
    if not sum(sizes):
        raise ValueError(f"weight: expected at least one row in all shards of the group, got {added}")
    return Shards(group, dist.get_rank(group), sizes)


def withdraw(group: ProcessGroup, validate: bool | None, error: Exception) -> None:
    """Tell the ranks that wait in `agree` that this one cannot call; they raise. The caller raises `error` itself."""
    device = torch.device("cuda" if "nccl" in dist.get_backend(group) else "cpu")
    if validate or (validate is None and device.type == "cpu"):
        _exchange(group, device, [0] * len(Description._fields), error)


def _exchange(
    group: ProcessGroup, device: torch.device, numbers: list[int], error: Exception | None
) -> list[list[int]]:
    mine = torch.tensor([error is not None, *numbers], dtype=torch.int64, device=device)
    table = gather(mine, group).tolist()
    failed = [rank for rank, row in enumerate(table) if row[0]]
    if failed:
        messages: list[str | None] = [None] * len(table)
        dist.all_gather_object(messages, None if error is None else f"{type(error).__name__}: {error}", group=group)
        if error is None:
            raise ValueError("; ".join(f"rank {rank} of the group: {messages[rank]}" for rank in failed))
    return [row[1:] for row in table]
