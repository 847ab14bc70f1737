/* Products of a tensor with matrices along several of its axes, one after the other, in one call: where tensors are small,
 * calls take longer than products. */

#include <stdlib.h>
#include <string.h>

#include "half.h"
#include "product.h"
#include "vectors.h"

/* What an element of a matrix is. */
enum { SINGLE, FLOAT16, BFLOAT16 };

/* A matrix [size, rank] along an axis, whose elements lie `row` and `column` apart; of kind NONE, where there is none, it is
 * 1. */
enum { NONE = -1 };
typedef struct {
  Size size, rank, kind, row, column, axis;
} Side;

/* One product: of a stack [before, n, after], with a matrix, or with that of all products of the elements of two. */
typedef struct {
  Size before, after;
  Side sides[2];
} Step;

/* More than `FEW` matrices of so many elements are multiplied as one, with the identity multiplied in. */
enum { FEW = 64, TINY = 100 };

/* Squares that are summed in single precision, and elements that are not worth a second thread. */
enum { PART = 1 << 12, SERIAL = 1 << 14 };

/* What becomes of a tensor before it is contracted: scale (x - shift), with numbers of each place along one axis, or
 * nothing where scale is NULL. The result has `dims` axes. */
typedef struct {
  const float *shift, *scale;
  Size axis, dims;
  const Size *shape;
} Standard;

/* A matrix as float32, [size, rank]. */
static void read(float *to, const void *matrix, Side side) {
  for (Size i = 0; i < side.size; i++, to += side.rank) {
    const float *whole = (const float *)matrix + i * side.row;
    const Half16 *half = (const Half16 *)matrix + i * side.row;
    if (side.kind == NONE) to[0] = 1;
    else if (side.kind == SINGLE)
      for (Size k = 0; k < side.rank; k++) to[k] = whole[k * side.column];
    else if (side.kind == BFLOAT16)
      for (Size k = 0; k < side.rank; k++) to[k] = widened(half[k * side.column]);
    else if (side.column == 1) widen_float16(to, half, side.rank);
    else
      for (Size k = 0; k < side.rank; k++) to[k] = widened_float16(half[k * side.column]);
  }
}

/* The numbers that a tensor is settled with, one of each place along each axis of the result: what its elements are
 * multiplied by, and what is taken off them, which are products over the axes. */
typedef struct {
  float **times, **offset;
} Settling;

/* A matrix's rows times the scale, where it lies along that axis; and its part in what is taken off. */
static void standardise(float *matrix, Side side, const Standard *how, const Settling *settling) {
  if (!how->scale || side.kind == NONE) return;
  const int own = side.axis == how->axis;
  float *offset = settling->offset[side.axis];
  memset(offset, 0, side.rank * sizeof(float));
  for (Size i = 0; i < side.size; i++, matrix += side.rank)
    for (Size k = 0; k < side.rank; k++) {
      if (own) matrix[k] *= how->scale[i];
      offset[k] += own ? how->shift[i] * matrix[k] : matrix[k];
    }
}

/* What there is to settle before any axis is contracted; a matrix overwrites what is taken off along its own. */
static Settling unsettled(const Standard *how, Size count, const Step *steps) {
  int stays = 1;
  for (Size s = 0; s < count; s++)
    for (int side = 0; side < 2; side++)
      stays &= steps[s].sides[side].kind == NONE || steps[s].sides[side].axis != how->axis;
  Size all = 0;
  for (Size d = 0; d < how->dims; d++) all += how->shape[d];
  Settling settling = {malloc(2 * how->dims * sizeof(float *)), NULL};
  settling.offset = settling.times + how->dims;
  float *memory = malloc(2 * all * sizeof(float));
  for (Size d = 0; d < how->dims; d++) {
    settling.times[d] = memory, settling.offset[d] = memory + all, memory += how->shape[d];
    for (Size i = 0; i < how->shape[d]; i++) {
      const int scaled = stays && d == how->axis;
      settling.times[d][i] = scaled ? how->scale[i] : 1;
      settling.offset[d][i] = scaled ? how->shift[i] * how->scale[i] : 1;
    }
  }
  return settling;
}

