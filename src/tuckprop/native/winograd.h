/* What the kernels of Winograd's algorithm share: a convolution, and its inputs in transformed tiles. */

#ifndef TUCKPROP_WINOGRAD_H
#define TUCKPROP_WINOGRAD_H

#include <stdlib.h>
#include <string.h>

#include "tile.h"

/* Elements of a side of a tile, and of all of it. Panels have GROUP columns. */
enum { SIDE = 4, PARTS = SIDE * SIDE };

/* A convolution: x [samples, inputs, h, w] to y [samples, outputs, m, n], with so many rows and columns of padding
 * before and after. Tap t of input i and output k is weight[i * in_step + k * out_step + t], or 8 - t where `flip`. */
typedef struct {
  const float *x, *weight, *bias;
  float *y;
  Size samples, inputs, outputs, h, w, m, n, pad_h, pad_w, in_step, out_step;
  int flip;
  /* Rows of tiles of an image, tiles of a row, and numbers of channels, up to full vectors. */
  Size down, across, in_columns, out_columns;
} Layer;

static inline Size padded(const Layer *l) { return most(2 * l->across + 2, l->w + l->pad_w); }

/* `count` floats from `from` on, and what lies behind them, or zeros where that may not be read. */
static inline Vector load(const float *from, Size count, const float *end) {
  if (from + LANES <= end) return *(const Vector *)from;
  float part[LANES] = {0};
  memcpy(part, from, count * sizeof(float));
  return *(const Vector *)part;
}

/* Floats from one of the 16 parts to the next: powers of two would meet in few places of a cache. */
static inline Size spread(Size part) { return part + LANES; }

static inline float *floats(Size count) { return malloc(count * sizeof(float)); }

/* B^T d B for one tile of LANES channels, whose columns are `pitch` apart and rows `line`. */
static inline void tile_transformed(const float *d, Size pitch, Size line, float *to, Size step) {
  Vector half[SIDE][SIDE];
  for (int j = 0; j < SIDE; j++, d += pitch) {
    const Vector a = *(const Vector *)d, b = *(const Vector *)(d + line), c = *(const Vector *)(d + 2 * line);
    half[0][j] = a - c, half[1][j] = b + c, half[2][j] = c - b, half[3][j] = b - *(const Vector *)(d + 3 * line);
  }
  for (int i = 0; i < SIDE; i++, to += SIDE * step) {
    const Vector *a = half[i];
    *(Vector *)to = a[0] - a[2], *(Vector *)(to + step) = a[1] + a[2];
    *(Vector *)(to + 2 * step) = a[2] - a[1], *(Vector *)(to + 3 * step) = a[1] - a[3];
  }
}

/* Rows `top` .. `bottom` of an image, channels last, to `lines`, whose margins at the sides are zeros already. */
static inline void lay_out(const Layer *l, Size sample, Size top, Size bottom, float *lines) {
  const Size line = padded(l) * l->in_columns, start = most(top, 0), count = (least(bottom, l->h) - start) * l->w;
  const float *image = l->x + sample * l->inputs * l->h * l->w + start * l->w;
  const float *end = l->x + l->samples * l->inputs * l->h * l->w;
  for (Size row = top; row < bottom; row++)
    if (row < 0 || row >= l->h) memset(lines + (row - top) * line, 0, line * sizeof(float));
  lines += (start - top) * line + l->pad_w * l->in_columns;
  for (Size c = 0; c < l->inputs; c += LANES) {
    const Size channels = least(LANES, l->inputs - c);
    Size row = 0, column = 0;
    for (Size q = 0; q < count; q += LANES) {
      const Size some = least(LANES, count - q);
      Vector block[LANES] = {{0}};
      for (Size k = 0; k < channels; k++) block[k] = load(image + (c + k) * l->h * l->w + q, some, end);
      transpose(block);
      for (Size k = 0; k < some; k++) {
        *(Vector *)(lines + row * line + column * l->in_columns + c) = block[k];
        if (++column == l->w) column = 0, row++;
      }
    }
  }
}

/* Where transformed tiles go: so far from one of the 16 parts to the next, from one tile to the next, and from GROUP
 * channels to the next. */
typedef struct {
  Size part, tile, panel;
} Layout;

/* V of the rows of tiles `first` .. `last`, counted over all images. */
static inline void tiles_of_rows(const Layer *l, Size first, Size last, float *lines, float *to, Layout at) {
  const Size pitch = l->in_columns, line = padded(l) * pitch;
  while (first < last) {
    const Size row = first % l->down, rows = least(l->down - row, last - first), top = 2 * row - l->pad_h;
    lay_out(l, first / l->down, top, top + 2 * rows + 2, lines);
    for (Size t = 0; t < rows * l->across; t++, to += at.tile)
      for (Size c = 0; c < pitch; c += LANES)
        tile_transformed(lines + t / l->across * 2 * line + t % l->across * 2 * pitch + c, pitch, line,
                         to + c / GROUP * at.panel + c % GROUP, at.part);
    first += rows;
  }
}

#endif
