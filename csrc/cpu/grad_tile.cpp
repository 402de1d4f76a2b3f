// grad_tile on the CPU: logits, saved statistics and upstream gradients -> dlogits, one read and one write.
//
//     dL/dx_j = dy_j/dx_j b ( g [j = target] - (g - l) p_j - h p_j (d_j + spread) ),     d_j = b (y_j - m)
//             = dy_j/dx_j e^(d_j) (A + B d_j)     A = -b e^(-log_sum) ((g - l) + h spread),  B = -b e^(-log_sum) h
//
// for every column but the target's, which is written afterwards, in double: g (1 - p) with 1 - p = -expm1(log p), which
// keeps its digits where p is nearly 1.
#include <cmath>
#include <cstring>

#include "cpu/dispatch.h"
#include "cpu/pool.h"
#include "cpu/row.h"
#include "kernels.h"
#include "softmax_state.h"

namespace cer::cpu {
namespace {

constexpr std::int64_t kColumnsPerTask = 8 * kBlock;

double upstream(const void* gradients, bool is_double, std::int64_t row) {
  if (!gradients) return 0.0;
  return is_double ? static_cast<const double*>(gradients)[row] : static_cast<const float*>(gradients)[row];
}

// A row's statistics and upstream gradients.
struct RowGradient {
  double m, log_sum, spread, g, h, l, b;

  RowGradient(const GradTile& p, const Row& row, std::int64_t index)
      : m(p.stats.stats[index]),
        log_sum(p.stats.stats[index + p.stats.stats_stride]),
        spread(p.stats.stats[index + 2 * p.stats.stats_stride]),
        g(upstream(p.grad_logprobs, row.type == Row::kDouble, index)),
        h(upstream(p.grad_entropy, row.type == Row::kDouble, index)),
        l(upstream(p.grad_lse, row.type == Row::kDouble, index)),
        b(row.inverse_temperature) {}

  bool is_zero() const { return g == 0.0 && h == 0.0 && l == 0.0; }

  // For a logit y with dy/dx = slope: the gradient at the target.
  double at_target(double y, double slope) const {
    const double d = -SoftmaxState<double>::distance(m, y, b);
    const double log_p = d - log_sum;
    const double p = std::exp(log_p);
    return slope * b * (-g * std::expm1(log_p) + l * p - h * p * (d + spread));
  }
};

// n <= kBlock columns. The kernels take every column for one that is not the target.
void grad_block(const GradTile& p, const Row& row, const RowGradient& r, std::int64_t column, std::int64_t n, void* out) {
  const double factor = -r.b * std::exp(-r.log_sum);
  const double a = factor * ((r.g - r.l) + r.h * r.spread), h = factor * r.h;
  const int out_type = static_cast<int>(p.dlogits_dtype);
  if (std::isnan(a) || std::isnan(h)) {
    for (std::int64_t i = 0; i < n; ++i) set_entry(out, p.dlogits_dtype, i, a + h);
    return;
  }
  double m;
  if (row.direct && row.kernels.grad[row.type][out_type] && row.entry_of(r.m, &m)) {
    const double scale = row.transform.scale;
    row.kernels.grad[row.type][out_type](row.at(column), n, m, r.b * scale, a * scale, h * scale, out);
    return;
  }
  double y[kBlock], slope[kBlock];
  row.compute(column, n, y, slope);
  row.kernels.grad[Row::kDouble][Row::kDouble](y, n, r.m, r.b, a, h, y);
  for (std::int64_t i = 0; i < n; ++i) set_entry(out, p.dlogits_dtype, i, y[i] * slope[i]);
}

void grad_columns(const GradTile& p, const IsaKernels& kernels, std::int64_t index, std::int64_t begin, std::int64_t end) {
  const std::int64_t out_bytes = bytes_of(p.dlogits_dtype);
  char* const out = static_cast<char*>(p.dlogits) + index * p.dlogits_row_stride * out_bytes;
  const Row row(p.tile, index, kernels);
  const RowGradient r(p, row, index);
  if (p.tile.target[index] == p.ignore_index || r.is_zero()) {
    std::memset(out + begin * out_bytes, 0, static_cast<std::size_t>((end - begin) * out_bytes));
    return;
  }
  const std::int64_t target = target_column(p.tile, index);
  const bool has_target = target >= begin && target < end;
  double at_target = 0.0;
  if (has_target) {  // before the entry is overwritten
    double slope;
    const double y = row.logit(target, &slope);
    at_target = r.at_target(y, slope);
  }
  for (std::int64_t column = begin; column < end; column += kBlock) {
    grad_block(p, row, r, column, std::min(kBlock, end - column), out + column * out_bytes);
  }
  if (has_target) set_entry(out, p.dlogits_dtype, target, at_target);
}

}  // namespace

void grad_tile(const GradTile& p, int threads) {
  const IsaKernels& kernels = active_kernels();
  const std::int64_t rows = p.tile.rows, cols = p.tile.cols;
  if (rows <= 0 || cols <= 0) return;
  if (rows * cols <= kFewEntries) threads = 1;
  if (cols > kColumnsPerTask) {
    const std::int64_t parts = (cols + kColumnsPerTask - 1) / kColumnsPerTask;
    run(rows * parts, threads, [&](std::int64_t task) {
      const std::int64_t begin = task % parts * kColumnsPerTask;
      grad_columns(p, kernels, task / parts, begin, std::min(cols, begin + kColumnsPerTask));
    });
    return;
  }
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, kColumnsPerTask / cols);
  run((rows + rows_per_task - 1) / rows_per_task, threads, [&](std::int64_t task) {
    const std::int64_t end = std::min(rows, (task + 1) * rows_per_task);
    for (std::int64_t index = task * rows_per_task; index < end; ++index) grad_columns(p, kernels, index, 0, cols);
  });
}

}  // namespace cer::cpu
