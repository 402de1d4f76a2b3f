// The stored scalar types of the logits and their exact conversions to and from float, on host and device.
//
//     BFloat16   sign, 8 exponent bits, 7 of fraction: the upper half of a float
//     Float16    sign, 5 exponent bits, 10 of fraction: IEEE 754 binary16
//
// to_float is exact for every bit pattern (subnormals too). from_float rounds to nearest, ties to even; what is too
// large becomes an infinity, and a NaN stays a NaN. Both types are their bits and nothing else: arrays of them are
// what torch, CuPy and numpy hold. ScalarTraits<T> names, per stored type, the accumulator of the kernels.
//
// Standard library only, and none of it under NVRTC: the native conversion instructions are reached through PTX, so
// that cuda_bf16.h and cuda_fp16.h are not needed where the kernels are compiled at first use.
#pragma once

#include "softmax_state.h"  // CER_HD

#if !defined(__CUDACC_RTC__)
#include <cstdint>
#include <cstring>
#endif

namespace cer {

namespace detail {

#if defined(__CUDA_ARCH__)
CER_HD unsigned int bits_of_float(float x) { return __float_as_uint(x); }
CER_HD float float_of_bits(unsigned int bits) { return __uint_as_float(bits); }
#else
CER_HD unsigned int bits_of_float(float x) {
  unsigned int bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
CER_HD float float_of_bits(unsigned int bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
#endif

}  // namespace detail

struct BFloat16 {
  unsigned short bits;

  CER_HD float to_float() const { return detail::float_of_bits(static_cast<unsigned int>(bits) << 16); }

  CER_HD static BFloat16 from_float(float x) {
#if defined(__CUDA_ARCH__)
    BFloat16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
#else
    const unsigned int b = detail::bits_of_float(x);
    if ((b & 0x7fffffffu) > 0x7f800000u) {  // NaN: keep sign and payload, and stay quiet when the low half is cut off
      return BFloat16{static_cast<unsigned short>((b >> 16) | 0x0040u)};
    }
    return BFloat16{static_cast<unsigned short>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16)};
#endif
  }
};

struct Float16 {
  unsigned short bits;

  CER_HD float to_float() const {
#if defined(__CUDA_ARCH__)
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(bits));
    return result;
#else
    const unsigned int sign = (bits & 0x8000u) << 16;
    const unsigned int rest = bits & 0x7fffu;
    if (rest >= 0x7c00u) return detail::float_of_bits(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
    if (rest >= 0x0400u) return detail::float_of_bits(sign | ((rest << 13) + (112u << 23)));
    // Subnormal: fraction * 2^-24, exact in float.
    const float magnitude = static_cast<float>(rest) * 5.9604644775390625e-8f;
    return detail::float_of_bits(sign | detail::bits_of_float(magnitude));
#endif
  }

  CER_HD static Float16 from_float(float x) {
#if defined(__CUDA_ARCH__)
    Float16 result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(x));
    return result;
#else
    const unsigned int b = detail::bits_of_float(x);
    const unsigned int sign = (b >> 16) & 0x8000u;
    const unsigned int magnitude = b & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {  // NaN
      return Float16{static_cast<unsigned short>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu))};
    }
    if (magnitude >= 0x477ff000u) return Float16{static_cast<unsigned short>(sign | 0x7c00u)};  // >= 65520: infinity
    if (magnitude >= 0x38800000u) {  // normal: rebias, round the 13 lost bits to even
      const unsigned int rounded = magnitude - (112u << 23) + 0x0fffu + ((magnitude >> 13) & 1u);
      return Float16{static_cast<unsigned short>(sign | (rounded >> 13))};
    }
    if (magnitude < 0x33000000u) return Float16{static_cast<unsigned short>(sign)};  // < 2^-25: zero
    // Subnormal: x = significand * 2^(exponent - 150) in units of 2^-24.
    const unsigned int significand = (magnitude & 0x7fffffu) | 0x800000u;
    const unsigned int shift = 126u - (magnitude >> 23);  // 14..24
    const unsigned int kept = significand >> shift;
    const unsigned int lost = significand & ((1u << shift) - 1u);
    const unsigned int half = 1u << (shift - 1u);
    const unsigned int up = lost > half || (lost == half && (kept & 1u)) ? 1u : 0u;
    return Float16{static_cast<unsigned short>(sign | (kept + up))};
#endif
  }
};

static_assert(sizeof(BFloat16) == 2 && sizeof(Float16) == 2, "a 16-bit scalar is its bits");

// Accumulator: "Real" of kernels.h.
template <typename T>
struct ScalarTraits;

template <>
struct ScalarTraits<float> {
  using Accumulator = float;
  CER_HD static float load(float x) { return x; }
  CER_HD static float store(float x) { return x; }
};
template <>
struct ScalarTraits<double> {
  using Accumulator = double;
  CER_HD static double load(double x) { return x; }
  CER_HD static double store(double x) { return x; }
};
template <>
struct ScalarTraits<BFloat16> {
  using Accumulator = float;
  CER_HD static float load(BFloat16 x) { return x.to_float(); }
  CER_HD static BFloat16 store(float x) { return BFloat16::from_float(x); }
};
template <>
struct ScalarTraits<Float16> {
  using Accumulator = float;
  CER_HD static float load(Float16 x) { return x.to_float(); }
  CER_HD static Float16 store(float x) { return Float16::from_float(x); }
};

}  // namespace cer
