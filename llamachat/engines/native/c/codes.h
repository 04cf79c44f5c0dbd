/* How packed weights are read: see packed.h. */

/* What codes become before they are multiplied: numbers as they are, of so many bits as there are planes; looked up, of at most
   5 bits; looked up, of 8 bits. */
enum coding { PLAIN, SHORT, LONG };

INLINE int number_bits(int kind, int coding) { return coding == LONG ? 8 : coding == SHORT ? 5 : bits_of(kind); }

static int coding_of(const Matrix *w) {
    if (!w->tabled) return PLAIN;
    for (int i = 0; i < 16; i++)
        if (w->table[i] > 31) return LONG;
    return SHORT;
}

/* ---- one row ---- */

/* The code of a row in column c of a group. */
static int code_of(int kind, const uint8_t *group, int lane, int c) {
    int quad = c / 4, at = 4 * lane + c % 4;
    int four = group[64 * (quad % 4) + at] >> quad / 4 * 4 & 15, two = group[64 * (quad % 2) + at] >> quad / 2 * 2 & 3;
    switch (kind) {
    case Q8: return group[64 * quad + at];
    case Q4: return four;
    case Q2: return two;
    case Q3: return two | (group[128 + at] >> quad & 1) << 2;
    case Q5: return four | (group[256 + at] >> quad & 1) << 4;
    default: return four | (group[256 + 64 * (quad % 2) + at] >> quad / 2 * 2 & 3) << 4;
    }
}

/* 2^(e - 128): as two factors, for the least floats begin at 2^-149 and have no exponent of their own. */
static float power(int e) { return from_bits((e / 2 + 63) << 23) * from_bits((e - e / 2 + 63) << 23); }

/* A row's scale and minimum for half a group, the g-th of its block. */
static float scale_of(const Matrix *w, const uint8_t *block, int g, int half, int lane, float *minimum) {
    const uint8_t *integers = block + integers_at(w->minimum);
    int sub = w->subs / 2 * g + (w->subs == 4 ? half : 0), both = 32 * g + 2 * lane + half;
    float d = half_value(block + 2 * lane);
    *minimum = 0.0f;
    switch (w->scaling) {
    case HALVES:
        if (w->minimum) *minimum = half_value(block + 32 * (w->subs + sub) + 2 * lane);
        return half_value(block + 32 * sub + 2 * lane);
    case EXPONENTS: return power(block[16 * g + lane]);
    case BYTES:
        if (w->subs == 4) return d * (float)(int8_t)integers[both];
        if (w->minimum) *minimum = half_value(block + 32 + 2 * lane) * (float)(int8_t)integers[16 * (8 + g) + lane];
        return d * (float)(int8_t)integers[16 * g + lane];
    case NIBBLES:
        *minimum = half_value(block + 32 + 2 * lane) * (float)(integers[both] >> 4);
        return d * (float)(integers[both] & 15);
    default: {
        int at = 2 * lane + half, low = integers[32 * (g % 4) + at] >> g / 4 * 4 & 15;
        int high = integers[128 + 32 * (g % 2) + at] >> g / 2 * 2 & 3;
        return d * (float)((low | high << 4) - 32);
    }
    }
}

static float float_of(int kind, const uint8_t *p) {
    float value;
    uint32_t bits = (uint32_t)(p[0] | p[1] << 8) << 16;
    if (kind == F16) return half_value(p);
    memcpy(&value, kind == F32 ? (const void *)p : &bits, 4);
    return value;
}

/* A row's part of a block as floats. No product here is rounded. */
static void dequantize_block(const Matrix *w, const uint8_t *block, int lane, float *out) {
    const uint8_t *codes = block + scales_bytes(w->scaling, w->subs, w->minimum);
    for (int c = 0; c < block_columns(w->scaling); c++) {
        float minimum, scale = scale_of(w, block, c / GROUP, c % GROUP / 16, lane, &minimum);
        int code = code_of(w->kind, codes + group_bytes(w->kind) * (c / GROUP), lane, c % GROUP);
        float number = (float)((w->tabled ? w->table[code] : code) + w->first);
        if (w->wide) number += (float)(w->low[code] - 128) / 256.0f;
        out[c] = (w->minimum ? scale * number + minimum : scale * number) * w->unit;
    }
}

/* One row of a matrix as floats; `out` has room for whole tiles. */
static void dequantize_row(const Matrix *w, int row, float *out) {
    const uint8_t *block = w->data + strip_bytes(w) * (row / LANES);
    int lane = row % LANES, blocks = column_blocks(w), columns = w->kind <= BF16 ? TILE : block_columns(w->scaling);
    for (int b = 0; b < blocks; b++, block += block_bytes(w), out += columns) {
        if (w->kind > BF16) dequantize_block(w, block, lane, out);
        else
            for (int c = 0; c < TILE; c++)
                out[c] = float_of(w->kind, block + (c * LANES + lane) * float_bytes(w->kind)) * w->unit;
    }
}

/* ---- vectors of rows ---- */

