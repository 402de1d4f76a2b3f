"""A head in an FSDP2 group of its own, multiplied where its rows lie: hidden states travel in place of the weight.

In: hidden (N, D) and target (N,) of this process, the head's weight (V, D) as FSDP2 has cut it over R processes. Out:
logprobs and entropy (N,), or None where gathering the weight sends less, or it is not cut that way.

    gathered weight      (R - 1)/R V D a pass, as much again for its gradient, and the whole weight in memory
    gathered tokens      (R - 1) N D forward and again backward, as much for grad_hidden, and 40 bytes of states a token

so tokens are gathered where N < V / R, with N the largest of any process: the others add rows that are ignored. The
arithmetic is the same, cut along the vocabulary in place of the tokens. Every process makes the same choice.

Source: cer_ext/vocab_parallel.py, split_tokens. As of every parameter of FSDP, the gradient is the mean over processes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from cer_ext import linear_logprobs_and_entropy


def tokens_are_fewer(tokens: int, ranks: int, vocabulary: int) -> bool:
    """Whether so many tokens on each of the ranks are sent with fewer bytes than the weight."""
    return tokens * ranks < vocabulary


def score_over_ranks(
    head: nn.Module, hidden: Tensor, target: Tensor, *, return_entropy: bool, **transform: Any
) -> tuple[Tensor, Tensor | None] | None:
    """See this file's header.

    Args:
        head: a linear map without adapters.
        hidden, target: (N, D) in the dtype of the product, (N,); N may differ between processes.
        transform: temperature, logit_scale, softcap of cer_ext.linear_logprobs_and_entropy.
    """
    weight, bias = head.weight, getattr(head, "bias", None)
    if not isinstance(weight, DTensor) or not _is_cut_by_rows(weight) or weight.device.type != hidden.device.type:
        return None
    group, ranks = weight.device_mesh.get_group(), weight.device_mesh.size()
    longest = torch.tensor(hidden.shape[0], device=hidden.device)
    dist.all_reduce(longest, op=dist.ReduceOp.MAX, group=group)
    rows = max(1, int(longest))
    if not tokens_are_fewer(rows, ranks, weight.shape[0]):
        return None
    own = hidden.shape[0]
    padded = nn.functional.pad(hidden, (0, 0, 0, rows - own))  # (rows, D)
    log_probs, entropy = linear_logprobs_and_entropy(
        padded,
        _MeanGradient.apply(weight, ranks).to(hidden.dtype),
        nn.functional.pad(target, (0, rows - own), value=-100),
        None if bias is None else _MeanGradient.apply(bias, ranks).to(hidden.dtype),
        return_entropy=return_entropy,
        group=group,
        vocabulary=weight.shape[0],
        split_tokens=True,
        **transform,
    )
    return log_probs[:own], None if entropy is None else entropy[:own]


def _is_cut_by_rows(weight: DTensor) -> bool:
    return weight.device_mesh.ndim == 1 and weight.device_mesh.size() > 1 and weight.placements == (Shard(0),)


class _MeanGradient(torch.autograd.Function):
    """A parameter as it is; its gradient is the sum over processes, of which FSDP's parameters have the mean."""

    @staticmethod
    def forward(ctx, parameter: DTensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return parameter.view_as(parameter)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad / ctx.ranks, None
