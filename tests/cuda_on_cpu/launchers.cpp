// The launchers of csrc/cuda (its .cu files, with <<< >>> written as launch_of by test_launchers.py) as a library: the
// functions of kernels.h in namespace cuda, and the record of what they launched.
//
// Each takes its struct by address, so that ctypes structs can be passed; an exception comes back as its text.
#include "cuda_runtime.h"

#include "finish_rows.cu"
#include "fold_tile.cu"
#include "grad_tile.cu"
#include "merge_states.cu"
#include "teca.cu"

#include <cstdio>
#include <exception>
#include <string>

namespace {

std::string record;  // "blocks threads stream\n" for each launch
std::string message;

void report(const host_runtime::Launch& launch) {
  char line[256];
  std::snprintf(line, sizeof line, "%lld %d %llu\n", static_cast<long long>(launch.blocks), launch.threads,
                static_cast<unsigned long long>(reinterpret_cast<std::uintptr_t>(launch.stream)));
  record += line;
}

template <typename Function>
const char* guarded(Function function) {
  record.clear();
  message.clear();
  host_runtime::state.report = report;
  try {
    function();
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace

extern "C" {
const char* launched() { return record.c_str(); }
void set_device(int multiprocessors, bool fail) {
  host_runtime::state.multiprocessors = multiprocessors;
  host_runtime::state.fail = fail;
}
const char* fold_tile(const cer::FoldTile* p, double* partial, std::int64_t splits, void* stream) {
  return guarded([&] { cer::cuda::fold_tile(*p, partial, splits, stream); });
}
const char* merge_states(const cer::MergeStates* p, void* stream) {
  return guarded([&] { cer::cuda::merge_states(*p, stream); });
}
const char* finish_rows(const cer::FinishRows* p, void* stream) {
  return guarded([&] { cer::cuda::finish_rows(*p, stream); });
}
const char* grad_tile(const cer::GradTile* p, void* stream) {
  return guarded([&] { cer::cuda::grad_tile(*p, stream); });
}
const char* teca_forward(const cer::Teca* p, void* stream) {
  return guarded([&] { cer::cuda::teca_forward(*p, stream); });
}
const char* teca_backward(const cer::TecaBackward* p, void* stream) {
  return guarded([&] { cer::cuda::teca_backward(*p, stream); });
}
}
