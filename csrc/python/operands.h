// The arrays of one call together: their common layout, and that no result overlaps another array.
#pragma once

#include <string>
#include <vector>

#include "array.h"
#include "../memory.h"

namespace ws {

// Describes arrays[i] as args.operands[i].
template <class Args>
void describe(const Array (&arrays)[Args::kOperands], int64_t channel_dim, Args& args) {
  constexpr int kCount = Args::kOperands;
  View views[kCount];
  Strides strides[kCount];
  for (int i = 0; i < kCount; ++i) views[i] = arrays[i].view();
  const int fitting = match_layout(views, kCount, channel_dim, &args.shape, strides);
  if (fitting < kCount) {
    throw py::value_error(arrays[fitting].name() +
                          " must be dense within its channels and laid out as " + arrays[0].name() +
                          " is; its strides would need a copy");
  }
  for (int i = 0; i < Args::kResults; ++i) {
    if (Memory::is_nested(args.shape, strides[i])) continue;
    throw py::value_error(arrays[i].name() +
                          " must not overlap itself: a stride must pass what the smaller ones "
                          "span; got shape " +
                          arrays[i].shape() + " and strides " + arrays[i].strides());
  }
  for (int i = 0; i < kCount; ++i) args.operands[i] = {arrays[i].data(), strides[i]};
}

// An array of a call, and the bytes that it occupies.
struct Occupied {
  const Array* array;
  Memory memory;
  Strides strides;  // where they matter
  bool is_vector;

  Occupied(const Array& array, const Shape& shape, const Strides& strides)
      : array(&array),
        memory(array.data(), array.element_size(), shape, strides),
        strides{shape.rows > 1 ? strides.row : 0, shape.cols > shape.run ? strides.run : 0},
        is_vector(false) {}
  explicit Occupied(const Array& vector)
      : array(&vector),
        memory(vector.data(), vector.element_size(), vector.numel()),
        strides{},
        is_vector(true) {}

  bool is(const Occupied& other) const {
    return array->data() == other.array->data() && array->dtype() == other.array->dtype() &&
           strides.row == other.strides.row && strides.run == other.strides.run;
  }
};

// Refuses results that share bytes with each other or with an input. A matrix may be the very array
// that another was: the kernels read all that they need of a row before they write to it.
inline void require_apart(const std::vector<Occupied>& results,
                          const std::vector<Occupied>& inputs) {
  const auto refuse = [](const Occupied& result, const Occupied& other, const char* exception) {
    throw py::value_error(result.array->name() + " and " + other.array->name() +
                          " must not overlap" + exception);
  };
  for (size_t i = 0; i < results.size(); ++i) {
    const Occupied& result = results[i];
    for (const Occupied& input : inputs) {
      const bool in_place_allowed = !result.is_vector && !input.is_vector;
      if (in_place_allowed && result.is(input)) continue;
      if (input.memory.overlaps(result.memory)) {
        refuse(result, input,
               in_place_allowed ? " unless they are the same array in all: memory, strides, dtype"
                                : "");
      }
    }
    for (size_t k = i + 1; k < results.size(); ++k) {
      if (results[k].memory.overlaps(result.memory)) refuse(result, results[k], "");
    }
  }
}

}  // namespace ws
