/* Gram matrices G = sum over samples of X X^T, float32, of a stack X [samples, size, positions]: only the half below the
 * diagonal is computed, and no copy of X is made where its rows are short. Tiles of G are summed in registers over as
 * much of X as stays in the cache. */

#include <stdlib.h>
#include <string.h>

#include "vectors.h"

/* Rows and columns of a tile where X is read row by row; rows and vectors of columns where it is read column by column.
 * AVX-512 has 32 registers, AVX 16. */
enum { TILE = LANES == 16 ? 5 : 3, HIGH = 6, WIDE = LANES == 16 ? 4 : 2 };

/* Elements of X that a tile sums over before it leaves the registers, and those that stay in the cache. */
enum { DEEP = 1024, CACHED = 1 << 17, GROUPS = 16 };

/* G[i.., j..] += X[i..] Z[j..]^T for a tile, over `samples` matrices whose rows are `pitch` apart, and columns 0..count.
 * Rows beyond the last are computed as the last and not written. */
static inline void rows_tile(const float *x, const float *z, float *gram, Size i, Size j, Size rows, Size columns,
                             Size samples, Size pitch, Size count) {
  Vector sum[TILE][TILE] = {{{0}}};
  for (Size s = 0; s < samples; s++) {
    const float *left[TILE], *right[TILE];
    for (int t = 0; t < TILE; t++) left[t] = x + (s * rows + least(i + t, rows - 1)) * pitch;
    for (int t = 0; t < TILE; t++) right[t] = z + (s * columns + least(j + t, columns - 1)) * pitch;
    for (Size p = 0; p < count; p += LANES) {
      Vector part[TILE];
      for (int t = 0; t < TILE; t++) part[t] = *(const Vector *)(right[t] + p);
      for (int t = 0; t < TILE; t++) {
        const Vector now = *(const Vector *)(left[t] + p);
        for (int u = 0; u < TILE; u++) sum[t][u] += now * part[u];
      }
    }
  }
  for (int t = 0; t < TILE && i + t < rows; t++)
    for (int u = 0; u < TILE && j + u < columns; u++) gram[(i + t) * columns + j + u] += total(sum[t][u]);
}

/* Adds the groups' sums in their order, whatever thread had them. */
static void add_up(const float *parts, float *gram, Size groups, Size elements) {
  memset(gram, 0, elements * sizeof(float));
  for (Size group = 0; group < groups; group++)
    for (Size e = 0; e < elements; e++) gram[e] += parts[group * elements + e];
}

static void fill_upper(float *gram, Size size) {
  for (Size i = 0; i < size; i++)
    for (Size j = i + 1; j < size; j++) gram[i * size + j] = gram[j * size + i];
}

/* The sum of X Z^T for X [samples, rows, positions] and Z [samples, columns, positions]; where both are one, the half
 * below the diagonal alone. Positions are a multiple of LANES. */
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

static inline __attribute__((always_inline)) void columns_tile(const float *x, float *gram, Size i, Size j, Size size,
                                                               Size count, const int vectors) {
  Vector sum[HIGH][WIDE] = {{{0}}};
  Size rows[HIGH];
  for (int t = 0; t < HIGH; t++) rows[t] = least(i + t, size - 1);
  for (Size n = 0; n < count; n++, x += size) {
    Vector part[WIDE];
    for (int v = 0; v < vectors; v++) part[v] = *(const Vector *)(x + j + v * LANES);
    for (int t = 0; t < HIGH; t++)
      for (int v = 0; v < vectors; v++) sum[t][v] += x[rows[t]] * part[v];
  }
  for (int t = 0; t < HIGH && i + t < size; t++)
    for (int v = 0; v < vectors; v++) *(Vector *)(gram + (i + t) * size + j + v * LANES) += sum[t][v];
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
      for (Size i = 0; i < size; i += HIGH)
        for (Size j = 0; j < least(size, i + HIGH); j += WIDE * LANES) {
          const Size vectors = least(WIDE, (size - j) / LANES);
          if (vectors == 4) columns_tile(from, sums, i, j, size, now, WIDE);
          else if (vectors == 3) columns_tile(from, sums, i, j, size, now, WIDE < 3 ? WIDE : 3);
          else if (vectors == 2) columns_tile(from, sums, i, j, size, now, 2);
          else columns_tile(from, sums, i, j, size, now, 1);
        }
    }
  add_up(parts, gram, groups, size * size);
  fill_upper(gram, size);
  free(parts);
}
