"""Log-probabilities and entropies from hidden states and the head's weight; the logits never exist as a whole.

In: hidden (..., D), weight (V, D), bias (V,), target (...). Out: logprobs, entropy, lse (...).

    x = h W^T + b      y = softcap * tanh(logit_scale * x / softcap)      then as from_logits.py

The matrix of logits is cut into tiles. Forward: GEMM of a tile into one reused buffer, the tile folded into its rows'
states. Backward: the same GEMM again, dlogits written over the tile, two GEMMs (one for a frozen weight) of it into the
gradients. The vocabulary is the outer loop and the rows the inner one, so that each part of the weight, the largest
operand, is read (on CPU in low precision: converted) once per pass.

Peak memory beyond inputs and outputs: `workspace_bytes` + O(N D), the latter a float32 copy of low-precision hidden
states on CPU and the float32 accumulator of grad_hidden.

Logits are float32 accumulators in every case: for bfloat16 and float16 the GEMM runs on the low-precision inputs with
float32 output on CUDA, and on float32 copies of them on CPU, where torch has no such GEMM. float32 GEMMs follow torch's
own setting (torch.backends.cuda.matmul.allow_tf32 and its successors): with TF32 on, logits carry its rounding.

The alternative that lost: rows outside, vocabulary inside. It needs no (5, N) states between tiles, but reads the whole
weight once per row tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cer_ext import arguments, ops
from cer_ext.from_logits import (
    check_target_values,
    inverse_temperature,
    mark_unwanted,
    upstream,
    upstream_gradients,
)

# ---------------------------------------------------------------------------------------------------------------- tiles

DEFAULT_WORKSPACE_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
# Rows of a tile where memory allows it: enough that a GEMM of (rows, D) x (D, cols) is limited by arithmetic, few
# enough that there are still many columns.
PREFERRED_ROWS = {"cpu": 512, "cuda": 4096}
# On CPU a tile of 512 x 2048 float32 (4 MiB) is folded while it is still in the cache, and is no new memory to page in;
# one of 64 MiB made the whole forward half as slow again (D = 256). CUDA tiles are as wide as the workspace allows.
PREFERRED_COLUMNS = {"cpu": 2048, "cuda": 2**31}
FEWEST_COLUMNS = 64


class Tiling(NamedTuple):
    """The shape of a tile of logits."""

    rows: int
    cols: int

    def row_tiles(self, rows: int) -> Iterator[slice]:
        return (slice(start, min(start + self.rows, rows)) for start in range(0, rows, self.rows))

    def column_tiles(self, vocabulary: int) -> Iterator[slice]:
        return (slice(start, min(start + self.cols, vocabulary)) for start in range(0, vocabulary, self.cols))


def plan_tiles(
    rows: int,
    vocabulary: int,
    *,
    workspace_bytes: int,
    bytes_per_logit: int,
    bytes_per_column: int,
    preferred_rows: int,
    preferred_columns: int,
) -> Tiling:
    """The largest tile with rows * cols * bytes_per_logit + cols * bytes_per_column <= workspace_bytes and no more than
    preferred_columns; more than preferred_rows only where the vocabulary is narrower than that.

    Columns first give way (down to FEWEST_COLUMNS), then rows. Tiles are evened out, so that none is a narrow rest.
    Raises ValueError where not even one row of FEWEST_COLUMNS columns fits.
    """
    fewest = min(vocabulary, FEWEST_COLUMNS)
    needed = fewest * (bytes_per_logit + bytes_per_column)
    if workspace_bytes < needed:
        raise ValueError(f"workspace_bytes: expected at least {needed} for these inputs, got {workspace_bytes}")

    tile_rows = min(rows, preferred_rows)
    cols = workspace_bytes // (tile_rows * bytes_per_logit + bytes_per_column)
    if cols < fewest:
        cols = fewest
        tile_rows = (workspace_bytes // cols - bytes_per_column) // bytes_per_logit
    cols = min(cols, vocabulary, max(preferred_columns, fewest))
    if cols < vocabulary:
        even = -(-vocabulary // -(-vocabulary // cols))  # as many tiles, of one width
        cols = min(cols, -(-even // FEWEST_COLUMNS) * FEWEST_COLUMNS)
    if cols == vocabulary:
        tile_rows = max(tile_rows, preferred_rows * preferred_columns // vocabulary)
    tile_rows = min(rows, tile_rows, (workspace_bytes // cols - bytes_per_column) // bytes_per_logit)
    even = -(-rows // -(-rows // tile_rows))
    return Tiling(even, cols)


class _Matrices:
    """The GEMMs of one call, in the precision of its inputs, with float32 (float64) results in reused buffers.

    hidden (n, D) and weight (V, D) as given; on CPU, low-precision ones are read through float32 copies.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, workspace_bytes: int, *, backward: bool, weight_grad: bool
    ) -> None:
        self.real = ops.real_dtype(hidden.dtype)
        low = hidden.dtype != self.real
        self.upcasts = low and hidden.device.type == "cpu"
        self.mixed = low and not self.upcasts  # low-precision operands, float32 result
        self.hidden = hidden.to(self.real) if self.upcasts else hidden
        self.weight = weight
        rows, width = hidden.shape
        vocabulary = weight.shape[0]
        size = self.real.itemsize
        device = hidden.device
        separate_dlogits = self.mixed and backward
        separate_grad = low and weight_grad  # grad_weight accumulates in float32, then rounds into the output
        self.tiling = plan_tiles(
            rows,
            vocabulary,
            workspace_bytes=workspace_bytes,
            bytes_per_logit=size + (hidden.dtype.itemsize if separate_dlogits else 0),
            bytes_per_column=width * size * (self.upcasts + separate_grad),
            preferred_rows=PREFERRED_ROWS[device.type],
            preferred_columns=PREFERRED_COLUMNS[device.type],
        )
        tile_rows, cols = self.tiling
        self._tile = torch.empty(tile_rows * cols, dtype=self.real, device=device)
        self._dlogits = torch.empty(tile_rows * cols, dtype=hidden.dtype, device=device) if separate_dlogits else None
        self._weight = torch.empty((cols, width), dtype=self.real, device=device) if self.upcasts else None
        self._grad = torch.empty((cols, width), dtype=self.real, device=device) if separate_grad else None

    def weight_tile(self, columns: slice) -> Tensor:
        """weight[columns] (cols, D) as an operand."""
        tile = self.weight[columns]
        return self._weight[: tile.shape[0]].copy_(tile) if self.upcasts else tile

    def logits_tile(self, rows: slice, weight_tile: Tensor) -> Tensor:
        """hidden[rows] weight_tile^T (rows, cols) in the reused buffer."""
        hidden = self.hidden[rows]
        shape = (hidden.shape[0], weight_tile.shape[0])
        return self.multiply(hidden, weight_tile.T, self._tile[: shape[0] * shape[1]].view(shape), accumulate=False)

    def dlogits_tile(self, logits_tile: Tensor) -> Tensor:
        """Where dlogits of a tile go: its own memory, or a low-precision buffer that the next GEMMs can read."""
        return logits_tile if self._dlogits is None else self._dlogits[: logits_tile.numel()].view(logits_tile.shape)

    def grad_weight_tile(self, grad_weight: Tensor, columns: slice) -> Tensor:
        """Where grad_weight[columns] accumulates."""
        tile = grad_weight[columns]
        return tile if self._grad is None else self._grad[: tile.shape[0]]

    def multiply(self, a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool) -> Tensor:
        """out = a b, or out += a b."""
        if accumulate:
            if self.mixed:
                return torch.addmm(out, a, b, out_dtype=self.real, out=out)
            return out.addmm_(a, b)
        if self.mixed:
            return torch.mm(a, b, out_dtype=self.real, out=out)
        return torch.mm(a, b, out=out)


