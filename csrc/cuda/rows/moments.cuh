// The sums of rows, or of parts of rows: what a pass needs to know before it writes.
//
//   1  m = pivot + sum(w - pivot) / n              mg likewise of g, about a pivot of its own
//   2  r = sum(w - m) / n                          rg = sum(g - mg) / n
//      squares = sum((w - m)^2) - n r^2            dot = sum((w - m)(g - mg)) - n r rg
//                                                  sum_g = n mg + sum(g - mg)
//                                                  squares_g = sum((g - mg)^2) - n rg^2
//
// m + r is the mean: two numbers, whose sum would lose the digits of a small r. A pivot is the row's
// first element. It makes the mean of a constant row exactly its value, so that w - m, r and squares
// are 0; and of a constant gradient dot and g - mg. With center = false, m, mg, r and rg are 0.
//
// Two parts of n and n' elements, at a distance e = (m' - m) + r' - r, and eg likewise, have together
//
//   r + e n' / (n + n')    squares + squares' + e^2 n n' / (n + n')    dot + dot' + e eg n n' / (n + n')
//                                                                      and squares_g likewise
#pragma once

#include "../../channel.h"
#include "row.cuh"
#include "team.cuh"

namespace ws {

// Of a pass without g, the first three alone.
template <class A>
struct Moments {
  A m = 0, r = 0, squares = 0;
  A mg = 0, rg = 0, dot = 0;
  A sum_g = 0;
  A squares_g = 0;  // for passes that ask for it
};

// Of kRows rows of n elements at once, which their team holds in registers: x[0] is w and, where
// there is another, x[1] is g; pivot likewise.
template <bool kSquaresG, class Team, int kTeam, int kCount, int kRows, int kElements, int kGroup,
          class A, class Index>
__device__ __forceinline__ void find_moments(Team& team, A (*const (&x)[kCount])[kElements],
                                             const Columns<kTeam, kGroup, Index>& columns,
                                             Index tile, const A (&pivot)[kCount][kRows], A n,
                                             bool center, Moments<A> (&moments)[kRows]) {
  constexpr bool kGrad = kCount > 1;
  constexpr int kFirst = kGrad ? 2 : 1, kSecond = (kGrad ? 4 : 2) + kSquaresG;
  const auto w = x[0], g = x[kGrad];
  // Its rounding matters as little as that of m: r is what both have left over, and much smaller. And
  // a division here does not wait for the sums.
  const A inv_n = A(1) / n;
  if (center) {
    A sums[kRows * kFirst] = {};
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (columns.has(tile, i)) {
          sums[k * kFirst] += w[k][i] - pivot[0][k];
          if constexpr (kGrad) sums[k * kFirst + 1] += g[k][i] - pivot[1][k];
        }
      }
    }
    team.sum(sums);
#pragma unroll
    for (int k = 0; k < kRows; ++k) {
      moments[k].m = pivot[0][k] + sums[k * kFirst] * inv_n;
      if constexpr (kGrad) moments[k].mg = pivot[1][k] + sums[k * kFirst + 1] * inv_n;
    }
  }

  A sums[kRows * kSecond] = {};
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (columns.has(tile, i)) {
        const A dw = w[k][i] - moments[k].m;
        sums[k * kSecond] += dw;
        sums[k * kSecond + 1] += dw * dw;
        if constexpr (kGrad) {
          const A dg = g[k][i] - moments[k].mg;
          sums[k * kSecond + 2] += dg;
          sums[k * kSecond + 3] += dg * dw;
          if constexpr (kSquaresG) sums[k * kSecond + 4] += dg * dg;
        }
      }
    }
  }
  team.sum(sums);
#pragma unroll
  for (int k = 0; k < kRows; ++k) {
    moments[k].r = center ? sums[k * kSecond] * inv_n : A(0);
    // An overflow stays infinity, which makes the row 0, where inf - inf would make it NaN.
    const A squares = sums[k * kSecond + 1];
    moments[k].squares = isinf(squares) ? squares : squares - n * moments[k].r * moments[k].r;
    if constexpr (kGrad) {
      moments[k].rg = center ? sums[k * kSecond + 2] * inv_n : A(0);
      moments[k].sum_g = n * moments[k].mg + sums[k * kSecond + 2];
      moments[k].dot = sums[k * kSecond + 3] - n * moments[k].r * moments[k].rg;
      if constexpr (kSquaresG)
        moments[k].squares_g = sums[k * kSecond + 4] - n * moments[k].rg * moments[k].rg;
    }
  }
}

// Adds a part of n elements to x, which has n_x.
template <class A>
__device__ __forceinline__ void merge(Moments<A>& x, A n_x, const Moments<A>& part, A n) {
  const A e = (part.m - x.m) + (part.r - x.r), eg = (part.mg - x.mg) + (part.rg - x.rg);
  const A share = n / (n_x + n);
  x.r += e * share;
  x.rg += eg * share;
  x.squares += part.squares + e * e * n_x * share;
  x.dot += part.dot + e * eg * n_x * share;
  x.sum_g += part.sum_g;
  x.squares_g += part.squares_g + eg * eg * n_x * share;
}

// The moments of a row of `cols` elements from those of its chunks; cols_of(c) elements are chunk c's.
template <int kTeam, class A, class ColsOf>
__device__ __forceinline__ Moments<A> combine(Team<kTeam>& team, const Moments<A>* parts,
                                              int chunks, A cols, ColsOf cols_of) {
  const A m = parts[0].m, mg = parts[0].mg;
  A shift[3] = {};
  for (int c = team.thread; c < chunks; c += kTeam) {
    const A n = static_cast<A>(cols_of(c));
    shift[0] += n * ((parts[c].m - m) + parts[c].r);
    shift[1] += n * ((parts[c].mg - mg) + parts[c].rg);
    shift[2] += parts[c].sum_g;
  }
  team.sum(shift);
  const A mean_shift = shift[0] / cols, mean_shift_g = shift[1] / cols;
  A sums[3] = {};
  for (int c = team.thread; c < chunks; c += kTeam) {
    const A n = static_cast<A>(cols_of(c));
    const A e = (parts[c].m - m) + parts[c].r - mean_shift;
    const A eg = (parts[c].mg - mg) + parts[c].rg - mean_shift_g;
    sums[0] += parts[c].squares + n * e * e;
    sums[1] += parts[c].dot + n * e * eg;
    sums[2] += parts[c].squares_g + n * eg * eg;
  }
  team.sum(sums);
  Moments<A> x;
  x.m = m + mean_shift;
  x.r = (m - x.m) + mean_shift;
  x.mg = mg + mean_shift_g;
  x.rg = (mg - x.mg) + mean_shift_g;
  x.squares = sums[0];
  x.dot = sums[1];
  x.sum_g = shift[2];
  x.squares_g = sums[2];
  return x;
}

}  // namespace ws
