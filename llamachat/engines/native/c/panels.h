/* Products of packed matrices and several tokens. What a token gets does not depend on the others: see kernels.c. */

enum { MANY = VL == 16 ? 8 : 4 };  /* tokens side by side: as many as there are registers for */
enum { PANEL = 256 };              /* tokens whose activations, a block of columns, stay in the second-level cache */
enum { PIECE = 1024 };             /* columns of a strip, whose codes stay in the first-level cache */

/* Codes of a way of coding: how they lie, and what makes numbers of them. Constants but for the table. */
typedef struct { int kind, coding, bits, flipped; vb table; } Codes;

/* A group's scales, and integers that its two sums of 16 columns are multiplied with: ones, unless folded. */
typedef struct { vi by[PARTS], low_by[PARTS]; vf weight[PARTS], lowest[PARTS]; } Factors;

/* Quads times four activations each: to `sum`, or if folded the last two of a quad to `other`, which start with the first. */
INLINE void dot_part(int folded, int k, vb quads, vi four, vi *sum, vi *other) {
    *sum = one_by_one(dot4(k ? *sum : splat_int(0), folded ? (vb)((vi)quads & 0xffff) : quads, four));
    if (folded) *other = one_by_one(dot4(k ? *other : splat_int(0), (vb)((vi)quads & ~0xffff), four));
}

/* A group's codes times activations x [tokens][32]: for each row its two sums of 16 columns, multiplied with the integers of `by`.
   Where products are summed up in 16 bits, as many are as fit. */
INLINE void dot_tokens(Codes c, int folded, int tokens, const uint8_t *group, const int8_t *x, const vi by[PARTS], vi sums[MANY][PARTS]) {
    int paired = VL >= 8 && (folded || (!BIASED && c.bits < 8)), at_once = paired ? quads_at_once(c.bits) : 8;
    vi others[MANY][PARTS];
    UNROLL
    for (int first = 0; first < 8; first += at_once) {
        UNROLL
        for (int k = first; k < first + at_once; k++) {
            int v = k % 2 * 4 + k / 2;  /* two that are unpacked of the same bytes, one after the other */
            vb quads[PARTS];
            UNROLL
            for (int part = 0; part < PARTS; part++) quads[part] = unpack_quad(c.kind, c.coding, c.table, group, part, v) ^ (uint8_t)c.flipped;
            UNROLL
            for (int i = 0; i < tokens; i++) {
                vi four = splat_quad(x + GROUP * i + 4 * v);
                UNROLL
                for (int part = 0; part < PARTS; part++)
                    if (paired) others[i][part] = one_by_one(k > first ? add_pairs(others[i][part], maddubs(quads[part], four)) : maddubs(quads[part], four));
                    else dot_part(folded, k, quads[part], four, &sums[i][part], &others[i][part]);
            }
        }
        UNROLL
        for (int i = 0; i < tokens; i++)
            UNROLL
            for (int part = 0; part < PARTS; part++)
                if (paired) sums[i][part] = (first ? sums[i][part] : splat_int(0)) + madd(others[i][part], by[part]);
                else if (folded) sums[i][part] = sums[i][part] * (by[part] << 16 >> 16) + others[i][part] * (by[part] >> 16);
    }
}

/* Adds a group's products with MANY tokens, whose activations lie side by side from the at-th group on, to `totals`. */
INLINE void add_products(Codes c, int folded, int minimum, int fine, const uint8_t *group, const Factors *f, int first, const Acts *a,
                         size_t at, vf totals[MANY][PARTS]) {
    vi high[MANY][PARTS], low[MANY][PARTS];
    dot_tokens(c, folded, MANY, group, a->high + at * GROUP, f->by, high);
    if (fine) dot_tokens(c, folded, MANY, group, a->low + at * GROUP, f->by, low);
    if (first)
        UNROLL
        for (int i = 0; i < MANY; i++)
            UNROLL
            for (int part = 0; part < PARTS; part++) {
                vi firsts = times_each(f->by[part], first);
                high[i][part] += madd(firsts, splat_int(a->pair_high[at + i]));
                if (fine) low[i][part] += madd(firsts, splat_int(a->pair_low[at + i]));
            }
    UNROLL
    for (int i = 0; i < MANY; i++) {
        vf scale = splat(a->scale[at + i]);
        UNROLL
        for (int part = 0; part < PARTS; part++) {
            vf sum = !fine ? to_float(high[i][part]) : folded ? joined(high[i][part], low[i][part]) : to_float(high[i][part] * 256 + low[i][part]);
            totals[i][part] = plus(totals[i][part], f->weight[part] * scale, sum);
            if (minimum && folded) totals[i][part] = plus(totals[i][part], f->lowest[part] * scale, folded_mass(f->low_by[part], fine, a, at + i));
            else if (minimum) totals[i][part] = plus(totals[i][part], f->lowest[part], splat(a->mass32[at + i]));
        }
    }
}

INLINE void factors_of(int scaling, int subs, int minimum, const Scales *s, int g, Factors *f) {
    int folded = is_folded(scaling, subs);
    UNROLL
    for (int part = 0; part < PARTS; part++) {
        f->by[part] = folded ? pairs_at(scaling, s, g, part) : splat_int(0x10001);
        f->weight[part] = scale_at(scaling, subs, s, g, 0, part);
        if (minimum) f->lowest[part] = minimum_at(scaling, subs, s, g, 0, part);
        if (minimum && folded) f->low_by[part] = low_pairs_at(s, g, part);
    }
}

