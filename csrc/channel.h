// The scalars of one channel: what differs between the published formulas, and nothing else.
//
// From var to s = scale / d, and the two factors of its derivative k = ds/dvar:
//
//   "std"          d = sqrt(var) + eps         k = -scale / (2 sqrt(var) d^2)     0 where var = 0
//   "var"          d = sqrt(var + eps)         k = -scale / (2 d^3)
//   "clamp"        d = sqrt(max(var, eps))     k = -scale / (2 d^3)               0 where var <= eps
//
// k is kept as s * inv_d * inv_root * (-1/2), because d^3 under- and overflows long before the
// gradient does. d = 0 (a constant channel with eps = 0) gives s = 0, so that out and grad_weight
// are 0 there and not NaN.
//
// Everything is in an unnamed namespace: a file compiled for one instruction set must keep its own
// copy, or the linker could hand its AVX-512 code to callers on machines without it.
#pragma once

#include "standardize.h"

#ifdef __CUDACC__
#define WS_DEVICE __host__ __device__ inline
#else
#define WS_DEVICE inline
#endif

namespace ws {
namespace {

WS_DEVICE float square_root(float x) { return __builtin_sqrtf(x); }
WS_DEVICE double square_root(double x) { return __builtin_sqrt(x); }

template <class A>  // the type of the statistics, float or double
struct Channel {
  A s;
  A inv_d;
  A inv_root;
};

template <class A>
WS_DEVICE Channel<A> channel_of(A var, const Formula& formula) {
  const A eps = static_cast<A>(formula.eps);
  const A root = square_root(var);
  A d, inv_root;
  if (formula.eps_mode == EpsMode::kStd) {
    d = root + eps;
    inv_root = root == 0 ? A(0) : A(1) / root;
  } else if (formula.eps_mode == EpsMode::kVar) {
    d = square_root(var + eps);
    inv_root = d == 0 ? A(0) : A(1) / d;
  } else {
    const bool clamped = var <= eps;  // false for NaN, which has to reach the whole channel
    d = clamped ? square_root(eps) : root;
    inv_root = clamped ? A(0) : A(1) / d;
  }
  const A inv_d = d == 0 ? A(0) : A(1) / d;
  const A s = d == 0 ? A(0) : static_cast<A>(formula.scale) / d;
  return {s, inv_d, inv_root};
}

// Sums over a row of x - pivot are corrected by what the pivot's own rounding left over:
// var = (sum((w - m)^2) - cols * r^2) / (cols - correction), where m + r is the mean.
template <class A>
WS_DEVICE A variance_of(A sum_squares, A r, int64_t cols, const Formula& formula) {
  const A var =
      (sum_squares - static_cast<A>(cols) * r * r) / static_cast<A>(cols - formula.correction);
  return var < 0 ? A(0) : var;
}

// The factor of (w - mean) in grad_weight, before gain: 2/(cols - correction) * k * dot.
template <class A>
WS_DEVICE A slope_of(const Channel<A>& channel, A dot, int64_t cols, const Formula& formula) {
  return -(channel.s / static_cast<A>(cols - formula.correction)) * (dot * channel.inv_d) *
         channel.inv_root;
}

}  // namespace
}  // namespace ws