def _workspace_bytes(workspace_bytes: int, device: torch.device) -> int:
    return workspace_bytes or DEFAULT_WORKSPACE_BYTES[device.type]


# ------------------------------------------------------------------------------------------------------------ op bodies


class _Rows(NamedTuple):
    """The rows that take part, in order: which (None: all), and what belongs to each."""

    index: Tensor | None
    target: Tensor
    inverse: Tensor | None

    @classmethod
    def select(cls, alive: Tensor | None, target: Tensor, inverse: Tensor | None) -> _Rows:
        """Those where `alive` is True. None means that nobody looked (CUDA: looking would wait for the device)."""
        if alive is None or bool(alive.all()):
            return cls(None, target, inverse)
        index = alive.nonzero().view(-1)
        return cls(index, target[index], None if inverse is None else inverse[index])

    def take(self, tensor: Tensor | None, dim: int = 0) -> Tensor | None:
        return tensor if tensor is None or self.index is None else tensor.index_select(dim, self.index)


def _forward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    target: Tensor,
    temperature: Tensor | None,
    temperature_all: float,
    ignore_index: int,
    logit_scale: float,
    softcap: float,
    want_entropy: bool,
    want_lse: bool,
    workspace_bytes: int,
    validate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device, dtype, shape = hidden.device, ops.real_dtype(hidden.dtype), target.shape
    vocabulary = weight.shape[0]
    target = target.contiguous().view(-1)
    if validate:
        check_target_values(target, ignore_index, vocabulary)
    ignored = target == ignore_index
    inverse = inverse_temperature(temperature, ignored, validate)
    rows = _Rows.select(~ignored if device.type == "cpu" else None, target, inverse)

    n = rows.target.numel()
    logprobs = torch.empty(n, dtype=dtype, device=device)
    entropy = torch.empty(n if want_entropy else 0, dtype=dtype, device=device)
    lse = torch.empty(n if want_lse else 0, dtype=dtype, device=device)
    stats = torch.empty((3, n), dtype=torch.float64, device=device)
    if n:
        states = ops.new_states(n, device)
        flat_hidden = rows.take(hidden.reshape(-1, hidden.shape[-1]))  # (n, D)
        matrices = _Matrices(
            flat_hidden, weight, _workspace_bytes(workspace_bytes, device), backward=False, weight_grad=False
        )
        bias = None if bias is None else bias.to(dtype).contiguous()
        transform = ops.Transform(logit_scale, softcap, 1.0 / temperature_all, rows.inverse, bias)
        for columns in matrices.tiling.column_tiles(vocabulary):
            weight_tile = matrices.weight_tile(columns)
            for part in matrices.tiling.row_tiles(n):
                ops.fold_tile(
                    matrices.logits_tile(part, weight_tile),
                    rows.target[part],
                    states[:, part],
                    transform.tile(part, columns),
                    first_column=columns.start,
                    fresh=columns.start == 0,
                )
        ops.finish_rows(
            states,
            rows.target,
            transform,
            ignore_index,
            vocabulary,
            logprobs,
            entropy if want_entropy else None,
            lse if want_lse else None,
            stats,
        )

    def spread(part: Tensor) -> Tensor:  # zeros in the rows that were left out
        if rows.index is None:
            return part
        return part.new_zeros((*part.shape[:-1], target.numel())).index_copy_(-1, rows.index, part)

    return (
        spread(logprobs).view(shape),
        spread(entropy).view(shape) if want_entropy else entropy,
        spread(lse).view(shape) if want_lse else lse,
        spread(stats),
    )


