"""A loss over tokens and its gradients from one pass over the head: the logits are made once.

In: hidden (..., D), weight (V, D), target (...), a function of (logprobs, entropy). Out: its loss, logprobs, entropy.

linear_logprobs_and_entropy makes the logits twice, forward and backward, because a loss comes between the two. Where
the loss is a sum over tokens, no row has to wait for the rest of the batch: once it is folded, its gradients are known.

    for some rows:   logits tiles (n, V)      GEMM, folded one by one, kept
                     logprobs, entropy (n,)   from the states
                     dL/dlogprobs, dL/dH (n,) autograd on loss_fn: vectors, no logits
                     dlogits                  over the kept tiles
                     grad_hidden, grad_weight GEMM

Two GEMMs for a frozen weight where recomputation needs three, three for a trained one instead of four. The price: the
logits of some rows are held whole, and gradients are made in the forward pass, for the loss alone: `logprobs` and
`entropy` come back without a graph.

The same idea: Liger-Kernel's fused linear losses, which have no entropy and always make the weight's gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from cer_ext import arguments, ops
from cer_ext.custom_op import refuse_double_backward, refuse_forward_mode
from cer_ext.from_hidden import run_head
from cer_ext.head_passes import Needed
from cer_ext.rows import Rows, alive_rows, check_target_values
from cer_ext.tiles import Matrices
from cer_ext.transform import Transform, inverse_temperature

LossFunction = Callable[[Tensor, Tensor | None, slice], Tensor]


class TokenLoss(NamedTuple):
    """What `linear_token_loss` returns."""

    loss: Tensor  # (), with a graph
    logprobs: Tensor  # like target, without
    entropy: Tensor | None


class _Gradients:
    """Gradients of one pass, accumulated in float32 (float64), None where none is needed."""

    def __init__(self, head: arguments.Head, needed: Needed, rows: int) -> None:
        vocabulary, width = head.weight.shape
        dtype, device = ops.real_dtype(head.hidden.dtype), head.hidden.device
        self.hidden = torch.zeros((rows, width), dtype=dtype, device=device) if needed.hidden else None
        self.weight = torch.empty((vocabulary, width), dtype=dtype, device=device) if needed.weight else None
        self.bias = torch.zeros(vocabulary, dtype=dtype, device=device) if needed.bias else None
        self._fresh = True  # whether weight is still to be written: its first tiles overwrite, nothing is zeroed first

    def add_tile(
        self, matrices: Matrices, dlogits: Tensor, part: slice, chosen: Rows, factor: Tensor | None, columns: slice
    ) -> None:
        """What one tile adds: dlogits (n, cols) of the chosen rows of `part`, whose hidden states are `factor`."""
        if self.hidden is not None:
            rows = self.hidden[part]
            weight_tile = matrices.weight_tile(columns)
            if chosen.indices is None:
                matrices.multiply(dlogits, weight_tile, rows, accumulate=True)
            else:
                product = rows.new_empty((dlogits.shape[0], rows.shape[1]))
                rows.index_add_(0, chosen.indices, matrices.multiply(dlogits, weight_tile, product, accumulate=False))
        if self.weight is not None and factor is not None:
            matrices.multiply(dlogits.T, factor, self.weight[columns], accumulate=not self._fresh)
        if self.bias is not None:
            self.bias[columns] += dlogits.sum(0, dtype=self.bias.dtype)

    def end_rows(self) -> None:
        """Every column tile of some rows has been added."""
        self._fresh = False

    def spread(self, rows: Rows, total: int) -> tuple[Tensor | None, ...]:
        """(hidden, weight, bias), with zeros in those of the `total` rows of hidden that took no part."""
        if self._fresh and self.weight is not None:
            self.weight.zero_()
        hidden = None if self.hidden is None else rows.spread_matrix(self.hidden, total)
        return hidden, self.weight, self.bias


def _loss_of_rows(
    loss_fn: LossFunction, logprobs: Tensor, entropy: Tensor | None, rows: slice, wants_gradient: bool = True
) -> tuple[Tensor, ops.Upstream]:
    """The loss of some rows and what autograd makes of it: gradients of logprobs and entropy."""
    with torch.set_grad_enabled(wants_gradient):
        inputs = [x.detach().requires_grad_(wants_gradient) for x in (logprobs, entropy) if x is not None]
        loss = loss_fn(inputs[0], inputs[1] if entropy is not None else None, rows)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.is_floating_point():
            found = f"shape {tuple(loss.shape)} of {loss.dtype}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TypeError(f"loss_fn: expected a floating point scalar (the sum over its rows), got {found}")
        if not loss.requires_grad:  # a loss that does not depend on them, or nobody asked
            return loss.detach(), ops.Upstream(None, None)
        _refuse_other_leaves(loss, inputs)
        grads = torch.autograd.grad(loss, inputs, allow_unused=True)
    return loss.detach(), ops.Upstream(grads[0], grads[1] if entropy is not None else None)


def _refuse_other_leaves(loss: Tensor, inputs: list[Tensor]) -> None:
    """Raise where the loss depends on another tensor that requires grad: its gradient would be lost without a word."""
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
    vocabulary: int

    def fold(self, part: slice, want_entropy: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """logprobs, entropy, stats of some rows, whose logits are kept."""
        target = self.rows.target[part]
        n, device, dtype = target.numel(), target.device, self.matrices.real
        states = ops.new_states(n, device)
        for columns in self.matrices.tiling.column_tiles(self.vocabulary):
            tile = self.matrices.logits_tile(part, columns)
            transform = self.transform.tile(part, columns)
            first = columns.start
            ops.fold_tile(tile, target, states, transform, first_column=first, fresh=first == 0)
        logprobs = torch.empty(n, dtype=dtype, device=device)
        entropy = torch.empty(n, dtype=dtype, device=device) if want_entropy else None
        stats = torch.empty((3, n), dtype=torch.float64, device=device)
        transform = self.transform.tile(part, slice(0, self.vocabulary))
        ops.finish_rows(states, target, transform, self.ignore_index, self.vocabulary, logprobs, entropy, None, stats)
        return logprobs, entropy, stats

    def add_gradients(self, part: slice, stats: Tensor, grads: ops.Upstream, gradients: _Gradients) -> None:
        """From the kept logits of some rows and their upstream gradients (n,) to the sums in `gradients`."""
        target, inverse = self.rows.target[part], self.transform.tile(part, slice(0, 0)).inverse_temperature
        alive = alive_rows(target, self.ignore_index, grads)
        on_cpu = target.device.type == "cpu"
        if on_cpu and not alive.any():
            return
        chosen = Rows.select(alive if on_cpu else None, target, inverse)
        stats = chosen.take(stats, dim=1)
        upstream = ops.Upstream(*(chosen.take(grad) for grad in grads))
        factor = None
        if gradients.weight is not None:
            factor = chosen.take(self.matrices.hidden[part])
            if not on_cpu:  # zero times NaN would be NaN
                factor = factor.masked_fill(~alive[:, None], 0.0)
        transform = self.transform._replace(inverse_temperature=chosen.inverse)
        everything = slice(0, chosen.target.numel())
        for columns in self.matrices.tiling.column_tiles(self.vocabulary):
            tile = chosen.take(self.matrices.kept_tile(target.numel(), columns))
            dlogits = self.matrices.dlogits_tile(tile)
            ops.grad_tile(
                tile,
                chosen.target,
                stats,
                transform.tile(everything, columns),
                self.ignore_index,
                upstream,
                dlogits,
                first_column=columns.start,
            )
            gradients.add_tile(self.matrices, dlogits, part, chosen, factor, columns)
        gradients.end_rows()


def _one_pass(
    head: arguments.Head, loss_fn: LossFunction, want_entropy: bool, needed: Needed
) -> tuple[Tensor, Tensor, Tensor | None, tuple[Tensor | None, ...]]:
    device, dtype = head.hidden.device, ops.real_dtype(head.hidden.dtype)
    vocabulary, width = head.weight.shape
    target = head.target.contiguous().view(-1)
    total = target.numel()
    if head.validate:
        check_target_values(target, head.ignore_index, vocabulary)
    ignored = target == head.ignore_index
    inverse = inverse_temperature(head.temperature, ignored, head.validate)
    rows = Rows.select(~ignored if device.type == "cpu" else None, target, inverse)
    n = rows.target.numel()

    logprobs = torch.zeros(total, dtype=dtype, device=device)
    entropy = torch.zeros(total, dtype=dtype, device=device) if want_entropy else None
    gradients = _Gradients(head, needed, n)
    if not n:
        loss, _ = _loss_of_rows(loss_fn, logprobs, entropy, slice(0, total))
        return loss, logprobs, entropy, gradients.spread(rows, total)
    matrices = Matrices(
        rows.take(head.hidden.reshape(-1, width)),
        head.weight,
        head.workspace_bytes,
        backward=True,
        weight_grad=False,  # it accumulates over row tiles, not in the workspace
        whole_rows=True,
    )
    bias = None if head.bias is None else head.bias.to(dtype).contiguous()
    transform = Transform.of(head.scalars.pack(), rows.inverse, bias)
    call = _Call(matrices, rows, transform, head.ignore_index, vocabulary)
    loss = torch.zeros((), dtype=dtype, device=device)
    for part in matrices.tiling.row_tiles(n):
        span, place = rows.span(part, total)
        part_logprobs, part_entropy, stats = call.fold(part, want_entropy)
        logprobs[span][place] = part_logprobs
        if entropy is not None and part_entropy is not None:
            entropy[span][place] = part_entropy
        part_loss, grads = _loss_of_rows(loss_fn, logprobs[span], None if entropy is None else entropy[span], span)
        loss = loss + part_loss
        if any(grad is not None for grad in grads):
            chosen = (None if grad is None else grad.to(dtype)[place].contiguous() for grad in grads)
            call.add_gradients(part, stats, ops.Upstream(*chosen), gradients)
    return loss, logprobs, entropy, gradients.spread(rows, total)


def _times(grad: Tensor, factor: Tensor, dtype: torch.dtype, keep: bool) -> Tensor:
    """grad * factor in `dtype`, rounded once; in grad's own memory where it is not kept and the dtype is its own."""
    if dtype != grad.dtype or keep:
        return torch.mul(grad, factor, out=torch.empty_like(grad, dtype=dtype))
    if factor.device.type == "cpu" and factor.item() == 1.0:
        return grad
    return grad.mul_(factor)


