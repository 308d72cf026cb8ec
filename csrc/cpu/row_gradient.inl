// The gradient of a row of the weight, from that of its out: the sums that it needs (rows.inl), then the
// gradient itself, vector by vector, for those who store it, sum its squares or update the weight by it.
#include "row.inl"

namespace ws {
namespace {

// grad_weight = (g - mg) * factor_g + ((w - m) * factor_w + offset)
template <class W, class G, bool kScaled>
struct RowGradient {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;

  ScaledRow<W, A, kScaled> w;
  ScaledRow<G, A, kScaled> g;
  A m, mg, factor_w, factor_g, offset;
  Scale<A, kScaled> up;
  A grad_gain, grad_shift;

  template <class At>
  V load(At at) const {
    return up((g.load(at) - mg) * factor_g + ((w.load(at) - m) * factor_w + offset));
  }

  template <class Args>
  void store_affine(const Args& a, int64_t row) const {
    if (a.vectors[a.kGradGain]) set_value<W>(a.vectors[a.kGradGain], row, V{} + grad_gain);
    if (a.vectors[a.kGradShift]) set_value<W>(a.vectors[a.kGradShift], row, V{} + grad_shift);
  }
};

// Calls use(gradient) for row number `row`. Without kScaled, `formula` is a.formula and the exponents,
// one of w and one of g, are 0; if the row is not ordinary, `use` is not called and the result false. A
// constant row has the sums of none that is, and is right as it is.
template <class W, class G, bool kScaled, class Args, class Use>
bool find_gradient(const Args& a, const RowLength& cols, int64_t row, const Formula& formula,
                   int exponent, int exponent_g, const Use& use) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  const ScaledRow<G, A, kScaled> g(a.operands[a.kGrad], row, exponent_g);
  const ScaledRow<W, A, kScaled> w(a.operands[a.kWeight], row, exponent);
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
  const Scale<A, kScaled> up(s.exponent + gain.exponent + exponent - exponent_g);
  const Scale<A, kScaled> up_gain(s.exponent - exponent_g), up_shift(-exponent_g);
  const double sum_g = static_cast<double>(mg) * cols.count + centered[2];
  // Of two products in a sum the compiler would fuse either, here one and there the other.
  const A offset = -multiply_add(V{} + rg, V{} + factor_g, V{} + r * factor_w)[0];
  use(RowGradient<W, G, kScaled>{w, g, m, mg, factor_w, factor_g, offset, up,
                                 up_gain(channel.s * dot), up_shift(static_cast<A>(sum_g))});
  return true;
}

template <class W, class G, class Args, class Use>
__attribute__((noinline)) void find_scaled_gradient(const Args& a, const RowLength& cols,
                                                    int64_t row, const Use& use) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  const auto w = magnitude_of<V, W>(a.operands[a.kWeight], row, cols.count);
  const auto g = magnitude_of<V, G>(a.operands[a.kGrad], row, cols.count);
  const int exponent = weight_exponent<A>(w, a.formula), exponent_g = grad_exponent<A>(g);
  find_gradient<W, G, true>(a, cols, row, scaled(a.formula, exponent), exponent, exponent_g, use);
}

template <class W, class G, class Args, class Use>
void with_gradient(const Args& a, const RowLength& cols, int64_t row, const Use& use) {
  if (!find_gradient<W, G, false>(a, cols, row, a.formula, 0, 0, use)) {
    find_scaled_gradient<W, G>(a, cols, row, use);
  }
}

}  // namespace
}  // namespace ws
