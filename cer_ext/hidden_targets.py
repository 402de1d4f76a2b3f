"""Several targets a row, target logits, top-1 and top-k, from hidden states and the head's weight.

In: hidden (..., D), weight (V, D), bias (V,); target (...) or (..., K), or k. Out: log-probabilities, logits and top-1
of the targets, or log-probabilities and indices of the k largest; entropy and lse of the row (...).

The logits are made tile by tile as in from_hidden.py, in the same bounded workspace, forward and backward; besides it
a call takes O(N K). Each entry is read out of the tile that holds it (entries.py): a target more costs no product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cer_ext import checks, entries, ops
from cer_ext.custom_op import define_op, refuse_double_backward, refuse_forward_mode, upstream
from cer_ext.head_passes import Needed, fold_head, head_gradients, no_gradients
from cer_ext.rows import Rows, check_target_values
from cer_ext.transform import Transform, inverse_temperature


def no_token(ignore_index: int, vocabulary: int) -> int:
    """An index outside the vocabulary that does not ask to be ignored: no entry matches it."""
    return vocabulary if ignore_index != vocabulary else vocabulary + 1


def row_targets(targets: Tensor, ignore_index: int, vocabulary: int) -> Tensor:
    """For each row of targets (n, K) the one that speaks for the row: ignore_index where all are, an index outside the
    vocabulary where one is (the row is then NaN), else any."""
    ignored = targets == ignore_index
    bad = ((targets < 0) | (targets >= vocabulary)) & ~ignored
    stands = torch.where(bad.any(1), no_token(ignore_index, vocabulary), targets.masked_fill(ignored, 0).amax(1))
    return stands.masked_fill(ignored.all(1), ignore_index)


def alive_rows(
    targets: Tensor, ignore_index: int, per_entry: Sequence[Tensor | None], per_row: Sequence[Tensor | None]
) -> Tensor:
    """(n,) bool: rows of targets (n, K) that add to some gradient, by the upstream ones (n, K) and (n,)."""
    alive = torch.zeros_like(targets[:, 0], dtype=torch.bool)
    for grad in per_entry:
        if grad is not None:
            alive |= (grad != 0).any(1)
    for grad in per_row:
        if grad is not None:
            alive |= grad != 0
    return alive & ~(targets == ignore_index).all(1)


# ------------------------------------------------------------------------------------------------------------ op bodies


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor | None,
    k: int,
    temperature: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
    workspace_bytes: int,
    validate: bool,
) -> tuple[Tensor, ...]:
    """Of the targets (..., K), or where there are none of the k largest."""
    device, dtype, shape = hidden.device, ops.real_dtype(hidden.dtype), hidden.shape[:-1]
    vocabulary, total = weight.shape[0], shape.numel()
    if target is None:
        targets, speaking = None, torch.zeros(total, dtype=torch.int64, device=device)
        ignore_index = -1  # of no row
    else:
        k = target.shape[-1]
        targets = target.contiguous().view(total, k)
        if validate:
            check_target_values(targets, ignore_index, vocabulary)
        speaking = row_targets(targets, ignore_index, vocabulary)
    ignored = speaking == ignore_index
    inverse = inverse_temperature(temperature, ignored, validate)
    rows = Rows.select(~ignored if device.type == "cpu" else None, speaking, inverse)
    n = rows.target.numel()
    transform = Transform.of(scalars, rows.inverse, None if bias is None else bias.to(dtype).contiguous())

    logprobs, entropy, lse = (torch.empty(n, dtype=dtype, device=device) for _ in range(3))
    stats = torch.empty((3, n), dtype=torch.float64, device=device)
    if targets is None:
        largest = entries.Largest(n, k, transform, dtype, device)
        indices, raw, visit = largest.indices, largest.raw, largest.add_tile
    else:
        indices = rows.take(targets)
        raw = torch.full((n, k), torch.nan, dtype=dtype, device=device).masked_fill_(indices == ignore_index, 0.0)

        def visit(tile: Tensor, part: slice, columns: slice) -> None:
            entries.pick(tile, indices[part], columns, raw[part])

    if n:
        flat_hidden = rows.take(hidden.reshape(total, -1))
        states = fold_head(flat_hidden, weight, rows, transform, workspace_bytes=workspace_bytes, visit=visit)
        ops.finish_rows(states, rows.target, transform, ignore_index, vocabulary, logprobs, entropy, lse, stats)
    at = entries.evaluate(raw, indices, stats, transform)
    nothing = indices == ignore_index
    per_entry = (at.logprob.to(dtype), at.logit.to(dtype), at.is_top1)

    def spread(entry: Tensor) -> Tensor:
        return rows.spread_matrix(entry.masked_fill(nothing, 0), total).view(*shape, k)

    return (
        *(spread(entry) for entry in per_entry),
        rows.spread(entropy, total).view(shape),
        rows.spread(lse, total).view(shape),
        indices.view(*shape, k) if targets is None else indices.new_empty(0),
        rows.spread_matrix(raw, total),
        rows.spread(stats, total),
    )


def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: Tensor | None,
    raw: Tensor,
    stats: Tensor,
    grad_logprobs: Tensor | None,
    grad_logits: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
    workspace_bytes: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, total, vocabulary = ops.real_dtype(hidden.dtype), stats.shape[1], weight.shape[0]
    needed = Needed(need_hidden, need_weight, need_bias)
    targets = target.contiguous().view(total, -1)
    per_entry = [
        None if grad is None else grad.double().reshape(targets.shape).masked_fill(targets == ignore_index, 0.0)
        for grad in (grad_logprobs, grad_logits)
    ]
    per_row = [upstream(grad, dtype, total) for grad in (grad_entropy, grad_lse)]
    alive = alive_rows(targets, ignore_index, per_entry, per_row)
    on_cpu = hidden.device.type == "cpu"
    unmatched = torch.full_like(targets[:, 0], no_token(ignore_index, vocabulary)).masked_fill(~alive, ignore_index)
    rows = Rows.select(alive if on_cpu else None, unmatched, inverse_temperature(temperature, None, False))
    n = rows.target.numel()
    if n:
        transform = Transform.of(scalars, rows.inverse, None if bias is None else bias.to(dtype).contiguous())
        stats = rows.take(stats, dim=1)
        per_entry = [rows.take(grad) for grad in per_entry]
        per_row = [rows.take(grad) for grad in per_row]
        indices, raw = rows.take(targets), rows.take(raw)
        others = None if on_cpu else alive
        at_entries = entries.EntryGradients.of(raw, indices, stats, transform, *per_entry, *per_row, alive=others)
        gradients = head_gradients(
            rows.take(hidden.reshape(total, -1)),
            weight,
            rows,
            stats,
            at_entries.others,
            transform,
            ignore_index,
            needed,
            workspace_bytes=workspace_bytes,
            alive=others,
            revise=at_entries.write,
        )
    else:
        gradients = no_gradients(n, weight, dtype, needed)
    grad_hidden = rows.spread_matrix(gradients.hidden.to(hidden.dtype), total) if need_hidden else None
    return (
        hidden.new_empty(0) if grad_hidden is None else grad_hidden.view(hidden.shape),
        gradients.weight,
        gradients.bias.to(weight.dtype),
    )


# ------------------------------------------------------------------------------------------------- shapes and gradients


class ForwardArguments(NamedTuple):
    """The op's arguments by name, in order; and its gradients, where what has none is None."""

    hidden: Any = None
    weight: Any = None
    bias: Any = None
    target: Any = None
    k: Any = None
    temperature: Any = None
    scalars: Any = None
    ignore_index: Any = None
    workspace_bytes: Any = None
    validate: Any = None


