// From the stored logit to the logit of the softmax, on the device:
//
//     y = softcap * tanh(scale * (x + bias) / softcap)        dy/dx = scale * (1 - tanh^2)
//
// fold_tile and grad_tile share it, so that a row's maximum is the same number in both. Products are rounded by
// themselves (__fmul_rn): a product contracted with the subtraction of the maximum would leave d != 0 at the maximum.
//
// PowerOf: the exponential of a distance. Float works in base 2 (one multiplication and ex2.approx, relative error
// 2^-22, two instructions instead of expf's eight: at two bytes per logit the fold has about 18 before it, not the
// memory, is the limit on an H100); double in base e.
#pragma once

#include "kernels.h"
#include "scalar_types.h"

namespace cer {
namespace device {

__device__ __forceinline__ float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double multiply_rounded(double a, double b) { return __dmul_rn(a, b); }
__device__ __forceinline__ float tanh_of(float x) { return tanhf(x); }
__device__ __forceinline__ double tanh_of(double x) { return tanh(x); }
__device__ __forceinline__ float expm1_of(float x) { return expm1f(x); }
__device__ __forceinline__ double expm1_of(double x) { return expm1(x); }
// The larger one; a NaN loses to a number.
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

template <typename Real>
struct PowerOf;
template <>
struct PowerOf<float> {
  static constexpr double kPerNat = 1.4426950408889634074;   // log2 e
  static constexpr double kNats = 0.69314718055994530942;    // ln 2
  __device__ __forceinline__ static float raise(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
  }
};
template <>
struct PowerOf<double> {
  static constexpr double kPerNat = 1.0;
  static constexpr double kNats = 1.0;
  __device__ __forceinline__ static double raise(double x) { return exp(x); }
};

// kPlain: scale 1, no bias, no softcap; the launcher decides, and y is x bit for bit.
template <typename Real, bool kPlain>
struct Transform {
  const Real* bias;
  Real scale, softcap;

  __device__ __forceinline__ explicit Transform(const LogitTransform& t)
      : bias(static_cast<const Real*>(t.bias)),
        scale(static_cast<Real>(t.scale)),
        softcap(static_cast<Real>(t.softcap)) {}

  __device__ __forceinline__ Real logit(Real x, std::int64_t column) const {
    if (kPlain) return x;
    const Real scaled = multiply_rounded(scale, bias != nullptr ? x + bias[column] : x);
    return softcap == Real(0) ? scaled : multiply_rounded(softcap, tanh_of(scaled / softcap));
  }

  // dy/dx from y; (1 - t)(1 + t) keeps what 1 - t^2 would round away near the cap.
  __device__ __forceinline__ Real slope(Real y) const {
    if (kPlain) return Real(1);
    if (softcap == Real(0)) return scale;
    const Real t = y / softcap;
    return scale * ((Real(1) - t) * (Real(1) + t));
  }
};

__device__ __forceinline__ double inverse_temperature_of(const LogitTransform& t, std::int64_t row) {
  return t.inverse_temperature != nullptr ? t.inverse_temperature[row] : t.inverse_temperature_all;
}

}  // namespace device
}  // namespace cer
