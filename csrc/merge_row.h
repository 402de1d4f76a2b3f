// merge_states for one row, on host and device: the states of the parts of a row -> the row's state (kernels.h:
// MergeStates). In the order of the parts, so that whoever merges the same parts gets the same bits.
#pragma once

#include "kernels.h"
#include "softmax_state.h"

namespace cer {

CER_HD void merge_row(const MergeStates& p, std::int64_t row) {
  const double inverse = p.inverse_temperature != nullptr ? p.inverse_temperature[row] : p.inverse_temperature_all;
  SoftmaxState<double> state = SoftmaxState<double>::empty();
  double target_logit = __builtin_nan("");
  for (std::int64_t part = 0; part < p.parts; ++part) {
    const double* const at = p.partial + part * 5 * p.rows + row;
    state.merge(SoftmaxState<double>{at[0], at[p.rows], at[2 * p.rows], at[3 * p.rows]}, inverse);
    const double found = at[4 * p.rows];
    if (found == found) target_logit = found;  // NaN in every part but the one that holds the target
  }
  double* const to = p.states.state + row;
  to[0] = state.m;
  to[p.states.state_stride] = state.c;
  to[2 * p.states.state_stride] = state.r;
  to[3 * p.states.state_stride] = state.u;
  p.states.target_logit[row] = target_logit;
}

}  // namespace cer
