// fold_tile and finish_rows on the CPU against long double, for every type and instruction set; the same bits for every
// number of threads, and the same values for every split of the columns into tiles.
#include <algorithm>

#include "cpu/dispatch.h"
#include "expect.h"
#include "tile_case.h"

namespace {

struct Folded {
  std::vector<double> states;  // (5, rows)
  std::vector<double> logprobs, entropy, lse;
};

std::vector<double> outputs(const std::vector<unsigned char>& raw, bool is_double, std::int64_t rows) {
  std::vector<double> values;
  const auto type = is_double ? cer::ScalarType::kFloat64 : cer::ScalarType::kFloat32;
  for (std::int64_t i = 0; i < rows; ++i) values.push_back(read_scalar(raw.data(), type, i));
  return values;
}

Folded fold(const TileCase& c, int threads, std::int64_t tile_cols) {
  Folded f;
  f.states.assign(static_cast<std::size_t>(5 * c.rows), 123.0);  // rubbish that a fresh tile must not read
  cer::RowStates states{f.states.data(), c.rows, f.states.data() + 4 * c.rows};
  for (std::int64_t column = 0; column < c.cols; column += tile_cols) {
    cer::FoldTile p;
    p.tile.logits = static_cast<const unsigned char*>(c.logits()) + column * c.bytes();
    p.tile.dtype = c.dtype;
    p.tile.rows = c.rows;
    p.tile.cols = std::min(tile_cols, c.cols - column);
    p.tile.row_stride = c.row_stride;
    p.tile.first_column = column;
    p.tile.target = c.target.data();
    p.tile.transform.scale = c.scale;
    p.tile.transform.softcap = c.softcap;
    p.tile.transform.inverse_temperature = c.inverse_temperature.data();
    if (!c.bias.empty()) {
      p.tile.transform.bias = c.is_double() ? static_cast<const void*>(c.bias.data() + column) : c.bias_float.data() + column;
    }
    p.states = states;
    p.fresh = column == 0;
    cer::cpu::fold_tile(p, threads);
  }
  const std::size_t bytes = static_cast<std::size_t>(c.rows) * 8;
  std::vector<unsigned char> logprobs(bytes), entropy(bytes), lse(bytes);
  cer::FinishRows p;
  p.states = states;
  p.rows = c.rows;
  p.target = c.target.data();
  p.vocabulary = c.cols;
  p.inverse_temperature = c.inverse_temperature.data();
  p.double_outputs = c.is_double();
  p.logprobs = logprobs.data();
  p.entropy = entropy.data();
  p.lse = lse.data();
  cer::cpu::finish_rows(p, threads);
  f.logprobs = outputs(logprobs, c.is_double(), c.rows);
  f.entropy = outputs(entropy, c.is_double(), c.rows);
  f.lse = outputs(lse, c.is_double(), c.rows);
  return f;
}

struct Reference {
  std::vector<Extended> logprobs, entropy, lse;
};

Reference reference(const TileCase& c) {
  Reference r;
  for (std::int64_t i = 0; i < c.rows; ++i) {
    const ReferenceRow row = reference_row(c, i);
    r.logprobs.push_back(row.logprob);
    r.entropy.push_back(row.entropy);
    r.lse.push_back(row.lse);
  }
  return r;
}

double worst_entropy_error(const Folded& f, const Reference& r) {
  double worst = 0.0;
  for (std::size_t i = 0; i < r.entropy.size(); ++i) {
    const double wanted = static_cast<double>(r.entropy[i]);
    if (wanted > 1e-12) worst = std::max(worst, std::fabs(f.entropy[i] - wanted) / wanted);
  }
  return worst;
}

// Returns the largest relative error of an entropy.
double check(const TileCase& c, const Reference& wanted) {
  const Folded whole = fold(c, 1, c.cols);
  // Float logits: sums in float lanes, exponents of float differences. Entropies below 1e-12 are beyond the contract.
  const double relative = c.is_double() ? kReferenceError : 3e-6;
  const std::string what = std::string(cer::cpu::active_kernels().name) + ", " + c.name;
  const double tiny = c.is_double() ? 1e-300 : 1e-18;
  expect::close(whole.entropy, wanted.entropy, relative, tiny, what + ": entropy");
  // logprob and lse add up to b z, so a relative error of theirs is one of the larger of them.
  expect::close(whole.logprobs, wanted.logprobs, relative, tiny, what + ": logprob");
  expect::close(whole.lse, wanted.lse, relative, relative, what + ": lse");
  for (const double h : whole.entropy) expect::is_true(!(h < 0.0), what + ": entropy >= 0");
  for (const int threads : {2, 5}) {
    const Folded other = fold(c, threads, c.cols);
    expect::same(other.states, whole.states, what + ": state with " + std::to_string(threads) + " threads");
    expect::same(other.entropy, whole.entropy, what + ": entropy with " + std::to_string(threads) + " threads");
  }
  for (const std::int64_t tile : {std::int64_t{1000}, std::int64_t{2048}, c.cols / 2 + 1}) {
    if (tile >= c.cols || c.cols / tile > 40) continue;
    const Folded tiled = fold(c, 2, tile);
    expect::close(tiled.entropy, wanted.entropy, relative, tiny, what + ": entropy in tiles of " + std::to_string(tile));
    expect::close(tiled.logprobs, wanted.logprobs, relative, tiny, what + ": logprob in tiles of " + std::to_string(tile));
  }
  return worst_entropy_error(whole, wanted);
}

void expanded_row_and_bad_targets() {
  TileCase c = make_case("expanded", cer::ScalarType::kFloat32, 6, 3000, [](auto& r, auto, auto) { return normal(r, 3.0); });
  c.row_stride = 0;
  for (std::int64_t i = 1; i < c.rows; ++i) std::copy_n(c.value.begin(), c.cols, c.value.begin() + i * c.cols);
  c.target = {5, 2999, 0, -100, 3000, -1};
  const Folded f = fold(c, 2, c.cols);
  Reference r = reference([&] {
    TileCase inside = c;
    std::fill(inside.target.begin() + 3, inside.target.end(), 0);
    return inside;
  }());
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (std::vector<Extended>* v : {&r.logprobs, &r.entropy, &r.lse}) {
    (*v)[3] = 0.0;
    (*v)[4] = (*v)[5] = nan;
  }
  expect::close(f.logprobs, r.logprobs, 3e-6, 0.0, "stride 0, ignored and bad targets: logprob");
  expect::close(f.entropy, r.entropy, 3e-6, 0.0, "stride 0, ignored and bad targets: entropy");
  expect::close(f.lse, r.lse, 3e-6, 0.0, "stride 0, ignored and bad targets: lse");
}

void no_rows() {
  const TileCase c = make_case("no rows", cer::ScalarType::kFloat32, 0, 10, [](auto&, auto, auto) { return 0.0; });
  fold(c, 3, c.cols);
}

}  // namespace

int main() {
  using cer::ScalarType;
  for (const ScalarType dtype : {ScalarType::kFloat32, ScalarType::kBFloat16, ScalarType::kFloat16, ScalarType::kFloat64}) {
    std::vector<double> worst(cer::cpu::runnable_isas().size(), 0.0);
    for (const TileCase& c : all_cases(dtype)) {
      const Reference wanted = reference(c);
      std::size_t k = 0;
      for (const std::string& isa : cer::cpu::runnable_isas()) {
        cer::cpu::set_isa(isa);
        worst[k] = std::max(worst[k], check(c, wanted));
        ++k;
      }
    }
    std::size_t k = 0;
    for (const std::string& isa : cer::cpu::runnable_isas()) {
      std::printf("type %d, %s: largest relative entropy error %.2e\n", static_cast<int>(dtype), isa.c_str(), worst[k++]);
    }
  }
  expanded_row_and_bad_targets();
  no_rows();
  return expect::finish("fold_tile");
}
