"""Into which tiles the matrix of logits of a head is cut.

In: its rows and columns, what a logit and a column take, a number of bytes. Out: the shape of a tile, or a ValueError
where not even the smallest fits. Arithmetic only: the products are made in tiles.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# On CUDA such that with the gradient of 8192 x 4096 hidden states (128 MiB in float32, 64 in bfloat16) a call stays
# below 512 MiB.
DEFAULT_WORKSPACE_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}
# Rows of a tile where memory allows it: enough that a GEMM of (rows, D) x (D, cols) is limited by arithmetic, few
# enough that there are still many columns.
PREFERRED_ROWS = {"cpu": 512, "cuda": 4096}
# On CPU a tile of 512 x 2048 float32 (4 MiB) is folded while it is still in the cache, and is no new memory to page in;
# one of 64 MiB made the whole forward half as slow again (D = 256). CUDA tiles are as wide as the workspace allows.
PREFERRED_COLUMNS = {"cpu": 2048, "cuda": 2**31}
# Where a logit costs little (D <= 128, bfloat16 forward), the tile's way through the caches is most of it: 512 x 512
# (1 MiB) stays in the second level. 512 x 64 x 151936 on one thread: product and fold 61 ms instead of 77.
NARROW_WIDTH, NARROW_COLUMNS = 128, 512
FEWEST_COLUMNS = 64
# The rows of a tile begin a multiple of this many elements apart: cuBLAS multiplies 16-bit operands whose rows are not
# aligned to 16 bytes by slower kernels, and an odd vocabulary has a last tile of any width. On a CPU rows follow one
# another, but for dlogits in 16 bits: oneDNN's bfloat16 products take the left operand in steps of 32 columns and
# multiply what lies behind the last one by zeros, so that zeros must be there and not the next row, whose NaN would be
# in both.
ROW_STRIDE_UNIT = {"cpu": 1, "cuda": 16}
LOW_ROW_UNIT = 32
# Where whole rows are kept, a tile is what one GEMM makes. cuBLAS cuts it into blocks of 128 rows and gives every
# multiprocessor one at a time: 416 rows pay for 512. 512 rows of 151936 and a tile of dlogits are 313 MiB; a tile of
# 132 x 128 columns fills the 132 multiprocessors of an H100 in whole waves (bench/gpu/gemm_model.py: 2.5x the bare GEMM
# for a frozen head, where 416 x 8000 takes 3.2x).
WHOLE_ROW_WORKSPACE_BYTES = {"cpu": 256 * 2**20, "cuda": 320 * 2**20}
# With a trained weight each tile of rows also reads and writes the float32 sums of its gradient, 4 V D bytes (2.3 GiB
# at D = 4096): beside those 1024 rows are worth their memory (the same model: 3.5x instead of 4.7x on an H100).
TRAINED_WORKSPACE_BYTES = {"cpu": 256 * 2**20, "cuda": 640 * 2**20}
WHOLE_ROW_COLUMNS = {"cpu": 2048, "cuda": 132 * 128}
WHOLE_ROW_UNIT = {"cpu": 16, "cuda": 128}


def row_stride(cols: int, unit: int) -> int:
    """Elements from one row of a tile of `cols` columns to the next: the least multiple of `unit`."""
    return -(-cols // unit) * unit


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
    stride_unit: int = 1,
) -> Tiling:
    """The largest tile with rows * cols * bytes_per_logit + cols * bytes_per_column <= workspace_bytes, cols rounded up
    to a multiple of `stride_unit` (which divides FEWEST_COLUMNS), and no more than preferred_columns; more than
    preferred_rows only where the vocabulary is narrower than that.

    Columns are reduced first (down to FEWEST_COLUMNS), then rows. Tiles are made about equal, so that none is narrow.
    Raises ValueError where not even one row of FEWEST_COLUMNS columns fits.
    """
    narrowest = min(vocabulary, FEWEST_COLUMNS)
    fewest = row_stride(narrowest, stride_unit)
    needed = fewest * (bytes_per_logit + bytes_per_column)
    if workspace_bytes < needed:
        raise ValueError(f"workspace_bytes: expected at least {needed} for these inputs, got {workspace_bytes}")

    tile_rows = min(rows, preferred_rows)
    cols = workspace_bytes // (tile_rows * bytes_per_logit + bytes_per_column)
    if cols < fewest:
        cols = fewest
        tile_rows = (workspace_bytes // cols - bytes_per_column) // bytes_per_logit
    if cols < row_stride(vocabulary, stride_unit):
        cols -= cols % stride_unit
    cols = min(cols, vocabulary, max(preferred_columns, narrowest))
    if cols < vocabulary:
        even = -(-vocabulary // -(-vocabulary // cols))  # as many tiles, of one width
        cols = min(cols, -(-even // FEWEST_COLUMNS) * FEWEST_COLUMNS)
    if cols == vocabulary:
        tile_rows = max(tile_rows, preferred_rows * preferred_columns // vocabulary)
    stride = row_stride(cols, stride_unit)
    tile_rows = min(rows, tile_rows, (workspace_bytes // stride - bytes_per_column) // bytes_per_logit)
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
    unit: int,
    row_unit: int = 1,
    stride_unit: int = 1,
) -> Tiling:
    """The most rows whose logits fit whole, in column tiles of one width of at most `columns`:
    rows * (vocabulary * bytes_per_logit + cols * bytes_per_tile_logit) + cols * bytes_per_column <= workspace_bytes,
    vocabulary and cols rounded up to a multiple of `stride_unit`.

    Row tiles are evened out, in multiples of `unit` rows where there are as many (of 16 where not), and always of
    `row_unit`, which divides `rows`. Raises ValueError where not even that many rows fit.
    """
    cols = even_columns(vocabulary, columns)
    stride = row_stride(cols, stride_unit)
    per_row = row_stride(vocabulary, stride_unit) * bytes_per_logit + stride * bytes_per_tile_logit
    needed = row_unit * per_row + cols * bytes_per_column
    if workspace_bytes < needed:
        raise ValueError(f"workspace_bytes: expected at least {needed} for these inputs, got {workspace_bytes}")
    most = (workspace_bytes - cols * bytes_per_column) // per_row
    unit = next(rows for rows in (math.lcm(most_even, row_unit) for most_even in (unit, 16, 1)) if rows <= most)
    even = -(-rows // -(-rows // (most - most % unit)))
    return Tiling(min(rows, -(-even // unit) * unit), cols)


class Extras(NamedTuple):
    """What a call keeps beside the tile of logits itself."""

    weight_copy: bool = False  # of the columns of a tile, in float32
    low_dlogits: bool = False  # dlogits of a tile in the dtype of the inputs
    weight_grad: bool = False  # of the columns of a tile, in float32
    low_product: bool = False  # grad_weight of the columns of a tile in the dtype of the inputs
    weight_sums: bool = False  # of all columns, in float32, outside of the workspace
    kept_dlogits: bool = False  # of all rows, not of a tile's alone, in the dtype of the inputs


def kept_dlogits_bytes(rows: int, vocabulary: int, width: int) -> int:
    """What dlogits of all `rows` in 16 bits take of the workspace: all beyond the float32 sums that they spare."""
    return max(0, 2 * rows * vocabulary - 4 * vocabulary * width)


def keeps_dlogits(rows: int, vocabulary: int, width: int, *, workspace_bytes: int, whole_rows: bool) -> bool:
    """Whether dlogits of all `rows` are kept in 16 bits, so that grad_weight is one product and no float32 sum.

    Of whole rows: where float32 logits of 128 rows fit beside them. Of a tile's columns: where 256 columns of them take
    no more than half of the workspace that holds them. `workspace_bytes` 0: the CPU's default.
    """
    if whole_rows:
        taken = kept_dlogits_bytes(rows, vocabulary, width)
        return not taken or taken + 4 * 128 * vocabulary <= (workspace_bytes or WHOLE_ROW_WORKSPACE_BYTES["cpu"])
    return 2 * rows * 256 <= (workspace_bytes or DEFAULT_WORKSPACE_BYTES["cpu"]) // 2


def plan_head(
    hidden: Tensor,
    vocabulary: int,
    *,
    device: str,
    real: torch.dtype,
    workspace_bytes: int,
    extras: Extras,
    whole_rows: bool,
    long_tiles: bool,
    row_unit: int = 1,
) -> Tiling:
    """The tiles of the logits of hidden (n, D) over `vocabulary` columns on a device, "cpu" or "cuda".

    `workspace_bytes` 0 is the device's default. `long_tiles`: nothing but logits has to stay in the cache, so few rows
    may be longer.
    """
    rows, width = hidden.shape
    size, low_size = real.itemsize, hidden.dtype.itemsize if extras.low_dlogits else 0
    stride_unit = LOW_ROW_UNIT if device == "cpu" and extras.low_dlogits else ROW_STRIDE_UNIT[device]
    bytes_per_column = width * size * (extras.weight_copy + extras.weight_grad)
    bytes_per_column += width * hidden.dtype.itemsize * extras.low_product
    if extras.kept_dlogits and not whole_rows:
        bytes_per_column += rows * hidden.dtype.itemsize
    if whole_rows:
        defaults = TRAINED_WORKSPACE_BYTES if extras.weight_sums else WHOLE_ROW_WORKSPACE_BYTES
        workspace_bytes = workspace_bytes or defaults[device]
        if extras.kept_dlogits:
            workspace_bytes -= kept_dlogits_bytes(rows, vocabulary, width)
        return plan_whole_rows(
            rows,
            vocabulary,
            workspace_bytes=workspace_bytes,
            bytes_per_logit=size,
            bytes_per_tile_logit=low_size,
            bytes_per_column=bytes_per_column,
            columns=WHOLE_ROW_COLUMNS[device],
            unit=WHOLE_ROW_UNIT[device],
            row_unit=row_unit,
            stride_unit=stride_unit,
        )
    columns = PREFERRED_COLUMNS[device]
    if long_tiles:
        if width <= NARROW_WIDTH:
            columns = NARROW_COLUMNS
        columns *= max(1, PREFERRED_ROWS[device] // rows)
    return plan_tiles(
        rows,
        vocabulary,
        workspace_bytes=workspace_bytes or DEFAULT_WORKSPACE_BYTES[device],
        bytes_per_logit=size + low_size,
        bytes_per_column=bytes_per_column,
        preferred_rows=PREFERRED_ROWS[device],
        preferred_columns=columns,
        stride_unit=stride_unit,
    )
