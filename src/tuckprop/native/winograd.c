/* Convolutions of 3 x 3 taps at stride 1, float32, by Winograd's F(2 x 2, 3 x 3) (Lavin and Gray, 2016, section 4.1):
 * tiles of 4 x 4 inputs, and the taps, are transformed by sums, multiplied element by element and summed over the
 * channels in 16 products of matrices, and the sums are transformed into tiles of 2 x 2 outputs: 16 multiplications
 * where there would be 36.
 *
 * The transformed tiles are V [16][tiles][inputs], the taps U [panels][16][inputs][outputs of a panel], both with
 * columns padded to vectors. Of U and V, the smaller is computed first, and the other piece by piece where the cache
 * holds it. */

#include <stdlib.h>
#include <string.h>

#include "winograd.h"

/* Tiles that are multiplied at a time. */
enum { CHUNK = 64 };

static inline Size width_of(const Layer *l, Size panel) { return least(GROUP, l->out_columns - panel); }

/* ---- Taps ---- */

static inline void taps_transformed(const Vector *taps, Vector *parts) {
  Vector half[SIDE][3];
  for (int j = 0; j < 3; j++) {
    const Vector a = taps[j], b = taps[3 + j], c = taps[6 + j];
    half[0][j] = a, half[1][j] = 0.5f * (a + c + b), half[2][j] = 0.5f * (a + c - b), half[3][j] = c;
  }
  for (int i = 0; i < SIDE; i++) {
    const Vector a = half[i][0], b = half[i][1], c = half[i][2];
    Vector *to = parts + i * SIDE;
    to[0] = a, to[1] = 0.5f * (a + c + b), to[2] = 0.5f * (a + c - b), to[3] = c;
  }
}

/* U of one panel. */
static void panel_taps(const Layer *l, Size panel, float *to) {
  const Size width = width_of(l, panel), step = spread(l->inputs * width);
  const float *end = l->weight + l->inputs * l->outputs * 9;
  for (Size c = 0; c < width; c += LANES)
    for (Size i = 0; i < l->inputs; i++) {
      const float *from = l->weight + i * l->in_step + (panel + c) * l->out_step;
      const Size count = least(LANES, l->outputs - panel - c);
      Vector taps[9], parts[PARTS];
      for (int first = 0; first < 9; first += LANES) {
        Vector block[LANES] = {{0}};
        const Size some = least(LANES, 9 - first);
        for (Size k = 0; k < count; k++) block[k] = load(from + k * l->out_step + first, some, end);
        transpose(block);
        for (Size t = 0; t < some; t++) taps[l->flip ? 8 - first - t : first + t] = block[t];
      }
      taps_transformed(taps, parts);
      for (int e = 0; e < PARTS; e++) *(Vector *)(to + e * step + i * width + c) = parts[e];
    }
}

/* ---- Products ---- */

/* y = x M for `high` rows of x and `wide` vectors of columns, which are all of M. */
static inline __attribute__((always_inline)) void tile(const int high, const float *x, Size x_pitch, const float *m,
                                                       Size size, float *y, Size y_pitch, const int wide) {
  Vector sum[HIGH][WIDE] = {{{0}}};
  const float *rows[HIGH];
  for (int t = 0; t < high; t++) rows[t] = x + t * x_pitch;
  add_products(rows, 1, m, wide * LANES, size, sum, NOTHING, high, wide);
  for (int t = 0; t < high; t++)
    for (int v = 0; v < wide; v++) *(Vector *)(y + t * y_pitch + v * LANES) = sum[t][v];
}

static inline __attribute__((always_inline)) void tile_of(const float *x, Size x_pitch, const float *m, Size size,
                                                          float *y, Size y_pitch, Size high, const int wide) {
  AT_HEIGHT(high, tile, x, x_pitch, m, size, y, y_pitch, wide)
}

