/* Gram matrices G = sum over samples of X X^T, float32, of a stack X [samples, size, positions]: only the half below the
 * diagonal is computed. Tiles of G are summed in registers over as much of X as stays in the cache; X is read where it is,
 * or, where G is large, from copies of its columns in panels. */

#include <stdlib.h>
#include <string.h>

#include "tile.h"

/* Rows and columns of a tile where X is read row by row. */
enum { TILE = LANES == 16 ? 5 : 3 };

/* Elements of X that a tile sums over before it leaves the registers, and those that stay in the cache. */
enum { DEEP = 1024, CACHED = 1 << 17, GROUPS = 16 };

/* Rows and columns of a panel, and rows of it that a thread fills. */
enum { PANEL = 128, PIECE = 32 };

/* sum[t][u] += left[t] right[u] over LANES elements from `from` on, of which the first `known` count as zeros. */
static inline __attribute__((always_inline)) void add_outer(const float *const *left, const float *const *right,
                                                            Size from, Size known, Vector (*sum)[TILE]) {
  Vector part[TILE];
  for (int t = 0; t < TILE; t++) {
    part[t] = *(const Vector *)(right[t] + from);
    for (Size l = 0; l < known; l++) part[t][l] = 0;
  }
  for (int t = 0; t < TILE; t++) {
    const Vector now = *(const Vector *)(left[t] + from);
    for (int u = 0; u < TILE; u++) sum[t][u] += now * part[u];
  }
}

/* G[i.., j..] += X[i..] Z[j..]^T for a tile, over `samples` matrices whose rows are `pitch` apart, at least LANES,
 * and columns 0..count. Rows beyond the last are computed as the last and not written. */
static inline void rows_tile(const float *x, const float *z, float *gram, Size i, Size j, Size rows, Size columns,
                             Size samples, Size pitch, Size count) {
  Vector sum[TILE][TILE] = {{{0}}};
  for (Size s = 0; s < samples; s++) {
    const float *left[TILE], *right[TILE];
    for (int t = 0; t < TILE; t++) left[t] = x + (s * rows + least(i + t, rows - 1)) * pitch;
    for (int t = 0; t < TILE; t++) right[t] = z + (s * columns + least(j + t, columns - 1)) * pitch;
    Size p = 0;
    for (; p + LANES <= count; p += LANES) add_outer(left, right, p, 0, sum);
    /* What does not fill a vector is read with what comes before it. */
    if (p < count) add_outer(left, right, count - LANES, p + LANES - count, sum);
  }
  for (int t = 0; t < TILE && i + t < rows; t++)
    for (int u = 0; u < TILE && j + u < columns; u++) gram[(i + t) * columns + j + u] += total(sum[t][u]);
}

/* Adds the groups' sums in their order, whatever thread had them. */
static void add_up(const float *parts, float *gram, Size groups, Size elements) {
#pragma omp parallel for schedule(static)
  for (Size start = 0; start < elements; start += DEEP) {
    const Size count = least(DEEP, elements - start);
    memcpy(gram + start, parts + start, count * sizeof(float));
    for (Size group = 1; group < groups; group++)
      for (Size e = start; e < start + count; e++) gram[e] += parts[group * elements + e];
  }
}

/* Square by square, as a column of them stays in the cache. */
static void fill_upper(float *gram, Size size) {
#pragma omp parallel for schedule(static, 1)
  for (Size i = 0; i < size; i += LANES)
    for (Size j = i; j < size; j += LANES)
      for (Size r = j; r < least(j + LANES, size); r++)
        for (Size c = i; c < least(i + LANES, r); c++) gram[c * size + r] = gram[r * size + c];
}

/* The sum of X Z^T for X [samples, rows, positions] and Z [samples, columns, positions]; where both are one, the half
 * below the diagonal alone. There are at least LANES positions. */
static void sum_rows(const float *x, const float *z, float *gram, Size samples, Size rows, Size columns,
                     Size positions) {
  const Size deep = least(positions, DEEP), pieces = (positions + deep - 1) / deep;
  const Size together = most(1, least(DEEP / deep, CACHED / (most(rows, columns) * deep)));
  const Size batches = (samples + together - 1) / together, blocks = batches * pieces, groups = least(blocks, GROUPS);
  float *parts = calloc(groups * rows * columns, sizeof(float));
#pragma omp parallel for schedule(static)
  for (Size group = 0; group < groups; group++)
    for (Size block = group * blocks / groups; block < (group + 1) * blocks / groups; block++) {
      const Size first = block / pieces * together, start = block % pieces * deep;
      const Size now = least(together, samples - first), count = least(deep, positions - start);
      const float *left = x + first * rows * positions + start, *right = z + first * columns * positions + start;
      for (Size i = 0; i < rows; i += TILE)
        for (Size j = 0; j < (x == z ? i + 1 : columns); j += TILE)
          rows_tile(left, right, parts + group * rows * columns, i, j, rows, columns, now, positions, count);
    }
  add_up(parts, gram, groups, rows * columns);
  free(parts);
}

void gram_rows(const float *x, float *gram, Size samples, Size size, Size positions) {
  sum_rows(x, x, gram, samples, size, size, positions);
  fill_upper(gram, size);
}

void cross_rows(const float *x, const float *z, float *sum, Size samples, Size rows, Size columns, Size positions) {
  sum_rows(x, z, sum, samples, rows, columns, positions);
}

