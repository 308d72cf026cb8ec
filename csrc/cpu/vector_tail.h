// The end of a row without masked loads and stores: through a buffer of one vector.
#pragma once

#include "vector.h"

namespace ws {
namespace {

template <class T>
inline auto load_first(const T* p, int n) {
  T buffer[sizeof(T) == 8 ? kDoubles : kFloats] = {};
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T, class V>
inline void store_first(T* p, V v, int n) {
  T buffer[sizeof(T) == 8 ? kDoubles : kFloats];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

inline Float first(Float v, int n) {
  for (int i = n; i < kFloats; ++i) v[i] = 0;
  return v;
}
inline Double first(Double v, int n) {
  for (int i = n; i < kDoubles; ++i) v[i] = 0;
  return v;
}

}  // namespace
}  // namespace ws
