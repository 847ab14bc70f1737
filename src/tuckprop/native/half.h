/* Numbers in bfloat16, each the upper half of a float, and in float16. */

#ifndef TUCKPROP_HALF_H
#define TUCKPROP_HALF_H

#include <stdint.h>

typedef uint16_t Half16;

static inline float widened(Half16 half) {
  const union {
    uint32_t bits;
    float value;
  } whole = {(uint32_t)half << 16};
  return whole.value;
}

/* Of a float whose lower half is zero. */
static inline Half16 narrowed(float value) {
  const union {
    float value;
    uint32_t bits;
  } whole = {value};
  return (Half16)(whole.bits >> 16);
}

static inline void widen(float *to, const Half16 *from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] = widened(from[i]);
}

/* Of a number in float16: its bits in a float's places are too small by 2^112, but for those that are not finite. */
static inline float widened_float16(Half16 half) {
  const uint32_t places = (uint32_t)(half & 0x7fff) << 13;
  union {
    uint32_t bits;
    float value;
  } whole = {places};
  whole.value *= 0x1p112f;
  if (places >= 0x0f800000) whole.bits = places | 0x7f800000;
  whole.bits |= (uint32_t)(half & 0x8000) << 16;
  return whole.value;
}

static inline void widen_float16(float *to, const Half16 *from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] = widened_float16(from[i]);
}

#endif
