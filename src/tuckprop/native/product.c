/* Products of a matrix with a stack of matrices, of which one side is small: projections on a basis and their transposes.
 * All is float32, but for stacks that are read as bfloat16. A library's products reach a third of the speed of memory
 * here. Tiles of the result are summed in registers; what several tiles read, or what is not float32, is first copied to
 * where the cache holds it. */

#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "product.h"
#include "tile.h"

/* Rows of a tile of one vector. */
enum { TALL = 12 };

/* Rows of the matrix are cut into tiles of about the same height. */
static Size tiles_of(Size rows) { return (rows + HIGH - 1) / HIGH; }
static Size first_of(Size rows, Size tile) { return tile * rows / tiles_of(rows); }

/* What is added to a product: a number a row, and y times another one; y is not read where there is none. */
typedef struct {
  const float *bias, *scale;
} Added;

static Added from_row(Added added, Size row) {
  return (Added){added.bias ? added.bias + row : NULL, added.scale ? added.scale + row : NULL};
}

/* y = M x and what is added, for one tile: `high` rows of M, laid out [size, high], and `wide` vectors of columns. */
static inline __attribute__((always_inline)) void tile(const int high, const float *x, Size pitch, const float *m,
                                                       Size size, float *y, Size y_pitch, Added added,
                                                       Ahead ahead, const int wide) {
  Vector sum[HIGH][WIDE] = {{{0}}};
  if (added.bias)
    for (int t = 0; t < high; t++)
      for (int v = 0; v < wide; v++) sum[t][v] += added.bias[t];
  if (added.scale)
    for (int t = 0; t < high; t++)
      for (int v = 0; v < wide; v++) sum[t][v] += added.scale[t] * *(const Vector *)(y + t * y_pitch + v * LANES);
  const float *rows[HIGH];
  for (int t = 0; t < high; t++) {
    rows[t] = m + t;
    /* Where the next group of columns is written to. */
    if (wide == WIDE)
      for (int l = 0; l < LINES; l++) __builtin_prefetch(y + t * y_pitch + GROUP + l * LINE, 1);
  }
  add_products(rows, high, x, pitch, size, sum, ahead, high, wide);
  for (int t = 0; t < high; t++)
    for (int v = 0; v < wide; v++) *(Vector *)(y + t * y_pitch + v * LANES) = sum[t][v];
}

static inline __attribute__((always_inline)) void tile_of(const float *x, Size pitch, const float *m, Size size,
                                                          float *y, Size y_pitch, Added added, Ahead ahead, Size high,
                                                          const int wide) {
  AT_HEIGHT(high, tile, x, pitch, m, size, y, y_pitch, added, ahead, wide)
}

/* The same for `count` columns, of which the last ones do not fill a vector. What lies behind them in x, whose rows are
 * GROUP apart, are zeros. */
static void edge_of(const float *x, const float *m, Size size, float *y, Size y_pitch, Added added, Size high, Size count) {
  float edge[HIGH * GROUP] = {0};
  if (added.scale)
    for (Size t = 0; t < high; t++) memcpy(edge + t * GROUP, y + t * y_pitch, count * sizeof(float));
  for (Size p = 0; p < count; p += LANES) tile_of(x + p, GROUP, m, size, edge + p, GROUP, added, NOTHING, high, 1);
  for (Size t = 0; t < high; t++) memcpy(y + t * y_pitch, edge + t * GROUP, count * sizeof(float));
}

/* The sum of squares of `count` columns of x, whose rows are `pitch` apart. */
float squares(const float *x, Size pitch, Size rows, Size count) {
  Vector sum[WIDE] = {{0}};
  float rest = 0;
  for (Size i = 0; i < rows; i++, x += pitch) {
    Size p = 0;
    for (; p + GROUP <= count; p += GROUP)
      for (int v = 0; v < WIDE; v++) {
        const Vector now = *(const Vector *)(x + p + v * LANES);
        sum[v] += now * now;
      }
    for (; p + LANES <= count; p += LANES) sum[0] += *(const Vector *)(x + p) * *(const Vector *)(x + p);
    for (; p < count; p++) rest += x[p] * x[p];
  }
  for (int v = 1; v < WIDE; v++) sum[0] += sum[v];
  return rest + total(sum[0]);
}

/* In their order, whatever thread had them. */
static double sum_of(const float *parts, Size count) {
  double sum = 0;
  for (Size i = 0; i < count; i++) sum += parts[i];
  return sum;
}

/* So many elements of X from element `at` on, which is float32 or bfloat16, as float32. */
static inline void copy(float *to, const void *x, int halves, Size at, Size count) {
  if (halves) widen(to, (const Half16 *)x + at, count);
  else memcpy(to, (const float *)x + at, count * sizeof(float));
}

/* A part of a matrix, whose elements lie `row` and `column` apart. */
static void copy_part(float *to, Size to_row, const float *m, Size row, Size column, Size rows, Size columns) {
  for (Size i = 0; i < rows; i++, to += to_row, m += row)
    if (column == 1) memcpy(to, m, columns * sizeof(float));
    else
      for (Size k = 0; k < columns; k++) to[k] = m[k * column];
}

/* Y[s] = M X[s] + bias + scale Y[s], with a number a row or NULL for none, for X [samples, size, positions], in `halves`
 * or not, and M given as its transpose [size, rows], whose elements lie `m_row` and `m_column` apart. Returns the sum of
 * squares of X, if it `measures`: while the cache holds it, it costs little. */
