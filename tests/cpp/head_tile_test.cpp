// head_tile and pack_hidden: bfloat16 logits against double sums of the same products, within the bound of any order of
// float sums; the same bits for every number of threads; nothing written or read beside the operands. And where the
// instruction set has no product of bfloat16, an error that says so.
#include "cpu/dispatch.h"
#include "expect.h"
#include "kernels.h"

#include <algorithm>
#include <limits>
#include <random>
#include <stdexcept>

namespace {

struct Shape {
  std::int64_t rows, cols, width;
};

float value_of(std::uint16_t word) {
  const std::uint32_t bits = static_cast<std::uint32_t>(word) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Normal numbers with exponents around 1 and both signs, between rows of NaN that must not be read.
struct Matrix {
  std::int64_t rows, width, row_stride;
  std::vector<std::uint16_t> words;

  Matrix(std::int64_t rows_, std::int64_t width_, std::int64_t gap, unsigned seed)
      : rows(rows_), width(width_), row_stride(width_ + gap) {
    std::mt19937 random(seed);
    words.assign(static_cast<std::size_t>(rows * row_stride), 0x7fc0);
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t k = 0; k < width; ++k) {
        const std::uint32_t bits = random();
        words[static_cast<std::size_t>(i * row_stride + k)] =
            static_cast<std::uint16_t>((bits & 0x8000) | ((124 + (bits >> 16) % 5) << 7) | (bits & 0x7f));
      }
    }
  }
  double at(std::int64_t i, std::int64_t k) const { return value_of(words[static_cast<std::size_t>(i * row_stride + k)]); }
};

constexpr float kUntouched = -12345.0f;
constexpr std::int64_t kGap = 3;

std::vector<float> product(const Matrix& hidden, const Matrix& weight, int threads) {
  std::vector<std::uint32_t> packed(static_cast<std::size_t>(hidden.rows * ((hidden.width + 1) / 2)));
  cer::cpu::pack_hidden({hidden.words.data(), hidden.rows, hidden.width, hidden.row_stride, packed.data()}, threads);
  std::vector<float> logits(static_cast<std::size_t>(hidden.rows * (weight.rows + kGap)), kUntouched);
  cer::HeadTile p;
  p.packed_hidden = packed.data();
  p.rows = hidden.rows;
  p.width = hidden.width;
  p.weight = weight.words.data();
  p.weight_row_stride = weight.row_stride;
  p.cols = weight.rows;
  p.logits = logits.data();
  p.logits_row_stride = weight.rows + kGap;
  cer::cpu::head_tile(p, threads);
  return logits;
}

void logits_match_double_sums(const Shape& shape) {
  const std::string what =
      std::to_string(shape.rows) + " x " + std::to_string(shape.cols) + " x " + std::to_string(shape.width);
  const Matrix hidden(shape.rows, shape.width, 5, 1), weight(shape.cols, shape.width, 3, 2);
  const std::vector<float> one = product(hidden, weight, 1);
  for (const int threads : {2, 5, 64}) {
    expect::same(product(hidden, weight, threads), one, what + ", " + std::to_string(threads) + " threads");
  }
  for (std::int64_t i = 0; i < shape.rows; ++i) {
    for (std::int64_t j = 0; j < shape.cols + kGap; ++j) {
      const std::int64_t where = i * (shape.cols + kGap) + j;
      const double got = one[static_cast<std::size_t>(where)];
      double wanted = j < shape.cols ? 0.0 : kUntouched, magnitude = 0.0;
      for (std::int64_t k = 0; j < shape.cols && k < shape.width; ++k) {
        wanted += hidden.at(i, k) * weight.at(j, k);
        magnitude += std::fabs(hidden.at(i, k) * weight.at(j, k));
      }
      const double bound = 1.01 * static_cast<double>(shape.width) * 0x1p-24 * magnitude;
      if (!(std::fabs(got - wanted) <= bound)) {
        expect::fail(what, where, got, wanted);
        return;
      }
    }
  }
}

void without_the_product_there_is_an_error() {
  std::string message;
  try {
    product(Matrix(2, 4, 0, 1), Matrix(3, 4, 0, 2), 1);
  } catch (const std::runtime_error& error) {
    message = error.what();
  }
  expect::is_true(message.find("no product of bfloat16") != std::string::npos, "an error that says why, got '" + message + "'");
}

}  // namespace

int main() {
  for (const std::string& isa : cer::cpu::runnable_isas()) {
    cer::cpu::set_isa(isa);
    const bool multiplies = isa == "avx512bf16" || isa == "amxbf16";
    expect::is_true(cer::cpu::has_head_tile() == multiplies, "has_head_tile on " + isa);
    if (!cer::cpu::has_head_tile()) {
      without_the_product_there_is_an_error();
      continue;
    }
    // Around a panel (14 rows; of matrix tiles 32, in halves of 16), a strip (32 columns), a vector (16 pairs) and a chunk (256 pairs).
    for (std::int64_t rows = 1; rows <= 34; ++rows) logits_match_double_sums({rows, 33, 34});
    for (const std::int64_t cols : {1, 15, 16, 17, 31, 32, 65}) logits_match_double_sums({3, cols, 20});
    for (const std::int64_t width : {0, 1, 2, 31, 33, 511, 512, 513, 1024, 1025}) logits_match_double_sums({29, 40, width});
    logits_match_double_sums({0, 40, 8});
    logits_match_double_sums({4, 0, 8});
  }
  return expect::finish("head_tile");
}
