/* A set's products of one token, and its rows of matrices. */
#include "set.h"

#include "codes.h"
#include "products.h"
#define SEVERAL 0
#include "streams.h"
#define widen OF_SET(widen)
#include "additions.h"

void OF_SET(dequantize_row)(const Matrix *w, int row, float *out) { dequantize_row(w, row, out); }

/* y[row] for one token and the rows of `strips` strips. */
void OF_SET(strips_once)(const Matrix *w, const Acts *a, int fine, int token, float *y, int strip, int strips) {
    if (!streamed(w, a, fine, token, 1, y, 0, strip, strips)) strips_plain(w, a, fine, token, y, strip, strips);
}

void OF_SET(low_sums)(int kind, const void *a, const float *x, int columns, float *out) { low_sums(kind, a, x, columns, out); }

void OF_SET(low_add)(const LowRank *low, const float *h, float *y, int strip, int strips) { low_add(low, h, y, strip, strips); }

void OF_SET(low_row)(const LowRank *low, int columns, int row, float *x) { low_row(low, columns, row, x); }
