// The words of the CUDA runtime that the launchers of csrc/cuda use, for a build without a toolkit: the device is the
// emulation of cuda_on_cpu.h, its properties are set by the test, and a launch (launch_of, which the test writes in the
// place of <<< >>>) runs at once, unless the test asks for an error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_on_cpu.h"

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };

namespace host_runtime {

struct Launch {
  std::int64_t blocks;
  int threads;
  void* stream;
};
using Report = void (*)(const Launch&);

struct State {
  int multiprocessors = 132;
  bool fail = false;  // the next launch does not run
  cudaError_t last = cudaSuccess;
  Report report = nullptr;
};
inline State state;

template <typename... Parameters>
struct Configured {
  void (*kernel)(Parameters...);
  std::int64_t blocks;
  int threads;
  void* stream;

  template <typename... Arguments>
  void operator()(const Arguments&... arguments) const {
    if (state.fail) {
      state.last = cudaErrorInvalidConfiguration;
      return;
    }
    if (state.report != nullptr) state.report({blocks, threads, stream});
    call(static_cast<Parameters>(arguments)...);
  }

 private:
  void call(const Parameters&... parameters) const { fiber::launch("a launcher's kernel", blocks, threads, 1, kernel, parameters...); }
};

template <typename... Parameters>
Configured<Parameters...> launch_of(void (*kernel)(Parameters...), unsigned int blocks, int threads,
                                    std::size_t shared_bytes, cudaStream_t stream) {
  if (shared_bytes != 0) fiber::detected("dynamic shared memory, which no kernel here has");
  return {kernel, blocks, threads, stream};
}

}  // namespace host_runtime

inline cudaError_t cudaGetLastError() {
  const cudaError_t last = host_runtime::state.last;
  host_runtime::state.last = cudaSuccess;
  return last;
}
inline const char* cudaGetErrorName(cudaError_t) { return "cudaErrorInvalidConfiguration"; }
inline const char* cudaGetErrorString(cudaError_t) { return "invalid configuration argument"; }
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = host_runtime::state.multiprocessors;
  return cudaSuccess;
}
