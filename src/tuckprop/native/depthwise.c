/* Depthwise convolutions of float32 planes that lie one behind the other (contiguous, not channels last).
 *
 * oneDNN reorders such tensors into its own layout and back, which takes longer than the convolution and two more
 * tensors of the same size. Here one plane at a time goes through a buffer that stays in the cache. There, its padded
 * rows are split by position modulo the stride ("phases"), each phase row by row with the same pitch; then tap (i, j) of
 * the kernel meets every output at one distance in one phase, and outputs are sums of shifted arrays:
 *     out[t] = bias + sum over taps of weight * phase[t + distance],    t = row * pitch + column,
 * where columns of t beyond the output's are computed and not read. */

#include <stdlib.h>
#include <string.h>

#include "vectors.h"

/* Sizes, per axis (rows, columns): of the plane, of the output, of the window, and its stride, padding, dilation. */
typedef struct {
  Size plane[2], output[2], kernel[2], stride[2], padding[2], dilation[2];
} Window;

enum { VECTORS = 4, BLOCK = LANES * VECTORS, MOST_TAPS = 121 };

/* How the planes of a window lie in the buffer. */
typedef struct {
  Size rows, pitch, size;    /* Of one phase, and its elements with room for a whole block at the end. */
  Size lead;                 /* The largest distance of a tap. */
  Size taps;
  Size phase[MOST_TAPS], distance[MOST_TAPS];
} Plan;

static Plan plan_of(const Window *w) {
  Plan plan = {0};
  plan.rows = w->output[0] + (w->kernel[0] - 1) * w->dilation[0] / w->stride[0];
  plan.pitch = w->output[1] + (w->kernel[1] - 1) * w->dilation[1] / w->stride[1];
  plan.lead = plan.rows * plan.pitch - w->output[0] * plan.pitch + plan.pitch - w->output[1];
  plan.size = plan.rows * plan.pitch + plan.lead + BLOCK;
  for (Size i = 0; i < w->kernel[0]; i++)
    for (Size j = 0; j < w->kernel[1]; j++, plan.taps++) {
      const Size row = i * w->dilation[0], column = j * w->dilation[1];
      plan.phase[plan.taps] = row % w->stride[0] * w->stride[1] + column % w->stride[1];
      plan.distance[plan.taps] = row / w->stride[0] * plan.pitch + column / w->stride[1];
    }
  return plan;
}

/* Columns from..to of a phase lie in the plane, from column `first` on, every stride-th. */
typedef struct {
  Size from, to, first;
} Span;

static Span span_of(Size phase, Size pitch, Size plane, Size stride, Size padding) {
  const Size from = up(padding - phase, stride), to = most(from, least(pitch, up(plane + padding - phase, stride)));
  return (Span){least(from, pitch), least(to, pitch), from * stride + phase - padding};
}

/* A row of a width that is common, at a size that the compiler knows, or of any. */
static inline void copy(float *to, const float *from, Size count) {
  switch (count) {
    case 4: memcpy(to, from, 4 * sizeof(float)); break;
    case 7: memcpy(to, from, 7 * sizeof(float)); break;
    case 8: memcpy(to, from, 8 * sizeof(float)); break;
    case 14: memcpy(to, from, 14 * sizeof(float)); break;
    case 16: memcpy(to, from, 16 * sizeof(float)); break;
    case 28: memcpy(to, from, 28 * sizeof(float)); break;
    case 32: memcpy(to, from, 32 * sizeof(float)); break;
    case 56: memcpy(to, from, 56 * sizeof(float)); break;
    case 64: memcpy(to, from, 64 * sizeof(float)); break;
    default: memcpy(to, from, count * sizeof(float));
  }
}

