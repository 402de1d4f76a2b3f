// grad_tile of csrc/cuda, run on a CPU, against the gradient written out in long double.
//
//     dL/dx_j = slope_j/T * ( g ([j = t] - p_j) + l p_j - h p_j (log p_j + H) )       (1 - p_t from the other columns)
//
//     grad_tile_test SEED            every case; the seed orders the threads and draws logits and gradients
#include "cuda_on_cpu.h"

#include "grad_tile.cuh"
#include "launch_plan.h"
#include "logits_cases.h"

namespace {

using namespace cases;

template <typename In, typename Out>
struct Kernels;
#define GRAD_KERNELS(In, Out, in, out)                                                                \
  template <>                                                                                         \
  struct Kernels<In, Out> {                                                                           \
    static constexpr const char* kName = #in " to " #out;                                             \
    static auto grad(bool plain) {                                                                    \
      return plain ? cer_grad_tile_##in##_##out##_plain : cer_grad_tile_##in##_##out##_general;       \
    }                                                                                                 \
  };
GRAD_KERNELS(float, float, float32, float32)
GRAD_KERNELS(float, cer::BFloat16, float32, bfloat16)
GRAD_KERNELS(float, cer::Float16, float32, float16)
GRAD_KERNELS(cer::BFloat16, cer::BFloat16, bfloat16, bfloat16)
GRAD_KERNELS(cer::Float16, cer::Float16, float16, float16)
GRAD_KERNELS(double, double, float64, float64)
#undef GRAD_KERNELS

std::uint32_t seed = 1;
double worst = 0.0;
int cases_run = 0;

// Which upstream gradients there are, and where dlogits go.
enum class Upstream { kAll, kLogprobs, kEntropy, kLse, kZeroRows };
enum class Place { kInPlace, kElsewhere, kOtherAlignment };

// Half a unit in the last place of the stored type, and its smallest step.
template <typename T>
struct Rounding {
  static constexpr double kRelative = 0.0, kAbsolute = 0.0;
};
template <>
struct Rounding<cer::BFloat16> {
  static constexpr double kRelative = 0x1p-8, kAbsolute = 0x1p-133;
};
template <>
struct Rounding<cer::Float16> {
  static constexpr double kRelative = 0x1p-11, kAbsolute = 0x1p-24;
};

template <typename In, typename Out>
void run_case(const Shape& shape, Fill fill, const Options& options = {}, Upstream which = Upstream::kAll,
              Place place = Place::kElsewhere, std::int64_t pieces = 1, std::vector<std::int64_t> cuts = {}) {
  using Real = typename cer::ScalarTraits<In>::Accumulator;
  Inputs<In> inputs(shape, options, fill, seed * 1000003u + static_cast<std::uint64_t>(cases_run));
  const std::size_t rows = static_cast<std::size_t>(shape.rows);
  const Check described{describe(Kernels<In, Out>::kName, shape, options, fill) + " upstream " +
                        std::to_string(static_cast<int>(which)) + " place " + std::to_string(static_cast<int>(place)) +
                        " pieces " + std::to_string(pieces) + " tiles " + std::to_string(cuts.size() + 1)};
  Check check = described;

  fiber::GuardedBuffer<Real> g("grad_logprobs", rows), h("grad_entropy", rows), l("grad_lse", rows);
  fiber::GuardedBuffer<double> stats("stats", 3 * rows);
  std::vector<RowReference> references;
  std::vector<bool> zero_row(rows, false);
  std::mt19937_64 random(seed + 17);
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < rows; ++i) {
    g[i] = static_cast<Real>(normal(random));
    h[i] = static_cast<Real>(normal(random));
    l[i] = static_cast<Real>(normal(random));
    if (which == Upstream::kZeroRows && i % 2 == 0) g[i] = h[i] = l[i] = Real(0), zero_row[i] = true;
    const std::int64_t target = inputs.target[i];
    RowReference r = reference_of(inputs.y[i], inputs.inverse_of(static_cast<std::int64_t>(i)));
    if (target < 0 || target >= shape.cols || std::isnan(r.log_sum)) r = {kNan, kNan, kNan, kNan, kNan};
    if (target == kIgnore) zero_row[i] = true;
    references.push_back(r);
    stats[i] = r.m, stats[rows + i] = r.log_sum, stats[2 * rows + i] = r.spread;
  }
  const bool has_g = which == Upstream::kAll || which == Upstream::kLogprobs || which == Upstream::kZeroRows;
  const bool has_h = which == Upstream::kAll || which == Upstream::kEntropy || which == Upstream::kZeroRows;
  const bool has_l = which == Upstream::kAll || which == Upstream::kLse || which == Upstream::kZeroRows;

