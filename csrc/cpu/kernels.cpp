// The inner loops of fold_tile and grad_tile over a stretch of one row, compiled once per instruction set (dispatch.cpp
// lists the flags). What goes in and what comes out is in isa_kernels.h, the equations in softmax_state.h and kernels.h.
//
// fold_below is the hot one. A row's maximum is found early (among n entries in no order about log n raise it), so entries
// are folded against the maximum so far, in one pass, and where one reaches it, a few from there on are folded by
// fold_block. Entries strictly below the maximum need neither a count nor a mask, and their sums merge without an
// exponential.
//
// Sums run in four float vectors over a block of at most kBlock columns (row.h), and in double from there on.
#include "cpu/isa_kernels.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)  // its _mm512_undefined is "x = x", and warned about wherever it is inlined
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if !defined(CER_ISA)
#error "compile with -DCER_ISA=<name>, see dispatch.cpp"
#endif
#define CER_TEXT_OF(x) #x
#define CER_TEXT(x) CER_TEXT_OF(x)

namespace cer::cpu::CER_ISA {

#include "cpu/vector.h"

#include "cpu/elementary.h"

#include "cpu/head_strip.h"

#include "cpu/head_strip_amx.h"

namespace {

template <std::int64_t step, typename T>
inline void fill_up(T (&padded)[step], const T* x, std::int64_t n) {
  for (std::int64_t k = 0; k < step; ++k) padded[k] = Stored<T>::minus_infinity();
  __builtin_memcpy(padded, x, static_cast<std::size_t>(n) * sizeof(T));
}

// Calls body(pointer) for every `step` entries; the last, shorter stretch is copied and filled up with -inf.
template <std::int64_t step, typename T, typename Body>
inline void for_stretches(const T* x, std::int64_t n, Body body) {
  std::int64_t i = 0;
  for (; i + step <= n; i += step) body(x + i);
  if (i < n) {
    T padded[step];
    fill_up(padded, x + i, n - i);
    body(padded);
  }
}

template <bool value_>
struct Constant {
  static constexpr bool value = value_;
};

template <typename T>
double largest(const void* entries, std::int64_t n) {
  using Real = typename Stored<T>::Real;
  constexpr std::int64_t lanes = kLanes<Real>;
  Values<Real> m[4];
  for (auto& v : m) v = all(Stored<Real>::minus_infinity());
  for_stretches<4 * lanes>(static_cast<const T*>(entries), n, [&](const T* x) {
    Values<Real> value[4];
    load_group(x, value);
    for (int k = 0; k < 4; ++k) m[k] = larger_number(value[k], m[k]);
  });
  const Values<Real> both = larger_number(larger_number(m[0], m[1]), larger_number(m[2], m[3]));
  Real result = both[0];
  for (int i = 1; i < lanes; ++i) result = both[i] > result ? both[i] : result;
  return static_cast<double>(result);
}

// The accuracy at which entries of type T are folded against a maximum from another block, or gradients of type T formed.
template <typename T>
constexpr Accuracy kAccuracy = Accuracy::kFull;
template <>
constexpr Accuracy kAccuracy<BFloat16> = Accuracy::kQuick;

// clamped: whether entries of -inf are provided for. Without, they give NaN (0 * inf), and the loop is a tenth faster.
// Returns -1 where the sums are NaN.
template <typename T, bool clamped>
std::int64_t fold_below_once(const T* x, std::int64_t n, double m, double b, double* r, double* u) {
  using Real = typename Stored<T>::Real;
  constexpr std::int64_t step = 4 * kLanes<Real>;
  const Exponential<Real> exponential(b);
  const Values<Real> top = all(static_cast<Real>(m));
  Values<Real> sum[2] = {}, weighted[2] = {};
  const auto take = [&](const T* from, auto clamp) {  // false, and nothing taken, where an entry is not below
    Values<Real> difference[4];
    load_group(from, difference);
    for (int k = 0; k < 4; ++k) difference[k] -= top;
    if (!all_negative((Integers<Real>)difference[0] & (Integers<Real>)difference[1] & (Integers<Real>)difference[2] &
                      (Integers<Real>)difference[3])) {
      return false;
    }
    for (int k = 0; k < 4; ++k) {
      Values<Real> t, e;
      if constexpr (decltype(clamp)::value) {
        e = exponential.template operator()<kAccuracy<T>>(difference[k], &t);
      } else {
        t = difference[k] * exponential.slope;
        e = exponential.template quick_from_t<kAccuracy<T>>(t);
      }
      sum[k % 2] += e;
      weighted[k % 2] = multiply_add(e, t, weighted[k % 2]);
    }
    return true;
  };
  std::int64_t i = 0;
  while (i + step <= n && take(x + i, Constant<clamped>{})) i += step;
  if (i < n && n - i < step) {
    T padded[step];
    fill_up(padded, x + i, n - i);
    if (take(padded, Constant<true>{})) i = n;
  }
  const double weighted_total = sum_of_lanes(weighted[0] + weighted[1]);
  *r = sum_of_lanes(sum[0] + sum[1]);
  *u = -Exponential<Real>::kUnit * weighted_total;
  return weighted_total == weighted_total ? i : -1;
}

template <typename T>
std::int64_t fold_below(const void* entries, std::int64_t n, double m, double b, double* r, double* u) {
  const T* x = static_cast<const T*>(entries);
#if defined(__AVX512F__)
  if constexpr (kAccuracy<T> == Accuracy::kQuick) {
    const std::int64_t taken = fold_below_once<T, false>(x, n, m, b, r, u);
    if (taken >= 0) return taken;
  }
#endif
  const std::int64_t taken = fold_below_once<T, true>(x, n, m, b, r, u);
  return taken < 0 ? 0 : taken;
}

template <typename T>
void fold_block(const void* entries, std::int64_t n, double b, BlockSums* sums) {
  using Real = typename Stored<T>::Real;
  constexpr std::int64_t lanes = kLanes<Real>;
  const double infinity = __builtin_huge_val();
  const double m = largest<T>(entries, n);
  const bool nothing = m == -infinity;  // all -inf, or NaN among them: any finite reference shows which
  const Exponential<Real> exponential(b);
  const Values<Real> top = all(nothing ? Real(0) : static_cast<Real>(m));
  Values<Real> sum[4] = {}, weighted[4] = {};
  Integers<Real> count[4] = {};
  for_stretches<4 * lanes>(static_cast<const T*>(entries), n, [&](const T* x) {
    Values<Real> value[4];
    load_group(x, value);
    for (int k = 0; k < 4; ++k) {
      Values<Real> t;
      const Values<Real> e = exponential(value[k] - top, &t);
      sum[k] += value[k] == top ? Values<Real>{} : e;  // beside a 1 of the maximum a small sum would be lost
      count[k] -= value[k] == top;
      weighted[k] = multiply_add(e, t, weighted[k]);  // t is 0 at the maximum
    }
  });
  const Integers<Real> counts = (count[0] + count[1]) + (count[2] + count[3]);
  double c = 0.0;
  for (int i = 0; i < lanes; ++i) c += static_cast<double>(counts[i]);
  sums->m = m;
  sums->c = nothing ? 0.0 : c;
  sums->r = sum_of_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
  sums->u = -Exponential<Real>::kUnit * sum_of_lanes((weighted[0] + weighted[1]) + (weighted[2] + weighted[3]));
  if (m == infinity) sums->r = infinity - infinity;
}

template <typename T>
void transform(const void* entries, const void* bias, std::int64_t n, double scale, double softcap, double* y,
               double* slope) {
  using Real = typename Stored<T>::Real;
  constexpr std::int64_t lanes = kLanes<double>;
  const T* x = static_cast<const T*>(entries);
  const Real* offset = static_cast<const Real*>(bias);
  for (std::int64_t i = 0; i < n; i += lanes) {
    const std::int64_t count = n - i < lanes ? n - i : lanes;
    // Through memory: entries of any type to double, at most a vector of them.
    T raw[kLanes<float>] = {};
    Real value[kLanes<float>], wide_bias[lanes] = {};
    double sum[lanes], result[lanes], rate[lanes];
    __builtin_memcpy(raw, x + i, static_cast<std::size_t>(count) * sizeof(T));
    store(value, load(raw));
    if (offset) __builtin_memcpy(wide_bias, offset + i, static_cast<std::size_t>(count) * sizeof(Real));
    for (int k = 0; k < lanes; ++k) sum[k] = static_cast<double>(value[k]) + static_cast<double>(wide_bias[k]);
    DoubleV z = load(sum) * scale;
    DoubleV dz = all(scale);
    if (softcap != 0.0) {
      DoubleV one_minus_square;
      z = tanh_of(z / softcap, &one_minus_square) * softcap;
      dz *= one_minus_square;
    }
    store(result, z);
    store(rate, dz);
    __builtin_memcpy(y + i, result, static_cast<std::size_t>(count) * sizeof(double));
    if (slope) __builtin_memcpy(slope + i, rate, static_cast<std::size_t>(count) * sizeof(double));
  }
}

// Columns in order for a pair of types: groups of BFloat16 come and go in their own order.
template <typename In, typename Out>
constexpr bool kGrouped = false;
template <typename T>
constexpr bool kGrouped<T, T> = true;

template <typename In, typename Out, bool has_linear>
void grad_loop(const void* entries, std::int64_t n, double m, double b, double a, double h, void* out) {
  using Real = typename Stored<In>::Real;
  constexpr std::int64_t lanes = kLanes<Real>, step = 4 * lanes;
  constexpr Accuracy accuracy = sizeof(Out) == 2 ? Accuracy::kHalf : Accuracy::kFull;
  const Exponential<Real> exponential(b);
  const Values<Real> top = all(static_cast<Real>(m));
  const Values<Real> constant = all(static_cast<Real>(a));
  const Values<Real> linear = all(static_cast<Real>(h * Exponential<Real>::kUnit));
  const In* x = static_cast<const In*>(entries);
  Out* dx = static_cast<Out*>(out);
  const auto stretch = [&](const In* from, Out* to) {
    Values<Real> value[4];  // all loads before the first store: they may be the same memory
    if constexpr (kGrouped<In, Out>) {
      load_group(from, value);
    } else {
      for (int k = 0; k < 4; ++k) value[k] = load(from + k * lanes);
    }
    for (int k = 0; k < 4; ++k) {
      Values<Real> t;
      const Values<Real> e = exponential.template operator()<accuracy>(value[k] - top, &t);
      value[k] = e * (has_linear ? multiply_add(t, linear, constant) : constant);
    }
    if constexpr (kGrouped<In, Out>) {
      store_group(to, value);
    } else {
      for (int k = 0; k < 4; ++k) store(to + k * lanes, value[k]);
    }
  };
  std::int64_t i = 0;
  for (; i + step <= n; i += step) stretch(x + i, dx + i);
  if (i < n) {
    In from[step] = {};
    Out to[step];
    __builtin_memcpy(from, x + i, static_cast<std::size_t>(n - i) * sizeof(In));
    stretch(from, to);
    __builtin_memcpy(dx + i, to, static_cast<std::size_t>(n - i) * sizeof(Out));
  }
}

template <typename In, typename Out>
void grad(const void* entries, std::int64_t n, double m, double b, double a, double h, void* out) {
  if (h == 0.0) {
    grad_loop<In, Out, false>(entries, n, m, b, a, h, out);
  } else {
    grad_loop<In, Out, true>(entries, n, m, b, a, h, out);
  }
}

}  // namespace

// Constant-initialised (constexpr): see isa_kernels.h. Order of types: ScalarType.
constexpr IsaKernels kernels = {
    CER_TEXT(CER_ISA),
    {largest<float>, largest<BFloat16>, largest<Float16>, largest<double>},
    {fold_below<float>, fold_below<BFloat16>, fold_below<Float16>, fold_below<double>},
    {fold_block<float>, fold_block<BFloat16>, fold_block<Float16>, fold_block<double>},
    {transform<float>, transform<BFloat16>, transform<Float16>, transform<double>},
    {{grad<float, float>, grad<float, BFloat16>, grad<float, Float16>, nullptr},
     {grad<BFloat16, float>, grad<BFloat16, BFloat16>, grad<BFloat16, Float16>, nullptr},
     {grad<Float16, float>, grad<Float16, BFloat16>, grad<Float16, Float16>, nullptr},
     {nullptr, nullptr, nullptr, grad<double, double>}},
#if defined(__AVX512BF16__)
    &kHead,
#else
    nullptr,
#endif
};

}  // namespace cer::cpu::CER_ISA
