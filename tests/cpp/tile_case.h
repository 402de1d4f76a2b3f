// Tiles of logits by regime, and what fold_tile, finish_rows and grad_tile should make of them, in long double from the
// definitions: p = softmax(y / T), H = -sum p log p, and the gradients of log p_target, H and lse written out.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"
#include "scalar_types.h"

// What references are computed in, and how far it is off. Where long double is made in software (aarch64, and that under
// emulation), minutes would be spent in it: there double must do.
#if __LDBL_MANT_DIG__ > 64
using Extended = double;
constexpr double kReferenceError = 2e-11;
#else
using Extended = long double;
constexpr double kReferenceError = 2e-13;
#endif

struct TileCase {
  std::string name;
  cer::ScalarType dtype = cer::ScalarType::kFloat32;
  std::int64_t rows = 0, cols = 0, row_stride = 0, offset = 0;  // offset: elements before the first row (alignment)
  std::vector<unsigned char> storage;                           // offset + rows * row_stride entries
  std::vector<double> value;                                    // (rows, cols) what is stored
  std::vector<std::int64_t> target;
  std::vector<double> inverse_temperature;  // (rows,)
  std::vector<double> bias;                 // empty: none
  std::vector<float> bias_float;
  double scale = 1.0, softcap = 0.0;

  const void* logits() const { return storage.data() + offset * bytes(); }
  std::int64_t bytes() const {
    return dtype == cer::ScalarType::kFloat64 ? 8 : dtype == cer::ScalarType::kFloat32 ? 4 : 2;
  }
  bool is_double() const { return dtype == cer::ScalarType::kFloat64; }
};

inline double read_scalar(const void* at, cer::ScalarType dtype, std::int64_t i) {
  switch (dtype) {
    case cer::ScalarType::kFloat32:
      return static_cast<const float*>(at)[i];
    case cer::ScalarType::kBFloat16:
      return static_cast<const cer::BFloat16*>(at)[i].to_float();
    case cer::ScalarType::kFloat16:
      return static_cast<const cer::Float16*>(at)[i].to_float();
    default:
      return static_cast<const double*>(at)[i];
  }
}

inline void write_scalar(void* at, cer::ScalarType dtype, std::int64_t i, double x) {
  switch (dtype) {
    case cer::ScalarType::kFloat32:
      static_cast<float*>(at)[i] = static_cast<float>(x);
      return;
    case cer::ScalarType::kBFloat16:
      static_cast<cer::BFloat16*>(at)[i] = cer::BFloat16::from_float(static_cast<float>(x));
      return;
    case cer::ScalarType::kFloat16:
      static_cast<cer::Float16*>(at)[i] = cer::Float16::from_float(static_cast<float>(x));
      return;
    default:
      static_cast<double*>(at)[i] = x;
  }
}

using Entry = std::function<double(std::mt19937_64&, std::int64_t row, std::int64_t column)>;

inline TileCase make_case(const std::string& name, cer::ScalarType dtype, std::int64_t rows, std::int64_t cols,
                          const Entry& entry) {
  TileCase c;
  const char* names[] = {" float32", " bfloat16", " float16", " float64"};
  c.name = name + names[static_cast<int>(dtype)] + " " + std::to_string(rows) + "x" + std::to_string(cols);
  c.dtype = dtype;
  c.rows = rows;
  c.cols = cols;
  c.row_stride = cols + 3;
  c.offset = 1;
  c.storage.resize(static_cast<std::size_t>((c.offset + rows * c.row_stride) * c.bytes()));
  c.value.resize(static_cast<std::size_t>(rows * cols));
  std::mt19937_64 random(static_cast<std::uint64_t>(rows * 1000003 + cols));
  for (std::int64_t i = 0; i < rows; ++i) {
    for (std::int64_t j = 0; j < cols; ++j) {
      const std::int64_t at = c.offset + i * c.row_stride + j;
      write_scalar(c.storage.data(), dtype, at, entry(random, i, j));
      c.value[static_cast<std::size_t>(i * cols + j)] = read_scalar(c.storage.data(), dtype, at);
    }
    c.target.push_back(static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(cols)));
    c.inverse_temperature.push_back(1.0);
  }
  return c;
}

