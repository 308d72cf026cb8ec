// The kernels of an instruction set, as the including file exports them under its own name.
#include "update.inl"

#define WS_BY_TYPES(ROWS)                                                  \
  {                                                                        \
      ROWS<double, double>,     ROWS<float, float>, ROWS<Half, Half>,      \
      ROWS<BFloat16, BFloat16>, ROWS<float, Half>,  ROWS<float, BFloat16>, \
  }
#define WS_CPU_KERNELS(NAME)                      \
  {                                               \
      NAME,                                       \
      WS_BY_TYPES(forward_rows),                  \
      WS_BY_TYPES(backward_rows),                 \
      WS_BY_TYPES(norms_rows),                    \
      {                                           \
          update_rows<double, double, double>,    \
          update_rows<float, float, float>,       \
          nullptr,                                \
          nullptr,                                \
          update_rows<float, Half, Half>,         \
          update_rows<float, BFloat16, BFloat16>, \
          update_rows<float, Half, float>,        \
          update_rows<float, BFloat16, float>,    \
      },                                          \
  }
