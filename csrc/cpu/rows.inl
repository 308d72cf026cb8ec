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
#include "row_gradient.inl"

namespace ws {
namespace {

// A gradient this large has left the caches by the time it is read. Stored past them, it is not read
// from memory first, and does not push out the inputs. (What forward writes is read at once, by the
// convolution.)
constexpr int64_t kStreamedBytes = 4 << 20;

template <class T>
bool is_large(const Shape& shape, int64_t bytes) {
  return shape.rows * shape.cols * static_cast<int64_t>(sizeof(T)) >= bytes;
}

// Stores past the caches if `streamed`.
template <class T, class V, class At>
void store_to(T* row, V v, At at, bool streamed) {
  if (streamed) {
    at.stream(row, v);
  } else {
    at.store(row, v);
  }
}

// A row that starts where vectors can be stored past the caches.
template <class V, class T>
bool is_aligned(const T* row) {
  return reinterpret_cast<uintptr_t>(row) % sizeof(V) == 0;
}

// Row number `row`. Without kScaled, `formula` is a.formula and the exponent 0; if the row is not
// ordinary, nothing is written and the result is false. A constant row has the sums of none that is,
// and is right as it is.
template <class W, class Y, bool kScaled>
bool forward_row(const Forward& a, const RowLength& cols, int64_t row, int64_t next, bool large,
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
  const bool streamed = large && is_aligned<V>(out);
  for_row<V>(cols.count, [&](auto at) {
    // Memory would rest during this pass. Into L2: the next row may not fit beside this one in L1.
    __builtin_prefetch(ahead + at.i, /*write=*/0, /*locality=*/2);
    V result = up((w.load(at) - m) * factor + offset);
    if constexpr (kScaled) result += shift;
    store_to(out, result, at, streamed);
  });
  return true;
}

template <class W, class Y>
__attribute__((noinline)) void scaled_forward_row(const Forward& a, const RowLength& cols,
                                                  int64_t row, int64_t next, bool large) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  const auto w = magnitude_of<V, W>(a.operands[a.kWeight], row, cols.count);
  const int exponent = weight_exponent<A>(w, a.formula);
  forward_row<W, Y, true>(a, cols, row, next, large, scaled(a.formula, exponent), exponent);
}

// With `large`, out is stored past the caches.
template <class W, class Y>
void standardize_row(const Forward& a, const RowLength& cols, int64_t row, int64_t next,
                     bool large) {
  if (!forward_row<W, Y, false>(a, cols, row, next, large, a.formula, 0)) {
    scaled_forward_row<W, Y>(a, cols, row, next, large);
  }
}

template <class W, class Y>
void forward_rows(const Forward& a, int64_t begin, int64_t end) {
  const RowLength cols(a.shape.cols);
  for (int64_t row = begin; row < end; ++row) {
    standardize_row<W, Y>(a, cols, row, row + 1 < end ? row + 1 : row, /*large=*/false);
  }
}

template <class W, class Y>
void backward_rows(const Backward& a, int64_t begin, int64_t end) {
  using V = typename Arithmetic<W>::Vector;
  const RowLength cols(a.shape.cols);
  const bool large = is_large<W>(a.shape, kStreamedBytes);
  for (int64_t row = begin; row < end; ++row) {
    with_gradient<W, Y>(a, cols, row, [&](const auto& gradient) {
      W* const grad_weight = row_at<W>(a.operands[a.kGradWeight], row);
      const bool streamed = large && is_aligned<V>(grad_weight);
      for_row<V>(cols.count, [&](auto at) {  //
        store_to(grad_weight, gradient.load(at), at, streamed);
      });
      gradient.store_affine(a, row);
    });
  }
  if (large) end_of_streams();
}

template <class W, class Y>
void norms_rows(const Norms& a, int64_t begin, int64_t end) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  const RowLength cols(a.shape.cols);
  for (int64_t row = begin; row < end; ++row) {
    with_gradient<W, Y>(a, cols, row, [&](const auto& gradient) {
      if (a.vectors[a.kSquaredNorm]) {
        double squares[1] = {};
        sum_row<V>(cols.count, squares, [&](auto at, V* sums) {
          const V g = at.keep(gradient.load(at));
          sums[0] += g * g;
        });
        set_value<W>(a.vectors[a.kSquaredNorm], row, V{} + static_cast<A>(squares[0]));
      }
      gradient.store_affine(a, row);
    });
  }
}

}  // namespace
}  // namespace ws