inline double normal(std::mt19937_64& random, double deviation) {
  return std::normal_distribution<double>(0.0, deviation)(random);
}

// The shapes and contents that have gone wrong somewhere, here or in other implementations.
inline std::vector<TileCase> all_cases(cer::ScalarType dtype) {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const Entry plain = [](auto& random, auto, auto) { return normal(random, 3.0); };
  std::vector<TileCase> cases;
  // One column; less than a vector; the block of columns and one beside it, on both sides; few and many blocks.
  for (const std::int64_t cols : {1, 2, 17, 100, 1023, 1025, 2047, 2048, 2049, 4097, 30011}) {
    cases.push_back(make_case("normal", dtype, 5, cols, plain));
  }
  cases.push_back(make_case("vocabulary of Qwen3", dtype, 2, 151936, plain));
  cases.push_back(make_case("shift 1000", dtype, 3, 5000, [](auto& r, auto, auto) { return 1000.0 + normal(r, 3.0); }));
  cases.push_back(make_case("shift -1000", dtype, 3, 5000, [](auto& r, auto, auto) { return -1000.0 + normal(r, 3.0); }));
  cases.push_back(make_case("scale 50", dtype, 3, 5000, [](auto& r, auto, auto) { return normal(r, 50.0); }));
  cases.push_back(make_case("all equal", dtype, 3, 5000, [](auto&, auto, auto) { return 2.5; }));
  cases.push_back(make_case("many at the maximum", dtype, 3, 9000, [](auto& r, auto, auto) {
    return std::fmin(normal(r, 3.0), 4.0);
  }));
  cases.push_back(make_case("rising", dtype, 3, 9000, [](auto&, auto, auto j) { return static_cast<double>(j) / 500.0; }));
  // The maximum first, in the middle, and last; H about 1e-8 for 21, and the target on it or not (below).
  for (const double height : {12.0, 21.0, 60.0}) {
    cases.push_back(make_case("near one-hot " + std::to_string(height), dtype, 6, 7000, [height](auto& r, auto i, auto j) {
      return j == i * 1399 + (i == 5 ? 4 : 0) ? height + 2.0 : std::fmin(normal(r, 0.1), 0.5) - (height > 20 ? 6.0 : 0.0);
    }));
    for (std::int64_t i = 0; i < 6; i += 2) cases.back().target[static_cast<std::size_t>(i)] = i * 1399;
  }
  cases.push_back(make_case("-inf mixed in", dtype, 4, 7000, [=](auto& r, auto i, auto j) {
    return (j * (i + 1)) % 3 ? -infinity : normal(r, 3.0);
  }));
  cases.push_back(make_case("-inf but one", dtype, 3, 7000, [=](auto&, auto, auto j) { return j == 6001 ? 3.0 : -infinity; }));
  cases.push_back(make_case("-inf for whole blocks", dtype, 3, 9000, [=](auto& r, auto, auto j) {
    return j < 4096 || j > 8200 ? -infinity : normal(r, 3.0);
  }));
  cases.push_back(make_case("all -inf", dtype, 3, 5000, [=](auto&, auto, auto) { return -infinity; }));
  cases.push_back(make_case("one NaN", dtype, 4, 5000, [=](auto& r, auto i, auto j) {
    return j == i * 1500 ? nan : normal(r, 3.0);
  }));
  cases.push_back(make_case("NaN among -inf", dtype, 3, 5000, [=](auto&, auto, auto j) { return j == 4999 ? nan : -infinity; }));
  cases.push_back(make_case("one +inf", dtype, 4, 9000, [=](auto& r, auto i, auto j) {
    return j == i * 2900 ? infinity : normal(r, 3.0);
  }));
  cases.push_back(make_case("many rows", dtype, 70, 300, plain));
  // Far apart: differences near the end of the range.
  const double far = dtype == cer::ScalarType::kFloat16 ? 6e4 : 1e38;
  cases.push_back(make_case("largest finite", dtype, 3, 5000, [=](auto&, auto, auto j) { return j % 2 ? far : -far; }));

  TileCase c = make_case("temperatures", dtype, 6, 5000, plain);
  c.inverse_temperature = {1.0, 0.5, 2.0, 1.0 / 0.7, 1.0 / 1.5, 100.0};
  cases.push_back(c);
  c = make_case("scale 0.0625, shift 1000", dtype, 3, 5000, [](auto& r, auto, auto) { return 1000.0 + normal(r, 30.0); });
  c.scale = 0.0625;
  c.inverse_temperature = {1.0, 0.7, 1.5};
  cases.push_back(c);
  c = make_case("scale -1.5", dtype, 3, 5000, plain);
  c.scale = -1.5;
  cases.push_back(c);
  for (const double softcap : {0.0, 30.0}) {
    c = make_case(softcap != 0.0 ? "bias, scale and softcap" : "bias", dtype, 5, 5000, [](auto& r, auto, auto) { return normal(r, 20.0); });
    c.softcap = softcap;
    if (softcap != 0.0) c.scale = 1.7;
    std::mt19937_64 random(7);
    for (std::int64_t j = 0; j < c.cols; ++j) c.bias_float.push_back(static_cast<float>(normal(random, 1.0)));
    c.bias.assign(c.bias_float.begin(), c.bias_float.end());
    c.inverse_temperature = {1.0, 0.7, 1.5, 1.0, 3.0};
    cases.push_back(c);
  }
  return cases;
}

