// Every operation of csrc, once: a parameter struct and one declaration per device.
//
// The data:   hidden states -> pack_hidden; packed hidden states, weight -> head_tile -> logits tile (bfloat16 on a CPU;
//             a GEMM of torch makes the tile elsewhere)
//             logits tile -> fold_tile -> row states -> finish_rows -> log-probabilities, entropies, row statistics
//             row states of every rank -> merge_states -> row states (where the vocabulary is spread over ranks)
//             logits tile, row statistics, upstream gradients -> grad_tile -> dlogits
//             entropies -> teca_forward / teca_backward
//
// The logit that enters the softmax is   y = softcap * tanh(scale * (x + bias) / softcap)   (softcap 0: no cap), and
// p = softmax(y / T). Rows are rows of the tile; pointers to per-row data point at the tile's first row; a stride
// between components (state_stride, stats_stride) is in elements. Offsets are 64-bit throughout.
//
// No torch, no Python: addresses in, addresses out, the caller owns all memory. "Real" below is float, or double where
// the logits are double. Functions throw std::runtime_error (CUDA errors) and never exit.
#pragma once

#include <cstdint>

namespace cer {

enum class ScalarType : std::int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat64 = 3 };

// How a stored logit becomes the logit of the softmax, and each row's temperature.
struct LogitTransform {
  const void* bias = nullptr;                   // (cols,) Real, at the tile's first column; null: no bias
  double scale = 1.0;                           // logit_scale
  double softcap = 0.0;                         // 0: none
  const double* inverse_temperature = nullptr;  // (rows,) 1/T; null: inverse_temperature_all for every row
  double inverse_temperature_all = 1.0;
};

// What a tile holds and where it lies in the vocabulary.
struct LogitsTile {
  const void* logits = nullptr;  // (rows, cols), columns adjacent, any alignment of the element type
  ScalarType dtype = ScalarType::kFloat32;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::int64_t row_stride = 0;     // elements; 0 is allowed (an expanded row)
  std::int64_t first_column = 0;   // vocabulary index of column 0
  LogitTransform transform;
  const std::int64_t* target = nullptr;  // (rows,) vocabulary indices; any value, only a match in this tile counts
};

// One SoftmaxState<double> per row, component k (m, c, r, u) of row i at state[k * state_stride + i].
// States are kept in double between tiles whatever the logits are, so the number of tiles does not show in the result.
struct RowStates {
  double* state = nullptr;
  std::int64_t state_stride = 0;
  double* target_logit = nullptr;  // (rows,) y at the target; written by the tile that holds it
};

// fold_tile: states <- merge(states, fold of the tile). `fresh` replaces the states instead (first tile of a row) and
// sets target_logit to NaN where the tile does not hold the target.
struct FoldTile {
  LogitsTile tile;
  RowStates states;
  bool fresh = false;
};

// merge_states: states of the same rows over disjoint parts of the vocabulary (of the ranks of a group) -> one state each,
// merged in the order of the parts. A part without columns has the empty state and NaN for the target's logit.
struct MergeStates {
  const double* partial = nullptr;  // (parts, 5, rows) contiguous: the four components and the target's logit
  std::int64_t parts = 0;
  std::int64_t rows = 0;
  const double* inverse_temperature = nullptr;
  double inverse_temperature_all = 1.0;
  RowStates states;
};

// What the backward pass needs of a row, component k of row i at stats[k * stats_stride + i]: (m, log_sum, spread) of
// softmax_state.h. NaN in all three where the row is NaN.
struct RowStats {
  double* stats = nullptr;
  std::int64_t stats_stride = 0;
};

// finish_rows: states -> outputs, for any number of rows at the end of their tiles.
//   target == ignore_index         -> logprob, entropy and lse 0
//   target outside [0, vocabulary) -> logprob, entropy and lse NaN (never a plausible number)
struct FinishRows {
  RowStates states;
  std::int64_t rows = 0;
  const std::int64_t* target = nullptr;
  std::int64_t ignore_index = -100;
  std::int64_t vocabulary = 0;
  const double* inverse_temperature = nullptr;
  double inverse_temperature_all = 1.0;
  bool double_outputs = false;  // outputs are double instead of float
  void* logprobs = nullptr;     // (rows,)
  void* entropy = nullptr;      // (rows,) or null
  void* lse = nullptr;          // (rows,) or null
  RowStats stats;               // or null
};

