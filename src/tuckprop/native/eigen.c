/* Leading eigenpairs of a symmetric matrix A = Q T Q^T with a tridiagonal T, whose diagonal is d and whose elements beside
 * it are e: eigenvalues of T by bisection and its eigenvectors by twisted factorisations, in double precision. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "eigen.h"

/* Registers of eigenvalues in work together, and eigenvalues so and found at a time; rows of T after which determinants
 * are scaled; columns of a tile. */
enum { REGISTERS = 4, TOGETHER = REGISTERS * PAIR, CHUNK = 4 * TOGETHER, SCALED = 8, TILE = 4 };

/* Of the largest row sum of T: the width that an eigenvalue is known to, a pivot that stands for 0, and the residual of
 * an eigenvector, at most. What a product of two eigenvectors may be off by. */
static const double WIDTH = 1e-9, PIVOT = 1e-30, RESIDUAL = 1e-9;
static const float ORTHONORMAL = 1e-5f;

static inline Doubles choose(Mask mask, Doubles yes, Doubles no) {
  return (Doubles)((mask & (Mask)yes) | (~mask & (Mask)no));
}

/* How many eigenvalues of T lie below each of several points: how often neighbours differ in sign among the determinants
 * of its leading blocks, which take no division. T has row sums of at most 1, and the squares of e. */
static void count_below(const double *d, const double *squares, Size size, const Doubles *points, Mask *below) {
  Doubles last[REGISTERS], now[REGISTERS];
  for (int g = 0; g < REGISTERS; g++) last[g] = all(0), now[g] = all(1), below[g] = (Mask){0};
  for (Size i = 0; i < size; i++) {
    const double square = i ? squares[i - 1] : 0;
    for (int g = 0; g < REGISTERS; g++) {
      Doubles next = (d[i] - points[g]) * now[g] - square * last[g];
      next = choose(next == 0, -PIVOT * now[g], next);
      below[g] -= ((Mask)next ^ (Mask)now[g]) < 0;
      last[g] = now[g], now[g] = next;
    }
    if (i % SCALED == 0)
      for (int g = 0; g < REGISTERS; g++) {
        const Doubles scale = 1 / choose(now[g] < 0, -now[g], now[g]);
        last[g] *= scale, now[g] *= scale;
      }
  }
}

