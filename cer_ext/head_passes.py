"""One pass over the tiles of a linear head: forward to row states, backward to gradients.

In: hidden (n, D) of the rows that take part, weight (V, D) or a shard of it that begins at `first_column` of the
vocabulary. Out: states (5, n), or gradients. The logits are made in each pass, tile by tile (tiles.py).

The vocabulary is the outer loop and the rows the inner one, so that each part of the weight, the largest operand, is
read (on CPU in low precision, where torch multiplies it: converted) once per pass. The alternative that lost: rows
outside, vocabulary inside. It needs no (5, n) states between tiles, but reads the whole weight once per row tile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cer_ext import ops
from cer_ext.rows import Rows
from cer_ext.tiles import Matrices, Plan
from cer_ext.transform import Transform


class Needed(NamedTuple):
    """Which gradients are asked for."""

    hidden: bool
    weight: bool
    bias: bool


class Gradients(NamedTuple):
    """Gradients of a head; an empty tensor for what is not needed."""

    hidden: Tensor  # (n, D) Real
    weight: Tensor  # (V, D) in the weight's dtype
    bias: Tensor  # (V,) Real


def fold_head(
    hidden: Tensor,
    weight: Tensor,
    rows: Rows,
    transform: Transform,
    *,
    workspace_bytes: int,
    first_column: int = 0,
    largest_shard: int | None = None,
    visit: Callable[[Tensor, slice, slice], None] | None = None,
) -> Tensor:
    """The states (5, n) of the rows over the columns of `weight`. `largest_shard`: of all ranks, the rows of weight.

    `visit` is shown every tile of logits, with its rows and columns.
    """
    n = rows.target.numel()
    plan = Plan.of(hidden, weight, workspace_bytes, backward=False, weight_grad=False, vocabulary=largest_shard)
    if not weight.shape[0]:
        return ops.empty_states(n, hidden.device)
    states = ops.new_states(n, hidden.device)
    matrices = Matrices(hidden, weight, plan)
    for columns in matrices.tiling.column_tiles(weight.shape[0]):
        for part in matrices.tiling.row_tiles(n):
            tile = matrices.logits_tile(part, columns)
            ops.fold_tile(
                tile,
                rows.target[part],
                states[:, part],
                transform.tile(part, columns),
                first_column=first_column + columns.start,
                fresh=columns.start == 0,
            )
            if visit is not None:
                visit(tile, part, columns)
    return states


def no_gradients(n: int, weight: Tensor, dtype: torch.dtype, needed: Needed) -> Gradients:
    """Zeros: what no row, or no column, adds."""
    vocabulary, width = weight.shape
    return Gradients(
        torch.zeros((n if needed.hidden else 0, width), dtype=dtype, device=weight.device),
        torch.zeros((vocabulary if needed.weight else 0, width), dtype=weight.dtype, device=weight.device),
        torch.zeros(vocabulary if needed.bias else 0, dtype=dtype, device=weight.device),
    )


def head_gradients(
    hidden: Tensor,
    weight: Tensor,
    rows: Rows,
    stats: Tensor,
    upstream: ops.Upstream,
    transform: Transform,
    ignore_index: int,
    needed: Needed,
    *,
    workspace_bytes: int,
    alive: Tensor | None = None,
    first_column: int = 0,
    largest_shard: int | None = None,
    revise: Callable[[Tensor, slice, slice], None] | None = None,
) -> Gradients:
    """What the rows, with statistics (3, n) and upstream gradients (n,), add to each gradient through `weight`.

    `alive` (n,): where rows that add nothing are among these (CUDA), which do; their hidden states may be NaN. None:
    all. `revise` may write into every tile of dlogits, given its rows and columns. Accumulated in float32 (float64);
    grad_weight is rounded to its dtype once, tile by tile of its rows.
    """
    dtype = ops.real_dtype(hidden.dtype)
    n, width = hidden.shape
    vocabulary = weight.shape[0]
    plan = Plan.of(hidden, weight, workspace_bytes, backward=True, weight_grad=needed.weight, vocabulary=largest_shard)
    if not vocabulary:
        return no_gradients(n, weight, dtype, needed)
    grad_hidden = torch.empty((n if needed.hidden else 0, width), dtype=dtype, device=hidden.device)
    grad_weight = torch.empty((vocabulary if needed.weight else 0, width), dtype=weight.dtype, device=hidden.device)
    grad_bias = torch.zeros(vocabulary if needed.bias else 0, dtype=dtype, device=hidden.device)

    matrices = Matrices(hidden, weight, plan)
    factor = matrices.hidden  # of dlogits^T in grad_weight: zero times NaN would be NaN
    if needed.weight and alive is not None:
        factor = factor.masked_fill(~alive[:, None], 0.0)
    keeps = matrices.keeps_dlogits
    for columns in matrices.tiling.column_tiles(vocabulary):
        for part in matrices.tiling.row_tiles(n):
            tile = matrices.logits_tile(part, columns)
            dlogits = matrices.kept_dlogits(part, columns) if keeps else matrices.dlogits_tile(tile)
            ops.grad_tile(
                tile,
                rows.target[part],
                stats[:, part],
                transform.tile(part, columns),
                ignore_index,
                upstream.tile(part),
                dlogits,
                first_column=first_column + columns.start,
            )
            if revise is not None:
                revise(dlogits, part, columns)
            if needed.bias:
                grad_bias[columns] += dlogits.sum(0, dtype=dtype)
            if keeps:
                continue
            if needed.hidden:
                weight_tile = matrices.weight_tile(columns)
                matrices.multiply(dlogits, weight_tile, grad_hidden[part], accumulate=columns.start > 0)
            if needed.weight:
                out = matrices.grad_weight_tile(grad_weight, columns)
                matrices.multiply(dlogits.T, factor[part], out, accumulate=part.start > 0)
        if keeps:
            dlogits = matrices.kept_dlogits(slice(0, n), columns)
            if needed.hidden:
                matrices.multiply(dlogits, matrices.weight_tile(columns), grad_hidden, accumulate=columns.start > 0)
            matrices.multiply(dlogits.T, factor, grad_weight[columns], accumulate=False)
        elif needed.weight and grad_weight.dtype != dtype:
            grad_weight[columns].copy_(matrices.grad_weight_tile(grad_weight, columns))
    return Gradients(grad_hidden, grad_weight, grad_bias)