/* The phases of the padded plane x. The buffer begins as zeros, and what is padding stays so. */
static void split(const float *x, float *phases, const Plan *plan, const Window *w) {
  for (Size a = 0; a < w->stride[0]; a++)
    for (Size b = 0; b < w->stride[1]; b++, phases += plan->size) {
      const Span span = span_of(b, plan->pitch, w->plane[1], w->stride[1], w->padding[1]);
      for (Size r = 0; r < plan->rows; r++) {
        float *row = phases + r * plan->pitch;
        const Size h = r * w->stride[0] + a - w->padding[0];
        if (h < 0 || h >= w->plane[0]) continue;
        const float *source = x + h * w->plane[1] + span.first;
        if (w->stride[1] == 1)
          copy(row + span.from, source, span.to - span.from);
        else if (w->stride[1] == 2)
          for (Size q = span.from; q < span.to; q++) row[q] = source[2 * (q - span.from)];
        else
          for (Size q = span.from; q < span.to; q++) row[q] = source[w->stride[1] * (q - span.from)];
      }
    }
}

/* The rows of g, at the pitch of a phase. The buffer begins as zeros, which stay after and before the rows. */
static void spread(const float *g, float *out, const Plan *plan, const Window *w) {
  for (Size r = 0; r < w->output[0]; r++)
    copy(out + r * plan->pitch, g + r * w->output[1], w->output[1]);
}

/* out[t] = bias + sum over taps of weights[tap] * sources[tap][t], for t up to the end of a block. */
static void sum_taps(const float *const *sources, const float *weights, Size taps, float bias, float *out, Size count) {
  Size t = 0;
  for (; t + BLOCK - LANES < count; t += BLOCK) {
    Vector sum[VECTORS];
    for (int v = 0; v < VECTORS; v++) sum[v] = (Vector){0} + bias;
    for (Size tap = 0; tap < taps; tap++) {
      const float *source = sources[tap] + t;
      const Vector weight = (Vector){0} + weights[tap];
      for (int v = 0; v < VECTORS; v++) sum[v] += weight * *(const Vector *)(source + v * LANES);
    }
    for (int v = 0; v < VECTORS; v++) *(Vector *)(out + t + v * LANES) = sum[v];
  }
  for (; t < count; t += LANES) {
    Vector sum = (Vector){0} + bias;
    for (Size tap = 0; tap < taps; tap++) sum += weights[tap] * *(const Vector *)(sources[tap] + t);
    *(Vector *)(out + t) = sum;
  }
}

/* y[n, c] = x[n, c] * weight[c] + bias[c]; bias may be NULL. */
void depthwise(const float *x, const float *weight, const float *bias, float *y, Size samples, Size channels,
               const Window *w) {
  const Plan plan = plan_of(w);
  const Size in = w->plane[0] * w->plane[1], outputs = w->output[0] * w->output[1], count = w->output[0] * plan.pitch;
#pragma omp parallel
  {
    float *phases = calloc(w->stride[0] * w->stride[1] * plan.size + count + BLOCK, sizeof(float));
    float *sums = phases + w->stride[0] * w->stride[1] * plan.size;
    const float *sources[MOST_TAPS];
    for (Size tap = 0; tap < plan.taps; tap++) sources[tap] = phases + plan.phase[tap] * plan.size + plan.distance[tap];
#pragma omp for schedule(static)
    for (Size plane = 0; plane < samples * channels; plane++) {
      const Size c = plane % channels;
      split(x + plane * in, phases, &plan, w);
      sum_taps(sources, weight + c * plan.taps, plan.taps, bias ? bias[c] : 0, sums, count);
      for (Size r = 0; r < w->output[0]; r++)
        copy(y + plane * outputs + r * w->output[1], sums + r * plan.pitch, w->output[1]);
    }
    free(phases);
  }
}

