// fold_tile, merge_splits and finish_rows of csrc/cuda, run on a CPU, against the softmax in long double.
//
//     fold_tile_test SEED            every case; the seed orders the threads and draws the logits
#include "cuda_on_cpu.h"

#include "fold_tile.cuh"
#include "finish_rows.cuh"
#include "launch_plan.h"
#include "logits_cases.h"

namespace {

using namespace cases;

template <typename T>
struct Kernels;
#define FOLD_KERNELS(T, name)                                                 \
  template <>                                                                 \
  struct Kernels<T> {                                                         \
    static constexpr const char* kName = #name;                               \
    static auto fold(bool plain) {                                            \
      return plain ? cer_fold_tile_##name##_plain : cer_fold_tile_##name##_general; \
    }                                                                         \
  };
FOLD_KERNELS(float, float32)
FOLD_KERNELS(double, float64)
FOLD_KERNELS(cer::BFloat16, bfloat16)
FOLD_KERNELS(cer::Float16, float16)
#undef FOLD_KERNELS

// The largest finite magnitude of a row.
double largest(const std::vector<double>& y) {
  double most = 0.0;
  for (const double value : y) {
    if (std::isfinite(value) && std::fabs(value) > most) most = std::fabs(value);
  }
  return most;
}

std::uint32_t seed = 1;
double worst = 0.0;
int cases_run = 0;


template <typename T>
void run_case(const Shape& shape, Fill fill, const Options& options = {}, std::int64_t splits = 1,
              std::vector<std::int64_t> cuts = {}) {
  const Inputs<T> inputs(shape, options, fill, seed * 1000003u + static_cast<std::uint64_t>(cases_run));
  const std::size_t rows = static_cast<std::size_t>(shape.rows);
  Check check{describe(Kernels<T>::kName, shape, options, fill) + " splits " + std::to_string(splits) + " tiles " +
              std::to_string(cuts.size() + 1)};
  fiber::GuardedBuffer<double> state("state", 4 * rows), target_logit("target_logit", rows), stats("stats", 3 * rows);
  fiber::GuardedBuffer<double> partial("partial", static_cast<std::size_t>(splits) * 5 * rows);
  fiber::GuardedBuffer<double> logprobs("logprobs", rows), entropy("entropy", rows), lse("lse", rows);
  const bool double_outputs = sizeof(typename cer::ScalarTraits<T>::Accumulator) == 8;

  cuts.push_back(shape.cols);
  std::int64_t begin = 0;
  for (const std::int64_t end : cuts) {
    cer::FoldTile p;
    p.tile = inputs.tile(begin, end);
    p.states = {state.data(), shape.rows, target_logit.data()};
    p.fresh = begin == 0;
    const cer::LaunchPlan plan = cer::fold_tile_plan(shape.rows, end - begin, p.tile.dtype, splits);
    fiber::launch("fold_tile", plan.blocks, plan.threads, seed, Kernels<T>::fold(cer::is_plain(p.tile.transform)), p,
                  partial.data(), splits);
    if (splits > 1) {
      const cer::LaunchPlan merge = cer::merge_splits_plan(shape.rows);
      fiber::launch("merge_splits", merge.blocks, merge.threads, seed, cer_merge_splits, p, partial.data(), splits);
    }
    begin = end;
  }
  cer::FinishRows f;
  f.states = {state.data(), shape.rows, target_logit.data()};
  f.rows = shape.rows;
  f.target = inputs.target.data();
  f.ignore_index = kIgnore;
  f.vocabulary = shape.cols;
  f.inverse_temperature = options.row_temperatures ? inputs.inverse_temperature.data() : nullptr;
  f.inverse_temperature_all = 1.0 / options.temperature;
  f.double_outputs = double_outputs;
  f.logprobs = logprobs.data();
  f.entropy = entropy.data();
  f.lse = lse.data();
  f.stats = {stats.data(), shape.rows};
  const cer::LaunchPlan plan = cer::finish_rows_plan(shape.rows);
  fiber::launch("finish_rows", plan.blocks, plan.threads, seed, cer_finish_rows, f);

  const auto output = [&](const fiber::GuardedBuffer<double>& buffer, std::size_t i) {
    return double_outputs ? buffer[i] : static_cast<double>(reinterpret_cast<const float*>(buffer.data())[i]);
  };
  const bool plain = cer::is_plain(inputs.tile(0, shape.cols).transform);
  for (std::size_t i = 0; i < rows; ++i) {
    const std::int64_t row = static_cast<std::int64_t>(i);
    const RowReference r = reference_of(inputs.y[i], inputs.inverse_of(row));
    const std::int64_t target = inputs.target[i];
    const bool ignored = target == kIgnore;
    const bool inside = target >= 0 && target < shape.cols;
    const bool outside = !ignored && !inside;
    const double at_target = !inside ? kNan : inputs.y[i][static_cast<std::size_t>(target)];
    const double logprob = (at_target - r.m) * inputs.inverse_of(row) - r.log_sum;
    const auto expected = [&](double value) { return ignored ? 0.0 : outside ? kNan : value; };
    // A transformed logit is itself rounded: every probability is then off by that much, whatever folds it.
    const double one_rounding = 0x1p-24 * largest(inputs.y[i]) * inputs.inverse_of(row);
    const double rounded = plain || double_outputs ? 0.0 : 4.0 * one_rounding;
    const double relative = (double_outputs ? 1e-11 : 1e-5) + 2.0 * rounded;
    // lse adds m/T to log sum, which may cancel: its error is that of the larger summand.
    const double around = relative * (std::fabs(r.m) * inputs.inverse_of(row) + 1.0);
    check.close("logprob", row, -1, output(logprobs, i), expected(logprob), relative, rounded);
    check.close("entropy", row, -1, output(entropy, i), expected(r.entropy), relative);
    check.close("lse", row, -1, output(lse, i), expected(r.lse), relative, std::isfinite(around) ? around : 0.0);
    check.close("stats m", row, -1, stats[i], outside ? kNan : std::isnan(r.log_sum) ? kNan : r.m, relative);
    check.close("stats log_sum", row, -1, stats[rows + i], outside ? kNan : r.log_sum, relative);
    check.close("stats spread", row, -1, stats[2 * rows + i], outside ? kNan : r.spread, relative);
    const double sign = output(entropy, i) < 0.0 ? -1.0 : 1.0;
    check.close("entropy's sign", row, -1, sign, 1.0, 0.0);
  }
  if (check.worst > worst) worst = check.worst;
  ++cases_run;
}

template <typename T>
void run_dtype() {
  const std::int64_t width = 16 / static_cast<std::int64_t>(sizeof(T));
  const std::int64_t warp_round = 32 * 4 * width;  // what one warp takes at once: the smallest block's round
  // Sizes by regime: one column, less than a vector, a vector and its neighbours, odd, a round and its neighbours.
  for (const std::int64_t cols : {std::int64_t{1}, std::int64_t{2}, width - 1, width, width + 1, std::int64_t{127},
                                  warp_round - 1, warp_round, warp_round + 1, 2 * warp_round + 3}) {
    if (cols < 1) continue;
    run_case<T>({6, cols}, Fill::kNormal);
    run_case<T>({6, cols, 3}, Fill::kTies, {}, 1);
  }
  // Every misalignment of the first row, guarded in front where it can be, and rows that start elsewhere each.
  for (std::int64_t offset = 0; offset < width; ++offset) {
    run_case<T>({3, 257, 1, static_cast<std::size_t>(offset), true}, Fill::kNormal);
  }
  for (const Fill fill : {Fill::kShifted, Fill::kNearOneHot, Fill::kSomeMinusInf, Fill::kAllMinusInf, Fill::kOneNan,
                          Fill::kOnePlusInf, Fill::kAscending, Fill::kEqual}) {
    run_case<T>({7, 1000, 5}, fill);
    run_case<T>({7, 333}, fill, {true, 0.5, 0.0, true}, 3);
    run_case<T>({7, 1000}, fill, {}, 2, {129, 700});
  }
  // Few rows, split over blocks: pieces that are empty too; then tiles and splits together.
  run_case<T>({2, 5000}, Fill::kNormal, {}, 5);
  run_case<T>({1, 100}, Fill::kNormal, {}, 40);
  run_case<T>({6, 3001, 2}, Fill::kNearOneHot, {}, 3, {1000, 1001, 2500});
  // Transforms, alone and together.
  run_case<T>({6, 777}, Fill::kNormal, {true});
  run_case<T>({6, 777}, Fill::kNormal, {false, 0.125});
  run_case<T>({6, 777}, Fill::kNormal, {false, 1.0, 30.0});
  run_case<T>({8, 777}, Fill::kNormal, {false, 1.0, 0.0, true});
  run_case<T>({8, 777, 1}, Fill::kShifted, {false, 1.0, 0.0, false, 1.5});
  run_case<T>({8, 777, 1}, Fill::kNormal, {true, 2.0, 10.0, true}, 1, {100});
}

// The vocabulary of a real model, in a block of 512 threads; whole rows and split ones.
template <typename T>
void run_vocabulary() {
  run_case<T>({1, 151936}, Fill::kNormal);
  run_case<T>({1, 151937}, Fill::kNearOneHot, {}, 9);
}

}  // namespace

int main(int argc, char** argv) {
  fiber::catch_stray_addresses();
  seed = argc > 1 ? static_cast<std::uint32_t>(std::atoi(argv[1])) : 1;
  run_dtype<cer::BFloat16>();
  run_dtype<float>();
  run_dtype<cer::Float16>();
  run_dtype<double>();
  run_vocabulary<cer::BFloat16>();
  run_vocabulary<float>();
  std::printf("fold_tile: %d cases, largest error %.2f of what is allowed\n", cases_run, worst);
  return 0;
}
