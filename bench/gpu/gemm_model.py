"""What a tiled head costs on a GPU that is not here, beside its bare GEMM: `python -m bench.gpu.gemm_model`.

A model, not a measurement. A GEMM (M, N, K) is cut into blocks of threads with tiles of the usual sizes, one block a
multiprocessor at a time; a wave that is not full takes as long as a full one:

    t = max( waves * multiprocessors * tile / (peak * efficiency of the tile),  bytes / bandwidth ) + launch

with the best tile and split of K for each shape. fold_tile reads the float32 logits (from the L2 where a tile fits it),
grad_tile reads them and writes dlogits in the inputs' dtype; both are taken at full bandwidth.

Out: for rows x columns of a tile, the time of the whole head over that of one GEMM over all of it.
"""

from __future__ import annotations

import argparse
import math
from typing import NamedTuple

# Rows x columns of a block of threads -> share of the peak that it reaches when every wave is full. The large ones are
# what cuBLAS takes for a large product; the shares of the small ones are estimates.
BLOCKS = {
    (128, 256): 1.0,
    (256, 128): 1.0,
    (128, 192): 0.97,
    (192, 128): 0.97,
    (128, 128): 0.92,
    (64, 256): 0.85,
    (256, 64): 0.85,
    (64, 128): 0.75,
    (128, 64): 0.75,
}
SPLITS = (1, 2, 3, 4)  # of K, over blocks; partial sums pass through memory
LAUNCH_S = 3e-6


class Device(NamedTuple):
    name: str
    multiprocessors: int
    flops: float  # a second, in a bare bfloat16 GEMM
    bytes: float  # a second, from memory
    l2_bytes: float
    l2_bandwidth: float


# Published: 769-798 TFLOPS and 4.3 TB/s on an H200; the H100 is taken to compute as fast, and to copy at 3 TB/s.
DEVICES = (Device("H100", 132, 790e12, 3.0e12, 30e6, 5.0e12), Device("H200", 132, 790e12, 4.3e12, 30e6, 5.0e12))


class Head(NamedTuple):
    tokens: int = 8192
    width: int = 4096
    vocabulary: int = 151936


def gemm_seconds(device: Device, m: int, n: int, k: int, *, accumulate: bool = False, result_bytes: int = 4) -> float:
    """(m, k) x (k, n) of bfloat16 with a result of `result_bytes` an element, read first where it accumulates."""
    traffic = 2 * k * (m + n) + result_bytes * m * n * (2 if accumulate else 1)
    seconds = math.inf
    for (rows, columns), efficiency in BLOCKS.items():
        for split in SPLITS:
            blocks = math.ceil(m / rows) * math.ceil(n / columns) * split
            slots = math.ceil(blocks / device.multiprocessors) * device.multiprocessors
            compute = slots * 2 * rows * columns * math.ceil(k / split) / (device.flops * efficiency)
            partial = 8 * m * n * split if split > 1 else 0
            seconds = min(seconds, max(compute, (traffic + partial) / device.bytes))
    return seconds + LAUNCH_S


def kernel_seconds(device: Device, nbytes: float, resident: bool) -> float:
    return nbytes / (device.l2_bandwidth if resident else device.bytes) + LAUNCH_S


def bare_seconds(device: Device, head: Head) -> float:
    return gemm_seconds(device, head.tokens, head.vocabulary, head.width)


def forward_seconds(device: Device, head: Head, rows: int, columns: int) -> float:
    """Logits tile by tile, each folded."""
    return sum(_tile_forward(device, head, m, n) for m, n in _tiles(head, rows, columns))


def one_pass_seconds(device: Device, head: Head, rows: int, columns: int, *, trained: bool = False) -> float:
    """Whole rows of logits, folded, then from the kept tiles dlogits, grad_hidden and, if trained, grad_weight."""
    total = 0.0
    for m, n in _tiles(head, rows, columns):
        total += _tile_forward(device, head, m, n)
        total += kernel_seconds(device, (4 + 2) * m * n, resident=False)
        total += gemm_seconds(device, m, head.width, n, accumulate=True)
        if trained:
            total += gemm_seconds(device, n, head.width, m, accumulate=True)
    return total


def workspace_bytes(head: Head, rows: int, columns: int) -> int:
    """Of one pass: float32 logits of whole rows and one tile of bfloat16 dlogits."""
    return 4 * rows * head.vocabulary + 2 * rows * columns


def _tile_forward(device: Device, head: Head, m: int, n: int) -> float:
    return gemm_seconds(device, m, n, head.width) + kernel_seconds(device, 4 * m * n, 4 * m * n < device.l2_bytes)


def _tiles(head: Head, rows: int, columns: int) -> list[tuple[int, int]]:
    return [
        (min(rows, head.tokens - row), min(columns, head.vocabulary - column))
        for row in range(0, head.tokens, rows)
        for column in range(0, head.vocabulary, columns)
    ]


ONE_PASS_TILES = ((416, 8000), (416, 16896), (384, 16896), (512, 8448), (512, 16896), (768, 16896), (1024, 16896))
FORWARD_TILES = ((4096, 15232), (4096, 16896), (2112, 16896))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in Head()._asdict().items():
        parser.add_argument(f"--{name}", type=int, default=value)
    head = Head(**vars(parser.parse_args()))
    for device in DEVICES:
        bare = bare_seconds(device, head)
        print(f"{device.name}: {head}, one bare GEMM {bare * 1e3:.1f} ms (modelled)")
        for rows, columns in FORWARD_TILES:
            print(f"  forward   {rows:5d} x {columns:5d}  {forward_seconds(device, head, rows, columns) / bare:.2f}x")
        for rows, columns in ONE_PASS_TILES:
            frozen, trained = (one_pass_seconds(device, head, rows, columns, trained=t) / bare for t in (False, True))
            mib = workspace_bytes(head, rows, columns) / 2**20
            print(f"  one pass  {rows:5d} x {columns:5d}  {frozen:.2f}x  trained {trained:.2f}x  {mib:.0f} MiB")


if __name__ == "__main__":
    main()
