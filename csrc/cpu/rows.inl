// The row algorithm, written once over the vector types of the including file, which provides
//
//   Float, Double              vectors of float and double, of kBytes bytes
//   load(const T*), store(T*, v)        T: float, double, Half, BFloat16; a full vector
//   load_first(const T*, n), store_first(T*, v, n)       the first n elements of one
//   first(v, n)                its first n lanes, the others 0
//   sum(v)                     over its lanes
//
// A row is read from memory once and stays in the nearest cache for the passes that follow:
//
//   1  m  = pivot + sum(w - pivot) / cols         pivot: the row's first element, which keeps a
//      mg = sum(g) / cols                         constant row exactly constant
//   2  sums over w - m and g - mg: the variance, dot, and what rounding left in m and mg (r, rg)
//   3  the result, from (w - m) - r and (g - mg) - rg
//
// With center = false, m, r, mg and rg are 0.
#include "../channel.h"

namespace ws {
namespace {

template <class T>
struct Accumulator {
  using Scalar = float;
  using Vector = Float;
};
template <>
struct Accumulator<double> {
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
  template <class V>
  V keep(V v) const {
    return first(v, n);
  }
};

// totals[k] += the sum over the row of what term(position, sums) adds to sums[k].
//
// Four independent sums hide the latency of an addition. Every kBlock elements they are added up in
// double, so that the error does not grow with the row.
template <class V, int kSums, class Term>
void sum_row(int64_t cols, double (&totals)[kSums], Term term) {
  constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);
  constexpr int kUnroll = 4;
  constexpr int64_t kBlock = 4096;
  for (int64_t begin = 0; begin < cols; begin += kBlock) {
    const int64_t end = cols - begin < kBlock ? cols : begin + kBlock;
    V sums[kUnroll][kSums] = {};
    int64_t i = begin;
    for (; i + kUnroll * kLanes <= end; i += kUnroll * kLanes) {
      for (int u = 0; u < kUnroll; ++u) term(Full{i + u * kLanes}, sums[u]);
    }
    for (; i + kLanes <= end; i += kLanes) term(Full{i}, sums[0]);
    if (i < end) term(Tail{i, static_cast<int>(end - i)}, sums[1]);
    for (int k = 0; k < kSums; ++k) {
      totals[k] += sum((sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]));
    }
  }
}

template <class V, class Each>
void for_row(int64_t cols, Each each) {
  constexpr int kLanes = sizeof(V) / sizeof(V{}[0]);
  int64_t i = 0;
  for (; i + kLanes <= cols; i += kLanes) each(Full{i});
  if (i < cols) each(Tail{i, static_cast<int>(cols - i)});
}

template <class T>
auto value_at(const void* values, int64_t i) {
  return scalar(static_cast<const T*>(values)[i]);
}

template <class W, class Y>
void forward_rows(const Forward& a, int64_t begin, int64_t end) {
  using A = typename Accumulator<W>::Scalar;
  using V = typename Accumulator<W>::Vector;
  const int64_t cols = a.shape.cols;
  for (int64_t row = begin; row < end; ++row) {
    const W* w = static_cast<const W*>(a.weight) + row * a.weight_strides.row;  // [cols]
    Y* out = static_cast<Y*>(a.out) + row * a.out_strides.row;                  // [cols]
    A m = 0, r = 0;
    if (a.formula.center) {
      const A pivot = scalar(w[0]);
      double shifted[1] = {};
      sum_row<V>(cols, shifted, [&](auto at, V* sums) {  //
        sums[0] += at.keep(at.load(w) - pivot);
      });
      m = static_cast<A>(pivot + shifted[0] / cols);
    }
    double centered[2] = {};
    sum_row<V>(cols, centered, [&](auto at, V* sums) {
      const V dw = at.keep(at.load(w) - m);
      sums[0] += dw;
      sums[1] += dw * dw;
    });
    if (a.formula.center) r = static_cast<A>(centered[0] / cols);
    const A var = variance_of(static_cast<A>(centered[1]), r, cols, a.formula);
    const Channel<A> channel = channel_of(var, a.formula);
    const A factor = a.gain ? channel.s * value_at<W>(a.gain, row) : channel.s;
    const A shift = a.shift ? value_at<W>(a.shift, row) : A(0);
    for_row<V>(cols, [&](auto at) {  //
      at.store(out, ((at.load(w) - m) - r) * factor + shift);
    });
  }
}

template <class W, class Y>
void backward_rows(const Backward& a, int64_t begin, int64_t end) {
  using A = typename Accumulator<W>::Scalar;
  using V = typename Accumulator<W>::Vector;
  const int64_t cols = a.shape.cols;
  for (int64_t row = begin; row < end; ++row) {
    const Y* g = static_cast<const Y*>(a.grad) + row * a.grad_strides.row;        // [cols]
    const W* w = static_cast<const W*>(a.weight) + row * a.weight_strides.row;    // [cols]
    W* dw_out = static_cast<W*>(a.grad_weight) + row * a.grad_weight_strides.row;  // [cols]
    const A gain = a.gain ? value_at<W>(a.gain, row) : A(1);
    A m = 0, r = 0, mg = 0, rg = 0;
    double shifted[2] = {};
    if (a.formula.center || a.grad_shift) {
      const A pivot = scalar(w[0]);
      sum_row<V>(cols, shifted, [&](auto at, V* sums) {
        sums[0] += at.keep(at.load(w) - pivot);
        sums[1] += at.load(g);
      });
      if (a.formula.center) {
        m = static_cast<A>(pivot + shifted[0] / cols);
        mg = static_cast<A>(shifted[1] / cols);
      }
    }
    double centered[4] = {};
    sum_row<V>(cols, centered, [&](auto at, V* sums) {
      const V dw = at.keep(at.load(w) - m);
      const V dg = at.keep(at.load(g) - mg);
      sums[0] += dw;
      sums[1] += dw * dw;
      sums[2] += dg;
      sums[3] += dg * dw;
    });
    if (a.formula.center) {
      r = static_cast<A>(centered[0] / cols);
      rg = static_cast<A>(centered[2] / cols);
    }
    const A var = variance_of(static_cast<A>(centered[1]), r, cols, a.formula);
    const A dot = static_cast<A>(centered[3]) - static_cast<A>(cols) * r * rg;
    const Channel<A> channel = channel_of(var, a.formula);
    const A factor_g = channel.s * gain;
    const A factor_w = slope_of(channel, dot, cols, a.formula) * gain;
    for_row<V>(cols, [&](auto at) {
      const V dw = (at.load(w) - m) - r;
      const V dg = (at.load(g) - mg) - rg;
      at.store(dw_out, dg * factor_g + dw * factor_w);
    });
    if (a.grad_gain) set(static_cast<W*>(a.grad_gain) + row, channel.s * dot);
    if (a.grad_shift) set(static_cast<W*>(a.grad_shift) + row, static_cast<A>(shifted[1]));
  }
}

}  // namespace

// The table that the including file exports under its own name.
#define WS_CPU_KERNELS(NAME)                                                                  \
  {                                                                                           \
    NAME,                                                                                     \
        {forward_rows<double, double>,   forward_rows<float, float>,                          \
         forward_rows<Half, Half>,       forward_rows<BFloat16, BFloat16>,                    \
         forward_rows<float, Half>,      forward_rows<float, BFloat16>},                      \
        {backward_rows<double, double>,  backward_rows<float, float>,                         \
         backward_rows<Half, Half>,      backward_rows<BFloat16, BFloat16>,                   \
         backward_rows<float, Half>,     backward_rows<float, BFloat16>},                     \
  }

}  // namespace ws
