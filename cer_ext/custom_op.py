"""What torch must be told about an operation of ours: dispatch, shapes, gradients, and what has none.

In: an op's body and its rules. Out: torch.ops.cer_ext.<name>, which autograd, torch.compile, checkpointing and vmap
know. The contract with autograd is the same for every op:

    an output nobody asked for is an empty tensor without a gradient
    an upstream gradient that does not exist costs nothing (it stays None)
    a second derivative, and forward-mode differentiation, raise: the kernels compute values and first gradients
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

NAMESPACE = "cer_ext"
LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def define_op(
    schema: str,
    implementation: Callable,
    fake: Callable,
    backward: Callable | None,
    setup_context: Callable | None = None,
) -> Callable[..., Any]:
    """Register one custom op with its body for CPU and CUDA, its shapes for tracing, and its gradient if it has one."""
    name = f"{NAMESPACE}::{schema.partition('(')[0]}"
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for device in ("CPU", "CUDA"):
        LIBRARY.impl(name, implementation, device)
    torch.library.register_fake(name, fake, lib=LIBRARY)
    if backward is not None:
        torch.library.register_autograd(name, backward, setup_context=setup_context, lib=LIBRARY)
    return getattr(torch.ops.cer_ext, name.partition("::")[2]).default


def may_skip_dispatcher(*tensors: Tensor | None) -> bool:
    """Whether nothing but the op's body is left to run: eager, plain tensors, no gradient, nobody tracing.

    The dispatcher costs more than the rest of a small call (about 10 us of 25); calling the body is what it would do.
    """
    if torch.compiler.is_compiling():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active():
        return False
    recording = torch.is_grad_enabled()
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or (recording and tensor.requires_grad)):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter)


# ---------------------------------------------------------------------------------------------------------- gradients


def mark_unwanted(ctx, want_entropy: bool, entropy: Tensor, want_lse: bool, lse: Tensor, *saved: Tensor) -> None:
    """No gradients for what backward alone reads, nor for the empty tensors that stand for outputs nobody asked for."""
    unwanted = [*saved]
    if not want_entropy:
        unwanted.append(entropy)
    if not want_lse:
        unwanted.append(lse)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*unwanted)
    ctx.wanted = (True, want_entropy, want_lse)


def upstream_gradients(ctx, *grads: Tensor | None) -> tuple[Tensor | None, ...] | None:
    """Those of (logprobs, entropy, lse) that exist and were asked for; None if there is none at all."""
    grads = tuple(grad if wanted else None for grad, wanted in zip(grads, ctx.wanted, strict=True))
    return None if all(grad is None for grad in grads) else grads


def upstream(grad: Tensor | None, dtype: torch.dtype, size: int) -> Tensor | None:
    """An upstream gradient as the kernels read it: flat, contiguous, Real, one value per row; None stays None."""
    if grad is None:
        return None
    if grad.numel() != size:
        raise ValueError(f"upstream gradient: expected {size} values, got shape {tuple(grad.shape)}")
    return grad.to(dtype).contiguous().view(-1)


# ----------------------------------------------------------------------------------------------------------- refusals


def refuse_double_backward(ctx, *grads) -> None:
    raise RuntimeError(
        "double backward is not supported: the gradients of cer_ext's log-probabilities and entropies are computed by "
        "kernels that are not differentiable themselves; drop create_graph=True, or use cer_ext.reference"
    )


def refuse_forward_mode(**tensors: Tensor | None) -> None:
    """Raise where an argument carries a tangent, which the op would silently drop."""
    for name, tensor in tensors.items():
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                f"{name}: forward-mode differentiation (torch.func.jvp, torch.autograd.forward_ad) is not supported: "
                "the kernels have reverse-mode gradients only; use cer_ext.reference"
            )
