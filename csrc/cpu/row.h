// One row of a tile as the kernels see it.
//
// Where the logit of the softmax is the stored entry times a positive scale, kernels read the entries as they lie, with
// the inverse temperature b * scale, and maxima are multiplied by the scale here. Otherwise (bias, softcap, scale <= 0)
// a block of logits is first computed into a buffer, in double: a float y near 1000 would be off by 3e-5.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/isa_kernels.h"
#include "kernels.h"
#include "scalar_types.h"

namespace cer::cpu {

// Columns folded in float before sums are carried to double, and the unit of splitting one row over threads.
constexpr std::int64_t kBlock = 2048;

// Below this many entries a second thread costs more than it saves.
constexpr std::int64_t kFewEntries = 32768;

inline std::int64_t bytes_of(ScalarType type) {
  return type == ScalarType::kFloat64 ? 8 : type == ScalarType::kFloat32 ? 4 : 2;
}

inline double entry_at(const void* entries, ScalarType type, std::int64_t index) {
  switch (type) {
    case ScalarType::kFloat32:
      return static_cast<const float*>(entries)[index];
    case ScalarType::kBFloat16:
      return static_cast<const BFloat16*>(entries)[index].to_float();
    case ScalarType::kFloat16:
      return static_cast<const Float16*>(entries)[index].to_float();
    default:
      return static_cast<const double*>(entries)[index];
  }
}

inline void set_entry(void* entries, ScalarType type, std::int64_t index, double value) {
  const float narrow = static_cast<float>(value);
  switch (type) {
    case ScalarType::kFloat32:
      static_cast<float*>(entries)[index] = narrow;
      return;
    case ScalarType::kBFloat16:
      static_cast<BFloat16*>(entries)[index] = BFloat16::from_float(narrow);
      return;
    case ScalarType::kFloat16:
      static_cast<Float16*>(entries)[index] = Float16::from_float(narrow);
      return;
    default:
      static_cast<double*>(entries)[index] = value;
  }
}

class Row {
 public:
  Row(const LogitsTile& tile, std::int64_t index, const IsaKernels& kernels)
      : kernels(kernels),
        transform(tile.transform),
        type(static_cast<int>(tile.dtype)),
        entry_bytes(bytes_of(tile.dtype)),
        entries(static_cast<const char*>(tile.logits) + index * tile.row_stride * entry_bytes),
        inverse_temperature(transform.inverse_temperature ? transform.inverse_temperature[index]
                                                          : transform.inverse_temperature_all),
        direct(!transform.bias && transform.softcap == 0.0 && transform.scale > 0.0) {}

  const void* at(std::int64_t column) const { return entries + column * entry_bytes; }

  // The logits y of n <= kBlock columns and, where wanted, dy/dx.
  void compute(std::int64_t column, std::int64_t n, double* y, double* slope) const {
    const std::int64_t bias_bytes = type == kDouble ? 8 : 4;
    const void* bias = transform.bias ? static_cast<const char*>(transform.bias) + column * bias_bytes : nullptr;
    kernels.transform[type](at(column), bias, n, transform.scale, transform.softcap, y, slope);
  }

  // The logit at one column: the very value that the blocks hold, so that y - m is 0 at the maximum.
  double logit(std::int64_t column, double* slope = nullptr) const {
    double y;
    if (direct) {
      y = entry_at(entries, static_cast<ScalarType>(type), column) * transform.scale;
      if (slope) *slope = transform.scale;
    } else {
      compute(column, 1, &y, slope);
    }
    return y;
  }

  // The stored entry whose logit is m; false where m belongs to no entry of this type (m from elsewhere).
  bool entry_of(double m, double* entry) const {
    *entry = m / transform.scale;
    if (type != kDouble) *entry = static_cast<double>(static_cast<float>(*entry));
    return *entry * transform.scale == m;
  }

  static constexpr int kDouble = static_cast<int>(ScalarType::kFloat64);

  const IsaKernels& kernels;
  const LogitTransform& transform;
  const int type;
  const std::int64_t entry_bytes;
  const char* const entries;
  const double inverse_temperature;
  const bool direct;
};

// The column of the tile that holds the target, or -1.
inline std::int64_t target_column(const LogitsTile& tile, std::int64_t row) {
  const std::int64_t column = tile.target[row] - tile.first_column;
  return tile.target[row] >= tile.first_column && column < tile.cols ? column : -1;
}

}  // namespace cer::cpu
