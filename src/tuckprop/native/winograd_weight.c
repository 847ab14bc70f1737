/* The gradient of the taps of 3 x 3 convolutions at stride 1, float32, by Winograd's algorithm (see winograd.c), of which
 * every step is transposed: tiles of 4 x 4 inputs and of 2 x 2 gradients are transformed, multiplied element by element
 * and summed over all tiles in 16 products of matrices, and the sums are transformed into taps: 16 multiplications where
 * there would be 36.
 *
 * The transformed tiles are V [16][tiles][inputs] and D [16][tiles][outputs], with columns padded to vectors. Where they
 * are fewer than the products, all are computed first. Else products are summed over parts of the tiles: by groups, which
 * have products of their own, or, where these are large, by rounds. Every sum has one order, whatever the number of threads. */

#include "winograd.h"

/* Tiles of a round, and those that one thread transforms at a time; elements of a block of products. */
enum { ROUND = 256, CHUNK = 64, BLOCK = PARTS * HIGH * GROUP };

/* Blocks of inputs of a panel. */
enum { PER_PANEL = (GROUP + HIGH - 1) / HIGH };

/* Groups with products of their own, at most and at least, and elements of the products of all of them. */
enum { GROUPS = 16, FEWEST = 4, MEMORY = 1 << 21 };

/* A g A^T for one tile of LANES channels, whose columns are `pitch` apart and rows `line`. */
static inline void gradient_transformed(const float *g, Size pitch, Size line, float *to, Size step) {
  Vector half[SIDE][2];
  for (int j = 0; j < 2; j++, g += pitch) {
    const Vector a = *(const Vector *)g, b = *(const Vector *)(g + line);
    half[0][j] = a, half[1][j] = a + b, half[2][j] = a - b, half[3][j] = -b;
  }
  for (int i = 0; i < SIDE; i++, to += SIDE * step) {
    const Vector a = half[i][0], b = half[i][1];
    *(Vector *)to = a, *(Vector *)(to + step) = a + b;
    *(Vector *)(to + 2 * step) = a - b, *(Vector *)(to + 3 * step) = -b;
  }
}

/* D of the rows of tiles `first` .. `last`, counted over all images. The gradient is the input of `g`, without padding. */
static void gradients_of_rows(const Layer *g, Size first, Size last, float *lines, float *to, Layout at) {
  const Size pitch = g->in_columns, line = padded(g) * pitch;
  while (first < last) {
    const Size row = first % g->down, rows = least(g->down - row, last - first);
    lay_out(g, first / g->down, 2 * row, 2 * (row + rows), lines);
    for (Size t = 0; t < rows * g->across; t++, to += at.tile)
      for (Size c = 0; c < pitch; c += LANES)
        gradient_transformed(lines + t / g->across * 2 * line + t % g->across * 2 * pitch + c, pitch, line,
                             to + c / GROUP * at.panel + c % GROUP, at.part);
    first += rows;
  }
}

/* sums[e] += V[e]^T D[e] over `count` tiles, for HIGH inputs and `wide` vectors of outputs; e is one of the 16 parts. */
static inline __attribute__((always_inline)) void add_block(const float *const *v, Layout v_at, const float *d,
                                                            Layout d_at, Size count, float *sums, const int wide) {
  for (int e = 0; e < PARTS; e++) {
    Vector sum[HIGH][WIDE] = {{{0}}};
    const float *left[HIGH];
    for (int t = 0; t < HIGH; t++) left[t] = v[t] + e * v_at.part;
    add_products(left, v_at.tile, d + e * d_at.part, d_at.tile, count, sum, NOTHING, HIGH, wide);
    for (int t = 0; t < HIGH; t++)
      for (int c = 0; c < wide; c++) *(Vector *)(sums + (e * HIGH + t) * GROUP + c * LANES) += sum[t][c];
  }
}

/* G^T u G for the sums u of one input and LANES outputs, to nine taps. */
static inline void taps_of(const float *sums, Vector *taps) {
  Vector half[3][SIDE];
  for (int j = 0; j < SIDE; j++) {
    Vector u[SIDE];
    for (int i = 0; i < SIDE; i++) u[i] = *(const Vector *)(sums + (i * SIDE + j) * HIGH * GROUP);
    const Vector both = 0.5f * (u[1] + u[2]);
    half[0][j] = u[0] + both, half[1][j] = 0.5f * (u[1] - u[2]), half[2][j] = both + u[3];
  }
  for (int i = 0; i < 3; i++, taps += 3) {
    const Vector *u = half[i], both = 0.5f * (u[1] + u[2]);
    taps[0] = u[0] + both, taps[1] = 0.5f * (u[1] - u[2]), taps[2] = both + u[3];
  }
}

