// The launch tables: which threads work on which rows, and how they reach memory.
//
// A block has 128 threads and work of about the same size in every tier: 16 to 40 elements a thread,
// which is what keeps enough bytes in flight. Short rows share a block, and a team of threads takes
// several of them at a time; a warp needs no barrier, so it goes as far as 32 elements a thread do;
// beyond 40, blocks are larger instead. A row that a block of 512 does not hold is split over blocks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../api.h"

namespace ws {

// Elements in the shared memory of a block whose rows are one stretch: 8 KB of each input.
template <class A>
constexpr int kTile = 8192 / sizeof(A);

// Pass::kWide: elements that a thread of a block of 512 can hold at most, for which it has 128
// registers. Pass::kTeamRows: rows that a team takes at a time of the shortest.
template <class Pass>
struct Tiers {
  static constexpr int kCount = 18;
  // Elements that a vector access moves: 16 bytes of the wider type, so that in a kernel that
  // converts both sides move the same elements.
  static constexpr int kVec = 16 / (sizeof(typename Pass::Weight) > sizeof(typename Pass::Out)
                                        ? sizeof(typename Pass::Weight)
                                        : sizeof(typename Pass::Out));
  static constexpr int kWide = Pass::kWide, kRows = Pass::kTeamRows;
  // a float64 takes the registers of two others
  static constexpr int n = sizeof(typename Pass::Weight) == 8 ? 1 : 2;
  static constexpr Tier list[kCount] = {
      {"sub-warp", Access::kVector, 8, 4 * n, kRows, false},
      {"warp", Access::kVector, 32, 4 * n, kRows, false},
      {"warp", Access::kVector, 32, 8 * n, kRows / 2, false},
      {"warp", Access::kVector, 32, 16 * n, 1, false},
      {"block of 128", Access::kVector, 128, 12 * n, 1, false},
      {"block of 128", Access::kVector, 128, (kVec == 8 ? 40 : kWide), 1, false},
      {"block of 512", Access::kVector, 512, 12 * n, 1, false},
      {"block of 512", Access::kVector, 512, kWide / kVec * kVec, 1, false},
      {"split row", Access::kVector, 512, 8 * n, 1, true},
      {"flat, thread", Access::kFlat, 1, 8 * n, 1, false},
      {"flat, sub-warp", Access::kFlat, 8, 4 * n, 1, false},
      {"flat, warp", Access::kFlat, 32, 4 * n, 1, false},
      {"flat, warp", Access::kFlat, 32, 12 * n, 1, false},
      {"scalar sub-warp", Access::kScalar, 8, 4 * n, 2, false},
      {"scalar warp", Access::kScalar, 32, 8 * n, 1, false},
      {"scalar block of 128", Access::kScalar, 128, 8 * n, 1, false},
      {"scalar block of 512", Access::kScalar, 512, 8 * n, 1, false},
      {"scalar split row", Access::kScalar, 512, 4 * n, 1, true},
  };
};

// The tier that splits rows.
template <class Table>
constexpr int split_tier(Access access) {
  for (int i = 0; i < Table::kCount; ++i) {
    if (Table::list[i].split && Table::list[i].access == access) return i;
  }
  return -1;
}

// Calls run(std::integral_constant<int, tier>()). A kernel has the code of those tiers alone whose
// blocks are of its size.
template <class Table, int kThreads, int i = 0, class Run>
__device__ __forceinline__ void with_tier(int tier, Run run) {
  if constexpr (i < Table::kCount) {
    if constexpr (Table::list[i].threads() == kThreads && !Table::list[i].split) {
      if (tier == i) return run(std::integral_constant<int, i>());
    }
    with_tier<Table, kThreads, i + 1>(tier, run);
  }
}

// So few rows would leave multiprocessors without work if warps shared a block: each gets a block.
constexpr int64_t kFewRows = 128;

// The tier for such rows: the first of that access that holds them, else the one that splits them.
// Rows of a cache line or less have too few bytes to keep a team's accesses busy.
template <class Table>
constexpr int tier_of(int64_t rows, int64_t cols, bool vector, bool flat) {
  constexpr int kShort = 16;
  constexpr int kLongestFlat = 384 * Table::n;
  const Access access = flat && cols <= kLongestFlat && (!vector || cols < kShort) ? Access::kFlat
                        : vector ? Access::kVector
                                 : Access::kScalar;
  for (int i = 0; i < Table::kCount; ++i) {
    const Tier& tier = Table::list[i];
    const bool narrow = tier.team == 32 && rows <= kFewRows && cols > 128 * Table::n;
    if (tier.access == access && cols <= tier.max_cols() &&
        !(access == Access::kVector && narrow)) {
      return i;
    }
  }
  return -1;
}

}  // namespace ws
