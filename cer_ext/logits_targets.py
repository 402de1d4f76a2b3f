"""Several targets a row, target logits and top-1, from logits that exist already.

In: logits (..., V), target (...) or (..., K). Out: log-probabilities, logits and top-1 of the targets; entropy and lse
of the row (...). As hidden_targets.py, which says what they are, without the product that makes the logits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from cer_ext import checks, entries, from_logits, ops
from cer_ext.custom_op import define_op, refuse_double_backward, refuse_forward_mode
from cer_ext.hidden_targets import TargetStatistics, alive_rows, no_token, row_targets
from cer_ext.rows import check_target_values
from cer_ext.transform import Scalars, Transform, inverse_temperature


def _forward(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
    validate: bool,
) -> tuple[Tensor, ...]:
    dtype, (*shape, k), vocabulary = ops.real_dtype(logits.dtype), target.shape, logits.shape[-1]
    targets = target.contiguous().view(-1, k)
    if validate:
        check_target_values(targets, ignore_index, vocabulary)
    speaking = row_targets(targets, ignore_index, vocabulary)
    found = from_logits.compute(
        logits, speaking.view(shape), temperature, scalars, ignore_index, True, True, False, want_stats=True
    )
    assert found.entropy is not None
    assert found.lse is not None
    assert found.stats is not None
    inverse = inverse_temperature(temperature, speaking == ignore_index, validate)
    inside = (target >= 0) & (target < vocabulary)
    raw = logits.gather(-1, target.clamp(0, vocabulary - 1)).to(dtype)
    raw = raw.masked_fill(~inside, torch.nan).masked_fill(~inside & (target == ignore_index), 0.0).view(-1, k)
    at = entries.evaluate(raw, targets, found.stats, Transform.of(scalars, inverse))
    nothing = targets == ignore_index
    per_entry = (at.logprob.to(dtype), at.logit.to(dtype), at.is_top1)
    return (
        *(entry.masked_fill(nothing, 0).view(target.shape) for entry in per_entry),
        found.entropy,
        found.lse,
        raw,
        found.stats,
    )


def _backward(
    logits: Tensor,
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
) -> Tensor:
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if not target.numel():
        return dlogits
    dtype, vocabulary, rows = ops.real_dtype(logits.dtype), logits.shape[-1], stats.shape[1]
    targets = target.contiguous().view(rows, -1)
    per_entry = [
        None if grad is None else grad.double().reshape(targets.shape).masked_fill(targets == ignore_index, 0.0)
        for grad in (grad_logprobs, grad_logits)
    ]
    per_row = [None if grad is None else grad.to(dtype).reshape(-1) for grad in (grad_entropy, grad_lse)]
    transform = Transform.of(scalars, inverse_temperature(temperature, None, False))
    alive = alive_rows(targets, ignore_index, per_entry, per_row)
    at_entries = entries.EntryGradients.of(raw, targets, stats, transform, *per_entry, *per_row, alive=alive)
    unmatched = torch.full_like(targets[:, 0], no_token(ignore_index, vocabulary)).masked_fill(~alive, ignore_index)
    from_logits.write_dlogits(dlogits, logits, unmatched, temperature, stats, at_entries.others, scalars, ignore_index)
    at_entries.write(dlogits.view(-1, vocabulary), slice(0, rows), slice(0, vocabulary))
    return dlogits


class ForwardArguments(NamedTuple):
    """The op's arguments by name, in order; and its gradients, where what has none is None."""

    logits: Any = None
    target: Any = None
    temperature: Any = None
    scalars: Any = None
    ignore_index: Any = None
    validate: Any = None


def _fake_forward(*values):
    call = ForwardArguments(*values)
    dtype, several, new = ops.real_dtype(call.logits.dtype), call.target.shape, call.logits.new_empty
    total = several[:-1].numel()
    return (
        new(several, dtype=dtype),
        new(several, dtype=dtype),
        new(several, dtype=torch.bool),
        new(several[:-1], dtype=dtype),
        new(several[:-1], dtype=dtype),
        new((total, several[-1]), dtype=dtype),
        new((3, total), dtype=torch.float64),
    )


