/* Products of many tokens by the tile unit of AMX, where there is one. */
#if defined(__AMX_INT8__)
/* Tiles: 0 sums of 16 tokens x 16 rows; 1 and 2 activations and codes of 32 columns. */
static void enter(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t width[16]; uint8_t rows[16]; } shape = {
        1, 0, {0}, {64, 32, 64}, {16, 16, 8}};
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));  /* gcc 12's intrinsic drops stores to all but its first 8 bytes */
}
static void leave(void) { _tile_release(); }

enum { TILED = 12 };   /* as many tokens are worth a tile */
enum { GROUPS = 32 };  /* of a piece, whose codes, unpacked, stay in the first-level cache; half as many of opened
                          ones */

/* A piece's codes taken apart into tiles of AMX, [groups][8 quads][16 rows][4]. */
typedef struct {
    int8_t *codes, *others;      /* what codes stand for, as signed bytes; of folded ones for the first 16 columns, and the
                                    others */
    float *scale, *low;          /* [groups][16]; minima, if there are any */
    int32_t *pairs, *low_pairs;  /* [groups][16], of folded ones: two integers of 16 bits; those of minima */
} Unpacked;

static Unpacked unpacked_at(void *scratch) {
    enum { CODES = GROUPS * 512, EACH = GROUPS * LANES };
    int8_t *codes = scratch;
    float *scale = (float *)(codes + CODES);
    int32_t *pairs = (int32_t *)(scale + 2 * EACH);
    return (Unpacked){codes, codes + CODES / 2, scale, scale + EACH, pairs, pairs + EACH};
}

INLINE void unpack_piece(int kind, int scaling, int subs, int minimum, int coding, const Piece *p, const Unpacked *u) {
    int groups = block_columns(scaling) / GROUP, folded = is_folded(scaling, subs);
    size_t before = scales_bytes(scaling, subs, minimum), each = group_bytes(kind), bytes = before + each * groups;
    const uint8_t *block = p->w->data + strip_bytes(p->w) * p->strip + bytes * p->from;
    vb table = load_table(p->w->table);
    for (int g = 0; g < (p->to - p->from) * groups; block += bytes) {
        Scales s;
        Factors f;
        open_scales(scaling, minimum, block, &s);
        for (int i = 0; i < groups; i++, g++) {
            factors_of(scaling, subs, minimum, &s, i, 0, &f);
            for (int v = 0; v < 8; v++) {
                vb quad = unpack_quad(kind, coding, table, block + before + each * i, 0, v) + (uint8_t)p->w->first;
                *(vb *)(u->codes + 512 * g + 64 * v) = folded && v >= 4 ? (vb)splat_int(0) : quad;
                if (folded) *(vb *)(u->others + 512 * g + 64 * v) = v >= 4 ? quad : (vb)splat_int(0);
            }
            store(u->scale + LANES * g, f.weight);
            if (minimum) store(u->low + LANES * g, f.lowest);
            if (folded) *(vi *)(u->pairs + LANES * g) = pairs_at(scaling, &s, i, 0);
            if (folded && minimum) *(vi *)(u->low_pairs + LANES * g) = f.low_by;
        }
    }
}

static void unpack_way(const Piece *p, const Unpacked *u) {
    const Matrix *w = p->w;
    int coding = coding_of(w);
#define UNPACK(k, scales, n, low, c)                                                              \
    if (w->kind == k && w->scaling == scales && w->subs == n && w->minimum == low && coding == c)  \
        unpack_piece(k, scales, n, low, c, p, u);
    WAYS(UNPACK)
#undef UNPACK
}

/* Integer sums of 16 tokens x 16 rows over a group, or what codes have of it. */
INLINE void tile_sums(const int8_t *x, const int8_t *codes, int32_t *sums) {
    _tile_zero(0);
    _tile_loadd(1, x, GROUP);
    _tile_loadd(2, codes, 64);
    _tile_dpbssd(0, 1, 2);
    _tile_stored(0, sums, 64);
}

/* Sums of high and low activations (if fine), over the first 16 columns and the others (if folded) of a group. */
typedef int32_t TileSums[2][2][LANES][LANES];

INLINE void tile_step(int folded, int fine, const Unpacked *u, const int8_t *high, const int8_t *low, int g, TileSums sums) {
    tile_sums(high, u->codes + 512 * g, sums[0][0][0]);
    if (folded) tile_sums(high, u->others + 512 * g, sums[0][1][0]);
    if (fine) tile_sums(low, u->codes + 512 * g, sums[1][0][0]);
    if (fine && folded) tile_sums(low, u->others + 512 * g, sums[1][1][0]);
}

