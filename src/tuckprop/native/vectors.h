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

/* Halves of a vector are added until four numbers are left. */
typedef float Half __attribute__((vector_size(2 * LANES), aligned(4), may_alias));
typedef float Quarter __attribute__((vector_size(16), aligned(4), may_alias));

static inline float total(Vector sum) {
  const float *parts = (const float *)&sum;
  Quarter left = *(const Quarter *)parts;
  if (LANES == 16) {
    const Half half = *(const Half *)parts + *(const Half *)(parts + LANES / 2);
    const float *rest = (const float *)&half;
    left = *(const Quarter *)rest + *(const Quarter *)(rest + 4);
  } else if (LANES == 8) left += *(const Quarter *)(parts + 4);
  return (left[0] + left[2]) + (left[1] + left[3]);
}

typedef int32_t Places __attribute__((vector_size(4 * LANES)));

/* By each place, an element of a, or, from LANES on, of b. */
static inline __attribute__((always_inline)) Vector picked(Vector a, Vector b, Places places) {
#ifdef __clang__
  Vector result;
#pragma unroll
  for (int l = 0; l < LANES; l++) result[l] = places[l] < LANES ? a[places[l]] : b[places[l] - LANES];
  return result;
#else
  return __builtin_shuffle(a, b, places);
#endif
}

/* One of the exchanges that a transpose is made of: of blocks of `step` rows and columns. */
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
      rows[i] = picked(a, b, low), rows[i + step] = picked(a, b, high);
    }
}

/* The transpose of LANES vectors, in place. */
static inline __attribute__((always_inline)) void transpose(Vector *rows) {
  exchange(rows, 1), exchange(rows, 2);
  if (LANES > 4) exchange(rows, 4);
  if (LANES > 8) exchange(rows, 8);
}

#endif