def _fake_forward(*values):
    call = ForwardArguments(*values)
    dtype, shape = ops.real_dtype(call.hidden.dtype), call.hidden.shape[:-1]
    total = shape.numel()
    several = (*shape, call.k if call.target is None else call.target.shape[-1])
    new = call.hidden.new_empty
    return (
        new(several, dtype=dtype),
        new(several, dtype=dtype),
        new(several, dtype=torch.bool),
        new(shape, dtype=dtype),
        new(shape, dtype=dtype),
        new(several if call.target is None else (0,), dtype=torch.int64),
        new((total, several[-1]), dtype=dtype),
        new((3, total), dtype=torch.float64),
    )


def _fake_backward(hidden, weight, *rest):
    needed = Needed(*rest[-3:])
    return (
        hidden.new_empty(hidden.shape if needed.hidden else (0,)),
        weight.new_empty((weight.shape[0] if needed.weight else 0, weight.shape[1])),
        weight.new_empty(weight.shape[0] if needed.bias else 0),
    )


def _setup_context(ctx, inputs, output) -> None:
    call = ForwardArguments(*inputs)
    _, _, is_top1, _, _, indices, raw, stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(is_top1, indices, raw, stats)
    target = indices if call.target is None else call.target
    ctx.save_for_backward(call.hidden, call.weight, call.bias, target, call.temperature, raw, stats, call.scalars)
    ctx.ignore_index = -1 if call.target is None else call.ignore_index
    ctx.workspace_bytes = call.workspace_bytes


