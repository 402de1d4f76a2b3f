// finish_rows for one row, on host and device: a row's state -> log-probability, entropy, lse and the statistics of the
// backward pass (kernels.h: FinishRows, RowStats).
//
//     log p = (y_target - m)/T - log_sum      H = log_sum + spread      lse = m/T + log_sum
//
// In double whatever the logits are: about five transcendental functions a row, nothing beside the row's logits.
#pragma once

#include "kernels.h"
#include "softmax_state.h"

namespace cer {
namespace detail {

CER_HD void store_output(void* out, bool as_double, std::int64_t row, double value) {
  if (out == nullptr) return;
  if (as_double) {
    static_cast<double*>(out)[row] = value;
  } else {
    static_cast<float*>(out)[row] = static_cast<float>(value);
  }
}

}  // namespace detail

CER_HD void finish_row(const FinishRows& p, std::int64_t row) {
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
  detail::store_output(p.logprobs, p.double_outputs, row, logprob);
  detail::store_output(p.entropy, p.double_outputs, row, entropy);
  detail::store_output(p.lse, p.double_outputs, row, lse);
  if (p.stats.stats != nullptr) {
    const bool bad = outside || !(log_sum == log_sum && spread == spread);
    double* const stats = p.stats.stats + row;
    stats[0] = bad ? nan : state.m;
    stats[p.stats.stats_stride] = bad ? nan : log_sum;
    stats[2 * p.stats.stats_stride] = bad ? nan : spread;
  }
}

}  // namespace cer
