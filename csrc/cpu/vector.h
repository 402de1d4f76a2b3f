// Vectors of float and double of one instruction set, and the few operations on them that the language lacks.
// Included by kernels.cpp alone, inside its namespace per instruction set.
//
// The width is the set's own: wider vector extensions than the machine has are taken apart element by element.
// Fused multiply-adds are written out (-ffp-contract=off), so that what is rounded once is what is meant to be.

constexpr int kVectorBytes =
#if defined(__AVX512F__)
    64;
#elif defined(__AVX2__)
    32;
#else
    16;
#endif

typedef float FloatV __attribute__((vector_size(kVectorBytes)));
typedef double DoubleV __attribute__((vector_size(kVectorBytes)));
typedef std::int32_t Int32V __attribute__((vector_size(kVectorBytes)));
typedef std::int64_t Int64V __attribute__((vector_size(kVectorBytes)));

// Stored 16-bit scalars: their bits.
struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <typename Real>
struct VectorOf;
template <>
struct VectorOf<float> {
  using Values = FloatV;
  using Integers = Int32V;
};
template <>
struct VectorOf<double> {
  using Values = DoubleV;
  using Integers = Int64V;
};
template <typename Real>
using Values = typename VectorOf<Real>::Values;
template <typename Real>
using Integers = typename VectorOf<Real>::Integers;
template <typename Real>
constexpr std::int64_t kLanes = kVectorBytes / static_cast<int>(sizeof(Real));

// Real: what an entry is computed in. kLowest: the bits of -inf, which contributes to no sum.
template <typename T>
struct Stored;
template <>
struct Stored<float> {
  using Real = float;
  static constexpr float minus_infinity() { return -__builtin_huge_valf(); }
};
template <>
struct Stored<double> {
  using Real = double;
  static constexpr double minus_infinity() { return -__builtin_huge_val(); }
};
template <>
struct Stored<BFloat16> {
  using Real = float;
  static constexpr BFloat16 minus_infinity() { return {0xff80}; }
};
template <>
struct Stored<Float16> {
  using Real = float;
  static constexpr Float16 minus_infinity() { return {0xfc00}; }
};

template <typename Real>
static inline Values<Real> all(Real x) {
  return x - Values<Real>{};  // x - 0: the broadcast, also of -0
}

// ---- arithmetic ----------------------------------------------------------------------------------------------------
// at_least(lo, x): x where it is above lo or NaN. larger_number(x, y): x where it is above y; y where x is NaN.
#if defined(__AVX512F__)
static inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) { return _mm512_fmadd_ps(a, b, c); }
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return _mm512_fmadd_pd(a, b, c); }
static inline FloatV at_least(FloatV lo, FloatV x) { return _mm512_max_ps(lo, x); }
static inline DoubleV at_least(DoubleV lo, DoubleV x) { return _mm512_max_pd(lo, x); }
static inline FloatV larger_number(FloatV x, FloatV y) { return _mm512_max_ps(x, y); }
static inline DoubleV larger_number(DoubleV x, DoubleV y) { return _mm512_max_pd(x, y); }
static inline FloatV nearest(FloatV x) { return _mm512_roundscale_ps(x, 8); }
static inline DoubleV nearest(DoubleV x) { return _mm512_roundscale_pd(x, 8); }
#elif defined(__AVX2__)
static inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) { return _mm256_fmadd_ps(a, b, c); }
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return _mm256_fmadd_pd(a, b, c); }
static inline FloatV at_least(FloatV lo, FloatV x) { return _mm256_max_ps(lo, x); }
static inline DoubleV at_least(DoubleV lo, DoubleV x) { return _mm256_max_pd(lo, x); }
static inline FloatV larger_number(FloatV x, FloatV y) { return _mm256_max_ps(x, y); }
static inline DoubleV larger_number(DoubleV x, DoubleV y) { return _mm256_max_pd(x, y); }
static inline FloatV nearest(FloatV x) { return _mm256_round_ps(x, 8); }
static inline DoubleV nearest(DoubleV x) { return _mm256_round_pd(x, 8); }
#elif defined(__SSE2__)
static inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) { return a * b + c; }
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return a * b + c; }
static inline FloatV at_least(FloatV lo, FloatV x) { return _mm_max_ps(lo, x); }
static inline DoubleV at_least(DoubleV lo, DoubleV x) { return _mm_max_pd(lo, x); }
static inline FloatV larger_number(FloatV x, FloatV y) { return _mm_max_ps(x, y); }
static inline DoubleV larger_number(DoubleV x, DoubleV y) { return _mm_max_pd(x, y); }
// Adding 1.5 * 2^23 leaves no fraction bits: right for |x| < 2^22, and exponents are smaller than that.
static inline FloatV nearest(FloatV x) { return (x + 12582912.0f) - 12582912.0f; }
static inline DoubleV nearest(DoubleV x) { return (x + 6755399441055744.0) - 6755399441055744.0; }
#elif defined(__aarch64__)
static inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) { return vfmaq_f32(c, a, b); }
static inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return vfmaq_f64(c, a, b); }
static inline FloatV at_least(FloatV lo, FloatV x) { return vmaxq_f32(lo, x); }
static inline DoubleV at_least(DoubleV lo, DoubleV x) { return vmaxq_f64(lo, x); }
static inline FloatV larger_number(FloatV x, FloatV y) { return vmaxnmq_f32(x, y); }
static inline DoubleV larger_number(DoubleV x, DoubleV y) { return vmaxnmq_f64(x, y); }
static inline FloatV nearest(FloatV x) { return vrndnq_f32(x); }
static inline DoubleV nearest(DoubleV x) { return vrndnq_f64(x); }
#else
#error "csrc/cpu knows x86-64 and aarch64"
#endif

