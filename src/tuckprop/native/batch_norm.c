/* Batch norm of float32 planes, in train mode: a channel at a time, so that all but the first read find it in the cache. */

#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "tile.h"

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

/* Elements of A' that stay in the cache of a thread between two passes over the same channels. */
enum { KEPT = 1 << 18 };

int omp_get_max_threads(void);

/* A block of channels of one sample: their rows of U [high, rank], the core, what A' is written to and what it meets. */
typedef struct {
  const float *factor, *core, *grad;
  float *normal;
  Size rank, positions, pitch;
} Planes;

/* normal = U core at `wide` vectors of positions from p on, and the sums of G and of G normal, without the first `known`
 * positions, for `high` channels from c on. */
static inline __attribute__((always_inline)) void meet(const int high, const Planes *planes, Size c, Size p, Size known,
                                                       Vector *products, Vector *sums, const int wide) {
  Vector part[HIGH][WIDE] = {{{0}}};
  const float *rows[HIGH], *grads = planes->grad + c * planes->positions + p;
  float *normals = planes->normal + c * planes->pitch + p;
  for (int t = 0; t < high; t++) {
    rows[t] = planes->factor + (c + t) * planes->rank;
    if (wide == WIDE)
      for (int l = 0; l < LINES; l++) __builtin_prefetch(grads + t * planes->positions + GROUP + l * LINE);
  }
  add_products(rows, 1, planes->core + p, planes->positions, planes->rank, part, NOTHING, high, wide);
  for (int t = 0; t < high; t++) {
    Vector product = products[c + t], sum = sums[c + t];
    for (int v = 0; v < wide; v++) {
      Vector grad = *(const Vector *)(grads + t * planes->positions + v * LANES);
      *(Vector *)(normals + t * planes->pitch + v * LANES) = part[t][v];
      for (Size l = 0; l < known; l++) grad[l] = 0;
      sum += grad, product += grad * part[t][v];
    }
    products[c + t] = product, sums[c + t] = sum;
  }
}

/* `meet` for all channels of a block: one group of positions of the core stays in the cache for all of them. */
static inline __attribute__((always_inline)) void meet_all(const Planes *planes, Size channels, Size p, Size known,
                                                           Vector *products, Vector *sums, const int wide) {
  const Size tiles = up(channels, HIGH);
  for (Size tile = 0; tile < tiles; tile++) {
    const Size c = tile * channels / tiles;
    AT_HEIGHT((tile + 1) * channels / tiles - c, meet, planes, c, p, known, products, sums, wide)
  }
}

/* The sums of G A' and of G over all positions, of which there are at least LANES, for each channel of a block. */
static void meet_sample(const Planes *planes, Size channels, Vector *products, Vector *sums) {
  Size p = 0;
  for (; p + GROUP <= planes->positions; p += GROUP) meet_all(planes, channels, p, 0, products, sums, WIDE);
  for (; p + LANES <= planes->positions; p += LANES) meet_all(planes, channels, p, 0, products, sums, 1);
  /* What does not fill a vector is computed with what comes before it. */
  const Size left = planes->positions - p;
  if (left) meet_all(planes, channels, p + left - LANES, LANES - left, products, sums, 1);
}

/* How many channels a thread takes at a time: so many that A' stays in its cache, or more, where the core has many rows,
 * which are read again for each block. */
static Size blocks_of(Size channels, Size rank, Size all) {
  const Size threads = omp_get_max_threads(), high = most(1, most(KEPT / all, rank / 3));
  const Size blocks = up(up(channels, high), threads) * threads;
  return least(blocks, channels);
}

/* The gradients of a batch norm whose normalised input is A' = U core, with U [channels, rank] and a core [samples, rank,
 * positions]: products = sum G A', sums = sum G, and, unless it is NULL, out = scale (G - (A' products + sums) / n), or
 * scale G where the statistics are not the batch's own. out may be grad. There are at least LANES positions. */
void batch_norm_factored(const float *grad, const float *core, const float *factor, const float *scale, float *out,
                         float *products, float *sums, int own, Size samples, Size channels, Size rank,
                         Size positions) {
  const Size all = samples * positions, blocks = blocks_of(channels, rank, all), high = up(channels, blocks);
  const double count = (double)all;
#pragma omp parallel
  {
    float *normal = malloc(high * all * sizeof(float));
    Vector *parts = malloc(2 * high * sizeof(Vector));
    double *totals = malloc(2 * high * sizeof(double));
#pragma omp for schedule(static)
    for (Size block = 0; block < blocks; block++) {
      const Size c = block * channels / blocks, now = (block + 1) * channels / blocks - c;
      for (Size t = 0; t < 2 * high; t++) totals[t] = 0;
      for (Size n = 0; n < samples; n++) {
        const Planes planes = {factor + c * rank,      core + n * rank * positions, grad + (n * channels + c) * positions,
                               normal + n * positions, rank,                        positions,
                               all};
        memset(parts, 0, 2 * high * sizeof(Vector));
        meet_sample(&planes, now, parts, parts + high);
        for (Size t = 0; t < 2 * high; t++) totals[t] += total(parts[t]);
      }
      for (Size t = 0; t < now; t++) {
        const double product = totals[t], sum = totals[high + t];
        products[c + t] = (float)product, sums[c + t] = (float)sum;
        if (!out) continue;
        const float times = scale[c + t], share = own ? (float)(-times * product / count) : 0;
        const float shift = own ? (float)(-times * sum / count) : 0;
        for (Size n = 0; n < samples; n++) {
          const float *g = grad + (n * channels + c + t) * positions, *a = normal + t * all + n * positions;
          float *to = out + (n * channels + c + t) * positions;
#pragma GCC ivdep
          for (Size i = 0; i < positions; i++) to[i] = times * g[i] + (share * a[i] + shift);
        }
      }
    }
    free(normal), free(parts), free(totals);
  }
}
