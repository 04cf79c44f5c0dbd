/* The CPU engine: what its files share. Layouts are defined here and nowhere else.

   A matrix [rows, columns] is cut into strips of 16 rows, a strip into tiles of 64 columns; missing rows and columns are
   zero. A quantized tile is
       fp16 scale[subs][16], fp16 minimum[subs][16] (if any), then the codes in 64-byte vectors,
   with one scale for every 64 / subs columns of a row (subs is 2 or 4). Four codes of one row lie together, which is what
   the processors' 4-way dot products want, and what a tile of AMX is:
       8 bits: byte 4r + j of vector v is code + 128 of row r, column 4v + j; 16 vectors
       4 bits: byte 4r + j of vector v has in its low nibble row r, column 32(v / 4) + 4(v % 4) + j, in its high nibble the
               column 16 further on (ggml's own order within a row); 8 vectors
   and stands for value = scale * (table[code] + low[code] / 256) + minimum, times the matrix's `unit`. A float tile is
   [64][16] floats.

   Structures that Python fills are declared here and in engine/native.py and engine/pack.py; abi.c lets Python compare them. */
#ifndef LLAMACHAT_ENGINE_H
#define LLAMACHAT_ENGINE_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { LANES = 16, TILE = 64, GROUP = 32 };  /* rows of a strip, columns of a tile, columns that share an activation scale */
enum { CHUNK = 128 };                        /* slots whose softmax is computed together; fixes the order of summation */
enum { SCRATCH = 24 << 10 };                 /* bytes that matmul wants for each thread */
enum { ROWS = 8 };                           /* queries that attend together */
enum { DIM = 1024 };                         /* elements of the largest head: arrays on the stack have room for so many */
/* The largest model whose products of sizes fit 32 bits wherever the code has them in an int; see model_fault. */
enum {
    MAX_HIDDEN = 1 << 20, MAX_INNER = 1 << 22, MAX_VOCAB = 1 << 24, MAX_LAYERS = 1024, MAX_HEADS = 4096, MAX_THREADS = 1024,
    MAX_SLOTS = 1 << 30, MAX_BATCH = 1 << 12
};
enum kind { F32, F16, BF16, Q8, Q4 };

typedef struct {
    const uint8_t *data;  /* 64-byte aligned */
    uint64_t bytes;       /* of data */
    const float *bias;    /* [rows up to the strip], or NULL */
    int32_t rows, columns, kind, subs, minimum;
    float unit;
    uint8_t table[16];    /* Q4: value + 128 of each code */
    uint8_t low[16];      /* Q4, if wide: 256ths + 128 of each code, for tables that 8 bits are too coarse for */
    int32_t wide;
} Matrix;

enum linear { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, LINEARS };

typedef struct {
    int32_t vocab, hidden, inner, layers, heads, kv_heads, head_dim, slots, kv_kind, threads, batch;  /* batch: most tokens a call */
    float eps, rope_factor;
    const double *frequency;  /* [head_dim / 2] */
    const int32_t *window;    /* [layers], INT32_MAX: none */
    const float *norms;       /* [2 * layers + 1][hidden up to 64] */
    const Matrix *embed, *head, *linears;  /* linears: [layers][LINEARS] */
} Model;

/* Pieces of one or more texts. A run is tokens of one text that lie side by side; it sees the slots of its text's ranges. */
typedef struct {
    const int32_t *ids;
    const int64_t *slots, *positions, *visible;  /* visible: [ranges][first slot, end, text] */
    const int32_t *runs;                         /* [runs][first token, end, text] */
    int32_t tokens, texts, ranges, run_count, wanted;  /* wanted: how many tokens, the first ones, want logits */
    float *logits;                               /* [wanted][vocab up to 16] */
} Step;

/* What pack.c makes a matrix of: a tensor in the bit layout of llamachat/tensors.py. */
typedef struct {
    const void *codes;           /* float data of the matrix's kind; int8 [rows][columns]; or nibbles [rows][columns / 2] */
    const void *scale, *minimum; /* [rows][columns / group], of one type; minimum may be NULL */
    uint64_t codes_bytes, scales; /* bytes of codes; how many scales there are, and as many minima */
    int32_t group, half;         /* half: scales are fp16, else fp32 */
    float factor, offset;        /* value = scale * (factor * table[code] + offset) + minimum */
} Source;

