/* Products of many tokens by the tile unit of AMX, where there is one. */
#if defined(__AMX_INT8__)
/* Tiles: 0 and 1 sums of 16 tokens x 16 rows; 2 and 3 activations and weights of 32 columns; 4 and 5 of 16 columns. */
static void enter(void) {
    struct { uint8_t palette, start, reserved[14]; uint16_t width[16]; uint8_t rows[16]; } shape = {
        1, 0, {0}, {64, 64, 32, 64, 16, 64}, {16, 16, 16, 8, 16, 4}};
    __asm__ volatile("ldtilecfg %0" : : "m"(shape));  /* gcc 12's intrinsic drops stores to all but its first 8 bytes */
}
static void leave(void) { _tile_release(); }

/* A strip's codes as signed bytes in tiles of AMX, its scales and minima as floats; and where the next weights lie. */
typedef struct { int8_t *codes; float *scale, *low; const uint8_t *next; size_t ahead; } Unpacked;

static void unpack_strip(const Matrix *w, int from, int to, int strip, Unpacked u) {
    const uint8_t *tile = w->data + strip_bytes(w) * strip;
    size_t bytes = tile_bytes(w);
    int per = w->subs / 2;
    vb table = load_table(w->table), quads[8];
    tile += from / 2 * bytes;
    for (int g = 0; g < to - from; g++, tile += g % 2 ? 0 : bytes) {  /* from is even */
        const uint8_t *scales = tile + (g % 2) * per * 32, *codes = tile + 32 * w->subs * (1 + w->minimum);
        if (w->kind == Q4) unpack(Q4, table, codes, g % 2, 0, quads);
        else unpack(Q8, table, codes, g % 2, 0, quads);
        for (int v = 0; v < 8; v++) *(vb *)(u.codes + (8 * g + v) * 64) = quads[v] ^ 128;
        for (int sub = 0; sub < per; sub++) {
            store(u.scale + (g * per + sub) * LANES, load_half(scales + 32 * sub));
            if (w->minimum) store(u.low + (g * per + sub) * LANES, load_half(scales + 32 * (w->subs + sub)));
        }
    }
}

/* Integer sums of 16 tokens x 16 rows over 32 or 16 columns. */
INLINE void tile_sums(int per, const int8_t *x, const int8_t *codes, int32_t *sums) {
    if (per == 1) {
        _tile_zero(0);
        _tile_loadd(2, x, GROUP);
        _tile_loadd(3, codes, 64);
        _tile_dpbssd(0, 2, 3);
        _tile_stored(0, sums, 64);
    } else {
        _tile_zero(1);
        _tile_loadd(4, x, GROUP);
        _tile_loadd(5, codes, 64);
        _tile_dpbssd(1, 4, 5);
        _tile_stored(1, sums, 64);
    }
}

/* The i-th run of 32 or 16 columns; sums are kept for four of them, for the vectors follow the tile unit at a distance. */
INLINE void tile_step(int per, int fine, Unpacked u, const int8_t *high, const int8_t *low, size_t lanes, size_t i,
                      int32_t sums[4][2][LANES][LANES]) {
    size_t x = i / per * lanes * GROUP + i % per * (GROUP / 2), code = i * (GROUP / per) * LANES;
    tile_sums(per, high + x, u.codes + code, sums[i % 4][0][0]);
    if (fine) tile_sums(per, low + x, u.codes + code, sums[i % 4][1][0]);
}

/* Groups [from, to) of a strip, unpacked, times up to 16 tokens; y holds the sums of the groups before. */
INLINE void tile_tokens(int per, int fine, int minimum, const Matrix *w, Unpacked u, const Acts *a, int token, int tokens, int from,
                        int to, float *y, size_t stride, int strip) {
    _Alignas(64) int32_t sums[4][2][LANES][LANES];
    size_t runs = (size_t)(to - from) * per, at = group_of(a, token, from), lanes = a->lanes;
    const int8_t *high = a->high + at * GROUP, *low = a->low + at * GROUP;
    const float *scale = a->scale + at, *mass = per == 1 ? a->mass32 + at : a->mass16 + half_of(a, token, from, 0);
    vf total[LANES];
    UNROLL
    for (int i = 0; i < LANES; i++) total[i] = from && i < tokens ? load(y + i * stride + strip * LANES) : splat(0);
    tile_step(per, fine, u, high, low, lanes, 0, sums);
    tile_step(per, fine, u, high, low, lanes, 1, sums);
    for (size_t run = 0; run < runs; run++) {
        for (size_t i = 0; i < u.ahead; i += 64) __builtin_prefetch(u.next + run * u.ahead + i, 0, 2);
        if (run + 2 < runs) tile_step(per, fine, u, high, low, lanes, run + 2, sums);
        vf weight = load(u.scale + run * LANES);
        const float *x = scale + run / per * lanes, *m = mass + run * lanes;
        UNROLL
        for (int i = 0; i < LANES; i++) {
            vi sum = *(const vi *)sums[run % 4][0][i];
            if (fine) sum = sum * 256 + *(const vi *)sums[run % 4][1][i];
            total[i] = plus(total[i], weight * splat(x[i]), to_float(sum));
        }
        if (minimum) {
            vf lowest = load(u.low + run * LANES);
            UNROLL
            for (int i = 0; i < LANES; i++) total[i] = plus(total[i], lowest, splat(m[i]));
        }
    }
    int last = to == up(w->columns, TILE) / GROUP;
    UNROLL
    for (int i = 0; i < LANES; i++) {
        if (i >= tokens) break;
        if (last) finish(w, strip, 0, total[i], y + i * stride);
        else store(y + i * stride + strip * LANES, total[i]);
    }
}

/* Columns go in blocks whose codes, unpacked, stay in the first-level cache. */
static void strip_tiles(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                        void *scratch) {
    enum { BLOCK = 32 };  /* groups: fills SCRATCH */
    int groups = up(w->columns, TILE) / GROUP, per = w->subs / 2, rest = tokens % LANES < 12 ? tokens % LANES : 0;
    Unpacked u = {scratch, (float *)scratch + BLOCK * GROUP * 4, (float *)scratch + BLOCK * (GROUP * 4 + 2 * LANES)};
    for (int from = 0; from < groups; from += BLOCK) {
        int to = least(from + BLOCK, groups);
        unpack_strip(w, from, to, strip, u);
        u.next = w->data + strip_bytes(w) * strip + tile_bytes(w) * (to / 2);
        u.ahead = tile_bytes(w) / w->subs;
        for (int i = 0; i < tokens - rest; i += LANES) {
            int n = least(tokens - i, LANES);
            float *out = y + (size_t)i * stride;
            if (i) u.ahead = 0;
            if (per == 1 && !fine && w->minimum) tile_tokens(1, 0, 1, w, u, a, token + i, n, from, to, out, stride, strip);
            else if (per == 1 && !fine) tile_tokens(1, 0, 0, w, u, a, token + i, n, from, to, out, stride, strip);
            else if (per == 1) tile_tokens(1, 1, w->minimum, w, u, a, token + i, n, from, to, out, stride, strip);
            else tile_tokens(2, fine, w->minimum, w, u, a, token + i, n, from, to, out, stride, strip);
        }
    }
    if (rest) strip_tokens(w, a, fine, token + tokens - rest, rest, y + (size_t)(tokens - rest) * stride, stride, strip);
}
#else
static void enter(void) {}
static void leave(void) {}
#endif
