"""Log-probabilities and entropies of a head whose vocabulary is spread over the ranks of a group.

In: hidden (N, D), this rank's rows (V_r, D) of the weight, target (N,), the group. Out: logprobs, entropy, lse (N,),
over the whole vocabulary.

    forward:   states (5, N) of this shard -> all_gather, merge -> outputs         40 bytes a token and rank
    backward:  dlogits of this shard's columns -> grad_weight of the shard, and
               dlogits W_r -> all_reduce -> grad_hidden                            2 (R - 1) / R * D numbers a token

Neither the weight nor its gradient is ever sent. With split_tokens each rank comes with its own N tokens: their hidden
states and targets are gathered (in the backward pass again, and the upstream gradients), every rank works on all R N of
them, and grad_hidden is reduced to each rank's own. That is cheaper than gathering the weight where N < V / R.

Collectives run inside the op: to torch.compile it is one node. They are the same on every rank, in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from cer_ext import checks, ops
from cer_ext.custom_op import define_op, mark_unwanted, refuse_double_backward, upstream, upstream_gradients
from cer_ext.head_passes import Needed, fold_head, head_gradients, no_gradients
from cer_ext.rows import Rows, alive_rows, check_target_values
from cer_ext.shards import Description, Shards, agree, checksum, even_shards, gather, process_group
from cer_ext.transform import Scalars, Transform, inverse_temperature


def layout(head: checks.Head, want_entropy: bool, want_lse: bool) -> Shards:
    """Who holds which rows: agreed upon by an exchange, or as the caller stated it."""
    assert head.group is not None
    rows = head.weight.shape[0]
    if head.vocabulary and not head.validate:
        shards = even_shards(head.group, head.vocabulary)
        expected = shards.sizes[shards.rank]
        if expected != rows:
            raise ValueError(
                f"weight: expected {expected} rows on rank {shards.rank}, as torch.chunk and DTensor cut "
                f"{head.vocabulary}, got {rows}; other cuts need validate=True, or vocabulary=None"
            )
        return shards
    mine = Description(
        shard=rows,
        tokens=head.target.numel(),
        width=head.hidden.shape[-1],
        dtype=ops.SCALAR_TYPE[head.hidden.dtype],
        temperature=head.scalars.temperature,
        logit_scale=head.scalars.logit_scale,
        softcap=head.scalars.softcap,
        ignore_index=head.ignore_index,
        return_entropy=want_entropy,
        return_lse=want_lse,
        split_tokens=head.split_tokens,
        vocabulary=head.vocabulary,
        targets=checksum(head.target) if head.validate and not head.split_tokens else 0,
    )
    return agree(head.group, head.hidden.device, mine)


class Tokens(NamedTuple):
    """The tokens that every rank works on."""

    hidden: Tensor  # (N, D)
    target: Tensor  # (N,)
    temperature: Tensor | None  # (N,)

    @classmethod
    def of(cls, hidden: Tensor, target: Tensor, temperature: Tensor | None, spread_over: Shards | None) -> Tokens:
        """The caller's, or where tokens are spread over ranks those of all of them, in rank order."""
        hidden, target = hidden.reshape(-1, hidden.shape[-1]), target.contiguous().view(-1)
        temperature = None if temperature is None else temperature.reshape(-1)
        if spread_over is None:
            return cls(hidden, target, temperature)
        group = spread_over.group
        return cls(
            gather(hidden, group).flatten(0, 1),
            gather(target, group).flatten(),
            None if temperature is None else gather(temperature, group).flatten(),
        )


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
    group_name: str,
    vocabulary: int,
    split_tokens: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    head = checks.Head(
        hidden=hidden,
        weight=weight,
        bias=bias,
        target=target,
        temperature=temperature,
        scalars=Scalars.unpack(scalars),
        ignore_index=ignore_index,
        workspace_bytes=workspace_bytes,
        validate=validate,
        group=process_group(group_name),
        vocabulary=vocabulary,
        split_tokens=split_tokens,
    )
    shards = layout(head, want_entropy, want_lse)
    tokens = Tokens.of(hidden, target, temperature, shards if split_tokens else None)
    device, dtype, total = hidden.device, ops.real_dtype(hidden.dtype), tokens.target.numel()
    if validate:
        check_target_values(tokens.target, ignore_index, shards.vocabulary)
    ignored = tokens.target == ignore_index
    inverse = inverse_temperature(tokens.temperature, ignored, validate)
    rows = Rows.select(~ignored if device.type == "cpu" else None, tokens.target, inverse)

    n = rows.target.numel()
    logprobs = torch.empty(n, dtype=dtype, device=device)
    entropy = torch.empty(n if want_entropy else 0, dtype=dtype, device=device)
    lse = torch.empty(n if want_lse else 0, dtype=dtype, device=device)
    stats = torch.empty((3, n), dtype=torch.float64, device=device)
    if n:
        transform = Transform.of(scalars, rows.inverse, None if bias is None else bias.to(dtype).contiguous())
        states = fold_head(
            rows.take(tokens.hidden),
            weight,
            rows,
            transform,
            workspace_bytes=workspace_bytes,
            first_column=shards.first,
            largest_shard=shards.largest,
        )
        states = shards.merge(states, transform)
        wanted = (entropy if want_entropy else None, lse if want_lse else None)
        ops.finish_rows(states, rows.target, transform, ignore_index, shards.vocabulary, logprobs, *wanted, stats)

    def own(part: Tensor) -> Tensor:
        part = rows.spread(part, total)
        if split_tokens:
            part = part.view(shards.ranks, -1)[shards.rank].clone()
        return part.view(target.shape)

    return (
        own(logprobs),
        own(entropy) if want_entropy else entropy,
        own(lse) if want_lse else lse,
        rows.spread(stats, total),
        torch.tensor(shards.sizes, dtype=torch.int64),
    )


