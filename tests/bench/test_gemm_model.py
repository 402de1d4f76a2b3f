"""The wave model of the tiled head on a GPU: whole waves, and what the tiles of one pass cost by it."""

from __future__ import annotations

import pytest

from bench.gpu.gemm_model import (
    DEVICES,
    LAUNCH_S,
    Head,
    bare_seconds,
    forward_seconds,
    gemm_seconds,
    one_pass_seconds,
    workspace_bytes,
)
from cer_ext import tile_plan

H100 = DEVICES[0]


def test_a_wave_that_is_not_full_costs_a_full_one() -> None:
    """12 x 11 blocks of 128 x 256 are one wave; one row more is another, or smaller and slower blocks."""
    rows, columns, width = 12 * 128, 11 * 256, 4096
    full = gemm_seconds(H100, rows, columns, width) - LAUNCH_S
    assert full == pytest.approx(2 * rows * columns * width / H100.flops)
    assert gemm_seconds(H100, rows + 1, columns, width) - LAUNCH_S > 1.1 * full


def test_few_rows_are_limited_by_the_read_of_the_weight() -> None:
    seconds = gemm_seconds(H100, 1, 151936, 4096) - LAUNCH_S
    assert seconds == pytest.approx(2 * 4096 * 151936 / H100.bytes, rel=0.01)


def test_the_tiles_of_one_pass_on_cuda_are_those_that_the_model_prefers() -> None:
    """416 x 8000, the most that 256 MiB hold, pays for blocks that are not there: a quarter more than 512 x 16896."""
    head, bare = Head(), bare_seconds(H100, Head())
    columns, budget = tile_plan.WHOLE_ROW_COLUMNS["cuda"], tile_plan.WHOLE_ROW_WORKSPACE_BYTES["cuda"]
    assert workspace_bytes(head, 512, columns) <= budget < workspace_bytes(head, 640, columns)
    chosen = one_pass_seconds(H100, head, 512, columns) / bare
    assert 2.3 < chosen < 2.5
    assert one_pass_seconds(H100, head, 416, 8000) / bare > 1.25 * chosen
    assert 1.0 < forward_seconds(H100, head, 4096, 15232) / bare < 1.2