class _TokenLossFunction(torch.autograd.Function):
    """Carries the gradients that the forward pass made to the backward pass."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, head, loss_fn, want_entropy):
        needed = Needed(*ctx.needs_input_grad[:3])
        loss, logprobs, entropy, ctx.gradients = _one_pass(head, loss_fn, want_entropy, needed)
        ctx.like = [(None, None) if x is None else (x.shape, x.dtype) for x in (hidden, weight, bias)]
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
) -> TokenLoss:
    r"""A loss that is a sum over tokens, of their log-probabilities and entropies, with gradients in one pass.

    .. math::
        \mathrm{loss} = \sum_\mathrm{tiles} \mathrm{loss\_fn}(\mathrm{logprobs}_\mathrm{rows},
        \mathrm{entropy}_\mathrm{rows}, \mathrm{rows})

    logprobs and entropy as in :func:`linear_logprobs_and_entropy`. The same gradients as that function followed by
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
            320 MiB on CUDA. More means more rows at a time and so fewer passes over the weight.
        validate: as in :func:`linear_logprobs_and_entropy`.

    Besides the workspace a call holds the wanted gradients in float32 (float64) until `backward`, which multiplies them
    by the upstream gradient, rounds them to the dtype of the inputs, once, and gives them away.

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

    Example:
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
    head = arguments.check_head(
        hidden, weight, target, bias, temperature, logit_scale, softcap, ignore_index, workspace_bytes, validate
    )
    refuse_forward_mode(hidden=head.hidden, weight=head.weight, bias=head.bias, temperature=head.temperature)
    want_entropy = arguments.check_flag("return_entropy", return_entropy)
    if torch.compiler.is_compiling():
        run_eagerly = cast(Callable[..., TokenLoss], torch.compiler.disable(_run))
        return run_eagerly(head, loss_fn, want_entropy)
    return _run(head, loss_fn, want_entropy)


def _run(head: arguments.Head, loss_fn: LossFunction, want_entropy: bool) -> TokenLoss:
    operands = (head.hidden, head.weight, head.bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in operands):
        loss, logprobs, entropy = _TokenLossFunction.apply(*operands, head, loss_fn, want_entropy)
        shape = head.target.shape
        return TokenLoss(loss, logprobs.view(shape), entropy.view(shape) if want_entropy else None)
    logprobs, entropy, _ = run_head(head, want_entropy, want_lse=False)
    rows = slice(0, logprobs.numel())
    flat_entropy = None if entropy is None else entropy.view(-1)
    loss, _ = _loss_of_rows(loss_fn, logprobs.view(-1), flat_entropy, rows, False)
    return TokenLoss(loss, logprobs, entropy)
