"""Log-probabilities and entropies from logits that exist already.

In: logits (..., V), target (...). Out: logprobs, entropy, lse (...), each logit read once.

    y = softcap * tanh(logit_scale * x / softcap)       p = softmax(y / T)
    logprob = log p_target     H = -sum_j p_j log p_j     lse = log sum_j e^(y_j / T)
    dL/dx_j = dy_j/dx_j / T * ( g [j = target] - (g - l) p_j - h p_j (log p_j + H) )

with g, h, l the upstream gradients of logprob, entropy and lse. The backward pass reads the logits once more and writes
dlogits, into their own memory on request. It needs nothing else of the forward but three float64 per row
(csrc/softmax_state.h): saving p would cost as much as the logits, and saving lse alone loses near-one-hot rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from cer_ext import arguments, ops

# ---------------------------------------------------------------------------------------------------------- op bodies


def inverse_temperature(temperature: Tensor | None, ignored: Tensor | None, validate: bool) -> Tensor | None:
    """1/T per row, flat, in float64; NaN (and so a NaN row) where T is not positive and finite, if that may pass."""
    if temperature is None:
        return None
    temperature = temperature.detach().reshape(-1).double()
    good = (temperature >= arguments.SMALLEST_TEMPERATURE) & (temperature < torch.inf)
    if ignored is not None:
        good = good | ignored
    if validate and not bool(good.all()):
        first = int((~good).nonzero()[0])
        raise ValueError(
            f"temperature: expected positive finite values, got {temperature[first].item()} in row {first}"
        )
    return torch.where(good, temperature.reciprocal(), torch.nan)


def check_target_values(target: Tensor, ignore_index: int, vocabulary: int) -> None:
    """Raise for the first target (contiguous) that is no token."""
    first = ops.first_bad_target(target, ignore_index, vocabulary)
    if first >= 0:
        raise ValueError(
            f"target: expected 0 <= target < {vocabulary} or ignore_index={ignore_index}, "
            f"got {target.view(-1)[first].item()} at row {first}"
        )


def _matrices(logits: Tensor, first_row: int = 0) -> Iterator[tuple[Tensor, int]]:
    """The rows of logits (..., V) as matrices with adjacent columns, each with the flat index of its first row.

    A slice such as logits[:, :-1] is no single matrix; it is taken apart along its first dimension, never copied.
    """
    if logits.dim() == 2:
        yield logits, first_row
        return
    if logits.dim() == 1:
        yield logits[None], first_row
        return
    try:
        yield logits.view(-1, logits.shape[-1]), first_row
    except RuntimeError:
        rows = logits[0].numel() // logits.shape[-1]
        for i, part in enumerate(logits):
            yield from _matrices(part, first_row + i * rows)


def _columns_adjacent(logits: Tensor) -> Tensor:
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()


def _compute(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    temperature_all: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float,
    want_entropy: bool,
    want_lse: bool,
    inplace_backward: bool,
    validate: bool,
    want_stats: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(logprobs, entropy, lse, stats), None for what is not wanted."""
    device, dtype, shape = logits.device, ops.real_dtype(logits.dtype), target.shape
    vocabulary = logits.shape[-1]
    target = target.contiguous()
    if validate:
        check_target_values(target, ignore_index, vocabulary)
    inverse = None
    if temperature is not None:
        inverse = inverse_temperature(temperature, target.view(-1) == ignore_index, validate)
    transform = ops.Transform(logit_scale, softcap, 1.0 / temperature_all, inverse)

    rows = target.numel()
    logprobs = torch.empty(shape, dtype=dtype, device=device)
    entropy = torch.empty(shape, dtype=dtype, device=device) if want_entropy else None
    lse = torch.empty(shape, dtype=dtype, device=device) if want_lse else None
    stats = torch.empty((3, rows), dtype=torch.float64, device=device) if want_stats else None
    if not rows:
        return logprobs, entropy, lse, stats
    states = ops.new_states(rows, device)
    flat_target = target.view(-1)
    if logits.dim() == 2 and logits.stride(1) == 1:
        ops.fold_tile(logits, flat_target, states, transform)
    else:
        for matrix, first in _matrices(_columns_adjacent(logits)):
            part = slice(first, first + matrix.shape[0])
            ops.fold_tile(matrix, flat_target[part], states[:, part], transform.tile(part, slice(None)))
    ops.finish_rows(states, flat_target, transform, ignore_index, vocabulary, logprobs, entropy, lse, stats)
    return logprobs, entropy, lse, stats


