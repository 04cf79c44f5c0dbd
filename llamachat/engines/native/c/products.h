/* Products of packed matrices and the activations of one token or a few: several strips abreast. */

#include "groups.h"

enum { ALONE = 1536 };  /* bytes of weights fetched ahead of use, of one stream */

/* How strips are read: so many side by side, with weights fetched so many bytes ahead into the level-th cache. */
typedef struct { int abreast, ahead, level; } Reading;

/* So many abreast; `fetching` as in Kernels.fetch. */
INLINE Reading reading_of(int abreast, int fetching) {
    if (fetching == FETCH_OUTER) return (Reading){abreast, 1152, 2};
    return (Reading){abreast, fetching == FETCH_INNER ? 1728 : 2304, 1};
}

INLINE void finish(const Matrix *w, int strip, int part, vf sum, float *y) {
    sum *= splat(w->unit);
    if (w->bias) sum += load(w->bias + strip * LANES + part * VL);
    store(y + strip * LANES + part * VL, sum);
}

INLINE void fetch_ahead(const uint8_t *p, Reading how, size_t bytes) {
    for (size_t i = 0; how.level == 1 && i < bytes; i += 64) __builtin_prefetch(p + how.ahead + i, 0, 3);
    for (size_t i = 0; how.level == 2 && i < bytes; i += 64) __builtin_prefetch(p + how.ahead + i, 0, 2);
}

/* A folded group times activations whose sums over its halves are `pair`; fine ones have those of low, too. */
INLINE vf folded_dot(int bits, const vb quads[8], const vf by[2], int first, const int8_t *x, int32_t pair) {
    vi sums[2] = {splat_int(first * half_of(pair, 0)), splat_int(first * half_of(pair, 1))};
    dot_halves(bits, quads, x, sums);
    return folded(sums[0], sums[1], by);
}

INLINE vf folded_sum(int bits, const vb quads[8], const vf by[2], int first, int fine, const Acts *a, size_t at) {
    vf sum = folded_dot(bits, quads, by, first, a->high + at * GROUP, a->pair_high[at]);
    if (!fine) return sum;
    return joined(sum, folded_dot(bits, quads, by, first, a->low + at * GROUP, a->pair_low[at]));
}

INLINE vf plain_sum(int bits, const vb quads[8], int lift, int fine, const Acts *a, size_t at) {
    vi sum = dot_group(bits, quads, a->high + at * GROUP);
    if (fine) sum = sum * 256 + dot_group(bits, quads, a->low + at * GROUP);
    return to_float(sum + splat_int(lift));
}

/* The g-th group of a strip's block times one token's activations at `at`, added to `sums` from the to-th vector on. All but
   pointers and places are constants once inlined. */
INLINE void add_group(int kind, int scaling, int subs, int minimum, int coding, int fine, int first, vb table, const Scales *s,
                      const uint8_t *codes, int g, const Acts *a, size_t at, vf sums[VECTORS], int to) {
    int bits = number_bits(kind, coding), folds = is_folded(scaling, subs), lift = (first + signed_by(bits)) * a->sum32[at];
    UNROLL
    for (int part = 0; part < PARTS; part++) {
        vb quads[8];
        vf by[2], *sum = sums + to + part, weight = scale_at(scaling, subs, s, g, 0, part) * splat(a->scale[at]);
        unpack(kind, coding, table, codes, part, quads);
        if (folds) folds_at(scaling, s, g, part, by);
        if (folds) *sum = plus(*sum, weight, folded_sum(bits, quads, by, first, fine, a, at));
        else *sum = plus(*sum, weight, plain_sum(bits, quads, lift, fine, a, at));
        if (!minimum) continue;
        vf lowest = minimum_at(scaling, subs, s, g, 0, part);
        if (folds) *sum = plus(*sum, lowest * splat(a->scale[at]), folded_mass(low_pairs_at(s, g, part), fine, a, at));
        else *sum = plus(*sum, lowest, splat(a->mass32[at]));
    }
}

/* The g-th group of STRIPS strips, which lie `next` bytes apart, times some tokens, which lie side by side from `at` on. */
INLINE void add_groups(int kind, int scaling, int subs, int minimum, int coding, int fine, int tokens, int first, vb table,
                       const Scales s[STRIPS], const uint8_t *codes, size_t next, int g, const Acts *a, size_t at,
                       vf sums[FEW][VECTORS]) {
    int bits = number_bits(kind, coding);
    Codes c = {kind, coding, bits, signed_by(bits), table};
    Factors f[VECTORS];
    UNROLL
    for (int j = 0; j < VECTORS; j++) factors_of(scaling, subs, minimum, s + j / PARTS, g, j % PARTS, f + j);
    add_products(c, is_folded(scaling, subs), minimum, fine, tokens, codes, next, f, first + signed_by(bits), a, at, sums);
}