def _gradient(ctx, grad_logprobs, grad_logits, _top1, grad_entropy, grad_lse, *_):
    needed = Needed(*ctx.needs_input_grad[:3])
    grads = (grad_logprobs, grad_logits, grad_entropy, grad_lse)
    if all(grad is None for grad in grads) or not any(needed):
        return ForwardArguments()
    *saved, scalars = ctx.saved_tensors
    gradients = BACKWARD(*saved, *grads, scalars, ctx.ignore_index, ctx.workspace_bytes, *needed)
    hidden, weight, bias = (grad if need else None for grad, need in zip(gradients, needed, strict=True))
    return ForwardArguments(hidden=hidden, weight=weight, bias=bias)


FORWARD = define_op(
    "hidden_targets_forward(Tensor hidden, Tensor weight, Tensor? bias, Tensor? target, SymInt k, Tensor? temperature, "
    "Tensor scalars, SymInt ignore_index, SymInt workspace_bytes, bool validate) -> (Tensor logprobs, Tensor logits, "
    "Tensor is_top1, Tensor entropy, Tensor lse, Tensor indices, Tensor raw, Tensor stats)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = define_op(
    "hidden_targets_backward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, "
    "Tensor raw, Tensor stats, Tensor? grad_logprobs, Tensor? grad_logits, Tensor? grad_entropy, Tensor? grad_lse, "
    "Tensor scalars, SymInt ignore_index, SymInt workspace_bytes, bool need_hidden, bool need_weight, bool need_bias) "
    "-> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    _backward,
    _fake_backward,
    refuse_double_backward,
)


# ----------------------------------------------------------------------------------------------------- public functions


class TargetStatistics(NamedTuple):
    """What `linear_target_statistics` and `target_statistics` return; in nats, float32 (float64 for float64 inputs)."""

    logprobs: Tensor  # like target
    logits: Tensor  # like target: the logit that enters the softmax, so that logprobs = logits - lse
    is_top1: Tensor  # like target, bool, without a gradient
    entropy: Tensor  # (...)
    lse: Tensor  # (...)


class TopK(NamedTuple):
    """What `linear_topk_logprobs` returns."""

    logprobs: Tensor  # (..., k), largest first
    indices: Tensor  # (..., k), int64
    entropy: Tensor  # (...)


def run_targets(head: checks.Head, k: int = 0) -> tuple[Tensor, ...]:
    """A checked call on its targets (..., K), or on the `k` largest: what the op returns, but for what it saves."""
    refuse_forward_mode(hidden=head.hidden, weight=head.weight, bias=head.bias, temperature=head.temperature)
    outputs = FORWARD(
        head.hidden,
        head.weight,
        head.bias,
        None if k else head.target,
        k,
        head.temperature,
        head.scalars.pack(),
        head.ignore_index,
        head.workspace_bytes,
        head.validate,
    )
    return outputs[:-2]