double product_rows(const void *x, const float *m, Size m_row, Size m_column, float *y, const float *bias,
                    const float *scale, int halves, int measures, Size samples, Size size, Size rows, Size positions) {
  const Size tiles = tiles_of(rows), groups = (positions + GROUP - 1) / GROUP;
  float *tiled = malloc(size * rows * sizeof(float));
  for (Size t = 0; t < tiles; t++) {
    const Size first = first_of(rows, t), high = first_of(rows, t + 1) - first;
    copy_part(tiled + first * size, high, m + first * m_column, m_row, m_column, size, high);
  }
  const int copies = halves || positions % LANES || (tiles > 1 && positions > GROUP);
  float *energies = measures ? malloc(samples * groups * sizeof(float)) : NULL;
#pragma omp parallel
  {
    float *near = copies ? malloc(size * GROUP * sizeof(float)) : NULL;
#pragma omp for schedule(static)
    for (Size unit = 0; unit < samples * groups; unit++) {
      const Size s = unit / groups, start = unit % groups * GROUP, count = least(GROUP, positions - start);
      const Size next_s = (unit + 1) / groups, next_start = (unit + 1) % groups * GROUP;
      const Size at = s * size * positions + start, next_at = next_s * size * positions + next_start;
      const float *from = near, *next = (const float *)((const char *)x + next_at * (halves ? 2 : 4));
      const Size all = halves ? LINES / 2 : LINES;
      float *to = y + s * rows * positions + start;
      Size pitch = GROUP;
      if (halves || count % LANES || (tiles > 1 && positions > GROUP)) {
        const Size left = up(count, LANES) * LANES - count;
        for (Size i = 0; i < size; i++) {
          copy(near + i * GROUP, x, halves, at + i * positions, count);
          memset(near + i * GROUP + count, 0, left * sizeof(float));
        }
      } else from = (const float *)x + at, pitch = positions;
      if (measures) energies[unit] = squares(from, pitch, size, count);
      for (Size t = 0; t < tiles; t++) {
        const Size first = first_of(rows, t), high = first_of(rows, t + 1) - first;
        const float *part = tiled + first * size;
        const Added added = from_row((Added){bias, scale}, first);
        /* The tiles share in fetching the next group, so that memory is never asked for more than it can bring. */
        const Size line = t * all / tiles, lines = (t + 1) * all / tiles - line;
        const Ahead ahead = {next + line * LINE, halves ? positions / 2 : positions, lines};
        float *out = to + first * positions;
        if (count == GROUP) tile_of(from, pitch, part, size, out, positions, added, ahead, high, WIDE);
        else if (count % LANES) edge_of(from, part, size, out, positions, added, high, count);
        else
          for (Size p = 0; p < count; p += LANES)
            tile_of(from + p, pitch, part, size, out + p, positions, added, NOTHING, high, 1);
      }
    }
    free(near);
  }
  const double energy = measures ? sum_of(energies, samples * groups) : 0;
  free(tiled), free(energies);
  return energy;
}

/* y = x M for `high` rows of x, at most `most_high`, and `wide` vectors of columns, of which `columns` are written. */
static inline __attribute__((always_inline)) void columns_tile(const float *x, const float *m, float *y, Size size,
                                                               Size pitch, Size high, Size columns, Size y_pitch,
                                                               const int most_high, const int wide) {
  Vector sum[TALL][WIDE] = {{{0}}};
  const float *rows[TALL];
  for (int t = 0; t < most_high; t++) rows[t] = x + least(t, high - 1) * size;
  add_products(rows, 1, m, pitch, size, sum, NOTHING, most_high, wide);
  for (int t = 0; t < high; t++) memcpy(y + t * y_pitch, sum[t], columns * sizeof(float));
}

/* Y = X M for X [count, size], in `halves` or not, and M [size, columns], whose elements lie `m_row` and `m_column` apart.
 * Returns the sum of squares of X, if it `measures`. */
double product_columns(const void *x, const float *m, Size m_row, Size m_column, float *y, int halves, int measures,
                       Size count, Size size, Size columns) {
  const Size pitch = (columns + LANES - 1) / LANES * LANES, step = columns <= LANES ? TALL : HIGH;
  float *wide = calloc(size * pitch, sizeof(float));
  copy_part(wide, pitch, m, m_row, m_column, size, columns);
  const Size units = up(count, step);
  float *energies = measures ? malloc(units * sizeof(float)) : NULL;
#pragma omp parallel
  {
    float *near = halves ? malloc(step * size * sizeof(float)) : NULL;
#pragma omp for schedule(static)
    for (Size unit = 0; unit < units; unit++) {
      const Size row = unit * step, high = least(step, count - row);
      if (halves) widen(near, (const Half16 *)x + row * size, high * size);
      const float *from = halves ? near : (const float *)x + row * size;
      if (measures) energies[unit] = squares(from, 0, 1, high * size);
      for (Size c = 0; c < columns; c += GROUP) {
        const Size now = least(GROUP, columns - c), vectors = (now + LANES - 1) / LANES;
        const float *part = wide + c;
        float *to = y + row * columns + c;
        if (step == TALL) columns_tile(from, part, to, size, pitch, high, now, columns, TALL, 1);
        else if (vectors == 1) columns_tile(from, part, to, size, pitch, high, now, columns, HIGH, 1);
        else if (vectors == 2) columns_tile(from, part, to, size, pitch, high, now, columns, HIGH, 2);
        else if (vectors == 3) columns_tile(from, part, to, size, pitch, high, now, columns, HIGH, WIDE < 3 ? WIDE : 3);
        else columns_tile(from, part, to, size, pitch, high, now, columns, HIGH, WIDE);
      }
    }
    free(near);
  }
  const double energy = measures ? sum_of(energies, units) : 0;
  free(wide), free(energies);
  return energy;
}
