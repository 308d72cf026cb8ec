// The row algorithm, written once over the vector types of the including file (row.inl).
//
// A row is read from memory once and stays in the nearest cache for the passes that follow:
//
//   1  m, mg   the means of the first quarter of w and g, as the centres of pass 2
//   2  sums of w - m, (w - m)^2, g - mg, (g - mg)(w - m)
//      r  = sum(w - m) / cols,    so that m + r is the mean: kept as two numbers, whose sum would
//      rg = sum(g - mg) / cols    lose the digits of a small r
//      var = (sum((w - m)^2) - cols r^2) / (cols - correction)
//      dot = sum((g - mg)(w - m)) - cols r rg
//   3  the result; r and rg enter it by one offset a row
//
// In exact arithmetic any m gives the same var. In floating point a distant one costs digits, and a
// quarter of the row cannot be distant: its mean is within sqrt(3) standard deviations of the
// row's, whatever the values, so var loses 2 bits at worst and none on ordinary weights. Pass 1
// over the whole row would take as long as pass 2; in cache, the forward kernel takes a sixth less
// time this way.
//
// m is found relative to the row's first element, so that a constant row is exactly constant: m is
// its value, and w - m, r and var are 0. With center = false, m, r, mg and rg are 0.
//
// Rows that are not ordinary (scaling.h) are found after pass 2 and start again, scaled.
#include "row.inl"

namespace ws {
namespace {

// Row number `row`. Without kScaled, `formula` is a.formula and the exponent 0; if the row is not
// ordinary, nothing is written and the result is false. A constant row has the sums of none that is,
// and is right as it is.
template <class W, class Y, bool kScaled>
bool forward_row(const Forward& a, const RowLength& cols, int64_t row, int64_t next,
                 const Formula& formula, int exponent) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  const ScaledRow<W, A, kScaled> w(a.operands[a.kWeight], row, exponent);
  Y* out = row_at<Y>(a.operands[a.kOut], row);
  A m = 0, r = 0;
  if (formula.center) m = center_of<V>(w, cols);
  double centered[2] = {};
  sum_row<V>(cols.count, centered, [&](auto at, V* sums) {
    const V dw = at.keep(w.load(at) - m);
    sums[0] += dw;
    sums[1] += dw * dw;
  });
  if (formula.center) r = static_cast<A>(centered[0] * cols.inverse);
  const A var = variance_of(static_cast<A>(centered[1]), r, cols.count, formula);
  const Channel<A> channel = channel_of(var, formula);
  const Normalized<A, kScaled> s(channel.s, kScaled ? scale_exponent(a.formula) : 0);
  const Normalized<A, kScaled> gain(value_at<W>(a.vectors[a.kGain], row, A(1)));
  const Scale<A, kScaled> up(s.exponent + gain.exponent);
  const A factor = s.m * gain.m;
  if (!kScaled && !(is_ordinary(var) & is_ordinary(factor, gain.m)) &&
      !(formula.center && var == 0 && (factor == 0 || is_ordinary(factor, gain.m)) &&
        is_constant<V>(w, cols))) {
    return false;
  }
  const A shift = value_at<W>(a.vectors[a.kShift], row, A(0));
  const A offset = (kScaled ? A(0) : shift) - r * factor;
  const W* ahead = row_at<const W>(a.operands[a.kWeight], next);
  for_row<V>(cols.count, [&](auto at) {
    // Memory would rest during this pass. Into L2: the next row may not fit beside this one in L1.
    __builtin_prefetch(ahead + at.i, /*write=*/0, /*locality=*/2);
    V result = up((w.load(at) - m) * factor + offset);
    if constexpr (kScaled) result += shift;
    at.store(out, result);
  });
  return true;
}

template <class W, class Y>
__attribute__((noinline)) void scaled_forward_row(const Forward& a, const RowLength& cols,
                                                  int64_t row, int64_t next) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  const auto w = magnitude_of<V, W>(a.operands[a.kWeight], row, cols.count);
  const int exponent = weight_exponent<A>(w, a.formula);
  forward_row<W, Y, true>(a, cols, row, next, scaled(a.formula, exponent), exponent);
}

template <class W, class Y>
void forward_rows(const Forward& a, int64_t begin, int64_t end) {
  const RowLength cols(a.shape.cols);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t next = row + 1 < end ? row + 1 : row;
    if (!forward_row<W, Y, false>(a, cols, row, next, a.formula, 0)) {
      scaled_forward_row<W, Y>(a, cols, row, next);
    }
  }
}

// A gradient this large has left the caches by the time the optimizer reads it. Stored past them, it
// is not read from memory first, and does not push out w and grad. (A forward result is read at
// once, by the convolution.)
constexpr int64_t kStreamedBytes = 4 << 20;