/* Y = X M for X [count, size] and M [size, width], a panel. */
static void multiply(const float *x, Size x_pitch, const float *m, Size count, Size size, Size width, float *y) {
  const Size tiles = up(count, HIGH);
  for (Size t = 0; t < tiles; t++) {
    const Size first = t * count / tiles, high = (t + 1) * count / tiles - first;
    const float *from = x + first * x_pitch;
    float *to = y + first * width;
    switch (width / LANES) {
      case 1: tile_of(from, x_pitch, m, size, to, width, high, 1); break;
      case 2: tile_of(from, x_pitch, m, size, to, width, high, 2); break;
      case 3: tile_of(from, x_pitch, m, size, to, width, high, WIDE < 3 ? WIDE : 3); break;
      default: tile_of(from, x_pitch, m, size, to, width, high, WIDE);
    }
  }
}

/* ---- Outputs ---- */

/* A^T m A for one tile of LANES channels, whose elements are `step` apart. */
static inline void tile_summed(const float *m, Size step, float *to, Size pitch, Size line) {
  Vector half[2][SIDE];
  for (int j = 0; j < SIDE; j++) {
    Vector d[SIDE];
    for (int i = 0; i < SIDE; i++) d[i] = *(const Vector *)(m + (i * SIDE + j) * step);
    half[0][j] = d[0] + d[1] + d[2], half[1][j] = d[1] - d[2] - d[3];
  }
  for (int i = 0; i < 2; i++, to += line) {
    const Vector *d = half[i];
    *(Vector *)to = d[0] + d[1] + d[2], *(Vector *)(to + pitch) = d[1] - d[2] - d[3];
  }
}

/* Rows from `top` on of the outputs of a panel, channels last in `lines`, to y, plus the bias. */
static void lay_back(const Layer *l, Size sample, Size top, Size bottom, Size panel, const float *lines) {
  const Size width = width_of(l, panel), line = 2 * l->across * width, count = (least(bottom, l->m) - top) * l->n;
  for (Size c = 0; c < width; c += LANES) {
    const Size channels = least(LANES, l->outputs - panel - c);
    float *to = l->y + ((sample * l->outputs + panel + c) * l->m + top) * l->n;
    Size row = 0, column = 0;
    for (Size q = 0; q < count; q += LANES, to += LANES) {
      const Size some = least(LANES, count - q);
      Vector block[LANES] = {{0}};
      for (Size k = 0; k < some; k++) {
        block[k] = *(const Vector *)(lines + row * line + column * width + c);
        if (++column == l->n) column = 0, row++;
      }
      transpose(block);
      for (Size k = 0; k < channels; k++) {
        if (l->bias) block[k] += l->bias[panel + c + k];
        float *at = to + k * l->m * l->n;
        if (some == LANES) *(Vector *)at = block[k];
        else memcpy(at, block + k, some * sizeof(float));
      }
    }
  }
}

/* The outputs of a panel in the rows of tiles `first` .. `last`. V is `from`, the taps of the panel are `taps`. */
static void panel_outputs(const Layer *l, Size panel, Size first, Size last, const float *from, Size step,
                          const float *taps, float *sums, float *lines) {
  const Size width = width_of(l, panel), count = (last - first) * l->across, part = spread(count * width);
  for (int e = 0; e < PARTS; e++)
    multiply(from + e * step, l->in_columns, taps + e * spread(l->inputs * width), count, l->inputs, width, sums + e * part);
  while (first < last) {
    const Size row = first % l->down, rows = least(l->down - row, last - first);
    for (Size t = 0; t < rows * l->across; t++, sums += width)
      for (Size c = 0; c < width; c += LANES)
        tile_summed(sums + c, part, lines + (t / l->across * 2 * l->across + t % l->across) * 2 * width + c, width,
                    2 * l->across * width);
    lay_back(l, first / l->down, 2 * row, 2 * (row + rows), panel, lines);
    first += rows;
  }
}

/* Rows of tiles that are multiplied at a time. */
static inline Size together(const Layer *l) { return least(most(1, CHUNK / l->across), l->samples * l->down); }

/* Room for the rows of an image that so many rows of tiles need; zeros, as the margins have to be. */
static float *input_lines(const Layer *l) {
  return calloc((2 * least(together(l), l->down) + 2) * padded(l) * l->in_columns, sizeof(float));
}

