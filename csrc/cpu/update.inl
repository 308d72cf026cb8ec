// The update of rows: the gradient of a row, a step of the optimizer in place, and what the updated row
// standardizes to, while it is in the nearest cache. That is bitwise what forward makes of it.
#include "../update.h"
#include "rows.inl"

namespace ws {
namespace {

// A row of the gradient of the weight itself.
template <class W, class G>
struct TrueGradient {
  const G* row;

  template <class At>
  typename Arithmetic<W>::Vector load(At at) const {
    return at.load(row);
  }
};

// What an Update's operand has of a row; null if there is none.
template <class T>
T* row_or_null(const Operand& tensor, int64_t row) {
  return tensor.data == nullptr ? nullptr : row_at<T>(tensor, row);
}

template <class W, class G, class Gradient>
void update_row(const Update& a, const Step<typename Arithmetic<W>::Scalar>& by,
                const RowLength& cols, int64_t row, int64_t next, const Gradient& gradient) {
  using A = typename Arithmetic<W>::Scalar;
  using V = typename Arithmetic<W>::Vector;
  W* const weight = row_at<W>(a.operands[a.kWeight], row);
  W* const first = row_or_null<W>(a.operands[a.kFirst], row);
  W* const second = row_or_null<W>(a.operands[a.kSecond], row);
  W* const largest = row_or_null<W>(a.operands[a.kLargest], row);
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
  const auto load_next = [&](auto* data, const Operand& tensor) {
    __builtin_prefetch(data + step * tensor.strides.row, /*write=*/0, /*locality=*/2);
  };
  const G* const grad = row_at<const G>(a.operands[a.kGrad], row);
  for_row<V>(cols.count, [&](auto at) {
    V w = at.load(weight), values[3] = {};
    load_next(grad + at.i, a.operands[a.kGrad]);
    if (first) {
      values[0] = at.load(first);
      load_next(first + at.i, a.operands[a.kFirst]);
    }
    if (second) {
      values[1] = at.load(second);
      load_next(second + at.i, a.operands[a.kSecond]);
    }
    if (largest) {
      values[2] = at.load(largest);
      load_next(largest + at.i, a.operands[a.kLargest]);
    }
    take_step(by, scale, largest != nullptr, gradient.load(at), w, values[0], values[1], values[2]);
    at.store(weight, w);
    if (first) at.store(first, values[0]);
    if (second) at.store(second, values[1]);
    if (largest) at.store(largest, values[2]);
  });
}

template <class W, class Y, class G>
void update_rows(const Update& a, int64_t begin, int64_t end) {
  using A = typename Arithmetic<W>::Scalar;
  if (a.rule.found_inf != nullptr && *a.rule.found_inf != 0) return;
  const Forward forward{a.shape,
                        a.formula,
                        {a.operands[a.kOut], a.operands[a.kWeight]},
                        {a.vectors[a.kNewGain], a.vectors[a.kNewShift]}};
  const Step<A> by = step_of<A>(a.rule);
  const RowLength cols(a.shape.cols);
  const bool large = is_large<Y>(a.shape);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t next = row + 1 < end ? row + 1 : row;
    const auto update = [&](const auto& gradient) {
      update_row<W, G>(a, by, cols, row, next, gradient);
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

}  // namespace
}  // namespace ws
