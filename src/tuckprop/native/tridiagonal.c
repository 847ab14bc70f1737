/* A symmetric matrix A = Q T Q^T by reflections, in single precision, with a tridiagonal T, whose diagonal is d and whose
 * elements beside it are e; and Q times a matrix. Every sum has one order, whatever the number of threads. */

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "eigen.h"

/* Rows of A in work together, reflections after which A is written anew, and parts of A that threads share out; up to
 * which size one thread does it alone, as it would wait for others for longer. */
enum { HIGH = LANES == 16 ? 8 : 4, PENDING = 2, PARTS = 4, ALONE = 256 };

static inline float dot(const float *a, const float *b, Size count) {
  Vector sum = {0};
  for (Size i = 0; i < count; i += LANES) sum += *(const Vector *)(a + i) * *(const Vector *)(b + i);
  return total(sum);
}

/* p += A x by `high` rows from row i on, whose block of the diagonal starts at column `start`, after A -= V W^T + W V^T
 * for as many columns of V and W as `pairs`, which are stored [PENDING, pitch]. A is read from its blocks on and above
 * the diagonal: what lies above stands for what lies below. */
static inline __attribute__((always_inline)) void multiply(float *a, Size pitch, Size i, Size start, const float *v,
                                                           const float *w, const float *x, float *p, const int high,
                                                           const int pairs) {
  Vector sum[HIGH] = {{0}};
  a += i * pitch;
  for (Size c = start; c < pitch; c += LANES) {
    Vector now[HIGH];
    for (int t = 0; t < high; t++) now[t] = *(Vector *)(a + t * pitch + c);
    for (int k = 0; k < pairs; k++) {
      const Vector left = *(const Vector *)(v + k * pitch + c), right = *(const Vector *)(w + k * pitch + c);
      for (int t = 0; t < high; t++) now[t] -= v[k * pitch + i + t] * right;
      for (int t = 0; t < high; t++) now[t] -= w[k * pitch + i + t] * left;
    }
    const Vector by = *(const Vector *)(x + c);
    for (int t = 0; t < high; t++) {
      if (pairs) *(Vector *)(a + t * pitch + c) = now[t];
      sum[t] += now[t] * by;
    }
    if (c == start) continue;
    Vector mirrored = *(Vector *)(p + c);
    for (int t = 0; t < high; t++) mirrored += now[t] * x[i + t];
    *(Vector *)(p + c) = mirrored;
  }
  for (int t = 0; t < high; t++) p[i + t] += total(sum[t]);
}

/* Makes x[j + 1..] the vector of the reflection that leaves *e in its place, and returns the factor tau. */
static float reflect(float *x, Size j, Size pitch, double *e) {
  const double first = x[j + 1];
  memset(x, 0, (j + 2) * sizeof(float));
  Doubles squares = {0};
  for (Size i = (j + 1) / PAIR * PAIR; i < pitch; i += PAIR) {
    const Doubles part = __builtin_convertvector(*(const Half *)(x + i), Doubles);
    squares += part * part;
  }
  double below = 0;
  for (int l = 0; l < PAIR; l++) below += squares[l];
  const double norm = sqrt(first * first + below);
  *e = below == 0 ? first : first > 0 ? -norm : norm;
  /* In double precision: what is left at last may be too small for its inverse. */
  const Doubles scale = all(below == 0 ? 0 : 1 / (first - *e));
  for (Size i = (j + 1) / PAIR * PAIR; i < pitch; i += PAIR) {
    Half *part = (Half *)(x + i);
    *part = __builtin_convertvector(__builtin_convertvector(*part, Doubles) * scale, Half);
  }
  x[j + 1] = 1;
  return below == 0 ? 0 : (*e - first) / *e;
}

/* `multiply` for the rows first..end of a band, which do not all lie at HIGH's multiples. */
static void multiply_rows(float *a, Size pitch, Size first, Size end, Size start, const float *v, const float *w,
                          const float *x, float *p, int pending) {
  for (Size i = first, high; i < end; i += high) {
    high = i % HIGH == 0 && i + HIGH <= end ? HIGH : 1;
    if (high == HIGH && pending) multiply(a, pitch, i, start, v, w, x, p, HIGH, PENDING);
    else if (high == HIGH) multiply(a, pitch, i, start, v, w, x, p, HIGH, 0);
    else if (pending) multiply(a, pitch, i, start, v, w, x, p, 1, PENDING);
    else multiply(a, pitch, i, start, v, w, x, p, 1, 0);
  }
}

/* `multiply` for the rows of a part from `first` on: of every PARTS bands one, so that all parts are about as long. */
static void multiply_part(float *a, Size pitch, Size size, Size part, Size first, const float *v, const float *w,
                          const float *x, float *p, int pending) {
  memset(p, 0, pitch * sizeof(float));
  for (Size band = 0, start = 0; start < size; band++, start += LANES) {
    const Size turn = band / PARTS % 2 ? PARTS - 1 - band % PARTS : band % PARTS;
    if (turn != part || start + LANES <= first) continue;
    multiply_rows(a, pitch, most(start, first), least(start + LANES, size), start, v, w, x, p, pending);
  }
}

/* x = row j of A - V W^T - W V^T, for as many columns as `pairs`; from element j on. */
static void take_row(const float *a, Size pitch, Size j, const float *v, const float *w, Size pairs, float *x) {
  const Size start = j / LANES * LANES;
  memcpy(x + start, a + j * pitch + start, (pitch - start) * sizeof(float));
  for (Size k = 0; k < pairs; k++, v += pitch, w += pitch) {
    const float left = v[j], right = w[j];
    for (Size i = start; i < pitch; i += LANES)
      *(Vector *)(x + i) -= left * *(const Vector *)(w + i) + right * *(const Vector *)(v + i);
  }
}

