/* Products of packed matrices and several tokens. What a token gets does not depend on the others: see kernels.c. */

enum { PANEL = 256 };              /* tokens whose activations, a block of columns, stay in the second-level cache */

#include "pieces.h"

/* A piece times up to MANY tokens; so many are computed, for which activations must have room. Codes are unpacked where they
   are used. */
INLINE void times_tokens(int kind, int scaling, int subs, int minimum, int coding, int fine, const Piece *p, int token, int n,
                         float *y) {
    int bits = number_bits(kind, coding), groups = block_columns(scaling) / GROUP, first = p->w->first + signed_by(bits);
    size_t before = scales_bytes(scaling, subs, minimum), each = group_bytes(kind), lanes = p->a->lanes;
    size_t bytes = before + each * groups, at = group_of(p->a, token, p->from * groups), next = strip_bytes(p->w) * p->apart;
    /* blocks_at by constants: with it, gcc 12 arranges the loop otherwise, and prompts of IQ4_XS take 7% longer */
    const uint8_t *block = p->w->data + strip_bytes(p->w) * p->strip + bytes * p->from;
    Codes c = {kind, coding, bits, signed_by(bits), load_table(p->w->table)};
    vf totals[MANY][VECTORS];
    start_totals(p, n, y, totals);
    for (int b = p->from, due = p->turn; b < p->to; b++, due--, block += bytes) {
        size_t ahead = due == 0 ? p->ahead : 0;
        if (due == 0) due = p->turns;
        Scales s[STRIPS];
        Factors f[VECTORS];
        UNROLL
        for (int i = 0; i < STRIPS; i++) {
            fetch(block + i * next, ahead, before);
            open_scales(scaling, minimum, block + i * next, s + i);
        }
        for (int g = 0; g < groups; g++, at += lanes) {
            const uint8_t *codes = block + before + each * g;
            for (int i = 0; i < STRIPS; i++) fetch(codes + i * next, ahead, each);
            UNROLL
            for (int j = 0; j < VECTORS; j++) factors_of(scaling, subs, minimum, s + j / PARTS, g, j % PARTS, f + j);
            add_products(c, is_folded(scaling, subs), minimum, fine, MANY, codes, next, f, first, p->a, at, totals);
        }
    }
    end_totals(p, n, y, totals);
}

/* By way_of, of those that are read where they lie. */
typedef void Times(const Piece *p, int fine, int token, int tokens, float *y);

#define TIMES(k, scales, n, low, c)                                                                                       \
    static void times_##k##scales##n##low##c(const Piece *p, int fine, int token, int tokens, float *y) {                 \
        if (fine) times_tokens(k, scales, n, low, c, 1, p, token, tokens, y);                                             \
        else times_tokens(k, scales, n, low, c, 0, p, token, tokens, y);                                                  \
    }
READ_WAYS(TIMES)
#undef TIMES

#define NAMED(k, scales, n, low, c) times_##k##scales##n##low##c,
static Times *const times_of[] = {READ_WAYS(NAMED)};
#undef NAMED

#include "tiles.h"

/* Strips times some tokens: a piece of a strip, which stays in the first-level cache, times all of them; then that of the next
   strip follows, for which activations stay in the second-level one. */
static void strips_several(int way, const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride,
                           int strip, int strips, void *scratch) {
    int blocks = column_blocks(w), step = (way < READ ? PIECE : OPENED) / block_columns(w->scaling);
    for (int from = 0; from < blocks; from += step)
        for (int s = strip; s < strip + strips; s += STRIPS) {
            int apart = s + 1 < strip + strips;  /* else the same twice */
            Piece p = {w, a, stride, strip_bytes(w) * STRIPS, s, apart, from, least(from + step, blocks), 0, 1};
            int i = tokens - tiled(&p, fine, token, tokens, y, scratch);
            p.turns = up(tokens - i, MANY) / MANY;
            if (way >= READ && i < tokens) OF_SET(times_opened)(&p, fine, token + i, tokens - i, y + i * stride, scratch);
            for (; way < READ && i < tokens; i += MANY, p.turn++)
                times_of[way](&p, fine, token + i, least(tokens - i, MANY), y + i * stride);
        }
}

/* y[t][row] for `tokens` tokens. */
static void matmul(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                   int strips, void *scratch) {
    int way = way_of(w);
    for (int i = 0, n; i < tokens; i += n) {
        float *to = y + (size_t)i * stride;
        n = least(tokens - i, way < 0 ? FEW : PANEL);
        if (n == 1) OF_SET(strips_once)(w, a, fine, token + i, to, strip, strips);
        else if (n <= FEW) OF_SET(strips_few)(w, a, fine, token + i, n, to, stride, strip, strips);
        else strips_several(way, w, a, fine, token + i, n, to, stride, strip, strips, scratch);
    }
}
