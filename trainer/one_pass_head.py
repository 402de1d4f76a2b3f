"""Log-probabilities and entropies whose gradient is made with them, for a loss that comes later.

In: hidden (N, D), weight (V, D), target (N,), and a prediction: from log-probabilities and entropies of some rows, what
the gradient of the loss with respect to them will be. Out: logprobs (N,) and entropy (N,) with a graph, as
cer_ext.linear_logprobs_and_entropy gives them, for any loss.

A loss that comes after the head costs the logits twice, once for the values, once for the gradient. Who knows the
loss's gradient g for a row as soon as that row is folded needs them once (cer_ext.linear_token_loss):

    p = prediction(logprobs, entropy)              row by row, in the forward pass
    G = sum_n p_n dlogprob_n + ...                 the gradients of hidden and weight, in the same pass
    backward, the loss's true g:                   s G + (two passes over the rows with g_n != s p_n, for g_n - s p_n)

The head is linear in g, so the sum is right whatever was predicted: a wrong prediction costs time, never accuracy.
s is one number for all rows, what loss scaling or accumulation multiplied the loss by: the median of g_n / p_n.
Two GEMMs a row for a frozen head where g was predicted, three more where it was not, one where it is 0.

What the backward holds against the prediction is vectors (N,). On CUDA it waits once for the device, to learn whether
there are rows to be made up for.

The alternative that lost: the loss itself inside the head's forward, which then returns one number. Whatever came after
the head (metrics, a subclass's own terms) would have to be brought inside, and what cannot be said row by row would be
wrong without a word.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cer_ext import linear_logprobs_and_entropy, linear_token_loss

# Of the largest upstream gradient: the same arithmetic, multiplied by s in another order.
_ROUNDING = 16


class Prediction(Protocol):
    """What is known of a loss before it is there."""

    def __call__(self, logprobs: Tensor, entropy: Tensor, rows: slice) -> tuple[Tensor | None, Tensor | None]:
        """The gradients (n,) of the loss with respect to logprobs (n,) and entropy (n,) of `rows`; None for zeros."""
        ...

    def missed(self, rows: int, of: int) -> None:
        """Told in the backward: so many rows, of those with a gradient, had another one."""
        ...


def logprobs_and_entropy_in_one_pass(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, prediction: Prediction, **options: Any
) -> tuple[Tensor, Tensor]:
    """logprobs and entropy (N,) as of linear_logprobs_and_entropy, with the gradient made ahead by `prediction`.

    Args:
        hidden, weight, target, bias: (N, D), (V, D), (N,), (V,) or None.
        prediction: asked once per row, in order, in parts.
        options: temperature, logit_scale, softcap, ... of cer_ext.linear_token_loss.
    """
    if not torch.is_grad_enabled() or not any(x is not None and x.requires_grad for x in (hidden, weight, bias)):
        return linear_logprobs_and_entropy(hidden, weight, target, bias, **options)
    upstream: list[Tensor] = []  # (2, n) of consecutive rows

    def predicted_loss(logprobs: Tensor, entropy: Tensor | None, rows: slice) -> Tensor:
        assert entropy is not None
        found = prediction(logprobs.detach(), entropy.detach(), rows)
        p = torch.stack([torch.zeros_like(logprobs) if x is None else x.to(logprobs) for x in found])
        upstream.append(p)
        return (p[0] * logprobs + p[1] * entropy).sum()

    ahead = linear_token_loss(hidden, weight, target, predicted_loss, bias, **options)
    assert ahead.entropy is not None
    return _WithGradientAhead.apply(  # pyright: ignore[reportReturnType]
        ahead.loss,
        ahead.logprobs,
        ahead.entropy,
        torch.cat(upstream, dim=1),
        hidden,
        weight,
        bias,
        target,
        prediction,
        options,
    )


class _WithGradientAhead(torch.autograd.Function):
    """(logprobs, entropy) of a linear_token_loss, differentiable: `ahead_loss` carries the gradients made ahead."""

    @staticmethod
    def forward(ctx, ahead_loss, logprobs, entropy, predicted, hidden, weight, bias, target, prediction, options):
        ctx.save_for_backward(predicted, hidden, weight, bias, target)
        ctx.prediction, ctx.options = prediction, options
        ctx.set_materialize_grads(False)
        return logprobs.view_as(logprobs), entropy.view_as(entropy)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs, grad_entropy):  # pyright: ignore[reportIncompatibleMethodOverride]
        predicted, hidden, weight, bias, target = ctx.saved_tensors
        true = torch.stack([torch.zeros_like(predicted[0]) if g is None else g for g in (grad_logprobs, grad_entropy)])
        scale = _common_factor(true, predicted)
        rest = true - scale * predicted
        # `not <=`, so that NaN is made up for, and comes out as it would have.
        missed = ~(rest.abs() <= _ROUNDING * torch.finfo(rest.dtype).eps * true.abs().max()).all(dim=0)
        rows = missed.nonzero().view(-1)
        gradients: tuple[Tensor | None, ...] = (None, None, None)
        if rows.numel():
            operands = (hidden, weight, bias)
            needed = ctx.needs_input_grad[4:7]
            gradients = _two_passes(operands, needed, target, rows, rest[:, rows], ctx.options)
            ctx.prediction.missed(rows.numel(), int((true != 0).any(dim=0).sum()))
        return (scale, None, None, None, *gradients, None, None, None)


def _common_factor(true: Tensor, predicted: Tensor) -> Tensor:
    """s: the median of true / predicted where neither is 0; 0 where there is no such entry."""
    both = (true != 0) & (predicted != 0) & true.isfinite() & predicted.isfinite()
    ratios = torch.where(both, true / predicted, torch.nan).view(-1)
    if not ratios.numel():
        return ratios.new_zeros(())
    return ratios.nanmedian().nan_to_num(nan=0.0)


def _two_passes(
    operands: tuple[Tensor, Tensor, Tensor | None],
    needed: tuple[bool, ...],
    target: Tensor,
    rows: Tensor,  # (n,) indices
    upstream: Tensor,  # (2, n)
    options: dict[str, Any],
) -> tuple[Tensor | None, ...]:
    """What `upstream` of some rows adds to the gradients of hidden, weight and bias."""
    hidden = operands[0]
    with torch.enable_grad():
        parts = [None if x is None else x.detach().requires_grad_(n) for x, n in zip(operands, needed, strict=True)]
        parts[0] = hidden.detach()[rows].requires_grad_(needed[0])
        outputs = linear_logprobs_and_entropy(parts[0], parts[1], target[rows], parts[2], **options)
    wanted = [x for x in parts if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(outputs[:2], wanted, tuple(upstream)))
    gradients = [next(found) if x is not None and x.requires_grad else None for x in parts]
    if gradients[0] is not None:
        gradients[0] = torch.zeros_like(hidden).index_copy_(0, rows, gradients[0])
    return tuple(gradients)
