/* Leading eigenpairs of a symmetric matrix A: by reflections, in single precision, A = Q T Q^T with a tridiagonal T,
 * whose diagonal is d and whose elements beside it are e. Eigenvalues of T by bisection and its eigenvectors by twisted
 * factorisations, in double precision. Every sum has one order, whatever the number of threads. */

#include <math.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "vectors.h"

/* Rows of A in work together, reflections after which A is written anew, and parts of A that threads share out. */
enum { HIGH = LANES == 16 ? 8 : 4, PENDING = 2, PARTS = 4 };

/* Eigenvalues in one register, in work together, and found at a time. */
enum { PAIR = LANES / 2, REGISTERS = 4, TOGETHER = REGISTERS * PAIR, CHUNK = 4 * TOGETHER };

typedef double Doubles __attribute__((vector_size(4 * LANES), aligned(8), may_alias));
typedef int64_t Mask __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

/* Of the largest row sum of T: the width that an eigenvalue is known to, a pivot that stands for 0, and the residual of
 * an eigenvector, at most. */
static const double WIDTH = 1e-11, PIVOT = 1e-30, RESIDUAL = 1e-9;

static inline Doubles all(double value) { return (Doubles){0} + value; }

static inline Doubles choose(Mask mask, Doubles yes, Doubles no) {
  return (Doubles)((mask & (Mask)yes) | (~mask & (Mask)no));
}

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
#pragma omp parallel
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

/* How many eigenvalues of T lie below each of several points; the squares of e. */
static void count_below(const double *d, const double *squares, Size size, const Doubles *points, double tiny,
                        Mask *below) {
  Doubles pivots[REGISTERS];
  for (int g = 0; g < REGISTERS; g++) pivots[g] = all(1), below[g] = (Mask){0};
  for (Size i = 0; i < size; i++) {
    const double square = i ? squares[i - 1] : 0;
    for (int g = 0; g < REGISTERS; g++) {
      const Doubles next = d[i] - points[g] - square / pivots[g];
      pivots[g] = choose((next < tiny) & (next > -tiny), all(-tiny), next);
      below[g] -= pivots[g] < 0;
    }
  }
}

/* Eigenvalues first.. of T, counted from the largest; none is above `upper`, none negative but for rounding. */
static void bisect(const double *d, const double *squares, Size size, double norm, double upper, Size first,
                   double *values) {
  Doubles low[REGISTERS], high[REGISTERS], middle[REGISTERS];
  Mask wanted[REGISTERS], below[REGISTERS];
  for (int g = 0; g < REGISTERS; g++) {
    for (int l = 0; l < PAIR; l++) wanted[g][l] = size - 1 - least(size - 1, first + g * PAIR + l);
    low[g] = all(-1e-5 * norm), high[g] = all(upper);
  }
  for (double width = upper + 1e-5 * norm; width > WIDTH * norm; width /= 2) {
    for (int g = 0; g < REGISTERS; g++) middle[g] = 0.5 * (low[g] + high[g]);
    count_below(d, squares, size, middle, PIVOT * norm, below);
    for (int g = 0; g < REGISTERS; g++) {
      const Mask above = below[g] > wanted[g];
      high[g] = choose(above, middle[g], high[g]);
      low[g] = choose(above, low[g], middle[g]);
    }
  }
  for (int g = 0; g < REGISTERS; g++) *(Doubles *)(values + g * PAIR) = 0.5 * (low[g] + high[g]);
}

/* Eigenvectors z [size], of norm 1, of T for PAIR eigenvalues, which are mended. Says whether all are accurate.
 * `down` and `up` [size] are memory to work in.
 *
 * T - value is factored from the top and from the bottom; where the two meet in the smallest pivot, z is largest. */
