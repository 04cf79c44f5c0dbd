/* One operation at a time, for tests and measurements. Each function returns what was wrong, or NULL. */
#include <stdlib.h>
#include <string.h>

#include "faults.h"
#include "alloc.h"

/* y[tokens][rows up to 16] = x[tokens][columns] times the matrix. */
const char *single_product(const char *kernels, const Matrix *w, const float *x, int tokens, int fine, int threads, float *y) {
    const Kernels *k = select_kernels(kernels);
    const char *fault = matrix_fault(w);
    if (fault) return fault;
    if (!k || !w->data || tokens < 1 || tokens > MAX_BATCH || threads < 1 || threads > MAX_THREADS)
        return "an impossible product";
    int width = up(w->columns, TILE), strips = strips_of(w);
    Claims claims = {0};
    char *scratch = claim(&claims, (size_t)SCRATCH * threads);
    Acts a = claim_acts(&claims, up(tokens, LANES), width);
    a.lanes = least(tokens, LANES);
    if (!claims.failed) {
        for (int i = 0; i < tokens; i++) {
            memcpy(a.x + (size_t)i * width, x + (size_t)i * w->columns, w->columns * 4);
            k->quantize(&a, i, 0, width, fine);
        }
        #pragma omp parallel num_threads(threads)
        {
            int t = omp_get_thread_num(), n = omp_get_num_threads(), lo = strips * t / n, hi = strips * (t + 1) / n;
            k->enter();
            if (lo < hi) k->matmul(w, &a, fine, 0, tokens, y, strips * LANES, lo, hi - lo, scratch + (size_t)SCRATCH * t);
            k->leave();
        }
    }
    free_acts(&a);
    free(scratch);
    return claims.failed ? NO_MEMORY : NULL;
}

/* out[count][columns up to 64]: rows of a matrix as floats. */
const char *single_rows(const char *kernels, const Matrix *w, const int32_t *rows, int count, float *out) {
    const Kernels *k = select_kernels(kernels);
    const char *fault = matrix_fault(w);
    if (fault) return fault;
    for (int i = 0; i < count; i++) {
        if (!k || !w->data || rows[i] < 0 || rows[i] >= w->rows) return "a row that is not there";
        k->dequantize_row(w, rows[i], out + (size_t)i * up(w->columns, TILE));
    }
    return NULL;
}

/* Attention over `slots` slots as Keys says, q[rows][dim]; part as in kernels.h. */
const char *single_attend(const char *kernels, const Keys *keys, const float *q, const int32_t *position, int rows, int slots,
                          float *part) {
    const float *each[ROWS];
    const Kernels *k = select_kernels(kernels);
    if (!k || rows < 1 || rows > ROWS || slots < 1 || slots > CHUNK || slots % LANES) return "more than a chunk of slots";
    if (keys->dim < 1 || keys->dim > DIM || keys->dim % (keys->kind == Q4 ? 32 : LANES)) return "impossible keys";
    if (keys->kind < F32 || keys->kind > Q4) return "impossible keys";
    for (int r = 0; r < rows; r++) each[r] = q + (size_t)r * keys->dim;
    k->attend(keys, each, position, rows, slots, part);
    return NULL;
}

/* An activation function of n elements. */
const char *single_activate(const char *kernels, int activation, float limit, const float *gate, const float *upper, int n,
                            float *out) {
    const Kernels *k = select_kernels(kernels);
    if (!k || activation < SILU || activation >= ACTIVATIONS || n < 0 || n % LANES) return "an impossible activation function";
    k->activate(activation, limit, gate, upper, out, n);
    return NULL;
}
