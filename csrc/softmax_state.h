// The softmax state of one row of logits: the one recurrence this package turns on, on host and device.
//
// For the entries z_1..z_n seen so far and an inverse temperature b = 1/T
//
//     m = max z                      in the units of the logits, before the temperature
//     c = how many entries equal m
//     r = sum_{z<m} e^(b(z-m))
//     u = sum_{z<m} e^(b(z-m)) b(m-z)
//
// and from them, in nats,
//
//     log_sum = log c + log1p(r/c)         lse = b m + log_sum
//     spread  = u / (c+r) = E[b(m-z)]      H   = log_sum + spread
//     log p_j = b(z_j-m) - log_sum         log p_j + H = b(z_j-m) + spread
//
// Every term of r and u is >= 0: nothing cancels, so H >= 0 and is exact down to H ~ 1e-8, at any shift of the logits.
// The maximum itself never enters r (that is what c is for), so a near-one-hot row keeps the small probability it has.
// m stays unscaled: two maxima are subtracted before they are multiplied by b; the product b m loses digits, their
// difference does not. The last identity is why (m, log_sum, spread), not lse, is what a backward pass needs.
//
// States merge in any order and from any partition of the row (tiles, threads, blocks, ranks). -inf entries contribute
// nothing; a row of nothing but -inf stays empty (lse -inf, H NaN); +inf and NaN make everything NaN.
//
// The alternative that lost: sum(e^z z) beside sum(e^z), as other implementations keep it. It cancels for large shifts,
// is NaN with one -inf logit, and rounds small entropies to 0 or below.
//
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018), extended by c and u.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define CER_HD __host__ __device__ __forceinline__
#else
#define CER_HD inline
#endif

namespace cer {

// Beyond this distance from the maximum e^-d is zero in float and double alike; a finite cap keeps 0 * d at 0.
constexpr double kFarthest = 1000.0;

namespace detail {
CER_HD float exponential(float x) { return expf(x); }
CER_HD double exponential(double x) { return exp(x); }
CER_HD float log_of(float x) { return logf(x); }
CER_HD double log_of(double x) { return log(x); }
CER_HD float log1p_of(float x) { return log1pf(x); }
CER_HD double log1p_of(double x) { return log1p(x); }
}  // namespace detail

template <typename Acc>
struct SoftmaxState {
  Acc m, c, r, u;

  CER_HD static Acc infinity() { return static_cast<Acc>(__builtin_huge_val()); }

  CER_HD static SoftmaxState empty() { return SoftmaxState{-infinity(), Acc(0), Acc(0), Acc(0)}; }

  // A state that has seen NaN: r = NaN survives every push and merge.
  CER_HD static SoftmaxState poisoned() {
    const Acc nan = infinity() - infinity();
    return SoftmaxState{-infinity(), Acc(0), nan, nan};
  }

  CER_HD bool is_empty() const { return c == Acc(0) && r == Acc(0); }

  // The scaled distance b(m - z) >= 0 below the maximum, capped at kFarthest.
  CER_HD static Acc distance(Acc larger, Acc smaller, Acc inverse_temperature) {
    const Acc d = (larger - smaller) * inverse_temperature;  // subtract first: exact at d = 0
    return d > static_cast<Acc>(kFarthest) ? static_cast<Acc>(kFarthest) : d;  // NaN passes
  }

  CER_HD void push(Acc z, Acc inverse_temperature) {
    if (z == -infinity()) return;
    if (!(z < infinity())) {
      merge(poisoned(), inverse_temperature);
      return;
    }
    merge(SoftmaxState{z, Acc(1), Acc(0), Acc(0)}, inverse_temperature);
  }

  CER_HD void merge(const SoftmaxState& other, Acc inverse_temperature) {
    if (other.is_empty()) return;
    if (is_empty()) {
      *this = other;
      return;
    }
    SoftmaxState high = other.m > m ? other : *this;
    SoftmaxState low = other.m > m ? *this : other;
    low.raise_to(high.m, inverse_temperature);
    high.c += low.c;
    high.r += low.r;
    high.u += low.u;
    *this = high;
  }

  // The same entries counted from `top`, a maximum at least their own; states with one maximum merge by adding c, r, u.
  CER_HD void raise_to(Acc top, Acc inverse_temperature) {
    if (m == top) return;
    const Acc d = distance(top, m, inverse_temperature);
    const Acc a = detail::exponential(-d);
    const Acc s = c + r;
    m = top;
    c = Acc(0);
    u = a * (u + d * s);
    r = a * s;
  }

  CER_HD Acc log_sum() const { return detail::log_of(c) + detail::log1p_of(r / c); }
  CER_HD Acc spread() const { return u / (c + r); }
  CER_HD Acc entropy() const { return log_sum() + spread(); }
  CER_HD Acc lse(Acc inverse_temperature) const { return is_empty() ? -infinity() : m * inverse_temperature + log_sum(); }
};

}  // namespace cer