static int twist(const double *d, const double *e, Size size, double norm, double *values, Doubles *down, Doubles *up,
                 Doubles *z) {
  const Doubles tiny = all(PIVOT * norm);
  Doubles value = *(const Doubles *)values, residual;
  for (int round = 0; round < 2; round++) {
    Doubles smallest = all(INFINITY), place = {0}, square = {0}, now = {0};
    Doubles before = all(1);
    for (Size i = 0; i < size; i++) {
      const double beside = i ? e[i - 1] : 0;
      const Doubles next = d[i] - value - beside * beside / before;
      down[i] = before = choose((next < tiny) & (next > -tiny), -tiny, next);
    }
    before = all(1);
    for (Size i = size - 1; i >= 0; i--) {
      const double beside = i < size - 1 ? e[i] : 0;
      const Doubles next = d[i] - value - beside * beside / before;
      up[i] = before = choose((next < tiny) & (next > -tiny), -tiny, next);
      const Doubles pivot = down[i] + next - (d[i] - value);
      const Mask less = pivot * pivot < smallest * smallest;
      smallest = choose(less, pivot, smallest);
      place = choose(less, all(i), place);
    }
    for (Size i = size - 1; i >= 0; i--) {
      const double beside = i < size - 1 ? e[i] : 0;
      const Doubles further = choose(place > all(i), -beside / down[i] * now, all(0));
      z[i] = now = choose(place == all(i), all(1), further);
      square += now * now;
    }
    now = all(0);
    for (Size i = 1; i < size; i++) {
      before = choose(place == all(i - 1), all(1), now);
      now = choose(place < all(i), -e[i - 1] / up[i] * before, all(0));
      z[i] += now;
      square += now * now;
    }
    value += smallest / square;
    for (int l = 0; l < PAIR; l++) square[l] = sqrt(square[l]);
    residual = smallest / square;
    for (Size i = 0; i < size; i++) z[i] /= square;
  }
  *(Doubles *)values = value;
  int accurate = 1;
  for (int l = 0; l < PAIR; l++) accurate &= fabs(residual[l]) <= RESIDUAL * norm;
  return accurate;
}

/* The fewest leading eigenpairs of T, of trace above 0 and no negative eigenvalue but for rounding, that have the share
 * of its trace, ascending: values [size], and vectors [size, size], one a row. Returns how many, or -1 where one is not
 * accurate or T is not finite. */
Size leading_pairs(const double *d, const double *e, Size size, double share, double *values, float *vectors) {
  double norm = 0, trace = 0, kept = 0, found[CHUNK], *squares = malloc(size * sizeof(double));
  for (Size i = 0; i < size; i++) {
    trace += d[i];
    norm = fmax(norm, fabs(d[i]) + (i ? fabs(e[i - 1]) : 0) + (i < size - 1 ? fabs(e[i]) : 0));
    if (i < size - 1) squares[i] = e[i] * e[i];
  }
  Size count = 0;
  for (Size first = 0; count == first && count < size && kept < share * trace; first += CHUNK) {
    /* As many eigenvalues as lie before this one are at least as large. */
    const double upper = fmin(norm, 1.001 * trace / (first + 1));
#pragma omp parallel for schedule(static, 1)
    for (Size i = 0; i < CHUNK; i += TOGETHER) bisect(d, squares, size, norm, upper, first + i, found + i);
    for (Size i = 0; i < CHUNK && count < size && kept < share * trace; i++) {
      values[count++] = found[i];
      kept += fmax(found[i], 0);
    }
  }
  free(squares);
  int bad = 0;
#pragma omp parallel reduction(| : bad)
  {
    Doubles *work = malloc(3 * size * sizeof(Doubles)), *z = work + 2 * size;
#pragma omp for schedule(static, 1)
    for (Size first = 0; first < count; first += PAIR) {
      double some[PAIR];
      for (Size l = 0; l < PAIR; l++) some[l] = values[least(first + l, count - 1)];
      bad |= !twist(d, e, size, norm, some, work, work + size, z);
      for (Size l = 0; l < PAIR && first + l < count; l++) {
        values[first + l] = some[l];
        float *row = vectors + (count - 1 - first - l) * size;
        for (Size i = 0; i < size; i++) row[i] = z[i][l];
      }
    }
    free(work);
  }
  for (Size i = 0; i < count / 2; i++) {
    const double value = values[i];
    values[i] = values[count - 1 - i], values[count - 1 - i] = value;
  }
  return bad || count == 0 ? -1 : count;
}
