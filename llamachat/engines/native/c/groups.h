/* A group of 32 columns of some strips times the activations of up to MANY tokens. What a token gets does not depend on the
   others: see kernels.c. */

enum { STRIPS = VL == 16 ? 2 : 1, VECTORS = STRIPS * PARTS };  /* strips side by side, and vectors of their rows */
enum { MANY = 4 };                 /* tokens side by side: what is unpacked, and what is loaded of a token, is used so often */

/* 256 times the integers of `high` and those of `low`, which together may not fit 32 bits, as floats, rounded once. */
INLINE vf joined(vi high, vi low) { return plus(to_float(low), splat(256.0f), to_float(high)); }

INLINE vf folded_mass(vi pairs, int fine, const Acts *a, size_t at) {
    vi sum = madd(pairs, splat_int(a->pair_high[at]));
    return fine ? joined(sum, madd(pairs, splat_int(a->pair_low[at]))) : to_float(sum);
}

/* Codes of a way of coding: how they lie, and what makes numbers of them. Constants but for the table. */
typedef struct { int kind, coding, bits, flipped; vb table; } Codes;

/* A group's scales, and integers that its two sums of 16 columns are multiplied with: ones, unless folded. */
typedef struct { vi by, low_by; vf weight, lowest; } Factors;

/* Quads times four activations each: their first two to `sum`, the last two to `other`, which start with the first quads. */
INLINE void dot_halves(int k, vb quads, vi four, vi *sum, vi *other) {
    *sum = one_by_one(dot4(k ? *sum : splat_int(0), (vb)((vi)quads & 0xffff), four));
    *other = one_by_one(dot4(k ? *other : splat_int(0), (vb)((vi)quads & ~0xffff), four));
}

/* Of a group of some strips, which lie `next` bytes apart, the j-th vector of rows. */
INLINE vb quad_of(Codes c, const uint8_t *group, size_t next, int j, int v) {
    return unpack_quad(c.kind, c.coding, c.table, group + j / PARTS * next, j % PARTS, v) ^ (uint8_t)c.flipped;
}

/* A group's codes times activations x [tokens][32], added to `sums`: for each row its two sums of 16 columns, multiplied with the
   integers of its factors. Where products are summed up in 16 bits, as many are as fit. */
INLINE void dot_tokens(Codes c, int folded, int tokens, const uint8_t *group, size_t next, const int8_t *x,
                       const Factors f[VECTORS], vi sums[MANY][VECTORS]) {
    int paired = VL >= 8 && (folded || (!BIASED && c.bits < 8)), at_once = paired ? quads_at_once(c.bits) : 8;
    vi others[MANY][VECTORS];
    UNROLL
    for (int first = 0; first < 8; first += at_once) {
        UNROLL
        for (int k = first; k < first + at_once; k++) {
            int v = k % 2 * 4 + k / 2;  /* two that are unpacked of the same bytes, one after the other */
            vb quads[VECTORS];
            UNROLL
            for (int j = 0; j < VECTORS; j++) quads[j] = quad_of(c, group, next, j, v);
            UNROLL
            for (int i = 0; i < tokens; i++) {
                vi four = splat_quad(x + GROUP * i + 4 * v);
                UNROLL
                for (int j = 0; j < VECTORS; j++)
                    if (paired && k > first) others[i][j] = one_by_one(add_pairs(others[i][j], maddubs(quads[j], four)));
                    else if (paired) others[i][j] = one_by_one(maddubs(quads[j], four));
                    else if (folded) dot_halves(k, quads[j], four, &sums[i][j], &others[i][j]);
                    else sums[i][j] = one_by_one(dot4(sums[i][j], quads[j], four));
            }
        }
        UNROLL
        for (int i = 0; i < tokens; i++)
            UNROLL
            for (int j = 0; j < VECTORS; j++)
                if (paired) sums[i][j] += madd(others[i][j], f[j].by);
                else if (folded) sums[i][j] = sums[i][j] * (f[j].by << 16 >> 16) + others[i][j] * (f[j].by >> 16);
    }
}

/* What sums start with, for `first` is added to every code: of each token, over a group. */
INLINE void start_sums(int folded, int tokens, int first, const Acts *a, size_t at, vi sums[MANY][VECTORS]) {
    int32_t lifts[MANY];
    UNROLL
    for (int i = 0; i < tokens; i++) lifts[i] = folded ? 0 : first * a->sum32[at + i];
    UNROLL
    for (int i = 0; i < tokens; i++)
        UNROLL
        for (int j = 0; j < VECTORS; j++) sums[i][j] = splat_int(lifts[i]);
}

/* Of a folded group, whose sums are multiplied with integers. */
INLINE void lift_folded(int tokens, int first, const int32_t *pairs, const Factors f[VECTORS], vi sums[MANY][VECTORS]) {
    UNROLL
    for (int i = 0; first && i < tokens; i++)
        UNROLL
        for (int j = 0; j < VECTORS; j++) sums[i][j] += madd(times_each(f[j].by, first), splat_int(pairs[i]));
}

/* Adds a group's products with up to MANY tokens, whose activations lie side by side from the at-th group on, to `totals`. */
INLINE void add_products(Codes c, int folded, int minimum, int fine, int tokens, const uint8_t *group, size_t next,
                         const Factors f[VECTORS], int first, const Acts *a, size_t at, vf totals[MANY][VECTORS]) {
    vi high[MANY][VECTORS], low[MANY][VECTORS];
    start_sums(folded, tokens, fine ? 0 : first, a, at, high);
    dot_tokens(c, folded, tokens, group, next, a->high + at * GROUP, f, high);
    if (folded) lift_folded(tokens, first, a->pair_high + at, f, high);
    if (fine) {
        start_sums(folded, tokens, first, a, at, low);
        dot_tokens(c, folded, tokens, group, next, a->low + at * GROUP, f, low);
        if (folded) lift_folded(tokens, first, a->pair_low + at, f, low);
    }
    UNROLL
    for (int i = 0; i < tokens; i++) {
        vf scale = splat(a->scale[at + i]);
        UNROLL
        for (int j = 0; j < VECTORS; j++) {
            vf sum = !fine ? to_float(high[i][j])
                     : folded ? joined(high[i][j], low[i][j]) : to_float(high[i][j] * 256 + low[i][j]);
            totals[i][j] = plus(totals[i][j], f[j].weight * scale, sum);
            vf mass = minimum && folded ? folded_mass(f[j].low_by, fine, a, at + i) : sum;
            if (minimum && folded) totals[i][j] = plus(totals[i][j], f[j].lowest * scale, mass);
            else if (minimum) totals[i][j] = plus(totals[i][j], f[j].lowest, splat(a->mass32[at + i]));
        }
    }
}

INLINE void factors_of(int scaling, int subs, int minimum, const Scales *s, int g, int part, Factors *f) {
    int folded = is_folded(scaling, subs);
    f->by = folded ? pairs_at(scaling, s, g, part) : splat_int(0x10001);
    f->weight = scale_at(scaling, subs, s, g, 0, part);
    if (minimum) f->lowest = minimum_at(scaling, subs, s, g, 0, part);
    if (minimum && folded) f->low_by = low_pairs_at(s, g, part);
}