/* What a way's code is made for and given: `count` times some strips side by side, which lie `apart` strips from each other,
   times some tokens. Each strip of those abreast is a stream of weights of its own: memory gives more to several. y
   [tokens][stride]. */
typedef struct {
    const Matrix *w;
    const Acts *a;
    float *y;
    size_t stride;
    int token, tokens, strip, count, apart;
} Streams;

/* So many tokens are computed, for which activations must have room. */
INLINE void strips_coded(int kind, int scaling, int subs, int minimum, int coding, int fine, int tokens, Reading how,
                         const Streams *f) {
    const Matrix *w = f->w;
    const Acts *a = f->a;
    const uint8_t *block = w->data + strip_bytes(w) * f->strip;
    size_t before = scales_bytes(scaling, subs, minimum), each = group_bytes(kind), groups = block_columns(scaling) / GROUP;
    size_t next = strip_bytes(w) * f->apart, lanes = a->lanes;
    int blocks = column_blocks(w), first = w->first, abreast = how.abreast;
    vb table = load_table(w->table);
    for (int strip = f->strip, last = strip + f->count; strip < last; strip++) {
        size_t at = group_of(a, f->token, 0);
        vf sums[ABREAST / STRIPS][FEW][VECTORS];
        UNROLL
        for (int s = 0; s < abreast / STRIPS; s++)
            UNROLL
            for (int i = 0; i < tokens * VECTORS; i++) sums[s][i / VECTORS][i % VECTORS] = splat(0);
        for (int b = 0; b < blocks; b++, block += before + each * groups) {
            Scales scales[ABREAST];
            UNROLL
            for (int s = 0; s < abreast; s++) {
                fetch_ahead(block + s * next, how, before);
                open_scales(scaling, minimum, block + s * next, scales + s);
            }
            for (size_t g = 0; g < groups; g++, at += lanes)
                UNROLL
                for (int s = 0; s < abreast; s++) {
                    const uint8_t *codes = block + s * next + before + each * g;
                    vf (*to)[VECTORS] = sums[s / STRIPS];
                    fetch_ahead(codes, how, each);
                    if (tokens == 1)
                        add_group(kind, scaling, subs, minimum, coding, fine, first, table, scales + s, codes, g, a, at, *to,
                                  s % STRIPS * PARTS);
                    else if (s % STRIPS == 0)
                        add_groups(kind, scaling, subs, minimum, coding, fine, tokens, first, table, scales + s, codes, next, g,
                                   a, at, to);
                }
        }
        UNROLL
        for (int i = 0; i < tokens && i < f->tokens; i++)
            UNROLL
            for (int j = 0; j < abreast * PARTS; j++)
                finish(w, strip + j / PARTS * f->apart, j % PARTS, sums[j / VECTORS][i][j % VECTORS], f->y + i * f->stride);
    }
}

/* The ways of coding that have code made for them: all that files have and this project makes, but for rare ones. Some are
   unpacked in few instructions. */
#define READ_WAYS(X)                                                                                                    \
    X(Q4, HALVES, 2, 0, PLAIN) X(Q4, HALVES, 2, 1, PLAIN) X(Q4, HALVES, 2, 0, LONG) X(Q8, HALVES, 2, 0, PLAIN)           \
    X(Q4, EXPONENTS, 2, 0, SHORT) X(Q4, BYTES, 2, 1, PLAIN) X(Q4, BYTES, 2, 0, LONG)
#define OPENED_WAYS(X)                                                                                                  \
    X(Q5, HALVES, 2, 0, PLAIN) X(Q5, HALVES, 2, 1, PLAIN) X(Q5, BYTES, 2, 1, PLAIN) X(Q6, BYTES, 4, 0, PLAIN)            \
    X(Q2, NIBBLES, 4, 1, PLAIN) X(Q3, SIXES, 4, 0, PLAIN)
#define WAYS(X) READ_WAYS(X) OPENED_WAYS(X)
#define ONE(k, scales, n, low, c) +1
enum { READ = READ_WAYS(ONE) };  /* how many are read where they lie */
#undef ONE

/* Which of them a matrix is coded in; -1: none, floats and what is rare, which go token by token and strip by strip. */
static int way_of(const Matrix *w) {
    int coding = coding_of(w), way = 0;
    if (w->kind <= BF16 || w->wide) return -1;
#define CHOOSE(k, scales, n, low, c)                                                                                       \
    if (w->kind == k && w->scaling == scales && w->subs == n && w->minimum == low && coding == c) return way;              \
    way++;
    WAYS(CHOOSE)
#undef CHOOSE
    return -1;
}

