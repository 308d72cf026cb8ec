// The arrays of one call together: their common layout, and that no result overlaps another array.
#pragma once

#include <string>
#include <vector>

#include "array.h"
#include "memory.h"

namespace ws {

// Fills shape and strides[i] for arrays[i]; arrays[0] is a result.
template <int kCount>
void describe(const Array* const (&arrays)[kCount], int64_t channel_dim, Shape* shape,
              Strides (&strides)[kCount]) {
  View views[kCount];
  for (int i = 0; i < kCount; ++i) views[i] = arrays[i]->view();
  const int fitting = match_layout(views, kCount, channel_dim, shape, strides);
  if (fitting < kCount) {
    throw py::value_error(arrays[fitting]->name() +
                          " must be dense within its channels and laid out as " +
                          arrays[0]->name() + " is; its strides would need a copy");
  }
  if (!Memory::is_nested(*shape, strides[0])) {
    throw py::value_error(arrays[0]->name() +
                          " must not overlap itself: a stride must pass what the smaller ones "
                          "span; got shape " +
                          arrays[0]->shape() + " and strides " + arrays[0]->strides());
  }
}

// An array of a call, and the bytes that it occupies.
struct Operand {
  const Array* array;
  Memory memory;
  Strides strides;  // where they matter
  bool is_vector;

  Operand(const Array& array, const Shape& shape, const Strides& strides)
      : array(&array),
        memory(array.data(), array.element_size(), shape, strides),
        strides{shape.rows > 1 ? strides.row : 0, shape.cols > shape.run ? strides.run : 0},
        is_vector(false) {}
  explicit Operand(const Array& vector)
      : array(&vector),
        memory(vector.data(), vector.element_size(), vector.numel()),
        strides{},
        is_vector(true) {}

  bool is(const Operand& other) const {
    return array->data() == other.array->data() && array->dtype() == other.array->dtype() &&
           strides.row == other.strides.row && strides.run == other.strides.run;
  }
};

// Refuses results that share bytes with each other or with an input. A matrix may be the very array
// that another was: the kernels read all that they need of a row before they write to it.
inline void require_apart(const std::vector<Operand>& results, const std::vector<Operand>& inputs) {
  const auto refuse = [](const Operand& result, const Operand& other, const char* exception) {
    throw py::value_error(result.array->name() + " and " + other.array->name() +
                          " must not overlap" + exception);
  };
  for (size_t i = 0; i < results.size(); ++i) {
    const Operand& result = results[i];
    for (const Operand& input : inputs) {
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
