// The end of a row for instruction sets without masks for every type: through a buffer.
#pragma once

#include "vector.h"

namespace ws {
namespace {

template <class T>
inline auto load_first(const T* p, int n) {
  T buffer[sizeof(T) == sizeof(double) ? kDoubles : kFloats] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T, class V>
inline void store_first(T* p, V v, int n) {
  T buffer[sizeof(T) == sizeof(double) ? kDoubles : kFloats];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

template <class V>
inline V first(V v, int n) {
  const V zero{};
  for (int i = n; i < static_cast<int>(sizeof(V) / sizeof(zero[0])); ++i) v[i] = 0;
  return v;
}

}  // namespace
}  // namespace ws
