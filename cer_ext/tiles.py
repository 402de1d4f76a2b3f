"""The tiles of a head's logits: the products that make them and use their gradients. tile_plan.py cuts them.

In: hidden (n, D), weight (V, D), a number of bytes. Out: tiles of hidden weight^T in reused buffers, in float32
(float64 for float64 inputs), and products of their gradients with the weight and the hidden states.

Logits are float32 accumulators in every case. On CUDA the GEMM of bfloat16 and float16 runs on the inputs with float32
output. On CPU torch has no such GEMM. Where the processor multiplies bfloat16, bfloat16 logits are made by one of our
own (ops.head_tile); dlogits are rounded to bfloat16, as on CUDA, and multiplied by torch's bfloat16 GEMM, which sums in
float32 and rounds its result. For a trained weight dlogits of all rows are kept where memory allows it, so that a
product is one sum and is rounded once; else each tile's product is rounded before it is added in float32. What that
costs is held below 3e-3 of the gradients' norm, and below what peers lose that round the logits too
(tests/cer_ext/test_head_tile.py). Everything else in low precision is multiplied as float32 copies: float16, a weight
whose rows are not contiguous, any other processor. float32 GEMMs follow torch's own setting
(torch.backends.cuda.matmul.allow_tf32 and its successors): with TF32 on, logits carry its rounding.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from cer_ext import ops
from cer_ext.tile_plan import LOW_ROW_UNIT, ROW_STRIDE_UNIT, Extras, Tiling, keeps_dlogits, plan_head, row_stride


def multiplies_bfloat16(hidden: Tensor, weight: Tensor) -> bool:
    """Whether ops.head_tile makes their logits: bfloat16, a CPU that multiplies it, a weight with contiguous rows."""
    on_cpu = hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16
    return on_cpu and weight.stride(1) == 1 and ops.has_head_tile()


def keeps(hidden: Tensor, vocabulary: int, workspace_bytes: int, whole_rows: bool) -> bool:
    """Whether dlogits of all of hidden (n, D) are kept in bfloat16, for a trained weight that is multiplied in it."""
    rows, width = hidden.shape
    return keeps_dlogits(rows, vocabulary, width, workspace_bytes=workspace_bytes, whole_rows=whole_rows)


class Plan(NamedTuple):
    """What a call multiplies how, in which tiles."""

    tiling: Tiling
    extras: Extras
    own_product: bool  # ops.head_tile makes the logits
    upcasts: bool  # torch's products read low-precision operands through float32 copies
    whole_rows: bool

    @classmethod
    def of(
        cls,
        hidden: Tensor,
        weight: Tensor,
        workspace_bytes: int,  # 0: the device's default
        *,
        backward: bool,
        weight_grad: bool,  # with whole rows in float32 it accumulates over row tiles, not in the workspace
        whole_rows: bool = False,
        vocabulary: int | None = None,
        row_unit: int = 1,
    ) -> Plan:
        """`vocabulary`: of the largest shard, where ranks must have the same tiles; None: of this weight."""
        low = hidden.dtype != ops.real_dtype(hidden.dtype)
        own_product = low and multiplies_bfloat16(hidden, weight)
        upcasts = low and hidden.device.type == "cpu" and not own_product
        vocabulary = weight.shape[0] if vocabulary is None else vocabulary
        kept = own_product and weight_grad and keeps(hidden, vocabulary, workspace_bytes, whole_rows)
        extras = Extras(
            weight_copy=upcasts,
            low_dlogits=low and not upcasts and backward and not kept,
            # It accumulates in float32, then rounds into the output.
            weight_grad=low and weight_grad and not kept and not whole_rows,
            low_product=own_product and backward and not kept,
            weight_sums=weight_grad and whole_rows and not kept,
            kept_dlogits=kept,
        )
        tiling = plan_head(
            hidden,
            vocabulary,
            device=hidden.device.type,
            real=ops.real_dtype(hidden.dtype),
            workspace_bytes=workspace_bytes,
            extras=extras,
            whole_rows=whole_rows,
            long_tiles=own_product and not backward,
            row_unit=row_unit,
        )
        return cls(tiling, extras, own_product, upcasts, whole_rows)


class Matrices:
    """The GEMMs of one call, in the precision of its inputs, with float32 (float64) results in reused buffers.

    hidden (n, D) and weight (V, D) as given; on CPU, torch's products read low-precision ones through float32 copies,
    made where one first needs them. One tile of logits is there at a time, or where the plan has whole rows those of
    all columns of the same rows.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, plan: Plan) -> None:
        self.real = ops.real_dtype(hidden.dtype)
        self.upcasts = plan.upcasts
        self.mixed = hidden.dtype != self.real and not self.upcasts  # low-precision operands, float32 result
        self.tiling = plan.tiling
        self.weight = weight
        self.rows = hidden.shape[0]
        self._given = hidden
        self._whole_rows = plan.whole_rows
        (vocabulary, width), device, extras = weight.shape, hidden.device, plan.extras
        tile_rows, cols = plan.tiling
        self._stride_unit = ROW_STRIDE_UNIT[device.type]
        stride = row_stride(cols, self._stride_unit)
        whole_stride = row_stride(vocabulary, self._stride_unit) if plan.whole_rows else stride
        self._tile = torch.empty(tile_rows * whole_stride, dtype=self.real, device=device)
        self._low_unit = LOW_ROW_UNIT if device.type == "cpu" else self._stride_unit
        size = tile_rows * row_stride(cols, self._low_unit) if extras.low_dlogits else 0
        self._dlogits = torch.empty(size, dtype=hidden.dtype, device=device) if size else None
        self._weight = torch.empty((cols, width), dtype=self.real, device=device) if extras.weight_copy else None
        self._converted: slice | None = None  # the columns whose copy is in _weight
        self._packed = self._pack() if plan.own_product else None
        self._grad = torch.empty((cols, width), dtype=self.real, device=device) if extras.weight_grad else None
        self.keeps_dlogits = extras.kept_dlogits
        if extras.kept_dlogits:
            widest = vocabulary if plan.whole_rows else cols
            self._kept = torch.empty((self.rows, row_stride(widest, LOW_ROW_UNIT)), dtype=hidden.dtype)
            self._kept[:, widest:] = 0.0  # behind a narrower tile is what its rows held before
        else:
            self._kept = None
        # A product in low precision, before it is added: to grad_hidden, or of a tile to grad_weight.
        size = max(cols, tile_rows) if extras.low_product else self.rows if extras.kept_dlogits else 0
        self._product = torch.empty(size * width, dtype=hidden.dtype) if size else None

    def _pack(self) -> Tensor:
        """hidden as ops.head_tile reads it, each row tile packed by itself: (n, D rounded up to even)."""
        rows, width = self._given.shape
        hidden = self._given if self._given.stride(1) == 1 else self._given.contiguous()
        packed = torch.empty((rows, width + width % 2), dtype=hidden.dtype)
        for part in self.tiling.row_tiles(rows):
            ops.pack_hidden(hidden[part], packed[part])
        return packed

    @functools.cached_property
    def hidden(self) -> Tensor:
        """hidden (n, D) as an operand of torch's products."""
        return self._given.to(self.real) if self.upcasts else self._given

    def weight_tile(self, columns: slice) -> Tensor:
        """weight[columns] (cols, D) as an operand of torch's products. The last copy is kept for reuse."""
        tile = self.weight[columns]
        if self._weight is None:
            return tile
        copy = self._weight[: tile.shape[0]]
        if columns != self._converted:
            copy.copy_(tile)
            self._converted = columns
        return copy

    def logits_tile(self, rows: slice, columns: slice) -> Tensor:
        """hidden[rows] weight[columns]^T (rows, cols) in the reused buffer. `rows` is one of the tiling's row tiles."""
        out = self.kept_tile(rows.stop - rows.start, columns)
        if self._packed is None:
            return self.multiply(self.hidden[rows], self.weight_tile(columns).T, out, accumulate=False)
        ops.head_tile(self._packed[rows], self.weight[columns], out)
        return out

    def kept_tile(self, rows: int, columns: slice) -> Tensor:
        """Where the logits of the current `rows` rows lie, (rows, cols)."""
        start = rows * columns.start if self._whole_rows else 0
        cols = columns.stop - columns.start
        stride = row_stride(cols, self._stride_unit)
        return self._tile[start : start + rows * stride].view(rows, stride)[:, :cols]

    def dlogits_tile(self, logits_tile: Tensor) -> Tensor:
        """Where dlogits of a tile go: its own memory, or a low-precision buffer that the next GEMMs can read."""
        if self._dlogits is None:
            return logits_tile
        rows, cols = logits_tile.shape
        stride = row_stride(cols, self._low_unit)
        tile = self._dlogits[: rows * stride].view(rows, stride)
        if stride > cols and self._low_unit == LOW_ROW_UNIT:
            tile[:, cols:] = 0.0
        return tile[:, :cols]

    def kept_dlogits(self, rows: slice, columns: slice) -> Tensor:
        """Where dlogits of some of all rows are kept (keeps_dlogits), (rows, cols): those of all columns of a plan of
        whole rows, those of a tile's columns else."""
        assert self._kept is not None
        return self._kept[rows, columns if self._whole_rows else slice(0, columns.stop - columns.start)]

    def grad_weight_tile(self, grad_weight: Tensor, columns: slice) -> Tensor:
        """Where grad_weight[columns] accumulates."""
        tile = grad_weight[columns]
        return tile if self._grad is None else self._grad[: tile.shape[0]]

    def multiply(self, a: Tensor, b: Tensor, out: Tensor, *, accumulate: bool) -> Tensor:
        """out = a b, or out += a b. Under autocast too in the precision stated above, which autocast would round."""
        if torch.is_autocast_enabled(out.device.type):
            with torch.autocast(out.device.type, enabled=False):
                return self._multiply(a, b, out, accumulate)
        return self._multiply(a, b, out, accumulate)

    def _multiply(self, a: Tensor, b: Tensor, out: Tensor, accumulate: bool) -> Tensor:
        if a.dtype == out.dtype:
            return out.addmm_(a, b) if accumulate else torch.mm(a, b, out=out)
        if self._product is None:
            if accumulate:
                return torch.addmm(out, a, b, out_dtype=self.real, out=out)
            return torch.mm(a, b, out_dtype=self.real, out=out)
        product = torch.mm(a, b, out=self._product[: out.numel()].view(out.shape))
        return out.add_(product) if accumulate else out.copy_(product)
