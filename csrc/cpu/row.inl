// One row: its elements, and sums over them. Over the vector types of the including file, which
// provides
//
//   Float, Double              vectors of float and double, of kBytes bytes
//   load(const T*), store(T*, v)        T: float, double, Half, BFloat16; a full vector
//   load_first(const T*, n), store_first(T*, v, n)       the first n elements of one
//   first(v, n)                its first n lanes, the others 0
//   sum(v)                     over its lanes
//   square_root(v), multiply_add(a, b, c)                a * b + c, rounded once where it can be
//   stream(T*, v)              stores an aligned vector past the caches
//   end_of_streams()           makes streamed vectors visible to other threads
#include "scaling.h"

namespace ws {
namespace {

// The types that rows of T are computed in.
template <class T>
struct Arithmetic {
  using Scalar = float;
  using Vector = Float;
};
template <>
struct Arithmetic<double> {
  using Scalar = double;
  using Vector = Double;
};

// A whole vector of a row, and the row's end where fewer elements are left.
struct Full {
  int64_t i;
  template <class T>
  auto load(const T* row) const {
    return ws::load(row + i);
  }
  template <class T, class V>
  void store(T* row, V v) const {
    ws::store(row + i, v);
  }
  template <class T, class V>
  void stream(T* row, V v) const {
    ws::stream(row + i, v);
  }
  template <class V>
  V keep(V v) const {
    return v;
  }
};
struct Tail {
  int64_t i;
  int n;
  template <class T>
  auto load(const T* row) const {
    return load_first(row + i, n);
  }
  template <class T, class V>
  void store(T* row, V v) const {
    store_first(row + i, v, n);
  }
  template <class T, class V>
  void stream(T* row, V v) const {
    store_first(row + i, v, n);
  }
  template <class V>
  V keep(V v) const {
    return first(v, n);
  }
};

// totals[k] += the sum over the row of what term(position, sums) adds to sums[k].
//
// Four independent sums hide the latency of an addition. After kSteps of them they are added to those
// of the block, so that beside one large value few small ones lose their digits; every kBlock
// elements these are added up in double, so that the error does not grow with the row.
template <class V, int kSums, class Term>
void sum_row(int64_t cols, double (&totals)[kSums], Term term) {
  constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);
  constexpr int kUnroll = 4, kSteps = 8;
  constexpr int64_t kBlock = kSteps * kSteps * kUnroll * kLanes;
  if (cols <= kLanes) {
    V sums[kSums] = {};
    term(Tail{0, static_cast<int>(cols)}, sums);
    for (int k = 0; k < kSums; ++k) totals[k] = sum(sums[k]);
    return;
  }
  for (int64_t begin = 0; begin < cols; begin += kBlock) {
    const int64_t end = cols - begin < kBlock ? cols : begin + kBlock;
    V block[kSums] = {};
    for (int64_t i = begin; i < end;) {
      V sums[kUnroll][kSums] = {};
      for (int step = 0; step < kSteps && i + kUnroll * kLanes <= end; ++step) {
        for (int u = 0; u < kUnroll; ++u) term(Full{i + u * kLanes}, sums[u]);
        i += kUnroll * kLanes;
      }
      if (end - i < kUnroll * kLanes) {
        for (; i + kLanes <= end; i += kLanes) term(Full{i}, sums[0]);
        if (i < end) term(Tail{i, static_cast<int>(end - i)}, sums[1]);
        i = end;
      }
      for (int k = 0; k < kSums; ++k) {
        block[k] += (sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]);
      }
    }
    for (int k = 0; k < kSums; ++k) totals[k] += sum(block[k]);
  }
}

template <class V, class Each>
void for_row(int64_t cols, Each each) {
  constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) each(Full{i});
  if (i < cols) each(Tail{i, static_cast<int>(cols - i)});
}

// A row's elements [cols].
template <class T>
T* row_at(const Operand& tensor, int64_t row) {
  return static_cast<T*>(tensor.data) + row * tensor.strides.row;
}

// One value a row: gain, shift and their gradients. Without values, each is `otherwise`.
template <class T, class A>
A value_at(const void* values, int64_t i, A otherwise) {
  return values ? load_first(static_cast<const T*>(values) + i, 1)[0] : otherwise;
}

template <class T, class V>
void set_value(void* values, int64_t i, V value) {
  store_first(static_cast<T*>(values) + i, value, 1);
}

// The elements of a row, and of the quarter whose mean is its centre.
struct RowLength {
  int64_t count, quarter;
  double inverse, inverse_quarter;

  explicit RowLength(int64_t count)
      : count(count),
        quarter((count + 3) / 4),
        inverse(1.0 / count),
        inverse_quarter(1.0 / quarter) {}
};

// A row in memory, which loads times 2^exponent if kScaled.
template <class T, class A, bool kScaled>
struct ScaledRow {
  const T* data;  // [cols]
  Scale<A, kScaled> scale;

  ScaledRow(const Operand& tensor, int64_t row, int exponent)
      : data(row_at<const T>(tensor, row)), scale(exponent) {}

  template <class At>
  auto load(At at) const {
    return scale(at.load(data));
  }
};

// The mean of the first quarter of a row.
template <class V, class T, class A, bool kScaled>
A center_of(const ScaledRow<T, A, kScaled>& row, const RowLength& cols) {
  const A pivot = row.load(Tail{0, 1})[0];
  double total[1] = {};
  sum_row<V>(cols.quarter, total, [&](auto at, V* sums) {  //
    sums[0] += at.keep(row.load(at) - pivot);
  });
  return static_cast<A>(pivot + total[0] * cols.inverse_quarter);
}

// Whether all values of the row are one, of which sums about their mean are exactly 0.
template <class V, class T, class A, bool kScaled>
__attribute__((noinline)) bool is_constant(const ScaledRow<T, A, kScaled>& row,
                                           const RowLength& cols) {
  const A pivot = row.load(Tail{0, 1})[0];
  auto differs = V{} != V{};             // no lane
  for_row<V>(cols.count, [&](auto at) {  //
    differs |= at.keep(row.load(at) - pivot) != V{};
  });
  for (int k = 0; k < static_cast<int>(sizeof(V) / sizeof(pivot)); ++k) {
    if (differs[k]) return false;
  }
  return true;
}

template <class V, class T>
Magnitude magnitude_of(const Operand& tensor, int64_t number, int64_t cols) {
  const T* row = row_at<const T>(tensor, number);
  const auto pivot = load_first(row, 1)[0];
  auto largest = pivot - pivot, spread = largest;
  V not_finite{};  // 0, or NaN
  for_row<V>(cols, [&](auto at) {
    const V values = at.load(row), distances = at.keep(values - pivot);
    not_finite += values - values;
    for (int k = 0; k < static_cast<int>(sizeof(V) / sizeof(values[0])); ++k) {
      const auto value = values[k] < 0 ? -values[k] : values[k];
      const auto distance = distances[k] < 0 ? -distances[k] : distances[k];
      if (value > largest) largest = value;
      if (distance > spread) spread = distance;
    }
  });
  // The distance of values of both signs may be out of the type's range.
  return {largest, spread < largest ? spread : largest, sum(not_finite) == 0};
}

}  // namespace
}  // namespace ws
