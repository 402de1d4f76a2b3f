// Launches fold_tile and, where rows are split, the merge of their partial states (kernels.h, launch_plan.h).
#include "fold_tile.cuh"
#include "launch.h"
#include "launch_plan.h"

namespace cer {
namespace cuda {

namespace {

using FoldKernel = void (*)(const FoldTile, double*, std::int64_t);

FoldKernel fold_kernel(ScalarType dtype, bool plain) {
  switch (dtype) {
    case ScalarType::kFloat32: return plain ? cer_fold_tile_float32_plain : cer_fold_tile_float32_general;
    case ScalarType::kBFloat16: return plain ? cer_fold_tile_bfloat16_plain : cer_fold_tile_bfloat16_general;
    case ScalarType::kFloat16: return plain ? cer_fold_tile_float16_plain : cer_fold_tile_float16_general;
    case ScalarType::kFloat64: return plain ? cer_fold_tile_float64_plain : cer_fold_tile_float64_general;
  }
  throw std::runtime_error("fold_tile: unknown dtype code " + std::to_string(static_cast<int>(dtype)));
}

}  // namespace

void fold_tile(const FoldTile& p, double* partial, std::int64_t splits, void* stream) {
  if (p.tile.rows <= 0) return;
  if (splits < 1 || (splits > 1 && partial == nullptr)) {
    throw std::runtime_error("fold_tile: splits is " + std::to_string(splits) + ", and more than one needs `partial`");
  }
  const LaunchPlan fold = fold_tile_plan(p.tile.rows, p.tile.cols, p.tile.dtype, splits);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  const FoldKernel kernel = fold_kernel(p.tile.dtype, is_plain(p.tile.transform));
  kernel<<<static_cast<unsigned int>(fold.blocks), fold.threads, 0, on>>>(p, partial, splits);
  check(cudaGetLastError(), "fold_tile");
  if (splits == 1) return;
  const LaunchPlan merge = merge_splits_plan(p.tile.rows);
  cer_merge_splits<<<static_cast<unsigned int>(merge.blocks), merge.threads, 0, on>>>(p, partial, splits);
  check(cudaGetLastError(), "fold_tile (merge of the splits)");
}

}  // namespace cuda
}  // namespace cer
