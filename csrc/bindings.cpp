// The Python module cer_ext._C: every operation of kernels.h with addresses, strides and plain scalars. No torch and no
// mathematics: cer_ext/ops.py checks the arguments and owns the memory, these functions take both on trust.
//
// An address is an int, 0 for null. A dtype is the code of ScalarType. The GIL is released while a kernel runs or is
// launched. C++ exceptions arrive as Python's (std::invalid_argument: ValueError, std::runtime_error: RuntimeError).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/dispatch.h"
#include "cuda/launch_plan.h"
#include "kernels.h"

#if !defined(CER_COMPILER_ID)
#if defined(__clang__)
#define CER_COMPILER_ID "clang " __clang_version__
#else
#define CER_COMPILER_ID "gcc " __VERSION__
#endif
#endif
#if !defined(CER_CPP_FLAGS)
#define CER_CPP_FLAGS ""
#endif
#if !defined(CER_CUDA_ARCHS)
#define CER_CUDA_ARCHS ""
#endif
#if !defined(CER_CUDA_TOOLKIT)
#define CER_CUDA_TOOLKIT ""
#endif

namespace py = pybind11;

namespace {

using Address = std::uintptr_t;
using std::int64_t;

template <typename T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

cer::ScalarType scalar_type(int code) {
  if (code < 0 || code > 3) throw std::invalid_argument("dtype code must be 0..3, got " + std::to_string(code));
  return static_cast<cer::ScalarType>(code);
}

cer::LogitsTile logits_tile(Address logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride,
                            int64_t first_column, Address bias, double scale, double softcap,
                            Address inverse_temperature, double inverse_temperature_all, Address target) {
  cer::LogitsTile tile;
  tile.logits = at<const void>(logits);
  tile.dtype = scalar_type(dtype);
  tile.rows = rows;
  tile.cols = cols;
  tile.row_stride = row_stride;
  tile.first_column = first_column;
  tile.transform.bias = at<const void>(bias);
  tile.transform.scale = scale;
  tile.transform.softcap = softcap;
  tile.transform.inverse_temperature = at<const double>(inverse_temperature);
  tile.transform.inverse_temperature_all = inverse_temperature_all;
  tile.target = at<const int64_t>(target);
  return tile;
}

// Each operation exists for the CPU, with a last argument `threads`, and for CUDA, with last arguments `stream` (fold_tile:
// partial, splits, stream). Rest are the types of those; launch calls the one or the other.
template <typename... Rest, typename Launch>
auto fold_tile_by(Launch launch) {
  return [launch](Address logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride, int64_t first_column,
                  Address bias, double scale, double softcap, Address inverse_temperature,
                  double inverse_temperature_all, Address target, Address state, int64_t state_stride,
                  Address target_logit, bool fresh, Rest... rest) {
    cer::FoldTile p;
    p.tile = logits_tile(logits, dtype, rows, cols, row_stride, first_column, bias, scale, softcap,
                         inverse_temperature, inverse_temperature_all, target);
    p.states = cer::RowStates{at<double>(state), state_stride, at<double>(target_logit)};
    p.fresh = fresh;
    const py::gil_scoped_release release;
    launch(p, rest...);
  };
}

template <typename... Rest, typename Launch>
auto merge_states_by(Launch launch) {
  return [launch](Address partial, int64_t parts, int64_t rows, Address inverse_temperature,
                  double inverse_temperature_all, Address state, int64_t state_stride, Address target_logit,
                  Rest... rest) {
    cer::MergeStates p;
    p.partial = at<const double>(partial);
    p.parts = parts;
    p.rows = rows;
    p.inverse_temperature = at<const double>(inverse_temperature);
    p.inverse_temperature_all = inverse_temperature_all;
    p.states = cer::RowStates{at<double>(state), state_stride, at<double>(target_logit)};
    const py::gil_scoped_release release;
    launch(p, rest...);
  };
}

template <typename... Rest, typename Launch>
auto finish_rows_by(Launch launch) {
  return [launch](Address state, int64_t state_stride, Address target_logit, int64_t rows, Address target,
                  int64_t ignore_index, int64_t vocabulary, Address inverse_temperature,
                  double inverse_temperature_all, bool double_outputs, Address logprobs, Address entropy, Address lse,
                  Address stats, int64_t stats_stride, Rest... rest) {
    cer::FinishRows p;
    p.states = cer::RowStates{at<double>(state), state_stride, at<double>(target_logit)};
    p.rows = rows;
    p.target = at<const int64_t>(target);
    p.ignore_index = ignore_index;
    p.vocabulary = vocabulary;
    p.inverse_temperature = at<const double>(inverse_temperature);
    p.inverse_temperature_all = inverse_temperature_all;
    p.double_outputs = double_outputs;
    p.logprobs = at<void>(logprobs);
    p.entropy = at<void>(entropy);
    p.lse = at<void>(lse);
    p.stats = cer::RowStats{at<double>(stats), stats_stride};
    const py::gil_scoped_release release;
    launch(p, rest...);
  };
}

template <typename... Rest, typename Launch>
auto grad_tile_by(Launch launch) {
  return [launch](Address logits, int dtype, int64_t rows, int64_t cols, int64_t row_stride, int64_t first_column,
                  Address bias, double scale, double softcap, Address inverse_temperature,
                  double inverse_temperature_all, Address target, int64_t ignore_index, Address stats,
                  int64_t stats_stride, Address grad_logprobs, Address grad_entropy, Address grad_lse, Address dlogits,
                  int dlogits_dtype, int64_t dlogits_row_stride, Rest... rest) {
    cer::GradTile p;
    p.tile = logits_tile(logits, dtype, rows, cols, row_stride, first_column, bias, scale, softcap,
                         inverse_temperature, inverse_temperature_all, target);
    p.ignore_index = ignore_index;
    p.stats = cer::RowStats{at<double>(stats), stats_stride};
    p.grad_logprobs = at<const void>(grad_logprobs);
    p.grad_entropy = at<const void>(grad_entropy);
    p.grad_lse = at<const void>(grad_lse);
    p.dlogits = at<void>(dlogits);
    p.dlogits_dtype = scalar_type(dlogits_dtype);
    p.dlogits_row_stride = dlogits_row_stride;
    const py::gil_scoped_release release;
    launch(p, rest...);
  };
}

template <typename... Rest, typename Launch>
auto teca_forward_by(Launch launch) {
  return [launch](bool is_double, int64_t responses, int64_t length, Address cu_seqlens, Address mask, Address entropy,
                  Address teca, Address last, Rest... rest) {
    cer::Teca p;
    p.is_double = is_double;
    p.responses = responses;
    p.length = length;
    p.cu_seqlens = at<const int64_t>(cu_seqlens);
    p.mask = at<const std::uint8_t>(mask);
    p.entropy = at<const void>(entropy);
    p.teca = at<void>(teca);
    p.last = at<void>(last);
    const py::gil_scoped_release release;
    launch(p, rest...);
  };
}

template <typename... Rest, typename Launch>
auto teca_backward_by(Launch launch) {
  return [launch](bool is_double, int64_t responses, int64_t length, Address cu_seqlens, Address mask,
                  Address grad_teca, Address grad_last, Address grad_entropy, Rest... rest) {
    cer::TecaBackward p;
    p.is_double = is_double;
    p.responses = responses;
    p.length = length;
    p.cu_seqlens = at<const int64_t>(cu_seqlens);
    p.mask = at<const std::uint8_t>(mask);
    p.grad_teca = at<const void>(grad_teca);
    p.grad_last = at<const void>(grad_last);
    p.grad_entropy = at<void>(grad_entropy);
    const py::gil_scoped_release release;
    launch(p, rest...);
  };
}

void pack_hidden(Address hidden, int64_t rows, int64_t width, int64_t row_stride, Address packed, int threads) {
  cer::PackHidden p;
  p.hidden = at<const void>(hidden);
  p.rows = rows;
  p.width = width;
  p.row_stride = row_stride;
  p.packed = at<void>(packed);
  const py::gil_scoped_release release;
  cer::cpu::pack_hidden(p, threads);
}

void head_tile(Address packed_hidden, int64_t rows, int64_t width, Address weight, int64_t weight_row_stride,
               int64_t cols, Address logits, int64_t logits_row_stride, int threads) {
  cer::HeadTile p;
  p.packed_hidden = at<const void>(packed_hidden);
  p.rows = rows;
  p.width = width;
  p.weight = at<const void>(weight);
  p.weight_row_stride = weight_row_stride;
  p.cols = cols;
  p.logits = at<float>(logits);
  p.logits_row_stride = logits_row_stride;
  const py::gil_scoped_release release;
  cer::cpu::head_tile(p, threads);
}

// The first row whose target is neither ignore_index nor in [0, vocabulary); -1: none.
int64_t first_bad_target(Address target, int64_t rows, int64_t ignore_index, int64_t vocabulary) {
  const int64_t* t = at<const int64_t>(target);
  const py::gil_scoped_release release;
  const int64_t* bad = std::find_if(
      t, t + rows, [=](int64_t v) { return v != ignore_index && (v < 0 || v >= vocabulary); });
  return bad == t + rows ? -1 : bad - t;
}

py::dict build() {
  py::dict built;
  built["compiler"] = CER_COMPILER_ID;
  built["cpp_flags"] = CER_CPP_FLAGS;
  built["cpu_isas"] = cer::cpu::compiled_isas();
  built["cpu_isas_runnable"] = cer::cpu::runnable_isas();
  built["cpu_isa"] = cer::cpu::active_kernels().name;
#if defined(CER_WITH_CUDA)
  built["cuda"] = true;
#else
  built["cuda"] = false;
#endif
  built["cuda_archs"] = CER_CUDA_ARCHS;
  built["cuda_toolkit"] = CER_CUDA_TOOLKIT;
  return built;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native operations of cer_ext: addresses in, addresses out (csrc/kernels.h).";

  namespace cpu = cer::cpu;
  m.def("cpu_fold_tile", fold_tile_by<int>(cpu::fold_tile));
  m.def("cpu_merge_states", merge_states_by<int>(cpu::merge_states));
  m.def("cpu_finish_rows", finish_rows_by<int>(cpu::finish_rows));
  m.def("cpu_grad_tile", grad_tile_by<int>(cpu::grad_tile));
  m.def("cpu_teca_forward", teca_forward_by<int>(cpu::teca_forward));
  m.def("cpu_teca_backward", teca_backward_by<int>(cpu::teca_backward));
  m.def("cpu_has_head_tile", cpu::has_head_tile, "Whether the CPU kernels in use multiply bfloat16 into float sums.");
  m.def("cpu_pack_hidden", pack_hidden);
  m.def("cpu_head_tile", head_tile);
  m.def("cpu_first_bad_target", first_bad_target);
  m.def("set_cpu_isa", cpu::set_isa,
        "For tests and benchmarks: run the CPU kernels of this instruction set (build()['cpu_isas_runnable']) from now "
        "on, in the whole process. Returns the name of the one before.");

#if defined(CER_WITH_CUDA)
  namespace cuda = cer::cuda;
  m.def("cuda_fold_tile", fold_tile_by<Address, int64_t, Address>(
                              [](const cer::FoldTile& p, Address partial, int64_t splits, Address stream) {
                                cuda::fold_tile(p, at<double>(partial), splits, at<void>(stream));
                              }));
  m.def("cuda_merge_states", merge_states_by<Address>([](const cer::MergeStates& p, Address stream) {
          cuda::merge_states(p, at<void>(stream));
        }));
  m.def("cuda_finish_rows", finish_rows_by<Address>([](const cer::FinishRows& p, Address stream) {
          cuda::finish_rows(p, at<void>(stream));
        }));
  m.def("cuda_grad_tile", grad_tile_by<Address>([](const cer::GradTile& p, Address stream) {
          cuda::grad_tile(p, at<void>(stream));
        }));
  m.def("cuda_teca_forward", teca_forward_by<Address>([](const cer::Teca& p, Address stream) {
          cuda::teca_forward(p, at<void>(stream));
        }));
  m.def("cuda_teca_backward", teca_backward_by<Address>([](const cer::TecaBackward& p, Address stream) {
          cuda::teca_backward(p, at<void>(stream));
        }));
#endif

  m.def("fold_tile_splits", [](int64_t rows, int64_t cols, int dtype, int sm_count) {
    return cer::fold_tile_splits(rows, cols, scalar_type(dtype), sm_count);
  });
  // The launch plans, for the kernels that cer_ext.nvrtc compiles: (blocks, threads), grad_tile's with its pieces first.
  m.def("fold_tile_plan", [](int64_t rows, int64_t cols, int dtype, int64_t splits) {
    const cer::LaunchPlan plan = cer::fold_tile_plan(rows, cols, scalar_type(dtype), splits);
    return py::make_tuple(plan.blocks, plan.threads);
  });
  m.def("merge_splits_plan", [](int64_t rows) {
    const cer::LaunchPlan plan = cer::merge_splits_plan(rows);
    return py::make_tuple(plan.blocks, plan.threads);
  });
  m.def("merge_states_plan", [](int64_t rows) {
    const cer::LaunchPlan plan = cer::merge_states_plan(rows);
    return py::make_tuple(plan.blocks, plan.threads);
  });
  m.def("finish_rows_plan", [](int64_t rows) {
    const cer::LaunchPlan plan = cer::finish_rows_plan(rows);
    return py::make_tuple(plan.blocks, plan.threads);
  });
  m.def("grad_tile_plan", [](int64_t rows, int64_t cols, int dtype, int dlogits_dtype, int sm_count) {
    const cer::ScalarType in = scalar_type(dtype), out = scalar_type(dlogits_dtype);
    const int64_t pieces = cer::grad_tile_pieces(rows, cols, in, out, sm_count);
    const cer::LaunchPlan plan = cer::grad_tile_plan(rows, cols, in, out, pieces);
    return py::make_tuple(pieces, plan.blocks, plan.threads);
  });
  m.def("teca_plan", [](int64_t responses) {
    const cer::LaunchPlan plan = cer::teca_plan(responses);
    return py::make_tuple(plan.blocks, plan.threads);
  });
  m.def("build", build, "What was compiled, and which CPU instruction set runs.");
}
