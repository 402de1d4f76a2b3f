// A strip of the logits of a bfloat16 head: (rows, cols <= kStripColumns) float = hidden weight^T, nothing rounded to
// bfloat16 on the way. Included by kernels.cpp alone, inside its namespace per instruction set, where the set has vdpbf16ps
// and no matrix tiles (head_strip_amx.h).
//
//     x_ij = sum over pairs k, in order, of   h_i,2k+1 w_j,2k+1  then  h_i,2k w_j,2k      each added to a float sum, rounded
//
// so a logit depends on its own row and column alone: not on tiles, threads or what else is in the strip.
//
// Panels of packed hidden states are kPanelRows = 14 rows, and in a panel of r rows (pairs, r) words of 32 bits, word (k, i) =
// entries 2k (low) and 2k + 1 of row i.
//
// Lanes are columns: sums leave in the order they are stored in. Of the weight, kChunkPairs pairs at a time are transposed
// onto the stack, (pair, column); one pair of every column meets one of each hidden row, broadcast from the packed
// panel: 14 x 2 sums, 2 vectors of columns and a broadcast in 31 of the 32 registers. Sums go through the
// tile of logits between chunks, 28 loads and stores beside 7168 vdpbf16ps, so that the stack's need is independent of the
// width (chunks of 128 pairs: the same time).
// Limit: one vdpbf16ps per cycle, 32 products each; with few rows the read of the weight. On two Zen 4 cores the product
// of 512 x 1024 x 151936 takes 0.44 s; so many vdpbf16ps alone 0.36 s.
//
// The alternative that lost on paper: broadcasting the weight where it lies. It saves the transposition, but 14 rows
// of a width of 2048 or 4096 fall on one set of an 8-way L1, and the logits come out transposed.

#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)

#include "cpu/head_weight.h"

namespace {

constexpr std::int64_t kPanelRows = 14;

// One panel: hidden (rows <= kPanelRows, width) -> packed (pairs, rows).
void pack_panel(const std::uint16_t* hidden, std::int64_t row_stride, std::int64_t rows, std::int64_t width,
                std::uint32_t* packed) {
  for (std::int64_t k = 0; k < width; k += 2) {
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::uint16_t* from = hidden + i * row_stride + k;
      const std::uint32_t second = k + 1 < width ? from[1] : 0;
      *packed++ = from[0] | second << 16;
    }
  }
}

// logits (kRows, columns of the masks) = or += the sum over `pairs` of hidden (pairs, kRows) and weight (pairs, columns).
// vdpbf16ps rounds to nearest and takes subnormal numbers (below 1.2e-38) as zeros and gives zeros for them, whatever the
// control register says: a subnormal operand would show only beside one above 1e30. NaN and infinities propagate.
template <int kRows>
void add_products(const std::uint32_t* hidden, const std::uint32_t* weight, std::int64_t pairs, bool fresh, float* logits,
                  std::int64_t row_stride, __mmask16 low, __mmask16 high) {
  __m512 sum[kRows][2];
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
    sum[i][0] = fresh ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(low, logits + i * row_stride);
    sum[i][1] = fresh ? _mm512_setzero_ps() : _mm512_maskz_loadu_ps(high, logits + i * row_stride + kLanesOfPairs);
  }
  for (std::int64_t k = 0; k < pairs; ++k) {
    const __m512bh columns[2] = {(__m512bh)_mm512_load_si512(weight + k * kStripColumns),
                                 (__m512bh)_mm512_load_si512(weight + k * kStripColumns + kLanesOfPairs)};
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(static_cast<int>(hidden[k * kRows + i]));
      sum[i][0] = _mm512_dpbf16_ps(sum[i][0], columns[0], pair);
      sum[i][1] = _mm512_dpbf16_ps(sum[i][1], columns[1], pair);
    }
  }
#pragma GCC unroll 14
  for (int i = 0; i < kRows; ++i) {
    _mm512_mask_storeu_ps(logits + i * row_stride, low, sum[i][0]);
    _mm512_mask_storeu_ps(logits + i * row_stride + kLanesOfPairs, high, sum[i][1]);
  }
}

using AddProducts = void (*)(const std::uint32_t*, const std::uint32_t*, std::int64_t, bool, float*, std::int64_t,
                             __mmask16, __mmask16);
constexpr AddProducts kAddProducts[kPanelRows] = {
    add_products<1>, add_products<2>, add_products<3>,  add_products<4>,  add_products<5>,  add_products<6>,  add_products<7>,
    add_products<8>, add_products<9>, add_products<10>, add_products<11>, add_products<12>, add_products<13>, add_products<14>,
};

void head_strip(const std::uint32_t* packed_hidden, std::int64_t rows, std::int64_t width, const std::uint16_t* weight,
                std::int64_t weight_row_stride, std::int64_t cols, float* logits, std::int64_t logits_row_stride) {
  alignas(64) std::uint32_t packed_weight[kChunkPairs * kStripColumns];
  const auto mask = [cols](std::int64_t first) {
    const std::int64_t lanes = cols - first;
    return static_cast<__mmask16>(lanes >= kLanesOfPairs ? 0xffff : lanes > 0 ? (1 << lanes) - 1 : 0);
  };
  const __mmask16 low = mask(0), high = mask(kLanesOfPairs);
  const std::int64_t pairs = (width + 1) / 2;
  std::int64_t pair = 0;
  do {  // once at least: without a width the logits are zeros
    const std::int64_t taken = pairs - pair < kChunkPairs ? pairs - pair : kChunkPairs;
    const std::int64_t elements = width - 2 * pair < 2 * taken ? width - 2 * pair : 2 * taken;
    pack_weight(weight + 2 * pair, weight_row_stride, cols, elements, packed_weight);
    for (std::int64_t row = 0; row < rows; row += kPanelRows) {
      const std::int64_t panel_rows = rows - row < kPanelRows ? rows - row : kPanelRows;
      kAddProducts[panel_rows - 1](packed_hidden + row * pairs + pair * panel_rows, packed_weight, taken, pair == 0,
                                   logits + row * logits_row_stride, logits_row_stride, low, high);
    }
    pair += taken;
  } while (pair < pairs);
}

constexpr HeadKernels kHead{kPanelRows, pack_panel, head_strip};

}  // namespace

#endif
