// The weight of a bfloat16 head, a strip of columns by a chunk of its width, transposed for products of pairs. Included by
// head_strip.h and head_strip_amx.h.
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

}  // namespace

#endif