INLINE vb load_codes(const uint8_t *p) { return *(const vb_u *)p; }
/* Bits of each byte, moved to the left by so many (or to the right, if that is negative). */
INLINE vb moved(vb x, int left, int mask) {
    vi bits = left < 0 ? (vi)((vu)x >> -left) : (vi)x << (left < 0 ? 0 : left);
    return (vb)(bits & mask * 0x01010101);
}

/* The numbers of some rows in a group's v-th quads. */
INLINE vb unpack_quad(int kind, int coding, vb table, const uint8_t *group, int part, int v) {
    int at = 4 * VL * part;
    vb quad;
    if (kind == Q8) quad = load_codes(group + 64 * v + at);
    else if (kind == Q4 || kind == Q5 || kind == Q6) quad = moved(load_codes(group + 64 * (v % 4) + at), -4 * (v / 4), 15);
    else quad = moved(load_codes(group + 64 * (v % 2) + at), -2 * (v / 2), 3);
    if (kind == Q3) quad |= moved(load_codes(group + 128 + at), 2 - v, 4);
    if (kind == Q5) quad |= moved(load_codes(group + 256 + at), 4 - v, 16);
    if (kind == Q6) quad |= moved(load_codes(group + 256 + 64 * (v % 2) + at), 4 - 2 * (v / 2), 48);
    return coding == PLAIN ? quad : lookup(table, quad);
}

INLINE void unpack(int kind, int coding, vb table, const uint8_t *group, int part, vb quads[8]) {
    UNROLL
    for (int v = 0; v < 8; v++) quads[v] = unpack_quad(kind, coding, table, group, part, v);
}

INLINE vb load_table(const uint8_t *entries) {
    vb table;
    for (int i = 0; i < 4 * VL; i += 16) memcpy((char *)&table + i, entries, 16);
    return table;
}

INLINE vf powers(const uint8_t *e) {  /* see power */
    vi bits = __builtin_convertvector(*(const vn_u *)e, vi), half = bits >> 1;
    return (vf)((half + 63) << 23) * (vf)((bits - half + 63) << 23);
}

/* The integers of a block of SIXES, a byte each, as those of BYTES lie. */
INLINE void unpack_sixes(const uint8_t *integers, int8_t out[8 * 32]) {
    for (int g = 0; g < 8; g++)
        for (int i = 0; i < 32; i++)
            out[32 * g + i] = (int8_t)(((integers[32 * (g % 4) + i] >> g / 4 * 4 & 15) |
                                        (integers[128 + 32 * (g % 2) + i] >> g / 2 * 2 & 3) << 4) - 32);
}

/* The scales (and minima) of a strip's rows in one block, as they are needed group by group. */
typedef struct { vf d[PARTS], low[PARTS]; const uint8_t *block, *integers; int8_t sixes[8 * 32]; } Scales;

INLINE void open_scales(int scaling, int minimum, const uint8_t *block, Scales *s) {
    s->block = block, s->integers = block + integers_at(minimum);
    UNROLL
    for (int part = 0; scaling >= BYTES && part < PARTS; part++) {
        s->d[part] = load_half(block + 2 * VL * part);
        if (minimum) s->low[part] = load_half(block + 2 * (LANES + VL * part));
    }
    if (scaling == SIXES) unpack_sixes(s->integers, s->sixes);
}

/* For the g-th group, or (of halves for 16 columns) the sub-th half of it. */
INLINE vf scale_at(int scaling, int subs, const Scales *s, int g, int sub, int part) {
    if (scaling == HALVES) return load_half(s->block + 32 * (subs / 2 * g + sub) + 2 * VL * part);
    if (scaling == EXPONENTS) return powers(s->block + LANES * g + VL * part);
    if (is_folded(scaling, subs)) return s->d[part];
    return s->d[part] * load_bytes(s->integers + LANES * g + VL * part);
}
INLINE vf minimum_at(int scaling, int subs, const Scales *s, int g, int sub, int part) {
    if (scaling == HALVES) return load_half(s->block + 32 * (subs + subs / 2 * g + sub) + 2 * VL * part);
    if (is_folded(scaling, subs)) return s->low[part];
    return s->low[part] * load_bytes(s->integers + LANES * (8 + g) + VL * part);
}

/* Of folded kinds: two integers of 16 bits for each row, of the first 16 columns and of the others. */
INLINE vi pairs_at(int scaling, const Scales *s, int g, int part) {
    size_t at = 32 * g + 2 * VL * part;
    if (scaling == NIBBLES) return load_pairs_unsigned(s->integers + at) & 0x000f000f;
    return load_pairs(scaling == SIXES ? s->sixes + at : (const int8_t *)s->integers + at);
}
INLINE void folds_at(int scaling, const Scales *s, int g, int part, vf by[2]) {
    vi pairs = pairs_at(scaling, s, g, part);
    by[0] = to_float(pairs << 16 >> 16), by[1] = to_float(pairs >> 16);
}
INLINE vi low_pairs_at(const Scales *s, int g, int part) {
    return load_pairs_unsigned(s->integers + 32 * g + 2 * VL * part) >> 4 & 0x000f000f;
}
