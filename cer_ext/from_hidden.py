"""Log-probabilities and entropies from hidden states and the head's weight; the logits never exist as a whole.

In: hidden (..., D), weight (V, D), bias (V,), target (...). Out: logprobs, entropy, lse (...).

    x = h W^T + b      y = softcap * tanh(logit_scale * x / softcap)      then as from_logits.py

The matrix of logits is cut into tiles. Forward: GEMM of a tile into one reused buffer, the tile folded into its rows'
states. Backward: the same GEMM again, dlogits written over the tile, two GEMMs (one for a frozen weight) of it into the
gradients (head_passes.py).

Peak memory beyond inputs and outputs: `workspace_bytes` + O(N D), the latter a copy of low-precision hidden states on
CPU (float32, or packed for our own product, or both), the float32 accumulator of grad_hidden and, on CUDA where the
weight is trained, hidden states without the rows that take no part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from cer_ext import checks, ops, shards, vocab_parallel
from cer_ext.custom_op import (
    define_op,
    mark_unwanted,
    may_skip_dispatcher,
    refuse_double_backward,
    refuse_forward_mode,
    upstream,
    upstream_gradients,
)
from cer_ext.head_passes import Needed, fold_head, head_gradients, no_gradients
from cer_ext.hidden_targets import run_targets
from cer_ext.options import ShardedHeadOptions
from cer_ext.rows import Rows, alive_rows, check_target_values
from cer_ext.transform import Transform, inverse_temperature

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

# ------------------------------------------------------------------------------------------------------------ op bodies


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
    want_entropy: bool,
    want_lse: bool,
    workspace_bytes: int,
    validate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device, dtype, shape = hidden.device, ops.real_dtype(hidden.dtype), target.shape
    vocabulary = weight.shape[0]
    target = target.contiguous().view(-1)
    if validate:
        check_target_values(target, ignore_index, vocabulary)
    ignored = target == ignore_index
    inverse = inverse_temperature(temperature, ignored, validate)
    rows = Rows.select(~ignored if device.type == "cpu" else None, target, inverse)

    n = rows.target.numel()
    logprobs = torch.empty(n, dtype=dtype, device=device)
    entropy = torch.empty(n if want_entropy else 0, dtype=dtype, device=device)
    lse = torch.empty(n if want_lse else 0, dtype=dtype, device=device)
    stats = torch.empty((3, n), dtype=torch.float64, device=device)
    if n:
        flat_hidden = rows.take(hidden.reshape(-1, hidden.shape[-1]))  # (n, D)
        bias = None if bias is None else bias.to(dtype).contiguous()
        transform = Transform.of(scalars, rows.inverse, bias)
        states = fold_head(flat_hidden, weight, rows, transform, workspace_bytes=workspace_bytes)
        wanted = (entropy if want_entropy else None, lse if want_lse else None)
        ops.finish_rows(states, rows.target, transform, ignore_index, vocabulary, logprobs, *wanted, stats)
    total = target.numel()
    return (
        rows.spread(logprobs, total).view(shape),
        rows.spread(entropy, total).view(shape) if want_entropy else entropy,
        rows.spread(lse, total).view(shape) if want_lse else lse,
        rows.spread(stats, total),
    )


def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: Tensor | None,
    stats: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
    workspace_bytes: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = ops.real_dtype(hidden.dtype)
    target = target.contiguous().view(-1)
    needed = Needed(need_hidden, need_weight, need_bias)
    grads = ops.Upstream(*(upstream(grad, dtype, target.numel()) for grad in (grad_logprobs, grad_entropy, grad_lse)))
    alive = alive_rows(target, ignore_index, grads)
    on_cpu = hidden.device.type == "cpu"
    rows = Rows.select(alive if on_cpu else None, target, inverse_temperature(temperature, None, False))
    n = rows.target.numel()
    if n:
        gradients = head_gradients(
            rows.take(hidden.reshape(-1, hidden.shape[-1])),  # (n, D)
            weight,
            rows,
            rows.take(stats, dim=1),
            ops.Upstream(*(rows.take(grad) for grad in grads)),
            Transform.of(scalars, rows.inverse, None if bias is None else bias.to(dtype).contiguous()),
            ignore_index,
            needed,
            workspace_bytes=workspace_bytes,
            alive=None if on_cpu else alive,
        )
    else:
        gradients = no_gradients(n, weight, dtype, needed)
    grad_hidden = rows.spread_matrix(gradients.hidden.to(hidden.dtype), target.numel()) if need_hidden else None
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
    temperature: Any = None
    scalars: Any = None
    ignore_index: Any = None
    want_entropy: Any = None
    want_lse: Any = None
    workspace_bytes: Any = None
    validate: Any = None


def _fake_forward(*values):
    call = ForwardArguments(*values)
    dtype, shape = ops.real_dtype(call.hidden.dtype), call.target.shape
    return (
        call.hidden.new_empty(shape, dtype=dtype),
        call.hidden.new_empty(shape if call.want_entropy else (0,), dtype=dtype),
        call.hidden.new_empty(shape if call.want_lse else (0,), dtype=dtype),
        call.hidden.new_empty((3, call.target.numel()), dtype=torch.float64),
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
    _, entropy, lse, stats = output
    mark_unwanted(ctx, call.want_entropy, entropy, call.want_lse, lse, stats)
    ctx.save_for_backward(call.hidden, call.weight, call.bias, call.target, call.temperature, stats, call.scalars)
    ctx.ignore_index = call.ignore_index
    ctx.workspace_bytes = call.workspace_bytes


def _gradient(ctx, grad_logprobs, grad_entropy, grad_lse, _):
    grads = upstream_gradients(ctx, grad_logprobs, grad_entropy, grad_lse)
    needed = Needed(*ctx.needs_input_grad[:3])
    if grads is None or not any(needed):
        return ForwardArguments()
    *saved, scalars = ctx.saved_tensors
    gradients = BACKWARD(*saved, *grads, scalars, ctx.ignore_index, ctx.workspace_bytes, *needed)
    hidden, weight, bias = (grad if need else None for grad, need in zip(gradients, needed, strict=True))
    return ForwardArguments(hidden=hidden, weight=weight, bias=bias)


FORWARD = define_op(
    "hidden_forward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, Tensor scalars, "
    "SymInt ignore_index, bool want_entropy, bool want_lse, SymInt workspace_bytes, bool validate) "
    "-> (Tensor logprobs, Tensor entropy, Tensor lse, Tensor stats)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = define_op(
    "hidden_backward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, Tensor stats, "
    "Tensor? grad_logprobs, Tensor? grad_entropy, Tensor? grad_lse, Tensor scalars, SymInt ignore_index, "
    "SymInt workspace_bytes, bool need_hidden, bool need_weight, bool need_bias) "
    "-> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    _backward,
    _fake_backward,
    refuse_double_backward,
)


def checked_head(
    hidden: Any, weight: Any, target: Any, bias: Any, *, group: Any, validate: Any, **options: Any
) -> checks.Head:
    """The call's arguments, checked; where a group waits for this rank, it is told of an error."""
    group = checks.check_group(group)
    try:
        return checks.check_head(hidden, weight, target, bias, group=group, validate=validate, **options)
    except (TypeError, ValueError) as error:
        if group is not None:
            shards.withdraw(group, validate, error)
        raise