/* Copies columns j.. of rows first..first + count to a panel [count, GROUP], from X [rows, size] or, with more than one
 * position, from the transposes of matrices [size, positions]. Columns beyond the last are zeros. */
static void pack(const float *x, float *panel, Size first, Size count, Size j, Size size, Size positions) {
  const Size columns = least(GROUP, size - j);
  if (columns < GROUP) memset(panel, 0, count * GROUP * sizeof(float));
  if (positions == 1) {
    for (Size n = 0; n < count; n++) memcpy(panel + n * GROUP, x + (first + n) * size + j, columns * sizeof(float));
    return;
  }
  for (Size n = 0, now; n < count; n += now) {
    const Size sample = (first + n) / positions, start = (first + n) % positions;
    const float *from = x + (sample * size + j) * positions + start;
    float *to = panel + n * GROUP;
    now = least(LANES, least(count - n, positions - start));
    /* With a constant for the count the loop is unrolled. */
    if (now == LANES)
      for (Size c = 0; c < columns; c++)
        for (Size p = 0; p < LANES; p++) to[p * GROUP + c] = from[c * positions + p];
    else
      for (Size c = 0; c < columns; c++)
        for (Size p = 0; p < now; p++) to[p * GROUP + c] = from[c * positions + p];
  }
}

/* G[i.., j..] += sum over n of left[n, i..] right[n, j..] for HIGH rows and `vectors` vectors of columns; what belongs to
 * n + 1 lies `step` after n. */
static inline __attribute__((always_inline)) void columns_tile(const float *const *left, const float *right, Size step,
                                                               float *gram, Size pitch, Size rows, Size columns,
                                                               Size count, const int vectors) {
  Vector sum[HIGH][WIDE] = {{{0}}};
  add_products(left, step, right, step, count, sum, NOTHING, HIGH, vectors);
  for (int t = 0; t < rows; t++) {
    float *to = gram + t * pitch;
    for (int v = 0; v < vectors; v++)
      if ((v + 1) * LANES <= columns)
        *(Vector *)(to + v * LANES) += sum[t][v];
      else
        for (Size c = v * LANES; c < columns; c++) to[c] += sum[t][v][c - v * LANES];
  }
}

/* Rows i.. of G += X^T X, up to the diagonal, for `count` rows of X, `step` apart, whose groups of GROUP columns are
 * GROUP * `jump` apart. */
static inline __attribute__((always_inline)) void add_columns(const float *x, Size step, Size jump, float *gram, Size i,
                                                              Size size, Size count) {
  const float *left[HIGH];
  for (int t = 0; t < HIGH; t++) {
    const Size row = least(i + t, size - 1);
    left[t] = x + row / GROUP * GROUP * jump + row % GROUP;
  }
  const Size rows = least(HIGH, size - i), end = i + rows;
  for (Size j = 0; j < end; j += GROUP) {
    const Size columns = least(GROUP, end - j);
    const float *right = x + j * jump;
    float *to = gram + i * size + j;
    switch ((columns + LANES - 1) / LANES) {
      case 1: columns_tile(left, right, step, to, size, rows, columns, count, 1); break;
      case 2: columns_tile(left, right, step, to, size, rows, columns, count, 2); break;
      case 3: columns_tile(left, right, step, to, size, rows, columns, count, WIDE < 3 ? WIDE : 3); break;
      default: columns_tile(left, right, step, to, size, rows, columns, count, WIDE);
    }
  }
}

/* G = sum over samples of X X^T for X [samples, size, positions]; with one position, X^T X for X [samples, size]. */
void gram_panels(const float *x, float *gram, Size samples, Size size, Size positions) {
  const Size total = samples * positions, groups = (size + GROUP - 1) / GROUP, pieces = PANEL / PIECE;
  float *panels = malloc(groups * GROUP * PANEL * sizeof(float));
  memset(gram, 0, size * size * sizeof(float));
#pragma omp parallel
  for (Size first = 0; first < total; first += PANEL) {
    const Size count = least(PANEL, total - first);
#pragma omp for schedule(static)
    for (Size unit = 0; unit < groups * pieces; unit++) {
      const Size j = unit / pieces * GROUP, start = unit % pieces * PIECE;
      if (start < count)
        pack(x, panels + j * count + start * GROUP, first + start, least(PIECE, count - start), j, size, positions);
    }
#pragma omp for schedule(static, 1)
    for (Size i = 0; i < size; i += HIGH) add_columns(panels, GROUP, count, gram, i, size, count);
  }
  fill_upper(gram, size);
  free(panels);
}

/* G = X^T X for X [count, size], size a multiple of LANES. */
void gram_columns(const float *x, float *gram, Size count, Size size) {
  const Size deep = most(16, least(DEEP, CACHED / size)), blocks = (count + deep - 1) / deep;
  const Size groups = least(blocks, GROUPS);
  float *parts = calloc(groups * size * size, sizeof(float));
#pragma omp parallel for schedule(static)
  for (Size group = 0; group < groups; group++)
    for (Size block = group * blocks / groups; block < (group + 1) * blocks / groups; block++) {
      const float *from = x + block * deep * size;
      const Size now = least(deep, count - block * deep);
      float *sums = parts + group * size * size;
      for (Size i = 0; i < size; i += HIGH) add_columns(from, size, 1, sums, i, size, now);
    }
  add_up(parts, gram, groups, size * size);
  fill_upper(gram, size);
  free(parts);
}
