// The kernels of csrc/cuda as a library: one entry that launches any of them by name, with the parameters as the CUDA
// driver takes them (an array of addresses, one per parameter), on this CPU.
//
//     emulate("cer_finish_rows", blocks, threads, seed, parameters)      false: no kernel of that name
#include "cuda_on_cpu.h"

#include <string>

#include "fold_tile.cuh"
#include "finish_rows.cuh"
#include "grad_tile.cuh"
#include "merge_states.cuh"
#include "teca.cuh"

namespace {

template <typename... Parameters, std::size_t... kIndex>
void launch_with(const char* name, std::int64_t blocks, int threads, std::uint32_t seed, void (*kernel)(Parameters...),
                 void** parameters, std::index_sequence<kIndex...>) {
  fiber::launch(name, blocks, threads, seed, kernel, *static_cast<Parameters*>(parameters[kIndex])...);
}

struct Call {
  const char* name;
  std::int64_t blocks;
  int threads;
  std::uint32_t seed;
  void** parameters;

  template <typename... Parameters>
  bool when(const char* kernel_name, void (*kernel)(Parameters...)) const {
    if (std::string(name) != kernel_name) return false;
    launch_with(name, blocks, threads, seed, kernel, parameters, std::index_sequence_for<Parameters...>());
    return true;
  }
};

}  // namespace

#define KERNEL(name) call.when(#name, name)

extern "C" bool emulate(const char* name, std::int64_t blocks, int threads, std::uint32_t seed, void** parameters) {
  const Call call{name, blocks, threads, seed, parameters};
  return KERNEL(cer_fold_tile_float32_plain) || KERNEL(cer_fold_tile_float32_general) ||
         KERNEL(cer_fold_tile_bfloat16_plain) || KERNEL(cer_fold_tile_bfloat16_general) ||
         KERNEL(cer_fold_tile_float16_plain) || KERNEL(cer_fold_tile_float16_general) ||
         KERNEL(cer_fold_tile_float64_plain) || KERNEL(cer_fold_tile_float64_general) || KERNEL(cer_merge_splits) ||
         KERNEL(cer_merge_states) || KERNEL(cer_finish_rows) || KERNEL(cer_grad_tile_float32_float32_plain) ||
         KERNEL(cer_grad_tile_float32_float32_general) || KERNEL(cer_grad_tile_float32_bfloat16_plain) ||
         KERNEL(cer_grad_tile_float32_bfloat16_general) || KERNEL(cer_grad_tile_float32_float16_plain) ||
         KERNEL(cer_grad_tile_float32_float16_general) || KERNEL(cer_grad_tile_bfloat16_bfloat16_plain) ||
         KERNEL(cer_grad_tile_bfloat16_bfloat16_general) || KERNEL(cer_grad_tile_float16_float16_plain) ||
         KERNEL(cer_grad_tile_float16_float16_general) || KERNEL(cer_grad_tile_float64_float64_plain) ||
         KERNEL(cer_grad_tile_float64_float64_general) || KERNEL(cer_teca_forward_float32) ||
         KERNEL(cer_teca_forward_float64) || KERNEL(cer_teca_backward_float32) || KERNEL(cer_teca_backward_float64);
}
