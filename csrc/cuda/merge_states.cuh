// merge_states on the device: merge_row.h for every row.
//
// Grid: one thread per row. Bytes per row: 40 read per part, 40 written, coalesced over the rows of a warp.
// Limit: latency; there are as few parts as ranks.
#pragma once

#include "merge_row.h"

extern "C" __global__ void __launch_bounds__(256) cer_merge_states(const __grid_constant__ cer::MergeStates p) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < p.rows) cer::merge_row(p, row);
}
