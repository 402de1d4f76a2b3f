// e^x for x <= 0 and what follows from it, over the vectors of one instruction set.
// Included by kernels.cpp alone, inside its namespace per instruction set.
//
//     e^(b(x-m)) = 2^n 2^f      n + f = t = (x-m) b log2(e), |f| <= 1/2
//
// 2^f is a minimax polynomial (float: degree 5, relative error 7.5e-8; double: r + r^2 q(r), degree 11, 1.8e-17; both
// from a Remez exchange). f is formed with the constant b log2(e) in two parts, so that the rounding of t shows
// in n alone. Results below the smallest normal number are zero: nothing at such a distance shows in any sum, and
// subnormal arithmetic is a hundred times slower on some processors.

// Where what comes in or goes out has 8 or 11 bits, f = t - n is enough: e^d is then off by up to |t| / 2^24 (1e-6 at the
// distances that matter), and on AVX-512 one instruction gives f in [0, 1) and another takes n from t.
// kHalf: what is rounded to 16 bits at once; a polynomial of degree 4 is then enough (3e-6).
enum class Accuracy { kFull, kQuick, kHalf };

// The constants of e^(b(x-m)) for one b.
template <typename Real>
struct Exponential;

template <>
struct Exponential<float> {
  // Sums of e^d t are of t in units of log2: multiply by this for nats.
  static constexpr double kUnit = 0.693147180559945309417232121458;

  FloatV slope, slope_rest, lowest;

  explicit Exponential(double b) {
    const double slope2 = b * 1.44269504088896340735992468100;
    const float upper = static_cast<float>(slope2);
    slope = all(upper);
    slope_rest = all(static_cast<float>(slope2 - static_cast<double>(upper)));
    lowest = all(static_cast<float>(-127.0 / slope2));
  }

  // e^d for d = b * difference <= 0, and t. Differences of -inf give 0 and a finite t; NaN gives NaN.
  template <Accuracy accuracy = Accuracy::kFull>
  FloatV operator()(FloatV difference, FloatV* t) const {
    const FloatV d = at_least(lowest, difference);
    *t = d * slope;
    if constexpr (accuracy != Accuracy::kFull) return quick_from_t<accuracy>(*t);
    const FloatV n = nearest(*t);
    FloatV f = multiply_add(d, slope, -n);
    f = multiply_add(d, slope_rest, f);
    return times_power_of_two(around_zero(f), n);
  }

  // 2^f, |f| <= 1/2.
  static FloatV around_zero(FloatV f) {
    FloatV p = multiply_add(all(0.00132764721678f), f, all(0.00967554133102f));
    p = multiply_add(p, f, all(0.0555071327288f));
    p = multiply_add(p, f, all(0.24022119724f));
    p = multiply_add(p, f, all(0.693146967065f));
    return multiply_add(p, f, all(1.00000007165f));
  }

  // e^d = 2^t from t in [-127, 0] (AVX-512: to -inf).
  template <Accuracy accuracy>
  static FloatV quick_from_t(FloatV t) {
#if defined(__AVX512F__)
    const FloatV f = _mm512_reduce_ps(t, 9);  // t - floor(t)
    FloatV p;
    if constexpr (accuracy == Accuracy::kHalf) {
      p = multiply_add(all(0.01353416806238f), f, all(0.05201146029932f));
      p = multiply_add(p, f, all(0.241442757098f));
      p = multiply_add(p, f, all(0.6930038344325f));
      p = multiply_add(p, f, all(1.000002593369f));
    } else {
      p = multiply_add(all(0.00187757670002f), f, all(0.008989340023582f));
      p = multiply_add(p, f, all(0.05582631811623f));
      p = multiply_add(p, f, all(0.2401536170211f));
      p = multiply_add(p, f, all(0.6931530732026f));
      p = multiply_add(p, f, all(0.9999999250636f));
    }
    return _mm512_scalef_ps(p, t);  // by 2^floor(t)
#else
    const FloatV n = nearest(t);
    return times_power_of_two(around_zero(t - n), n);
#endif
  }
};

// (e^x - 1) of the reduced argument, its power of two, for x in [-1023 log 2, 0].
struct ReducedDouble {
  DoubleV p, n;
};
static inline ReducedDouble reduce_and_expand(DoubleV x) {
  const DoubleV n = nearest(x * 1.44269504088896340735992468100);
  DoubleV r = multiply_add(n, all(-6.93147180369123816490e-01), x);  // log 2 in two parts, the upper with zeros below
  r = multiply_add(n, all(-1.90821492927058770002e-10), r);
  DoubleV q = multiply_add(all(2.5095763513561623549e-8), r, all(2.7626700142469301282e-7));
  q = multiply_add(q, r, all(2.7557278225422780619e-6));
  q = multiply_add(q, r, all(2.4801503518962531276e-5));
  q = multiply_add(q, r, all(1.9841269856737137867e-4));
  q = multiply_add(q, r, all(1.3888888933144763945e-3));
  q = multiply_add(q, r, all(8.3333333333313331529e-3));
  q = multiply_add(q, r, all(4.1666666666571255809e-2));
  q = multiply_add(q, r, all(1.6666666666666667068e-1));
  q = multiply_add(q, r, all(5.0000000000000057594e-1));
  return {multiply_add(r * r, q, r), n};
}

template <>
struct Exponential<double> {
  static constexpr double kUnit = 1.0;

  DoubleV slope, lowest;

  explicit Exponential(double b) : slope(all(b)), lowest(all(-709.08956571282405 / b)) {}  // -1023 log 2

  template <Accuracy accuracy = Accuracy::kFull>
  DoubleV operator()(DoubleV difference, DoubleV* t) const {
    *t = at_least(lowest, difference) * slope;
    return quick_from_t<accuracy>(*t);
  }

  // e^d from t = d.
  template <Accuracy accuracy>
  static DoubleV quick_from_t(DoubleV t) {
    const ReducedDouble reduced = reduce_and_expand(t);
    return times_power_of_two(reduced.p + 1.0, reduced.n);
  }
};

// tanh x and 1 - tanh^2 x, both to a few units in the last place at any x: with a = e^(-2|x|) - 1, tanh |x| =
// -a / (2 + a) and 1 - tanh^2 x = 4 e^(-2|x|) / (2 + a)^2. The square of tanh would cancel where the cap is reached.
static inline DoubleV tanh_of(DoubleV x, DoubleV* one_minus_square) {
  const Int64V sign = (Int64V)x & INT64_MIN;
  const DoubleV magnitude = (DoubleV)((Int64V)x & INT64_MAX);
  const ReducedDouble reduced = reduce_and_expand(at_least(all(-700.0), magnitude * -2.0));
  const DoubleV power = times_power_of_two(all(1.0), reduced.n);
  const DoubleV exponential_minus_1 = multiply_add(power, reduced.p, power - 1.0);
  const DoubleV exponential = multiply_add(power, reduced.p, power);
  const DoubleV denominator = exponential_minus_1 + 2.0;
  *one_minus_square = 4.0 * exponential / (denominator * denominator);
  const DoubleV result = -exponential_minus_1 / denominator;
  return (DoubleV)((Int64V)result | sign);
}
