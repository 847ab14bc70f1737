/* Numbers in bfloat16, each the upper half of a float. */

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

#endif
