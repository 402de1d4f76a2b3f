// grad_tile on the CPU against long double, each upstream gradient alone and all together, in place and to every type of
// dlogits, near-one-hot rows relative to each entry's own terms; ignored and zero rows; threads and splits by columns.
#include <algorithm>

#include "cpu/dispatch.h"
#include "expect.h"
#include "tile_case.h"

namespace {

using cer::ScalarType;

struct Upstream {
  std::vector<double> g, h, l;  // empty: null
};

struct Reference {
  std::vector<double> gradient, terms;  // terms: the sum of the magnitudes of what is added up, the scale of rounding errors
  std::vector<double> stats;            // (3, rows)
};

Reference reference(const TileCase& c, const Upstream& up) {
  const Extended nan = std::numeric_limits<Extended>::quiet_NaN();
  Reference result;
  result.stats.resize(static_cast<std::size_t>(3 * c.rows));
  for (std::int64_t i = 0; i < c.rows; ++i) {
    const std::size_t row = static_cast<std::size_t>(i);
    const std::vector<Extended> y = reference_logits(c, i);
    const ReferenceRow r = reference_row(c, i);
    const Extended b = c.inverse_temperature[row];
    const bool bad = std::isnan(r.log_sum);
    const std::size_t rows = static_cast<std::size_t>(c.rows);
    result.stats[row] = static_cast<double>(r.m);
    result.stats[row + rows] = static_cast<double>(r.log_sum);
    result.stats[row + 2 * rows] = static_cast<double>(r.spread);
    const Extended g = up.g.empty() ? 0.0 : up.g[row], h = up.h.empty() ? 0.0 : up.h[row], l = up.l.empty() ? 0.0 : up.l[row];
    for (std::size_t j = 0; j < y.size(); ++j) {
      if (g == 0.0 && h == 0.0 && l == 0.0) {
        result.gradient.push_back(0.0);
        result.terms.push_back(0.0);
        continue;
      }
      const bool is_target = static_cast<std::int64_t>(j) == c.target[row];
      const Extended p = std::exp(r.log_p[j]);
      const Extended pull = is_target ? -std::expm1(r.log_p[j]) : -p;  // [j = target] - p
      const Extended d = std::max<Extended>((y[j] - r.m) * b, -1e300);
      Extended slope = c.scale;
      if (c.softcap != 0.0) {
        Extended x = c.value[static_cast<std::size_t>(i * c.cols) + j];
        if (!c.bias.empty()) x += c.bias[j];
        const Extended cosh = std::cosh(x * c.scale / c.softcap);
        slope = c.scale / (cosh * cosh);
      }
      const Extended k = slope * b;
      result.gradient.push_back(static_cast<double>(bad ? nan : k * (g * pull + l * p - h * p * (d + r.spread))));
      result.terms.push_back(static_cast<double>(
          std::fabs(k) * (std::fabs(g * pull) + std::fabs(l * p) + std::fabs(h * p) * (std::fabs(d) + r.spread))));
    }
  }
  return result;
}

// The upstream gradients in the logits' Real, as addresses.
struct Stored {
  std::vector<float> narrow;
  std::vector<double> wide;
  explicit Stored(const std::vector<double>& values) : narrow(values.begin(), values.end()), wide(values) {}
  const void* address(bool is_double) const {
    if (wide.empty()) return nullptr;
    return is_double ? static_cast<const void*>(wide.data()) : narrow.data();
  }
};

std::vector<double> gradient(const TileCase& original, const Upstream& up, const std::vector<double>& stats,
                             ScalarType out_type, bool in_place, int threads) {
  TileCase c = original;
  const Stored g(up.g), h(up.h), l(up.l);
  cer::GradTile p;
  p.tile.logits = c.logits();
  p.tile.dtype = c.dtype;
  p.tile.rows = c.rows;
  p.tile.cols = c.cols;
  p.tile.row_stride = c.row_stride;
  p.tile.target = c.target.data();
  p.tile.transform.scale = c.scale;
  p.tile.transform.softcap = c.softcap;
  p.tile.transform.inverse_temperature = c.inverse_temperature.data();
  if (!c.bias.empty()) p.tile.transform.bias = c.is_double() ? static_cast<const void*>(c.bias.data()) : c.bias_float.data();
  p.stats = {const_cast<double*>(stats.data()), c.rows};
  p.grad_logprobs = g.address(c.is_double());
  p.grad_entropy = h.address(c.is_double());
  p.grad_lse = l.address(c.is_double());
  p.dlogits_dtype = out_type;
  p.dlogits_row_stride = in_place ? c.row_stride : c.cols + 5;
  const std::int64_t bytes = out_type == ScalarType::kFloat64 ? 8 : out_type == ScalarType::kFloat32 ? 4 : 2;
  std::vector<unsigned char> apart(static_cast<std::size_t>(c.rows * p.dlogits_row_stride * bytes), 0xab);
  p.dlogits = in_place ? c.storage.data() + c.offset * c.bytes() : apart.data();
  cer::cpu::grad_tile(p, threads);
  std::vector<double> values;
  for (std::int64_t i = 0; i < c.rows; ++i) {
    for (std::int64_t j = 0; j < c.cols; ++j) values.push_back(read_scalar(p.dlogits, out_type, i * p.dlogits_row_stride + j));
    for (std::int64_t j = c.cols; j < p.dlogits_row_stride; ++j) {  // between the rows nothing is written
      if (!in_place && i * p.dlogits_row_stride + j < c.rows * p.dlogits_row_stride) {
        const unsigned char* at = apart.data() + (i * p.dlogits_row_stride + j) * bytes;
        if (std::any_of(at, at + bytes, [](unsigned char byte) { return byte != 0xab; })) {
          expect::fail(c.name + ": written between rows, row", i, *at, 0xab);
        }
      }
    }
  }
  return values;
}

void check(const TileCase& c, const Upstream& up, const Reference& wanted, const std::string& which) {
  const std::string what = std::string(cer::cpu::active_kernels().name) + ", " + c.name + ", " + which;
  std::vector<double> first;
  for (const ScalarType out : {ScalarType::kFloat32, ScalarType::kBFloat16, ScalarType::kFloat16, ScalarType::kFloat64}) {
    const std::vector<double> got = gradient(c, up, wanted.stats, out, false, 1);
    const bool both_wide = c.is_double() && out == ScalarType::kFloat64;
    // Float: e^d is as good as d, whose float rounding weighs |d| / 2^24 (|d| <= 87). Then one rounding to the output,
    // where what is below the smallest normal number may be zero (float16: its subnormals are exact to 3e-8).
    const double rounding = out == ScalarType::kBFloat16 ? 0x1p-8 : out == ScalarType::kFloat16 ? 0x1p-11 : 0.0;
    const double relative = (both_wide ? kReferenceError : 1.2e-5) + rounding;
    const double absolute = out == ScalarType::kFloat16 ? 3.1e-8 : both_wide ? 1e-300 : 1.3e-38 * (1 + std::fabs(c.scale) * 200);
    for (std::size_t j = 0; j < wanted.gradient.size(); ++j) {
      const double a = got[j], b = wanted.gradient[j];
      if (std::isnan(a) && std::isnan(b)) continue;
      if (!(std::fabs(a - b) <= relative * wanted.terms[j] + absolute)) {
        expect::fail(what + " to type " + std::to_string(static_cast<int>(out)), static_cast<std::int64_t>(j), a, b);
        return;
      }
    }
    if (out == c.dtype) first = got;
  }
  for (const int threads : {1, 2, 5}) {
    const std::string with = " with " + std::to_string(threads) + " threads";
    expect::same(gradient(c, up, wanted.stats, c.dtype, true, threads), first, what + ", in place" + with);
    expect::same(gradient(c, up, wanted.stats, c.dtype, false, threads), first, what + with);
  }
}

void check_all(ScalarType dtype) {
  for (TileCase& c : all_cases(dtype)) {
    if (c.cols > 40000) c = make_case("columns of several tasks", dtype, 2, 40000, [](auto& r, auto, auto) { return normal(r, 3.0); });
    std::vector<double> g, h, l;
    for (std::int64_t i = 0; i < c.rows; ++i) {
      g.push_back(0.5 + static_cast<double>(i));
      h.push_back(i % 2 ? -0.25 : 2.0);
      l.push_back(1.5 - static_cast<double>(i));
    }
    const std::vector<std::pair<std::string, Upstream>> upstreams = {
        {"logprob", {g, {}, {}}}, {"entropy", {{}, h, {}}}, {"lse", {{}, {}, l}}, {"all", {g, h, l}}};
    for (const auto& [which, up] : upstreams) {
      if (c.name.rfind("normal", 0) == 0 && which != "all" && c.cols != 2049) continue;
      const Reference wanted = reference(c, up);
      for (const std::string& isa : cer::cpu::runnable_isas()) {
        cer::cpu::set_isa(isa);
        check(c, up, wanted, which);
      }
    }
  }
}

void ignored_and_zero_rows_give_zeros() {
  TileCase c = make_case("ignored and zero rows", ScalarType::kBFloat16, 4, 5000, [](auto& r, auto i, auto j) {
    return i == 2 && j == 7 ? std::numeric_limits<double>::quiet_NaN() : normal(r, 3.0);
  });
  const Upstream up{{1.0, 0.0, 0.0, 1.0}, {1.0, 0.0, 0.0, 1.0}, {}};
  Reference wanted = reference(c, up);
  c.target[0] = -100;
  std::fill_n(wanted.gradient.begin(), c.cols, 0.0);
  const std::vector<double> got = gradient(c, up, wanted.stats, c.dtype, true, 2);
  for (std::int64_t j = 0; j < 3 * c.cols; ++j) {
    if (got[static_cast<std::size_t>(j)] != 0.0) {
      expect::fail("ignored or zero row", j, got[static_cast<std::size_t>(j)], 0.0);
      return;
    }
  }
  expect::is_true(got[static_cast<std::size_t>(3 * c.cols)] != 0.0, "a row beside them has a gradient");
}

}  // namespace

int main() {
  for (const ScalarType dtype : {ScalarType::kFloat32, ScalarType::kBFloat16, ScalarType::kFloat16, ScalarType::kFloat64}) {
    check_all(dtype);
  }
  ignored_and_zero_rows_give_zeros();
  return expect::finish("grad_tile");
}
