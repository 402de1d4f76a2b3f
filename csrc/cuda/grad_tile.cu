// Launches grad_tile (kernels.h, launch_plan.h).
#include "grad_tile.cuh"
#include "launch.h"
#include "launch_plan.h"

namespace cer {
namespace cuda {

namespace {

using GradKernel = void (*)(const GradTile, std::int64_t);

GradKernel grad_kernel(ScalarType in, ScalarType out, bool plain) {
  if (in == ScalarType::kFloat32 && out == in) {
    return plain ? cer_grad_tile_float32_float32_plain : cer_grad_tile_float32_float32_general;
  }
  if (in == ScalarType::kFloat32 && out == ScalarType::kBFloat16) {
    return plain ? cer_grad_tile_float32_bfloat16_plain : cer_grad_tile_float32_bfloat16_general;
  }
  if (in == ScalarType::kFloat32 && out == ScalarType::kFloat16) {
    return plain ? cer_grad_tile_float32_float16_plain : cer_grad_tile_float32_float16_general;
  }
  if (in == ScalarType::kBFloat16 && out == in) {
    return plain ? cer_grad_tile_bfloat16_bfloat16_plain : cer_grad_tile_bfloat16_bfloat16_general;
  }
  if (in == ScalarType::kFloat16 && out == in) {
    return plain ? cer_grad_tile_float16_float16_plain : cer_grad_tile_float16_float16_general;
  }
  if (in == ScalarType::kFloat64 && out == in) {
    return plain ? cer_grad_tile_float64_float64_plain : cer_grad_tile_float64_float64_general;
  }
  throw std::runtime_error("grad_tile: no kernel from dtype code " + std::to_string(static_cast<int>(in)) +
                           " to dtype code " + std::to_string(static_cast<int>(out)));
}

}  // namespace

void grad_tile(const GradTile& p, void* stream) {
  const LogitsTile& tile = p.tile;
  const GradKernel kernel = grad_kernel(tile.dtype, p.dlogits_dtype, is_plain(tile.transform));
  if (tile.rows <= 0 || tile.cols <= 0) return;
  const std::int64_t pieces = grad_tile_pieces(tile.rows, tile.cols, tile.dtype, p.dlogits_dtype, multiprocessors());
  const LaunchPlan plan = grad_tile_plan(tile.rows, tile.cols, tile.dtype, p.dlogits_dtype, pieces);
  kernel<<<static_cast<unsigned int>(plan.blocks), plan.threads, 0, static_cast<cudaStream_t>(stream)>>>(p, pieces);
  check(cudaGetLastError(), "grad_tile");
}

}  // namespace cuda
}  // namespace cer
