/* Passes over large tensors, float32 if nothing else is said, that PyTorch's operations take several of. Plain C, for the
 * compiler to vectorise.
 *
 * Flags lie in blocks of 512 elements and 64 bytes: bit j of byte i is element 64 j + i of the block. What is left
 * beyond the last whole block has bit k % 8 of byte k / 8 for its element k. Outputs may be the inputs' memory. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "half.h"

typedef int64_t Size;

enum { LANES = 64, BLOCK = 8 * LANES, BLOCKS = 32, ELEMENTS = BLOCK * BLOCKS };

static Size least(Size a, Size b) { return a < b ? a : b; }

/* VALUE and FLAG are expressions of the element v and of low and high; FROM and TO take elements of a TYPE to floats and
 * back. NaN stays NaN; its flag is what PyTorch's vectorised derivatives have: set by ReLU, not by Hardtanh. */
#define RECTIFIER(NAME, TYPE, FROM, TO, VALUE, FLAG)                                                         \
  static void NAME##_part(const TYPE *x, TYPE *y, uint8_t *bits, Size count, float low, float high) {        \
    (void)high;                                                                                              \
    for (; count >= BLOCK; count -= BLOCK, x += BLOCK, y += BLOCK, bits += LANES) {                          \
      uint8_t flags[LANES] = {0};                                                                            \
      for (int j = 0; j < 8; j++)                                                                            \
        _Pragma("GCC ivdep") for (int i = 0; i < LANES; i++) {                                               \
          const float v = FROM(x[LANES * j + i]);                                                            \
          flags[i] |= (uint8_t)((FLAG) << j);                                                                \
          y[LANES * j + i] = TO(VALUE);                                                                      \
        }                                                                                                    \
      memcpy(bits, flags, LANES);                                                                            \
    }                                                                                                        \
    memset(bits, 0, (count + 7) / 8);                                                                        \
    for (Size k = 0; k < count; k++) {                                                                       \
      const float v = FROM(x[k]);                                                                            \
      bits[k / 8] |= (uint8_t)((FLAG) << k % 8);                                                             \
      y[k] = TO(VALUE);                                                                                      \
    }                                                                                                        \
  }                                                                                                          \
  void NAME(const TYPE *x, TYPE *y, uint8_t *bits, Size count, float low, float high) {                      \
    _Pragma("omp parallel for schedule(static) if (count > 2 * ELEMENTS)")                                   \
    for (Size start = 0; start < count; start += ELEMENTS)                                                   \
      NAME##_part(x + start, y + start, bits + start / 8, least(count - start, ELEMENTS), low, high);        \
  }

RECTIFIER(clamp_below, float, , , v < low ? low : v, !(v <= low))
RECTIFIER(clamp_both, float, , , v < low ? low : v > high ? high : v, (v > low) & (v < high))
RECTIFIER(clamp_below_halves, Half16, widened, narrowed, v < low ? low : v, !(v <= low))
RECTIFIER(clamp_both_halves, Half16, widened, narrowed, v < low ? low : v > high ? high : v, (v > low) & (v < high))

/* out = grad where the flag is set, else 0; elements are told by their bits alone. */
#define GATE(NAME, TYPE)                                                                                     \
  static void NAME##_part(const TYPE *grad, TYPE *out, const uint8_t *bits, Size count) {                    \
    for (; count >= BLOCK; count -= BLOCK, grad += BLOCK, out += BLOCK, bits += LANES)                       \
      for (int j = 0; j < 8; j++)                                                                            \
        _Pragma("GCC ivdep") for (int i = 0; i < LANES; i++)                                                 \
          out[LANES * j + i] = grad[LANES * j + i] & (TYPE)-(bits[i] >> j & 1);                              \
    for (Size k = 0; k < count; k++) out[k] = grad[k] & (TYPE)-(bits[k / 8] >> k % 8 & 1);                   \
  }                                                                                                          \
  void NAME(const TYPE *grad, TYPE *out, const uint8_t *bits, Size count) {                                  \
    _Pragma("omp parallel for schedule(static) if (count > 2 * ELEMENTS)")                                   \
    for (Size start = 0; start < count; start += ELEMENTS)                                                   \
      NAME##_part(grad + start, out + start, bits + start / 8, least(count - start, ELEMENTS));              \
  }

GATE(gate, uint32_t)
GATE(gate_halves, Half16)

/* Bytes of codes, the first in the lowest bits; as `unpack` takes them. */
static inline __attribute__((always_inline)) void pack(const uint8_t *cells, const uint8_t *codes, uint8_t *packed,
                                                       int bytes, const int bits) {
  for (int i = 0; i < bytes; i++) {
    int byte = 0;
    for (int j = 0; j < 8 / bits; j++) byte |= codes[cells[8 / bits * i + j]] << j * bits;
    packed[i] = (uint8_t)byte;
  }
}

