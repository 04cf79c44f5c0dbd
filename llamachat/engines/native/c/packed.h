/* Packed weights: how a matrix lies in memory. The layout is defined here and nowhere else.

   A matrix [rows, columns] is cut into strips of 16 rows, a strip into tiles of 64 columns; missing rows and columns are
   zero. A quantized tile is
       fp16 scale[subs][16], fp16 minimum[subs][16] (if any), then the codes in 64-byte vectors,
   with one scale for every 64 / subs columns of a row (subs is 2 or 4). Four codes of one row lie together, which is what
   the processors' 4-way dot products want, and what a tile of AMX is:
       8 bits: byte 4r + j of vector v is code + 128 of row r, column 4v + j; 16 vectors
       4 bits: byte 4r + j of vector v has in its low nibble row r, column 32(v / 4) + 4(v % 4) + j, in its high nibble the
               column 16 further on (ggml's own order within a row); 8 vectors
   and stands for value = scale * (table[code] + low[code] / 256) + minimum, times the matrix's `unit`. A float tile is
   [64][16] floats. */
#ifndef LLAMACHAT_PACKED_H
#define LLAMACHAT_PACKED_H
#include <stddef.h>
#include <stdint.h>

enum { LANES = 16, TILE = 64, GROUP = 32 };  /* rows of a strip, columns of a tile, columns that share an activation scale */
enum kind { F32, F16, BF16, Q8, Q4 };

/* What is added to a matrix's product with x: scale * b (a x), and of several all. `a` [rank, columns] lies in groups of 4 rows, a
   group in pieces of 16 columns, as [4][16]; `b` [rows, rank] in strips of 16 rows, a strip as [rank][16]. Missing rows and columns
   (of whole tiles) are zero. */
typedef struct LowRank {
    const void *a, *b;             /* 64-byte aligned */
    uint64_t a_bytes, b_bytes;
    const struct LowRank *next;    /* or NULL */
    int32_t rank, kind;            /* kind: F32, F16 or BF16, of both */
    float scale;
} LowRank;

typedef struct {
    const uint8_t *data;  /* 64-byte aligned */
    uint64_t bytes;       /* of data */
    const float *bias;    /* [rows up to the strip], or NULL */
    int32_t rows, columns, kind, subs, minimum;
    float unit;
    uint8_t table[16];    /* Q4: value + 128 of each code */
    uint8_t low[16];      /* Q4, if wide: 256ths + 128 of each code, for tables that 8 bits are too coarse for */
    int32_t wide;
    int32_t narrow;       /* Q8: all codes are within -32..31, whose products sum in fewer instructions on some processors */
    const LowRank *added; /* or NULL; see engine_adapt */
} Matrix;

/* What pack.c makes a matrix of: a tensor in the bit layout of llamachat/core/tensors.py. */
typedef struct {
    const void *codes;           /* float data of the matrix's kind; int8 [rows][columns]; or nibbles [rows][columns / 2] */
    const void *scale, *minimum; /* [rows][columns / group], of one type; minimum may be NULL */
    uint64_t codes_bytes, scales; /* bytes of codes; how many scales there are, and as many minima */
    int32_t group, half;         /* half: scales are fp16, else fp32 */
    float factor, offset;        /* value = scale * (factor * table[code] + offset) + minimum */
} Source;

/* The least multiple of `to` that is not below n. */
static inline int up(int n, int to) { return (n + to - 1) / to * to; }
static inline int strips_of(const Matrix *w) { return up(w->rows, LANES) / LANES; }
static inline size_t tile_bytes(const Matrix *w) {
    if (w->kind <= BF16) return (size_t)TILE * LANES * (w->kind == F32 ? 4 : 2);
    return 32 * (size_t)w->subs * (w->minimum ? 2 : 1) + (w->kind == Q4 ? 512 : 1024);
}
static inline size_t strip_bytes(const Matrix *w) { return tile_bytes(w) * (up(w->columns, TILE) / TILE); }
static inline size_t float_bytes(int kind) { return kind == F32 ? 4 : 2; }
static inline size_t matrix_bytes(const Matrix *w) { return strip_bytes(w) * strips_of(w); }
#endif
