/* A set's products of many tokens with pieces whose codes are unpacked once for all of them: those of types that many
   instructions take apart. */
#include "set.h"

#include "codes.h"
#include "products.h"
#include "pieces.h"

/* A piece, unpacked for all of its products: numbers of 8 bits, and what groups are multiplied with. */
typedef struct {
    uint8_t codes[OPENED / GROUP][STRIPS][8 * 64];
    Factors factors[OPENED / GROUP][VECTORS];
} Opened;
_Static_assert(sizeof(Opened) <= SCRATCH, "an opened piece has room in scratch");

INLINE void open_piece(int kind, int scaling, int subs, int minimum, int coding, const Piece *p, Opened *o) {
    int bits = number_bits(kind, coding), groups = block_columns(scaling) / GROUP;
    size_t before = scales_bytes(scaling, subs, minimum), each = group_bytes(kind);
    Codes c = {kind, coding, bits, signed_by(bits), load_table(p->w->table)};
    for (int strip = 0; strip < STRIPS; strip++) {
        const uint8_t *block = blocks_at(p, strip);
        for (int g = 0; g < (p->to - p->from) * groups; block += before + each * groups) {
            Scales s;
            open_scales(scaling, minimum, block, &s);
            for (int i = 0; i < groups; i++, g++)
                UNROLL
                for (int part = 0; part < PARTS; part++) {
                    factors_of(scaling, subs, minimum, &s, i, part, o->factors[g] + strip * PARTS + part);
                    UNROLL
                    for (int v = 0; v < 8; v++)
                        *(vb *)(o->codes[g][strip] + 64 * v + 4 * VL * part) = quad_of(c, block + before + each * i, 0, part, v);
                }
        }
    }
}

#define OPEN(k, scales, n, low, c) \
    static void open_##k##scales##n##low##c(const Piece *p, Opened *o) { open_piece(k, scales, n, low, c, p, o); }
OPENED_WAYS(OPEN)
#undef OPEN

#define NAMED(k, scales, n, low, c) open_##k##scales##n##low##c,
static void (*const open_of[])(const Piece *, Opened *) = {OPENED_WAYS(NAMED)};  /* by way_of less READ */
#undef NAMED

/* An opened piece times up to MANY tokens; so many are computed, for which activations must have room. */
INLINE void times_numbers(int bits, int folds, int minimum, int fine, const Piece *p, const Opened *o, int token, int n,
                          float *y) {
    const Matrix *w = p->w;
    int groups = block_columns(w->scaling) / GROUP, first = w->first + signed_by(number_bits(w->kind, coding_of(w)));
    size_t at = group_of(p->a, token, p->from * groups), lanes = p->a->lanes, bytes = block_bytes(w) / groups;
    size_t next = strip_bytes(w) * p->apart, of_strip = sizeof o->codes[0][0];
    const uint8_t *packed = blocks_at(p, 0);
    Codes c = {.kind = Q8, .coding = PLAIN, .bits = bits};
    vf totals[MANY][VECTORS];
    start_totals(p, n, y, totals);
    for (int g = 0, due = p->turn; g < (p->to - p->from) * groups; g++, due--, at += lanes) {
        size_t ahead = due == 0 ? p->ahead : 0;
        if (due == 0) due = p->turns;
        for (int i = 0; i < STRIPS; i++) fetch(packed + bytes * g + i * next, ahead, bytes);
        add_products(c, folds, minimum, fine, MANY, o->codes[g][0], of_strip, o->factors[g], first, p->a, at, totals);
    }
    end_totals(p, n, y, totals);
}

/* Kernels of opened pieces: the bits of numbers, where products are paired; folded; with minima. Of fewer bits come first. */
#if PAIRED
#define FORMS(X) X(5, 0, 0) X(5, 0, 1) X(4, 1, 0) X(4, 1, 1) X(6, 1, 0)
#else
#define FORMS(X) X(8, 0, 0) X(8, 0, 1) X(8, 1, 0) X(8, 1, 1)
#endif

#define TIMES(bits, folds, low)                                                                                            \
    if (needed <= bits && folded == folds && w->minimum == low) {                                                          \
        if (fine) times_numbers(bits, folds, low, 1, p, o, token, tokens, y);                                              \
        else times_numbers(bits, folds, low, 0, p, o, token, tokens, y);                                                   \
        return;                                                                                                            \
    }
static void times_few(const Piece *p, const Opened *o, int fine, int token, int tokens, float *y) {
    const Matrix *w = p->w;
    int needed = number_bits(w->kind, coding_of(w)), folded = is_folded(w->scaling, w->subs);
    FORMS(TIMES)
}
#undef TIMES

void OF_SET(times_opened)(const Piece *p, int fine, int token, int tokens, float *y, void *scratch) {
    Piece turn = *p;
    open_of[way_of(p->w) - READ](p, scratch);
    for (int i = 0; i < tokens; i += MANY, turn.turn++)
        times_few(&turn, scratch, fine, token + i, least(tokens - i, MANY), y + i * p->stride);
}
