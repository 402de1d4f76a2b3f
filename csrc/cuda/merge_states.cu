// Launches merge_states (kernels.h, launch_plan.h).
#include "launch.h"
#include "launch_plan.h"
#include "merge_states.cuh"

namespace cer {
namespace cuda {

void merge_states(const MergeStates& p, void* stream) {
  if (p.rows <= 0) return;
  const LaunchPlan plan = merge_states_plan(p.rows);
  cer_merge_states<<<static_cast<unsigned int>(plan.blocks), plan.threads, 0, static_cast<cudaStream_t>(stream)>>>(p);
  check(cudaGetLastError(), "merge_states");
}

}  // namespace cuda
}  // namespace cer