def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: Tensor | None,
    stats: Tensor,
    sizes: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
    workspace_bytes: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
    group_name: str,
    split_tokens: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    group = process_group(group_name)
    shards = Shards(group, dist.get_rank(group), tuple(sizes.tolist()))
    tokens = Tokens.of(hidden, target, temperature, shards if split_tokens else None)
    dtype, total = ops.real_dtype(hidden.dtype), tokens.target.numel()
    needed = Needed(need_hidden, need_weight, need_bias)
    grads = ops.Upstream(*(upstream(grad, dtype, target.numel()) for grad in (grad_logprobs, grad_entropy, grad_lse)))
    if split_tokens:
        grads = gather_upstream(grads, hidden.new_zeros(target.numel(), dtype=dtype), group)
    alive = alive_rows(tokens.target, ignore_index, grads)
    on_cpu = hidden.device.type == "cpu"
    rows = Rows.select(alive if on_cpu else None, tokens.target, inverse_temperature(tokens.temperature, None, False))
    if rows.target.numel():
        gradients = head_gradients(
            rows.take(tokens.hidden),
            weight,
            rows,
            rows.take(stats, dim=1),
            ops.Upstream(*(rows.take(grad) for grad in grads)),
            Transform.of(scalars, rows.inverse, None if bias is None else bias.to(dtype).contiguous()),
            ignore_index,
            needed,
            workspace_bytes=workspace_bytes,
            alive=None if on_cpu else alive,
            first_column=shards.first,
            largest_shard=shards.largest,
        )
    else:
        gradients = no_gradients(0, weight, dtype, needed)
    grad_hidden = hidden.new_empty(0)
    if need_hidden and split_tokens:
        grad_hidden = shards.sum_own_rows(rows.spread_matrix(gradients.hidden, total)).to(hidden.dtype)
    elif need_hidden:
        grad_hidden = rows.spread_matrix(shards.sum_gradient(gradients.hidden).to(hidden.dtype), total)
    return (
        grad_hidden.view(hidden.shape) if need_hidden else grad_hidden,
        gradients.weight,
        gradients.bias.to(weight.dtype),
    )