/* Activations of some tokens, as floats and as integers q with a scale per 32; width is a multiple of 64, the excess zero.
   Coarse: q = high, 8 bits. Fine: q = 256 * high + low, 15 bits, for twice the multiplications: for the products whose
   rounding is felt most in the logits (see engine.c). Groups of 32 columns lie group after group for `lanes` (1 to 16) tokens
   side by side, then for the next tokens: what is read together lies together, and is a tile of AMX. See group_of. */
typedef struct {
    int32_t width, lanes;
    float *x;                     /* [tokens][width] */
    int8_t *high, *low;           /* [groups][32], x ~ q * scale */
    float *scale;                 /* [groups] */
    int32_t *sum32, *sum16;       /* -128 * sum of q over 32 and 16 columns: takes the codes' bias back */
    float *mass32, *mass16;       /* scale * sum of q: what a minimum is multiplied with; those of 16 columns at half_of */
} Acts;

typedef struct {
    const void *k;                /* [slots / 16][head_dim up to 16][16] of one key-value head, from some slot on, as are all these;
                                     Q8: [slots / 16][head_dim / 4][16][4]; one block more may be read, its scores are not used */
    const void *v;                /* [slots][head_dim up to 16]; Q8: [slots / 4][head_dim up to 16][4] */
    const float *k_scale, *v_scale;  /* [slots], Q8 only */
    const int32_t *position;      /* [slots]; INT32_MAX where not visible */
    int32_t kind, dim, window;    /* dim: head_dim up to 16; window: a query sees this many positions */
} Keys;

typedef struct {
    const char *name;
    void (*fetch)(const Matrix *w, int row, float *out);
    void (*rmsnorm)(float *x, const float *add, const float *weight, int n, float eps, float *out);  /* add: to x first; or NULL */
    void (*rotate)(float *x, const float *cosine, const float *sine, int half, float scale);
    void (*quantize)(const Acts *a, int token, int first, int last, int fine);  /* columns, multiples of 32 */
    void (*swiglu)(const float *gate, const float *up, float *out, int n);
    void (*matmul)(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip, int strips,
                   void *scratch);
    void (*attend)(const Keys *keys, const float *const *q, const int32_t *position, int rows, int slots, float *part);
    void (*merge)(float *into, const float *part, int dim);
    float (*narrow)(int kind, const float *x, void *out, int n);  /* returns the scale of Q8 */
    float (*widen)(int kind, const void *p, size_t i);
    void (*enter)(void);          /* each thread, before and after it uses matmul */
    void (*leave)(void);
} Kernels;

/* An attention partial is [PART + dim] floats: largest score, sum of exponentials, unused..., weighted sum of values. */
enum { PART = 16 };

static inline int up(int n, int to) { return (n + to - 1) / to * to; }
/* Where a token's g-th group of columns lies; the next token's is beside it unless a multiple of `lanes` is between them. */
static inline size_t group_of(const Acts *a, int token, int g) {
    return ((size_t)(token / a->lanes) * (a->width / GROUP) + g) * a->lanes + token % a->lanes;
}
static inline size_t half_of(const Acts *a, int token, int g, int half) {
    size_t lane = token % a->lanes;
    return 2 * (group_of(a, token, g) - lane) + half * a->lanes + lane;
}
static inline size_t tile_bytes(const Matrix *w) {
    if (w->kind <= BF16) return (size_t)TILE * LANES * (w->kind == F32 ? 4 : 2);
    return 32 * (size_t)w->subs * (w->minimum ? 2 : 1) + (w->kind == Q4 ? 512 : 1024);
}
static inline size_t strip_bytes(const Matrix *w) { return tile_bytes(w) * (up(w->columns, TILE) / TILE); }
size_t packed_bytes(const Matrix *w);

/* abi.c: why something cannot be what it is said to be, in words; NULL: it can. */
const char *matrix_fault(const Matrix *w);
const char *model_fault(const Model *m);
const char *weights_fault(const Model *m);
const char *places_fault(int slots, const int64_t *slot, const int64_t *position, int count);
const char *step_fault(const Model *m, const Step *s);

static inline float half_to_float(uint16_t h) {
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float x;
    memcpy(&x, &bits, 4);
    x *= 0x1p112f;
    memcpy(&bits, &x, 4);
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&x, &bits, 4);
    return x;
}
static inline uint16_t float_to_half(float x) {  /* to nearest even; saturates */
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x477fe000) bits = 0x477fe000;
    if (bits < 0x38800000) {  /* subnormal: let the adder round at 2^-24 */
        memcpy(&x, &bits, 4);
        x += 0.5f;
        memcpy(&bits, &x, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
}

const Kernels *select_kernels(const char *name);  /* NULL: the best here; or NULL if there is no such */
#endif
