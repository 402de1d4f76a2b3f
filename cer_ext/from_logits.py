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
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from cer_ext import checks, ops
from cer_ext.custom_op import (
    define_op,
    mark_unwanted,
    may_skip_dispatcher,
    refuse_double_backward,
    refuse_forward_mode,
    upstream,
    upstream_gradients,
)
from cer_ext.options import LogitsOptions
from cer_ext.rows import check_target_values
from cer_ext.transform import Scalars, Transform, inverse_temperature

# ---------------------------------------------------------------------------------------------------------- op bodies


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


class Outputs(NamedTuple):
    logprobs: Tensor
    entropy: Tensor | None
    lse: Tensor | None
    stats: Tensor | None


def compute(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
    want_entropy: bool,
    want_lse: bool,
    validate: bool,
    want_stats: bool,
) -> Outputs:
    """None for what is not wanted."""
    device, dtype, shape = logits.device, ops.real_dtype(logits.dtype), target.shape
    vocabulary = logits.shape[-1]
    target = target.contiguous()
    if validate:
        check_target_values(target, ignore_index, vocabulary)
    inverse = None
    if temperature is not None:
        inverse = inverse_temperature(temperature, target.view(-1) == ignore_index, validate)
    transform = Transform.of(scalars, inverse)

    rows = target.numel()
    logprobs = torch.empty(shape, dtype=dtype, device=device)
    entropy = torch.empty(shape, dtype=dtype, device=device) if want_entropy else None
    lse = torch.empty(shape, dtype=dtype, device=device) if want_lse else None
    stats = torch.empty((3, rows), dtype=torch.float64, device=device) if want_stats else None
    if not rows:
        return Outputs(logprobs, entropy, lse, stats)
    states = ops.new_states(rows, device)
    flat_target = target.view(-1)
    if logits.dim() == 2 and logits.stride(1) == 1:
        ops.fold_tile(logits, flat_target, states, transform)
    else:
        for matrix, first in _matrices(_columns_adjacent(logits)):
            part = slice(first, first + matrix.shape[0])
            ops.fold_tile(matrix, flat_target[part], states[:, part], transform.tile(part, slice(None)))
    ops.finish_rows(states, flat_target, transform, ignore_index, vocabulary, logprobs, entropy, lse, stats)
    return Outputs(logprobs, entropy, lse, stats)


def _forward(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
    want_entropy: bool,
    want_lse: bool,
    inplace_backward: bool,
    validate: bool,
) -> tuple[Tensor, ...]:
    """The op's body: an op returns tensors only, so an empty one stands for what is not wanted."""
    outputs = compute(
        logits, target, temperature, scalars, ignore_index, want_entropy, want_lse, validate, want_stats=True
    )
    return tuple(outputs.logprobs.new_empty(0) if x is None else x for x in outputs)


def write_dlogits(
    dlogits: Tensor,
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    stats: Tensor,
    grads: tuple[Tensor | None, ...],  # of logprobs, entropy and lse
    scalars: Tensor,
    ignore_index: int,
) -> None:
    dtype = ops.real_dtype(logits.dtype)
    target = target.contiguous().view(-1)
    transform = Transform.of(scalars, inverse_temperature(temperature, None, False))
    logprobs, entropy, lse = (upstream(grad, dtype, target.numel()) for grad in grads)
    out = dlogits.view(-1, dlogits.shape[-1])
    for matrix, first in _matrices(_columns_adjacent(logits)):
        part = slice(first, first + matrix.shape[0])
        ops.grad_tile(
            matrix,
            target[part],
            stats[:, part],
            transform.tile(part, slice(None)),
            ignore_index,
            ops.Upstream(logprobs, entropy, lse).tile(part),
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
    scalars: Tensor,
    ignore_index: int,
) -> Tensor:
    dlogits = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if target.numel():
        grads = (grad_logprobs, grad_entropy, grad_lse)
        write_dlogits(dlogits, logits, target, temperature, stats, grads, scalars, ignore_index)
    return dlogits