def _backward(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
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
    workspace_bytes: int,
    need_hidden: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    device, dtype = hidden.device, ops.real_dtype(hidden.dtype)
    vocabulary, width = weight.shape
    target = target.contiguous().view(-1)
    grads = tuple(upstream(grad, dtype, target.numel()) for grad in (grad_logprobs, grad_entropy, grad_lse))
    alive = None
    if device.type == "cpu":  # a row whose upstream gradients are all zero adds nothing to any gradient
        alive = torch.zeros_like(target, dtype=torch.bool)
        for grad in grads:
            if grad is not None:
                alive |= grad != 0
        alive &= target != ignore_index
    rows = _Rows.select(alive, target, inverse_temperature(temperature, None, False))
    grads = tuple(rows.take(grad) for grad in grads)
    n = rows.target.numel()

    # Outputs in the dtype of the inputs; what accumulates over tiles does so in float32 (float64).
    grad_weight = torch.empty((vocabulary if need_weight else 0, width), dtype=weight.dtype, device=device)
    grad_bias = torch.zeros(vocabulary if need_bias else 0, dtype=dtype, device=device)
    if not n:
        grad_hidden = torch.zeros(hidden.shape if need_hidden else (0,), dtype=hidden.dtype, device=device)
        return grad_hidden, grad_weight.zero_(), grad_bias.to(weight.dtype)
    grad_rows = torch.empty((n if need_hidden else 0, width), dtype=dtype, device=device)

    flat_hidden = rows.take(hidden.reshape(-1, width))  # (n, D)
    matrices = _Matrices(
        flat_hidden, weight, _workspace_bytes(workspace_bytes, device), backward=True, weight_grad=need_weight
    )
    stats = rows.take(stats, dim=1)
    bias = None if bias is None else bias.to(dtype).contiguous()
    transform = ops.Transform(logit_scale, softcap, 1.0 / temperature_all, rows.inverse, bias)
    for columns in matrices.tiling.column_tiles(vocabulary):
        weight_tile = matrices.weight_tile(columns)
        for part in matrices.tiling.row_tiles(n):
            tile = matrices.logits_tile(part, weight_tile)
            dlogits = matrices.dlogits_tile(tile)
            ops.grad_tile(
                tile,
                rows.target[part],
                stats[:, part],
                transform.tile(part, columns),
                ignore_index,
                tuple(None if grad is None else grad[part] for grad in grads),
                dlogits,
                first_column=columns.start,
            )
            if need_hidden:
                matrices.multiply(dlogits, weight_tile, grad_rows[part], accumulate=columns.start > 0)
            if need_weight:
                out = matrices.grad_weight_tile(grad_weight, columns)
                matrices.multiply(dlogits.T, matrices.hidden[part], out, accumulate=part.start > 0)
            if need_bias:
                grad_bias[columns] += dlogits.sum(0, dtype=dtype)
        if need_weight and grad_weight.dtype != dtype:
            grad_weight[columns].copy_(matrices.grad_weight_tile(grad_weight, columns))

    if not need_hidden:
        grad_hidden = grad_rows.view(0).to(hidden.dtype)
    elif rows.index is None:
        grad_hidden = grad_rows.to(hidden.dtype).view(hidden.shape)
    else:
        grad_hidden = torch.zeros((target.numel(), width), dtype=hidden.dtype, device=device)
        grad_hidden = grad_hidden.index_copy_(0, rows.index, grad_rows.to(hidden.dtype)).view(hidden.shape)
    return grad_hidden, grad_weight, grad_bias.to(weight.dtype)


# ------------------------------------------------------------------------------------------------- shapes and gradients


def _fake_forward(hidden, weight, bias, target, *rest):
    want_entropy, want_lse = rest[5], rest[6]
    dtype, shape = ops.real_dtype(hidden.dtype), target.shape
    return (
        hidden.new_empty(shape, dtype=dtype),
        hidden.new_empty(shape if want_entropy else (0,), dtype=dtype),
        hidden.new_empty(shape if want_lse else (0,), dtype=dtype),
        hidden.new_empty((3, target.numel()), dtype=torch.float64),
    )


def _fake_backward(hidden, weight, *rest):
    need_hidden, need_weight, need_bias = rest[-3:]
    return (
        hidden.new_empty(hidden.shape if need_hidden else (0,)),
        weight.new_empty((weight.shape[0] if need_weight else 0, weight.shape[1])),
        weight.new_empty(weight.shape[0] if need_bias else 0),
    )


def _setup_context(ctx, inputs, output) -> None:
    hidden, weight, bias, target, temperature, *scalars = inputs
    temperature_all, ignore_index, logit_scale, softcap, want_entropy, want_lse, workspace_bytes, _ = scalars
    _, entropy, lse, stats = output
    ctx.set_materialize_grads(False)
    mark_unwanted(ctx, want_entropy, entropy, want_lse, lse, stats)
    ctx.save_for_backward(hidden, weight, bias, target, temperature, stats)
    ctx.scalars = (temperature_all, ignore_index, logit_scale, softcap, workspace_bytes)


def _gradient(ctx, grad_logprobs, grad_entropy, grad_lse, _):
    nothing = (None,) * 13
    grads = upstream_gradients(ctx, grad_logprobs, grad_entropy, grad_lse)
    needed = tuple(ctx.needs_input_grad[:3])
    if grads is None or not any(needed):
        return nothing
    gradients = BACKWARD(*ctx.saved_tensors, *grads, *ctx.scalars, *needed)
    return (*(grad if need else None for grad, need in zip(gradients, needed, strict=True)), *nothing[3:])


_SCALARS = "float temperature_all, int ignore_index, float logit_scale, float softcap"

FORWARD = ops.define_op(
    f"hidden_forward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, {_SCALARS}, "
    "bool want_entropy, bool want_lse, int workspace_bytes, bool validate) "
    "-> (Tensor logprobs, Tensor entropy, Tensor lse, Tensor stats)",
    _forward,
    _fake_forward,
    _gradient,
    _setup_context,
)
BACKWARD = ops.define_op(
    "hidden_backward(Tensor hidden, Tensor weight, Tensor? bias, Tensor target, Tensor? temperature, Tensor stats, "
    f"Tensor? grad_logprobs, Tensor? grad_entropy, Tensor? grad_lse, {_SCALARS}, int workspace_bytes, "
    "bool need_hidden, bool need_weight, bool need_bias) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)",
    _backward,
    _fake_backward,
    ops.refuse_double_backward,
)


# ------------------------------------------------------------------------------------------------------ public function


def _as_autocast_would(tensor: Tensor | None, device_type: str) -> Tensor | None:
    """What torch.nn.functional.linear makes of an operand under autocast: cast, except float64."""
    if tensor is None or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))


