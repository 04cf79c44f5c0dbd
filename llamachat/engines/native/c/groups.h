/* A group of 32 columns of some strips times the activations of up to MANY tokens. What a token gets does not depend on the
   others: see kernels.c. */

enum { STRIPS = VL == 16 ? 2 : 1, VECTORS = STRIPS * PARTS };  /* strips side by side, and vectors of their rows */
enum { MANY = FEW };               /* tokens side by side: what is unpacked, and what is loaded of a token, is used so often */

/* 256 times the integers in `high` and those in `low`, which together may not fit 32 bits, rounded once. */
INLINE vf joined(vf high, vf low) { return plus(low, splat(256.0f), high); }

/* A folded group's two sums of 16 columns times the integers that they are multiplied with. Floats hold all of it exactly: 6 bits
   at most, as signed ones, times 7 of activations, of 16 columns, times 8: 2^23, of either. */
INLINE vf folded(vi first, vi second, const vf by[2]) { return plus(to_float(first) * by[0], to_float(second), by[1]); }

/* The two sums of activations, over 16 columns each, that lie in a pair. */
INLINE int32_t half_of(int32_t pair, int second) { return second ? pair >> 16 : (int16_t)pair; }

INLINE vf folded_mass(vi pairs, int fine, const Acts *a, size_t at) {
    vf sum = to_float(madd(pairs, splat_int(a->pair_high[at])));
    return fine ? joined(sum, to_float(madd(pairs, splat_int(a->pair_low[at])))) : sum;
}

/* Codes of a way of coding: how they lie, and what makes numbers of them. Constants but for the table. */
typedef struct { int kind, coding, bits, flipped; vb table; } Codes;

/* A group's scales; of a folded one, also the integers that its two sums are multiplied with, and those of minima. */
typedef struct { vf by[2]; vi low_by; vf weight, lowest; } Factors;

/* A group's sums of some tokens and rows: of all its columns, or if it is folded of the first 16 and of the others. */
typedef vi Sums[2][MANY][VECTORS];

/* Of a group of some strips, which lie `next` bytes apart, the j-th vector of rows. */
INLINE vb quad_of(Codes c, const uint8_t *group, size_t next, int j, int v) {
    return unpack_quad(c.kind, c.coding, c.table, group + j / PARTS * next, j % PARTS, v) ^ (uint8_t)c.flipped;
}

/* Adds a group's codes times activations x [tokens][32]. Two quads that are unpacked of the same bytes come one after the other,
   unless products are paired, which are summed up before the next ones. */
INLINE void dot_tokens(Codes c, int folds, int tokens, const uint8_t *group, size_t next, const int8_t *x, Sums sums) {
    int paired = PAIRED && c.bits < 8, at_once = paired ? least(quads_at_once(c.bits), folds ? 4 : 8) : 1;
    UNROLL
    for (int first = 0; first < 8; first += at_once) {
        vs pairs[MANY][VECTORS];
        UNROLL
        for (int k = first; k < first + at_once; k++) {
            int v = paired && folds ? k : k % 2 * 4 + k / 2;
            vb quads[VECTORS];
            UNROLL
            for (int j = 0; j < VECTORS; j++) quads[j] = quad_of(c, group, next, j, v);
            UNROLL
            for (int i = 0; i < tokens; i++) {
                vi four = splat_quad(x + GROUP * i + 4 * v), *sum = sums[folds && v >= 4][i];
                UNROLL
                for (int j = 0; j < VECTORS; j++)
                    if (!paired) sum[j] = one_by_one(dot4(sum[j], quads[j], four));
                    else if (k == first) pairs[i][j] = (vs)one_by_one((vi)maddubs(quads[j], four));
                    else pairs[i][j] = (vs)one_by_one((vi)(pairs[i][j] + maddubs(quads[j], four)));
            }
        }
        UNROLL
        for (int i = 0; paired && i < tokens; i++)
            UNROLL
            for (int j = 0; j < VECTORS; j++)
                sums[folds && first >= 4][i][j] += madd((vi)pairs[i][j], splat_int(0x10001));
    }
}

/* What sums start with, for `first` is added to every code: times each token's sums of activations, a pair if folded. */
INLINE void start_sums(int folds, int tokens, int first, const int32_t *of, Sums sums) {
    int32_t lifts[2][MANY];
    UNROLL
    for (int i = 0; i < tokens; i++)
        for (int half = 0; half < 2; half++) lifts[half][i] = first * (folds ? half_of(of[i], half) : of[i]);
    UNROLL
    for (int half = 0; half <= folds; half++)
        UNROLL
        for (int i = 0; i < tokens; i++)
            UNROLL
            for (int j = 0; j < VECTORS; j++) sums[half][i][j] = splat_int(lifts[half][i]);
}

/* Adds a group's products with up to MANY tokens, whose activations lie side by side from the at-th group on, to `totals`. */
INLINE void add_products(Codes c, int folds, int minimum, int fine, int tokens, const uint8_t *group, size_t next,
                         const Factors f[VECTORS], int first, const Acts *a, size_t at, vf totals[MANY][VECTORS]) {
    Sums high, low;
    if (folds) start_sums(1, tokens, first, a->pair_high + at, high);
    else start_sums(0, tokens, fine ? 0 : first, a->sum32 + at, high);
    dot_tokens(c, folds, tokens, group, next, a->high + at * GROUP, high);
    if (fine) {
        start_sums(folds, tokens, first, folds ? a->pair_low + at : a->sum32 + at, low);
        dot_tokens(c, folds, tokens, group, next, a->low + at * GROUP, low);
    }
    UNROLL
    for (int i = 0; i < tokens; i++) {
        vf scale = splat(a->scale[at + i]);
        UNROLL
        for (int j = 0; j < VECTORS; j++) {
            vf sum;
            if (folds) sum = folded(high[0][i][j], high[1][i][j], f[j].by);
            else if (fine) sum = to_float(high[0][i][j] * 256 + low[0][i][j]);
            else sum = to_float(high[0][i][j]);
            if (folds && fine) sum = joined(sum, folded(low[0][i][j], low[1][i][j], f[j].by));
            totals[i][j] = plus(totals[i][j], f[j].weight * scale, sum);
            if (minimum && folds)
                totals[i][j] = plus(totals[i][j], f[j].lowest * scale, folded_mass(f[j].low_by, fine, a, at + i));
            else if (minimum) totals[i][j] = plus(totals[i][j], f[j].lowest, splat(a->mass32[at + i]));
        }
    }
}

INLINE void factors_of(int scaling, int subs, int minimum, const Scales *s, int g, int part, Factors *f) {
    int folds = is_folded(scaling, subs);
    if (folds) folds_at(scaling, s, g, part, f->by);
    f->weight = scale_at(scaling, subs, s, g, 0, part);
    if (minimum) f->lowest = minimum_at(scaling, subs, s, g, 0, part);
    if (minimum && folds) f->low_by = low_pairs_at(s, g, part);
}