// As forward_row; w and g have exponents of their own.
template <class W, class Y, bool kScaled>
bool backward_row(const Backward& a, const RowLength& cols, int64_t row, bool large,
                  const Formula& formula, int exponent, int exponent_g) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  const ScaledRow<Y, A, kScaled> g(a.operands[a.kGrad], row, exponent_g);
  const ScaledRow<W, A, kScaled> w(a.operands[a.kWeight], row, exponent);
  W* grad_weight = row_at<W>(a.operands[a.kGradWeight], row);
  A m = 0, r = 0, mg = 0, rg = 0;
  if (formula.center) {
    m = center_of<V>(w, cols);
    mg = center_of<V>(g, cols);
  }
  double centered[4] = {};
  sum_row<V>(cols.count, centered, [&](auto at, V* sums) {
    const V dw = at.keep(w.load(at) - m);
    const V dg = at.keep(g.load(at) - mg);
    sums[0] += dw;
    sums[1] += dw * dw;
    sums[2] += dg;
    sums[3] += dg * dw;
  });
  if (formula.center) {
    r = static_cast<A>(centered[0] * cols.inverse);
    rg = static_cast<A>(centered[2] * cols.inverse);
  }
  const A var = variance_of(static_cast<A>(centered[1]), r, cols.count, formula);
  const A dot = static_cast<A>(centered[3]) - static_cast<A>(cols.count) * r * rg;
  Channel<A> channel = channel_of(var, formula);
  const Normalized<A, kScaled> s(channel.s, kScaled ? scale_exponent(a.formula) : 0);
  const Normalized<A, kScaled> gain(value_at<W>(a.vectors[a.kGain], row, A(1)));
  const Scale<A, kScaled> up(s.exponent + gain.exponent + exponent - exponent_g);
  channel.s = s.m;
  const A factor_g = channel.s * gain.m;
  const A factor_w = slope_of(channel, dot, cols.count, formula) * gain.m;
  if (!kScaled &&
      !(is_ordinary(var) & is_ordinary(dot) & is_ordinary(factor_g, gain.m) &
        is_ordinary(channel, factor_w, gain.m)) &&
      !(formula.center && dot == 0 && factor_w == 0 && is_ordinary(factor_g, gain.m) &&
        is_constant<V>(g, cols) && (is_ordinary(var) || (var == 0 && is_constant<V>(w, cols))))) {
    return false;
  }
  const A offset = -(rg * factor_g + r * factor_w);
  const bool streamed = large && reinterpret_cast<uintptr_t>(grad_weight) % sizeof(V) == 0;
  for_row<V>(cols.count, [&](auto at) {
    const V result = up((g.load(at) - mg) * factor_g + ((w.load(at) - m) * factor_w + offset));
    if (streamed) {
      at.stream(grad_weight, result);
    } else {
      at.store(grad_weight, result);
    }
  });
  if (a.vectors[a.kGradGain]) {
    const Scale<A, kScaled> up_gain(s.exponent - exponent_g);
    set_value<W>(a.vectors[a.kGradGain], row, V{} + up_gain(channel.s * dot));
  }
  if (a.vectors[a.kGradShift]) {
    const double sum_g = static_cast<double>(mg) * cols.count + centered[2];
    const Scale<A, kScaled> up_shift(-exponent_g);
    set_value<W>(a.vectors[a.kGradShift], row, V{} + up_shift(static_cast<A>(sum_g)));
  }
  return true;
}

template <class W, class Y>
__attribute__((noinline)) void scaled_backward_row(const Backward& a, const RowLength& cols,
                                                   int64_t row, bool large) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  const auto w = magnitude_of<V, W>(a.operands[a.kWeight], row, cols.count);
  const auto g = magnitude_of<V, Y>(a.operands[a.kGrad], row, cols.count);
  const int exponent = weight_exponent<A>(w, a.formula), exponent_g = grad_exponent<A>(g);
  backward_row<W, Y, true>(a, cols, row, large, scaled(a.formula, exponent), exponent, exponent_g);
}

template <class W, class Y>
void backward_rows(const Backward& a, int64_t begin, int64_t end) {
  const RowLength cols(a.shape.cols);
  const bool large = a.shape.rows * cols.count * static_cast<int64_t>(sizeof(W)) >= kStreamedBytes;
  for (int64_t row = begin; row < end; ++row) {
    if (!backward_row<W, Y, false>(a, cols, row, large, a.formula, 0, 0)) {
      scaled_backward_row<W, Y>(a, cols, row, large);
    }
  }
  if (large) end_of_streams();
}

}  // namespace

// The table that the including file exports under its own name.
#define WS_BY_TYPES(ROWS)                                                  \
  {                                                                        \
      ROWS<double, double>,     ROWS<float, float>, ROWS<Half, Half>,      \
      ROWS<BFloat16, BFloat16>, ROWS<float, Half>,  ROWS<float, BFloat16>, \
  }
#define WS_CPU_KERNELS(NAME) {NAME, WS_BY_TYPES(forward_rows), WS_BY_TYPES(backward_rows)}

}  // namespace ws
