// Rows that lie one after another, moved between global and shared memory as one stretch.
//
// Rows of 9 or 147 elements start anywhere, and so does a weight inside a flat parameter buffer. Row
// by row that takes an access an element, and short rows leave most of a team's threads without one.
// As one stretch, all but its ends are aligned accesses of 16 bytes by all threads of the block. In
// shared memory the stretch keeps its place within 16 bytes, so that its vectors are aligned there
// too; elements are widened on the way.
#pragma once

#include "elements.cuh"

namespace ws {

// Shared memory for so many elements: a piece for each kName, the same for all that ask in a kernel.
template <class A, int kElements, int kName>
__device__ __forceinline__ A* shared_tile() {
  struct alignas(16) Tile {
    A elements[kElements];
  };
  __shared__ Tile tile;
  return tile.elements;
}

// `count` elements of a block's 128 threads, of which an access to global memory moves kGroup.
template <class T, class A, int kGroup>
struct Stretch {
  static constexpr int kThreads = 128;
  static constexpr int kPart = 16 / sizeof(A);  // elements that an access to shared memory moves

  T* data;  // [count]
  int count;
  int phase;  // elements between the last multiple of an access's size and data
  int head;   // elements before the first multiple of it
  int body;   // aligned accesses after them

  __device__ Stretch(T* data, int count) : data(data), count(count) {
    phase = static_cast<int>(reinterpret_cast<uintptr_t>(data) / sizeof(T) % kGroup);
    head = phase == 0 ? 0 : kGroup - phase;
    head = head < count ? head : count;
    body = (count - head) / kGroup;
  }

  // Accesses of a thread, at most.
  template <int kElements>
  static constexpr int count_of() {
    return (kElements + kGroup * kThreads - 1) / (kGroup * kThreads);
  }

  // Calls vector(first element, i) and scalar(element, whether it is before them) for what this thread
  // moves.
  template <int kElements, class Vector, class Scalar>
  __device__ __forceinline__ void each(Vector vector, Scalar scalar) const {
#pragma unroll
    for (int i = 0; i < count_of<kElements>(); ++i) {
      const int v = threadIdx.x + i * kThreads;
      if (v < body) vector(head + v * kGroup, i);
    }
    const int thread = threadIdx.x, tail = head + body * kGroup;
    if (thread < head) scalar(thread, true);
    if (thread < count - tail) scalar(tail + thread, false);
  }

  // What a thread holds of a stretch of kElements on its way into shared memory: whole accesses, and an
  // element of either end.
  template <int kElements>
  struct Loaded {
    Word<T, kGroup> words[count_of<kElements>()];
    Word<T, 1> head, tail;
  };

  // The loads alone, none of which is waited for: those of another input may follow.
  template <int kElements>
  __device__ __forceinline__ Loaded<kElements> load_all() const {
    Loaded<kElements> loaded;
    each<kElements>([&](int first, int i) { loaded.words[i] = load<kGroup, true>(data + first); },
                    [&](int element, bool at_head) {
                      (at_head ? loaded.head : loaded.tail) = load<1, true>(data + element);
                    });
    return loaded;
  }

  // tile[phase + i] = data[i].
  template <int kElements>
  __device__ __forceinline__ void put(const Loaded<kElements>& loaded, A* tile) const {
    each<kElements>(
        [&](int first, int i) {
          A values[kGroup];
          unpack<T, kGroup>(loaded.words[i], values);
#pragma unroll
          for (int k = 0; k < kGroup; k += kPart)
            store<kPart, false>(tile + phase + first + k, values + k);
        },
        [&](int element, bool at_head) {
          unpack<T, 1>(at_head ? loaded.head : loaded.tail, tile + phase + element);
        });
  }

  // data[i] = tile[i], which has its vectors aligned if `aligned`.
  template <int kElements>
  __device__ __forceinline__ void store_from(const A* tile, bool aligned) const {
    each<kElements>(
        [&](int first, int) {
          A values[kGroup];
          if (aligned) {
#pragma unroll
            for (int k = 0; k < kGroup; k += kPart)
              unpack<A, kPart>(load<kPart, false>(tile + first + k), values + k);
          } else {
#pragma unroll
            for (int k = 0; k < kGroup; ++k) values[k] = tile[first + k];
          }
          store<kGroup, true>(data + first, values);
        },
        [&](int element, bool) { store<1, true>(data + element, tile + element); });
  }
};

}  // namespace ws
