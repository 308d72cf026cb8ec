// Rows whose squares or products leave the range of the statistics' type. They are computed from
// multiples by powers of two, which cost no digits:
//
//   w' = w 2^e    g' = g 2^f    eps' = eps 2^e ("std") or eps 2^(2 e) ("var", "clamp")
//
// give the w_hat of w and eps, and
//
//   grad_weight = grad_weight' 2^(e - f)    grad_gain = grad_gain' 2^-f    grad_shift = grad_shift' 2^-f
//
// Nearly every row is ordinary, so the kernels compute it as it is first, and check what came out.
//
// All is in an unnamed namespace, as in channel.h.
#pragma once

#include "../channel.h"

namespace ws {
namespace {

template <class A>  // float or double
struct Range;
template <>
struct Range<float> {
  static constexpr int kExponent = 126;  // powers of two have all their digits to 2^126 and 2^-126
  using Bits = uint32_t;
  static constexpr float kSmall = 0x1p-64f, kLarge = 0x1p64f;
};
template <>
struct Range<double> {
  static constexpr int kExponent = 1022;
  using Bits = uint64_t;
  static constexpr double kSmall = 0x1p-512, kLarge = 0x1p512;
};

template <class A>
inline typename Range<A>::Bits bits_of(A x) {
  typename Range<A>::Bits bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// Whether x was computed, and what is multiplied by it will be, without leaving the range. False
// for 0 and NaN, which may be what is left of a number out of it.
//
// By their bits, which are ordered as sizes are, and without a jump: the rows may be short.
template <class A>
inline bool is_ordinary(A x) {
  using Bits = typename Range<A>::Bits;
  const Bits small = bits_of(Range<A>::kSmall), large = bits_of(Range<A>::kLarge);
  const Bits size = bits_of(x) & (~Bits(0) >> 1);
  return size - small <= large - small;
}

// The same of s * gain, and of slope_of * gain.
template <class A>
inline bool is_ordinary(A factor, A gain) {
  return (gain == 0) | is_ordinary(factor);
}
template <class A>
inline bool is_ordinary(const Channel<A>& channel, A factor_w, A gain) {
  return (gain == 0) | (channel.inv_root == 0) | is_ordinary(factor_w);
}

// x = m 2^exponent_of(x) with m in [1/2, 1); 0 for 0.
inline int exponent_of(double x) {
  int exponent;
  __builtin_frexp(x, &exponent);
  return exponent;
}

inline int clamped(int x, int limit) { return x < -limit ? -limit : x > limit ? limit : x; }

// Multiplies by 2^exponent if kScaled, in two steps, since what comes out may be in range where
// 2^exponent is not.
template <class A, bool kScaled>
struct Scale {
  A first = 1, second = 1;

  explicit Scale(int exponent) {
    if constexpr (kScaled) {
      const int e = clamped(exponent, 2 * Range<A>::kExponent);
      first = static_cast<A>(__builtin_ldexp(1.0, e / 2));
      second = static_cast<A>(__builtin_ldexp(1.0, e - e / 2));
    }
  }

  template <class V>
  V operator()(V x) const {
    if constexpr (kScaled) {
      return x * first * second;
    } else {
      return x;
    }
  }
};

// x 2^more = m 2^exponent with m near 1 if kScaled, else m = x.
template <class A, bool kScaled>
struct Normalized {
  int exponent;
  A m;

  explicit Normalized(A x, int more = 0)
      : exponent(kScaled ? exponent_of(x) : 0), m(Scale<A, kScaled>(-exponent)(x)) {
    exponent += more;
  }
};

// How large the values of a row are, to a factor of 2.
struct Magnitude {
  double largest = 0;  // |x|
  double spread = 0;   // |x - x'|
  bool finite = true;
};

// e for the weight's row: its spread becomes about 1, unless eps' or its values grow too large then.
template <class A>
inline int weight_exponent(const Magnitude& w, const Formula& formula) {
  constexpr int kLimit = Range<A>::kExponent;
  const double size = formula.center ? w.spread : w.largest;
  if (!w.finite || (size == 0 && formula.eps == 0)) return 0;
  int e = size > 0 ? -exponent_of(size) : kLimit;
  if (formula.eps > 0) {
    const int room = kLimit - 2 - exponent_of(formula.eps);
    const int most = formula.eps_mode == EpsMode::kStd ? room : room >> 1;
    if (e > most) e = most;
  }
  if (e > kLimit - exponent_of(w.largest)) e = kLimit - exponent_of(w.largest);
  return clamped(e, kLimit);
}

// f for the gradient's.
template <class A>
inline int grad_exponent(const Magnitude& g) {
  return g.finite ? clamped(-exponent_of(g.largest), Range<A>::kExponent) : 0;
}

// The formula with eps', and with a scale near 1 for which the results lack 2^scale_exponent.
inline int scale_exponent(const Formula& formula) { return exponent_of(formula.scale); }
inline Formula scaled(const Formula& formula, int e) {
  Formula result = formula;
  result.eps = __builtin_ldexp(formula.eps, formula.eps_mode == EpsMode::kStd ? e : 2 * e);
  result.scale = __builtin_ldexp(formula.scale, -scale_exponent(formula));
  return result;
}

}  // namespace
}  // namespace ws
