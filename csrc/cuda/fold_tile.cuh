// fold_tile on the device: a tile of logits -> one softmax state per row, and the target's logit (kernels.h).
//
// Grid: `splits` adjacent blocks per row (one, unless there are few rows), any number of whole warps per block. A
// thread takes four vectors of 16 bytes (two of doubles) at a time, finds their maximum, and only then raises: the
// exponentials of 32 (16, 4) logits share one merge into the thread's state: an instruction per logit, not a branch.
// Threads merge by shuffles, warps through shared memory, tiles in double in global memory.
//
// Bytes per row: cols * sizeof(T) read, 5 doubles written (and read, unless fresh). Alignment: the element's; vectors
// start at the row's first 16-byte boundary. Limit: memory; at two bytes per logit the inner loop's 12.3 instructions
// per logit (SASS, sm_90a; 13.7 at four bytes) stay below the 18 an H100 issues while it reads one, and close to an
// H200's 14. A row's rest, its head and its tail share one masked round.
//
// The alternative that lost: one running maximum per thread with a rescale branch per logit. Early in a row nearly
// every warp takes it; and it hides the recurrence of softmax_state.h, which here stays the only one.
#pragma once

#include "logit_transform.cuh"
#include "state_reduce.cuh"
#include "vector_access.cuh"

namespace cer {
namespace device {

// The state of kCount logits at once. Needs no case for NaN and +inf (inf - inf): r becomes NaN by itself, as in a
// poisoned state; a chunk of -inf alone stays empty.
template <typename Real, int kCount>
__device__ __forceinline__ SoftmaxState<Real> fold_chunk(const Real (&y)[kCount], Real powers_per_logit) {
  SoftmaxState<Real> s = SoftmaxState<Real>::empty();
#pragma unroll
  for (int j = 0; j < kCount; ++j) s.m = larger(s.m, y[j]);
  const Real base = s.m == -SoftmaxState<Real>::infinity() ? Real(0) : s.m;
  constexpr Real kLowest = static_cast<Real>(-kFarthest * PowerOf<Real>::kPerNat);
#pragma unroll
  for (int j = 0; j < kCount; ++j) {
    const Real t = (y[j] - base) * powers_per_logit;  // subtract first: exactly 0 at the maximum
    const Real e = PowerOf<Real>::raise(t);
    if (t == Real(0)) {
      s.c += Real(1);
    } else {
      s.r += e;
    }
    s.u -= e * larger(t, kLowest);  // finite for -inf: 0, not 0 * inf
  }
  s.u *= static_cast<Real>(PowerOf<Real>::kNats);
  return s;
}

template <typename T, bool kPlain>
__device__ __forceinline__ SoftmaxState<typename ScalarTraits<T>::Accumulator> fold_run(
    const T* row, std::int64_t begin, std::int64_t end,
    const Transform<typename ScalarTraits<T>::Accumulator, kPlain>& transform, double inverse_temperature) {
  using Real = typename ScalarTraits<T>::Accumulator;
  constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
  constexpr int kInFlight = sizeof(Real) == 8 ? 2 : 4;  // four vectors of doubles would spill
  const Real inverse = static_cast<Real>(inverse_temperature);
  const Real powers = static_cast<Real>(inverse_temperature * PowerOf<Real>::kPerNat);
  const T* const first = row + begin;
  const Run run = run_of<kWidth>(end - begin, elements_to_boundary<T, kWidth>(first));
  const std::int64_t threads = blockDim.x;
  const Real nothing = -SoftmaxState<Real>::infinity();
  SoftmaxState<Real> state = SoftmaxState<Real>::empty();

  Packed<T, kWidth> packed[kInFlight];
  Real y[kInFlight * kWidth];
  std::int64_t vector = threadIdx.x;
  for (; vector + (kInFlight - 1) * threads < run.vectors; vector += kInFlight * threads) {
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) packed[i].read(first + run.head + (vector + i * threads) * kWidth);
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        y[i * kWidth + j] = transform.logit(element(packed[i], j),
                                            begin + run.head + (vector + i * threads) * kWidth + j);
      }
    }
    state.merge(fold_chunk(y, powers), inverse);
  }
  // What is left, in one round more: fewer than kInFlight vectors a thread, and at most one element of the head and one
  // of the tail. What is not there counts as -inf, which adds nothing: all loads are in flight and one merge is enough.
  const std::int64_t in_head = threadIdx.x;
  const std::int64_t in_tail = run.tail_begin + threadIdx.x;
  if (vector < run.vectors || in_head < run.head || in_tail < end - begin) {
    constexpr int kEnds = kInFlight * kWidth;
    Real last[kEnds + 2];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (vector + i * threads < run.vectors) {
        packed[i].read(first + run.head + (vector + i * threads) * kWidth);
      } else {
        packed[i].zero();
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const bool inside = vector + i * threads < run.vectors;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const std::int64_t column = begin + run.head + (vector + i * threads) * kWidth + j;
        last[i * kWidth + j] = inside ? transform.logit(element(packed[i], j), column) : nothing;
      }
    }
    last[kEnds] = last[kEnds + 1] = nothing;
    if (in_head < run.head) last[kEnds] = transform.logit(ScalarTraits<T>::load(first[in_head]), begin + in_head);
    if (in_tail < end - begin) last[kEnds + 1] = transform.logit(ScalarTraits<T>::load(first[in_tail]), begin + in_tail);
    state.merge(fold_chunk(last, powers), inverse);
  }
  return state;
}

