// The update of rows: the gradient of a row, a step of the optimizer in place, and what the updated row
// standardizes to, while it is in the nearest cache. That is bitwise what forward makes of it.
#include "../update.h"
#include "rows.inl"

namespace ws {
namespace {

// From so many bytes on, out is stored past the caches: until the model's next pass reads it, they
// have seen all the other weights.
constexpr int64_t kStreamedOut = 256 << 10;

// A row of the gradient of the weight itself.
template <class W, class G>
struct TrueGradient {
  const G* row;

  template <class At>
  typename Arithmetic<W>::Vector load(At at) const {
    return at.load(row);
  }
};

// kStates: 0 or 1 for SGD, 2 or 3 for Adam. Its numbers and the gradient's are taken by value: of what
// has an address elsewhere, the compiler could not know that the stores leave it alone.
template <int kStates, class W, class G, class Gradient>
void update_row(const Update& a, Step<typename Arithmetic<W>::Scalar> by, const RowLength& cols,
                int64_t row, int64_t next, Gradient gradient) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  by.adam = kStates > 1;
  by.has_momentum = kStates == 1;
  W* const weight = row_at<W>(a.operands[a.kWeight], row);
  W* states[kStates + 1];  // and none
  for (int k = 0; k < kStates; ++k) states[k] = row_at<W>(a.operands[a.kFirst + k], row);
  A scale = by.scale;
  if (by.clip > 0) {
    double squares[2] = {};
    sum_row<V>(cols.count, squares, [&](auto at, V* sums) {
      const V w = at.keep(at.load(weight)), g = at.keep(gradient.load(at));
      sums[0] += w * w;
      sums[1] += g * g;
    });
    scale = clipped_scale(by, static_cast<A>(squares[0]), static_cast<A>(squares[1]));
  }
  // Memory would rest during this pass. What standardizes the row has the next one's weight loaded.
  const int64_t step = next - row;
  const auto load_next = [&](const auto* data, const Operand& tensor) {
    __builtin_prefetch(data + step * tensor.strides.row, /*write=*/0, /*locality=*/2);
  };
  const G* const grad = row_at<const G>(a.operands[a.kGrad], row);
  for_row<V>(cols.count, [&](auto at) {
    V w = at.load(weight), values[3] = {};
    load_next(grad + at.i, a.operands[a.kGrad]);
    for (int k = 0; k < kStates; ++k) {
      values[k] = at.load(states[k]);
      load_next(states[k] + at.i, a.operands[a.kFirst + k]);
    }
    take_step(by, scale, kStates == 3, gradient.load(at), w, values[0], values[1], values[2]);
    at.store(weight, w);
    for (int k = 0; k < kStates; ++k) at.store(states[k], values[k]);
  });
}

template <int kStates, class W, class Y, class G>
void update_rows_by(const Update& a, int64_t begin, int64_t end) {
  using A = typename Arithmetic<W>::Scalar;
  const Forward forward{a.shape,
                        a.formula,
                        {a.operands[a.kOut], a.operands[a.kWeight]},
                        {a.vectors[a.kNewGain], a.vectors[a.kNewShift]}};
  const Step<A> by = step_of<A>(a.rule);
  const RowLength cols(a.shape.cols);
  const bool large = is_large<Y>(a.shape, kStreamedOut);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t next = row + 1 < end ? row + 1 : row;
    const auto update = [&](const auto& gradient) {
      update_row<kStates, W, G>(a, by, cols, row, next, gradient);
    };
    if (a.rule.is_true) {
      update(TrueGradient<W, G>{row_at<const G>(a.operands[a.kGrad], row)});
    } else {
      with_gradient<W, G>(a, cols, row, update);
    }
    standardize_row<W, Y>(forward, cols, row, next, large);
  }
  if (large) end_of_streams();
}

template <class W, class Y, class G>
void update_rows(const Update& a, int64_t begin, int64_t end) {
  if (a.rule.found_inf != nullptr && *a.rule.found_inf != 0) return;
  const auto has = [&](int state) { return a.operands[state].data != nullptr; };
  const auto update = has(a.kLargest)  ? update_rows_by<3, W, Y, G>
                      : has(a.kSecond) ? update_rows_by<2, W, Y, G>
                      : has(a.kFirst)  ? update_rows_by<1, W, Y, G>
                                       : update_rows_by<0, W, Y, G>;
  update(a, begin, end);
}

}  // namespace
}  // namespace ws
