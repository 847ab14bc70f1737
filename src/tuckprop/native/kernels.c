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
