// teca_forward and teca_backward on the device: scans over the tokens of each response, in double.
//
//     n_t = number of unmasked tokens up to t        TECA_t = (1/n_t) sum_{i<=t} H_i
//     dL/dH_i = sum_{t>=i} g_t / n_t + g_last / n
//
// Grid: one block per response, any length. Each warp takes 256 adjacent tokens at a time: loads and stores are
// coalesced, and pass through shared memory so that every lane then owns 8 adjacent tokens, sums them, and joins the
// others by a scan of the warp's shuffles. Backward runs the same scan from the last token to the first.
// Bytes per token: 4 or 8 of entropy read (and 1 of mask), 4 or 8 written. Alignment: the element's.
// Limit: latency; 4096 tokens are two rounds of a block.
#pragma once

#include "kernels.h"
#include "state_reduce.cuh"

namespace cer {
namespace device {

constexpr int kTecaThreads = 256;
constexpr int kTecaWarps = kTecaThreads / kWarp;
constexpr int kTokensPerLane = 8;
constexpr int kTokensPerWarp = kWarp * kTokensPerLane;
constexpr int kTokensPerBlock = kTokensPerWarp * kTecaWarps;
constexpr int kStagePerWarp = kTokensPerWarp + kTokensPerWarp / 32;

// One padding slot in every 33: lanes that stride by 8 tokens hit 32 different banks.
__device__ __forceinline__ int stage_slot(int warp, int token) { return warp * kStagePerWarp + token + token / 32; }

// Where a response lies.
struct Response {
  std::int64_t begin, length;
};
template <typename Params>
__device__ __forceinline__ Response response_of(const Params& p, std::int64_t index) {
  Response r;
  r.begin = p.cu_seqlens != nullptr ? p.cu_seqlens[index] : index * p.length;
  r.length = p.cu_seqlens != nullptr ? p.cu_seqlens[index + 1] - r.begin : p.length;
  return r;
}

// The sum over the warp's earlier lanes, and over all of them in `total`.
template <typename Value>
__device__ __forceinline__ Value exclusive_in_warp(Value value, Value* total_of_last_lane) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  Value inclusive = value;
#pragma unroll 1
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Value before = shuffle_up(inclusive, offset);
    if (lane >= offset) inclusive += before;
  }
  if (lane == kWarp - 1) *total_of_last_lane = inclusive;
  const Value previous = shuffle_up(inclusive, 1);
  return lane == 0 ? Value(0) : previous;
}

// Adds what lies before this warp in the block's round to `before`, and the whole round to `carry`.
template <typename Value>
__device__ __forceinline__ void add_rounds(const Value* warp_totals, Value& before, Value& carry) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  Value all = Value(0);
  Value earlier = Value(0);
  for (int w = 0; w < kTecaWarps; ++w) {
    if (w == warp) earlier = all;
    all += warp_totals[w];
  }
  before += carry + earlier;
  carry += all;
}

// The tokens of one response that count.
template <typename Params>
__device__ __forceinline__ std::int64_t count_tokens(const Params& p, const Response& response) {
  if (p.mask == nullptr) return response.length;
  CER_SHARED(int, counts, kTecaWarps);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  int count = 0;
  for (std::int64_t i = threadIdx.x; i < response.length; i += kTecaThreads) {
    count += p.mask[response.begin + i] != 0 ? 1 : 0;
  }
#pragma unroll 1
  for (int offset = kWarp / 2; offset > 0; offset /= 2) count += shuffle_down(count, offset);
  if (lane == 0) counts[warp] = count;
  __syncthreads();
  std::int64_t all = 0;
  for (int w = 0; w < kTecaWarps; ++w) all += counts[w];
  return all;
}

template <typename Real>
__device__ __forceinline__ void teca_forward(const Teca& p) {
  CER_SHARED(Real, stage, kTecaWarps * kStagePerWarp);
  CER_SHARED(unsigned char, kept, kTecaWarps * kStagePerWarp);
  CER_SHARED(double, sum_totals, 2 * kTecaWarps);
  CER_SHARED(int, count_totals, 2 * kTecaWarps);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Response response = response_of(p, blockIdx.x);
  const Real* const entropy = static_cast<const Real*>(p.entropy) + response.begin;
  Real* const teca = static_cast<Real*>(p.teca) + response.begin;

  double sum_carry = 0.0;
  int count_carry = 0;
  int round = 0;  // totals of two rounds alternate: one barrier a round is enough
  for (std::int64_t base = 0; base < response.length; base += kTokensPerBlock, round ^= 1) {
    const std::int64_t warp_base = base + warp * kTokensPerWarp;
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) {
      const int token = k * kWarp + lane;
      const std::int64_t i = warp_base + token;
      const bool keep = i < response.length && (p.mask == nullptr || p.mask[response.begin + i] != 0);
      kept[stage_slot(warp, token)] = keep ? 1 : 0;
      stage[stage_slot(warp, token)] = keep ? entropy[i] : Real(0);
    }
    __syncwarp();
    double sum = 0.0;
    int count = 0;
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) {
      sum += static_cast<double>(stage[stage_slot(warp, lane * kTokensPerLane + k)]);
      count += kept[stage_slot(warp, lane * kTokensPerLane + k)];
    }
    double sum_before = exclusive_in_warp(sum, &sum_totals[round * kTecaWarps + warp]);
    int count_before = exclusive_in_warp(count, &count_totals[round * kTecaWarps + warp]);
    __syncthreads();
    add_rounds(sum_totals + round * kTecaWarps, sum_before, sum_carry);
    add_rounds(count_totals + round * kTecaWarps, count_before, count_carry);
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) {
      const int slot = stage_slot(warp, lane * kTokensPerLane + k);
      const bool keep = kept[slot] != 0;
      sum_before += static_cast<double>(stage[slot]);
      count_before += keep ? 1 : 0;
      stage[slot] = keep ? static_cast<Real>(sum_before / count_before) : Real(0);
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) {
      const int token = k * kWarp + lane;
      if (warp_base + token < response.length) teca[warp_base + token] = stage[stage_slot(warp, token)];
    }
  }
  if (threadIdx.x == 0) {
    const double last = count_carry == 0 ? 0.0 : sum_carry / count_carry;
    if (p.last != nullptr) static_cast<Real*>(p.last)[blockIdx.x] = static_cast<Real>(last);
  }
}

