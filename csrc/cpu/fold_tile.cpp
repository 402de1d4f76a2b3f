// fold_tile on the CPU: a tile of logits -> one softmax state per row, and the target's logit. One read of the logits.
//
// A row is folded block by block, each block against the maximum of what came before it in the row. What a block
// contributes is a function of the block and that maximum alone, and blocks merge in their order, so the result has the
// same bits whether a row is folded by one thread or its blocks by many, and whatever other rows are in the tile.
//
// Many rows: a task is a row (several where they are short). Fewer rows than threads: first the maxima of the blocks, in
// parallel, from them the maximum before each block, then the blocks, in parallel; the second read mostly comes from the
// caches.
#include <cmath>
#include <limits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/pool.h"
#include "cpu/row.h"
#include "kernels.h"
#include "softmax_state.h"

namespace cer::cpu {
namespace {

using State = SoftmaxState<double>;

// How many columns are folded with their own maximum where one reaches the maximum so far.
constexpr std::int64_t kRaisingColumns = 256;

State load_state(const RowStates& states, std::int64_t row) {
  const double* s = states.state + row;
  const std::int64_t stride = states.state_stride;
  return State{s[0], s[stride], s[2 * stride], s[3 * stride]};
}

void store_state(const RowStates& states, std::int64_t row, const State& state) {
  double* s = states.state + row;
  const std::int64_t stride = states.state_stride;
  s[0] = state.m;
  s[stride] = state.c;
  s[2 * stride] = state.r;
  s[3 * stride] = state.u;
}

bool is_poisoned(const State& state) { return std::isnan(state.r); }

// Merges, and gives every row that has seen NaN or +inf the same state.
void merge(State& state, const State& block, double inverse_temperature) {
  state.merge(block, inverse_temperature);
  if (is_poisoned(state)) state = State::poisoned();
}

// n <= kBlock columns against `before`, the largest logit of the row up to them (-inf: none yet).
State fold_block(const Row& row, std::int64_t column, std::int64_t n, double before) {
  double y[kBlock];
  const char* entries = reinterpret_cast<const char*>(y);
  int type = Row::kDouble;
  std::int64_t entry_bytes = sizeof(double);
  double scale = 1.0;
  if (row.direct) {
    entries = static_cast<const char*>(row.at(column));
    type = row.type;
    entry_bytes = row.entry_bytes;
    scale = row.transform.scale;
  } else {
    row.compute(column, n, y, nullptr);
  }
  const double b = row.inverse_temperature * scale;
  State state = State::empty();
  for (double largest = before; n > 0;) {
    double below = largest;
    if (largest > -State::infinity() && (!row.direct || row.entry_of(largest, &below))) {
      State sums{largest, 0.0, 0.0, 0.0};
      const std::int64_t taken = row.kernels.fold_below[type](entries, n, below, b, &sums.r, &sums.u);
      if (taken > 0) state.merge(sums, row.inverse_temperature);
      entries += taken * entry_bytes;
      n -= taken;
    }
    if (n == 0) break;
    BlockSums sums;
    const std::int64_t few = std::min(n, kRaisingColumns);
    row.kernels.fold_block[type](entries, few, b, &sums);
    sums.m *= scale;
    state.merge(State{sums.m, sums.c, sums.r, sums.u}, row.inverse_temperature);
    largest = std::max(largest, sums.m);
    entries += few * entry_bytes;
    n -= few;
  }
  return state;
}

double largest_logit(const Row& row, std::int64_t column, std::int64_t n) {
  if (row.direct) return row.kernels.largest[row.type](row.at(column), n) * row.transform.scale;
  double y[kBlock];
  row.compute(column, n, y, nullptr);
  return row.kernels.largest[Row::kDouble](y, n);
}

void set_target_logit(const FoldTile& p, const Row& row, std::int64_t index) {
  const std::int64_t column = target_column(p.tile, index);
  if (column >= 0) {
    p.states.target_logit[index] = row.logit(column);
  } else if (p.fresh) {
    p.states.target_logit[index] = std::numeric_limits<double>::quiet_NaN();
  }
}

void fold_row(const FoldTile& p, std::int64_t index, const IsaKernels& kernels) {
  const Row row(p.tile, index, kernels);
  State state = p.fresh ? State::empty() : load_state(p.states, index);
  for (std::int64_t column = 0; column < p.tile.cols && !is_poisoned(state); column += kBlock) {
    const std::int64_t n = std::min(kBlock, p.tile.cols - column);
    merge(state, fold_block(row, column, n, state.m), row.inverse_temperature);
  }
  store_state(p.states, index, state);
  set_target_logit(p, row, index);
}

void fold_blocks_of_few_rows(const FoldTile& p, const IsaKernels& kernels, int threads) {
  const std::int64_t blocks = (p.tile.cols + kBlock - 1) / kBlock;
  std::vector<double> before(static_cast<std::size_t>(p.tile.rows * blocks));
  std::vector<State> folded(before.size());
  const auto columns_of = [&](std::int64_t block) { return std::min(kBlock, p.tile.cols - block * kBlock); };
  run(p.tile.rows * blocks, threads, [&](std::int64_t task) {
    const Row row(p.tile, task / blocks, kernels);
    const std::int64_t block = task % blocks;
    before[static_cast<std::size_t>(task)] = largest_logit(row, block * kBlock, columns_of(block));
  });
  for (std::int64_t index = 0; index < p.tile.rows; ++index) {
    double largest = p.fresh ? -State::infinity() : load_state(p.states, index).m;
    for (std::int64_t block = 0; block < blocks; ++block) {
      double& slot = before[static_cast<std::size_t>(index * blocks + block)];
      const double own = slot;
      slot = largest;
      largest = std::max(largest, own);
    }
  }
  run(p.tile.rows * blocks, threads, [&](std::int64_t task) {
    const Row row(p.tile, task / blocks, kernels);
    const std::int64_t block = task % blocks;
    folded[static_cast<std::size_t>(task)] =
        fold_block(row, block * kBlock, columns_of(block), before[static_cast<std::size_t>(task)]);
  });
  for (std::int64_t index = 0; index < p.tile.rows; ++index) {
    const Row row(p.tile, index, kernels);
    State state = p.fresh ? State::empty() : load_state(p.states, index);
    for (std::int64_t block = 0; block < blocks; ++block) {
      merge(state, folded[static_cast<std::size_t>(index * blocks + block)], row.inverse_temperature);
    }
    store_state(p.states, index, state);
    set_target_logit(p, row, index);
  }
}

}  // namespace

void fold_tile(const FoldTile& p, int threads) {
  const IsaKernels& kernels = active_kernels();
  const std::int64_t rows = p.tile.rows, cols = p.tile.cols;
  if (rows * cols <= kFewEntries) threads = 1;
  // Splitting rows reads them twice: it pays where whole rows would leave more than half of the threads' time idle.
  const std::int64_t rounds = (rows + threads - 1) / threads;
  if (rounds * threads > 2 * rows && cols > 4 * kBlock) {
    fold_blocks_of_few_rows(p, kernels, threads);
    return;
  }
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, kFewEntries / 2 / std::max<std::int64_t>(cols, 1));
  run((rows + rows_per_task - 1) / rows_per_task, threads, [&](std::int64_t task) {
    const std::int64_t end = std::min(rows, (task + 1) * rows_per_task);
    for (std::int64_t index = task * rows_per_task; index < end; ++index) fold_row(p, index, kernels);
  });
}

}  // namespace cer::cpu