/* `pack`s the codes of the elements and returns the sum of squares of what their cells' values differ from them by. */
static double encode_part(const float *x, uint8_t *packed, Size count, const uint8_t *codes, int bits, float reach,
                          float scale, float offset, const float *values) {
  const int held = 8 / bits;
  const float last = reach - 0.5f / scale;
  double lost = 0;
  for (; count > 0; count -= BLOCK, x += BLOCK, packed += BLOCK / held) {
    const int now = (int)least(count, BLOCK);
    uint8_t cells[BLOCK] = {0};
    for (int i = 0; i < now; i++) {
      const float v = x[i] < -reach ? -reach : x[i] > last ? last : x[i];
      cells[i] = (uint8_t)(int32_t)(v * scale + offset);
    }
    const int bytes = (now + held - 1) / held;
    if (bits == 4) pack(cells, codes, packed, bytes, 4);
    else if (bits == 2) pack(cells, codes, packed, bytes, 2);
    else if (bits == 1) pack(cells, codes, packed, bytes, 1);
    else pack(cells, codes, packed, bytes, 8);
    if (now % held) packed[bytes - 1] &= (uint8_t)((1 << now % held * bits) - 1);
    if (!values) continue;
    float squares[LANES] = {0};
    int i = 0;
    for (; i + LANES <= now; i += LANES)
#pragma GCC ivdep
      for (int j = 0; j < LANES; j++) {
        const float far = x[i + j] - values[cells[i + j]];
        squares[j] += far * far;
      }
    for (; i < now; i++) squares[0] += (x[i] - values[cells[i]]) * (x[i] - values[cells[i]]);
    for (int j = 0; j < LANES; j++) lost += squares[j];
  }
  return lost;
}

/* packed = codes[cell of x], `bits` bits each, the first in the lowest; the cells cut -reach..reach into 256. Returns the
 * sum of squares of x - levels[code], or 0 where levels is NULL. */
double encode(const float *x, uint8_t *packed, Size count, const uint8_t *codes, int bits, float reach, float scale,
              float offset, const float *levels) {
  float values[UINT8_MAX + 1];
  double lost = 0;
  for (int i = 0; levels && i <= UINT8_MAX; i++) values[i] = levels[codes[i]];
#pragma omp parallel for schedule(static) reduction(+ : lost) if (count > 2 * ELEMENTS)
  for (Size start = 0; start < count; start += ELEMENTS)
    lost += encode_part(x + start, packed + start * bits / 8, least(count - start, ELEMENTS), codes, bits, reach, scale,
                        offset, levels ? values : NULL);
  return lost;
}

/* The codes of a block, a byte each. The number of bits is a constant for the compiler to unroll by. */
static inline __attribute__((always_inline)) void unpack(const uint8_t *packed, uint8_t *codes, Size bytes, const int bits) {
  for (Size i = 0; i < bytes; i++)
    for (int j = 0; j < 8 / bits; j++) codes[8 / bits * i + j] = packed[i] >> j * bits & ((1 << bits) - 1);
}

static void scale_part(const float *grad, float *out, const uint8_t *packed, Size count, const float *levels, int bits) {
  for (; count > 0; count -= BLOCK, grad += BLOCK, out += BLOCK, packed += BLOCK * bits / 8) {
    const Size now = least(count, BLOCK), bytes = (now * bits + 7) / 8;
    uint8_t codes[BLOCK];
    if (bits == 4) unpack(packed, codes, bytes, 4);
    else if (bits == 2) unpack(packed, codes, bytes, 2);
    else if (bits == 1) unpack(packed, codes, bytes, 1);
    else memcpy(codes, packed, bytes);
#pragma GCC ivdep
    for (Size k = 0; k < now; k++) out[k] = grad[k] * levels[codes[k]];
  }
}

/* A row of levels for each value that a byte may have, of all the codes in it. */
typedef struct {
  float levels[(UINT8_MAX + 1) * 8];
} Rows;

static void fill_rows(Rows *rows, const float *levels, int bits) {
  const int held = 8 / bits;
  for (int byte = 0; byte <= UINT8_MAX; byte++)
    for (int j = 0; j < held; j++) rows->levels[byte * held + j] = levels[byte >> j * bits & ((1 << bits) - 1)];
}

static inline __attribute__((always_inline)) void spell(float *out, const uint8_t *packed, Size bytes, const Rows *rows,
                                                        const int held) {
  for (Size i = 0; i < bytes; i++) memcpy(out + held * i, rows->levels + held * packed[i], held * sizeof(float));
}

static void decode_part(float *out, const uint8_t *packed, Size count, const Rows *rows, int bits) {
  const int held = 8 / bits;
  const Size whole = count / held;
  if (bits == 1) spell(out, packed, whole, rows, 8);
  else if (bits == 2) spell(out, packed, whole, rows, 4);
  else if (bits == 4) spell(out, packed, whole, rows, 2);
  else spell(out, packed, whole, rows, 1);
  memcpy(out + held * whole, rows->levels + (count % held ? held * packed[whole] : 0), count % held * sizeof(float));
}

