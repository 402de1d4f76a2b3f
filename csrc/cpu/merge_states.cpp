// merge_states on the CPU: merge_row.h for every row, shared out over the pool.
#include <algorithm>

#include "cpu/pool.h"
#include "merge_row.h"

namespace cer::cpu {
namespace {

constexpr std::int64_t kRowsPerTask = 1024;

}  // namespace

void merge_states(const MergeStates& p, int threads) {
  run((p.rows + kRowsPerTask - 1) / kRowsPerTask, threads, [&](std::int64_t task) {
    const std::int64_t end = std::min(p.rows, (task + 1) * kRowsPerTask);
    for (std::int64_t row = task * kRowsPerTask; row < end; ++row) merge_row(p, row);
  });
}

}  // namespace cer::cpu
