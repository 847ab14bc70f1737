/* What the files of the eigenproblem share. */

#ifndef TUCKPROP_EIGEN_H
#define TUCKPROP_EIGEN_H

#include "vectors.h"

/* Doubles of one register, and elements of a matrix that are not worth a second thread. */
enum { PAIR = LANES / 2, SERIAL = 1 << 12 };

typedef double Doubles __attribute__((vector_size(4 * LANES), aligned(8), may_alias));
typedef int64_t Mask __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

static inline Doubles all(double value) { return (Doubles){0} + value; }

/* See tridiagonal.c. */
void tridiagonal(float *a, Size size, Size pitch, double *d, double *e, float *tau);
void turn_back(const float *a, Size size, Size pitch, const float *tau, float *z, Size panels);

#endif
