"""Log-probabilities and entropies from hidden states and the head's weight; the logits never exist as a whole.

In: hidden (..., D), weight (V, D), bias (V,), target (...). Out: logprobs, entropy, lse (...).

    x = h W^T + b      y = softcap * tanh(logit_scale * x / softcap)      then as from_logits.py

The matrix of logits is cut into tiles. Forward: GEMM of a tile into one reused buffer, the tile folded into its rows'
states. Backward: the same GEMM again, dlogits written over the tile, two GEMMs (one for a frozen weight) of it into the
gradients. The vocabulary is the outer loop and the rows the inner one, so that each part of the weight, the largest
operand, is read (on CPU in low precision, where torch multiplies it: converted) once per pass.

Peak memory beyond inputs and outputs: `workspace_bytes` + O(N D), the latter a copy of low-precision hidden states on
CPU (float32, or packed for our own product, or both) and the float32 accumulator of grad_hidden.

The alternative that lost: rows outside, vocabulary inside. It needs no (5, N) states between tiles, but reads the whole
weight once per row tile.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cer_ext import arguments, ops
from cer_ext.from_logits import (
    check_target_values,
    inverse_temperature,
    mark_unwanted,
    upstream,
    upstream_gradients,
)
from cer_ext.tiles import Matrices, Rows

# ------------------------------------------------------------------------------------------------------------ op bodies


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: Tensor | None,
    temperature_all: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float,
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
        states = ops.new_states(n, device)
        flat_hidden = rows.take(hidden.reshape(-1, hidden.shape[-1]))  # (n, D)
        matrices = Matrices(flat_hidden, weight, workspace_bytes, backward=False, weight_grad=False)
        bias = None if bias is None else bias.to(dtype).contiguous()
        transform = ops.Transform(logit_scale, softcap, 1.0 / temperature_all, rows.inverse, bias)
        for columns in matrices.tiling.column_tiles(vocabulary):
            for part in matrices.tiling.row_tiles(n):
                ops.fold_tile(
                    matrices.logits_tile(part, columns),
                    rows.target[part],
                    states[:, part],
                    transform.tile(part, columns),
                    first_column=columns.start,
                    fresh=columns.start == 0,
                )
        ops.finish_rows(
            states,
            rows.target,
            transform,
            ignore_index,
            vocabulary,
            logprobs,
            entropy if want_entropy else None,
            lse if want_lse else None,
            stats,
        )

    def spread(part: Tensor) -> Tensor:  # zeros in the rows that were left out
        if rows.index is None:
            return part
        return part.new_zeros((*part.shape[:-1], target.numel())).index_copy_(-1, rows.index, part)

    return (
        spread(logprobs).view(shape),
        spread(entropy).view(shape) if want_entropy else entropy,
        spread(lse).view(shape) if want_lse else lse,
        spread(stats),
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
    temperature_all: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float,
    workspace_bytes: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    device, dtype = hidden.device, ops.real_dtype(hidden.dtype)
    vocabulary, width = weight.shape
    target = target.contiguous().view(-1)
    grads = tuple(upstream(grad, dtype, target.numel()) for grad in (grad_logprobs, grad_entropy, grad_lse))
    alive = None
    if device.type == "cpu":  # a row whose upstream gradients are all zero adds nothing to any gradient
        alive = torch.zeros_like(target, dtype=torch.bool)
        for grad in grads:
            if grad is not None:
                alive |= grad != 0
        alive &= target != ignore_index
    rows = Rows.select(alive, target, inverse_temperature(temperature, None, False))
    grads = tuple(rows.take(grad) for grad in grads)
    n = rows.target.numel()

    # Outputs in the dtype of the inputs; what accumulates over tiles does so in float32 (float64).
    grad_weight = torch.empty((vocabulary if need_weight else 0, width), dtype=weight.dtype, device=device)
    grad_bias = torch.zeros(vocabulary if need_bias else 0, dtype=dtype, device=device)
    if not n:
        grad_hidden = torch.zeros(hidden.shape if need_hidden else (0,), dtype=hidden.dtype, device=device)
        return grad_hidden, grad_weight.zero_(), grad_bias.to(weight.dtype)
    grad_rows = torch.empty((n if need_hidden else 0, width), dtype=dtype, device=device)

    flat_hidden = rows.take(hidden.reshape(-1, width))  # (n, D)
    matrices = Matrices(flat_hidden, weight, workspace_bytes, backward=True, weight_grad=need_weight)
    stats = rows.take(stats, dim=1)
    bias = None if bias is None else bias.to(dtype).contiguous()
    transform = ops.Transform(logit_scale, softcap, 1.0 / temperature_all, rows.inverse, bias)
    for columns in matrices.tiling.column_tiles(vocabulary):
        for part in matrices.tiling.row_tiles(n):
            tile = matrices.logits_tile(part, columns)
            dlogits = matrices.dlogits_tile(tile)
            ops.grad_tile(
                tile,
                rows.target[part],
                stats[:, part],
                transform.tile(part, columns),
                ignore_index,
                tuple(None if grad is None else grad[part] for grad in grads),
                dlogits,
                first_column=columns.start,
            )
            if need_hidden:
                weight_tile = matrices.weight_tile(columns)
                matrices.multiply(dlogits, weight_tile, grad_rows[part], accumulate=columns.start > 0)
            if need_weight:
                out = matrices.grad_weight_tile(grad_weight, columns)
                matrices.multiply(dlogits.T, matrices.hidden[part], out, accumulate=part.start > 0)
            if need_bias:
                grad_bias[columns] += dlogits.sum(0, dtype=dtype)
        if need_weight and grad_weight.dtype != dtype:
            grad_weight[columns].copy_(matrices.grad_weight_tile(grad_weight, columns))

    if not need_hidden:
        grad_hidden = grad_rows.view(0).to(hidden.dtype)
    elif rows.index is None:
        grad_hidden = grad_rows.to(hidden.dtype).view(hidden.shape)
    else:
        grad_hidden = torch.zeros((target.numel(), width), dtype=hidden.dtype, device=device)
        grad_hidden = grad_hidden.index_copy_(0, rows.index, grad_rows.to(hidden.dtype)).view(hidden.shape)
    return grad_hidden, grad_weight, grad_bias.to(weight.dtype)


# ------------------------------------------------------------------------------------------------- shapes and gradients


def _fake_forward(hidden, weight, bias, target, *rest):
    want_entropy, want_lse = rest[5], rest[6]
    dtype, shape = ops.real_dtype(hidden.dtype), target.shape
    return (
        hidden.new_empty(shape, dtype=dtype),
        hidden.new_empty(shape if want_entropy else (0,), dtype=dtype),
        hidden.new_empty(shape if want_lse else (0,), dtype=dtype),
        hidden.new_empty((3, target.numel()), dtype=torch.float64),
    )


def _fake_backward(hidden, weight, *rest):
    need_hidden, need_weight, need_bias = rest[-3:]
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        weight.new_empty((weight.shape[0] if need_weight else 0, weight.shape[1])),
        weight.new_empty(weight.shape[0] if need_bias else 0),
    )


def _setup_context(ctx, inputs, output) -> None:
    hidden, weight, bias, target, temperature, *scalars = inputs
    temperature_all, ignore_index, logit_scale, softcap, want_entropy, want_lse, workspace_bytes, _ = scalars
    _, entropy, lse, stats = output
    ctx.set_materialize_grads(False)
    mark_unwanted(ctx, want_entropy, entropy, want_lse, lse, stats)
    ctx.save_for_backward(hidden, weight, bias, target, temperature, stats)
    ctx.scalars = (temperature_all, ignore_index, logit_scale, softcap, workspace_bytes)


def _gradient(ctx, grad_logprobs, grad_entropy, grad_lse, _):
    nothing = (None,) * 13
    grads = upstream_gradients(ctx, grad_logprobs, grad_entropy, grad_lse)
    needed = tuple(ctx.needs_input_grad[:3])
    if grads is None or not any(needed):
        return nothing
    gradients = BACKWARD(*ctx.saved_tensors, *grads, *ctx.scalars, *needed)
    return (*(grad if need else None for grad, need in zip(gradients, needed, strict=True)), *nothing[3:])


_SCALARS = "float temperature_all, int ignore_index, float logit_scale, float softcap"

FORWARD = ops.define_op(
    f"hidden_forward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, {_SCALARS}, "
    "bool want_entropy, bool want_lse, int workspace_bytes, bool validate) "
    "-> (Tensor logprobs, Tensor entropy, Tensor lse, Tensor stats)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = ops.define_op(
    "hidden_backward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, Tensor stats, "
    f"Tensor? grad_logprobs, Tensor? grad_entropy, Tensor? grad_lse, {_SCALARS}, int workspace_bytes, "
    "bool need_hidden, bool need_weight, bool need_bias) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    _backward,
    _fake_backward,
    ops.refuse_double_backward,
)


# ------------------------------------------------------------------------------------------------------ public function


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
) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor]:
    r"""Log-probability of each target token and entropy of each row of logits that a linear head would give.

    .. math::
        z = \mathrm{softcap} \cdot \tanh(\mathrm{logit\_scale} \cdot (h W^\top + b) / \mathrm{softcap}) / T, \quad
        p = \mathrm{softmax}(z), \quad
        \mathrm{logprob} = \log p_\mathrm{target}, \quad H = -\sum_j p_j \log p_j

    The logits are made tile by tile in `workspace_bytes` of memory, forward and backward. Every output is
    differentiable with respect to `hidden`, `weight` and `bias`, once (double backward raises); what needs no gradient
    costs nothing: a frozen weight saves a third of the backward pass, rows without a gradient are (on CPU) left out.

    Args:
        hidden: (..., D), float32, bfloat16, float16 or float64, any strides.
        weight: (V, D), of the same dtype and device, any strides; V >= 1.
        target: (...), int64 (int32 is cast), token indices in [0, V), or `ignore_index`.
        bias: None, or (V,) of the same dtype and device.
        temperature: T, a positive finite number, or a floating point tensor like `target` with one per row.
        logit_scale: factor on the logits before the cap.
        softcap: None, or the positive bound that tanh holds the logits to (Gemma's final_logit_softcapping).
        ignore_index: rows with this target give 0 in every output and no gradient, whatever they hold.
        return_entropy: False gives None for the entropy.
        return_lse: True appends log sum_j exp(z_j).
        workspace_bytes: most memory for tiles, whatever N and V are; None: 32 MiB on CPU, 256 MiB on CUDA. Besides it a
            call takes O(N D). Results do not depend on it beyond the rounding of the GEMM.
        validate: whether to look at the values of `target` and a tensor `temperature` and raise for bad ones. None: on
            CPU yes, on CUDA no, where it would wait for the device; unvalidated bad rows are NaN.

    Under autocast the operands are cast as torch.nn.functional.linear would; the outputs stay float32. float32 GEMMs on
    CUDA follow torch's own TF32 setting.

    Returns:
        (logprobs, entropy), or (logprobs, entropy, lse): tensors of target's shape in nats, float32 (float64 for
        float64 inputs).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or value that does not fit; a `workspace_bytes` in which no tile fits.

    Source: arXiv 2510.02249 for the use; csrc/softmax_state.h for the recurrence.

    Example:
        >>> import torch
        >>> from cer_ext import linear_logprobs_and_entropy
        >>> hidden, weight = torch.eye(2), torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, torch.tensor([0, 1]))
        >>> logprobs
        tensor([-1.0986, -0.2395])
        >>> entropy
        tensor([1.0986, 0.6656])
    """
    head = arguments.check_head(
        hidden, weight, target, bias, temperature, logit_scale, softcap, ignore_index, workspace_bytes, validate
    )
    values = (
        *head[:-2],
        arguments.check_flag("return_entropy", return_entropy),
        arguments.check_flag("return_lse", return_lse),
        *head[-2:],
    )
    run = _forward if ops.may_skip_dispatcher(*head[:5]) else FORWARD
    logprobs, entropy, lse, _ = run(*values)
    if not return_entropy:
        entropy = None
    return (logprobs, entropy, lse) if return_lse else (logprobs, entropy)
