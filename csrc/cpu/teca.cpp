// TECA on the CPU: entropies (H_1..H_n of each response) -> their cumulative average, and its backward.
//
//     TECA_t = (1/t) sum_{i<=t} H_i        dL/dH_i = sum_{t>=i} dL/dTECA_t / t + dL/dlast / n
//
// counting only the tokens of the response (mask). Sums in double, in order: O(length) per response. A task is a response
// (several where they are short).
#include <algorithm>

#include "cpu/pool.h"
#include "kernels.h"

namespace cer::cpu {
namespace {

constexpr std::int64_t kTokensPerTask = 16384;

// Where response i lies in the contiguous entropies.
template <typename Params>
std::int64_t begin_of(const Params& p, std::int64_t i) {
  return p.cu_seqlens ? p.cu_seqlens[i] : i * p.length;
}

template <typename Real>
void forward_of(const Teca& p, std::int64_t response) {
  const std::int64_t begin = begin_of(p, response), end = begin_of(p, response + 1);
  const Real* entropy = static_cast<const Real*>(p.entropy);
  Real* teca = static_cast<Real*>(p.teca);
  double sum = 0.0, count = 0.0;
  for (std::int64_t i = begin; i < end; ++i) {
    const bool counts = !p.mask || p.mask[i];
    if (counts) {
      sum += static_cast<double>(entropy[i]);
      count += 1.0;
    }
    if (teca) teca[i] = counts ? static_cast<Real>(sum / count) : Real(0);
  }
  if (p.last) static_cast<Real*>(p.last)[response] = count > 0.0 ? static_cast<Real>(sum / count) : Real(0);
}

template <typename Real>
void backward_of(const TecaBackward& p, std::int64_t response) {
  const std::int64_t begin = begin_of(p, response), end = begin_of(p, response + 1);
  const Real* grad_teca = static_cast<const Real*>(p.grad_teca);
  const Real* grad_last = static_cast<const Real*>(p.grad_last);
  Real* grad_entropy = static_cast<Real*>(p.grad_entropy);
  std::int64_t tokens = end - begin;
  if (p.mask) tokens = std::count_if(p.mask + begin, p.mask + end, [](std::uint8_t m) { return m != 0; });
  double count = static_cast<double>(tokens);
  double sum = grad_last && tokens > 0 ? static_cast<double>(grad_last[response]) / count : 0.0;
  for (std::int64_t i = end - 1; i >= begin; --i) {
    if (p.mask && !p.mask[i]) {
      grad_entropy[i] = Real(0);
      continue;
    }
    if (grad_teca) sum += static_cast<double>(grad_teca[i]) / count;
    count -= 1.0;
    grad_entropy[i] = static_cast<Real>(sum);
  }
}

template <typename Params, typename Response>
void for_responses(const Params& p, int threads, Response response) {
  if (p.responses <= 0) return;
  const std::int64_t tokens = p.cu_seqlens ? p.cu_seqlens[p.responses] - p.cu_seqlens[0] : p.responses * p.length;
  const std::int64_t mean_length = std::max<std::int64_t>(1, tokens / p.responses);
  const std::int64_t per_task = std::max<std::int64_t>(1, kTokensPerTask / mean_length);
  run((p.responses + per_task - 1) / per_task, threads, [&](std::int64_t task) {
    const std::int64_t end = std::min(p.responses, (task + 1) * per_task);
    for (std::int64_t i = task * per_task; i < end; ++i) response(i);
  });
}

}  // namespace

void teca_forward(const Teca& p, int threads) {
  for_responses(p, threads, [&](std::int64_t i) { p.is_double ? forward_of<double>(p, i) : forward_of<float>(p, i); });
}

void teca_backward(const TecaBackward& p, int threads) {
  for_responses(p, threads, [&](std::int64_t i) { p.is_double ? backward_of<double>(p, i) : backward_of<float>(p, i); });
}

}  // namespace cer::cpu