def _backward_in_place(
    logits: Tensor,
    target: Tensor,
    temperature: Tensor | None,
    stats: Tensor,
    grad_logprobs: Tensor | None,
    grad_entropy: Tensor | None,
    grad_lse: Tensor | None,
    scalars: Tensor,
    ignore_index: int,
) -> None:
    if target.numel():
        grads = (grad_logprobs, grad_entropy, grad_lse)
        write_dlogits(logits, logits, target, temperature, stats, grads, scalars, ignore_index)
    torch.autograd.graph.increment_version(logits)  # others that saved the logits will notice


# ------------------------------------------------------------------------------------------------ shapes and gradients


class ForwardArguments(NamedTuple):
    """The op's arguments by name, in order; and its gradients, where what has none is None."""

    logits: Any = None
    target: Any = None
    temperature: Any = None
    scalars: Any = None
    ignore_index: Any = None
    want_entropy: Any = None
    want_lse: Any = None
    inplace_backward: Any = None
    validate: Any = None


def _fake_forward(*values):
    call = ForwardArguments(*values)
    dtype, shape = ops.real_dtype(call.logits.dtype), call.target.shape
    return (
        call.logits.new_empty(shape, dtype=dtype),
        call.logits.new_empty(shape if call.want_entropy else (0,), dtype=dtype),
        call.logits.new_empty(shape if call.want_lse else (0,), dtype=dtype),
        call.logits.new_empty((3, call.target.numel()), dtype=torch.float64),
    )


def _setup_context(ctx, inputs, output) -> None:
    call = ForwardArguments(*inputs)
    _, entropy, lse, stats = output
    mark_unwanted(ctx, call.want_entropy, entropy, call.want_lse, lse, stats)
    ctx.save_for_backward(call.logits, call.target, call.temperature, stats, call.scalars)
    ctx.ignore_index = call.ignore_index
    ctx.inplace_backward = call.inplace_backward
    ctx.logits_address_and_version = _address_and_version(call.logits) if call.inplace_backward else None


