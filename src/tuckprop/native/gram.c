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

/* G[i.., j..] += X[i..] X[j..]^T for a tile, over `samples` matrices that are `stride` apart and columns 0..count. Rows
 * beyond the last are computed as the last and not written. */
static inline void rows_tile(const float *x, float *gram, Size i, Size j, Size size, Size samples, Size stride,
                             Size pitch, Size count) {
  Vector sum[TILE][TILE] = {{{0}}};
  for (Size s = 0; s < samples; s++) {
    const float *left[TILE], *right[TILE];
    for (int t = 0; t < TILE; t++) left[t] = x + s * stride + least(i + t, size - 1) * pitch;
    for (int t = 0; t < TILE; t++) right[t] = x + s * stride + least(j + t, size - 1) * pitch;
    for (Size p = 0; p < count; p += LANES) {
      Vector part[TILE];
      for (int t = 0; t < TILE; t++) part[t] = *(const Vector *)(right[t] + p);
      for (int t = 0; t < TILE; t++) {
        const Vector now = *(const Vector *)(left[t] + p);
        for (int u = 0; u < TILE; u++) sum[t][u] += now * part[u];
      }
    }
  }
  for (int t = 0; t < TILE && i + t < size; t++)
    for (int u = 0; u < TILE && j + u < size; u++) gram[(i + t) * size + j + u] += total(sum[t][u]);
}

/* Adds the groups' sums in their order, whatever thread had them, and fills the upper half. */
static void finish(const float *parts, float *gram, Size groups, Size size) {
  memset(gram, 0, size * size * sizeof(float));
  for (Size group = 0; group < groups; group++)
    for (Size e = 0; e < size * size; e++) gram[e] += parts[group * size * size + e];
  for (Size i = 0; i < size; i++)
    for (Size j = i + 1; j < size; j++) gram[i * size + j] = gram[j * size + i];
}

/* For positions that are a multiple of LANES. */
void gram_rows(const float *x, float *gram, Size samples, Size size, Size positions) {
  const Size deep = least(positions, DEEP), pieces = (positions + deep - 1) / deep;
  const Size together = most(1, least(DEEP / deep, CACHED / (size * deep)));
  const Size batches = (samples + together - 1) / together, blocks = batches * pieces, groups = least(blocks, GROUPS);
  float *parts = calloc(groups * size * size, sizeof(float));
#pragma omp parallel for schedule(static)
  for (Size group = 0; group < groups; group++)
    for (Size block = group * blocks / groups; block < (group + 1) * blocks / groups; block++) {
      const Size first = block / pieces * together, start = block % pieces * deep;
      const float *from = x + first * size * positions + start;
      const Size now = least(together, samples - first), count = least(deep, positions - start);
      for (Size i = 0; i < size; i += TILE)
        for (Size j = 0; j <= i; j += TILE)
          rows_tile(from, parts + group * size * size, i, j, size, now, size * positions, positions, count);
    }
  finish(parts, gram, groups, size);
  free(parts);
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
  finish(parts, gram, groups, size);
  free(parts);
}
