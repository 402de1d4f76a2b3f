// A strip of the logits of a bfloat16 head: (rows, cols <= kStripColumns) float = hidden weight^T, nothing rounded to
// bfloat16 on the way. Included by kernels.cpp alone, inside its namespace per instruction set, where the set has vdpbf16ps.
//
//     x_ij = sum over pairs k, in order, of   h_i,2k+1 w_j,2k+1  then  h_i,2k w_j,2k      each added to a float sum, rounded
//
// so a logit depends on its own row and column alone: not on tiles, threads or what else is in the strip.
//
// Lanes are columns: sums leave in the order they are stored in. Of the weight, kChunkPairs pairs at a time are transposed
// onto the stack, (pair, column); one pair of every column meets one of each hidden row, broadcast from the packed
// panel (kernels.h): 14 x 2 sums, 2 vectors of columns and a broadcast in 31 of the 32 registers. Sums go through the
// tile of logits between chunks, 28 loads and stores beside 7168 vdpbf16ps, so that the stack's need is independent of the
// width (chunks of 128 pairs: the same time).
// Limit: one vdpbf16ps per cycle, 32 products each; with few rows the read of the weight. On two Zen 4 cores the product
// of 512 x 1024 x 151936 takes 0.44 s; so many vdpbf16ps alone 0.36 s.
//
// The alternative that lost on paper: broadcasting the weight where it lies. It saves the transposition, but 14 rows
// of a width of 2048 or 4096 fall on one set of an 8-way L1, and the logits come out transposed.

#if defined(__AVX512BF16__)

namespace {

constexpr std::int64_t kChunkPairs = 256;  // 32 KiB of stack
constexpr int kLanesOfPairs = 16;
static_assert(kStripColumns == 2 * kLanesOfPairs && kChunkPairs % kLanesOfPairs == 0, "two vectors of columns");

// r[i] word j <-> r[j] word i.
inline void transpose(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  // Now quarter q of r[4 g + c] holds word 4 q + c of rows 4 g to 4 g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512i even_low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0x88);
    const __m512i even_high = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(r[c], r[4 + c], 0xdd);
    const __m512i odd_high = _mm512_shuffle_i32x4(r[8 + c], r[12 + c], 0xdd);
    t[c] = _mm512_shuffle_i32x4(even_low, even_high, 0x88);
    t[4 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0x88);
    t[8 + c] = _mm512_shuffle_i32x4(even_low, even_high, 0xdd);
    t[12 + c] = _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

// weight: (cols, width) from its first column of interest on -> packed (pairs, kStripColumns), pairs rounded up to 16;
// zeros for what is not there: the second half of an odd width's last pair, columns from cols on.
inline void pack_weight(const std::uint16_t* weight, std::int64_t row_stride, std::int64_t cols, std::int64_t width,
                        std::uint32_t* packed) {
  for (std::int64_t first = 0; first < kStripColumns; first += kLanesOfPairs) {
    for (std::int64_t k = 0; k < width; k += 2 * kLanesOfPairs) {
      const std::int64_t rest = width - k;
      const __mmask32 there = rest >= 32 ? ~__mmask32{0} : (__mmask32{1} << rest) - 1;
      __m512i r[16];
      for (std::int64_t j = 0; j < kLanesOfPairs; ++j) {
        const bool column = first + j < cols;
        r[j] = column ? _mm512_maskz_loadu_epi16(there, weight + (first + j) * row_stride + k) : _mm512_setzero_si512();
      }
      transpose(r);
      for (std::int64_t i = 0; i < kLanesOfPairs; ++i) {
        _mm512_store_si512(packed + (k / 2 + i) * kStripColumns + first, r[i]);
      }
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

}  // namespace

#endif
