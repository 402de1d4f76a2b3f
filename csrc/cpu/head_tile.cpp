// head_tile and pack_hidden on the CPU: bfloat16 hidden states and weight -> a float tile of logits (kernels.h).
//
// A task is a strip of kStripColumns columns and all rows, or, where there are fewer strips than threads to give them to,
// some of the rows' panels. Every logit is one sum in one order (head_strip.h, head_strip_amx.h), so neither shows in the result.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cpu/pool.h"
#include "kernels.h"

namespace cer::cpu {

namespace {

const HeadKernels& head_kernels() {
  const IsaKernels& kernels = active_kernels();
  if (!kernels.head) {
    throw std::runtime_error(std::string("head_tile: no product of bfloat16 in the instruction set ") + kernels.name);
  }
  return *kernels.head;
}

}  // namespace

bool has_head_tile() { return active_kernels().head != nullptr; }

void pack_hidden(const PackHidden& p, int threads) {
  const HeadKernels& kernels = head_kernels();
  const std::uint16_t* hidden = static_cast<const std::uint16_t*>(p.hidden);
  std::uint32_t* packed = static_cast<std::uint32_t*>(p.packed);
  const std::int64_t pairs = (p.width + 1) / 2;
  run((p.rows + kernels.panel_rows - 1) / kernels.panel_rows, threads, [&](std::int64_t panel) {
    const std::int64_t first = panel * kernels.panel_rows, rows = std::min(kernels.panel_rows, p.rows - first);
    kernels.pack_panel(hidden + first * p.row_stride, p.row_stride, rows, p.width, packed + first * pairs);
  });
}

void head_tile(const HeadTile& p, int threads) {
  const HeadKernels& kernels = head_kernels();
  const std::uint32_t* packed = static_cast<const std::uint32_t*>(p.packed_hidden);
  const std::uint16_t* weight = static_cast<const std::uint16_t*>(p.weight);
  const std::int64_t pairs = (p.width + 1) / 2;
  const std::int64_t strips = (p.cols + kStripColumns - 1) / kStripColumns;
  const std::int64_t panels = (p.rows + kernels.panel_rows - 1) / kernels.panel_rows;
  if (!strips || !panels) return;
  const std::int64_t parts = std::clamp<std::int64_t>(threads / strips, 1, panels);
  const std::int64_t rows_per_part = (panels + parts - 1) / parts * kernels.panel_rows;
  run(strips * parts, threads, [&](std::int64_t task) {
    const std::int64_t column = task / parts * kStripColumns, row = task % parts * rows_per_part;
    if (row >= p.rows) return;
    kernels.strip(packed + row * pairs, std::min(rows_per_part, p.rows - row), p.width,
                       weight + column * p.weight_row_stride, p.weight_row_stride,
                       std::min(kStripColumns, p.cols - column), p.logits + row * p.logits_row_stride + column,
                       p.logits_row_stride);
  });
}

}  // namespace cer::cpu
