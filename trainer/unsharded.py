"""Gathers a head's weight that FSDP2 has sharded into a group of its own, for a product outside of that group.

In: the head's parameter, a plain tensor or a DTensor. Out: the whole weight, on its autograd path, in the dtype and on
the device of the product.

FSDP2 gathers a group's parameters in the hook of its module's forward. A fused head multiplies with the weight and
never calls that forward, so the hook does not fire: the gather is made here, and in the backward the reduction that the
hook would have made,

    grad(shard) = mean over the processes of grad(whole weight)

The gather is made in the dtype of the product (half the bytes where that is bfloat16), the reduction in the dtype of
the parameter. Nothing but torch is imported: CERTrainer's head and the head inside verl both use this.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial


def whole_weight(parameter: Tensor, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Returns the weight unsharded, in `dtype` and on `device` (None: where it is).

    Args:
        parameter: (V, D) or (V,), a tensor or a DTensor with any placement over any mesh.
        dtype: of the product.
        device: of the product; a CPU-offloaded shard is moved there before it is gathered.
    """
    device = parameter.device if device is None else device
    if isinstance(parameter, DTensor):
        return _Unsharded.apply(parameter, dtype, device)
    return parameter.to(device, dtype)


class _Unsharded(torch.autograd.Function):
    """DTensor.full_tensor, but with the mean of the gradients: it takes one process's gradient for that of all."""

    @staticmethod
    def forward(ctx, parameter: DTensor, dtype: torch.dtype, device: torch.device) -> Tensor:
        ctx.mesh, ctx.placements = parameter.device_mesh, parameter.placements
        ctx.shape, ctx.stride = parameter.shape, parameter.stride()
        ctx.dtype, ctx.device = parameter.dtype, parameter.device
        return parameter.to(device, dtype).full_tensor()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[DTensor, None, None]:
        share = grad.to(ctx.dtype) / ctx.mesh.size()
        summands = [Partial()] * ctx.mesh.ndim
        grad = DTensor.from_local(share, ctx.mesh, summands, run_check=False, shape=ctx.shape, stride=ctx.stride)
        return grad.redistribute(placements=ctx.placements).to(ctx.device), None, None
