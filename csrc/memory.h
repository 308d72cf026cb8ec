// Which bytes an array occupies, and whether two arrays have some in common.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "layout.h"

namespace ws {

// Stretches of `run` bytes: levels[0].count groups of levels[1].count stretches, the groups further
// apart than the stretches of one. All strides are positive, and in bytes.
class Memory {
 public:
  Memory(const void* data, int64_t element_size, const Shape& shape, const Strides& strides)
      : begin_(reinterpret_cast<intptr_t>(data)),
        levels_{{shape.rows, strides.row * element_size},
                {shape.cols / shape.run, strides.run * element_size}},
        run_(shape.run * element_size) {
    for (Level& level : levels_) {
      if (level.count == 1 || level.stride == 0) level = {1, 0};
      if (level.stride < 0) begin_ += (level.count - 1) * level.stride;
      level.stride = std::abs(level.stride);
    }
    if (levels_[0].stride < levels_[1].stride) std::swap(levels_[0], levels_[1]);
    // what follows without a gap is one stretch
    for (Level* level : {&levels_[1], &levels_[0]}) {
      if (level->count == 1) continue;
      if (level->stride != run_) break;
      run_ *= level->count;
      *level = {1, 0};
    }
  }

  // `count` contiguous elements.
  Memory(const void* data, int64_t element_size, int64_t count)
      : Memory(data, element_size, {1, count, count}, {count, count}) {}

  // Whether each group lies past the one before it, and each stretch too. Interleaved groups that
  // share nothing are not told from those that do.
  static bool is_nested(const Shape& shape, const Strides& strides) {
    if (shape.rows > 1 && strides.row == 0) return false;
    if (shape.cols > shape.run && strides.run == 0) return false;
    const Memory memory(nullptr, 1, shape, strides);
    return memory.is_nested_at(0) && memory.is_nested_at(1);
  }

  // `nested`: another that is_nested.
  bool overlaps(const Memory& nested) const {
    const int64_t start = begin_ - nested.begin_;
    if (start >= nested.extent(0) || start + extent(0) <= 0) return false;
    for (int64_t i = 0; i < levels_[0].count; ++i) {
      for (int64_t j = 0; j < levels_[1].count; ++j) {
        const int64_t from = start + i * levels_[0].stride + j * levels_[1].stride;
        if (nested.has_some_of(from, from + run_, 0)) return true;
      }
    }
    return false;
  }

 private:
  struct Level {
    int64_t count, stride;
  };

  // From the first byte to the last, from this level on.
  int64_t extent(int level) const {
    int64_t bytes = run_;
    for (; level < 2; ++level) bytes += (levels_[level].count - 1) * levels_[level].stride;
    return bytes;
  }

  bool is_nested_at(int level) const {
    return levels_[level].count == 1 || levels_[level].stride >= extent(level + 1);
  }

  // Of the bytes [from, to), counted from the start of the first group.
  bool has_some_of(int64_t from, int64_t to, int level) const {
    if (from >= extent(level) || to <= 0) return false;
    if (level == 2) return true;
    const auto [count, stride] = levels_[level];
    if (count == 1) return has_some_of(from, to, level + 1);
    // only the groups in which the bytes begin and end can be reached in part
    const int64_t first = std::max<int64_t>(from, 0) / stride;
    const int64_t last = std::min((to - 1) / stride, count - 1);
    return last - first > 1 || has_some_of(from - first * stride, to - first * stride, level + 1) ||
           has_some_of(from - last * stride, to - last * stride, level + 1);
  }

  intptr_t begin_;
  Level levels_[2];
  int64_t run_;
};

}  // namespace ws