// p 2^n for whole n in [-127, 127] (double: [-1023, 1023]) and p in [1/2, 2]; zero for n at its lowest, see kernels.cpp.
#if defined(__AVX512F__)
static inline FloatV times_power_of_two(FloatV p, FloatV n) { return _mm512_scalef_ps(p, n); }
static inline DoubleV times_power_of_two(DoubleV p, DoubleV n) { return _mm512_scalef_pd(p, n); }
#else
static inline FloatV times_power_of_two(FloatV p, FloatV n) {
  const Int32V biased = (Int32V)(n + (12582912.0f + 127.0f));  // the exponent stands in the low bits
  return p * (FloatV)(biased << 23);
}
static inline DoubleV times_power_of_two(DoubleV p, DoubleV n) {
  const Int64V biased = (Int64V)(n + (6755399441055744.0 + 1023.0));
  return p * (DoubleV)(biased << 52);
}
#endif

// Over the lanes, in double.
#if defined(__AVX512F__)
static inline double sum_of_lanes(FloatV v) {
  const __m256 upper = _mm512_extractf32x8_ps(v, 1);
  return _mm512_reduce_add_pd(_mm512_cvtps_pd(_mm512_castps512_ps256(v)) + _mm512_cvtps_pd(upper));
}
static inline double sum_of_lanes(DoubleV v) { return _mm512_reduce_add_pd(v); }
static inline bool all_negative(Int32V v) { return _mm512_movepi32_mask((__m512i)v) == 0xffff; }
static inline bool all_negative(Int64V v) { return _mm512_movepi64_mask((__m512i)v) == 0xff; }
#else
template <typename Vector>
static inline double sum_of_lanes(Vector v) {
  double sum = 0.0;
  for (unsigned i = 0; i < sizeof v / sizeof v[0]; ++i) sum += static_cast<double>(v[i]);
  return sum;
}
template <typename Vector>
static inline bool all_negative(Vector v) {
  auto sign = v[0];
  for (unsigned i = 1; i < sizeof v / sizeof v[0]; ++i) sign &= v[i];
  return sign < 0;
}
#endif

// ---- loads and stores: one vector, columns in order, any alignment ----------------------------------------------------
static inline FloatV load(const float* p) {
  FloatV v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline DoubleV load(const double* p) {
  DoubleV v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
static inline void store(float* p, FloatV v) { __builtin_memcpy(p, &v, sizeof v); }
static inline void store(double* p, DoubleV v) { __builtin_memcpy(p, &v, sizeof v); }

// 16-bit words, zero-extended to 32 bits; and back, from the low halves.
static inline Int32V load_words(const std::uint16_t* p) {
#if defined(__AVX512F__)
  return (Int32V)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (Int32V)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__SSE2__)
  return (Int32V)_mm_unpacklo_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)), _mm_setzero_si128());
#else
  return (Int32V)vmovl_u16(vld1_u16(p));
