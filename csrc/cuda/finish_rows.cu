// Launches finish_rows (kernels.h, launch_plan.h).
#include "finish_rows.cuh"
#include "launch.h"
#include "launch_plan.h"

namespace cer {
namespace cuda {

void finish_rows(const FinishRows& p, void* stream) {
  if (p.rows <= 0) return;
  const LaunchPlan plan = finish_rows_plan(p.rows);
  cer_finish_rows<<<static_cast<unsigned int>(plan.blocks), plan.threads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  check(cudaGetLastError(), "finish_rows");
}

}  // namespace cuda
}  // namespace cer
