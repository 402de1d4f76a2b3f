"""Every operation of cer_ext in plain torch: the definition that the kernels are held to.

In: the same arguments as the public functions. Out: the same results, computed in float64 whatever the inputs are and
rounded once at the end; gradients by torch's own autograd. Slow and memory-hungry on purpose: nothing is tiled, nothing
is clever, each line can be compared with its equation.

    y = softcap * tanh(logit_scale * (h W^T + b) / softcap)      p = softmax(y / T)
    logprob = log p_target        H = -sum_j p_j log p_j        lse = log sum_j e^(y_j / T)
    TECA_t = (1/t) sum_{i<=t} H_i                               reward = 1 + weight e^(-TECA_last) if right, else 0

Source: Cumulative Entropy Regulation, arXiv 2510.02249.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from cer_ext.options import HeadOptions, LogitsOptions, SoftmaxOptions


def _output_dtype(*inputs: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in inputs) else torch.float32


def _check_target(target: Tensor, ignore_index: int, vocabulary: int, validate: bool | None) -> Tensor:
    """Which rows hold a target outside [0, vocabulary); raises instead where `validate` asks for it."""
    bad = ((target < 0) | (target >= vocabulary)) & (target != ignore_index)
    if (target.device.type == "cpu" if validate is None else validate) and bool(bad.any()):
        first = int(bad.flatten().nonzero()[0, 0])
        raise ValueError(
            f"target[{first}] is {target.flatten()[first].item()}: expected 0 <= target < {vocabulary} "
            f"or ignore_index={ignore_index}"
        )
    return bad


@overload
def logprobs_and_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    return_entropy: Literal[True] = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, Tensor]: ...


@overload
def logprobs_and_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    return_entropy: Literal[True] = ...,
    return_lse: Literal[True],
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, Tensor, Tensor]: ...


@overload
def logprobs_and_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    return_entropy: Literal[False],
    return_lse: Literal[False] = ...,
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, None]: ...


@overload
def logprobs_and_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    return_entropy: Literal[False],
    return_lse: Literal[True],
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, None, Tensor]: ...


def logprobs_and_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = True,
    return_lse: bool = False,
    inplace_backward: bool = False,
    validate: bool | None = None,
) -> tuple[Tensor | None, ...]:
    """As `cer_ext.logprobs_and_entropy`; ``inplace_backward`` changes nothing here."""
    del inplace_backward
    target = target.long()
    vocabulary = logits.shape[-1]
    bad = _check_target(target, ignore_index, vocabulary, validate)
    ignored = target == ignore_index

    # Filled before anything is computed: a NaN in an ignored row reaches neither the outputs nor the gradients.
    y = logits.double().masked_fill(ignored[..., None], 0.0) * logit_scale  # (..., V)
    if softcap is not None:
        y = softcap * torch.tanh(y / softcap)
    if isinstance(temperature, Tensor):
        temperature = temperature.double().masked_fill(ignored, 1.0)[..., None]  # (..., 1)
    z = y / temperature

    log_p = torch.log_softmax(z, dim=-1)  # (..., V)
    inside = target.masked_fill(ignored | bad, 0)
    logprobs = log_p.gather(-1, inside[..., None])[..., 0]
    # p log p -> 0 for p -> 0: the logarithm of a probability that is zero is left out, value and gradient.
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)
    lse = torch.logsumexp(z, dim=-1)
    lse = lse.masked_fill(lse == torch.inf, torch.nan)  # a +inf logit: no distribution, as for the other two

    poison = torch.where(bad, torch.nan, 1.0)  # never a plausible number for a target that does not exist
    dtype = _output_dtype(logits)
    logprobs, entropy, lse = ((x * poison).masked_fill(ignored, 0.0).to(dtype) for x in (logprobs, entropy, lse))
    outputs = (logprobs, entropy if return_entropy else None)
    return (*outputs, lse) if return_lse else outputs


@overload
def linear_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    return_entropy: Literal[True] = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[HeadOptions],
) -> tuple[Tensor, Tensor]: ...


@overload
def linear_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    return_entropy: Literal[True] = ...,
    return_lse: Literal[True],
    **options: Unpack[HeadOptions],
) -> tuple[Tensor, Tensor, Tensor]: ...


@overload
def linear_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    return_entropy: Literal[False],
    return_lse: Literal[False] = ...,
    **options: Unpack[HeadOptions],
) -> tuple[Tensor, None]: ...


@overload
def linear_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    return_entropy: Literal[False],
    return_lse: Literal[True],
    **options: Unpack[HeadOptions],
) -> tuple[Tensor, None, Tensor]: ...


def linear_logprobs_and_entropy(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = True,
    return_lse: bool = False,
    workspace_bytes: int | None = None,
    validate: bool | None = None,
) -> tuple[Tensor | None, ...]:
    """As `cer_ext.linear_logprobs_and_entropy`; all logits at once, ``workspace_bytes`` changes nothing here."""
    del workspace_bytes
    ignored = target.long() == ignore_index
    logits = hidden.double().masked_fill(ignored[..., None], 0.0) @ weight.double().T  # (..., V)
    if bias is not None:
        logits = logits + bias.double()
    outputs = logprobs_and_entropy(
        logits,
        target,
        temperature=temperature,
        ignore_index=ignore_index,
        logit_scale=logit_scale,
        softcap=softcap,
        return_entropy=return_entropy,
        return_lse=return_lse,
        validate=validate,
    )
    dtype = _output_dtype(hidden, weight)
    return tuple(None if x is None else x.to(dtype) for x in outputs)


def linear_target_statistics(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    workspace_bytes: int | None = None,
    validate: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `cer_ext.linear_target_statistics`: logprobs, logits, is_top1, entropy, lse."""
    del workspace_bytes
    several = target.long() if target.dim() == hidden.dim() else target.long()[..., None]  # (..., K)
    bad = _check_target(several, ignore_index, weight.shape[0], validate)
    nothing = several == ignore_index
    row_ignored = nothing.all(-1)
    logits = hidden.double().masked_fill(row_ignored[..., None], 0.0) @ weight.double().T  # (..., V)
    if bias is not None:
        logits = logits + bias.double()
    z = logits * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    if isinstance(temperature, Tensor):
        temperature = temperature.double().masked_fill(row_ignored, 1.0)[..., None]
    z = z / temperature
    log_p = torch.log_softmax(z, dim=-1)
    entropy = -(log_p.exp() * log_p.masked_fill(log_p == -torch.inf, 0.0)).sum(-1)
    lse = torch.logsumexp(z, dim=-1)
    inside = several.masked_fill(nothing | bad, 0)
    poison = torch.where(bad, torch.nan, 1.0)
    row_poison = torch.where(bad.any(-1), torch.nan, 1.0)
    dtype = _output_dtype(hidden, weight)
    logprobs, chosen = ((x.gather(-1, inside) * poison).masked_fill(nothing, 0.0).to(dtype) for x in (log_p, z))
    is_top1 = (z.gather(-1, inside) == z.amax(-1, keepdim=True)) & ~nothing & ~bad
    entropy, lse = ((x * row_poison).masked_fill(row_ignored, 0.0).to(dtype) for x in (entropy, lse))
    shape = target.shape
    return logprobs.view(shape), chosen.view(shape), is_top1.view(shape), entropy, lse