def linear_target_statistics(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any = None,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    workspace_bytes: int | None = None,
    validate: bool | None = None,
) -> TargetStatistics:
    """Log-probabilities, logits and top-1 of one or several targets a row, with the row's entropy and lse.

        z = softcap * tanh(logit_scale * (h W^T + b) / softcap) / T
        logprob_k = z_target_k - log sum_j e^z_j        is_top1_k = [z_target_k = max_j z_j]

    For distillation against a teacher's top-k, for rejection sampling and speculative decoding (was the token the
    greedy one?), for losses on logits. All targets of a row are read out of the same tiles: K of them cost no product
    more than one. Differentiable with respect to `hidden`, `weight` and `bias` through everything but `is_top1`, once.

    Args:
        hidden: (..., D), float32, bfloat16, float16 or float64, any strides.
        weight: (V, D), of the same dtype and device, any strides; V >= 1.
        target: (...) or (..., K), int64 (int32 is cast), token indices in [0, V), or `ignore_index`. A token may stand
            more than once in a row.
        bias: None, or (V,) of the same dtype and device.
        temperature: T, a positive finite number, or a floating point tensor (...) with one per row.
        logit_scale: factor on the logits before the cap.
        softcap: None, or the positive bound that tanh holds the logits to.
        ignore_index: entries with this target give 0 (False) and no gradient; where a row has no other, its entropy and
            lse are 0 too, and it takes no part.
        workspace_bytes: most memory for tiles of logits; None: 32 MiB on CPU, 256 MiB on CUDA. Besides it a call takes
            O(N D + N K).
        validate: as in `linear_logprobs_and_entropy`; unvalidated bad targets are NaN, with their row's entropy
            and lse.

    Returns:
        TargetStatistics(logprobs, logits, is_top1, entropy, lse). With ties every largest entry is top-1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or value that does not fit; a `workspace_bytes` in which no tile fits.
        RuntimeError: a double backward.

    Source: csrc/softmax_state.h; TRL's fused head has the same `is_top1` but for ties.

    Examples:
        >>> import torch
        >>> from cer_ext import linear_target_statistics
        >>> hidden = torch.eye(2)
        >>> weight = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> found = linear_target_statistics(hidden, weight, torch.tensor([[0, 1], [0, 1]]))
        >>> found.logprobs
        tensor([[-1.0986, -1.0986],
                [-2.2395, -0.2395]])
        >>> found.is_top1
        tensor([[ True,  True],
                [False,  True]])
    """
    head = checks.check_head(
        hidden,
        weight,
        target,
        bias,
        temperature=temperature,
        logit_scale=logit_scale,
        softcap=softcap,
        ignore_index=ignore_index,
        workspace_bytes=workspace_bytes,
        validate=validate,
        several_targets=True,
    )
    shape = head.target.shape
    if head.target.dim() < head.hidden.dim():
        head = head._replace(target=head.target[..., None])
    logprobs, logits, is_top1, entropy, lse, _ = run_targets(head)
    return TargetStatistics(logprobs.view(shape), logits.view(shape), is_top1.view(shape), entropy, lse)


def linear_topk_logprobs(
    hidden: Any,
    weight: Any,
    k: int,
    bias: Any = None,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    workspace_bytes: int | None = None,
    validate: bool | None = None,
) -> TopK:
    """The k most probable tokens of each row and their log-probabilities, with the entropy of the whole distribution.

        z = softcap * tanh(logit_scale * (h W^T + b) / softcap) / T
        logprob_i = z_(i) - log sum_j e^z_j             z_(1) >= z_(2) >= ...

    What a teacher hands to a student, without its logits. Which tokens they are has no gradient; their
    log-probabilities and the entropy have, with respect to `hidden`, `weight` and `bias`.

    Args:
        hidden: (..., D), float32, bfloat16, float16 or float64, any strides.
        weight: (V, D), of the same dtype and device, any strides.
        k: how many, 1 <= k <= V.
        bias: None, or (V,) of the same dtype and device.
        temperature: as in `linear_target_statistics`.
        softcap: as there.
        workspace_bytes: as there.
        validate: as there.
        logit_scale: factor on the logits before the cap; not 0, where all of them would be one.

    Returns:
        TopK(logprobs, indices, entropy): (..., k) float32 (float64 for float64 inputs) in nats, largest first; (..., k)
        int64, in any order among equals; (...).

    Raises:
        TypeError, ValueError, RuntimeError: as `linear_target_statistics`; a `k` that is not in [1, V].

    Examples:
        >>> import torch
        >>> from cer_ext import linear_topk_logprobs
        >>> weight = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, 0.0]])
        >>> found = linear_topk_logprobs(torch.eye(2)[1:], weight, 2)
        >>> found.logprobs, found.indices
        (tensor([[-0.4076, -1.4076]]), tensor([[1, 0]]))
    """
    hidden = checks.as_tensor("hidden", hidden)
    target = torch.zeros(hidden.shape[:-1], dtype=torch.int64, device=hidden.device)
    head = checks.check_head(
        hidden,
        weight,
        target,
        bias,
        temperature=temperature,
        logit_scale=logit_scale,
        softcap=softcap,
        ignore_index=-1,
        workspace_bytes=workspace_bytes,
        validate=validate,
    )
    vocabulary = head.weight.shape[0]
    if not 1 <= checks.check_integer("k", k) <= vocabulary:
        raise ValueError(f"k: expected 1 <= k <= {vocabulary}, the rows of weight, got {k}")
    if head.scalars.logit_scale == 0:
        raise ValueError("logit_scale: expected a number that is not 0, where all logits are one, got 0")
    logprobs, _, _, entropy, _, indices = run_targets(head, k)
    return TopK(logprobs, indices, entropy)