/* The taps of `rows` inputs from i on and `columns` outputs of a panel, to out [outputs of the panel][inputs][9]. */
static void write_taps(const float *sums, float *out, Size inputs, Size i, Size rows, Size columns) {
  float taps[GROUP][HIGH * 9];
  for (Size t = 0; t < rows; t++)
    for (Size c = 0; c < columns; c += LANES) {
      Vector some[9];
      taps_of(sums + t * GROUP + c, some);
      for (int k = 0; k < 9; k++)
        for (int l = 0; l < LANES; l++) taps[c + l][t * 9 + k] = some[k][l];
    }
  for (Size c = 0; c < columns; c++) memcpy(out + (c * inputs + i) * 9, taps[c], rows * 9 * sizeof(float));
}

/* A convolution, of whose gradient of the output `g` makes an input without padding; rows of tiles, tiles of a row, and
 * blocks of products: HIGH inputs of one panel and one panel of outputs. */
typedef struct {
  Layer l, g;
  Size rows, across, high, blocks;
} Gradient;

/* Transformed tiles of some rows, V and D in panels, and memory for the rows of an image. */
typedef struct {
  float *v, *d;
  Layout v_at, d_at;
} Tiles;

typedef struct {
  float *before, *after;
} Lines;

static Layout places_of(Size columns, Size tiles) {
  const Size part = spread(tiles * least(GROUP, columns));
  return (Layout){part, least(GROUP, columns), PARTS * part};
}

static Tiles tiles_for(const Gradient *q, Size rows) {
  const Size v_columns = q->l.in_columns, d_columns = q->g.in_columns, count = rows * q->across;
  const Layout v_at = places_of(v_columns, count), d_at = places_of(d_columns, count);
  return (Tiles){floats(up(v_columns, GROUP) * v_at.panel), floats(up(d_columns, GROUP) * d_at.panel), v_at, d_at};
}

static Lines lines_for(const Gradient *q, Size rows) {
  const Size lines = 2 * least(rows, q->l.down), line = padded(&q->l) * q->l.in_columns;
  return (Lines){calloc((lines + 2) * line, sizeof(float)), calloc(lines * padded(&q->g) * q->g.in_columns, sizeof(float))};
}

static void transform(const Gradient *q, Size first, Size last, Lines lines, Tiles tiles, Size row) {
  const Size place = row * q->across;
  tiles_of_rows(&q->l, first, last, lines.before, tiles.v + place * tiles.v_at.tile, tiles.v_at);
  gradients_of_rows(&q->g, first, last, lines.after, tiles.d + place * tiles.d_at.tile, tiles.d_at);
}

/* The first input of a block, and the first that is none of its own. */
static inline Size first_of(const Gradient *q, Size block) {
  return block % q->high / PER_PANEL * GROUP + block % q->high % PER_PANEL * HIGH;
}
static inline Size end_of(const Gradient *q, Size block) {
  const Size i = first_of(q, block);
  return least(q->l.inputs, least(i + HIGH, i / GROUP * GROUP + GROUP));
}

/* Adds the products of so many rows of tiles for one block. */
static void multiply(const Gradient *q, Tiles tiles, Size rows, Size block, float *sums) {
  const Size i = first_of(q, block), end = end_of(q, block), panel = block / q->high, count = rows * q->across;
  const float *left[HIGH], *right = tiles.d + panel * tiles.d_at.panel;
  for (int t = 0; t < HIGH; t++) left[t] = tiles.v + i / GROUP * tiles.v_at.panel + least(i + t, end - 1) % GROUP;
  switch (least(GROUP, q->g.in_columns - panel * GROUP) / LANES) {
    case 1: add_block(left, tiles.v_at, right, tiles.d_at, count, sums, 1); break;
    case 2: add_block(left, tiles.v_at, right, tiles.d_at, count, sums, 2); break;
    case 3: add_block(left, tiles.v_at, right, tiles.d_at, count, sums, WIDE < 3 ? WIDE : 3); break;
    default: add_block(left, tiles.v_at, right, tiles.d_at, count, sums, WIDE);
  }
}

