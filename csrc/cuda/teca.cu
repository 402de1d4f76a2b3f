// Launches teca_forward and teca_backward (kernels.h, launch_plan.h).
#include "launch.h"
#include "launch_plan.h"
#include "teca.cuh"

namespace cer {
namespace cuda {

void teca_forward(const Teca& p, void* stream) {
  if (p.responses <= 0) return;
  const LaunchPlan plan = teca_plan(p.responses);
  const auto kernel = p.is_double ? cer_teca_forward_float64 : cer_teca_forward_float32;
  kernel<<<static_cast<unsigned int>(plan.blocks), plan.threads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  check(cudaGetLastError(), "teca_forward");
}

void teca_backward(const TecaBackward& p, void* stream) {
  if (p.responses <= 0) return;
  const LaunchPlan plan = teca_plan(p.responses);
  const auto kernel = p.is_double ? cer_teca_backward_float64 : cer_teca_backward_float32;
  kernel<<<static_cast<unsigned int>(plan.blocks), plan.threads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  check(cudaGetLastError(), "teca_backward");
}

}  // namespace cuda
}  // namespace cer
