"""A loss over tokens and its gradients from one pass over the head: the logits are made once.

In: hidden (..., D), weight (V, D), target (...), a function of (logprobs, entropy). Out: its loss, logprobs, entropy.

linear_logprobs_and_entropy makes the logits twice, forward and backward, because a loss comes between the two. Where
the loss is a sum over tokens, the gradients of a row are known as soon as its logits are folded
(one_pass.py).

Two GEMMs for a frozen weight where recomputation needs three, three for a trained one instead of four (but for many
rows of a trained bfloat16 head on a CPU: one_pass.py). The price: the
logits of some rows are held whole, and gradients are made in the forward pass, for the loss alone: `logprobs` and
`entropy` come back without a graph.

The same idea: Liger-Kernel's fused linear losses, which have no entropy and always make the weight's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from cer_ext import checks
from cer_ext.custom_op import refuse_double_backward, refuse_forward_mode
from cer_ext.from_hidden import checked_head, run_head
from cer_ext.head_passes import Needed
from cer_ext.one_pass import LossFunction, loss_of_rows, one_pass
from cer_ext.shards import gather

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


class TokenLoss(NamedTuple):
    """What `linear_token_loss` returns."""

    loss: Tensor  # (), with a graph
    logprobs: Tensor  # like target, without
    entropy: Tensor | None


def _times(grad: Tensor, factor: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """grad * factor in `dtype`, rounded once; in grad's own memory where it is not kept and the dtype is its own."""
    if dtype != grad.dtype or keep:
        return torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype))
    if factor.device.type == "cpu" and factor.item() == 1.0:
        return grad
    return grad.mul_(factor)


def _check_same_upstream(head: checks.Head, grad_loss: Tensor) -> None:
    """The weight's gradient holds every rank's tokens, so it can be multiplied by one number only."""
    assert head.group is not None
    if head.validate:
        found = gather(grad_loss.double(), head.group).tolist()
        if any(value != found[0] for value in found):
            raise ValueError(
                "linear_token_loss: with split_tokens expected the same gradient of the loss on every rank, got "
                f"{', '.join(map(str, found))} in rank order; put such factors into loss_fn"
            )