// grad_tile: with g, h, l the upstream gradients of logprob, entropy and lse (a null one is zero), d_j = (y_j - m)/T,
//
//     dL/dx_j = dy_j/dx_j / T * ( g [j = target] - (g - l) p_j - h p_j (d_j + spread) )
//
// with dy/dx = scale (1 - (y/softcap)^2), and 1 - p_target formed as -expm1(log p). Ignored rows give exact zeros,
// and so do rows whose upstream gradients are all exactly zero (even where the row is NaN).
// dlogits may be the logits themselves where the dtypes agree (in place).
struct GradTile {
  LogitsTile tile;
  std::int64_t ignore_index = -100;
  RowStats stats;
  const void* grad_logprobs = nullptr;  // (rows,) Real or null
  const void* grad_entropy = nullptr;   // (rows,) Real or null
  const void* grad_lse = nullptr;       // (rows,) Real or null
  void* dlogits = nullptr;              // (rows, cols) of dlogits_dtype
  ScalarType dlogits_dtype = ScalarType::kFloat32;
  std::int64_t dlogits_row_stride = 0;
};

// pack_hidden: bfloat16 hidden states as head_tile reads them, in an order that is the instruction set's own
// (cpu/isa_kernels.h). Only where has_head_tile() says so.
struct PackHidden {
  const void* hidden = nullptr;  // (rows, width) bfloat16, entries of a row adjacent
  std::int64_t rows = 0;
  std::int64_t width = 0;
  std::int64_t row_stride = 0;  // elements
  void* packed = nullptr;       // (rows, 2 ceil(width / 2)) bfloat16's worth of memory, aligned to 4 bytes
};

// head_tile: logits = hidden weight^T. Products of bfloat16 are exact in float, sums are float and in one order for every
// tiling and number of threads; nothing is rounded to bfloat16. Subnormal operands and sums count as zero.
// CPU only, and only where has_head_tile() says so.
struct HeadTile {
  const void* packed_hidden = nullptr;  // of pack_hidden
  std::int64_t rows = 0;
  std::int64_t width = 0;
  const void* weight = nullptr;  // (cols, width) bfloat16, entries of a row adjacent, any alignment of the element
  std::int64_t weight_row_stride = 0;
  std::int64_t cols = 0;
  float* logits = nullptr;  // (rows, cols), columns adjacent
  std::int64_t logits_row_stride = 0;
};

// teca_forward: over the tokens of each response, in order, the mean of the entropies so far (and the last of them).
// Padded: (responses, length) with an optional mask. Packed: response i is entropy[cu_seqlens[i] : cu_seqlens[i + 1]].
// Where mask is 0 the token is not part of the response: teca is 0 there and its entropy (NaN too) is never used.
// A response without tokens has last = 0.
struct Teca {
  bool is_double = false;                     // entropy, teca, last and gradients are double instead of float
  std::int64_t responses = 0;
  std::int64_t length = 0;                    // padded form
  const std::int64_t* cu_seqlens = nullptr;   // (responses + 1,) packed form; null: padded form
  const std::uint8_t* mask = nullptr;         // (responses, length), contiguous; null: every token counts
  const void* entropy = nullptr;              // contiguous
  void* teca = nullptr;                       // like entropy
  void* last = nullptr;                       // (responses,)
};

// teca_backward: grad_entropy_i = sum_{t >= i} grad_teca_t / n_t + grad_last / n, exact zeros where mask is 0.
struct TecaBackward {
  bool is_double = false;
  std::int64_t responses = 0;
  std::int64_t length = 0;
  const std::int64_t* cu_seqlens = nullptr;
  const std::uint8_t* mask = nullptr;
  const void* grad_teca = nullptr;  // like entropy, or null
  const void* grad_last = nullptr;  // (responses,) or null
  void* grad_entropy = nullptr;     // like entropy
};

#if !defined(__CUDACC_RTC__)  // the kernels compiled at first use see the structs alone
namespace cpu {
// `threads`: how many threads may work at most, the caller included. Same results for every value.
void fold_tile(const FoldTile& p, int threads);
void merge_states(const MergeStates& p, int threads);
void finish_rows(const FinishRows& p, int threads);
void grad_tile(const GradTile& p, int threads);
void teca_forward(const Teca& p, int threads);
void teca_backward(const TecaBackward& p, int threads);
// Whether the instruction set in use multiplies bfloat16 into float sums (AVX512-BF16).
bool has_head_tile();
void pack_hidden(const PackHidden& p, int threads);
void head_tile(const HeadTile& p, int threads);
}  // namespace cpu

namespace cuda {
// `stream`: a cudaStream_t of the current device. Nothing here waits for the device.
// fold_tile with few rows splits each row over `splits` blocks (launch_plan.h): `partial` then holds
// (splits, 5, rows) doubles, the four components and the target logit, and is merged in a fixed order.
void fold_tile(const FoldTile& p, double* partial, std::int64_t splits, void* stream);
void merge_states(const MergeStates& p, void* stream);
void finish_rows(const FinishRows& p, void* stream);
void grad_tile(const GradTile& p, void* stream);
void teca_forward(const Teca& p, void* stream);
void teca_backward(const TecaBackward& p, void* stream);
}  // namespace cuda
#endif

}  // namespace cer
