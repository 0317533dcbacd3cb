// What the CPU bodies share: regions of an instruction set, and types of few bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))

#if defined(__clang__)
#define FLEXJAX_TARGET_BEGIN(features) \
  _Pragma(FLEXJAX_STRING(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define FLEXJAX_TARGET_END _Pragma("clang attribute pop")
#else
#define FLEXJAX_TARGET_BEGIN(features) \
  _Pragma("GCC push_options") _Pragma(FLEXJAX_STRING(GCC target(features)))
#define FLEXJAX_TARGET_END _Pragma("GCC pop_options")
#endif
#define FLEXJAX_STRING(x) #x

namespace {

constexpr float kLog2E = 1.44269504f;

struct Bf16 {
  uint16_t bits;
};

struct Int8 {
  int8_t value;
};

struct Float8 {  // float8_e4m3fn
  uint8_t bits;
};

inline float ToFloat(Bf16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline float ToFloat(float x) { return x; }

INLINE void Narrow(float x, float* to) { *to = x; }
INLINE void Narrow(float x, Bf16* to) {  // To nearest, ties to even; NaN stays NaN.
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  to->bits = x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
INLINE void Narrow(float x, Float8* to) {  // The same; past the largest, 448, that.
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t sign = bits >> 31 << 7, size = bits & 0x7fffffff;
  const float magnitude = x < 0 ? -x : x;
  uint32_t code = 0x7f;  // NaN
  if (magnitude >= 448.0f)
    code = 0x7e;
  else if (magnitude >= 0x1p-6f)
    code = ((size + 0x7ffff + ((size >> 20) & 1)) >> 20) - (120 << 3);
  else if (x == x)  // Steps of 2**-9: adding 1.5 * 2**23 leaves their number in the low bits.
    code = (uint32_t)(magnitude * 0x1p9f + 12582912.0f - 12582912.0f);
  to->bits = (uint8_t)(sign | code);
}

}  // namespace
