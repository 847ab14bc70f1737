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

/* The transpose of LANES vectors, in place. */
typedef int32_t Places __attribute__((vector_size(4 * LANES)));

static inline __attribute__((always_inline)) void exchange(Vector *rows, const int step) {
  Places low, high;
#pragma GCC unroll 16
  for (int l = 0; l < LANES; l++) {
    low[l] = l & step ? LANES + l - step : l;
    high[l] = l & step ? LANES + l : l + step;
  }
#pragma GCC unroll 16
  for (int i = 0; i < LANES; i++)
    if (!(i & step)) {
      const Vector a = rows[i], b = rows[i + step];
      rows[i] = __builtin_shuffle(a, b, low), rows[i + step] = __builtin_shuffle(a, b, high);
    }
}

static inline __attribute__((always_inline)) void transpose(Vector *rows) {
  exchange(rows, 1), exchange(rows, 2);
  if (LANES > 4) exchange(rows, 4);
  if (LANES > 8) exchange(rows, 8);
}

#endif