/* y = times y - offset. */
static void settle(float *y, const Standard *how, const Settling *settling) {
  const Size last = how->dims - 1, columns = how->shape[last];
  Size rows = 1;
  for (Size d = 0; d < last; d++) rows *= how->shape[d];
#pragma omp parallel for schedule(static) if (rows * columns > SERIAL)
  for (Size row = 0; row < rows; row++) {
    float by = 1, off = 1;
    for (Size d = last - 1, left = row; d >= 0; left /= how->shape[d--]) {
      by *= settling->times[d][left % how->shape[d]];
      off *= settling->offset[d][left % how->shape[d]];
    }
    const float *times = settling->times[last], *offset = settling->offset[last];
    float *to = y + row * columns;
    for (Size i = 0; i < columns; i++) to[i] = by * times[i] * to[i] - off * offset[i];
  }
}

/* The matrix of a step: products of all elements of two, with the identity of so many columns multiplied in. */
static void form(float *to, const void *const *matrices, const Step *step, Size identity, const Standard *how,
                 const Settling *settling) {
  const Side one = step->sides[0], two = step->sides[1];
  if (two.kind == NONE && identity == 1) {
    read(to, matrices[0], one);
    standardise(to, one, how, settling);
    return;
  }
  const Size columns = one.rank * two.rank * identity;
  float *left = malloc((one.size * one.rank + two.size * two.rank) * sizeof(float)), *right = left + one.size * one.rank;
  read(left, matrices[0], one), read(right, matrices[1], two);
  standardise(left, one, how, settling), standardise(right, two, how, settling);
  memset(to, 0, one.size * two.size * identity * columns * sizeof(float));
  for (Size i = 0; i < one.size; i++)
    for (Size j = 0; j < two.size; j++)
      for (Size a = 0; a < identity; a++, to += columns)
        for (Size k = 0; k < one.rank; k++)
          for (Size l = 0; l < two.rank; l++)
            to[(k * two.rank + l) * identity + a] = left[i * one.rank + k] * right[j * two.rank + l];
  free(left);
}

/* Y = X times the matrix of a step; returns the sum of squares of X, if it `measures`. */
static double multiply(const void *x, int halves, int measures, const void *const *matrices, const Step *step, float *y,
                       const Standard *how, const Settling *settling) {
  const Side *one = step->sides, *two = step->sides + 1;
  const Size size = one->size * two->size, rank = one->rank * two->rank;
  const int joined = step->after > 1 && step->before > FEW && most(size, rank) * step->after <= TINY;
  const Size identity = joined ? step->after : 1;
  const int as_it_lies = one->kind == SINGLE && identity == 1 && two->kind == NONE && !how->scale;
  float *formed = as_it_lies ? NULL : malloc(size * identity * rank * identity * sizeof(float));
  const float *matrix = as_it_lies ? matrices[0] : formed;
  if (!as_it_lies) form(formed, matrices, step, identity, how, settling);
  const Size row = as_it_lies ? one->row : rank * identity, column = as_it_lies ? one->column : 1;
  double energy;
  if (step->after == identity)
    energy = product_columns(x, matrix, row, column, y, halves, measures, step->before, size * identity, rank * identity);
  else energy = product_rows(x, matrix, row, column, y, NULL, NULL, halves, measures, step->before, size, rank, step->after);
  free(formed);
  return energy;
}

/* Y = X times the matrices of all steps, two matrices each, for X in `halves` or not. What is in between lies in `work`
 * and in `rest`, by turns. X is standardised first, as it were: Y is settled at last. If it measures, `energies` [2] take
 * in the sums of squares of X as it lies, and of Y. */
void chain(const void *x, int halves, Size count, const Step *steps, const void *const *matrices, float *work, float *rest,
           float *y, double *energies, const float *shift, const float *scale, Size axis, Size dims, const Size *shape) {
  const Standard how = {shift, scale, axis, dims, shape};
  const Settling settling = scale ? unsettled(&how, count, steps) : (Settling){0};
  const void *from = x;
  Size elements = 0;
  for (Size s = 0; s < count; s++) {
    const Step *step = steps + s;
    float *to = s + 1 == count ? y : s % 2 ? rest : work;
    const int first = s == 0;
    const double energy = multiply(from, first && halves, first && energies, matrices + 2 * s, step, to, &how, &settling);
    if (first && energies) energies[0] = energy;
    elements = step->before * step->sides[0].rank * step->sides[1].rank * step->after;
    from = to;
  }
  if (scale) {
    settle(y, &how, &settling);
    free(settling.times[0]), free(settling.times);
  }
  if (!energies) return;
  energies[1] = 0;
  for (Size i = 0; i < elements; i += PART) energies[1] += squares(y + i, 0, 1, least(PART, elements - i));
}
