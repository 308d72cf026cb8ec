// What of its operands a pass holds in registers, and how it reaches their rows.
#pragma once

#include <cstring>
#include <type_traits>
#include <utility>

#include "launch/batch.h"
#include "launch/tiers.h"
#include "rows/row.cuh"

namespace ws {

// Calls run(std::integral_constant<int, n>()) for n = 0 to kCount - 1.
template <int kCount, int n = 0, class Run>
__device__ __forceinline__ void unroll(const Run& run) {
  if constexpr (n < kCount) {
    run(std::integral_constant<int, n>());
    unroll<kCount, n + 1>(run);
  }
}

// What an operand's elements are.
template <class Pass, int kOperand, Of kOf = Pass::Args::kOf[kOperand]>
using ElementOf = std::conditional_t<
    kOf == Of::kWeight, typename Pass::Weight,
    std::conditional_t<kOf == Of::kOut, typename Pass::Out, typename Pass::Grad>>;

// A team holds the first of the inputs, w, and the last, g, if the pass has it. The others are the
// states of an optimizer (update_rows.cuh).
template <class Pass, int n>
constexpr int kInput = n == 0 ? Pass::Args::kFirstInput : Pass::Args::kOperands - 1;
template <class Pass>
using InputsOf = std::make_integer_sequence<int, Pass::kHeld>;

// The element type of outs or gradients in a kernel that takes several, beside float32 weights. It has
// the size of the widest.
struct Several {
  float widest;
};
enum class Kind : int32_t { kFloat, kHalf, kBFloat16 };

template <Of kOf>
__device__ __forceinline__ Kind kind_of(Types types) {
  const bool sum = kOf == Of::kGrad;
  return types == kF32 || (sum && types >= kF32ToF16Sum)         ? Kind::kFloat
         : types == kF32ToF16 || (!sum && types == kF32ToF16Sum) ? Kind::kHalf
                                                                 : Kind::kBFloat16;
}

// Calls run(T()), or run(an element of that kind) where T is several.
template <class T, class Run>
__device__ __forceinline__ auto with_element([[maybe_unused]] Kind kind, Run run) {
  if constexpr (!std::is_same_v<T, Several>) {
    return run(T());
  } else {
    if (kind == Kind::kHalf) return run(__half());
    if (kind == Kind::kBFloat16) return run(__nv_bfloat16());
    return run(float());
  }
}

// The first of a team's rows.
template <class Args>
struct Place {
  const Args& args;
  Types types;
  int64_t row;
};

// A row of an operand.
template <class T, class Index>
struct OperandRow {
  using Element = T;

  const Operand& operand;
  const Shape& shape;
  int64_t row;
  Kind kind;

  template <class U>
  __device__ __forceinline__ Row<U, Index> as() const {
    return {operand.data, row, shape, operand.strides};
  }
};
template <class Pass, class Index, int kOperand>
__device__ __forceinline__ OperandRow<ElementOf<Pass, kOperand>, Index> operand_row(
    const Place<typename Pass::Args>& at, int k = 0) {
  return {at.args.operands[kOperand], at.args.shape, at.row + k,
          kind_of<Pass::Args::kOf[kOperand]>(at.types)};
}
template <class Pass, class Index, int n>
__device__ __forceinline__ auto input_row(const Place<typename Pass::Args>& at, int k = 0) {
  return operand_row<Pass, Index, kInput<Pass, n>>(at, k);
}

// The words that a thread holds of kRows rows of one input. Each input has a struct of its own: nvcc
// keeps an array of all inputs in memory, for 10.0 and later.
template <class T, int kRows, int kElements, int kGroup>
struct Words {
  Word<T, kGroup> words[kRows][kElements / kGroup];
  Kind kind;  // of several
};

// Their elements.
template <class A, int kRows, int kElements>
struct Elements {
  A elements[kRows][kElements];

  template <class T, int kGroup>
  __device__ __forceinline__ explicit Elements(const Words<T, kRows, kElements, kGroup>& from) {
    with_element<T>(from.kind, [&](auto element) {
      using U = decltype(element);
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
#pragma unroll
        for (int i = 0; i < kElements; i += kGroup)
          unpack<U, kGroup>(reinterpret_cast<const Word<U, kGroup>&>(from.words[k][i / kGroup]),
                            elements[k] + i);
      }
    });
  }
};

// Of a row in shared memory, or of an operand's: loads into row k of `to`, the first element, and stores.
template <bool kOnce, class T, class Index, class Columns, class Words>
__device__ __forceinline__ void read_row(const Row<T, Index>& row, const Columns& columns,
                                         Index tile, Words& to, int k) {
  read<kOnce>(row, columns, tile, to.words[k]);
}
template <bool kOnce, class T, class Index, class Columns, int kRows, int kElements, int kGroup>
__device__ __forceinline__ void read_row(const OperandRow<T, Index>& row, const Columns& columns,
                                         Index tile, Words<T, kRows, kElements, kGroup>& to,
                                         int k) {
  to.kind = row.kind;
  if constexpr (!std::is_same_v<T, Several>) {
    read<kOnce>(row.template as<T>(), columns, tile, to.words[k]);
  } else if (row.kind == Kind::kFloat) {
    read<kOnce>(row.template as<float>(), columns, tile, to.words[k]);
  } else {  // for bits, all of 2 bytes are the same
    Word<__half, kGroup> words[kElements / kGroup];
    read<kOnce>(row.template as<__half>(), columns, tile, words);
#pragma unroll
    for (int i = 0; i < kElements / kGroup; ++i)
      memcpy(&to.words[k][i], &words[i], sizeof(words[i]));
  }
}

template <class A, class T, class Index>
__device__ __forceinline__ A first_of(const Row<T, Index>& row) {
  return widen(row.data[0]);
}
template <class A, class T, class Index>
__device__ __forceinline__ A first_of(const OperandRow<T, Index>& row) {
  return with_element<T>(row.kind, [&](auto element) -> A {
    return first_of<A>(row.template as<decltype(element)>());
  });
}

template <bool kGlobal, class T, class Index, class Columns, class A, int kElements>
__device__ __forceinline__ void write_row(const Row<T, Index>& row, const Columns& columns,
                                          Index tile, const A (&values)[kElements]) {
  write<kGlobal>(row, columns, tile, values);
}
template <bool kGlobal, class T, class Index, class Columns, class A, int kElements>
__device__ __forceinline__ void write_row(const OperandRow<T, Index>& row, const Columns& columns,
                                          Index tile, const A (&values)[kElements]) {
  with_element<T>(row.kind, [&](auto element) {
    write<kGlobal>(row.template as<decltype(element)>(), columns, tile, values);
  });
}

}  // namespace ws