/* Eigenvalues first.. of T, counted from the largest; none is above `upper`, none negative but for rounding. T as there. */
static void bisect(const double *d, const double *squares, Size size, double upper, Size first, double *values) {
  Doubles low[REGISTERS], high[REGISTERS], middle[REGISTERS];
  Mask wanted[REGISTERS], below[REGISTERS];
  for (int g = 0; g < REGISTERS; g++) {
    for (int l = 0; l < PAIR; l++) wanted[g][l] = size - 1 - least(size - 1, first + g * PAIR + l);
    low[g] = all(-1e-5), high[g] = all(upper);
  }
  for (double width = upper + 1e-5; width > WIDTH; width /= 2) {
    for (int g = 0; g < REGISTERS; g++) middle[g] = 0.5 * (low[g] + high[g]);
    count_below(d, squares, size, middle, below);
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

/* Eigenvalues of T, of largest row sum `norm`, the largest first, as many as have the share of its trace: values [size].
 * Returns how many; none where T is not finite, or 0. */
static Size leading_values(const double *d, const double *e, Size size, double norm, double share, double *values) {
  if (!(norm > 0 && norm < INFINITY)) return 0;
  double trace = 0, kept = 0, found[CHUNK], *diagonal = malloc(2 * size * sizeof(double)), *squares = diagonal + size;
  for (Size i = 0; i < size; i++) {
    diagonal[i] = d[i] / norm, trace += diagonal[i];
    if (i < size - 1) squares[i] = e[i] / norm * (e[i] / norm);
  }
  const Size chunk = size * size > SERIAL ? CHUNK : TOGETHER;
  Size count = 0;
  for (Size first = 0; count == first && count < size && kept < share * trace; first += chunk) {
    /* As many eigenvalues as lie before this one are at least as large. */
    const double upper = fmin(1, 1.001 * trace / (first + 1));
#pragma omp parallel for schedule(static, 1) if (chunk == CHUNK)
    for (Size i = 0; i < chunk; i += TOGETHER) bisect(diagonal, squares, size, upper, first + i, found + i);
    for (Size i = 0; i < chunk && count < size && kept < share * trace; i++) {
      values[count++] = norm * found[i];
      kept += fmax(found[i], 0);
    }
  }
  free(diagonal);
  return count;
}

/* Eigenvectors of T for `count` eigenvalues, which are mended: the columns of Z [panels, size, LANES], a panel after the
 * other. Says whether all are accurate. */
static int vectors_of(const double *d, const double *e, Size size, double norm, double *values, Size count, float *z) {
  int bad = 0;
#pragma omp parallel reduction(| : bad) if (size * count > SERIAL)
  {
    Doubles *work = malloc(3 * size * sizeof(Doubles)), *columns = work + 2 * size;
#pragma omp for schedule(static, 1)
    for (Size first = 0; first < count; first += PAIR) {
      float *panel = z + first / LANES * size * LANES + first % LANES;
      double some[PAIR];
      for (Size l = 0; l < PAIR; l++) some[l] = values[least(first + l, count - 1)];
      bad |= !twist(d, e, size, norm, some, work, work + size, columns);
      for (Size l = 0; l < PAIR && first + l < count; l++) values[first + l] = some[l];
      for (Size i = 0; i < size; i++) *(Half *)(panel + i * LANES) = __builtin_convertvector(columns[i], Half);
    }
    free(work);
  }
  return !bad;
}

/* Says whether the first `count` columns of Z are orthonormal: those of eigenvalues that are equal to rounding may be
 * dependent. */
static int orthonormal(const float *z, Size size, Size count) {
  int bad = 0;
#pragma omp parallel for schedule(static, 1) reduction(| : bad) if (size * count > SERIAL)
  for (Size i = 0; i < count; i += TILE)
    for (Size g = i / LANES * LANES; g < count; g += LANES) {
      const float *left = z + i / LANES * size * LANES + i % LANES, *right = z + g * size;
      Vector sum[TILE] = {{0}};
      for (Size r = 0; r < size * LANES; r += LANES) {
        const Vector now = *(const Vector *)(right + r);
        for (int t = 0; t < TILE; t++) sum[t] += left[r + t] * now;
      }
      for (Size t = 0; t < TILE && i + t < count; t++)
        for (Size l = 0; l < LANES && g + l < count; l++)
          bad |= !(fabsf(sum[t][l] - (i + t == g + l)) < ORTHONORMAL);
    }
  return !bad;
}

/* The fewest leading eigenpairs of A [size, size], symmetric and with no negative eigenvalue but for rounding, that have
 * the share of its trace, the largest first: values [count], vectors [size, count], or no vectors where that is NULL.
 * Returns their count, or -1 where they are not accurate, or A is not finite, or 0. */
Size leading_pairs(const float *matrix, Size size, double share, double *values, float *vectors) {
  const Size pitch = up(size, LANES) * LANES;
  float *a = calloc(size * pitch, sizeof(float)), *tau = malloc(size * sizeof(float)), *z = NULL;
  double *d = malloc(2 * size * sizeof(double)), *e = d + size, norm = 0;
  for (Size i = 0; i < size; i++) memcpy(a + i * pitch, matrix + i * size, size * sizeof(float));
  tridiagonal(a, size, pitch, d, e, tau);
  for (Size i = 0; i < size; i++)
    norm = fmax(norm, fabs(d[i]) + (i ? fabs(e[i - 1]) : 0) + (i < size - 1 ? fabs(e[i]) : 0));
  Size count = leading_values(d, e, size, norm, share, values);
  const Size panels = up(count, LANES);
  if (count && vectors) z = calloc(panels * size * LANES, sizeof(float));
  if (!vectors) count = count ? count : -1;
  else if (count && vectors_of(d, e, size, norm, values, count, z) && orthonormal(z, size, count)) {
    turn_back(a, size, pitch, tau, z, panels);
    for (Size i = 0; i < size; i++)
      for (Size first = 0; first < count; first += LANES)
        memcpy(vectors + i * count + first, z + (first * size + i * LANES), least(LANES, count - first) * sizeof(float));
  } else count = -1;
  free(a), free(tau), free(d), free(z);
  return count;
}
