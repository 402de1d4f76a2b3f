// softmax_state.h: pushes and merges in any order against the definitions, and the rows that are no distribution.
#include "softmax_state.h"

#include <algorithm>
#include <random>

#include "expect.h"

namespace {

using State = cer::SoftmaxState<double>;
const double kInfinity = State::infinity();
const double kNan = kInfinity - kInfinity;

State fold(const std::vector<double>& z, double b) {
  State s = State::empty();
  for (const double v : z) s.push(v, b);
  return s;
}

void push_matches_definition() {
  std::mt19937_64 random(1);
  for (const double b : {1.0, 0.5, 3.0}) {
    for (const double shift : {0.0, 1000.0, -1000.0}) {
      for (const double height : {0.0, 10.0, 25.0}) {
        std::vector<double> z;
        for (int i = 0; i < 500; ++i) z.push_back(shift + std::normal_distribution<double>(0.0, 2.0)(random));
        z[77] += height / b;
        z[400] = z[77];
        const double m = *std::max_element(z.begin(), z.end());
        long double sum = 0.0L, weighted = 0.0L, rest = 0.0L;
        int largest = 0;
        for (const double v : z) {
          const long double e = std::exp(static_cast<long double>(v - m) * b);
          sum += e;
          weighted += e * (static_cast<long double>(m - v) * b);
          if (v == m) {
            ++largest;
          } else {
            rest += e;
          }
        }
        const long double log_sum = std::log(static_cast<long double>(largest)) + std::log1p(rest / largest);
        const State s = fold(z, b);
        const std::vector<double> got{s.m, s.c, s.r, s.log_sum(), s.spread(), s.entropy(), s.lse(b)};
        const std::vector<long double> wanted{m, static_cast<long double>(largest), rest, log_sum, weighted / sum,
                                              log_sum + weighted / sum, m * static_cast<long double>(b) + log_sum};
        expect::close(got, wanted, 1e-12, 0.0, "push: m, c, r, log_sum, spread, entropy, lse");
      }
    }
  }
}

void merge_in_any_order_matches_push() {
  std::mt19937_64 random(2);
  for (int trial = 0; trial < 200; ++trial) {
    std::vector<double> z;
    const int n = 1 + static_cast<int>(random() % 60);
    for (int i = 0; i < n; ++i) {
      z.push_back(random() % 5 == 0 ? -kInfinity : static_cast<double>(random() % 9));  // ties and -inf
    }
    const double b = 0.25 * static_cast<double>(1 + random() % 8);
    const State whole = fold(z, b);
    std::vector<State> parts;
    for (std::size_t i = 0; i < z.size();) {
      const std::size_t end = std::min(z.size(), i + random() % 7);
      parts.push_back(fold({z.begin() + static_cast<long>(i), z.begin() + static_cast<long>(end)}, b));
      i = end;
    }
    std::shuffle(parts.begin(), parts.end(), random);
    State merged = State::empty();
    for (const State& part : parts) merged.merge(part, b);
    expect::close(std::vector<double>{merged.m, merged.c, merged.r, merged.u},
                  std::vector<double>{whole.m, whole.c, whole.r, whole.u}, 1e-13, 1e-300, "merge: m, c, r, u");
  }
}

void rows_that_are_no_distribution() {
  const State empty = fold({-kInfinity, -kInfinity}, 1.0);
  expect::close(std::vector<double>{empty.lse(1.0), empty.entropy()}, std::vector<double>{-kInfinity, kNan}, 0, 0,
                "all -inf: lse, H");
  for (const double bad : {kNan, kInfinity}) {
    for (int place = 0; place < 4; ++place) {
      std::vector<double> z{1.0, -kInfinity, 5.0};
      z.insert(z.begin() + place, bad);
      const State s = fold(z, 1.0);
      expect::close(std::vector<double>{s.lse(1.0), s.entropy(), s.log_sum()}, std::vector<double>{kNan, kNan, kNan}, 0, 0,
                    "NaN or +inf: lse, H, log_sum");
    }
  }
  const State one = fold({-3.5}, 2.0);
  expect::close(std::vector<double>{one.lse(2.0), one.entropy()}, std::vector<double>{-7.0, 0.0}, 0, 0, "one entry: lse, H");
}

}  // namespace

int main() {
  push_matches_definition();
  merge_in_any_order_matches_push();
  rows_that_are_no_distribution();
  return expect::finish("softmax_state");
}