/* The phases, put back at their places in the plane x; what no window meets becomes zero. */
static void merge(const float *phases, float *x, const Plan *plan, const Window *w) {
  const Size width = w->plane[1], stride = w->stride[1], padding = w->padding[1];
  if (plan->rows * w->stride[0] < w->plane[0] + w->padding[0] || plan->pitch * stride < width + padding)
    memset(x, 0, w->plane[0] * width * sizeof(float));
  /* Columns of the phases of stride 2 that are in the plane in pairs: written at one go, which is vectorised. */
  const Size start = stride == 2 ? up(padding, 2) : 0, stop = stride == 2 ? least(plan->pitch, (width + padding) / 2) : 0;
  for (Size a = 0; a < w->stride[0]; a++, phases += stride * plan->size)
    for (Size r = 0; r < plan->rows; r++) {
      const Size h = r * w->stride[0] + a - w->padding[0];
      if (h < 0 || h >= w->plane[0]) continue;
      const float *rows = phases + r * plan->pitch;
      float *target = x + h * width - padding;
      const float *even = rows, *odd = rows + plan->size;
      for (Size q = start; q < stop; q++) target[2 * q] = even[q], target[2 * q + 1] = odd[q];
      for (Size b = 0; b < stride; b++) {
        const Span span = span_of(b, plan->pitch, width, stride, padding);
        const float *row = rows + b * plan->size;
        if (stride == 1)
          copy(target + span.from, row + span.from, span.to - span.from);
        else
          for (Size q = span.from; q < span.to; q++)
            if (q < start || q >= stop) target[stride * q + b] = row[q];
            else q = stop - 1;
      }
    }
}

/* The gradient of x from that of y. */
void depthwise_input(const float *grad, const float *weight, float *out, Size samples, Size channels, const Window *w) {
  const Plan plan = plan_of(w);
  const Size in = w->plane[0] * w->plane[1], outputs = w->output[0] * w->output[1];
  const Size phase_count = w->stride[0] * w->stride[1];
#pragma omp parallel
  {
    float *spreads = calloc((phase_count + 1) * plan.size + plan.lead, sizeof(float));
    float *phases = spreads + plan.lead + plan.size;
#pragma omp for schedule(static)
    for (Size plane = 0; plane < samples * channels; plane++) {
      spread(grad + plane * outputs, spreads + plan.lead, &plan, w);
      for (Size phase = 0; phase < phase_count; phase++) {
        const float *sources[MOST_TAPS];
        float weights[MOST_TAPS];
        Size taps = 0;
        for (Size tap = 0; tap < plan.taps; tap++)
          if (plan.phase[tap] == phase) {
            sources[taps] = spreads + plan.lead - plan.distance[tap];
            weights[taps++] = weight[plane % channels * plan.taps + tap];
          }
        sum_taps(sources, weights, taps, 0, phases + phase * plan.size, plan.rows * plan.pitch);
      }
      merge(phases, out + plane * in, &plan, w);
    }
    free(spreads);
  }
}

/* The gradient of the weight. */
void depthwise_weight(const float *x, const float *grad, float *out, Size samples, Size channels, const Window *w) {
  const Plan plan = plan_of(w);
  const Size in = w->plane[0] * w->plane[1], outputs = w->output[0] * w->output[1], count = w->output[0] * plan.pitch;
#pragma omp parallel
  {
    float *phases = calloc((w->stride[0] * w->stride[1] + 1) * plan.size, sizeof(float));
    float *spreads = phases + w->stride[0] * w->stride[1] * plan.size;
#pragma omp for schedule(static)
    for (Size c = 0; c < channels; c++) {
      double sums[MOST_TAPS] = {0};
      for (Size n = 0; n < samples; n++) {
        split(x + (n * channels + c) * in, phases, &plan, w);
        spread(grad + (n * channels + c) * outputs, spreads, &plan, w);
        for (Size tap = 0; tap < plan.taps; tap++) {
          const float *source = phases + plan.phase[tap] * plan.size + plan.distance[tap], *g = spreads;
          Vector sum[VECTORS] = {{0}};
          for (Size t = 0; t < count; t += BLOCK)
            for (int v = 0; v < VECTORS; v++)
              sum[v] += *(const Vector *)(source + t + v * LANES) * *(const Vector *)(g + t + v * LANES);
          sums[tap] += total((sum[0] + sum[1]) + (sum[2] + sum[3]));
        }
      }
      for (Size tap = 0; tap < plan.taps; tap++) out[c * plan.taps + tap] = (float)sums[tap];
    }
    free(phases);
  }
}
