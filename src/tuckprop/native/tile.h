/* The innermost of all products of matrices: a tile of the result is summed in registers. */

#ifndef TUCKPROP_TILE_H
#define TUCKPROP_TILE_H

#include "vectors.h"

/* Rows of a tile, vectors of its columns, and those columns. AVX-512 has 32 registers, AVX 16. */
enum { HIGH = 6, WIDE = LANES == 16 ? 4 : 2, GROUP = WIDE * LANES };

/* What will be read soon, of rows that lie too far apart for the processor to foresee it: `lines` lines of a cache from
 * `from` on, and as many `step` further on, and so forth. */
typedef struct {
  const float *from;
  Size step, lines;
} Ahead;

/* Floats of a line of a cache, and lines of a group of columns. */
enum { LINE = 16, LINES = (GROUP + LINE - 1) / LINE };

static const Ahead NOTHING = {0};

/* sum[t][v] += left[t][n] right[n][v] over n, for `high` rows and `wide` vectors of columns; what belongs to n + 1 lies
 * `left_step` and `right_step` after what belongs to n. Meanwhile what is `ahead` is fetched into the second cache. */
static inline __attribute__((always_inline)) void add_products(const float *const *left, Size left_step,
                                                               const float *right, Size right_step, Size count,
                                                               Vector (*sum)[WIDE], Ahead ahead, const int high,
                                                               const int wide) {
  for (Size n = 0; n < count; n++, right += right_step) {
    for (Size l = 0; l < ahead.lines; l++) __builtin_prefetch(ahead.from + n * ahead.step + l * LINE, 0, 2);
    Vector part[WIDE];
    for (int v = 0; v < wide; v++) part[v] = *(const Vector *)(right + v * LANES);
    for (int t = 0; t < high; t++)
      for (int v = 0; v < wide; v++) sum[t][v] += left[t][n * left_step] * part[v];
  }
}

/* Calls function(height, ...) so that the compiler knows the height, from 1 to HIGH, and unrolls by it. */
#define AT_HEIGHT(height, function, ...)       \
  switch (height) {                            \
    case 1: function(1, __VA_ARGS__); break;   \
    case 2: function(2, __VA_ARGS__); break;   \
    case 3: function(3, __VA_ARGS__); break;   \
    case 4: function(4, __VA_ARGS__); break;   \
    case 5: function(5, __VA_ARGS__); break;   \
    default: function(HIGH, __VA_ARGS__);      \
  }

#endif
