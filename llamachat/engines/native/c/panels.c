/* A set's products of several tokens; those of a few and of one are compiled beside them. */
#include "set.h"

#include "codes.h"
#include "products.h"
#include "panels.h"

void OF_SET(matmul)(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                    int strips, void *scratch) {
    matmul(w, a, fine, token, tokens, y, stride, strip, strips, scratch);
}

void OF_SET(enter)(void) { enter(); }

void OF_SET(leave)(void) { leave(); }