def _address_and_version(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor._version


def _gradient(ctx, grad_logprobs, grad_entropy, grad_lse, _):
    grads = upstream_gradients(ctx, grad_logprobs, grad_entropy, grad_lse)
    if grads is None or not ctx.needs_input_grad[0]:
        return ForwardArguments()
    logits, target, temperature, stats, scalars = ctx.saved_tensors
    rest = (target, temperature, stats, *grads, scalars, ctx.ignore_index)
    if not ctx.inplace_backward:
        return ForwardArguments(logits=BACKWARD(logits, *rest))

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
    BACKWARD_IN_PLACE(dlogits, *rest)
    return ForwardArguments(logits=dlogits)


_BACKWARD_ARGUMENTS = (
    "Tensor target, Tensor? temperature, Tensor stats, Tensor? grad_logprobs, Tensor? grad_entropy, Tensor? grad_lse, "
    "Tensor scalars, SymInt ignore_index"
)

FORWARD = define_op(
    "logits_forward(Tensor logits, Tensor target, Tensor? temperature, Tensor scalars, SymInt ignore_index, "
    "bool want_entropy, bool want_lse, bool inplace_backward, bool validate) "
    "-> (Tensor logprobs, Tensor entropy, Tensor lse, Tensor stats)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = define_op(
    f"logits_backward(Tensor logits, {_BACKWARD_ARGUMENTS}) -> Tensor dlogits",
    _backward,
    lambda logits, *rest: logits.new_empty(logits.shape),
    refuse_double_backward,
)
BACKWARD_IN_PLACE = define_op(
    f"logits_backward_(Tensor(a!) logits, {_BACKWARD_ARGUMENTS}) -> ()",
    _backward_in_place,
    lambda logits, *rest: None,
    None,
)


# ------------------------------------------------------------------------------------------------------ public function


def _check_inplace_backward(logits: Tensor) -> None:
    """Refuse logits whose memory must not be overwritten."""
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


@overload
def logprobs_and_entropy(
    logits: Any,
    target: Any,
    *,
    return_entropy: Literal[True] = ...,
    return_lse: Literal[False] = ...,
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, Tensor]: ...


@overload
def logprobs_and_entropy(
    logits: Any,
    target: Any,
    *,
    return_entropy: Literal[True] = ...,
    return_lse: Literal[True],
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, Tensor, Tensor]: ...


@overload
def logprobs_and_entropy(
    logits: Any,
    target: Any,
    *,
    return_entropy: Literal[False],
    return_lse: Literal[False] = ...,
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, None]: ...


@overload
def logprobs_and_entropy(
    logits: Any,
    target: Any,
    *,
    return_entropy: Literal[False],
    return_lse: Literal[True],
    **options: Unpack[LogitsOptions],
) -> tuple[Tensor, None, Tensor]: ...


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
) -> tuple[Tensor | None, ...]:
    """Log-probability of each target token and entropy of each row of logits, in one pass over the logits.

        z = softcap * tanh(logit_scale * x / softcap) / T        p = softmax(z)
        logprob = log p_target                                   H = -sum_j p_j log p_j

    Every output is differentiable with respect to `logits`, once (double backward raises). -inf logits are probability
    zero; a row with NaN, +inf or nothing but -inf is NaN.

    Args:
        logits: (..., V), float32, bfloat16, float16 or float64, any strides; V >= 1. Tensors, or arrays with DLPack.
        target: (...), int64 (int32 is cast), token indices in [0, V), or `ignore_index`. Or (..., K), several targets
            a row: logprobs is then (..., K), the rest (...), and backward not in place; details in `target_statistics`.
        temperature: T, a positive finite number, or a floating point tensor (...) with one per row.
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

    Examples:
        >>> import torch
        >>> from cer_ext import logprobs_and_entropy
        >>> logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [9.0, 0.0, 0.0, float("-inf")]])
        >>> logprobs, entropy = logprobs_and_entropy(logits, torch.tensor([2, 0]))
        >>> logprobs
        tensor([-1.3863e+00, -2.4679e-04])
        >>> entropy
        tensor([1.3863, 0.0025])
    """
    logits = checks.as_tensor("logits", logits)
    checks.check_floating("logits", logits)
    full_shape = logits.shape
    if not full_shape or not full_shape[-1]:
        raise ValueError(f"logits: expected shape (..., V) with V >= 1, got {tuple(full_shape)}")
    shape = full_shape[:-1]
    target = checks.check_target(target, shape, "logits", logits, several_targets=True)
    if target.dim() == len(full_shape):
        from cer_ext.logits_targets import target_statistics  # here: it is made of this file

        if inplace_backward:
            raise ValueError("inplace_backward: expected one target a row, got several")
        options = {"temperature": temperature, "logit_scale": logit_scale, "softcap": softcap, "validate": validate}
        found = target_statistics(logits, target, ignore_index=ignore_index, **options)
        entropy = found.entropy if checks.check_flag("return_entropy", return_entropy) else None
        outputs = (found.logprobs, entropy)
        return (*outputs, found.lse) if checks.check_flag("return_lse", return_lse) else outputs
    per_row, temperature_all = checks.check_temperature(temperature, shape, "logits", logits)
    inplace_backward = checks.check_flag("inplace_backward", inplace_backward) and not torch.compiler.is_compiling()
    if inplace_backward:
        _check_inplace_backward(logits)
    refuse_forward_mode(logits=logits, temperature=per_row)
    scalars = Scalars(temperature_all, checks.check_logit_scale(logit_scale), checks.check_softcap(softcap)).pack()
    ignore_index = checks.check_integer("ignore_index", ignore_index)
    want_entropy = checks.check_flag("return_entropy", return_entropy)
    want_lse = checks.check_flag("return_lse", return_lse)
    validate = checks.check_validate(validate, logits.device)
    if may_skip_dispatcher(logits, target, per_row):
        logprobs, entropy, lse, _ = compute(
            logits, target, per_row, scalars, ignore_index, want_entropy, want_lse, validate, want_stats=False
        )
    else:
        logprobs, entropy, lse, _ = FORWARD(
            logits, target, per_row, scalars, ignore_index, want_entropy, want_lse, inplace_backward, validate
        )
        if not return_entropy:
            entropy = None
    return (logprobs, entropy, lse) if return_lse else (logprobs, entropy)
