/* The innermost of all products of matrices: a tile of the result is summed in registers. */

#ifndef TUCKPROP_TILE_H
#define TUCKPROP_TILE_H

#include "vectors.h"

/* Rows of a tile, vectors of its columns, and those columns. AVX-512 has 32 registers, AVX 16. */
enum { HIGH = 6, WIDE = LANES == 16 ? 4 : 2, GROUP = WIDE * LANES };

/* sum[t][v] += left[t][n] right[n][v] over n, for `high` rows and `wide` vectors of columns; what belongs to n + 1 lies
 * `left_step` and `right_step` after what belongs to n. */
static inline __attribute__((always_inline)) void add_products(const float *const *left, Size left_step,
                                                               const float *right, Size right_step, Size count,
                                                               Vector (*sum)[WIDE], const int high, const int wide) {
  for (Size n = 0; n < count; n++, right += right_step) {
    Vector part[WIDE];
    for (int v = 0; v < wide; v++) part[v] = *(const Vector *)(right + v * LANES);
    for (int t = 0; t < high; t++)
      for (int v = 0; v < wide; v++) sum[t][v] += left[t][n * left_step] * part[v];
  }
}

#endif