  const std::int64_t out_stride = place == Place::kInPlace ? inputs.row_stride : shape.cols + 2;
  fiber::GuardedBuffer<Out> separate("dlogits", static_cast<std::size_t>((shape.rows - 1) * out_stride + shape.cols),
                                     fiber::Guard::kBefore, place == Place::kOtherAlignment ? 1 : 0);
  Out* const dlogits = place == Place::kInPlace ? reinterpret_cast<Out*>(inputs.logits.data()) : separate.data();

  // A row that is not read may hold anything, and lie anywhere: its logits are made NaN.
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; zero_row[i] && j < shape.cols; ++j) {
      inputs.logits[static_cast<std::size_t>(static_cast<std::int64_t>(i) * inputs.row_stride + j)] = stored<In>(kNan);
    }
  }
  cuts.push_back(shape.cols);
  std::int64_t begin = 0;
  for (const std::int64_t end : cuts) {
    cer::GradTile p;
    p.tile = inputs.tile(begin, end);
    p.ignore_index = kIgnore;
    p.stats = {stats.data(), shape.rows};
    p.grad_logprobs = has_g ? g.data() : nullptr;
    p.grad_entropy = has_h ? h.data() : nullptr;
    p.grad_lse = has_l ? l.data() : nullptr;
    p.dlogits = dlogits + begin;
    p.dlogits_dtype = code_of<Out>();
    p.dlogits_row_stride = out_stride;
    const cer::LaunchPlan plan = cer::grad_tile_plan(shape.rows, end - begin, p.tile.dtype, p.dlogits_dtype, pieces);
    const auto kernel = Kernels<In, Out>::grad(cer::is_plain(p.tile.transform));
    fiber::launch("grad_tile", plan.blocks, plan.threads, seed, kernel, p, pieces);
    begin = end;
  }

  const bool plain = cer::is_plain(inputs.tile(0, shape.cols).transform);
  for (std::size_t i = 0; i < rows; ++i) {
    const std::int64_t row = static_cast<std::int64_t>(i);
    const RowReference& r = references[i];
    const Wide b = static_cast<Wide>(inputs.inverse_of(row));
    const std::int64_t target = inputs.target[i];
    double most = 0.0;
    Wide others = 0;  // 1 - p_target, summed from the other columns
    for (std::int64_t j = 0; j < shape.cols; ++j) {
      const double y = inputs.y[i][static_cast<std::size_t>(j)];
      if (std::isfinite(y) && std::fabs(y) > most) most = std::fabs(y);
      if (j != target) others += std::exp((static_cast<Wide>(y) - r.m) * b - r.log_sum);
    }
    const double rounded = sizeof(Real) == 8 || plain ? 0.0 : 8.0 * 0x1p-24 * most * static_cast<double>(b);
    for (std::int64_t j = 0; j < shape.cols; ++j) {
      const double got = value_of(dlogits[row * out_stride + j]);
      if (zero_row[i]) {
        check.close("dlogits of a zero row", row, j, got, 0.0, 0.0);
        continue;
      }
      const double y = inputs.y[i][static_cast<std::size_t>(j)];
      const Wide log_p = (static_cast<Wide>(y) - r.m) * b - r.log_sum;
      const Wide p = std::exp(log_p);
      const Wide by_logprob = has_g ? static_cast<Wide>(g[i]) * (j == target ? others : -p) : 0;
      const Wide by_lse = has_l ? static_cast<Wide>(l[i]) * p : 0;
      const Wide d = p == 0 ? 0 : (static_cast<Wide>(y) - r.m) * b;  // p (log p + H) -> 0
      const Wide by_entropy = has_h ? -static_cast<Wide>(h[i]) * p * (d + r.spread) : 0;
      Wide slope = static_cast<Wide>(options.scale);
      const Wide capped = options.softcap == 0.0 ? 0 : static_cast<Wide>(y) / static_cast<Wide>(options.softcap);
      slope *= 1 - capped * capped;
      const double expected = static_cast<double>(slope * b * (by_logprob + by_lse + by_entropy));
      // Summands may cancel, and so may d + spread; each is held to its own size.
      const Wide parts = std::fabs(by_logprob) + std::fabs(by_lse) +
                         (has_h ? std::fabs(static_cast<Wide>(h[i]) * p) * (std::fabs(d) + std::fabs(r.spread)) : 0);
      // The slope's 1 - tanh^2 keeps an absolute error of float's rounding near the cap.
      const double slope_error = sizeof(Real) == 8 || options.softcap == 0.0 ? 0.0 : 0x1p-21 * options.scale;
      const double size = static_cast<double>(parts * b * std::fabs(slope));
      const double relative = (sizeof(Real) == 8 ? 1e-11 : 1e-5) + 2.0 * rounded;
      const double absolute = relative * size + slope_error * static_cast<double>(parts * b) + 1e-36;
      check.close("dlogits", row, j, got, expected, Rounding<Out>::kRelative,
                  std::isfinite(absolute) ? absolute + Rounding<Out>::kAbsolute : 0.0);
    }
  }
  if (check.worst > worst) worst = check.worst;
  ++cases_run;
}