def run_head(head: checks.Head, want_entropy: bool, want_lse: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """logprobs, entropy (None where unwanted) and lse (empty where unwanted) of a checked call."""
    if head.group is not None:
        return vocab_parallel.run_shard(head, want_entropy, want_lse)
    plain = may_skip_dispatcher(head.hidden, head.weight, head.bias, head.target, head.temperature)
    logprobs, entropy, lse, _ = (_forward if plain else FORWARD)(
        head.hidden,
        head.weight,
        head.bias,
        head.target,
        head.temperature,
        head.scalars.pack(),
        head.ignore_index,
        want_entropy,
        want_lse,
        head.workspace_bytes,
        head.validate,
    )
    return logprobs, entropy if want_entropy else None, lse


# ------------------------------------------------------------------------------------------------------ public function


@overload
def linear_logprobs_and_entropy(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any = None,
    *,
    return_entropy: Literal[True] = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[ShardedHeadOptions],
) -> tuple[Tensor, Tensor]: ...


@overload
def linear_logprobs_and_entropy(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any = None,
    *,
    return_entropy: Literal[True] = ...,
    return_lse: Literal[True],
    **options: Unpack[ShardedHeadOptions],
) -> tuple[Tensor, Tensor, Tensor]: ...


@overload
def linear_logprobs_and_entropy(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any = None,
    *,
    return_entropy: Literal[False],
    return_lse: Literal[False] = ...,
    **options: Unpack[ShardedHeadOptions],
) -> tuple[Tensor, None]: ...


@overload
def linear_logprobs_and_entropy(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any = None,
    *,
    return_entropy: Literal[False],
    return_lse: Literal[True],
    **options: Unpack[ShardedHeadOptions],
) -> tuple[Tensor, None, Tensor]: ...


def linear_logprobs_and_entropy(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any = None,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = True,
    return_lse: bool = False,
    workspace_bytes: int | None = None,
    validate: bool | None = None,
    group: ProcessGroup | DeviceMesh | None = None,
    vocabulary: int | None = None,
    split_tokens: bool = False,
) -> tuple[Tensor | None, ...]:
    """Log-probability of each target token and entropy of each row of logits that a linear head would give.

        z = softcap * tanh(logit_scale * (h W^T + b) / softcap) / T        p = softmax(z)
        logprob = log p_target                                             H = -sum_j p_j log p_j

    The logits are made tile by tile in `workspace_bytes` of memory, forward and backward. Every output is
    differentiable with respect to `hidden`, `weight` and `bias`, once (double backward raises); what needs no gradient
    costs nothing: a frozen weight saves a third of the backward pass, rows without a gradient are (on CPU) left out.

    Args:
        hidden: (..., D), float32, bfloat16, float16 or float64, any strides.
        weight: (V, D), of the same dtype and device, any strides; V >= 1.
        target: (...), int64 (int32 is cast), token indices in [0, V), or `ignore_index`. Or (..., K), several targets
            a row, where no group is given: logprobs is then (..., K), the rest (...); details in
            `linear_target_statistics`.
        bias: None, or (V,) of the same dtype and device.
        temperature: T, a positive finite number, or a floating point tensor (...) with one per row.
        logit_scale: factor on the logits before the cap.
        softcap: None, or the positive bound that tanh holds the logits to (Gemma's final_logit_softcapping).
        ignore_index: rows with this target give 0 in every output and no gradient, whatever they hold.
        return_entropy: False gives None for the entropy.
        return_lse: True appends log sum_j exp(z_j).
        workspace_bytes: most memory for tiles, whatever N and V are; None: 32 MiB on CPU, 256 MiB on CUDA. Besides it a
            call takes O(N D). Results do not depend on it beyond the rounding of the GEMM.
        validate: whether to look at the values of `target` and a tensor `temperature` and raise for bad ones. None: on
            CPU yes, on CUDA no, where it would wait for the device; unvalidated bad rows are NaN.
        group: None, or the process group (or one-dimensional device mesh) over whose ranks the vocabulary is spread:
            `weight` is this rank's rows (V_r, D) of it, `bias` (V_r,), in rank order, V_r >= 0; or a DTensor, Shard(0).
            Every rank makes the same call and gets the same bits; grad_hidden is summed over the ranks, and each has
            the gradients of its own shard. The loss must be the same on every rank, too.
        vocabulary: None, or V, what the shards of the group must add up to. Stated, and with validate=False, shards as
            of torch.chunk are taken for granted; otherwise the ranks exchange a few integers first: CUDA waits.
        split_tokens: True: each rank of the group has tokens of its own, as many as every other. A rank's gradients of
            weight and bias are then those of the sum of all ranks' losses (FSDP, which takes the mean: divide).

    Padding is harmless: hidden states of rows without a gradient, NaN too, reach no gradient.

    Under autocast the operands are cast as torch.nn.functional.linear would; the outputs stay float32. float32 GEMMs on
    CUDA follow torch's own TF32 setting.

    Returns:
        (logprobs, entropy), or (logprobs, entropy, lse): tensors of target's shape (entropy and lse: of one target's)
        in nats, float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or value that does not fit; a `workspace_bytes` in which no tile fits.

    Source: arXiv 2510.02249 for the use; csrc/softmax_state.h for the recurrence.

    Examples:
        >>> import torch
        >>> from cer_ext import linear_logprobs_and_entropy
        >>> hidden, weight = torch.eye(2), torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, torch.tensor([0, 1]))
        >>> logprobs
        tensor([-1.0986, -0.2395])
        >>> entropy
        tensor([1.0986, 0.6656])
    """
    head = checked_head(
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
        group=group,
        vocabulary=vocabulary,
        split_tokens=split_tokens,
        several_targets=group is None,
    )
    refuse_forward_mode(hidden=head.hidden, weight=head.weight, bias=head.bias, temperature=head.temperature)
    want_entropy = checks.check_flag("return_entropy", return_entropy)
    want_lse = checks.check_flag("return_lse", return_lse)
    if head.target.dim() == head.hidden.dim():
        logprobs, _, _, entropy, lse, _ = run_targets(head)
        entropy = entropy if want_entropy else None
    else:
        logprobs, entropy, lse = run_head(head, want_entropy, want_lse)
    return (logprobs, entropy, lse) if want_lse else (logprobs, entropy)
