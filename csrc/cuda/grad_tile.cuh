// grad_tile on the device: logits, row statistics and upstream gradients -> dlogits (equation in kernels.h).
//
//     t_j = (y_j - m)/T      p_j = e^t_j / e^log_sum
//     dx_j = slope_j/T * p_j * ( -(g - l) - h (t_j + spread) )                          every column but the target's
//     dx_t = slope_t/T * ( g (1 - p_t) + l p_t - h p_t (t_t + spread) )                  1 - p_t = -expm1(log p_t)
//
// Grid: `pieces` adjacent blocks per row, each a run of columns; elementwise, so no thread waits for another. Rows that
// are ignored or whose upstream gradients are all zero are filled with zeros and their logits are not read.
// Bytes per row: cols * (sizeof(In) + sizeof(Out)); a zero row only writes. Alignment: the elements'; 16-byte vectors
// of the wider type where the input's and the output's boundaries fall on the same columns (always so in place), else
// element by element, still coalesced. Every element is read, then written, by one thread: one buffer may be both.
// Limit: memory (about 18 instructions per logit; an H100 issues 36 while it moves two bytes in and two out).
#pragma once

#include "logit_transform.cuh"
#include "vector_access.cuh"

namespace cer {
namespace device {

// What a row's gradient needs, in registers. log p and 1 - p_target are formed in base e, the rest through PowerOf.
template <typename Real>
struct RowGradient {
  Real m, log_sum, spread;
  Real powers_per_logit, inverse_temperature, inverse_sum;  // inverse_sum = e^-log_sum
  Real g, h, l;
  Real constant, slope_of_distance;  // p_j * (constant + slope_of_distance * (t_j + spread)) = dL/dy_j
  std::int64_t target;               // column in the tile, or negative
  bool zero;

  __device__ __forceinline__ static Real upstream(const void* gradient, std::int64_t row) {
    return gradient == nullptr ? Real(0) : static_cast<const Real*>(gradient)[row];
  }

  __device__ __forceinline__ RowGradient(const GradTile& p, std::int64_t row) {
    g = upstream(p.grad_logprobs, row);
    h = upstream(p.grad_entropy, row);
    l = upstream(p.grad_lse, row);
    const std::int64_t vocabulary_index = p.tile.target[row];
    zero = vocabulary_index == p.ignore_index || (g == Real(0) && h == Real(0) && l == Real(0));
    if (zero) return;
    const double* const stats = p.stats.stats + row;
    const double inverse = inverse_temperature_of(p.tile.transform, row);
    m = static_cast<Real>(stats[0]);
    log_sum = static_cast<Real>(stats[p.stats.stats_stride]);
    spread = static_cast<Real>(stats[2 * p.stats.stats_stride]);
    inverse_sum = static_cast<Real>(exp(-stats[p.stats.stats_stride]));
    powers_per_logit = static_cast<Real>(inverse * PowerOf<Real>::kPerNat);
    inverse_temperature = static_cast<Real>(inverse);
    constant = static_cast<Real>(-(static_cast<double>(g) - static_cast<double>(l)) * inverse);
    slope_of_distance = static_cast<Real>(-static_cast<double>(h) * inverse);
    target = vocabulary_index >= p.tile.first_column ? vocabulary_index - p.tile.first_column : -1;
  }

  // dL/dy_j for a column that is not the target's.
  __device__ __forceinline__ Real elsewhere(Real y) const {
    constexpr Real kLowest = static_cast<Real>(-kFarthest * PowerOf<Real>::kPerNat);
    const Real t = (y - m) * powers_per_logit;
    const Real p = PowerOf<Real>::raise(t) * inverse_sum;
    const Real distance = larger(t, kLowest) * static_cast<Real>(PowerOf<Real>::kNats);  // finite: 0 * distance is 0
    return p * (constant + slope_of_distance * (distance + spread));
  }

