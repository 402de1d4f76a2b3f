// head_tile and pack_hidden on the CPU: bfloat16 hidden states and weight -> a float tile of logits (kernels.h).
//
// A task is a strip of kStripColumns columns and all rows, or, where there are fewer strips than threads to give them to,
// some of the rows' panels. Every logit is one sum in one order (head_strip.h), so neither shows in the result.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/pool.h"
#include "kernels.h"

namespace cer::cpu {

bool has_head_tile() { return active_kernels().head_strip != nullptr; }

void pack_hidden(const PackHidden& p, int threads) {
  const std::uint16_t* hidden = static_cast<const std::uint16_t*>(p.hidden);
  std::uint32_t* packed = static_cast<std::uint32_t*>(p.packed);
  const std::int64_t pairs = (p.width + 1) / 2;
  run((p.rows + kPanelRows - 1) / kPanelRows, threads, [&](std::int64_t panel) {
    const std::int64_t first = panel * kPanelRows, rows = std::min(kPanelRows, p.rows - first);
    std::uint32_t* to = packed + first * pairs;
    for (std::int64_t k = 0; k < pairs; ++k) {
      for (std::int64_t i = 0; i < rows; ++i) {
        const std::uint16_t* from = hidden + (first + i) * p.row_stride + 2 * k;
        const std::uint32_t second = 2 * k + 1 < p.width ? from[1] : 0;
        *to++ = from[0] | second << 16;
      }
    }
  });
}

void head_tile(const HeadTile& p, int threads) {
  const IsaKernels& kernels = active_kernels();
  if (!kernels.head_strip) {
    throw std::runtime_error(std::string("head_tile: no product of bfloat16 in the instruction set ") + kernels.name);
  }
  const std::uint32_t* packed = static_cast<const std::uint32_t*>(p.packed_hidden);
  const std::uint16_t* weight = static_cast<const std::uint16_t*>(p.weight);
  const std::int64_t pairs = (p.width + 1) / 2;
  const std::int64_t strips = (p.cols + kStripColumns - 1) / kStripColumns;
  const std::int64_t panels = (p.rows + kPanelRows - 1) / kPanelRows;
  if (!strips || !panels) return;
  const std::int64_t parts = std::clamp<std::int64_t>(threads / strips, 1, panels);
  const std::int64_t rows_per_part = (panels + parts - 1) / parts * kPanelRows;
  run(strips * parts, threads, [&](std::int64_t task) {
    const std::int64_t column = task / parts * kStripColumns, row = task % parts * rows_per_part;
    if (row >= p.rows) return;
    kernels.head_strip(packed + row * pairs, std::min(rows_per_part, p.rows - row), p.width,
                       weight + column * p.weight_row_stride, p.weight_row_stride,
                       std::min(kStripColumns, p.cols - column), p.logits + row * p.logits_row_stride + column,
                       p.logits_row_stride);
  });
}

}  // namespace cer::cpu