INLINE void strips_float(int kind, const Matrix *w, const Acts *a, int token, float *y, int strip, int count) {
    const uint8_t *tile = w->data + strip_bytes(w) * strip;
    const float *x = a->x + (size_t)token * a->width;
    for (int last = strip + count; strip < last; strip++, tile += strip_bytes(w)) {
        vf sums[PARTS];
        UNROLL
        for (int part = 0; part < PARTS; part++) sums[part] = splat(0);
        for (int c = 0; c < up(w->columns, TILE); c++)
            UNROLL
            for (int part = 0; part < PARTS; part++)
                sums[part] = plus(sums[part], load_as(kind, tile, (size_t)c * LANES + part * VL), splat(x[c]));
        UNROLL
        for (int part = 0; part < PARTS; part++) finish(w, strip, part, sums[part], y);
    }
}

/* Sum of a group's numbers, of 8 bits, times activations; or of half of them. */
INLINE vi rare_sum(const vb quads[8], int subs, int sub, int fine, const Acts *a, size_t at) {
    vb chosen[8];
    for (int v = 0; v < 8; v++) chosen[v] = subs == 4 && v / 4 != sub ? (vb)splat_int((int)0x80808080) : quads[v];
    vi sum = dot_group(8, chosen, a->high + at * GROUP);
    if (fine) sum = sum * 256 + dot_group(8, chosen, a->low + at * GROUP);
    return sum + splat_int((signed_by(8) - 128) * a->sum32[at]);
}

/* The activations' sum over the columns that have the sub-th of a group's scales. */
static int32_t rare_mass(int subs, int sub, int fine, const Acts *a, size_t at) {
    if (subs == 2) return a->sum32[at];
    int32_t high = half_of(a->pair_high[at], sub);
    return fine ? 256 * high + half_of(a->pair_low[at], sub) : high;
}

/* What is rare: wide tables, fp16 scales for 16 columns each, 8 bits with minima. Every code is looked up or of 8 bits. */
static void strip_rare(const Matrix *w, const Acts *a, int fine, int token, float *y, int strip) {
    const uint8_t *block = w->data + strip_bytes(w) * strip;
    size_t at = group_of(a, token, 0), skipped = scales_bytes(HALVES, w->subs, w->minimum);
    uint8_t numbers[16];
    for (int i = 0; i < 16; i++) numbers[i] = (uint8_t)((w->tabled ? w->table[i] : i) + w->first + 128);
    vb table = load_table(numbers), below = load_table(w->low), quads[8];
    vf sums[PARTS];
    for (int part = 0; part < PARTS; part++) sums[part] = splat(0);
    for (int g = 0; g < up(w->columns, TILE) / GROUP; g++, at += a->lanes) {
        Scales s = {.block = block + block_bytes(w) * (g / 2)};
        const uint8_t *codes = s.block + skipped + group_bytes(w->kind) * (g % 2);
        for (int part = 0; part < PARTS; part++)
            for (int sub = 0; sub < w->subs / 2; sub++) {
                vf weight = scale_at(HALVES, w->subs, &s, g % 2, sub, part);
                unpack(w->kind == Q8 ? Q8 : Q4, w->kind == Q8 ? PLAIN : LONG, table, codes, part, quads);
                sums[part] = plus(sums[part], weight * splat(a->scale[at]), to_float(rare_sum(quads, w->subs, sub, fine, a, at)));
                if (w->minimum) {
                    float mass = a->scale[at] * (float)rare_mass(w->subs, sub, fine, a, at);
                    sums[part] = plus(sums[part], minimum_at(HALVES, w->subs, &s, g % 2, sub, part), splat(mass));
                }
                if (!w->wide) continue;
                unpack(Q4, LONG, below, codes, part, quads);
                weight = weight * 0x1p-8f * splat(a->scale[at]);
                sums[part] = plus(sums[part], weight, to_float(rare_sum(quads, w->subs, sub, fine, a, at)));
            }
    }
    for (int part = 0; part < PARTS; part++) finish(w, strip, part, sums[part], y);
}

/* y[row] for one token, where there is no code made for the way of coding. */
static void strips_plain(const Matrix *w, const Acts *a, int fine, int token, float *y, int strip, int strips) {
    if (w->kind == F32) strips_float(F32, w, a, token, y, strip, strips);
    else if (w->kind == F16) strips_float(F16, w, a, token, y, strip, strips);
    else if (w->kind == BF16) strips_float(BF16, w, a, token, y, strip, strips);
    else for (int s = strip; s < strip + strips; s++) strip_rare(w, a, fine, token, y, s);
}