// The logits y of a row.
inline std::vector<Extended> reference_logits(const TileCase& c, std::int64_t row) {
  std::vector<Extended> y;
  for (std::int64_t j = 0; j < c.cols; ++j) {
    Extended x = c.value[static_cast<std::size_t>(row * c.cols + j)];
    if (!c.bias.empty()) x += c.bias[static_cast<std::size_t>(j)];
    x *= c.scale;
    if (c.softcap != 0.0) x = c.softcap * std::tanh(x / c.softcap);
    y.push_back(x);
  }
  return y;
}

struct ReferenceRow {
  std::vector<Extended> log_p;
  Extended m, log_sum, spread, lse, logprob, entropy;
};

inline ReferenceRow reference_row(const TileCase& c, std::int64_t row) {
  const std::vector<Extended> y = reference_logits(c, row);
  const Extended b = c.inverse_temperature[static_cast<std::size_t>(row)];
  Extended m = -std::numeric_limits<Extended>::infinity();
  bool bad = false;
  for (const Extended v : y) {
    bad = bad || std::isnan(v) || v == std::numeric_limits<Extended>::infinity();
    m = std::fmax(m, v);
  }
  const Extended nan = std::numeric_limits<Extended>::quiet_NaN();
  const bool empty = std::isinf(m) && m < 0;
  ReferenceRow r;
  // The maximum's 1 apart from the rest: log1p keeps the small sum of a near-one-hot row.
  Extended rest = 0.0;
  bool seen = false;
  for (const Extended v : y) {
    if (v == m && !seen) {
      seen = true;
    } else {
      rest += std::exp((v - m) * b);
    }
  }
  const Extended log_sum = bad || empty ? nan : std::log1p(rest);
  r.m = bad || empty ? nan : m;
  r.log_sum = log_sum;
  r.spread = bad || empty ? nan : 0.0;
  r.lse = bad ? nan : empty ? m : m * b + log_sum;
  for (const Extended v : y) {
    const Extended log_p = (v - m) * b - log_sum;
    r.log_p.push_back(log_p);
    if (std::isnan(log_sum)) continue;
    if (std::exp(log_p) > 0.0) r.spread += std::exp(log_p) * ((m - v) * b);
  }
  r.entropy = r.log_sum + r.spread;  // = -sum p log p, of terms of one sign
  r.logprob = r.log_p[static_cast<std::size_t>(c.target[static_cast<std::size_t>(row)])];
  return r;
}
