"""The rows of a call: which of them take part, and what belongs to each.

In: target (N,) and what a call knows about its rows. Out: the rows that take part as a Rows, or a ValueError for a
target that is no token.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from cer_ext import ops

MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)


def check_target_values(target: Tensor, ignore_index: int, vocabulary: int) -> None:
    """Raise for the first target (contiguous) that is no token."""
    first = ops.first_bad_target(target, ignore_index, vocabulary)
    if first >= 0:
        raise ValueError(
            f"target: expected 0 <= target < {vocabulary} or ignore_index={ignore_index}, "
            f"got {target.view(-1)[first].item()} at row {first}"
        )


class Rows(NamedTuple):
    """The rows that take part, in order: which (None: all), and what belongs to each."""

    indices: Tensor | None
    target: Tensor
    inverse: Tensor | None

    @classmethod
    def select(cls, alive: Tensor | None, target: Tensor, inverse: Tensor | None) -> Rows:
        """Those where `alive` is True. None: not checked (on CUDA that would wait for the device)."""
        if alive is None or bool(alive.all()):
            return cls(None, target, inverse)
        indices = alive.nonzero().view(-1)
        return cls(indices, target[indices], None if inverse is None else inverse[indices])

    def take(self, tensor: MaybeTensor, dim: int = 0) -> MaybeTensor:
        return tensor if tensor is None or self.indices is None else tensor.index_select(dim, self.indices)

    def spread(self, part: Tensor, total: int) -> Tensor:
        """(..., n) of the chosen rows -> (..., total), zeros in the rows that were left out."""
        if self.indices is None:
            return part
        return part.new_zeros((*part.shape[:-1], total)).index_copy_(-1, self.indices, part)

    def spread_matrix(self, part: Tensor, total: int) -> Tensor:
        """(n, D) of the chosen rows -> (total, D), zeros in the rows that were left out."""
        if self.indices is None:
            return part
        return part.new_zeros((total, part.shape[1])).index_copy_(0, self.indices, part)

    def span(self, part: slice, total: int) -> tuple[slice, slice | Tensor]:
        """The slice of all `total` rows that goes with `part` of the chosen ones, and where in it those are.

        The spans of consecutive parts follow one another without a gap; rows left out belong to the span before them.
        """
        if self.indices is None:
            return part, slice(None)
        start = 0 if part.start == 0 else int(self.indices[part.start])
        stop = total if part.stop == self.indices.numel() else int(self.indices[part.stop])
        return slice(start, stop), self.indices[part] - start


def alive_rows(target: Tensor, ignore_index: int, grads: tuple[Tensor | None, ...]) -> Tensor:
    """(N,) bool: rows that add to some gradient. One whose upstream gradients (N,) are all zero adds nothing."""
    alive = torch.zeros_like(target, dtype=torch.bool)
    for grad in grads:
        if grad is not None:
            alive |= grad != 0
    return alive & (target != ignore_index)