#endif
}
static inline void store_words(std::uint16_t* p, Int32V words) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16((__m512i)words));
#elif defined(__AVX2__)
  const __m256i w = (__m256i)(words & 0xffff);
  const __m256i packed = _mm256_packus_epi32(w, w);  // per 128-bit half
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
#elif defined(__SSE2__)
  const __m128i w = (__m128i)((words << 16) >> 16);  // sign-extended: the signed pack then keeps the bits
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi32(w, w));
#else
  vst1_u16(p, vmovn_u32((uint32x4_t)words));
#endif
}

static inline FloatV load(const BFloat16* p) { return (FloatV)(load_words(&p->bits) << 16); }

// To nearest, ties to even; NaN stays NaN. The words returned stand in the low halves (the high ones are rubbish).
static inline Int32V bfloat16_words(FloatV v) {
  const Int32V bits = (Int32V)v;
  const Int32V rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return (v == v) ? rounded : ((bits >> 16) | 0x40);
}
static inline void store(BFloat16* p, FloatV v) {
#if defined(__AVX512BF16__)
  // Flushes subnormal values to zero, as everything here does.
  const __m256bh words = _mm512_cvtneps_pbh(v);
  __builtin_memcpy(p, &words, sizeof words);
#else
  store_words(&p->bits, bfloat16_words(v));
#endif
}

static inline FloatV load(const Float16* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)));
#else
  const Int32V word = load_words(&p->bits);
  const Int32V magnitude = word & 0x7fff;
  const FloatV value = (FloatV)(magnitude << 13) * 0x1p112f;  // rebias; subnormals too
  const Int32V special = (magnitude > 0x7bff) & 0x7f800000;
  return (FloatV)((Int32V)value | special | ((word & 0x8000) << 16));
#endif
}
static inline void store(Float16* p, FloatV v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 8));
#elif defined(__F16C__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0));
#elif defined(__aarch64__)
  vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(v)));
#else
  const Int32V bits = (Int32V)v;
  const Int32V magnitude = bits & 0x7fffffff;
  const Int32V normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14: 1/2 + x has its last bit at 2^-24, the unit of the subnormals.
  const Int32V subnormal = (Int32V)((FloatV)magnitude + 0.5f) - 0x3f000000;
  Int32V word = magnitude < 0x38800000 ? subnormal : normal;
  word = magnitude >= 0x477ff000 ? Int32V{} + 0x7c00 : word;
  word = magnitude > 0x7f800000 ? Int32V{} + 0x7e00 : word;
  store_words(&p->bits, word | ((bits >> 16) & 0x8000));
#endif
}

// ---- groups of four vectors ------------------------------------------------------------------------------------------
// Of BFloat16, two neighbours lie in one 32-bit word, and each half is a float with one instruction: a group of them is
// (even, odd, even, odd columns). Sums do not mind the order; store_group of BFloat16 puts it right.
template <typename T>
static inline void load_group(const T* p, Values<typename Stored<T>::Real> (&v)[4]) {
  for (int k = 0; k < 4; ++k) v[k] = load(p + k * kLanes<typename Stored<T>::Real>);
}
static inline void load_group(const BFloat16* p, FloatV (&v)[4]) {
  for (int k = 0; k < 4; k += 2) {
    Int32V words;
    __builtin_memcpy(&words, p + k * kLanes<float>, sizeof words);
    v[k] = (FloatV)(words << 16);
    v[k + 1] = (FloatV)(words & static_cast<std::int32_t>(0xffff0000));
  }
}

template <typename T, typename Vector>
static inline void store_group(T* p, const Vector (&v)[4]) {
  for (int k = 0; k < 4; ++k) store(p + k * static_cast<int>(sizeof(Vector) / sizeof v[0][0]), v[k]);
}
static inline void store_group(BFloat16* p, const FloatV (&v)[4]) {
  for (int k = 0; k < 4; k += 2) {
#if defined(__AVX512BF16__)
    const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh(v[k + 1], v[k]);  // even columns below, odd ones above
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                           5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i words = _mm512_permutexvar_epi16(order, halves);
#else
    // Rounded as bfloat16_words does, without its care for NaN: one made by arithmetic survives.
    const Int32V even = (Int32V)v[k], odd = (Int32V)v[k + 1];
    const Int32V rounded_even = even + (((even >> 16) & 1) + 0x7fff), rounded_odd = odd + (((odd >> 16) & 1) + 0x7fff);
    const Int32V words = ((rounded_even >> 16) & 0xffff) | (rounded_odd & static_cast<std::int32_t>(0xffff0000));
#endif
    __builtin_memcpy(p + k * kLanes<float>, &words, sizeof words);
  }
}