def _setup_context(ctx, inputs, output) -> None:
    call = ForwardArguments(*inputs)
    _, _, is_top1, _, _, raw, stats = output
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(is_top1, raw, stats)
    ctx.save_for_backward(call.logits, call.target, call.temperature, raw, stats, call.scalars)
    ctx.ignore_index = call.ignore_index


def _gradient(ctx, grad_logprobs, grad_logits, _top1, grad_entropy, grad_lse, *_):
    grads = (grad_logprobs, grad_logits, grad_entropy, grad_lse)
    if all(grad is None for grad in grads) or not ctx.needs_input_grad[0]:
        return ForwardArguments()
    *saved, scalars = ctx.saved_tensors
    return ForwardArguments(logits=BACKWARD(*saved, *grads, scalars, ctx.ignore_index))


FORWARD = define_op(
    "logits_targets_forward(Tensor logits, Tensor target, Tensor? temperature, Tensor scalars, SymInt ignore_index, "
    "bool validate) -> (Tensor logprobs, Tensor logits_at, Tensor is_top1, Tensor entropy, Tensor lse, Tensor raw, "
    "Tensor stats)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = define_op(
    "logits_targets_backward(Tensor logits, Tensor target, Tensor? temperature, Tensor raw, Tensor stats, "
    "Tensor? grad_logprobs, Tensor? grad_logits, Tensor? grad_entropy, Tensor? grad_lse, Tensor scalars, "
    "SymInt ignore_index) -> Tensor dlogits",
    _backward,
    lambda logits, *rest: logits.new_empty(logits.shape),
    refuse_double_backward,
)


def target_statistics(
    logits: Any,
    target: Any,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    validate: bool | None = None,
) -> TargetStatistics:
    """Log-probabilities, logits and top-1 of one or several targets a row of logits, with the row's entropy and lse.

        z = softcap * tanh(logit_scale * x / softcap) / T
        logprob_k = z_target_k - log sum_j e^(z_j)        is_top1_k = [z_target_k = max_j z_j]

    One pass over the logits, whatever K is. Differentiable with respect to `logits` through everything but `is_top1`,
    once.

    Args:
        logits: (..., V), float32, bfloat16, float16 or float64, any strides; V >= 1.
        target: (...) or (..., K), int64 (int32 is cast), token indices in [0, V), or `ignore_index`. A token may stand
            more than once in a row.
        temperature: T, a positive finite number, or a floating point tensor (...) with one per row.
        logit_scale: factor on the logits before the cap.
        softcap: None, or the positive bound that tanh holds the logits to.
        ignore_index: entries with this target give 0 (False) and no gradient; where a row has no other, its entropy and
            lse are 0 too, and its gradient.
        validate: as in `logprobs_and_entropy`; unvalidated bad targets are NaN, with their row's entropy and lse.

    Returns:
        TargetStatistics(logprobs, logits, is_top1, entropy, lse). With ties every largest entry is top-1.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or value that does not fit.
        RuntimeError: a double backward.

    Source: csrc/softmax_state.h.

    Examples:
        >>> import torch
        >>> from cer_ext import target_statistics
        >>> found = target_statistics(torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[1, 0]]))
        >>> found.logprobs, found.is_top1
        (tensor([[-0.2395, -2.2395]]), tensor([[ True, False]]))
    """
    logits = checks.as_tensor("logits", logits)
    checks.check_floating("logits", logits)
    if not logits.dim() or not logits.shape[-1]:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {tuple(logits.shape)}")
    shape = logits.shape[:-1]
    target = checks.check_target(target, shape, "logits", logits, several_targets=True)
    per_row, temperature_all = checks.check_temperature(temperature, shape, "logits", logits)
    refuse_forward_mode(logits=logits, temperature=per_row)
    found = FORWARD(
        logits,
        target if target.dim() == logits.dim() else target[..., None],
        per_row,
        Scalars(temperature_all, checks.check_logit_scale(logit_scale), checks.check_softcap(softcap)).pack(),
        checks.check_integer("ignore_index", ignore_index),
        checks.check_validate(validate, logits.device),
    )
    return TargetStatistics(*(x.view(target.shape) for x in found[:3]), *found[3:5])
