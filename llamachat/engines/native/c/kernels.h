/* The arithmetic that a step is made of: what the kernels (kernels.c, once for each instruction set) are given and give. */
#ifndef LLAMACHAT_KERNELS_H
#define LLAMACHAT_KERNELS_H
#include "packed.h"

enum { CHUNK = 128 };                        /* slots whose softmax is computed together; fixes the order of summation */
enum { SCRATCH = 26 << 10 };                 /* bytes that matmul wants for each thread */
enum { FEW = 4 };                            /* tokens that weights are streamed for, as for one */
enum { ROWS = 8 };                           /* queries that attend together */
enum { DIM = 1024 };                         /* elements of the largest head: arrays on the stack have room for so many */
enum { SPAN = 64 };                          /* elements of a value in 4 bits that share a scale and a minimum */

/* Where weights are fetched to ahead of use: of several strips into the second-level cache or the first, or of two into the
   first, further ahead. */
enum fetching { FETCH_OUTER, FETCH_INNER, FETCH_PAIR, FETCHINGS };

/* Activations of some tokens, as floats and as integers q with a scale per 32; width is a multiple of 64, the excess zero.
   Coarse: q = high, 8 bits. Fine: q = 256 * high + low, 15 bits, for twice the multiplications: for the products whose
   rounding is felt most in the logits (see engine.c). A group's columns lie in quads, as packed.h has them. Groups of 32
   columns lie group after group for `lanes` (1 to 16) tokens side by side, then for the next tokens: what is read together
   lies together, and is a tile of AMX. See group_of. */
typedef struct {
    int32_t width, lanes;
    float *x;                     /* [tokens][width] */
    int8_t *high, *low;           /* [groups][32], x ~ q * scale */
    float *scale;                 /* [groups] */
    int32_t *sum32;               /* [groups], sum of q */
    float *mass32;                /* [groups], scale * sum of q: what a minimum is multiplied with */
    int32_t *pair_high, *pair_low;  /* [groups], the sums of high (of low, if fine) over the first 16 columns in the lower 16
                                       bits, over the others in the upper */
} Acts;

/* Values in 4 bits, code * scale + minimum. In a row of its own, a value has fp16 scale and minimum of each span, then of each
   32 elements 16 bytes, the i-th of which has element i in its low nibble and i + 16 in its high one. A block of 16 slots has
   of each span fp16 scale[16] and minimum[16], then of each 32 elements [4][16][4] such bytes, of quads of slots. */
static inline int spans_of(int dim) { return up(dim, SPAN) / SPAN; }
static inline size_t values_row(int dim) { return 4 * (size_t)spans_of(dim) + 16 * (size_t)(dim / 32); }
static inline size_t values_block(int dim) { return LANES * values_row(dim); }

typedef struct {
    const void *k;                /* [slots / 16][head_dim up to 16][16] of one key-value head, from some slot on, as are all
                                     these; Q8, Q4: [slots / 16][head_dim / 4][16][4]; one block more may be read, its scores
                                     are not used */
    const void *v;                /* [slots][head_dim up to 16]; Q8: [slots / 4][head_dim up to 16][4]; Q4: blocks as above */
    const void *next;             /* what is read after these values, and may be fetched meanwhile */
    const float *k_scale, *v_scale;  /* [slots], Q8; of Q4 k_scale only */
    const int32_t *position;      /* [slots]; INT32_MAX where masked */
    int32_t kind, dim, window;    /* dim: head_dim up to 16, Q4: to 32; window: a query sees this many positions */
    float softcap;                /* scores become softcap * tanh(score / softcap); 0: they stay */
} Keys;

typedef struct {
    const char *name;
    void (*dequantize_row)(const Matrix *w, int row, float *out);  /* out: [columns up to 64] */
    void (*rmsnorm)(float *x, const float *add, const float *weight, int n, float eps, float *out);  /* add: to x, or NULL */
    void (*normalize)(float *x, const float *weight, int n, float eps);  /* in place; neither array has more than n elements */
    void (*rotate)(float *x, const float *cosine, const float *sine, int half, float scale);  /* x [2 * half], then times scale */
    void (*quantize)(const Acts *a, int token, int first, int last, int fine);  /* columns, multiples of 32 */
    void (*activate)(int activation, float limit, const float *gate, const float *up, float *out, int n);  /* n: multiple of 16 */
    void (*soften)(float *x, int n, float cap);  /* cap * tanh(x / cap) in place, n a multiple of 16 */
    void (*matmul)(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                   int strips, void *scratch);
    void (*low_sums)(int kind, const void *a, const float *x, int columns, float *out);  /* 4 rows of a group times x */
    void (*low_add)(const LowRank *low, const float *h, float *y, int strip, int strips);  /* y += b h in these strips */
    void (*low_row)(const LowRank *low, int columns, int row, float *x);  /* x += scale * b[row] a */
    void (*attend)(const Keys *keys, const float *const *q, const int32_t *position, int rows, int slots, float *part);
    void (*merge)(float *into, const float *part, int dim);
    float (*narrow)(int kind, const float *x, void *out, int n);  /* returns the scale of Q8 */
    void (*narrow_values)(float *x, int dim, uint8_t *row);  /* to 4 bits; see nibbles.h */
    void (*hadamard)(float *x, int dim);
    float (*widen)(int kind, const void *p, size_t i);
    int (*fetch)(int fetching);   /* how matmul fetches weights ahead, for a few tokens; gives the strips side by side, for one */
    void (*enter)(void);          /* each thread, before and after it uses matmul */
    void (*leave)(void);
} Kernels;

/* An attention partial is [PART + dim] floats: largest score, sum of exponentials, unused..., weighted sum of values. */
enum { PART = 16 };

/* Where a token's g-th group of columns lies; the next token's is beside it unless a multiple of `lanes` is between them. */
static inline size_t group_of(const Acts *a, int token, int g) {
    return ((size_t)(token / a->lanes) * (a->width / GROUP) + g) * a->lanes + token % a->lanes;
}
const Kernels *select_kernels(const char *name);  /* NULL: the best here; or NULL if there is no such */
#endif