/* Blocks [from, to) of a strip, to be multiplied with some tokens. y [tokens][rows] has the sums of the blocks before. */
typedef struct {
    const Matrix *w;
    const Acts *a;
    size_t stride, ahead;    /* ahead: what lies so many bytes further on is fetched; 0: nothing */
    int strip, from, to;
} Piece;

INLINE void start_totals(const Piece *p, int n, const float *y, vf totals[MANY][PARTS]) {
    UNROLL
    for (int i = 0; i < MANY; i++)
        UNROLL
        for (int part = 0; part < PARTS; part++)
            totals[i][part] = p->from && i < n ? load(y + i * p->stride + p->strip * LANES + VL * part) : splat(0);
}

INLINE void end_totals(const Piece *p, int n, float *y, vf totals[MANY][PARTS]) {
    int last = p->to == column_blocks(p->w);
    UNROLL
    for (int i = 0; i < MANY; i++) {
        if (i >= n) break;
        UNROLL
        for (int part = 0; part < PARTS; part++)
            if (last) finish(p->w, p->strip, part, totals[i][part], y + i * p->stride);
            else store(y + i * p->stride + p->strip * LANES + VL * part, totals[i][part]);
    }
}

INLINE void fetch(const uint8_t *p, size_t ahead, size_t bytes) {
    for (size_t i = 0; ahead && i < bytes; i += 64) __builtin_prefetch(p + ahead + i);
}

/* A piece times up to MANY tokens; so many are computed, for which activations must have room. Codes are unpacked where they are used. */
INLINE void times_tokens(int kind, int scaling, int subs, int minimum, int coding, int fine, const Piece *p, int token, int n, float *y) {
    int bits = number_bits(kind, coding), groups = block_columns(scaling) / GROUP, first = p->w->first + signed_by(bits);
    size_t before = scales_bytes(scaling, subs, minimum), each = group_bytes(kind), lanes = p->a->lanes;
    size_t bytes = before + each * groups, at = group_of(p->a, token, p->from * groups);
    const uint8_t *block = p->w->data + strip_bytes(p->w) * p->strip + bytes * p->from;
    Codes c = {kind, coding, bits, signed_by(bits), load_table(p->w->table)};
    vf totals[MANY][PARTS];
    start_totals(p, n, y, totals);
    for (int b = p->from; b < p->to; b++, block += bytes) {
        Scales s;
        Factors f;
        fetch(block, p->ahead, before);
        open_scales(scaling, minimum, block, &s);
        for (int g = 0; g < groups; g++, at += lanes) {
            const uint8_t *codes = block + before + each * g;
            fetch(codes, p->ahead, each);
            factors_of(scaling, subs, minimum, &s, g, &f);
            add_products(c, is_folded(scaling, subs), minimum, fine, codes, &f, first, p->a, at, totals);
        }
    }
    end_totals(p, n, y, totals);
}

#define TIMES(k, scales, n, low, c)                                                                                       \
    static void times_##k##scales##n##low##c(const Piece *p, int fine, int token, int tokens, float *y) {                 \
        if (fine) times_tokens(k, scales, n, low, c, 1, p, token, tokens, y);                                             \
        else times_tokens(k, scales, n, low, c, 0, p, token, tokens, y);                                                  \
    }
WAYS(TIMES)
typedef void Times(const Piece *p, int fine, int token, int tokens, float *y);

/* The code made for a way of coding; NULL: floats, and what is rare, go token by token. */
static Times *times_of(const Matrix *w) {
    int coding = coding_of(w);
    if (w->kind <= BF16 || w->wide) return NULL;
#define CHOOSE(k, scales, n, low, c) \
    if (w->kind == k && w->scaling == scales && w->subs == n && w->minimum == low && coding == c) return times_##k##scales##n##low##c;
    WAYS(CHOOSE)
#undef CHOOSE
    return NULL;
}

#include "tiles.h"

/* Columns of a piece of a strip, which stays in the first-level cache for all tokens; then that of the next strip follows, for which
   activations stay in the second-level one. */
static int piece_blocks(const Matrix *w) { return (is_folded(w->scaling, w->subs) ? PIECE / 2 : PIECE) / block_columns(w->scaling); }

/* Strips times some tokens. */
static void strips_several(Times *times, const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride,
                           int strip, int strips, void *scratch) {
    int blocks = column_blocks(w), step = piece_blocks(w);
    for (int from = 0; from < blocks; from += step)
        for (int s = strip; s < strip + strips; s++) {
            Piece p = {w, a, stride, strip_bytes(w), s, from, least(from + step, blocks)};
            for (int i = tokens - tiled(&p, fine, token, tokens, y, scratch); i < tokens; i += MANY, p.ahead = 0)
                times(&p, fine, token + i, least(tokens - i, MANY), y + i * stride);
        }
}

/* y[t][row] for `tokens` tokens. */
static void matmul(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip, int strips,
                   void *scratch) {
    Stream *stream = stream_of(w);
    Times *times = times_of(w);
    for (int i = 0, n; i < tokens; i += n) {
        float *to = y + (size_t)i * stride;
        n = stream ? least(tokens - i, PANEL) : 1;
        if (!stream) strips_plain(w, a, fine, token + i, to, strip, strips);
        else if (n <= FEW) strips_streamed(stream, w, a, fine, token + i, n, to, stride, strip, strips);
        else strips_several(times, w, a, fine, token + i, n, to, stride, strip, strips, scratch);
    }
}
