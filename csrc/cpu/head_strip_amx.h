// A strip of the logits of a bfloat16 head on matrix tiles (AMX): what head_strip.h does, with tdpbf16ps. Included by
// kernels.cpp alone, inside its namespace per instruction set, where the set has AMX.
//
//     per 32 entries of the width, in order:   x_ij += (sum over even k of h_ik w_jk) + (sum over odd k of h_ik w_jk)
//
// in float, each sum rounded, so a logit depends on its own row and column alone: not on tiles, threads or what else is in
// the strip. Subnormal operands and sums count as zero, NaN and infinities propagate, whatever the control register says.
//
// A panel is 32 rows, packed as they are: rows of `pairs` words. Four tiles of sums (2 x 16 rows, 2 x 16 columns), two of
// hidden rows, two of the transposed weight (head_weight.h): eight, all there are, and 4 products of 16 cycles for 4 loads
// of 8 or more. A row's end that fills no tile is multiplied from a copy filled up with zeros.
// Limit: the products (2 x 16 x 16 x 32 operations in 16 cycles); with few rows the read of the weight.
#if defined(__AMX_BF16__)

#include "cpu/head_weight.h"

namespace {

constexpr std::int64_t kTileRows = 16;
constexpr std::int64_t kPanelRows = 2 * kTileRows;
constexpr std::int64_t kStepPairs = kLanesOfPairs;  // pairs of one product: 64 bytes of a tile's row

// What ldtilecfg reads: shapes of the eight tiles, in bytes a row and rows.
struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "as the processor reads it");

// Tiles 0 to 3: sums of the upper and the lower rows; 4, 5: hidden rows; 6, 7: weight.
void configure(std::int64_t panel_rows) {
  TileShapes shapes;
  const std::int64_t upper = panel_rows < kTileRows ? panel_rows : kTileRows;
  const std::int64_t lower = panel_rows > kTileRows ? panel_rows - kTileRows : kTileRows;  // without any: not used
  const std::int64_t rows[8] = {upper, upper, lower, lower, upper, lower, kStepPairs, kStepPairs};
  for (int i = 0; i < 8; ++i) {
    shapes.row_bytes[i] = 64;
    shapes.rows[i] = static_cast<std::uint8_t>(rows[i]);
  }
  _tile_loadconfig(&shapes);
}

// The sums of the tiles += hidden (16 or 32 rows, 16 pairs) weight (16 pairs, 32 columns). Strides in words.
template <bool kLower>
inline void add_products(const std::uint32_t* hidden, std::int64_t row_stride, const std::uint32_t* weight) {
  _tile_loadd(6, weight, kStripColumns * 4);
  _tile_loadd(4, hidden, row_stride * 4);
  _tile_loadd(7, weight + kLanesOfPairs, kStripColumns * 4);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if (kLower) {
    _tile_loadd(5, hidden + kTileRows * row_stride, row_stride * 4);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// logits (a panel's rows, 32 columns) = or += the sum over `pairs` of hidden and weight (pairs, 32).
template <bool kLower>
void add_panel(const std::uint32_t* hidden, std::int64_t hidden_stride, std::int64_t rows, const std::uint32_t* weight,
               std::int64_t pairs, bool fresh, float* logits, std::int64_t logits_stride) {
  float* lower = logits + kTileRows * logits_stride;
  if (fresh) {
    _tile_zero(0);
    _tile_zero(1);
    if (kLower) {
      _tile_zero(2);
      _tile_zero(3);
    }
  } else {
    _tile_loadd(0, logits, logits_stride * 4);
    _tile_loadd(1, logits + kTileRows, logits_stride * 4);
    if (kLower) {
      _tile_loadd(2, lower, logits_stride * 4);
      _tile_loadd(3, lower + kTileRows, logits_stride * 4);
    }
  }
  std::int64_t pair = 0;
  for (; pair + kStepPairs <= pairs; pair += kStepPairs) {
    add_products<kLower>(hidden + pair, hidden_stride, weight + pair * kStripColumns);
  }
  if (pair < pairs) {
    alignas(64) std::uint32_t last[kPanelRows * kStepPairs] = {};
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t k = pair; k < pairs; ++k) last[i * kStepPairs + k - pair] = hidden[i * hidden_stride + k];
    }
    asm volatile("" ::: "memory");  // see head_strip
    add_products<kLower>(last, kStepPairs, weight + pair * kStripColumns);
  }
  _tile_stored(0, logits, logits_stride * 4);
  _tile_stored(1, logits + kTileRows, logits_stride * 4);
  if (kLower) {
    _tile_stored(2, lower, logits_stride * 4);
    _tile_stored(3, lower + kTileRows, logits_stride * 4);
  }
}

