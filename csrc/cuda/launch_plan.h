// How many blocks of how many threads: pure functions of the shapes, on the host.
//
// One plan for the nvcc launchers, the NVRTC path and the kernels' test build on a CPU. Results depend on it only
// through the order of a fixed reduction. A grid has one dimension, of at most 2^31 - 1 blocks; more throws.
#pragma once

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace cer {

struct LaunchPlan {
  std::int64_t blocks;
  int threads;
};

namespace plan {

constexpr std::int64_t kMaxBlocks = 2147483647;
constexpr int kFoldThreads = 512;   // at most; fold_tile.cuh: __launch_bounds__(512, 2)
constexpr int kGradThreads = 256;   // grad_tile.cuh
constexpr int kVectorsInFlight = 4; // per thread, both kernels
constexpr int kFoldRounds = 2;      // of loads a thread, before warps are merged: as much work as the merge itself
constexpr int kGradRounds = 1;      // nothing is merged

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

inline std::int64_t element_bytes(ScalarType dtype) {
  return dtype == ScalarType::kFloat64 ? 8 : dtype == ScalarType::kFloat32 ? 4 : 2;
}

inline std::int64_t checked_blocks(const char* operation, std::int64_t rows, std::int64_t per_row) {
  if (rows > kMaxBlocks / per_row) {
    throw std::runtime_error(std::string(operation) + ": " + std::to_string(rows) + " rows x " +
                             std::to_string(per_row) + " blocks exceed a grid's 2147483647 blocks");
  }
  return rows * per_row;
}

// Whole warps, no more than `most`, so few that each thread has `rounds` rounds of vectors in flight if there are any.
inline int threads_for(std::int64_t columns, std::int64_t vector_elements, int rounds, int most) {
  int threads = 32;
  while (threads < most && threads * vector_elements * kVectorsInFlight * rounds < columns) threads *= 2;
  return threads;
}

}  // namespace plan

// Blocks per row of fold_tile. One while the rows alone fill the device (two blocks of 512 threads on each
// multiprocessor); else as many as fill it, but with two rounds of loads for each block at least: a shorter piece costs
// more in merging than it saves.
inline std::int64_t fold_tile_splits(std::int64_t rows, std::int64_t cols, ScalarType dtype, int sm_count) {
  if (rows <= 0 || cols <= 0) return 1;
  const std::int64_t wanted = plan::ceil_div(2 * static_cast<std::int64_t>(std::max(sm_count, 1)), rows);
  const std::int64_t piece = 2 * plan::kVectorsInFlight * plan::kFoldThreads / 2 * (16 / plan::element_bytes(dtype));
  return std::max<std::int64_t>(1, std::min(wanted, cols / piece));
}

inline LaunchPlan fold_tile_plan(std::int64_t rows, std::int64_t cols, ScalarType dtype, std::int64_t splits) {
  const std::int64_t columns = plan::ceil_div(cols, splits);
  return {plan::checked_blocks("fold_tile", rows, splits),
          plan::threads_for(columns, 16 / plan::element_bytes(dtype), plan::kFoldRounds, plan::kFoldThreads)};
}

// One warp per row.
inline LaunchPlan merge_splits_plan(std::int64_t rows) {
  return {plan::checked_blocks("fold_tile", plan::ceil_div(rows, 4), 1), 128};
}

inline LaunchPlan merge_states_plan(std::int64_t rows) {
  return {plan::checked_blocks("merge_states", plan::ceil_div(rows, 256), 1), 256};
}

inline LaunchPlan finish_rows_plan(std::int64_t rows) {
  return {plan::checked_blocks("finish_rows", plan::ceil_div(rows, 256), 1), 256};
}

// Pieces of a row in grad_tile: four rounds of loads for a block, which hides the reading of the row's statistics; one
// round where there are too few rows to fill the device otherwise.
inline std::int64_t grad_tile_pieces(std::int64_t rows, std::int64_t cols, ScalarType dtype, ScalarType dlogits_dtype,
                                     int sm_count) {
  if (rows <= 0 || cols <= 0) return 1;
  const std::int64_t width = 16 / std::max(plan::element_bytes(dtype), plan::element_bytes(dlogits_dtype));
  const std::int64_t round = width * plan::kVectorsInFlight * plan::kGradThreads;
  const std::int64_t full = plan::ceil_div(cols, 4 * round);
  if (rows * full >= 8 * static_cast<std::int64_t>(std::max(sm_count, 1))) return full;
  return plan::ceil_div(cols, round);
}

inline LaunchPlan grad_tile_plan(std::int64_t rows, std::int64_t cols, ScalarType dtype, ScalarType dlogits_dtype,
                                 std::int64_t pieces) {
  const std::int64_t width = 16 / std::max(plan::element_bytes(dtype), plan::element_bytes(dlogits_dtype));
  return {plan::checked_blocks("grad_tile", rows, pieces),
          plan::threads_for(plan::ceil_div(cols, pieces), width, plan::kGradRounds, plan::kGradThreads)};
}

// One block of 256 threads per response (teca.cuh).
inline LaunchPlan teca_plan(std::int64_t responses) { return {plan::checked_blocks("teca", responses, 1), 256}; }

// Whether the stored logit is the logit of the softmax bit for bit: chooses the _plain kernels.
inline bool is_plain(const LogitTransform& t) { return t.bias == nullptr && t.scale == 1.0 && t.softcap == 0.0; }

}  // namespace cer
