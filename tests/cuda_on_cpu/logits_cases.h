// Rows of logits by regime, their softmax in long double, and the comparison that names what it found.
//
//     p_j = e^((y_j - m)/T) / sum      lse = m/T + log sum      log p_t = (y_t - m)/T - log sum
//     H = log sum + sum_j p_j (m - y_j)/T
//
// Written from the definitions, without the recurrence of softmax_state.h. Entries that equal the maximum are summed
// apart from the others, so that log1p keeps what a near-one-hot row has left.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "guarded_buffer.h"
#include "kernels.h"
#include "scalar_types.h"

namespace cases {

using Wide = long double;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

template <typename T>
cer::ScalarType code_of();
template <>
inline cer::ScalarType code_of<float>() { return cer::ScalarType::kFloat32; }
template <>
inline cer::ScalarType code_of<double>() { return cer::ScalarType::kFloat64; }
template <>
inline cer::ScalarType code_of<cer::BFloat16>() { return cer::ScalarType::kBFloat16; }
template <>
inline cer::ScalarType code_of<cer::Float16>() { return cer::ScalarType::kFloat16; }

template <typename T>
double value_of(T x) { return static_cast<double>(cer::ScalarTraits<T>::load(x)); }
template <typename T>
T stored(double x) { return cer::ScalarTraits<T>::store(static_cast<typename cer::ScalarTraits<T>::Accumulator>(x)); }

enum class Fill {
  kNormal,       // 3 * N(0, 1)
  kShifted,      // kNormal + 1000
  kNearOneHot,   // one logit 25 above the rest: H about 1e-8 at large V
  kTies,         // small integers: the maximum many times
  kSomeMinusInf, // every third -inf, the first entries among them
  kAllMinusInf,
  kOneNan,
  kOnePlusInf,
  kAscending,    // every vector brings a new maximum
  kEqual,
};

inline const char* name_of(Fill fill) {
  const char* const names[] = {"normal",  "shifted", "near one-hot", "ties",      "some -inf",
                               "all -inf", "one NaN", "one +inf",     "ascending", "equal"};
  return names[static_cast<int>(fill)];
}

inline double logit_of(Fill fill, std::int64_t row, std::int64_t column, std::int64_t columns,
                       std::mt19937_64& random) {
  std::normal_distribution<double> normal(0.0, 3.0);
  const std::int64_t special = (row * 7919 + columns / 2) % columns;
  switch (fill) {
    case Fill::kNormal: return normal(random);
    case Fill::kShifted: return 1000.0 + normal(random);
    case Fill::kNearOneHot: return column == special ? 25.0 : normal(random) / 8.0;
    case Fill::kTies: return static_cast<double>(random() % 4);
    case Fill::kSomeMinusInf: return column % 3 == 0 && columns > 1 ? -kInfinity : normal(random);
    case Fill::kAllMinusInf: return -kInfinity;
    case Fill::kOneNan: return column == special ? kNan : normal(random);
    case Fill::kOnePlusInf: return column == special ? kInfinity : normal(random);
    case Fill::kAscending: return static_cast<double>(column) / 64.0;
    case Fill::kEqual: return 1.5;
  }
  return kNan;
}

struct Shape {
  std::int64_t rows, cols;
  std::int64_t padding = 0;      // row_stride - cols
  std::size_t offset = 0;        // elements from a page to the first logit; Guard::kBehind otherwise
  bool guard_before = false;
};

// How a case transforms its logits; the bias is by column, the temperature by row.
struct Options {
  bool bias = false;
  double scale = 1.0;
  double softcap = 0.0;
  bool row_temperatures = false;
  double temperature = 1.0;
};

constexpr std::int64_t kIgnore = -100;

// The inputs of one case, in guarded memory, and the logits y in double.
template <typename T>
struct Inputs {
  using Real = typename cer::ScalarTraits<T>::Accumulator;
  Shape shape;
  Options options;
  std::int64_t row_stride;
  fiber::GuardedBuffer<T> logits;
  fiber::GuardedBuffer<Real> bias;
  fiber::GuardedBuffer<double> inverse_temperature;
  fiber::GuardedBuffer<std::int64_t> target;
  std::vector<std::vector<double>> y;