def _padded(entropy: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """TECA (..., L) and its last value (...), in float64, of responses padded to one length."""
    keep = torch.ones_like(entropy, dtype=torch.bool) if mask is None else mask.bool()
    kept = torch.where(keep, entropy.double(), 0.0)
    tokens = keep.cumsum(-1)
    average = torch.where(keep, kept.cumsum(-1) / tokens.clamp(min=1), 0.0)
    last = kept.sum(-1) / keep.sum(-1).clamp(min=1)  # no token: 0
    return average, last


def _teca(entropy: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    if cu_seqlens is None:
        average, last = _padded(entropy, mask)
    else:
        if mask is not None:
            raise ValueError("mask belongs to padded responses; packed ones (cu_seqlens) have none")
        starts = cu_seqlens.tolist()
        responses = [_padded(entropy[a:b], None) for a, b in pairwise(starts)]
        average = torch.cat([average for average, _ in responses]) if responses else entropy.double()
        last = torch.stack([last for _, last in responses]) if responses else entropy.double()
    dtype = _output_dtype(entropy)
    return average.to(dtype), last.to(dtype)


def linear_token_loss(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    loss_fn: Callable[[Tensor, Tensor | None, slice], Tensor],
    bias: Tensor | None = None,
    *,
    return_entropy: bool = True,
    workspace_bytes: int | None = None,
    **options: Unpack[SoftmaxOptions],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `cer_ext.linear_token_loss`: every logit at once, `loss_fn` once, gradients by autograd."""
    del workspace_bytes
    logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, target, bias, **options)
    entropy = entropy if return_entropy else None
    loss = loss_fn(logprobs.flatten(), None if entropy is None else entropy.flatten(), slice(0, target.numel()))
    return loss, logprobs.detach(), None if entropy is None else entropy.detach()


def teca(entropy: Tensor, mask: Tensor | None = None, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """As `cer_ext.teca`."""
    return _teca(entropy, mask, cu_seqlens)[0]


def teca_last(entropy: Tensor, mask: Tensor | None = None, *, cu_seqlens: Tensor | None = None) -> Tensor:
    """As `cer_ext.teca_last`."""
    return _teca(entropy, mask, cu_seqlens)[1]


def cer_reward(teca_or_last: Tensor, correct: Tensor, *, mask: Tensor | None = None, weight: float = 0.5) -> Tensor:
    """As `cer_ext.cer_reward`."""
    last = teca_or_last.double()
    if last.dim() > correct.dim():  # (B, L): the value at the last token that counts
        keep = torch.ones_like(last, dtype=torch.bool) if mask is None else mask.bool()
        positions = torch.arange(last.shape[-1], device=last.device)
        is_last = keep & (positions == (keep * positions).amax(-1, keepdim=True))
        last = torch.where(is_last, last, 0.0).sum(-1)
    reward = torch.where(correct.bool(), 1.0 + weight * torch.exp(-last), 0.0)
    return reward.to(_output_dtype(teca_or_last))