/* And for the outputs of so many, before they are laid back. */
static float *output_lines(const Layer *l, Size rows) { return floats(4 * least(rows, l->down) * l->across * GROUP); }

/* All of U, then V in pieces. */
static void taps_first(const Layer *l) {
  const Size rows = l->samples * l->down, some = together(l), panel = PARTS * spread(l->inputs * GROUP);
  float *taps = floats(up(l->out_columns, GROUP) * panel);
#pragma omp parallel
  {
    float *before = input_lines(l), *after = output_lines(l, some);
    float *tiles = floats(PARTS * spread(some * l->across * l->in_columns));
    float *sums = floats(PARTS * spread(some * l->across * GROUP));
#pragma omp for schedule(static)
    for (Size c = 0; c < l->out_columns; c += GROUP) panel_taps(l, c, taps + c / GROUP * panel);
#pragma omp for schedule(static)
    for (Size first = 0; first < rows; first += some) {
      const Size last = least(rows, first + some), step = spread((last - first) * l->across * l->in_columns);
      tiles_of_rows(l, first, last, before, tiles, (Layout){step, l->in_columns, GROUP});
      for (Size c = 0; c < l->out_columns; c += GROUP)
        panel_outputs(l, c, first, last, tiles, step, taps + c / GROUP * panel, sums, after);
    }
    free(before), free(after), free(tiles), free(sums);
  }
  free(taps);
}

/* All of V, then U panel by panel. */
static void tiles_first(const Layer *l) {
  const Size rows = l->samples * l->down, some = together(l), pitch = l->across * l->in_columns;
  const Size step = spread(rows * pitch);
  float *tiles = floats(PARTS * step);
#pragma omp parallel
  {
    float *before = input_lines(l), *after = output_lines(l, rows);
    float *taps = floats(PARTS * spread(l->inputs * GROUP)), *sums = floats(PARTS * spread(rows * l->across * GROUP));
#pragma omp for schedule(static)
    for (Size first = 0; first < rows; first += some)
      tiles_of_rows(l, first, least(rows, first + some), before, tiles + first * pitch,
                    (Layout){step, l->in_columns, GROUP});
#pragma omp for schedule(static)
    for (Size c = 0; c < l->out_columns; c += GROUP) {
      panel_taps(l, c, taps);
      panel_outputs(l, c, 0, rows, tiles, step, taps, sums, after);
    }
    free(before), free(after), free(taps), free(sums);
  }
  free(tiles);
}

static void run(Layer l) {
  l.m = l.h + 2 * l.pad_h - 2, l.n = l.w + 2 * l.pad_w - 2;
  l.down = up(l.m, 2), l.across = up(l.n, 2);
  l.in_columns = up(l.inputs, LANES) * LANES, l.out_columns = up(l.outputs, LANES) * LANES;
  (l.inputs * l.out_columns <= l.samples * l.down * l.across * l.in_columns ? taps_first : tiles_first)(&l);
}

/* y [samples, outputs, h + 2 pad_h - 2, ..] of x [samples, inputs, h, w], weight [outputs, inputs, 3, 3], and bias or
 * NULL. */
void winograd(const float *x, const float *weight, const float *bias, float *y, Size samples, Size inputs,
              Size outputs, Size h, Size w, Size pad_h, Size pad_w) {
  run((Layer){.x = x, .weight = weight, .bias = bias, .y = y, .samples = samples, .inputs = inputs, .outputs = outputs,
              .h = h, .w = w, .pad_h = pad_h, .pad_w = pad_w, .in_step = 9, .out_step = 9 * inputs});
}

/* The gradient of the input [samples, inputs, ..] from that of the output [samples, outputs, m, n], padded by what the
 * padding of the convolution leaves of 2. */
void winograd_input(const float *grad, const float *weight, float *out, Size samples, Size inputs, Size outputs,
                    Size m, Size n, Size pad_h, Size pad_w) {
  run((Layer){.x = grad, .weight = weight, .y = out, .samples = samples, .inputs = outputs, .outputs = inputs, .h = m,
              .w = n, .pad_h = pad_h, .pad_w = pad_w, .in_step = 9 * inputs, .out_step = 9, .flip = 1});
}
