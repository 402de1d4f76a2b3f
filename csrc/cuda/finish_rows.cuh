// finish_rows on the device: finish_row.h for every row.
//
// Grid: one thread per row. Bytes per row: 48 read, 8 to 12 (float) and 24 (statistics) written, all coalesced.
// Limit: latency; the states of a tile's rows are thousands of times smaller than the tile.
#pragma once

#include "finish_row.h"

extern "C" __global__ void __launch_bounds__(256) cer_finish_rows(const __grid_constant__ cer::FinishRows p) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < p.rows) cer::finish_row(p, row);
}
