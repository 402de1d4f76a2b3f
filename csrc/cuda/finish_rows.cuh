// finish_rows on the device: row states -> log-probability, entropy, lse and the statistics of the backward pass.
//
//     log p = (y_target - m)/T - log_sum      H = log_sum + spread      lse = m/T + log_sum
//
// Grid: one thread per row. Bytes per row: 48 read, 8 to 12 (float) and 24 (statistics) written, all coalesced.
// Limit: latency; the states of a tile's rows are thousands of times smaller than the tile.
#pragma once

#include "kernels.h"
#include "softmax_state.h"

namespace cer {
namespace device {

__device__ __forceinline__ void store_output(void* out, std::int64_t row, double value, bool as_double) {
  if (out == nullptr) return;
  if (as_double) {
    static_cast<double*>(out)[row] = value;
  } else {
    static_cast<float*>(out)[row] = static_cast<float>(value);
  }
}

__device__ __forceinline__ void finish_row(const FinishRows& p, std::int64_t row) {
  const double* const at = p.states.state + row;
  const std::int64_t stride = p.states.state_stride;
  const SoftmaxState<double> state = {at[0], at[stride], at[2 * stride], at[3 * stride]};
  const double inverse = p.inverse_temperature != nullptr ? p.inverse_temperature[row] : p.inverse_temperature_all;
  const std::int64_t target = p.target[row];
  const bool ignored = target == p.ignore_index;
  const bool outside = !ignored && (target < 0 || target >= p.vocabulary);
  const double nan = __builtin_nan("");

  const double log_sum = state.log_sum();  // NaN for NaN rows and for rows of nothing but -inf
  const double spread = state.spread();
  double logprob = (p.states.target_logit[row] - state.m) * inverse - log_sum;
  double entropy = log_sum + spread;
  double lse = state.lse(inverse);
  if (outside) logprob = entropy = lse = nan;
  if (ignored) logprob = entropy = lse = 0.0;
  store_output(p.logprobs, row, logprob, p.double_outputs);
  store_output(p.entropy, row, entropy, p.double_outputs);
  store_output(p.lse, row, lse, p.double_outputs);
  if (p.stats.stats != nullptr) {
    const bool bad = outside || !(log_sum == log_sum && spread == spread);
    double* const stats = p.stats.stats + row;
    stats[0] = bad ? nan : state.m;
    stats[p.stats.stats_stride] = bad ? nan : log_sum;
    stats[2 * p.stats.stats_stride] = bad ? nan : spread;
  }
}

}  // namespace device
}  // namespace cer

extern "C" __global__ void __launch_bounds__(256) cer_finish_rows(const __grid_constant__ cer::FinishRows p) {
  const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row < p.rows) cer::device::finish_row(p, row);
}
