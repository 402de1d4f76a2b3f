"""Token Entropy Cumulative Average: the mean of the entropies of a response's tokens so far.

In: entropy (..., L) with a mask, or packed (total,) with cu_seqlens. Out: TECA alike, or its last value per response.

    TECA_t = (1/t) sum_{i<=t} H_i        d TECA_t / d H_i = 1/t for i <= t

t counts the tokens where mask is 1. Masked positions give 0, their entropy (NaN too) is never used and their gradient
is exactly zero. A response without tokens has the last value 0.

Source: Cumulative Entropy Regulation, arXiv 2510.02249.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cer_ext import checks, ops
from cer_ext.custom_op import define_op, may_skip_dispatcher, refuse_double_backward, refuse_forward_mode, upstream

# ---------------------------------------------------------------------------------------------------------- op bodies


def _layout(shape: torch.Size, cu_seqlens: Tensor | None) -> tuple[int, int]:
    """(responses, length): of the padded form, or (responses, 0) of the packed one."""
    if cu_seqlens is not None:
        return cu_seqlens.shape[0] - 1, 0
    responses = 1
    for size in shape[:-1]:
        responses *= size
    return responses, shape[-1]


def _last_shape(shape: torch.Size, cu_seqlens: Tensor | None) -> tuple[int, ...]:
    return tuple(shape[:-1]) if cu_seqlens is None else (cu_seqlens.shape[0] - 1,)


def _mask_bytes(mask: Tensor | None) -> Tensor | None:
    """The mask as the kernels read it: contiguous bytes, 0 or 1."""
    if mask is None:
        return None
    return (mask if mask.dtype == torch.bool else mask != 0).contiguous().view(torch.uint8)


def _check_mask_values(mask: Tensor) -> None:
    if mask.dtype != torch.bool:
        bad = (mask != 0) & (mask != 1)
        if bool(bad.any()):
            value = mask[bad][0].item()
            raise ValueError(f"mask: expected bool or 0 and 1, got {value} at index {bad.nonzero()[0].tolist()}")


def _check_cu_seqlens_values(cu_seqlens: Tensor, total: int) -> None:
    first, last = int(cu_seqlens[0]), int(cu_seqlens[-1])
    if first != 0 or last != total:
        raise ValueError(
            f"cu_seqlens: expected to start at 0 and to end at {total}, the number of entropies, got {first} and {last}"
        )
    falls = cu_seqlens[1:] < cu_seqlens[:-1]
    if bool(falls.any()):
        i = int(falls.nonzero()[0])
        raise ValueError(
            f"cu_seqlens: expected non-decreasing values, got {cu_seqlens[i].item()} before {cu_seqlens[i + 1].item()} "
            f"at index {i}"
        )


def _forward(entropy: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, validate: bool) -> tuple[Tensor, Tensor]:
    if validate:
        if mask is not None:
            _check_mask_values(mask)
        if cu_seqlens is not None:
            _check_cu_seqlens_values(cu_seqlens, entropy.shape[0])
    entropy = entropy.contiguous()
    average = torch.empty(entropy.shape, dtype=entropy.dtype, device=entropy.device)
    last = torch.empty(_last_shape(entropy.shape, cu_seqlens), dtype=entropy.dtype, device=entropy.device)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.contiguous()
    responses, length = _layout(entropy.shape, cu_seqlens)
    ops.teca_forward(entropy, responses, length, _mask_bytes(mask), cu_seqlens, average, last)
    return average, last


def _backward(
    like: Tensor, mask: Tensor | None, cu_seqlens: Tensor | None, grad_average: Tensor | None, grad_last: Tensor | None
) -> Tensor:
    grad_entropy = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.contiguous()
    responses, length = _layout(like.shape, cu_seqlens)
    grads = (upstream(grad_average, like.dtype, like.numel()), upstream(grad_last, like.dtype, responses))
    ops.teca_backward(responses, length, _mask_bytes(mask), cu_seqlens, *grads, grad_entropy)
    return grad_entropy


# ------------------------------------------------------------------------------------------------- shapes and gradients


def _fake_forward(entropy, mask, cu_seqlens, validate):
    return entropy.new_empty(entropy.shape), entropy.new_empty(_last_shape(entropy.shape, cu_seqlens))


def _setup_context(ctx, inputs, output) -> None:
    entropy, mask, cu_seqlens, _ = inputs
    ctx.set_materialize_grads(False)
    # Of the entropies backward needs the shape alone; an expanded scalar has it and holds no memory.
    ctx.save_for_backward(entropy.new_empty(()).expand(entropy.shape), mask, cu_seqlens)


def _gradient(ctx, grad_average, grad_last):
    if not ctx.needs_input_grad[0] or (grad_average is None and grad_last is None):
        return None, None, None, None
    return BACKWARD(*ctx.saved_tensors, grad_average, grad_last), None, None, None


FORWARD = define_op(
    "teca_forward(Tensor entropy, Tensor? mask, Tensor? cu_seqlens, bool validate) -> (Tensor average, Tensor last)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = define_op(
    "teca_backward(Tensor like, Tensor? mask, Tensor? cu_seqlens, Tensor? grad_average, Tensor? grad_last) "
    "-> Tensor grad_entropy",
    _backward,
    lambda like, *rest: like.new_empty(like.shape),
    refuse_double_backward,
)


# ----------------------------------------------------------------------------------------------------- public functions


def check_mask(mask: Any, shape: torch.Size, source_name: str, source: Tensor) -> Tensor:
    mask = checks.as_tensor("mask", mask)
    if mask.dtype.is_floating_point or mask.dtype.is_complex:
        raise TypeError(f"mask: expected bool or integers 0 and 1, got {mask.dtype}")
    if mask.shape != shape:
        raise ValueError(f"mask: expected shape {tuple(shape)} like {source_name}, got {tuple(mask.shape)}")
    checks.check_same_device("mask", mask, source_name, source)
    return mask


def _average_and_last(entropy: Any, mask: Any, cu_seqlens: Any) -> tuple[Tensor, Tensor]:
    entropy = checks.as_tensor("entropy", entropy)
    checks.check_floating("entropy", entropy)
    if not entropy.dim():
        raise ValueError("entropy: expected shape (..., L), got ()")
    if mask is not None:
        if cu_seqlens is not None:
            raise ValueError("mask: belongs to padded responses; packed ones (cu_seqlens) have none")
        mask = check_mask(mask, entropy.shape, "entropy", entropy)
    if cu_seqlens is not None:
        cu_seqlens = checks.as_tensor("cu_seqlens", cu_seqlens)
        if cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"cu_seqlens: expected torch.int32 or torch.int64, got {cu_seqlens.dtype}")
        if entropy.dim() != 1:
            raise ValueError(f"entropy: expected shape (total,) with cu_seqlens, got {tuple(entropy.shape)}")
        if cu_seqlens.dim() != 1 or not cu_seqlens.shape[0]:
            raise ValueError(f"cu_seqlens: expected shape (responses + 1,), got {tuple(cu_seqlens.shape)}")
        checks.check_same_device("cu_seqlens", cu_seqlens, "entropy", entropy)
        cu_seqlens = cu_seqlens.long()
    refuse_forward_mode(entropy=entropy)
    values = (entropy.to(ops.real_dtype(entropy.dtype)), mask, cu_seqlens, entropy.device.type == "cpu")
    return (_forward if may_skip_dispatcher(*values[:3]) else FORWARD)(*values)


def teca(entropy: Any, mask: Any = None, *, cu_seqlens: Any = None) -> Tensor:
    """Cumulative average of the token entropies over each response.

        TECA_t = (1/t) sum_{i<=t} H_i

    Differentiable with respect to `entropy`, once.

    Args:
        entropy: (..., L) padded, one response per row, or (total,) packed; nats; floating point, any strides.
        mask: None, or like `entropy`, bool or integers 0 and 1: which tokens belong to the response. The values are
            checked on CPU; on CUDA whatever is not 0 counts as 1.
        cu_seqlens: None, or (responses + 1,) int64 or int32: response i is entropy[cu_seqlens[i] : cu_seqlens[i + 1]].
            The values are checked on CPU; on CUDA they must be right.

    Returns:
        Tensor like `entropy`, nats, float32 (float64 for float64); 0 where mask is 0.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or value that does not fit; both mask and cu_seqlens.

    Source: arXiv 2510.02249.

    Examples:
        >>> import torch
        >>> from cer_ext import teca
        >>> teca(torch.tensor([[1.0, 3.0, 9.0], [4.0, 2.0, 0.0]]), torch.tensor([[1, 1, 0], [1, 1, 1]]))
        tensor([[1., 2., 0.],
                [4., 3., 2.]])
        >>> teca(torch.tensor([1.0, 3.0, 4.0]), cu_seqlens=torch.tensor([0, 2, 3]))
        tensor([1., 2., 4.])
    """
    return _average_and_last(entropy, mask, cu_seqlens)[0]


def teca_last(entropy: Any, mask: Any = None, *, cu_seqlens: Any = None) -> Tensor:
    """TECA at the last token of each response: the mean entropy of the response.

    Differentiable with respect to `entropy`, once.

    Args:
        entropy: as for `teca`.
        mask: as for `teca`.
        cu_seqlens: as for `teca`.

    Returns:
        Tensor of shape (...) for padded entropies (..., L), (responses,) for packed ones; nats, float32 (float64 for
        float64); 0 for a response without tokens.

    Raises:
        TypeError, ValueError: as for `teca`.

    Source: arXiv 2510.02249.

    Examples:
        >>> import torch
        >>> from cer_ext import teca_last
        >>> teca_last(torch.tensor([[1.0, 3.0, 9.0], [4.0, 2.0, 0.0]]), torch.tensor([[1, 1, 0], [1, 1, 1]]))
        tensor([2., 2.])
    """
    return _average_and_last(entropy, mask, cu_seqlens)[1]