/* A token's integer sums over a group, of high or of low activations. */
INLINE vi sums_of(int folded, const TileSums sums, int low, int token, vi pairs) {
    vi sum = *(const vi *)sums[low][0][token];
    if (!folded) return sum;
    return sum * (pairs << 16 >> 16) + *(const vi *)sums[low][1][token] * (pairs >> 16);
}

/* An unpacked piece times up to 16 tokens. Sums are kept of two groups more, for the vectors follow the tile unit at a
   distance. */
INLINE void tile_tokens(int folded, int minimum, int fine, const Piece *p, const Unpacked *u, int token, int n, float *y) {
    _Alignas(64) TileSums sums[4];
    int each = block_columns(p->w->scaling) / GROUP, groups = (p->to - p->from) * each;
    size_t lanes = p->a->lanes, at = group_of(p->a, token, p->from * each), bytes = block_bytes(p->w) / each;
    const uint8_t *piece = blocks_at(p, 0);
    const int8_t *high = p->a->high + at * GROUP, *low = p->a->low + at * GROUP;
    vf total[LANES];
    UNROLL
    for (int i = 0; i < LANES; i++) total[i] = p->from && i < n ? load(y + i * p->stride + p->strip * LANES) : splat(0);
    for (int g = 0; g < 2; g++) tile_step(folded, fine, u, high + g * lanes * GROUP, low + g * lanes * GROUP, g, sums[g]);
    for (int g = 0; g < groups; g++, at += lanes) {
        for (size_t i = 0; p->ahead && i < bytes; i += 64) __builtin_prefetch(piece + g * bytes + p->ahead + i);
        size_t x = (g + 2) * lanes * GROUP;
        if (g + 2 < groups) tile_step(folded, fine, u, high + x, low + x, g + 2, sums[(g + 2) % 4]);
        vf weight = load(u->scale + LANES * g), lowest = minimum ? load(u->low + LANES * g) : weight;
        vi pairs = folded ? *(const vi *)(u->pairs + LANES * g) : splat_int(0);
        vi low_pairs = folded && minimum ? *(const vi *)(u->low_pairs + LANES * g) : pairs;
        UNROLL
        for (int i = 0; i < LANES; i++) {
            vf scale = splat(p->a->scale[at + i]);
            vi sum = sums_of(folded, sums[g % 4], 0, i, pairs), below = fine ? sums_of(folded, sums[g % 4], 1, i, pairs) : sum;
            vf value = !fine ? to_float(sum) : folded ? joined(to_float(sum), to_float(below)) : to_float(sum * 256 + below);
            total[i] = plus(total[i], weight * scale, value);
            if (minimum && folded) total[i] = plus(total[i], lowest * scale, folded_mass(low_pairs, fine, p->a, at + i));
            else if (minimum) total[i] = plus(total[i], lowest, splat(p->a->mass32[at + i]));
        }
    }
    int last = p->to == column_blocks(p->w);
    UNROLL
    for (int i = 0; i < LANES; i++) {
        if (i >= n) break;
        if (last) finish(p->w, p->strip, 0, total[i], y + i * p->stride);
        else store(y + i * p->stride + p->strip * LANES, total[i]);
    }
}

static void tile_way(int folded, int fine, const Piece *p, const Unpacked *u, int token, int n, float *y) {
    if (folded && p->w->minimum) tile_tokens(1, 1, fine, p, u, token, n, y);
    else if (folded) tile_tokens(1, 0, fine, p, u, token, n, y);
    else if (fine) tile_tokens(0, p->w->minimum, 1, p, u, token, n, y);
    else if (p->w->minimum) tile_tokens(0, 1, 0, p, u, token, n, y);
    else tile_tokens(0, 0, 0, p, u, token, n, y);
}

/* A piece times many tokens, unpacked once for all of them; returns how many there are left, fewer than are worth a tile. */
static int tiled(Piece *p, int fine, int token, int tokens, float *y, void *scratch) {
    int rest = tokens % LANES < TILED ? tokens % LANES : 0, folded = is_folded(p->w->scaling, p->w->subs);
    Unpacked u = unpacked_at(scratch);
    if (tokens == rest) return rest;
    for (int s = 0; s <= p->apart; s++) {
        Piece strip = *p;
        strip.strip += s;
        unpack_way(&strip, &u);
        for (int i = 0; i < tokens - rest; i += LANES, strip.ahead = 0)
            tile_way(folded, fine, &strip, &u, token + i, least(tokens - rest - i, LANES), y + i * p->stride);
    }
    p->ahead = 0;
    return rest;
}
#else
static void enter(void) {}
static void leave(void) {}
static int tiled(Piece *p, int fine, int token, int tokens, float *y, void *scratch) {
    (void)p, (void)fine, (void)token, (void)y, (void)scratch;
    return tokens;
}
#endif
