// What every launcher needs: the error of a launch as an exception, and the size of the current device.
#pragma once

#include <cuda_runtime.h>

#include <array>
#include <atomic>
#include <stdexcept>
#include <string>

namespace cer {
namespace cuda {

inline void check(cudaError_t status, const char* operation) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(operation) + ": " + cudaGetErrorName(status) + ": " +
                           cudaGetErrorString(status));
}

// Multiprocessors of the current device; asked once per device, which costs no synchronisation.
inline int multiprocessors() {
  static std::array<std::atomic<int>, 64> known{};
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  if (device < static_cast<int>(known.size())) {
    const int cached = known[device].load(std::memory_order_relaxed);
    if (cached > 0) return cached;
  }
  int count = 0;
  check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  if (device < static_cast<int>(known.size())) known[device].store(count, std::memory_order_relaxed);
  return count;
}

}  // namespace cuda
}  // namespace cer
