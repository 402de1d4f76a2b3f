"""The one pass of linear_token_loss: from hidden states to a loss and its gradients, the logits made once.

In: a checked call and the function of (logprobs, entropy) whose gradients are wanted. Out: loss, logprobs, entropy, and
the gradients of hidden, weight and bias in float32 (float64).

A trained bfloat16 weight on a CPU that multiplies bfloat16 has its gradient in bfloat16: a float32 sum (V, D), read and
written again for every `some rows`, takes longer than the products themselves. Instead dlogits of all rows are kept in
bfloat16, which takes no more memory up to 2 D rows, and each gradient is one product, summed in float32 and rounded
once. Where they do not fit, all rows go through the head twice: a fourth product costs less than those sums.

    for some rows:   logits tiles (n, V)      GEMM, folded one by one, kept
                     logprobs, entropy (n,)   from the states
                     dL/dlogprobs, dL/dH (n,) autograd on loss_fn: vectors, no logits
                     dlogits                  over the kept tiles
                     grad_hidden, grad_weight GEMM

Where the vocabulary is spread over the ranks of a group (vocab_parallel.py), the states of those rows are merged before
the loss, once for every `some rows`, and grad_hidden is summed over the ranks at the end, once. Where the tokens are
spread as well, `some rows` are as many of each rank, in rank order; each rank asks loss_fn about its own, and the
gradients of logprobs and entropy are gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from cer_ext import checks, ops
from cer_ext.head_passes import Needed, fold_head, head_gradients
from cer_ext.rows import Rows, alive_rows, check_target_values
from cer_ext.shards import Shards
from cer_ext.tiles import Matrices, Plan, keeps, multiplies_bfloat16
from cer_ext.transform import Transform, inverse_temperature
from cer_ext.vocab_parallel import Tokens, gather_upstream, layout

LossFunction = Callable[[Tensor, "Tensor | None", slice], Tensor]


class Gradients(NamedTuple):
    """Of hidden (N, D), weight (V, D) and bias (V,), in float32 (float64), or weight's in its own dtype.

    None where none is needed.
    """

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


class Result(NamedTuple):
    loss: Tensor  # ()
    logprobs: Tensor  # (N,)
    entropy: Tensor | None
    gradients: Gradients


class _Sums:
    """Gradients of one pass, accumulated in float32 (float64) or from kept dlogits, None where none is needed."""

    def __init__(self, matrices: Matrices, needed: Needed) -> None:
        (vocabulary, width), rows = matrices.weight.shape, matrices.rows
        dtype, device = matrices.real, matrices.weight.device
        self.matrices = matrices
        self.hidden = torch.zeros((rows, width), dtype=dtype, device=device) if needed.hidden else None
        weight_dtype = matrices.weight.dtype if matrices.keeps_dlogits else dtype
        self.weight = torch.empty((vocabulary, width), dtype=weight_dtype, device=device) if needed.weight else None
        self.bias = torch.zeros(vocabulary, dtype=dtype, device=device) if needed.bias else None
        self._fresh = True  # whether weight is still to be written: its first tiles overwrite, nothing is zeroed first
        self._kept: list[Tensor] = []  # which rows the kept dlogits are of, in the order of hidden

    def dlogits_tile(self, tile: Tensor, columns: slice) -> Tensor:
        """Where dlogits of a tile of logits go: for now, or to be kept behind those of earlier rows."""
        if not self.matrices.keeps_dlogits:
            return self.matrices.dlogits_tile(tile)
        first = sum(rows.numel() for rows in self._kept)
        return self.matrices.kept_dlogits(slice(first, first + tile.shape[0]), columns)

    def add_tile(self, dlogits: Tensor, part: slice, chosen: Rows, factor: Tensor | None, columns: slice) -> None:
        """What one tile adds: dlogits (n, cols) of the chosen rows of `part`, whose hidden states are `factor`."""
        if self.bias is not None:
            self.bias[columns] += dlogits.sum(0, dtype=self.bias.dtype)
        if self.matrices.keeps_dlogits:
            return
        if self.hidden is not None:
            rows = self.hidden[part]
            weight_tile = self.matrices.weight_tile(columns)
            if chosen.indices is None:
                self.matrices.multiply(dlogits, weight_tile, rows, accumulate=True)
            else:
                product = rows.new_empty((dlogits.shape[0], rows.shape[1]))
                self.matrices.multiply(dlogits, weight_tile, product, accumulate=False)
                rows.index_add_(0, chosen.indices, product)
        if self.weight is not None and factor is not None:
            self.matrices.multiply(dlogits.T, factor, self.weight[columns], accumulate=not self._fresh)

    def end_rows(self, part: slice, chosen: Rows) -> None:
        """Every column tile of the chosen rows of `part` has been added."""
        self._fresh = False
        if self.matrices.keeps_dlogits:
            indices = torch.arange(part.stop - part.start) if chosen.indices is None else chosen.indices
            self._kept.append(indices + part.start)

    def finish(self) -> None:
        """All rows have been added."""
        if self._fresh and self.weight is not None:
            self.weight.zero_()
        if self._kept:
            self._multiply_kept()

    def _multiply_kept(self) -> None:
        rows = torch.cat(self._kept)
        vocabulary = self.matrices.weight.shape[0]
        dlogits = self.matrices.kept_dlogits(slice(0, rows.numel()), slice(0, vocabulary))
        if self.hidden is not None and vocabulary:  # a shard may be empty
            product = self.hidden.new_empty((rows.numel(), self.hidden.shape[1]))
            self.matrices.multiply(dlogits, self.matrices.weight, product, accumulate=False)
            self.hidden.index_copy_(0, rows, product)
        if self.weight is not None:
            self.matrices.multiply(dlogits.T, self.matrices.hidden[rows], self.weight, accumulate=False)

    def spread(self, rows: Rows, total: int) -> Gradients:
        """With zeros in those of the `total` rows of hidden that took no part."""
        hidden = None if self.hidden is None else rows.spread_matrix(self.hidden, total)
        return Gradients(hidden, self.weight, self.bias)


def loss_of_rows(
    loss_fn: LossFunction, logprobs: Tensor, entropy: Tensor | None, rows: slice, wants_gradient: bool = True
) -> tuple[Tensor, ops.Upstream]:
    """The loss of some rows and what autograd makes of it: gradients of logprobs and entropy."""
    with torch.set_grad_enabled(wants_gradient):
        inputs = [x.detach().requires_grad_(wants_gradient) for x in (logprobs, entropy) if x is not None]
        loss = loss_fn(inputs[0], inputs[1] if entropy is not None else None, rows)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            found = f"shape {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss_fn: expected a floating point scalar (the sum over its rows), got {found}")
        if not loss.requires_grad:  # the loss does not depend on them, or no gradient is wanted
            return loss.detach(), ops.Upstream(None, None)
        _refuse_other_leaves(loss, inputs)
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return loss.detach(), ops.Upstream(grads[0], grads[1] if entropy is not None else None)


def _refuse_other_leaves(loss: Tensor, inputs: list[Tensor]) -> None:
    """Raise where the loss depends on another tensor that requires grad: its gradient would be silently lost."""
    own = {id(x) for x in inputs}
    seen, stack = set(), [loss.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in own:
            raise ValueError(
                f"loss_fn: uses a tensor of shape {tuple(leaf.shape)} that requires grad; gradients reach hidden, "
                "weight and bias only: detach it, or use linear_logprobs_and_entropy"
            )
        stack.extend(parent for parent, _ in node.next_functions)


class _Call(NamedTuple):
    """One call with its rows chosen: on CPU those of ignore_index take no part."""

    matrices: Matrices
    rows: Rows
    transform: Transform
    ignore_index: int
    columns: int  # of this rank's shard, or the whole vocabulary
    shards: Shards | None

    @property
    def first_column(self) -> int:
        return 0 if self.shards is None else self.shards.first

    def fold(self, part: slice, want_entropy: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """logprobs, entropy, stats of some rows, whose logits are kept."""
        target = self.rows.target[part]
        n, device, dtype = target.numel(), target.device, self.matrices.real
        states = ops.new_states(n, device) if self.columns else ops.empty_states(n, device)
        for columns in self.matrices.tiling.column_tiles(self.columns):
            tile = self.matrices.logits_tile(part, columns)
            transform = self.transform.tile(part, columns)
            first = self.first_column + columns.start
            ops.fold_tile(tile, target, states, transform, first_column=first, fresh=columns.start == 0)
        transform = self.transform.tile(part, slice(0, self.columns))
        vocabulary = self.columns
        if self.shards is not None:
            states, vocabulary = self.shards.merge(states, transform), self.shards.vocabulary
        logprobs = torch.empty(n, dtype=dtype, device=device)
        entropy = torch.empty(n, dtype=dtype, device=device) if want_entropy else None
        stats = torch.empty((3, n), dtype=torch.float64, device=device)
        ops.finish_rows(states, target, transform, self.ignore_index, vocabulary, logprobs, entropy, None, stats)
        return logprobs, entropy, stats

    def add_gradients(self, part: slice, stats: Tensor, grads: ops.Upstream, sums: _Sums) -> None:
        """From the kept logits of some rows and their upstream gradients (n,) to `sums`."""
        target, inverse = self.rows.target[part], self.transform.tile(part, slice(0, 0)).inverse_temperature
        alive = alive_rows(target, self.ignore_index, grads)
        on_cpu = target.device.type == "cpu"
        if on_cpu and not alive.any():
            return
        chosen = Rows.select(alive if on_cpu else None, target, inverse)
        stats = chosen.take(stats, dim=1)
        upstream = ops.Upstream(*(chosen.take(grad) for grad in grads))
        factor = None
        if sums.weight is not None and not self.matrices.keeps_dlogits:
            factor = chosen.take(self.matrices.hidden[part])
            if not on_cpu:  # zero times NaN would be NaN
                factor = factor.masked_fill(~alive[:, None], 0.0)
        transform = self.transform._replace(inverse_temperature=chosen.inverse)
        everything = slice(0, chosen.target.numel())
        for columns in self.matrices.tiling.column_tiles(self.columns):
            tile = chosen.take(self.matrices.kept_tile(target.numel(), columns))
            dlogits = sums.dlogits_tile(tile, columns)
            ops.grad_tile(
                tile,
                chosen.target,
                stats,
                transform.tile(everything, columns),
                self.ignore_index,
                upstream,
                dlogits,
                first_column=self.first_column + columns.start,
            )
            sums.add_tile(dlogits, part, chosen, factor, columns)
        sums.end_rows(part, chosen)


def one_pass(head: checks.Head, loss_fn: LossFunction, want_entropy: bool, needed: Needed) -> Result:
    shards = None if head.group is None else layout(head, want_entropy, want_lse=False)
    tokens = Tokens.of(head.hidden, head.target, head.temperature, shards if head.split_tokens else None)
    target = tokens.target
    if head.validate:
        vocabulary = head.weight.shape[0] if shards is None else shards.vocabulary
        check_target_values(target, head.ignore_index, vocabulary)
    ignored = target == head.ignore_index
    inverse = inverse_temperature(tokens.temperature, ignored, head.validate)
    if shards is not None and head.split_tokens:
        return _split_tokens(head, loss_fn, want_entropy, needed, tokens, inverse, shards)

    device, dtype, total = target.device, ops.real_dtype(head.hidden.dtype), target.numel()
    rows = Rows.select(~ignored if device.type == "cpu" else None, target, inverse)
    n = rows.target.numel()
    logprobs = torch.zeros(total, dtype=dtype, device=device)
    entropy = torch.zeros(total, dtype=dtype, device=device) if want_entropy else None
    loss = torch.zeros((), dtype=dtype, device=device)
    if not n:
        loss, _ = loss_of_rows(loss_fn, logprobs, entropy, slice(0, total))
        return Result(loss, logprobs, entropy, _no_gradients(head, total, needed))
    hidden = rows.take(tokens.hidden)
    low_weight_gradient = needed.weight and multiplies_bfloat16(hidden, head.weight)
    if low_weight_gradient and shards is None and not keeps(hidden, len(head.weight), head.workspace_bytes, True):
        return _two_passes(head, loss_fn, want_entropy, needed, hidden, rows, total)
    plan = _plan(head, hidden, shards, needed)
    call = _call(head, hidden, rows, shards, plan)
    sums = _Sums(call.matrices, needed)
    for part in call.matrices.tiling.row_tiles(n):
        span, place = rows.span(part, total)
        part_logprobs, part_entropy, stats = call.fold(part, want_entropy)
        logprobs[span][place] = part_logprobs
        if entropy is not None and part_entropy is not None:
            entropy[span][place] = part_entropy
        part_loss, grads = loss_of_rows(loss_fn, logprobs[span], None if entropy is None else entropy[span], span)
        loss = loss + part_loss
        if any(grad is not None for grad in grads):
            chosen = (None if grad is None else grad.to(dtype)[place].contiguous() for grad in grads)
            call.add_gradients(part, stats, ops.Upstream(*chosen), sums)
    sums.finish()
    if sums.hidden is not None and shards is not None:
        shards.sum_gradient(sums.hidden)
    return Result(loss, logprobs, entropy, sums.spread(rows, total))


def _no_gradients(head: checks.Head, total: int, needed: Needed) -> Gradients:
    """Zeros: what no row adds."""
    (vocabulary, width), dtype, device = head.weight.shape, ops.real_dtype(head.hidden.dtype), head.hidden.device
    return Gradients(
        torch.zeros((total, width), dtype=dtype, device=device) if needed.hidden else None,
        torch.zeros((vocabulary, width), dtype=dtype, device=device) if needed.weight else None,
        torch.zeros(vocabulary, dtype=dtype, device=device) if needed.bias else None,
    )


def _two_passes(
    head: checks.Head,
    loss_fn: LossFunction,
    want_entropy: bool,
    needed: Needed,
    hidden: Tensor,
    rows: Rows,
    total: int,
) -> Result:
    """The logits made twice: forward for all of `rows`, whose hidden states are `hidden` (n, D), then backward."""
    dtype, device, n = ops.real_dtype(hidden.dtype), hidden.device, rows.target.numel()
    bias = None if head.bias is None else head.bias.to(dtype).contiguous()
    transform = Transform.of(head.scalars.pack(), rows.inverse, bias)
    states = fold_head(hidden, head.weight, rows, transform, workspace_bytes=head.workspace_bytes)
    logprobs = torch.empty(n, dtype=dtype, device=device)
    entropy = torch.empty(n, dtype=dtype, device=device) if want_entropy else None
    stats = torch.empty((3, n), dtype=torch.float64, device=device)
    vocabulary = head.weight.shape[0]
    ops.finish_rows(states, rows.target, transform, head.ignore_index, vocabulary, logprobs, entropy, None, stats)
    logprobs = rows.spread(logprobs, total)
    entropy = None if entropy is None else rows.spread(entropy, total)
    loss, grads = loss_of_rows(loss_fn, logprobs, entropy, slice(0, total))
    grads = ops.Upstream(*(None if grad is None else rows.take(grad.to(dtype).contiguous()) for grad in grads))
    alive = Rows.select(alive_rows(rows.target, head.ignore_index, grads), rows.target, rows.inverse)
    if not alive.target.numel():
        return Result(loss, logprobs, entropy, _no_gradients(head, total, needed))
    found = head_gradients(
        alive.take(hidden),
        head.weight,
        alive,
        alive.take(stats, dim=1),
        ops.Upstream(*(alive.take(grad) for grad in grads)),
        transform._replace(inverse_temperature=alive.inverse),
        head.ignore_index,
        needed,
        workspace_bytes=head.workspace_bytes,
    )
    gradients = Gradients(
        rows.spread_matrix(alive.spread_matrix(found.hidden, n), total) if needed.hidden else None,
        found.weight if needed.weight else None,
        found.bias if needed.bias else None,
    )
    return Result(loss, logprobs, entropy, gradients)


def _call(head: checks.Head, hidden: Tensor, rows: Rows, shards: Shards | None, plan: Plan) -> _Call:
    bias = None if head.bias is None else head.bias.to(ops.real_dtype(hidden.dtype)).contiguous()
    transform = Transform.of(head.scalars.pack(), rows.inverse, bias)
    matrices = Matrices(hidden, head.weight, plan)
    return _Call(matrices, rows, transform, head.ignore_index, head.weight.shape[0], shards)


def _plan(head: checks.Head, hidden: Tensor, shards: Shards | None, needed: Needed, row_unit: int = 1) -> Plan:
    return Plan.of(
        hidden,
        head.weight,
        head.workspace_bytes,
        backward=True,
        weight_grad=needed.weight,
        whole_rows=True,
        vocabulary=None if shards is None else shards.largest,
        row_unit=row_unit,
    )


def _split_tokens(
    head: checks.Head,
    loss_fn: LossFunction,
    want_entropy: bool,
    needed: Needed,
    tokens: Tokens,
    inverse: Tensor | None,
    shards: Shards,
) -> Result:
    """Each rank with its own tokens. `tokens` and `inverse` are of all ranks (ranks * own), in rank order."""
    ranks, everyone = shards.ranks, tokens.target.numel()
    device, dtype, own = tokens.target.device, ops.real_dtype(head.hidden.dtype), everyone // ranks
    logprobs = torch.zeros(own, dtype=dtype, device=device)
    entropy = torch.zeros(own, dtype=dtype, device=device) if want_entropy else None
    loss = torch.zeros((), dtype=dtype, device=device)
    if not own:
        loss, _ = loss_of_rows(loss_fn, logprobs, entropy, slice(0, 0))
        return Result(loss, logprobs, entropy, _no_gradients(head, 0, needed))

    # A row tile holds the same rows of every rank, rank by rank.
    plan = _plan(head, tokens.hidden, shards, needed, row_unit=ranks)
    by_rank = torch.arange(everyone, device=device).view(ranks, own)
    order = torch.cat([part.reshape(-1) for part in by_rank.split(plan.tiling.rows // ranks, dim=1)])
    rows = Rows(None, tokens.target[order], None if inverse is None else inverse[order])
    call = _call(head, tokens.hidden[order], rows, shards, plan)
    sums = _Sums(call.matrices, needed)
    for part in plan.tiling.row_tiles(everyone):
        span = slice(part.start // ranks, part.stop // ranks)
        part_logprobs, part_entropy, stats = call.fold(part, want_entropy)
        logprobs[span] = part_logprobs.view(ranks, -1)[shards.rank]
        if entropy is not None and part_entropy is not None:
            entropy[span] = part_entropy.view(ranks, -1)[shards.rank]
        part_loss, grads = loss_of_rows(loss_fn, logprobs[span], None if entropy is None else entropy[span], span)
        loss = loss + part_loss
        grads = ops.Upstream(*(None if grad is None else grad.to(dtype) for grad in grads))
        call.add_gradients(part, stats, gather_upstream(grads, logprobs[span], shards.group), sums)
    sums.finish()
    gradients = sums.spread(rows, everyone)
    if gradients.hidden is None:
        return Result(loss, logprobs, entropy, gradients)
    in_rank_order = torch.empty_like(gradients.hidden).index_copy_(0, order, gradients.hidden)
    return Result(loss, logprobs, entropy, gradients._replace(hidden=shards.sum_own_rows(in_rank_order)))