template <typename In, typename Out>
void run_pair() {
  constexpr bool same = sizeof(In) == sizeof(Out);
  const std::int64_t width = 16 / static_cast<std::int64_t>(std::max(sizeof(In), sizeof(Out)));
  const std::int64_t warp_round = 32 * 4 * width;
  for (const std::int64_t cols : {std::int64_t{1}, std::int64_t{2}, width - 1, width, width + 1, std::int64_t{127},
                                  warp_round - 1, warp_round, warp_round + 1, 2 * warp_round + 3}) {
    if (cols < 1) continue;
    run_case<In, Out>({6, cols}, Fill::kNormal);
    if (same) run_case<In, Out>({6, cols, 3}, Fill::kNormal, {}, Upstream::kAll, Place::kInPlace);
  }
  for (std::int64_t offset = 0; offset < width; ++offset) {
    const Shape shape{3, 257, 1, static_cast<std::size_t>(offset), true};
    run_case<In, Out>(shape, Fill::kNormal, {}, Upstream::kAll, Place::kElsewhere);
    run_case<In, Out>(shape, Fill::kNormal, {}, Upstream::kAll, Place::kOtherAlignment);
    if (same) run_case<In, Out>(shape, Fill::kNormal, {}, Upstream::kAll, Place::kInPlace);
  }
  const Place place = same ? Place::kInPlace : Place::kElsewhere;
  for (const Fill fill : {Fill::kShifted, Fill::kNearOneHot, Fill::kTies, Fill::kSomeMinusInf, Fill::kAllMinusInf,
                          Fill::kOneNan, Fill::kOnePlusInf, Fill::kEqual}) {
    run_case<In, Out>({7, 1000, 5}, fill, {}, Upstream::kAll, place);
    run_case<In, Out>({12, 333}, fill, {true, 0.5, 0.0, true}, Upstream::kZeroRows, place, 3);
  }
  for (const Upstream which : {Upstream::kLogprobs, Upstream::kEntropy, Upstream::kLse, Upstream::kZeroRows}) {
    run_case<In, Out>({12, 300}, Fill::kNormal, {}, which);
    run_case<In, Out>({12, 300}, Fill::kNearOneHot, {}, which, place, 2);
  }
  run_case<In, Out>({6, 777}, Fill::kNormal, {true});
  run_case<In, Out>({6, 777}, Fill::kNormal, {false, 0.125});
  run_case<In, Out>({6, 777}, Fill::kNormal, {false, 1.0, 30.0}, Upstream::kAll, place);
  run_case<In, Out>({8, 777, 1}, Fill::kNormal, {true, 2.0, 10.0, true}, Upstream::kAll, place, 4, {100, 501});
}

}  // namespace

int main(int argc, char** argv) {
  fiber::catch_stray_addresses();
  seed = argc > 1 ? static_cast<std::uint32_t>(std::atoi(argv[1])) : 1;
  run_pair<cer::BFloat16, cer::BFloat16>();
  run_pair<float, float>();
  run_pair<float, cer::BFloat16>();
  run_pair<float, cer::Float16>();
  run_pair<cer::Float16, cer::Float16>();
  run_pair<double, double>();
  run_case<cer::BFloat16, cer::BFloat16>({1, 151937}, Fill::kNormal, {}, Upstream::kAll, Place::kInPlace, 5);
  run_case<float, float>({1, 151936}, Fill::kNearOneHot, {}, Upstream::kAll, Place::kInPlace, 10);
  std::printf("grad_tile: %d cases, largest error %.2f of what is allowed\n", cases_run, worst);
  return 0;
}