/* The vector w with which A - x w^T - w x^T is A between two reflections of vector x and factor tau, from PARTS parts of
 * p, the product of x with what A was before the `pairs`; from element j + 1 on. */
static void companion(const float *p, const float *x, float tau, const float *v, const float *w, Size pairs, Size j,
                      Size size, Size pitch, float *next) {
  const Size start = (j + 1) / LANES * LANES, count = pitch - start;
  float missing[PENDING][2];
  for (Size k = 0; k < pairs; k++) {
    missing[k][0] = dot(w + k * pitch + start, x + start, count);
    missing[k][1] = dot(v + k * pitch + start, x + start, count);
  }
  for (Size i = start; i < pitch; i += LANES) {
    Vector sum = *(const Vector *)(p + i);
    for (int part = 1; part < PARTS; part++) sum += *(const Vector *)(p + part * pitch + i);
    for (Size k = 0; k < pairs; k++) {
      sum -= *(const Vector *)(v + k * pitch + i) * missing[k][0];
      sum -= *(const Vector *)(w + k * pitch + i) * missing[k][1];
    }
    *(Vector *)(next + i) = sum;
  }
  memset(next, 0, (j + 1) * sizeof(float));
  for (Size i = size; i < pitch; i++) next[i] = 0;
  const float half = -0.5f * tau * tau * dot(next + start, x + start, count);
  for (Size i = start; i < pitch; i += LANES)
    *(Vector *)(next + i) = tau * *(Vector *)(next + i) + half * *(const Vector *)(x + i);
}

int omp_get_num_threads(void);

/* Waits until so many threads have come, of all that ever came. OpenMP's barrier calls the system, which takes as long as
 * what threads do between two of them. */
static void meet(Size *came, Size until) {
  __atomic_add_fetch(came, 1, __ATOMIC_ACQ_REL);
  for (Size turn = 1; __atomic_load_n(came, __ATOMIC_ACQUIRE) < until; turn++)
    if (turn % 4096 == 0) sched_yield();
}

/* A [size, pitch], symmetric, pitch a multiple of LANES, zeros beyond the columns, becomes T and Q: row j is replaced by
 * the vector of reflection j, which is 1 at j + 1. d [size], e and the factors tau [size - 1]. */
void tridiagonal(float *a, Size size, Size pitch, double *d, double *e, float *tau) {
  float *products = calloc(2 * PARTS * pitch, sizeof(float));
  Size came = 0;
#pragma omp parallel if (size > ALONE)
  {
    const Size threads = omp_get_num_threads();
    /* Every thread has reflections and vectors w of its own, as it would wait for another's. */
    float *v = calloc((2 * PENDING + 1) * pitch, sizeof(float)), *w = v + PENDING * pitch, *x = w + PENDING * pitch;
    for (Size j = 0, pairs = 0; j < size; j++) {
      float *p = products + j % 2 * PARTS * pitch, factor = 0;
      double beside = 0;
      take_row(a, pitch, j, v, w, pairs, x);
      const double diagonal = x[j];
      if (j + 1 < size) factor = reflect(x, j, pitch, &beside);
#pragma omp master
      {
        d[j] = diagonal;
        if (j + 1 < size) e[j] = beside, tau[j] = factor;
        if (j > 0) memcpy(a + (j - 1) * pitch, v + (pairs - 1) * pitch, pitch * sizeof(float));
      }
      const int full = pairs == PENDING;
#pragma omp for schedule(static, 1) nowait
      for (Size part = 0; part < PARTS; part++)
        multiply_part(a, pitch, size, part, j + 1, v, w, x, p + part * pitch, full);
      meet(&came, (j + 1) * threads);
      if (full) pairs = 0;
      if (j + 1 < size) companion(p, x, factor, v, w, pairs, j, size, pitch, w + pairs * pitch);
      memcpy(v + pairs++ * pitch, x, pitch * sizeof(float));
    }
    free(v);
  }
  free(products);
}

/* Z = H_last Z for a panel of columns, Z [size, LANES], or H_before H_last Z, for the reflection before that one. */
static inline __attribute__((always_inline)) void turn(const float *a, Size size, Size pitch, const float *tau,
                                                       Size last, Vector *z, const int two) {
  const float *v = a + last * pitch, *before = v - two * pitch;
  Vector left[2] = {{0}}, right[2] = {{0}};
  const Size start = last + 1 - two;
  Size i = start;
  for (; i + 1 < size; i += 2)
    for (int t = 0; t < 2; t++) {
      left[t] += v[i + t] * z[i + t];
      if (two) right[t] += before[i + t] * z[i + t];
    }
  if (i < size) left[0] += v[i] * z[i];
  if (i < size && two) right[0] += before[i] * z[i];
  const Vector by = -tau[last] * (left[0] + left[1]);
  Vector then = {0};
  if (two) then = -tau[last - 1] * (right[0] + right[1] + by * dot(v, before, pitch));
  for (i = start; i < size; i++) {
    Vector now = z[i] + v[i] * by;
    if (two) now += before[i] * then;
    z[i] = now;
  }
}

/* Z = Q Z for panels of columns, Z [panels, size, LANES], and what `tridiagonal` made of A. */
void turn_back(const float *a, Size size, Size pitch, const float *tau, float *z, Size panels) {
#pragma omp parallel for schedule(static) if (size * panels * LANES > SERIAL)
  for (Size panel = 0; panel < panels; panel++) {
    Vector *columns = (Vector *)z + panel * size;
    Size last = size - 2;
    for (; last > 0; last -= 2) turn(a, size, pitch, tau, last, columns, 1);
    if (last == 0) turn(a, size, pitch, tau, last, columns, 0);
  }
}
