// Merging the softmax states of a warp and of a block, in an order that depends on nothing but the block's size.
//
// CER_SHARED is the only way these kernels declare shared memory: the test build, which runs a block on a CPU, defines
// it to memory of its own. Shuffles carry 4 bytes, name the full mask, and are reached by the whole warp.
#pragma once

#include "logit_transform.cuh"  // larger
#include "softmax_state.h"

#if !defined(CER_SHARED)
#define CER_SHARED(type, name, count) __shared__ type name[count]
#endif

namespace cer {
namespace device {

constexpr unsigned int kFullMask = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kMaxWarps = 32;

__device__ __forceinline__ int shuffle_down(int x, int offset) { return __shfl_down_sync(kFullMask, x, offset); }
__device__ __forceinline__ double shuffle_down(double x, int offset) {
  const int low = __shfl_down_sync(kFullMask, __double2loint(x), offset);
  const int high = __shfl_down_sync(kFullMask, __double2hiint(x), offset);
  return __hiloint2double(high, low);
}
__device__ __forceinline__ float shuffle_xor(float x, int mask) { return __shfl_xor_sync(kFullMask, x, mask); }
__device__ __forceinline__ double shuffle_xor(double x, int mask) {
  const int low = __shfl_xor_sync(kFullMask, __double2loint(x), mask);
  const int high = __shfl_xor_sync(kFullMask, __double2hiint(x), mask);
  return __hiloint2double(high, low);
}
__device__ __forceinline__ int shuffle_up(int x, int offset) { return __shfl_up_sync(kFullMask, x, offset); }
__device__ __forceinline__ double shuffle_up(double x, int offset) {
  const int low = __shfl_up_sync(kFullMask, __double2loint(x), offset);
  const int high = __shfl_up_sync(kFullMask, __double2hiint(x), offset);
  return __hiloint2double(high, low);
}

// The merge of the warp's states, in every lane: their maximum first, one rescaling each, then sums. (Five pairwise
// merges, each with its exponential and its branches, take four times the instructions.)
template <typename Real>
__device__ __forceinline__ SoftmaxState<Real> merge_warp(SoftmaxState<Real> state, Real inverse_temperature) {
  Real top = state.m;
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) top = larger(top, shuffle_xor(top, offset));
  state.raise_to(top, inverse_temperature);
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    state.c += shuffle_xor(state.c, offset);
    state.r += shuffle_xor(state.r, offset);
    state.u += shuffle_xor(state.u, offset);
  }
  return state;
}

// The merge of the block's states, in the first warp. blockDim.x is a multiple of 32, at most 1024.
template <typename Real>
__device__ __forceinline__ SoftmaxState<Real> merge_block(SoftmaxState<Real> state, Real inverse_temperature) {
  CER_SHARED(SoftmaxState<Real>, warp_states, kMaxWarps);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  state = merge_warp(state, inverse_temperature);
  if (lane == 0) warp_states[warp] = state;
  __syncthreads();
  if (warp == 0) {
    state = lane < warps ? warp_states[lane] : SoftmaxState<Real>::empty();
    state = merge_warp(state, inverse_temperature);
  }
  return state;
}

}  // namespace device
}  // namespace cer