// What a tile knows of a row -> the row's state in memory (kernels.h, RowStates).
__device__ __forceinline__ void store_row(const FoldTile& p, std::int64_t row, SoftmaxState<double> state,
                                          bool holds_target, double target_logit) {
  double* const at = p.states.state + row;
  const std::int64_t stride = p.states.state_stride;
  if (!p.fresh) {
    SoftmaxState<double> before = {at[0], at[stride], at[2 * stride], at[3 * stride]};
    before.merge(state, inverse_temperature_of(p.tile.transform, row));
    state = before;
  }
  at[0] = state.m;
  at[stride] = state.c;
  at[2 * stride] = state.r;
  at[3 * stride] = state.u;
  if (p.states.target_logit != nullptr && (p.fresh || holds_target)) p.states.target_logit[row] = target_logit;
}

__device__ __forceinline__ double not_a_number() { return __builtin_nan(""); }

// The target's column in this tile, or -1.
__device__ __forceinline__ std::int64_t target_column(const LogitsTile& tile, std::int64_t row) {
  if (tile.target == nullptr) return -1;
  const std::int64_t target = tile.target[row];
  const bool inside = target >= tile.first_column && target - tile.first_column < tile.cols;
  return inside ? target - tile.first_column : -1;
}

template <typename T, bool kPlain>
__device__ __forceinline__ void fold_tile(const FoldTile& p, double* partial, std::int64_t splits) {
  using Real = typename ScalarTraits<T>::Accumulator;
  const RowPart part = row_part_of_block(splits);
  const std::int64_t row = part.row, split = part.index;
  const Piece piece = piece_of(p.tile.cols, splits, split);
  const T* const logits = static_cast<const T*>(p.tile.logits) + row * p.tile.row_stride;
  const Transform<Real, kPlain> transform(p.tile.transform);
  const double inverse_temperature = inverse_temperature_of(p.tile.transform, row);

  SoftmaxState<Real> s = fold_run<T, kPlain>(logits, piece.begin, piece.end, transform, inverse_temperature);
  s = merge_block(s, static_cast<Real>(inverse_temperature));
  if (threadIdx.x != 0) return;

  const std::int64_t column = target_column(p.tile, row);
  const bool holds_target = column >= piece.begin && column < piece.end;
  double target_logit = not_a_number();
  if (holds_target) target_logit = transform.logit(ScalarTraits<T>::load(logits[column]), column);
  const SoftmaxState<double> state = {static_cast<double>(s.m), static_cast<double>(s.c), static_cast<double>(s.r),
                                      static_cast<double>(s.u)};
  if (splits == 1) {
    store_row(p, row, state, holds_target, target_logit);
    return;
  }
  double* const at = partial + split * 5 * p.tile.rows + row;
  at[0] = state.m;
  at[p.tile.rows] = state.c;
  at[2 * p.tile.rows] = state.r;
  at[3 * p.tile.rows] = state.u;
  at[4 * p.tile.rows] = target_logit;
}

// (splits, 5, rows) partial states -> the rows' states. Grid: one warp per row; lane l takes splits l, l + 32, ... in
// order. Bytes per row: 40 * splits read. Limit: latency; there are few rows where there are splits at all.
__device__ __forceinline__ void merge_splits(const FoldTile& p, const double* partial, std::int64_t splits) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const std::int64_t row = (static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / kWarp;
  if (row >= p.tile.rows) return;  // the whole warp
  const double inverse_temperature = inverse_temperature_of(p.tile.transform, row);
  SoftmaxState<double> state = SoftmaxState<double>::empty();
  double target_logit = not_a_number();
  for (std::int64_t split = lane; split < splits; split += kWarp) {
    const double* const at = partial + split * 5 * p.tile.rows + row;
    const SoftmaxState<double> other = {at[0], at[p.tile.rows], at[2 * p.tile.rows], at[3 * p.tile.rows]};
    state.merge(other, inverse_temperature);
    const double found = at[4 * p.tile.rows];
    if (found == found) target_logit = found;
  }
  state = merge_warp(state, inverse_temperature);
#pragma unroll 1
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const double found = shuffle_down(target_logit, offset);
    if (found == found) target_logit = found;
  }
  if (lane == 0) store_row(p, row, state, target_column(p.tile, row) >= 0, target_logit);
}

}  // namespace device
}  // namespace cer

// Two blocks of 512 threads on a multiprocessor leave 64 registers a thread; doubles need a few more and get them.
#define CER_FOLD_TILE_KERNEL(name, T, kPlain)                                                       \
  extern "C" __global__ void __launch_bounds__(512, sizeof(T) == 8 ? 1 : 2)                         \
      name(const __grid_constant__ cer::FoldTile p, double* partial, std::int64_t splits) {         \
    cer::device::fold_tile<T, kPlain>(p, partial, splits);                                          \
  }
CER_FOLD_TILE_KERNEL(cer_fold_tile_float32_plain, float, true)
CER_FOLD_TILE_KERNEL(cer_fold_tile_float32_general, float, false)
CER_FOLD_TILE_KERNEL(cer_fold_tile_bfloat16_plain, cer::BFloat16, true)
CER_FOLD_TILE_KERNEL(cer_fold_tile_bfloat16_general, cer::BFloat16, false)
CER_FOLD_TILE_KERNEL(cer_fold_tile_float16_plain, cer::Float16, true)
CER_FOLD_TILE_KERNEL(cer_fold_tile_float16_general, cer::Float16, false)
CER_FOLD_TILE_KERNEL(cer_fold_tile_float64_plain, double, true)
CER_FOLD_TILE_KERNEL(cer_fold_tile_float64_general, double, false)
#undef CER_FOLD_TILE_KERNEL

extern "C" __global__ void __launch_bounds__(128)
    cer_merge_splits(const __grid_constant__ cer::FoldTile p, const double* partial, std::int64_t splits) {
  cer::device::merge_splits(p, partial, splits);
}