static void finish(const Gradient *q, Size block, const float *sums, float *out) {
  const Size i = first_of(q, block), panel = block / q->high * GROUP, inputs = q->l.inputs;
  write_taps(sums, out + panel * inputs * 9, inputs, i, end_of(q, block) - i, least(GROUP, q->g.inputs - panel));
}

/* Groups of rows of tiles, each with products of its own: nobody waits but once. */
static void by_groups(const Gradient *q, Size groups, float *out) {
  const Size all = q->blocks * BLOCK, some = up(CHUNK, q->across);
  float *parts = calloc(groups * all, sizeof(float));
#pragma omp parallel
  {
    const Tiles tiles = tiles_for(q, some);
    const Lines lines = lines_for(q, some);
#pragma omp for schedule(static)
    for (Size group = 0; group < groups; group++) {
      const Size end = (group + 1) * q->rows / groups;
      for (Size first = group * q->rows / groups; first < end; first += some) {
        const Size rows = least(some, end - first);
        transform(q, first, first + rows, lines, tiles, 0);
        for (Size block = 0; block < q->blocks; block++)
          multiply(q, tiles, rows, block, parts + group * all + block * BLOCK);
      }
    }
#pragma omp for schedule(static)
    for (Size block = 0; block < q->blocks; block++) {
      float *sums = parts + block * BLOCK;
      for (Size group = 1; group < groups; group++)
        for (Size e = 0; e < BLOCK; e++) sums[e] += sums[group * all + e];
      finish(q, block, sums, out);
    }
    free(tiles.v), free(tiles.d), free(lines.before), free(lines.after);
  }
  free(parts);
}

/* Rounds, in each of which all transform tiles that all multiply. */
static void by_rounds(const Gradient *q, Size round, float *out) {
  const Size piece = up(CHUNK, q->across);
  const Tiles tiles = tiles_for(q, round);
  const int once = round >= q->rows;
  float *sums = once ? NULL : calloc(q->blocks * BLOCK, sizeof(float));
#pragma omp parallel
  {
    const Lines lines = lines_for(q, piece);
    float *own = once ? floats(BLOCK) : NULL;
    for (Size first = 0; first < q->rows; first += round) {
      const Size rows = least(round, q->rows - first);
#pragma omp for schedule(static)
      for (Size row = 0; row < rows; row += piece)
        transform(q, first + row, first + least(rows, row + piece), lines, tiles, row);
#pragma omp for schedule(static)
      for (Size block = 0; block < q->blocks; block++) {
        float *to = once ? memset(own, 0, BLOCK * sizeof(float)) : sums + block * BLOCK;
        multiply(q, tiles, rows, block, to);
        if (first + rows == q->rows) finish(q, block, to, out);
      }
    }
    free(lines.before), free(lines.after), free(own);
  }
  free(tiles.v), free(tiles.d), free(sums);
}

/* out [outputs, inputs, 3, 3] from x [samples, inputs, h, w] and grad [samples, outputs, h + 2 pad_h - 2, ..]. */
void winograd_weight(const float *x, const float *grad, float *out, Size samples, Size inputs, Size outputs, Size h,
                     Size w, Size pad_h, Size pad_w) {
  const Size high = inputs / GROUP * PER_PANEL + up(inputs % GROUP, HIGH);
  Gradient q = {.high = high, .blocks = up(outputs, GROUP) * high};
  q.l = (Layer){.x = x, .samples = samples, .inputs = inputs, .h = h, .w = w, .pad_h = pad_h, .pad_w = pad_w};
  q.g = (Layer){.x = grad, .samples = samples, .inputs = outputs, .h = h + 2 * pad_h - 2, .w = w + 2 * pad_w - 2};
  q.l.down = q.g.down = up(q.g.h, 2), q.l.across = q.g.across = q.across = up(q.g.w, 2);
  q.l.in_columns = up(inputs, LANES) * LANES, q.g.in_columns = up(outputs, LANES) * LANES;
  q.rows = samples * q.l.down;
  const Size groups = least(least(GROUPS, q.rows), MEMORY / (q.blocks * BLOCK));
  const int few = q.rows * q.across * (q.l.in_columns + q.g.in_columns) <= q.l.in_columns * q.g.in_columns;
  if (groups >= FEWEST && !few) by_groups(&q, groups, out);
  else by_rounds(&q, few ? q.rows : least(q.rows, up(ROUND, q.across)), out);
}
