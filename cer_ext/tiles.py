"""The matrix of logits of a head cut into tiles, and the products that make them and use their gradients.

In: hidden (n, D), weight (V, D), a number of bytes. Out: tiles of hidden weight^T in reused buffers, in float32
(float64 for float64 inputs), and products of their gradients with the weight and the hidden states.

Logits are float32 accumulators in every case. On CUDA the GEMM of bfloat16 and float16 runs on the inputs with float32
output. On CPU torch has no such GEMM: bfloat16 logits are made by one of our own (ops.head_tile) where the processor
multiplies bfloat16, and everything else in low precision is multiplied as float32 copies: float16, a weight whose rows
are not contiguous, and the products of dlogits, which bfloat16 would round. float32 GEMMs follow torch's own setting
(torch.backends.cuda.matmul.allow_tf32 and its successors): with TF32 on, logits carry its rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from cer_ext import ops

# On CUDA such that with the gradient of 8192 x 4096 hidden states (128 MiB in float32, 64 in bfloat16) a call stays
# below 512 MiB.
DEFAULT_WORKSPACE_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
# Rows of a tile where memory allows it: enough that a GEMM of (rows, D) x (D, cols) is limited by arithmetic, few
# enough that there are still many columns.
PREFERRED_ROWS = {"cpu": 512, "cuda": 4096}
# On CPU a tile of 512 x 2048 float32 (4 MiB) is folded while it is still in the cache, and is no new memory to page in;
# one of 64 MiB made the whole forward half as slow again (D = 256). CUDA tiles are as wide as the workspace allows.
PREFERRED_COLUMNS = {"cpu": 2048, "cuda": 2**31}
FEWEST_COLUMNS = 64
# Where whole rows are kept, a tile is what one GEMM makes: on CUDA 416 rows of it are 13 MiB, less than the L2.
WHOLE_ROW_WORKSPACE_BYTES = {"cpu": 256 * 2**20, "cuda": 256 * 2**20}
WHOLE_ROW_COLUMNS = {"cpu": 2048, "cuda": 8192}


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


def even_columns(vocabulary: int, most: int) -> int:
    """The width of column tiles of at most `most` that are about as wide: a multiple of FEWEST_COLUMNS where there are
    several, so that every row of a tile begins at an aligned address. `most` is such a multiple."""
    if vocabulary <= most:
        return vocabulary
    even = -(-vocabulary // -(-vocabulary // most))
    return -(-even // FEWEST_COLUMNS) * FEWEST_COLUMNS


def plan_whole_rows(
    rows: int,
    vocabulary: int,
    *,
    workspace_bytes: int,
    bytes_per_logit: int,
    bytes_per_tile_logit: int,
    bytes_per_column: int,
    columns: int,
) -> Tiling:
    """The most rows whose logits fit whole, in column tiles of one width of at most `columns`:
    rows * (vocabulary * bytes_per_logit + cols * bytes_per_tile_logit) + cols * bytes_per_column <= workspace_bytes.

    Row tiles are evened out, in multiples of 16 rows where there are as many. Raises ValueError where no row fits.
    """
    cols = even_columns(vocabulary, columns)
    per_row = vocabulary * bytes_per_logit + cols * bytes_per_tile_logit
    needed = per_row + cols * bytes_per_column
    if workspace_bytes < needed:
        raise ValueError(f"workspace_bytes: expected at least {needed} for these inputs, got {workspace_bytes}")
    most = (workspace_bytes - cols * bytes_per_column) // per_row
    unit = 16 if most >= 16 else 1
    even = -(-rows // -(-rows // (most - most % unit)))
    return Tiling(min(rows, -(-even // unit) * unit), cols)


class Rows(NamedTuple):
    """The rows that take part, in order: which (None: all), and what belongs to each."""

    index: Tensor | None
    target: Tensor
    inverse: Tensor | None

    @classmethod
    def select(cls, alive: Tensor | None, target: Tensor, inverse: Tensor | None) -> Rows:
        """Those where `alive` is True. None means that nobody looked (CUDA: looking would wait for the device)."""
        if alive is None or bool(alive.all()):
            return cls(None, target, inverse)
        index = alive.nonzero().view(-1)
        return cls(index, target[index], None if inverse is None else inverse[index])

    def take(self, tensor: Tensor | None, dim: int = 0) -> Tensor | None:
        return tensor if tensor is None or self.index is None else tensor.index_select(dim, self.index)

    def span(self, part: slice, total: int) -> tuple[slice, slice | Tensor]:
        """The slice of all `total` rows that goes with `part` of the chosen ones, and where in it those are.

        The spans of consecutive parts follow one another without a gap; rows left out belong to the span before them.
        """
        if self.index is None:
            return part, slice(None)
        start = 0 if part.start == 0 else int(self.index[part.start])
        stop = total if part.stop == self.index.numel() else int(self.index[part.stop])
        return slice(start, stop), self.index[part] - start


def multiplies_bfloat16(hidden: Tensor, weight: Tensor) -> bool:
    """Whether ops.head_tile makes their logits: bfloat16, a CPU that multiplies it, a weight with contiguous rows."""
    on_cpu = hidden.device.type == "cpu" and hidden.dtype == torch.bfloat16
    return on_cpu and weight.stride(1) == 1 and ops.has_head_tile()


class Matrices:
    """The GEMMs of one call, in the precision of its inputs, with float32 (float64) results in reused buffers.

    hidden (n, D) and weight (V, D) as given; on CPU, torch's products read low-precision ones through float32 copies,
    made where one first needs them. One tile of logits is there at a time, or with `whole_rows` those of all columns of
    the same rows.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        workspace_bytes: int,  # 0: the device's default
        *,
        backward: bool,
        weight_grad: bool,
        whole_rows: bool = False,
    ) -> None:
        self.real = ops.real_dtype(hidden.dtype)
        low = hidden.dtype != self.real
        self.upcasts = low and hidden.device.type == "cpu"
        self.mixed = low and not self.upcasts  # low-precision operands, float32 result
        self._given = hidden
        self.weight = weight
        rows, width = hidden.shape
        own_product = self.upcasts and multiplies_bfloat16(hidden, weight)
        copies_weight = self.upcasts and (backward or not own_product)
        vocabulary = weight.shape[0]
        size = self.real.itemsize
        device = hidden.device
        separate_dlogits = self.mixed and backward
        separate_grad = low and weight_grad  # grad_weight accumulates in float32, then rounds into the output
        low_size = hidden.dtype.itemsize if separate_dlogits else 0
        bytes_per_column = width * size * (copies_weight + separate_grad)
        if whole_rows:
            self.tiling = plan_whole_rows(
                rows,
                vocabulary,
                workspace_bytes=workspace_bytes or WHOLE_ROW_WORKSPACE_BYTES[device.type],
                bytes_per_logit=size,
                bytes_per_tile_logit=low_size,
                bytes_per_column=bytes_per_column,
                columns=WHOLE_ROW_COLUMNS[device.type],
            )
        else:
            preferred_columns = PREFERRED_COLUMNS[device.type]
            if own_product and not copies_weight:  # nothing but logits to keep in the cache: few rows may be longer
                preferred_columns *= max(1, PREFERRED_ROWS[device.type] // rows)
            self.tiling = plan_tiles(
                rows,
                vocabulary,
                workspace_bytes=workspace_bytes or DEFAULT_WORKSPACE_BYTES[device.type],
                bytes_per_logit=size + low_size,
                bytes_per_column=bytes_per_column,
                preferred_rows=PREFERRED_ROWS[device.type],
                preferred_columns=preferred_columns,
            )
        tile_rows, cols = self.tiling
        self._whole_rows = whole_rows
        self._tile = torch.empty(tile_rows * (vocabulary if whole_rows else cols), dtype=self.real, device=device)
        self._dlogits = torch.empty(tile_rows * cols, dtype=hidden.dtype, device=device) if separate_dlogits else None
        self._weight = torch.empty((cols, width), dtype=self.real, device=device) if copies_weight else None
        self._converted: slice | None = None  # the columns whose copy is in _weight
        self._packed = self._pack() if own_product else None
        self._grad = torch.empty((cols, width), dtype=self.real, device=device) if separate_grad else None

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
        """weight[columns] (cols, D) as an operand of torch's products; asked again for the same columns, no work."""
        tile = self.weight[columns]
        if not self.upcasts:
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
        cols = columns.stop - columns.start
        start = rows * columns.start if self._whole_rows else 0
        return self._tile[start : start + rows * cols].view(rows, cols)

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