  __device__ __forceinline__ Real at_target(Real y) const {
    const Real t = (y - m) * inverse_temperature;
    const Real log_p = t - log_sum;
    const Real p = PowerOf<Real>::raise((y - m) * powers_per_logit) * inverse_sum;
    const Real distance = larger(t, static_cast<Real>(-kFarthest));
    return (g * -expm1_of(log_p) + l * p - h * p * (distance + spread)) * inverse_temperature;
  }
};

template <typename In, typename Out, bool kPlain>
__device__ __forceinline__ void grad_element(const RowGradient<typename ScalarTraits<In>::Accumulator>& row,
                                             const Transform<typename ScalarTraits<In>::Accumulator, kPlain>& transform,
                                             const In* logits, Out* dlogits, std::int64_t column) {
  using Real = typename ScalarTraits<In>::Accumulator;
  Real dx = Real(0);
  if (!row.zero) {
    const Real y = transform.logit(ScalarTraits<In>::load(logits[column]), column);
    dx = (column == row.target ? row.at_target(y) : row.elsewhere(y)) * transform.slope(y);
  }
  dlogits[column] = ScalarTraits<Out>::store(dx);
}

template <typename In, typename Out, bool kPlain>
__device__ __forceinline__ void grad_tile(const GradTile& p, std::int64_t pieces) {
  using Real = typename ScalarTraits<In>::Accumulator;
  constexpr int kWidth = 16 / static_cast<int>(sizeof(In) > sizeof(Out) ? sizeof(In) : sizeof(Out));
  constexpr int kInFlight = 4;
  const RowPart part = row_part_of_block(pieces);
  const std::int64_t row_index = part.row;
  const Piece piece = piece_of(p.tile.cols, pieces, part.index);
  const In* const logits = static_cast<const In*>(p.tile.logits) + row_index * p.tile.row_stride;
  Out* const dlogits = static_cast<Out*>(p.dlogits) + row_index * p.dlogits_row_stride;
  const Transform<Real, kPlain> transform(p.tile.transform);
  const RowGradient<Real> row(p, row_index);

  // Vectors need one alignment on both sides; a row of zeros has only the one.
  const std::int64_t count = piece.end - piece.begin;
  const int to_boundary = elements_to_boundary<Out, kWidth>(dlogits + piece.begin);
  const bool together = row.zero || to_boundary == elements_to_boundary<In, kWidth>(logits + piece.begin);
  const Run run = run_of<kWidth>(count, together ? to_boundary : count);
  const std::int64_t threads = blockDim.x;
  const std::int64_t vectors_begin = piece.begin + run.head;

  for (std::int64_t j = threadIdx.x; j < run.head; j += threads) {
    grad_element<In, Out, kPlain>(row, transform, logits, dlogits, piece.begin + j);
  }
  for (std::int64_t vector = threadIdx.x; vector < run.vectors; vector += kInFlight * threads) {
    Packed<In, kWidth> in[kInFlight];
    Packed<Out, kWidth> out;
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (!row.zero && vector + i * threads < run.vectors) {
        in[i].read(logits + vectors_begin + (vector + i * threads) * kWidth);
      }
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      if (vector + i * threads >= run.vectors) break;
      const std::int64_t first = vectors_begin + (vector + i * threads) * kWidth;
      out.zero();
      if (!row.zero) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const Real y = transform.logit(element(in[i], j), first + j);
          const Real dx = row.elsewhere(y) * transform.slope(y);
          set_element(out, j, static_cast<typename ScalarTraits<Out>::Accumulator>(dx));
        }
      }
      out.write(dlogits + first);
      // The target's own formula, once a row, over what was just written; its logit is still in registers.
      if (!row.zero && row.target >= first && row.target < first + kWidth) {
        Real x = Real(0);
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          if (row.target == first + j) x = element(in[i], j);
        }
        const Real y = transform.logit(x, row.target);
        dlogits[row.target] = ScalarTraits<Out>::store(row.at_target(y) * transform.slope(y));
      }
    }
  }
  for (std::int64_t j = run.tail_begin + threadIdx.x; j < count; j += threads) {
    grad_element<In, Out, kPlain>(row, transform, logits, dlogits, piece.begin + j);
  }
}

}  // namespace device
}  // namespace cer

// Four blocks on a multiprocessor leave 64 registers a thread; doubles need more.
#define CER_GRAD_TILE_KERNEL(name, In, Out, kPlain)                                      \
  extern "C" __global__ void __launch_bounds__(256, sizeof(In) == sizeof(double) ? 2 : 4) \
      name(const __grid_constant__ cer::GradTile p, std::int64_t pieces) { \
    cer::device::grad_tile<In, Out, kPlain>(p, pieces);                    \
  }
CER_GRAD_TILE_KERNEL(cer_grad_tile_float32_float32_plain, float, float, true)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float32_float32_general, float, float, false)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float32_bfloat16_plain, float, cer::BFloat16, true)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float32_bfloat16_general, float, cer::BFloat16, false)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float32_float16_plain, float, cer::Float16, true)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float32_float16_general, float, cer::Float16, false)
CER_GRAD_TILE_KERNEL(cer_grad_tile_bfloat16_bfloat16_plain, cer::BFloat16, cer::BFloat16, true)
CER_GRAD_TILE_KERNEL(cer_grad_tile_bfloat16_bfloat16_general, cer::BFloat16, cer::BFloat16, false)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float16_float16_plain, cer::Float16, cer::Float16, true)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float16_float16_general, cer::Float16, cer::Float16, false)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float64_float64_plain, double, double, true)
CER_GRAD_TILE_KERNEL(cer_grad_tile_float64_float64_general, double, double, false)
#undef CER_GRAD_TILE_KERNEL
