/* A set's attention, and what keys and values are narrowed to. */
#include "set.h"

#include "activations.h"
#include "integers.h"
#include "attend.h"

void OF_SET(attend)(const Keys *keys, const float *const *q, const int32_t *position, int rows, int slots, float *part) {
    attend(keys, q, position, rows, slots, part);
}

void OF_SET(merge)(float *into, const float *part, int dim) { merge(into, part, dim); }

float OF_SET(narrow)(int kind, const float *x, void *out, int n) { return narrow(kind, x, out, n); }

void OF_SET(narrow_values)(float *x, int dim, uint8_t *row) { narrow_values(x, dim, row); }

void OF_SET(hadamard)(float *x, int dim) { hadamard(x, dim); }

float OF_SET(widen)(int kind, const void *p, size_t i) { return widen(kind, p, i); }
