/* The products of product.c. */

#ifndef TUCKPROP_PRODUCT_H
#define TUCKPROP_PRODUCT_H

#include "vectors.h"

float squares(const float *x, Size pitch, Size rows, Size count);
double product_rows(const void *x, const float *m, Size m_row, Size m_column, float *y, const float *bias,
                    const float *scale, int halves, int measures, Size samples, Size size, Size rows, Size positions);
double product_columns(const void *x, const float *m, Size m_row, Size m_column, float *y, int halves, int measures,
                       Size count, Size size, Size columns);

#endif
