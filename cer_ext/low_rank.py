"""A frozen head with a low-rank part, as LoRA puts on it: log-probabilities and entropies without a copy of its weight.

In: hidden (N, D), weight (V, D), low_hidden (N, r), low_weight (V, r), target (N,). Out: logprobs, entropy (N,).

    x = h W^T + u B^T + b      then as from_hidden.py

For LoRA u = s dropout(h) A^T. The same logits come out of [h, u] [W, B]^T, which costs a copy of W with r more columns
in every pass, and where B is trained a gradient as large, D of whose D + r columns nobody wants. Here each tile of
logits is h W^T, to which u B^T is added where it lies:

    forward    GEMM of a tile, and one of width r; folded
    backward   the same again; dlogits W and dlogits B into grad_hidden and grad_low_hidden, dlogits^T u into
               grad_low_weight                                             three GEMMs, and four of width r

Two passes over the tiles, whatever the loss. Products of width r are made in float32 (float64), whatever the dtype of
the operands: they are few, and LoRA's own factors are usually float32 under a bfloat16 model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from typing_extensions import Unpack

from cer_ext import checks, ops
from cer_ext.custom_op import upstream
from cer_ext.from_hidden import checked_head
from cer_ext.options import HeadOptions
from cer_ext.rows import Rows, alive_rows, check_target_values
from cer_ext.tiles import Matrices, Plan
from cer_ext.transform import Transform, inverse_temperature


class _LowRank(NamedTuple):
    """What is added to the logits: hidden (n, r) weight (V, r)^T."""

    hidden: Tensor
    weight: Tensor


class _Pass(NamedTuple):
    """One pass over the tiles of some rows."""

    matrices: Matrices
    low: _LowRank
    rows: Rows
    transform: Transform

    @classmethod
    def of(cls, head: checks.Head, low: _LowRank, rows: Rows, bias: Tensor | None, backward: bool) -> _Pass:
        hidden = rows.take(head.hidden)
        plan = Plan.of(hidden, head.weight, head.workspace_bytes, backward=backward, weight_grad=False)
        bias = None if bias is None else bias.to(ops.real_dtype(hidden.dtype)).contiguous()
        transform = Transform.of(head.scalars.pack(), rows.inverse, bias)
        return cls(Matrices(hidden, head.weight, plan), low._replace(hidden=rows.take(low.hidden)), rows, transform)

    def logits_tile(self, part: slice, columns: slice) -> Tensor:
        tile = self.matrices.logits_tile(part, columns)
        low = self.low.hidden[part].to(tile.dtype), self.low.weight[columns].to(tile.dtype)
        return self.matrices.multiply(low[0], low[1].T, tile, accumulate=True)

    def tiles(self):
        for columns in self.matrices.tiling.column_tiles(self.matrices.weight.shape[0]):
            for part in self.matrices.tiling.row_tiles(self.rows.target.numel()):
                yield part, columns, self.transform.tile(part, columns)


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, low_hidden, low_weight, bias, head):
        dtype, device, total = ops.real_dtype(hidden.dtype), hidden.device, head.target.numel()
        vocabulary = head.weight.shape[0]
        ignored = head.target == head.ignore_index
        inverse = inverse_temperature(head.temperature, ignored, head.validate)
        rows = Rows.select(~ignored if device.type == "cpu" else None, head.target, inverse)
        n = rows.target.numel()
        logprobs, entropy = (torch.empty(n, dtype=dtype, device=device) for _ in range(2))
        stats = torch.empty((3, n), dtype=torch.float64, device=device)
        if n:
            run = _Pass.of(head, _LowRank(low_hidden, low_weight), rows, bias, backward=False)
            states = ops.new_states(n, device)
            for part, columns, transform in run.tiles():
                ops.fold_tile(
                    run.logits_tile(part, columns),
                    rows.target[part],
                    states[:, part],
                    transform,
                    first_column=columns.start,
                    fresh=columns.start == 0,
                )
            ops.finish_rows(
                states, rows.target, run.transform, head.ignore_index, vocabulary, logprobs, entropy, None, stats
            )
        ctx.save_for_backward(hidden, low_hidden, low_weight, bias, head.weight, rows.spread(stats, total))
        ctx.head = head._replace(hidden=None, weight=None, bias=None)
        ctx.set_materialize_grads(False)
        return rows.spread(logprobs, total), rows.spread(entropy, total)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropy):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, low_hidden, low_weight, bias, weight, stats = ctx.saved_tensors
        head = ctx.head._replace(hidden=hidden, weight=weight)
        need_hidden, need_low_hidden, need_low_weight, need_bias = ctx.needs_input_grad[:4]
        dtype, device, total = ops.real_dtype(hidden.dtype), hidden.device, head.target.numel()
        grads = ops.Upstream(*(upstream(grad, dtype, total) for grad in (grad_logprobs, grad_entropy, None)))
        alive = alive_rows(head.target, head.ignore_index, grads)
        on_cpu = device.type == "cpu"
        if not on_cpu:  # zero times NaN would be NaN
            low_hidden = torch.where(alive[:, None], low_hidden, 0.0)
        rows = Rows.select(alive if on_cpu else None, head.target, inverse_temperature(head.temperature, None, False))
        n = rows.target.numel()

        def zeros(needed: bool, *shape: int) -> Tensor | None:
            return torch.zeros(shape, dtype=dtype, device=device) if needed else None

        grad_hidden, grad_low = zeros(need_hidden, n, hidden.shape[1]), zeros(need_low_hidden, n, low_hidden.shape[1])
        grad_low_weight, grad_bias = zeros(need_low_weight, *low_weight.shape), zeros(need_bias, len(weight))
        if n:
            run = _Pass.of(head, _LowRank(low_hidden, low_weight), rows, bias, backward=True)
            matrices, low = run.matrices, run.low
            chosen = ops.Upstream(*(rows.take(grad) for grad in grads))
            stats = rows.take(stats, dim=1)
            for part, columns, transform in run.tiles():
                tile = run.logits_tile(part, columns)
                dlogits = matrices.dlogits_tile(tile)
                ops.grad_tile(
                    tile,
                    rows.target[part],
                    stats[:, part],
                    transform,
                    head.ignore_index,
                    chosen.tile(part),
                    dlogits,
                    first_column=columns.start,
                )
                if grad_hidden is not None:
                    matrices.multiply(dlogits, matrices.weight_tile(columns), grad_hidden[part], accumulate=True)
                dlogits = dlogits if dlogits is tile else tile.copy_(dlogits)  # float32; the logits are done with
                if grad_low is not None:
                    matrices.multiply(dlogits, low.weight[columns].to(dtype), grad_low[part], accumulate=True)
                if grad_low_weight is not None:
                    factor = low.hidden[part].to(dtype)
                    matrices.multiply(dlogits.T, factor, grad_low_weight[columns], accumulate=True)
                if grad_bias is not None:
                    grad_bias[columns] += dlogits.sum(0)
        return (
            None if grad_hidden is None else rows.spread_matrix(grad_hidden.to(hidden.dtype), total),
            None if grad_low is None else rows.spread_matrix(grad_low.to(low_hidden.dtype), total),
            None if grad_low_weight is None else grad_low_weight.to(low_weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
        )


def low_rank_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    low_hidden: Tensor,
    low_weight: Tensor,
    bias: Tensor | None = None,
    **options: Unpack[HeadOptions],
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target token and entropy of each row of hidden weight^T + low_hidden low_weight^T.

    Differentiable with respect to hidden, low_hidden, low_weight and bias, once.

    Args:
        hidden: (N, D), float32, bfloat16, float16 or float64.
        weight: (V, D), of the same dtype and device; must not require grad.
        target: (N,), int64, token indices in [0, V), or `ignore_index`.
        low_hidden: (N, r), of the same dtype and device.
        low_weight: (V, r), likewise.
        bias: None, or (V,), likewise.
        options: as in `cer_ext.linear_logprobs_and_entropy`. Memory beside the workspace: O(N D) and, where its
            gradient is wanted, O(V r).

    Returns:
        (logprobs, entropy): (N,), in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument of the wrong dtype.
        ValueError: a shape, device or value that does not fit; a weight that requires grad.
        RuntimeError: a second derivative.
    """
    settings = {"temperature": 1.0, "logit_scale": 1.0, "softcap": None, "ignore_index": -100, "workspace_bytes": None}
    head = checked_head(
        hidden,
        weight,
        target,
        bias,
        group=None,
        **{"validate": None, "vocabulary": None, "split_tokens": False, **settings, **options},
    )
    if head.weight.requires_grad:
        raise ValueError("weight: requires grad; only a frozen weight has no gradient here")
    if head.hidden.dim() != 2:
        raise ValueError(f"hidden: expected shape (N, D), got {tuple(head.hidden.shape)}")
    if torch.is_autocast_enabled(head.hidden.device.type):
        device_type = head.hidden.device.type
        if low_hidden.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device_type)
            low_hidden, low_weight = low_hidden.to(dtype), low_weight.to(dtype)
    rank = low_weight.shape[-1]
    for name, low, rows in (("low_hidden", low_hidden, len(head.hidden)), ("low_weight", low_weight, len(head.weight))):
        if low.dtype != head.hidden.dtype:
            raise TypeError(f"{name}: expected {head.hidden.dtype} like hidden, got {low.dtype}")
        checks.check_same_device(name, low, "hidden", head.hidden)
        if low.shape != (rows, rank):
            raise ValueError(f"{name}: expected shape {(rows, rank)}, got {tuple(low.shape)}")
    if head.validate:
        check_target_values(head.target, head.ignore_index, len(head.weight))
    return _Function.apply(head.hidden, low_hidden, low_weight, head.bias, head)  # pyright: ignore[reportReturnType]
