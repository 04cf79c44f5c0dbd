/* A set's products of a few tokens. */
#include "set.h"

#include "codes.h"
#include "products.h"
#define SEVERAL 1
#include "streams.h"

/* y[t][row] for up to FEW tokens and the rows of `strips` strips. */
void OF_SET(strips_few)(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                        int strips) {
    if (streamed(w, a, fine, token, tokens, y, stride, strip, strips)) return;
    for (int i = 0; i < tokens; i++) OF_SET(strips_once)(w, a, fine, token + i, y + i * stride, strip, strips);
}