class _TokenLossFunction(torch.autograd.Function):
    """Carries the gradients that the forward pass made to the backward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, head, loss_fn, want_entropy):
        needed = Needed(*ctx.needs_input_grad[:3])
        loss, logprobs, entropy, ctx.gradients = one_pass(head, loss_fn, want_entropy, needed)
        ctx.like = [(None, None) if x is None else (x.shape, x.dtype) for x in (hidden, weight, bias)]
        ctx.shared_by = head if head.split_tokens and (needed.weight or needed.bias) else None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(x for x in (logprobs, entropy) if x is not None))
        return loss, logprobs, entropy

    @staticmethod
    def backward(ctx, grad_loss, *_):  # pyright: ignore[reportIncompatibleMethodOverride]
        if torch.is_grad_enabled():  # create_graph=True
            refuse_double_backward(ctx)
        if grad_loss is None:
            return (None,) * 6
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_token_loss: its gradients were given away by the first backward; a second one needs "
                "retain_graph=True in the first"
            )
        if ctx.shared_by is not None:
            _check_same_upstream(ctx.shared_by, grad_loss)
        # Private, the same in torch 2.11 to 2.14; test_token_loss.py holds it: True under retain_graph=True.
        keep = torch._C._autograd._get_current_graph_task_keep_graph()  # pyright: ignore[reportAttributeAccessIssue]
        results = [
            None if grad is None else _times(grad, grad_loss, dtype, keep).view(shape)
            for grad, (shape, dtype) in zip(ctx.gradients, ctx.like, strict=True)
        ]
        if not keep:
            ctx.gradients = None
        return (*results, None, None, None)


def linear_token_loss(
    hidden: Any,
    weight: Any,
    target: Any,
    loss_fn: LossFunction,
    bias: Any = None,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = True,
    workspace_bytes: int | None = None,
    validate: bool | None = None,
    group: ProcessGroup | DeviceMesh | None = None,
    vocabulary: int | None = None,
    split_tokens: bool = False,
) -> TokenLoss:
    """A loss that is a sum over tokens, of their log-probabilities and entropies, with gradients in one pass.

        loss = sum over groups of rows of loss_fn(logprobs[rows], entropy[rows], rows)

    logprobs and entropy as in `linear_logprobs_and_entropy`. The same gradients as that function followed by
    `loss_fn` on all rows and `backward()`, with one GEMM less: the logits of some rows are kept while `loss_fn` is
    asked for the gradients of those rows. Where nothing requires a gradient (or under `torch.no_grad`) nothing is kept
    and `loss_fn` is called once.

    Args:
        hidden: (..., D), float32, bfloat16, float16 or float64, any strides.
        weight: (V, D), of the same dtype and device, any strides; V >= 1. Where it requires no gradient, none is made.
        target: (...), int64 (int32 is cast), token indices in [0, V), or `ignore_index`.
        loss_fn: `loss_fn(logprobs, entropy, rows) -> scalar`: the sum of the losses of some rows. `rows` is a slice of
            the flattened target, so that `advantages.view(-1)[rows]` belongs to `logprobs` (n,) and `entropy` (n,),
            which is None without `return_entropy`. Rows of `ignore_index` are there with zeros in both and get no
            gradient. It must be additive: a mean over all tokens is a sum divided by a count known beforehand. Tensors
            that require grad can't be used in it.
        bias: None, or (V,) of the same dtype and device.
        temperature: T, a positive finite number, or a floating point tensor like `target` with one per row.
        logit_scale: factor on the logits before the cap.
        softcap: None, or the positive bound that tanh holds the logits to (Gemma's final_logit_softcapping).
        ignore_index: rows with this target give 0 in every output and no gradient, whatever they hold.
        return_entropy: False spares the entropy.
        workspace_bytes: most memory for logits, whatever N is; at least one row of V must fit. None: 256 MiB on CPU,
            320 MiB on CUDA (640 MiB for a trained weight). More means more rows at a time and so fewer passes over the
            weight.
        validate: as in `linear_logprobs_and_entropy`.
        group: as in `linear_logprobs_and_entropy`.
        vocabulary: as there.
        split_tokens: as there. A rank's `loss_fn` is then asked about its own tokens, and `backward` needs the same
            gradient of the loss on every rank.

    Besides the workspace a call holds the wanted gradients in float32 (float64) until `backward`, which multiplies them
    by the upstream gradient, rounds them to the dtype of the inputs, once, and gives them away. The exception is a
    trained bfloat16 weight on a CPU that multiplies bfloat16: its gradient is held in bfloat16, so that an upstream
    gradient that is no power of two rounds it once more; and dlogits of up to 2 D rows take, for as long as the call
    runs, the place of the float32 sums. Of more rows the logits are made twice, and `loss_fn` is called once.

    Under autocast the operands are cast as torch.nn.functional.linear would. Under torch.compile the call is a graph
    break: it runs eagerly.

    Returns:
        TokenLoss(loss, logprobs, entropy): loss () with a graph to hidden, weight and bias; logprobs and entropy like
        target, in nats, float32 (float64 for float64 inputs), without a graph.

    Raises:
        TypeError: an argument of the wrong type or dtype; a `loss_fn` that returns no floating point scalar.
        ValueError: a shape, device or value that does not fit; a `workspace_bytes` in which no row fits; a `loss_fn`
            that uses another tensor that requires grad.
        RuntimeError: a backward with create_graph=True; a second backward where the first did not retain the graph.

    Source: csrc/softmax_state.h for the recurrence; gradients made in the forward pass as in Liger-Kernel.

    Examples:
        >>> import torch
        >>> from cer_ext import linear_token_loss
        >>> hidden = torch.eye(2, requires_grad=True)
        >>> weight = torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> advantages = torch.tensor([1.0, -1.0])
        >>> result = linear_token_loss(hidden, weight, torch.tensor([0, 1]),
        ...                            lambda logprobs, entropy, rows: -(advantages[rows] * logprobs).sum())
        >>> result.loss
        tensor(0.8591, grad_fn=<_TokenLossFunctionBackward>)
        >>> result.loss.backward()
        >>> hidden.grad
        tensor([[0.0000, 0.6667],
                [0.0000, 0.4260]])
    """
    if not callable(loss_fn):
        raise TypeError(f"loss_fn: expected a function of (logprobs, entropy, rows), got {type(loss_fn).__name__}")
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
    )
    refuse_forward_mode(hidden=head.hidden, weight=head.weight, bias=head.bias, temperature=head.temperature)
    want_entropy = checks.check_flag("return_entropy", return_entropy)
    if torch.compiler.is_compiling():
        run_eagerly = cast(Callable[..., TokenLoss], torch.compiler.disable(_run))
        return run_eagerly(head, loss_fn, want_entropy)
    return _run(head, loss_fn, want_entropy)


def _run(head: checks.Head, loss_fn: LossFunction, want_entropy: bool) -> TokenLoss:
    operands = (head.hidden, head.weight, head.bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands):
        loss, logprobs, entropy = _TokenLossFunction.apply(*operands, head, loss_fn, want_entropy)
        shape = head.target.shape
        return TokenLoss(loss, logprobs.view(shape), entropy.view(shape) if want_entropy else None)
    logprobs, entropy, _ = run_head(head, want_entropy, want_lse=False)
    rows = slice(0, logprobs.numel())
    flat_entropy = None if entropy is None else entropy.view(-1)
    loss, _ = loss_of_rows(loss_fn, logprobs.view(-1), flat_entropy, rows, False)
    return TokenLoss(loss, logprobs, entropy)