// One panel: hidden (rows <= kPanelRows, width) -> packed (rows, pairs).
void pack_panel(const std::uint16_t* hidden, std::int64_t row_stride, std::int64_t rows, std::int64_t width,
                std::uint32_t* packed) {
  const std::int64_t pairs = (width + 1) / 2;
  for (std::int64_t i = 0; i < rows; ++i, packed += pairs) {
    if (width % 2) packed[pairs - 1] = 0;
    __builtin_memcpy(packed, hidden + i * row_stride, static_cast<std::size_t>(width) * sizeof *hidden);
  }
}

// Tiles know no masks: a strip of fewer columns goes through a buffer.
void copy(const float* from, std::int64_t from_stride, float* to, std::int64_t to_stride, std::int64_t rows,
          std::int64_t cols) {
  for (std::int64_t i = 0; i < rows; ++i) {
    __builtin_memcpy(to + i * to_stride, from + i * from_stride, static_cast<std::size_t>(cols) * sizeof *to);
  }
}

void head_strip(const std::uint32_t* packed_hidden, std::int64_t rows, std::int64_t width, const std::uint16_t* weight,
                std::int64_t weight_row_stride, std::int64_t cols, float* logits, std::int64_t logits_row_stride) {
  alignas(64) std::uint32_t packed_weight[kChunkPairs * kStripColumns];
  alignas(64) float buffer[kPanelRows * kStripColumns];
  const bool whole = cols == kStripColumns;
  const std::int64_t pairs = (width + 1) / 2;
  std::int64_t pair = 0, configured = 0;
  do {  // once at least: without a width the logits are zeros
    const std::int64_t taken = pairs - pair < kChunkPairs ? pairs - pair : kChunkPairs;
    const std::int64_t elements = width - 2 * pair < 2 * taken ? width - 2 * pair : 2 * taken;
    pack_weight(weight + 2 * pair, weight_row_stride, cols, elements, packed_weight);
    asm volatile("" ::: "memory");  // GCC's tile loads do not say that they read memory: what was written must be there
    for (std::int64_t row = 0; row < rows; row += kPanelRows) {
      const std::int64_t panel_rows = rows - row < kPanelRows ? rows - row : kPanelRows;
      if (panel_rows != configured) configure(configured = panel_rows);
      float* out = logits + row * logits_row_stride;
      float* to = whole ? out : buffer;
      const std::int64_t to_stride = whole ? logits_row_stride : kStripColumns;
      if (!whole && pair) {
        copy(out, logits_row_stride, buffer, kStripColumns, panel_rows, cols);
        asm volatile("" ::: "memory");
      }
      const auto add = panel_rows > kTileRows ? add_panel<true> : add_panel<false>;
      add(packed_hidden + row * pairs + pair, pairs, panel_rows, packed_weight, taken, pair == 0, to, to_stride);
      if (!whole) copy(buffer, kStripColumns, out, logits_row_stride, panel_rows, cols);
    }
    pair += taken;
  } while (pair < pairs);
  _tile_release();
}

constexpr HeadKernels kHead{kPanelRows, pack_panel, head_strip};

}  // namespace

#endif
