/* What the parts of a set of kernels share: kernels.c, products.c, few.c, panels.c and opened.c, each compiled once for each
   instruction set (ISA; see simd.h and build.py), side by side. */
#ifndef LLAMACHAT_SET_H
#define LLAMACHAT_SET_H
#include "model.h"
#include "simd.h"

#if defined(SMALL)  /* vectors of four gain nothing by code of its own for each way, which takes six times as long to compile */
#undef INLINE
#define INLINE static inline
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b) JOIN_(a, b)
#define OF_SET(name) JOIN(name, ISA)  /* a name that the parts share */


static inline float half_value(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return half_to_float(h);
}

/* Strips that are read side by side for a token. */
enum { PAIR = 2, ABREAST = VL == 16 ? 4 : PAIR };
static inline int abreast_for(int fetching) { return fetching == FETCH_PAIR ? PAIR : ABREAST; }

/* See Kernels, products.c and few.c. */
#pragma GCC visibility push(hidden)
void OF_SET(dequantize_row)(const Matrix *w, int row, float *out);
extern int OF_SET(fetching);  /* see Kernels.fetch */
void OF_SET(strips_once)(const Matrix *w, const Acts *a, int fine, int token, float *y, int strip, int strips);
void OF_SET(strips_few)(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                        int strips);
void OF_SET(low_sums)(int kind, const void *a, const float *x, int columns, float *out);
void OF_SET(low_add)(const LowRank *low, const float *h, float *y, int strip, int strips);
void OF_SET(low_row)(const LowRank *low, int columns, int row, float *x);
void OF_SET(matmul)(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                    int strips, void *scratch);
void OF_SET(enter)(void);
void OF_SET(leave)(void);
float OF_SET(widen)(int kind, const void *p, size_t i);
#pragma GCC visibility pop
#endif