/* out = levels[code]. */
void decode(const uint8_t *packed, float *out, Size count, const float *levels, int bits) {
  Rows rows;
  fill_rows(&rows, levels, bits);
#pragma omp parallel for schedule(static) if (count > 2 * ELEMENTS)
  for (Size start = 0; start < count; start += ELEMENTS)
    decode_part(out + start, packed + start * bits / 8, least(count - start, ELEMENTS), &rows, bits);
}

/* out = grad * levels[code]. */
void scale(const float *grad, float *out, const uint8_t *packed, Size count, const float *levels, int bits) {
#pragma omp parallel for schedule(static) if (count > 2 * ELEMENTS)
  for (Size start = 0; start < count; start += ELEMENTS)
    scale_part(grad + start, out + start, packed + start * bits / 8, least(count - start, ELEMENTS), levels, bits);
}

/* Sizes, per axis (rows, columns): of the plane, of the output, of the window, and its stride, padding, dilation. */
typedef struct {
  Size plane[2], output[2], kernel[2], stride[2], padding[2], dilation[2];
} Window;

static Size up(Size a, Size b) { return a <= 0 ? 0 : (a + b - 1) / b; }

static inline __attribute__((always_inline)) void pool_row(const float *x, float *best, int32_t *taps, Size from, Size to,
                                                           Size stride, int32_t tap) {
#pragma GCC ivdep
  for (Size m = from; m < to; m++) {
    const float v = x[m * stride];
    const int better = (v > best[m]) | (v != v);
    best[m] = better ? v : best[m];
    taps[m] = better ? tap : taps[m];
  }
}

enum { COLUMNS = 256 };

/* The outputs start..stop of one row, of which the window's rows from `top` on are in the plane, if between its ends. */
static void pool_part(const float *x, float *y, uint8_t *out, Size top, Size start, Size stop, const Window *w) {
  float best[COLUMNS];
  int32_t taps[COLUMNS];
  const Size stride = w->stride[1], step = w->dilation[1], rows = top < 0 ? up(-top, w->dilation[0]) : 0;
  for (Size m = start; m < stop; m++) {  /* The first tap inside counts, whatever it holds. */
    const Size left = m * stride - w->padding[1];
    best[m - start] = -INFINITY;
    taps[m - start] = (int32_t)(rows * w->kernel[1] + (left < 0 ? up(-left, step) : 0));
  }
  for (Size i = rows; i < w->kernel[0] && top + i * w->dilation[0] < w->plane[0]; i++)
    for (Size j = 0; j < w->kernel[1]; j++) {
      const Size shift = j * step - w->padding[1];
      const Size from = up(-shift, stride) - start, to = least(stop, up(w->plane[1] - shift, stride)) - start;
      const float *source = x + (top + i * w->dilation[0]) * w->plane[1] + shift + start * stride;
      const int32_t tap = (int32_t)(i * w->kernel[1] + j);
      if (stride == 1) pool_row(source, best, taps, from < 0 ? 0 : from, to, 1, tap);
      else if (stride == 2) pool_row(source, best, taps, from < 0 ? 0 : from, to, 2, tap);
      else pool_row(source, best, taps, from < 0 ? 0 : from, to, stride, tap);
    }
  for (Size m = start; m < stop; m++) y[m] = best[m - start];
  for (Size m = start; m < stop; m++) out[m] = (uint8_t)taps[m - start];
}

/* Per output the largest element of its window, the first of equals, the last NaN, and the number of its tap. */
void max_pool(const float *x, float *y, uint8_t *taps, Size planes, const Window *w) {
  const Size in = w->plane[0] * w->plane[1], columns = w->output[1];
#pragma omp parallel for schedule(static) if (planes * in > ELEMENTS)
  for (Size row = 0; row < planes * w->output[0]; row++) {
    const Size plane = row / w->output[0], top = row % w->output[0] * w->stride[0] - w->padding[0];
    for (Size start = 0; start < columns; start += COLUMNS)
      pool_part(x + plane * in, y + row * columns, taps + row * columns, top, start, least(columns, start + COLUMNS), w);
  }
}

/* The gradient of each output, added to the element that its tap names. */
void max_unpool(const float *grad, const uint8_t *taps, float *out, Size planes, const Window *w) {
  const Size in = w->plane[0] * w->plane[1], outputs = w->output[0] * w->output[1];
  Size distance[UINT8_MAX + 1];
  for (Size i = 0; i < w->kernel[0]; i++)
    for (Size j = 0; j < w->kernel[1]; j++)
      distance[i * w->kernel[1] + j] =
          (i * w->dilation[0] - w->padding[0]) * w->plane[1] + j * w->dilation[1] - w->padding[1];
#pragma omp parallel for schedule(static) if (planes * in > ELEMENTS)
  for (Size plane = 0; plane < planes; plane++) {
    float *target = out + plane * in;
    memset(target, 0, in * sizeof(float));
    const float *g = grad + plane * outputs;
    const uint8_t *tap = taps + plane * outputs;
    for (Size row = 0; row < w->output[0]; row++)
      for (Size m = 0; m < w->output[1]; m++)
        target[(row * w->stride[0]) * w->plane[1] + m * w->stride[1] + distance[*tap++]] += *g++;
  }
}
