// What one compiled instruction set offers: straight loops over a stretch of one row, and nothing about rows, threads
// or states. kernels.cpp is compiled once per instruction set and defines one table each; dispatch.h picks one.
//
// Only plain types pass through here, and kernels.cpp shares no inline function with any other file: were one
// compiled with AVX-512 and with SSE2, the linker would keep either (one-definition rule).
// The tables are constants: nothing of an instruction set runs before it is chosen.
#pragma once

#include <cstdint>

namespace cer::cpu {

// The parts of a SoftmaxState (softmax_state.h) of one block of columns; r is NaN where the block has NaN or +inf.
struct BlockSums {
  double m, c, r, u;
};

constexpr std::int64_t kStripColumns = 32;  // of the logits that one call of HeadKernels::strip makes

// The product of bfloat16 with float sums. Hidden states are packed in panels of consecutive rows (the last: the rest), in
// the order that the instruction set reads; rows * pairs words in all, panel_rows * pairs from one panel to the next.
struct HeadKernels {
  std::int64_t panel_rows;

  // One panel of hidden (rows, width): pairs = ceil(width / 2) words a row, an odd width filled up with a zero.
  void (*pack_panel)(const std::uint16_t* hidden, std::int64_t row_stride, std::int64_t rows, std::int64_t width,
                     std::uint32_t* packed);

  // logits (rows, cols), cols <= kStripColumns, = hidden weight^T, hidden packed.
  void (*strip)(const std::uint32_t* packed_hidden, std::int64_t rows, std::int64_t width, const std::uint16_t* weight,
                std::int64_t weight_row_stride, std::int64_t cols, float* logits, std::int64_t logits_row_stride);
};

// Arrays are indexed by ScalarType. Entries are x, b is the inverse temperature; all sums are over the n entries.
struct IsaKernels {
  const char* name;

  // The largest entry; NaN is passed over.
  double (*largest[4])(const void* x, std::int64_t n);

  // Of the entries from the first on that lie strictly below m: r = sum e^(b(x-m)), u = sum e^(b(x-m)) b(m-x), one read,
  // one pass. Returns how many were taken: n, or fewer where an entry that is not below m follows within a few, or 0 where
  // there is a NaN anywhere. m must be exact in the entries' type.
  std::int64_t (*fold_below[4])(const void* x, std::int64_t n, double m, double b, double* r, double* u);

  // The block's own maximum, its count and the sums below it, in two passes.
  void (*fold_block[4])(const void* x, std::int64_t n, double b, BlockSums* sums);

  // y = softcap tanh(scale (x + bias) / softcap) (softcap 0: no cap) and slope = dy/dx (null: not wanted), in double.
  // bias: null, or float entries (double where x is double).
  void (*transform[4])(const void* x, const void* bias, std::int64_t n, double scale, double softcap, double* y,
                       double* slope);

  // out = e^d (a + h d), d = b(x-m); grad[logits' type][out's type], null where one is double and the other is not.
  // out may be x.
  void (*grad[4][4])(const void* x, std::int64_t n, double m, double b, double a, double h, void* out);

  // Null where the instruction set has no product of bfloat16.
  const HeadKernels* head;
};

namespace baseline {
extern const IsaKernels kernels;
}
#if defined(__x86_64__)
namespace avx2 {
extern const IsaKernels kernels;
}
namespace avx512 {
extern const IsaKernels kernels;
}
namespace avx512bf16 {
extern const IsaKernels kernels;
}
namespace amxbf16 {
extern const IsaKernels kernels;
}
#endif

}  // namespace cer::cpu
