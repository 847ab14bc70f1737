/* Batch norm of float32 planes, in train mode: a channel at a time, so that all but the first read find it in the cache. */

#include <math.h>
#include <stddef.h>

#include "vectors.h"

enum { VECTORS = 4, BLOCK = LANES * VECTORS };

static double all(const Vector sum[VECTORS]) { return total((sum[0] + sum[1]) + (sum[2] + sum[3])); }

static double sum_of(const float *x, Size count) {
  Vector sum[VECTORS] = {{0}};
  Size i = 0;
  for (; i + BLOCK <= count; i += BLOCK)
    for (int v = 0; v < VECTORS; v++) sum[v] += *(const Vector *)(x + i + v * LANES);
  double result = all(sum);
  for (; i < count; i++) result += x[i];
  return result;
}

static double squares_of(const float *x, Size count, float mean) {
  Vector sum[VECTORS] = {{0}};
  Size i = 0;
  for (; i + BLOCK <= count; i += BLOCK)
    for (int v = 0; v < VECTORS; v++) {
      const Vector far = *(const Vector *)(x + i + v * LANES) - mean;
      sum[v] += far * far;
    }
  double result = all(sum);
  for (; i < count; i++) result += (double)(x[i] - mean) * (x[i] - mean);
  return result;
}

/* y = (x - mean) * invstd * weight + bias for x [samples, channels, positions]; weight and bias may be NULL. Writes mean,
 * invstd = 1 / sqrt(var + eps) and the variance (divided by the number of values) of each channel. y may be x. */
void batch_norm(const float *x, float *y, const float *weight, const float *bias, float *mean, float *invstd, float *var,
                Size samples, Size channels, Size positions, double eps) {
  const double count = (double)(samples * positions);
#pragma omp parallel for schedule(static)
  for (Size c = 0; c < channels; c++) {
    double sum = 0, squares = 0;
    for (Size n = 0; n < samples; n++) sum += sum_of(x + (n * channels + c) * positions, positions);
    const float middle = (float)(sum / count);
    for (Size n = 0; n < samples; n++) squares += squares_of(x + (n * channels + c) * positions, positions, middle);
    mean[c] = middle;
    var[c] = (float)(squares / count);
    invstd[c] = (float)(1 / sqrt(squares / count + eps));
    const float scale = invstd[c] * (weight ? weight[c] : 1), shift = bias ? bias[c] : 0;
    for (Size n = 0; n < samples; n++) {
      const float *from = x + (n * channels + c) * positions;
      float *to = y + (n * channels + c) * positions;
#pragma GCC ivdep
      for (Size i = 0; i < positions; i++) to[i] = (from[i] - middle) * scale + shift;
    }
  }
}

/* The gradients of `batch_norm` from that of y, any of which may be NULL; out may be grad. */
void batch_norm_backward(const float *grad, const float *x, const float *weight, const float *mean, const float *invstd,
                         float *out, float *grad_weight, float *grad_bias, Size samples, Size channels,
                         Size positions) {
  const double count = (double)(samples * positions);
#pragma omp parallel for schedule(static)
  for (Size c = 0; c < channels; c++) {
    const float middle = mean[c];
    double sum = 0, product = 0;
    for (Size n = 0; n < samples; n++) {
      const float *g = grad + (n * channels + c) * positions, *a = x + (n * channels + c) * positions;
      Vector sums[VECTORS] = {{0}}, products[VECTORS] = {{0}};
      Size i = 0;
      for (; i + BLOCK <= positions; i += BLOCK)
        for (int v = 0; v < VECTORS; v++) {
          const Vector now = *(const Vector *)(g + i + v * LANES);
          sums[v] += now;
          products[v] += now * (*(const Vector *)(a + i + v * LANES) - middle);
        }
      sum += all(sums), product += all(products);
      for (; i < positions; i++) sum += g[i], product += (double)g[i] * (a[i] - middle);
    }
    if (grad_weight) grad_weight[c] = (float)(product * invstd[c]);
    if (grad_bias) grad_bias[c] = (float)sum;
    if (!out) continue;
    const float scale = invstd[c] * (weight ? weight[c] : 1), shift = (float)(sum / count);
    const float share = (float)(product / count * invstd[c] * invstd[c]);
    for (Size n = 0; n < samples; n++) {
      const float *g = grad + (n * channels + c) * positions, *a = x + (n * channels + c) * positions;
      float *to = out + (n * channels + c) * positions;
#pragma GCC ivdep
      for (Size i = 0; i < positions; i++) to[i] = scale * (g[i] - shift - (a[i] - middle) * share);
    }
  }
}