template <typename Real>
__device__ __forceinline__ void teca_backward(const TecaBackward& p) {
  CER_SHARED(Real, stage, kTecaWarps * kStagePerWarp);
  CER_SHARED(unsigned char, kept, kTecaWarps * kStagePerWarp);
  CER_SHARED(double, sum_totals, 2 * kTecaWarps);
  CER_SHARED(int, count_totals, 2 * kTecaWarps);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const Response response = response_of(p, blockIdx.x);
  const Real* const grad_teca = static_cast<const Real*>(p.grad_teca);
  Real* const grad_entropy = static_cast<Real*>(p.grad_entropy) + response.begin;
  const std::int64_t last = response.length - 1;  // token i of the scan is token last - i of the response

  const std::int64_t tokens = count_tokens(p, response);
  const double from_last =
      p.grad_last == nullptr || tokens == 0
          ? 0.0
          : static_cast<double>(static_cast<const Real*>(p.grad_last)[blockIdx.x]) / static_cast<double>(tokens);
  double sum_carry = 0.0;
  int count_carry = 0;
  int round = 0;
  for (std::int64_t base = 0; base < response.length; base += kTokensPerBlock, round ^= 1) {
    const std::int64_t warp_base = base + warp * kTokensPerWarp;
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) {
      const int token = k * kWarp + lane;
      const std::int64_t i = warp_base + token;
      const bool keep = i < response.length && (p.mask == nullptr || p.mask[response.begin + last - i] != 0);
      kept[stage_slot(warp, token)] = keep ? 1 : 0;
      stage[stage_slot(warp, token)] = keep && grad_teca != nullptr ? grad_teca[response.begin + last - i] : Real(0);
    }
    __syncwarp();
    int count = 0;
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) count += kept[stage_slot(warp, lane * kTokensPerLane + k)];
    int count_before = exclusive_in_warp(count, &count_totals[round * kTecaWarps + warp]);
    __syncthreads();
    add_rounds(count_totals + round * kTecaWarps, count_before, count_carry);

    // n of a token is what is left of the response's tokens when the scan reaches it.
    std::int64_t n = tokens - count_before;
    double shares[kTokensPerLane];
    double sum = 0.0;
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) {
      const int slot = stage_slot(warp, lane * kTokensPerLane + k);
      const bool keep = kept[slot] != 0;
      shares[k] = keep ? static_cast<double>(stage[slot]) / static_cast<double>(n) : 0.0;
      n -= keep ? 1 : 0;
      sum += shares[k];
    }
    double sum_before = exclusive_in_warp(sum, &sum_totals[round * kTecaWarps + warp]);
    __syncthreads();
    add_rounds(sum_totals + round * kTecaWarps, sum_before, sum_carry);
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) {
      const int slot = stage_slot(warp, lane * kTokensPerLane + k);
      sum_before += shares[k];
      stage[slot] = kept[slot] != 0 ? static_cast<Real>(sum_before + from_last) : Real(0);
    }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < kTokensPerLane; ++k) {
      const int token = k * kWarp + lane;
      const std::int64_t i = warp_base + token;
      if (i < response.length) grad_entropy[last - i] = stage[stage_slot(warp, token)];
    }
  }
}

}  // namespace device
}  // namespace cer

extern "C" __global__ void __launch_bounds__(256) cer_teca_forward_float32(const __grid_constant__ cer::Teca p) {
  cer::device::teca_forward<float>(p);
}
extern "C" __global__ void __launch_bounds__(256) cer_teca_forward_float64(const __grid_constant__ cer::Teca p) {
  cer::device::teca_forward<double>(p);
}
extern "C" __global__ void __launch_bounds__(256)
    cer_teca_backward_float32(const __grid_constant__ cer::TecaBackward p) {
  cer::device::teca_backward<float>(p);
}
extern "C" __global__ void __launch_bounds__(256)
    cer_teca_backward_float64(const __grid_constant__ cer::TecaBackward p) {
  cer::device::teca_backward<double>(p);
}