def gather_upstream(grads: ops.Upstream, like: Tensor, group: ProcessGroup) -> ops.Upstream:
    """Upstream gradients (N,) of this rank's tokens -> (ranks * N,) of all ranks'; zeros like `like` for none."""
    everyone = gather(torch.stack([torch.zeros_like(like) if grad is None else grad for grad in grads]), group)
    return ops.Upstream(*(part.flatten() for part in everyone.unbind(1)))  # from (ranks, 3, N)


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
    group_name: Any = None
    vocabulary: Any = None
    split_tokens: Any = None


def _fake_forward(*values):
    call = ForwardArguments(*values)
    dtype, shape = ops.real_dtype(call.hidden.dtype), call.target.shape
    ranks = dist.get_world_size(process_group(call.group_name))
    return (
        call.hidden.new_empty(shape, dtype=dtype),
        call.hidden.new_empty(shape if call.want_entropy else (0,), dtype=dtype),
        call.hidden.new_empty(shape if call.want_lse else (0,), dtype=dtype),
        call.hidden.new_empty((3, call.target.numel() * (ranks if call.split_tokens else 1)), dtype=torch.float64),
        torch.empty(ranks, dtype=torch.int64, device="cpu"),
    )


def _fake_backward(hidden, weight, *rest):
    *_, need_hidden, need_weight, need_bias, _, _ = rest
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        weight.new_empty((weight.shape[0] if need_weight else 0, weight.shape[1])),
        weight.new_empty(weight.shape[0] if need_bias else 0),
    )


def _setup_context(ctx, inputs, output) -> None:
    call = ForwardArguments(*inputs)
    _, entropy, lse, stats, sizes = output
    mark_unwanted(ctx, call.want_entropy, entropy, call.want_lse, lse, stats, sizes)
    ctx.save_for_backward(
        call.hidden, call.weight, call.bias, call.target, call.temperature, stats, sizes, call.scalars
    )
    ctx.ignore_index = call.ignore_index
    ctx.workspace_bytes = call.workspace_bytes
    ctx.group_name = call.group_name
    ctx.split_tokens = call.split_tokens


def _gradient(ctx, grad_logprobs, grad_entropy, grad_lse, *_):
    grads = upstream_gradients(ctx, grad_logprobs, grad_entropy, grad_lse)
    needed = Needed(*ctx.needs_input_grad[:3])
    if not any(needed) or (grads is None and not ctx.split_tokens):
        return ForwardArguments()
    *saved, scalars = ctx.saved_tensors
    gradients = BACKWARD(
        *saved,
        *(grads or (None, None, None)),  # other ranks' tokens may have some
        scalars,
        ctx.ignore_index,
        ctx.workspace_bytes,
        *needed,
        ctx.group_name,
        ctx.split_tokens,
    )
    hidden, weight, bias = (grad if need else None for grad, need in zip(gradients, needed, strict=True))
    return ForwardArguments(hidden=hidden, weight=weight, bias=bias)


FORWARD = define_op(
    "shard_forward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, Tensor scalars, "
    "SymInt ignore_index, bool want_entropy, bool want_lse, SymInt workspace_bytes, bool validate, str group_name, "
    "SymInt vocabulary, bool split_tokens) "
    "-> (Tensor logprobs, Tensor entropy, Tensor lse, Tensor stats, Tensor sizes)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = define_op(
    "shard_backward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, Tensor stats, "
    "Tensor sizes, Tensor? grad_logprobs, Tensor? grad_entropy, Tensor? grad_lse, Tensor scalars, SymInt ignore_index, "
    "SymInt workspace_bytes, bool need_hidden, bool need_weight, bool need_bias, str group_name, bool split_tokens) "
    "-> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    _backward,
    _fake_backward,
    refuse_double_backward,
)


def run_shard(head: checks.Head, want_entropy: bool, want_lse: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """logprobs, entropy (None where unwanted) and lse (empty where unwanted) of a checked call with a group."""
    assert head.group is not None
    logprobs, entropy, lse, _, _ = FORWARD(
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
        head.group.group_name,
        head.vocabulary,
        head.split_tokens,
    )
    return logprobs, entropy if want_entropy else None, lse
