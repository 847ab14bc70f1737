/* What the kernels share: the vectors of this processor, and small arithmetic. */

#ifndef TUCKPROP_VECTORS_H
#define TUCKPROP_VECTORS_H

#include <stdint.h>

typedef int64_t Size;

/* Floats of one register. Wider vectors than those of the processor would go through memory. */
#if defined(__AVX512F__)
enum { LANES = 16 };
#elif defined(__AVX__)
enum { LANES = 8 };
#else
enum { LANES = 4 };
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline Size least(Size a, Size b) { return a < b ? a : b; }
static inline Size most(Size a, Size b) { return a > b ? a : b; }
static inline Size up(Size a, Size b) { return a <= 0 ? 0 : (a + b - 1) / b; }

static inline float total(Vector sum) {
  float result = 0;
  for (int l = 0; l < LANES; l++) result += sum[l];
  return result;
}

#endif