def linear_logprobs_and_entropy(
    hidden: Any,
    weight: Any,
    target: Any,
    bias: Any = None,
    *,
    temperature: float | Tensor = 1.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    ignore_index: int = -100,
    return_entropy: bool = True,
    return_lse: bool = False,
    workspace_bytes: int | None = None,
    validate: bool | None = None,
) -> tuple[Tensor, Tensor | None] | tuple[Tensor, Tensor | None, Tensor]:
    r"""Log-probability of each target token and entropy of each row of logits that a linear head would give.

    .. math::
        z = \mathrm{softcap} \cdot \tanh(\mathrm{logit\_scale} \cdot (h W^\top + b) / \mathrm{softcap}) / T, \quad
        p = \mathrm{softmax}(z), \quad
        \mathrm{logprob} = \log p_\mathrm{target}, \quad H = -\sum_j p_j \log p_j

    The logits are made tile by tile in `workspace_bytes` of memory, forward and backward. Every output is
    differentiable with respect to `hidden`, `weight` and `bias`, once (double backward raises); what needs no gradient
    costs nothing: a frozen weight saves a third of the backward pass, rows without a gradient are (on CPU) left out.

    Args:
        hidden: (..., D), float32, bfloat16, float16 or float64, any strides.
        weight: (V, D), of the same dtype and device, any strides; V >= 1.
        target: (...), int64 (int32 is cast), token indices in [0, V), or `ignore_index`.
        bias: None, or (V,) of the same dtype and device.
        temperature: T, a positive finite number, or a floating point tensor like `target` with one per row.
        logit_scale: factor on the logits before the cap.
        softcap: None, or the positive bound that tanh holds the logits to (Gemma's final_logit_softcapping).
        ignore_index: rows with this target give 0 in every output and no gradient, whatever they hold.
        return_entropy: False gives None for the entropy.
        return_lse: True appends log sum_j exp(z_j).
        workspace_bytes: most memory for tiles, whatever N and V are; None: 32 MiB on CPU, 512 MiB on CUDA. Besides it a
            call takes O(N D). Results do not depend on it beyond the rounding of the GEMM.
        validate: whether to look at the values of `target` and a tensor `temperature` and raise for bad ones. None: on
            CPU yes, on CUDA no, where it would wait for the device; unvalidated bad rows are NaN.

    Under autocast the operands are cast as torch.nn.functional.linear would; the outputs stay float32. float32 GEMMs on
    CUDA follow torch's own TF32 setting.

    Returns:
        (logprobs, entropy), or (logprobs, entropy, lse): tensors of target's shape in nats, float32 (float64 for
        float64 inputs).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape, device or value that does not fit; a `workspace_bytes` in which no tile fits.

    Source: arXiv 2510.02249 for the use; csrc/softmax_state.h for the recurrence.

    Example:
        >>> import torch
        >>> from cer_ext import linear_logprobs_and_entropy
        >>> hidden, weight = torch.eye(2), torch.tensor([[0.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> logprobs, entropy = linear_logprobs_and_entropy(hidden, weight, torch.tensor([0, 1]))
        >>> logprobs
        tensor([-1.0986, -0.2395])
        >>> entropy
        tensor([1.0986, 0.6656])
    """
    hidden = arguments.as_tensor("hidden", hidden)
    weight = arguments.as_tensor("weight", weight)
    bias = None if bias is None else arguments.as_tensor("bias", bias)
    arguments.check_floating("hidden", hidden)
    arguments.check_floating("weight", weight)
    if bias is not None:
        arguments.check_floating("bias", bias)
    device = hidden.device
    if torch.is_autocast_enabled(device.type):
        hidden, weight, bias = (_as_autocast_would(x, device.type) for x in (hidden, weight, bias))
    if weight.dtype != hidden.dtype:
        raise TypeError(f"weight: expected {hidden.dtype} like hidden, got {weight.dtype}")
    arguments.check_same_device("weight", weight, "hidden", hidden)
    full_shape = hidden.shape
    if not full_shape:
        raise ValueError("hidden: expected shape (..., D), got ()")
    if weight.dim() != 2 or weight.shape[1] != full_shape[-1] or not weight.shape[0]:
        raise ValueError(
            f"weight: expected shape (V, D) with V >= 1 and D = {full_shape[-1]} of hidden {tuple(full_shape)}, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None:
        if bias.dtype != hidden.dtype:
            raise TypeError(f"bias: expected {hidden.dtype} like hidden, got {bias.dtype}")
        if bias.shape != weight.shape[:1]:
            raise ValueError(f"bias: expected shape (V,) = {tuple(weight.shape[:1])}, got {tuple(bias.shape)}")
        arguments.check_same_device("bias", bias, "hidden", hidden)
    shape = full_shape[:-1]
    target = arguments.check_target(target, shape, "hidden", hidden)
    per_row, temperature_all = arguments.check_temperature(temperature, shape, "hidden", hidden)
    workspace = 0  # the device's default
    if workspace_bytes is not None:
        workspace = arguments.check_integer("workspace_bytes", workspace_bytes)
        if workspace <= 0:
            raise ValueError(f"workspace_bytes: expected None or a positive number of bytes, got {workspace_bytes}")
    values = (
        hidden,
        weight,
        bias,
        target,
        per_row,
        temperature_all,
        arguments.check_integer("ignore_index", ignore_index),
        arguments.check_logit_scale(logit_scale),
        arguments.check_softcap(softcap),
        arguments.check_flag("return_entropy", return_entropy),
        arguments.check_flag("return_lse", return_lse),
        workspace,
        arguments.check_validate(validate, device),
    )
    run = _forward if ops.may_skip_dispatcher(hidden, weight, bias, target, per_row) else FORWARD
    logprobs, entropy, lse, _ = run(*values)
    if not return_entropy:
        entropy = None
    return (logprobs, entropy, lse) if return_lse else (logprobs, entropy)
