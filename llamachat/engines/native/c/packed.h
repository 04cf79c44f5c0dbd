/* Packed weights: how a matrix lies in memory. The layout is defined here and nowhere else.

   A matrix [rows, columns] is cut into strips of 16 rows, a strip into blocks of 64 or 256 columns; missing rows and columns
   are zero. A float block is [64][16] floats. A coded one is its scales, then groups of 32 columns of codes without a sign, u,
   that stand for value = scale * (number + first) + minimum, times the matrix's `unit`; number is u, or table[u] where there is
   a table. `scaling` says how scales lie:
       HALVES      64 columns: fp16 scale[subs][16], fp16 minimum[subs][16] (if any), for 64 / subs columns each (subs is 2 or 4)
       EXPONENTS   64 columns: uint8 e[2][16]; scale is 2^(e - 128)
   and the K types' of ggml, in 256 columns: fp16 d[16] and, with minima, fp16 -dmin[16]; then integers s, and scale is d * s:
       BYTES       int8 s[8][16] and m[8][16] (if any); without minima also, for 16 columns each (subs is 4), s[8][16][2]
       NIBBLES     for 16 columns each, uint8 [8][16][2]: s + 16 m
       SIXES       for 16 columns each, six bits of s + 32: uint8 [4][16][2] with the low four of groups i and i + 4, then
                   uint8 [2][16][2], whose bits 2k and 2k + 1 are the high two of group i + 2k
   Four codes of one row lie together, a quad, which is what the processors' 4-way dot products want. Quad v of a group has
   columns 4v to 4v + 3. Sixteen rows' quads are a vector of 64 bytes. The bits of codes lie in planes, one behind the other:
       8 bits   8 vectors, of quads 0 to 7
       4 bits   4 vectors: low nibbles are quad i, high ones quad i + 4
       2 bits   2 vectors: bits 2k and 2k + 1 are quad i + 2k
       1 bit    a vector: bit k is quad k
   Codes of 3 bits are planes of 2 and of 1 bit (the highest), 5 bits are 4 and 1, 6 bits are 4 and 2. */
#ifndef LLAMACHAT_PACKED_H
#define LLAMACHAT_PACKED_H
#include <stddef.h>
#include <stdint.h>

enum { LANES = 16, TILE = 64, GROUP = 32 };  /* rows of a strip, columns of a tile, columns that share an activation scale */
enum { SUPER = 256 };                        /* columns of a K type's block */
enum kind { F32, F16, BF16, Q8, Q4, Q2, Q3, Q5, Q6 };
enum scaling { HALVES, EXPONENTS, BYTES, NIBBLES, SIXES };

/* What is added to a matrix's product with x: scale * b (a x), and of several all. `a` [rank, columns] lies in groups of 4
   rows, a group in pieces of 16 columns, as [4][16]; `b` [rows, rank] in strips of 16 rows, a strip as [rank][16]. Missing rows
   and columns (of whole tiles) are zero. */
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
    int32_t rows, columns, kind, scaling, subs, minimum;
    int32_t first;        /* see above */
    float unit;
    uint8_t table[16];    /* of 4 bits, if tabled: what codes stand for */
    uint8_t low[16];      /* if wide: 256ths + 128 of each code, for tables that 8 bits are too coarse for */
    int32_t tabled, wide;
    const LowRank *added; /* or NULL; see engine_adapt */
} Matrix;

/* What pack.c makes a matrix of: a tensor in the bit layout of llamachat/core/tensors.py. */
typedef struct {
    const void *codes;           /* float data of the matrix's kind; int8 [rows][columns]; or nibbles [rows][columns / 2] */
    const void *scale, *minimum; /* [rows][columns / group], of one type; minimum may be NULL */
    uint64_t codes_bytes, scales; /* bytes of codes; how many scales there are, and as many minima */
    int32_t group, half;         /* half: scales are fp16, else fp32 */
    float factor, offset;        /* value = scale * (factor * number + offset) + minimum */
} Source;

/* What blocks.c makes a matrix of: rows of whole blocks as ggml has them. */
typedef struct {
    const void *data;            /* [stored][blocks of a row] */
    const int32_t *order;        /* the stored row that each row is; NULL: its own number */
    uint64_t bytes;              /* of data */
    int32_t stored, type;        /* rows that there are; ggml's number of the type */
} Blocks;

/* The least multiple of `to` that is not below n. */
static inline int up(int n, int to) { return (n + to - 1) / to * to; }
static inline int strips_of(const Matrix *w) { return up(w->rows, LANES) / LANES; }
static inline int bits_of(int kind) {
    return kind == Q8 ? 8 : kind == Q4 ? 4 : kind == Q2 ? 2 : kind == Q3 ? 3 : kind == Q5 ? 5 : 6;
}
static inline size_t group_bytes(int kind) { return 2 * GROUP * bits_of(kind); }  /* of 32 columns' codes */
static inline int block_columns(int scaling) { return scaling >= BYTES ? SUPER : TILE; }
static inline size_t integers_at(int minimum) { return 2 * LANES * (1 + minimum); }  /* of a K type's block */
static inline size_t scales_bytes(int scaling, int subs, int minimum) {
    switch (scaling) {
    case HALVES: return 2 * (size_t)LANES * subs * (1 + minimum);
    case EXPONENTS: return 2 * LANES;
    case BYTES: return integers_at(minimum) + 4 * (size_t)LANES * subs * (1 + minimum);
    case NIBBLES: return integers_at(1) + 16 * LANES;
    default: return integers_at(0) + 12 * LANES;
    }
}
static inline size_t block_bytes(const Matrix *w) {
    if (w->kind <= BF16) return (size_t)TILE * LANES * (w->kind == F32 ? 4 : 2);
    return scales_bytes(w->scaling, w->subs, w->minimum) + group_bytes(w->kind) * (block_columns(w->scaling) / GROUP);
}
static inline int column_blocks(const Matrix *w) {
    int columns = w->kind <= BF16 ? TILE : block_columns(w->scaling);
    return up(w->columns, columns) / columns;
}
/* Whether integers are multiplied with a group's two sums of 16 columns before these are added up: scales are then d alone. */
static inline int is_folded(int scaling, int subs) { return scaling >= BYTES && subs == 4; }
static inline size_t strip_bytes(const Matrix *w) { return block_bytes(w) * column_blocks(w); }
static inline size_t float_bytes(int kind) { return kind == F32 ? 4 : 2; }
static inline size_t matrix_bytes(const Matrix *w) { return strip_bytes(w) * strips_of(w); }
#endif
