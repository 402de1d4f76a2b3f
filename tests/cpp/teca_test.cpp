// teca_forward and teca_backward on the CPU against the definitions: padded with and without a mask, packed, empty
// responses, NaN behind the mask, float and double, any number of threads.
#include <random>

#include "expect.h"
#include "kernels.h"

namespace {

template <typename Real>
void check(std::int64_t responses, std::int64_t length, bool packed, bool masked, int threads) {
  std::mt19937_64 random(static_cast<std::uint64_t>(responses * 131 + length));
  std::vector<std::int64_t> begins{0};
  for (std::int64_t i = 0; i < responses; ++i) {
    const std::int64_t own = packed ? static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(length + 1)) : length;
    begins.push_back(begins.back() + own);
  }
  const std::size_t tokens = static_cast<std::size_t>(begins.back());
  std::vector<Real> entropy, grad_teca, grad_last;
  std::vector<std::uint8_t> mask;
  for (std::size_t i = 0; i < tokens; ++i) {
    mask.push_back(!masked || random() % 3 != 0);
    const Real h = static_cast<Real>(static_cast<double>(random() % 10000) / 1000.0);
    entropy.push_back(mask.back() ? h : static_cast<Real>(NAN));
    grad_teca.push_back(mask.back() ? static_cast<Real>(static_cast<double>(random() % 2000) / 1000.0 - 1.0) : static_cast<Real>(NAN));
  }
  for (std::int64_t i = 0; i < responses; ++i) grad_last.push_back(static_cast<Real>(i % 5) - Real(2));

  // The definitions, token by token: quadratic, and sharing nothing with the running sums.
  std::vector<long double> teca(tokens, 0.0L), last, grad(tokens, 0.0L);
  for (std::int64_t r = 0; r < responses; ++r) {
    std::vector<std::size_t> own;
    for (std::int64_t i = begins[static_cast<std::size_t>(r)]; i < begins[static_cast<std::size_t>(r) + 1]; ++i) {
      if (mask[static_cast<std::size_t>(i)]) own.push_back(static_cast<std::size_t>(i));
    }
    for (std::size_t t = 0; t < own.size(); ++t) {
      long double sum = 0.0L;
      for (std::size_t i = 0; i <= t; ++i) sum += entropy[own[i]];
      teca[own[t]] = sum / static_cast<long double>(t + 1);
      for (std::size_t i = 0; i <= t; ++i) grad[own[i]] += grad_teca[own[t]] / static_cast<long double>(t + 1);
    }
    last.push_back(own.empty() ? 0.0L : teca[own.back()]);
    for (const std::size_t i : own) grad[i] += grad_last[static_cast<std::size_t>(r)] / static_cast<long double>(own.size());
  }

  const double relative = sizeof(Real) == 8 ? 1e-13 : 1.2e-7, absolute = sizeof(Real) == 8 ? 1e-13 : 1e-7;
  const std::string what = std::to_string(responses) + "x" + std::to_string(length) + (packed ? " packed" : " padded") +
                           (masked ? " masked" : "") + (sizeof(Real) == 8 ? " float64" : " float32");
  std::vector<Real> got_teca(tokens, Real(7)), got_last(static_cast<std::size_t>(responses), Real(7)), got_grad(tokens, Real(7));
  cer::Teca f;
  f.is_double = sizeof(Real) == 8;
  f.responses = responses;
  f.length = length;
  f.cu_seqlens = packed ? begins.data() : nullptr;
  f.mask = masked ? mask.data() : nullptr;
  f.entropy = entropy.data();
  f.teca = got_teca.data();
  f.last = got_last.data();
  cer::cpu::teca_forward(f, threads);
  expect::close(got_teca, teca, relative, 0.0, what + ": teca");
  expect::close(got_last, last, relative, 0.0, what + ": last");

  cer::TecaBackward b;
  b.is_double = f.is_double;
  b.responses = responses;
  b.length = length;
  b.cu_seqlens = f.cu_seqlens;
  b.mask = f.mask;
  b.grad_teca = grad_teca.data();
  b.grad_last = grad_last.data();
  b.grad_entropy = got_grad.data();
  cer::cpu::teca_backward(b, threads);
  expect::close(got_grad, grad, relative, absolute, what + ": gradient");
}

}  // namespace

int main() {
  for (const int threads : {1, 3}) {
    for (const bool packed : {false, true}) {
      for (const bool masked : {false, true}) {
        check<float>(7, 300, packed, masked, threads);
        check<double>(7, 300, packed, masked, threads);
        check<double>(1, 1, packed, masked, threads);
        check<float>(400, 90, packed, masked, threads);
        check<float>(3, 0, packed, masked, threads);
        check<float>(0, 5, packed, masked, threads);
      }
    }
  }
  return expect::finish("teca");
}
