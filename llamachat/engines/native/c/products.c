/* A set's products of one token or a few, and its rows of matrices. */
#include "set.h"

#include "codes.h"
#include "products.h"
#define widen OF_SET(widen)
#include "additions.h"

void OF_SET(dequantize_row)(const Matrix *w, int row, float *out) { dequantize_row(w, row, out); }

void OF_SET(strips_few)(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip, int strips) {
    strips_few(w, a, fine, token, tokens, y, stride, strip, strips);
}

void OF_SET(fetch_weights)(int ahead) { fetch_weights(ahead); }

void OF_SET(low_sums)(int kind, const void *a, const float *x, int columns, float *out) { low_sums(kind, a, x, columns, out); }

void OF_SET(low_add)(const LowRank *low, const float *h, float *y, int strip, int strips) { low_add(low, h, y, strip, strips); }

void OF_SET(low_row)(const LowRank *low, int columns, int row, float *x) { low_row(low, columns, row, x); }