def _forward(logits: Tensor, *arguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The op's body: an op returns tensors only, so an empty one stands for what is not wanted."""
    logprobs, entropy, lse, stats = _compute(logits, *arguments, True)
    entropy, lse = (logprobs.new_empty(0) if x is None else x for x in (entropy, lse))
    return logprobs, entropy, lse, stats


def upstream(grad: Tensor | None, dtype: torch.dtype, size: int) -> Tensor | None:
    """An upstream gradient as the kernels read it: flat, contiguous, Real, one value per row; None stays None."""
    if grad is None:
        return None
    if grad.numel() != size:
        raise ValueError(f"upstream gradient: expected {size} values, got shape {tuple(grad.shape)}")
    return grad.to(dtype).contiguous().view(-1)


def _write_dlogits(
    dlogits: Tensor,
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    stats: Tensor,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    temperature_all: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float,
) -> None:
    dtype = ops.real_dtype(logits.dtype)
    target = target.contiguous().view(-1)
    inverse = inverse_temperature(temperature, None, False)
    transform = ops.Transform(logit_scale, softcap, 1.0 / temperature_all, inverse)
    grads = tuple(upstream(grad, dtype, target.numel()) for grad in grads)
    out = dlogits.view(-1, dlogits.shape[-1])
    for matrix, first in _matrices(_columns_adjacent(logits)):
        part = slice(first, first + matrix.shape[0])
        ops.grad_tile(
            matrix,
            target[part],
            stats[:, part],
            transform.tile(part, slice(None)),
            ignore_index,
            tuple(None if grad is None else grad[part] for grad in grads),
            out[part],
        )


def _backward(
    logits: Tensor,
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
) -> Tensor:
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if target.numel():
        grads = (grad_logprobs, grad_entropy, grad_lse)
        _write_dlogits(
            dlogits, logits, target, temperature, stats, grads, temperature_all, ignore_index, logit_scale, softcap
        )
    return dlogits


def _backward_in_place(
    logits: Tensor,
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
) -> None:
    if target.numel():
        grads = (grad_logprobs, grad_entropy, grad_lse)
        _write_dlogits(
            logits, logits, target, temperature, stats, grads, temperature_all, ignore_index, logit_scale, softcap
        )
    torch.autograd.graph.increment_version(logits)  # whoever else saved the logits is told


# ------------------------------------------------------------------------------------------------ shapes and gradients


def _fake_forward(
    logits,
    target,
    temperature,
    temperature_all,
    ignore_index,
    logit_scale,
    softcap,
    want_entropy,
    want_lse,
    inplace_backward,
    validate,
):
    dtype, shape = ops.real_dtype(logits.dtype), target.shape
    return (
        logits.new_empty(shape, dtype=dtype),
        logits.new_empty(shape if want_entropy else (0,), dtype=dtype),
        logits.new_empty(shape if want_lse else (0,), dtype=dtype),
        logits.new_empty((3, target.numel()), dtype=torch.float64),
    )


def _setup_context(ctx, inputs, output) -> None:
    logits, target, temperature, temperature_all, ignore_index, logit_scale, softcap, *rest = inputs
    want_entropy, want_lse, inplace_backward, _ = rest
    _, entropy, lse, stats = output
    ctx.set_materialize_grads(False)
    mark_unwanted(ctx, want_entropy, entropy, want_lse, lse, stats)
    ctx.save_for_backward(logits, target, temperature, stats)
    ctx.scalars = (temperature_all, ignore_index, logit_scale, softcap)
    ctx.inplace_backward = inplace_backward
    ctx.logits_address_and_version = _address_and_version(logits) if inplace_backward else None


def mark_unwanted(ctx, want_entropy: bool, entropy: Tensor, want_lse: bool, lse: Tensor, stats: Tensor) -> None:
    """No gradients for the statistics, nor for the empty tensors that stand for outputs nobody asked for."""
    unwanted = [stats]
    if not want_entropy:
        unwanted.append(entropy)
    if not want_lse:
        unwanted.append(lse)
    ctx.mark_non_differentiable(*unwanted)
    ctx.wanted = (True, want_entropy, want_lse)


def upstream_gradients(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...] | None:
    """Those of (logprobs, entropy, lse) that exist and were asked for; None if there is none at all."""
    grads = tuple(grad if wanted else None for grad, wanted in zip(grads, ctx.wanted, strict=True))
    return None if all(grad is None for grad in grads) else grads


def _address_and_version(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor._version


def _gradient(ctx, grad_logprobs, grad_entropy, grad_lse, _):
    nothing = (None,) * 11
    grads = upstream_gradients(ctx, grad_logprobs, grad_entropy, grad_lse)
    if grads is None or not ctx.needs_input_grad[0]:
        return nothing
    logits, target, temperature, stats = ctx.saved_tensors
    if not ctx.inplace_backward:
        return (BACKWARD(logits, target, temperature, stats, *grads, *ctx.scalars), *nothing[1:])

    if torch.is_grad_enabled():
        raise RuntimeError("inplace_backward=True overwrites the logits: it cannot be used with create_graph=True")
    # autograd has compared versions already, unless saved-tensor hooks took the logits out of its hands.
    address, version = ctx.logits_address_and_version
    if logits.data_ptr() == address and logits._version > version:
        raise RuntimeError(
            "the logits were modified by an inplace operation after logprobs_and_entropy saved them: they are at "
            f"version {logits._version}, expected version {version}. With inplace_backward=True a backward pass itself "
            "overwrites them; it can run once."
        )
    dlogits = logits.detach()  # the same memory, under the same version counter
    BACKWARD_IN_PLACE(dlogits, target, temperature, stats, *grads, *ctx.scalars)
    return (dlogits, *nothing[1:])


_SCALARS = "float temperature_all, int ignore_index, float logit_scale, float softcap"
_BACKWARD_ARGUMENTS = (
    "Tensor target, Tensor? temperature, Tensor stats, Tensor? grad_logprobs, Tensor? grad_entropy, Tensor? grad_lse, "
    + _SCALARS
)

FORWARD = ops.define_op(
    f"logits_forward(Tensor logits, Tensor target, Tensor? temperature, {_SCALARS}, bool want_entropy, bool want_lse, "
    "bool inplace_backward, bool validate) -> (Tensor logprobs, Tensor entropy, Tensor lse, Tensor stats)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = ops.define_op(
    f"logits_backward(Tensor logits, {_BACKWARD_ARGUMENTS}) -> Tensor dlogits",
    _backward,
    lambda logits, *rest: logits.new_empty(logits.shape),
    ops.refuse_double_backward,
)
BACKWARD_IN_PLACE = ops.define_op(
    f"logits_backward_(Tensor(a!) logits, {_BACKWARD_ARGUMENTS}) -> ()",
    _backward_in_place,
    lambda logits, *rest: None,
    None,
)


# ------------------------------------------------------------------------------------------------------ public function


def _check_inplace_backward(logits: Tensor) -> None:
    """Refuse logits whose memory is not the caller's to give away."""
    if not logits.is_contiguous():  # expanded and overlapping ones are not either
        raise ValueError(
            "inplace_backward: expected contiguous logits, whose memory dlogits can take, "
            f"got shape {tuple(logits.shape)} with strides {logits.stride()}"
        )
    base = logits if logits._base is None else logits._base
    if torch.is_grad_enabled() and base.requires_grad and base.is_leaf:
        what = "a leaf tensor" if base is logits else "a view of a leaf tensor"
        raise ValueError(
            f"inplace_backward: expected logits that a computation made, got {what} that requires grad and would be "
            "overwritten by its own gradient"
        )


def logprobs_and_entropy(
    logits: Any,
    target: Any,
    *,
    temperature: float | Tensor = 1.0,
    ignore_index: int = -100,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    return_entropy: bool = True,
    return_lse: bool = False,
    inplace_backward: bool = False,
    validate: bool | None = None,
) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor]:
    r"""Log-probability of each target token and entropy of each row of logits, in one pass over the logits.

    .. math::
        z = \mathrm{softcap} \cdot \tanh(\mathrm{logit\_scale} \cdot x / \mathrm{softcap}) / T, \quad
        p = \mathrm{softmax}(z), \quad
        \mathrm{logprob} = \log p_\mathrm{target}, \quad H = -\sum_j p_j \log p_j

    Every output is differentiable with respect to `logits`, once (double backward raises). -inf logits are probability
    zero; a row with NaN, +inf or nothing but -inf is NaN.

    Args:
        logits: (..., V), float32, bfloat16, float16 or float64, any strides; V >= 1. Tensors, or arrays with DLPack.
        target: (...), int64 (int32 is cast), token indices in [0, V), or `ignore_index`.
        temperature: T, a positive finite number, or a floating point tensor like `target` with one per row.
        ignore_index: rows with this target give 0 in every output and an exactly zero gradient, whatever they hold.
        logit_scale: factor on the logits before the cap.
        softcap: None, or the positive bound that tanh holds the logits to (Gemma's final_logit_softcapping).
        return_entropy: False gives None for the entropy.
        return_lse: True appends log sum_j exp(z_j).
        inplace_backward: True lets backward write the gradient into the memory of the logits, which saves as much
            memory as they take. They must be contiguous and computed (no leaf, nor a view of one), and hold the
            gradient afterwards. Any other use of them in the same backward pass that needs their values, and a second
            backward, raise torch's "modified by an inplace operation". Under torch.compile dlogits are a new tensor.
        validate: whether to look at the values of `target` and a tensor `temperature` and raise for bad ones. None: on
            CPU yes, on CUDA no, where it would wait for the device; unvalidated bad rows are NaN.

    Returns:
        (logprobs, entropy), or (logprobs, entropy, lse): tensors of target's shape in nats, float32 (float64 for
        float64 logits).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or value that does not fit.

    Source: arXiv 2510.02249 for the use; csrc/softmax_state.h for the recurrence.

    Example:
        >>> import torch
        >>> from cer_ext import logprobs_and_entropy
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, float("-inf")]])
        >>> logprobs, entropy = logprobs_and_entropy(logits, torch.tensor([2, 0]))
        >>> logprobs
        tensor([-1.3863e+00, -2.4679e-04])
        >>> entropy
        tensor([1.3863, 0.0025])
    """
    logits = arguments.as_tensor("logits", logits)
    arguments.check_floating("logits", logits)
    full_shape = logits.shape
    if not full_shape or not full_shape[-1]:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {tuple(full_shape)}")
    shape = full_shape[:-1]
    target = arguments.check_target(target, shape, "logits", logits)
    per_row, temperature_all = arguments.check_temperature(temperature, shape, "logits", logits)
    inplace_backward = arguments.check_flag("inplace_backward", inplace_backward) and not torch.compiler.is_compiling()
    if inplace_backward:
        _check_inplace_backward(logits)
    values = (
        logits,
        target,
        per_row,
        temperature_all,
        arguments.check_integer("ignore_index", ignore_index),
        arguments.check_logit_scale(logit_scale),
        arguments.check_softcap(softcap),
        arguments.check_flag("return_entropy", return_entropy),
        arguments.check_flag("return_lse", return_lse),
        inplace_backward,
        arguments.check_validate(validate, logits.device),
    )
    if ops.may_skip_dispatcher(logits, target, per_row):
        logprobs, entropy, lse, _ = _compute(*values, False)
    else:
        logprobs, entropy, lse, _ = FORWARD(*values)
        if not return_entropy:
            entropy = None
    return (logprobs, entropy, lse) if return_lse else (logprobs, entropy)
