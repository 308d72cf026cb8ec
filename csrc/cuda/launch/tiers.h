// The launch tables: which threads work on which rows, and how they reach memory.
//
// A thread holds 24 to 36 elements of an input in nearly every tier, and all tiers of a pass are content
// with the same registers: a multiprocessor always has the same threads (Pass::kResident), whose loads
// keep memory busy, and one kernel has all tiers of a size of block. Short rows share a block, and a
// team takes two of them at a time; a warp needs no barrier, so it goes as far as 32 elements a thread
// do; beyond 36, blocks are larger, and beyond 256 threads a cluster of blocks shares the row. Without
// clusters a block of 512 does; what nothing holds is split over blocks.
//
// A pass over a flat row costs its team a few hundred instructions whatever its length: the tiers are
// such that a block's teams, with 8 KB of rows, take one pass or little more.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../api.h"

namespace ws {

// Whether a pass updates its weight.
template <class Pass>
constexpr bool kInPlace = Pass::Args::kResults > Pass::Args::kFirstInput;

// Elements in the shared memory of a block whose rows are one stretch: 8 KB of each input.
template <class A>
constexpr int kTile = 8192 / sizeof(A);

// The passes of an optimizer's step, norms and update, have few tiers, or their kernels would take
// minutes to compile: of those that differ in elements alone the widest, which has the same sums, a row at
// a time.
template <class Pass>
struct Tiers {
  static constexpr int kCount = 23;
  // Elements that a vector access moves: 16 bytes of the wider type, so that in a kernel that
  // converts both sides move the same elements.
  static constexpr int kVec = 16 / (sizeof(typename Pass::Weight) > sizeof(typename Pass::Out)
                                        ? sizeof(typename Pass::Weight)
                                        : sizeof(typename Pass::Out));
  // a float64 takes the registers of two others
  static constexpr int n = sizeof(typename Pass::Weight) == 8 ? 1 : 2;
  // As many as registers hold: 4608, 9216 and 18432 columns, those of 3x3 kernels, fill them.
  static constexpr int kWide = 18 * n, kWideVec = (kWide + kVec - 1) / kVec * kVec;
  static constexpr bool kFew = Pass::Args::kResults != 1;
  static constexpr int kPair = kFew ? 1 : 2, kRows = kFew ? 1 : n;
  static constexpr Tier list[kCount] = {
      {"sub-warp", Access::kVector, Form::kRows, 4, 8 * n, kRows},
      {"sub-warp", Access::kVector, Form::kRows, 8, 8 * n, kRows},
      {"sub-warp", Access::kVector, Form::kRows, 16, 8 * n, kRows},
      {"warp", Access::kVector, Form::kRows, 32, 8 * n, kRows},
      {"warp", Access::kVector, Form::kRows, 32, 16 * n, 1},
      {"block of 128", Access::kVector, Form::kRows, 128, 8 * n, kRows},
      {"block of 128", Access::kVector, Form::kRows, 128, 12 * n, 1},
      {"block of 128", Access::kVector, Form::kRows, 128, kWideVec, 1},
      {"block of 256", Access::kVector, Form::kRows, 256, kWideVec, 1},
      {"cluster", Access::kVector, Form::kCluster, 256, kWideVec, 1},
      {"block of 512", Access::kVector, Form::kRows, 512, kWideVec, 1},
      {"split row", Access::kVector, Form::kSplit, 256, 8 * n, 1},
      {"flat, thread", Access::kFlat, Form::kRows, 1, 9, 1},
      {"flat, thread", Access::kFlat, Form::kRows, 1, 14 * n - 1, 1},
      {"flat, sub-warp", Access::kFlat, Form::kRows, 2, 12 * n + 1, 1},
      {"flat, sub-warp", Access::kFlat, Form::kRows, 4, 12 * n + 1, 1},
      {"flat, sub-warp", Access::kFlat, Form::kRows, 8, 10 * n, 1},
      {"flat, warp", Access::kFlat, Form::kRows, 32, 12 * n, 1},
      {"scalar sub-warp", Access::kScalar, Form::kRows, 8, 4 * n, kPair},
      {"scalar warp", Access::kScalar, Form::kRows, 32, 8 * n, 1},
      {"scalar block of 128", Access::kScalar, Form::kRows, 128, 8 * n, 1},
      {"scalar block of 512", Access::kScalar, Form::kRows, 512, 8 * n, 1},
      {"scalar split row", Access::kScalar, Form::kSplit, 256, 4 * n, 1},
  };
  static constexpr bool has(int i) {
    return !kFew || i + 1 == kCount || list[i].access != list[i + 1].access ||
           list[i].form != list[i + 1].form || list[i].team != list[i + 1].team;
  }
};

// The tiers of an access lie one after another.
template <class Table>
constexpr int first_tier_of(Access access) {
  int i = 0;
  while (Table::list[i].access != access) ++i;
  return i;
}

// The tier of a form of which there is one for an access.
template <class Table>
constexpr int tier_of_form(Form form, Access access) {
  for (int i = 0; i < Table::kCount; ++i) {
    if (Table::list[i].form == form && Table::list[i].access == access) return i;
  }
  return -1;
}

// Calls run(std::integral_constant<int, tier>()) for a tier of flat rows, or for one of others. A kernel has
// the code of those alone whose blocks are of its size.
template <class Table, int kThreads, bool kFlat, int i = 0, class Run>
__device__ __forceinline__ void with_tier(int tier, Run run) {
  if constexpr (i < Table::kCount) {
    if constexpr (Table::has(i) && Table::list[i].threads() == kThreads &&
                  Table::list[i].form == Form::kRows &&
                  (Table::list[i].access == Access::kFlat) == kFlat) {
      if (tier == i) return run(std::integral_constant<int, i>());
    }
    with_tier<Table, kThreads, kFlat, i + 1>(tier, run);
  }
}

constexpr int64_t kMultiprocessors = 132;  // of an H100 or H200; small weights are to reach all

// So few rows would leave multiprocessors without work if some shared a block: each gets a block.
constexpr int64_t kFewRows = 128;

// The tier for such rows: the first of that access that holds them, else the one that splits them.
// Rows of a cache line or less have too few bytes to keep a team's accesses busy.
template <class Table>
constexpr int tier_of(int64_t rows, int64_t cols, bool vector, bool flat, int max_cluster) {
  constexpr int kShort = 16, kBanks = 32;
  constexpr int kLongestFlat = 384 * Table::n;
  const Access access = flat && cols <= kLongestFlat && (!vector || cols < kShort) ? Access::kFlat
                        : vector ? Access::kVector
                                 : Access::kScalar;
  for (int i = 0; i < Table::kCount; ++i) {
    const Tier& tier = Table::list[i];
    if (!Table::has(i) || tier.access != access || cols > tier.max_cols(max_cluster)) continue;
    if (tier.form == Form::kCluster && max_cluster == 1) continue;
    const bool shared = tier.threads() > tier.team || tier.team_rows > 1;
    if (access == Access::kVector && shared && rows <= kFewRows && cols > 128 * Table::n) continue;
    // Threads with a row each would all be in the same bank of shared memory.
    if (tier.team == 1 && cols % kBanks == 0) continue;
    return i;
  }
  return -1;
}

}  // namespace ws
