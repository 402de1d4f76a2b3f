// finish_rows on the CPU: states -> log-probability, entropy, lse and the statistics that the backward pass needs.
// The equations are those of softmax_state.h; about five transcendental functions a row, in double.
#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/pool.h"
#include "kernels.h"
#include "softmax_state.h"

namespace cer::cpu {
namespace {

constexpr std::int64_t kRowsPerTask = 1024;

void put(void* out, bool is_double, std::int64_t index, double value) {
  if (!out) return;
  if (is_double) {
    static_cast<double*>(out)[index] = value;
  } else {
    static_cast<float*>(out)[index] = static_cast<float>(value);
  }
}

void finish_row(const FinishRows& p, std::int64_t i) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double b = p.inverse_temperature ? p.inverse_temperature[i] : p.inverse_temperature_all;
  const double* s = p.states.state + i;
  const std::int64_t stride = p.states.state_stride;
  const SoftmaxState<double> state{s[0], s[stride], s[2 * stride], s[3 * stride]};
  const bool ignored = p.target[i] == p.ignore_index;
  const bool out_of_range = !ignored && (p.target[i] < 0 || p.target[i] >= p.vocabulary);

  double m = state.m, log_sum = state.log_sum(), spread = state.spread(), lse = state.lse(b);
  double logprob = (p.states.target_logit[i] - m) * b - log_sum, entropy = log_sum + spread;
  if (ignored) {
    logprob = entropy = lse = 0.0;
  } else if (out_of_range) {
    logprob = entropy = lse = nan;
  }
  if (out_of_range || std::isnan(log_sum)) m = log_sum = spread = nan;

  put(p.logprobs, p.double_outputs, i, logprob);
  put(p.entropy, p.double_outputs, i, entropy);
  put(p.lse, p.double_outputs, i, lse);
  if (p.stats.stats) {
    double* stats = p.stats.stats + i;
    stats[0] = m;
    stats[p.stats.stats_stride] = log_sum;
    stats[2 * p.stats.stats_stride] = spread;
  }
}

}  // namespace

void finish_rows(const FinishRows& p, int threads) {
  run((p.rows + kRowsPerTask - 1) / kRowsPerTask, threads, [&](std::int64_t task) {
    const std::int64_t end = std::min(p.rows, (task + 1) * kRowsPerTask);
    for (std::int64_t i = task * kRowsPerTask; i < end; ++i) finish_row(p, i);
  });
}

}  // namespace cer::cpu