  Inputs(const Shape& s, const Options& o, Fill fill, std::uint64_t seed)
      : shape(s), options(o), row_stride(s.cols + s.padding),
        logits("logits", static_cast<std::size_t>((s.rows - 1) * row_stride + s.cols),
               s.guard_before ? fiber::Guard::kBefore : fiber::Guard::kBehind, s.offset),
        bias("bias", static_cast<std::size_t>(s.cols)),
        inverse_temperature("inverse_temperature", static_cast<std::size_t>(s.rows)),
        target("target", static_cast<std::size_t>(s.rows)) {
    std::mt19937_64 random(seed);
    for (std::int64_t j = 0; j < s.cols; ++j) {
      bias[static_cast<std::size_t>(j)] = static_cast<Real>(std::normal_distribution<double>(0.0, 1.0)(random));
    }
    y.assign(static_cast<std::size_t>(s.rows), std::vector<double>(static_cast<std::size_t>(s.cols)));
    for (std::int64_t i = 0; i < s.rows; ++i) {
      const std::size_t row = static_cast<std::size_t>(i);
      const double temperature = o.row_temperatures ? 0.5 + 0.25 * static_cast<double>(i % 7) : o.temperature;
      inverse_temperature[row] = 1.0 / temperature;
      // In turn: a column drawn at random, the first, the last, ignored, below 0, beyond the vocabulary.
      const std::int64_t targets[] = {static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(s.cols)), 0,
                                      s.cols - 1, kIgnore, -1, s.cols};
      target[row] = targets[i % 6];
      for (std::int64_t j = 0; j < s.cols; ++j) {
        const std::size_t column = static_cast<std::size_t>(j);
        T& x = logits[static_cast<std::size_t>(i * row_stride + j)];
        x = stored<T>(logit_of(fill, i, j, s.cols, random));
        double value = o.scale * (value_of(x) + (o.bias ? static_cast<double>(bias[column]) : 0.0));
        if (o.softcap != 0.0) value = o.softcap * std::tanh(value / o.softcap);
        y[row][column] = value;
      }
    }
  }

  double inverse_of(std::int64_t row) const { return inverse_temperature[static_cast<std::size_t>(row)]; }

  cer::LogitsTile tile(std::int64_t begin, std::int64_t end) const {
    cer::LogitsTile t;
    t.logits = logits.data() + begin;
    t.dtype = code_of<T>();
    t.rows = shape.rows;
    t.cols = end - begin;
    t.row_stride = row_stride;
    t.first_column = begin;
    t.transform.bias = options.bias ? bias.data() + begin : nullptr;
    t.transform.scale = options.scale;
    t.transform.softcap = options.softcap;
    t.transform.inverse_temperature = options.row_temperatures ? inverse_temperature.data() : nullptr;
    t.transform.inverse_temperature_all = 1.0 / options.temperature;
    t.target = target.data();
    return t;
  }
};

struct RowReference {
  double m, log_sum, spread, lse, entropy;
};

inline RowReference reference_of(const std::vector<double>& y, double inverse_temperature) {
  bool bad = false;
  double m = -kInfinity;
  for (const double value : y) {
    bad = bad || !(value < kInfinity);
    if (value > m) m = value;
  }
  if (bad) return {kNan, kNan, kNan, kNan, kNan};
  if (m == -kInfinity) return {kNan, kNan, kNan, -kInfinity, kNan};
  Wide ties = 0, rest = 0, weighted = 0;
  for (const double value : y) {
    if (value == m) {
      ties += 1;
    } else if (value != -kInfinity) {
      const Wide d = (static_cast<Wide>(m) - value) * static_cast<Wide>(inverse_temperature);
      rest += std::exp(-d);
      weighted += std::exp(-d) * d;
    }
  }
  const Wide log_sum = std::log(ties) + std::log1p(rest / ties);
  const Wide spread = weighted / (ties + rest);
  return {m, static_cast<double>(log_sum), static_cast<double>(spread),
          static_cast<double>(static_cast<Wide>(m) * inverse_temperature + log_sum),
          static_cast<double>(log_sum + spread)};
}

// Compares and, on the first miss, says where, what came and what was expected; ends the program with status 1.
struct Check {
  std::string what;
  double worst = 0.0;  // largest error in units of its tolerance

  void close(const char* quantity, std::int64_t row, std::int64_t column, double got, double expected, double relative,
             double absolute = 0.0) {
    const bool same = got == expected || (std::isnan(got) && std::isnan(expected));
    const double error = same ? 0.0 : std::fabs(got - expected);
    const double allowed = relative * std::fabs(expected) + absolute;
    if (same) return;
    if (!(error <= allowed)) {
      std::fprintf(stderr, "FAILED %s: %s[%lld", what.c_str(), quantity, static_cast<long long>(row));
      if (column >= 0) std::fprintf(stderr, ", %lld", static_cast<long long>(column));
      std::fprintf(stderr, "] is %.9g, expected %.9g (error %.3g, allowed %.3g)\n", got, expected, error, allowed);
      std::fflush(nullptr);
      _exit(1);
    }
    if (allowed > 0.0 && error / allowed > worst) worst = error / allowed;
  }
};

inline std::string describe(const char* dtype, const Shape& s, const Options& o, Fill fill) {
  char text[256];
  std::snprintf(text, sizeof text, "%s %lldx%lld stride +%lld offset %zu %s%s scale %g softcap %g %s", dtype,
                static_cast<long long>(s.rows), static_cast<long long>(s.cols), static_cast<long long>(s.padding),
                s.offset,
                name_of(fill), o.bias ? " bias" : "", o.scale, o.softcap,
                o.row_temperatures ? "row temperatures" : ("T " + std::to_string(o.temperature)).c_str());
  return text;
}

}  // namespace cases
