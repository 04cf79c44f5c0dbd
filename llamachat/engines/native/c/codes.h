/* How packed weights are read: see packed.h. */

/* The 4 bits of a tile's row and column. */
static int code_of(const uint8_t *codes, int lane, int c) {
    return codes[c / 32 * 256 + c % 16 / 4 * 64 + 4 * lane + c % 4] >> (c % 32 / 16 * 4) & 15;
}

/* One row of a matrix as floats; `out` has room for whole tiles. */
static void dequantize_row(const Matrix *w, int row, float *out) {
    const uint8_t *tile = w->data + strip_bytes(w) * (row / LANES);
    int lane = row % LANES, tiles = up(w->columns, TILE) / TILE;
    for (int t = 0; t < tiles; t++, tile += tile_bytes(w), out += TILE) {
        const uint8_t *codes = tile + 32 * w->subs * (w->minimum ? 2 : 1);
        for (int c = 0; c < TILE; c++) {
            if (w->kind == F32) memcpy(out + c, tile + 4 * (c * LANES + lane), 4);
            else if (w->kind == F16) out[c] = half_value(tile + 2 * (c * LANES + lane));
            else if (w->kind == BF16) {
                uint32_t bits = (uint32_t)(tile[2 * (c * LANES + lane)] | tile[2 * (c * LANES + lane) + 1] << 8) << 16;
                memcpy(out + c, &bits, 4);
            } else {
                const uint8_t *scale = tile + 32 * (c * w->subs / TILE) + 2 * lane;
                int code = w->kind == Q8 ? codes[c / 4 * 64 + 4 * lane + c % 4] : w->table[code_of(codes, lane, c)];
                float low = w->wide ? (float)(w->low[code_of(codes, lane, c)] - 128) / 256.0f : 0.0f;
                float value = half_value(scale) * ((float)(code - 128) + low);
                out[c] = w->minimum ? value + half_value(scale + 32 * w->subs) : value;
            }
            out[c] *= w->unit;
        }
    }
}

/* EVEN: 4 bits whose table is consecutive numbers: the codes themselves are multiplied, those of high nibbles sixteenfold.
   WIDE: 4 bits whose values have a low byte too, which is multiplied for itself. NARROW: 8 bits of which 6 are used; 32 is added
   to its codes. FLAT: as EVEN, but with nibbles taken apart, as for NARROW. */
enum { NARROW = -1, EVEN = Q4 + 1, WIDE, FLAT };

static int coding(const Matrix *w) {
    int even = (BIASED || NARROWS) && w->kind == Q4;
    if (w->wide) return WIDE;
    if (NARROWS && w->narrow) return NARROW;
    for (int i = 1; i < 16; i++) even &= w->table[i] == w->table[0] + i;
    return even ? NARROWS ? FLAT : EVEN : w->kind;
}

/* The first four of 4 bits come from low nibbles, the others from high ones. */
INLINE void unpack(int kind, vb table, const uint8_t *codes, int half, int part, vb quads[8]) {
    for (int v = 0; v < (kind >= Q4 ? 4 : 8); v++) {
        vb bytes = *(const vb_u *)(codes + (kind >= Q4 ? 256 : 512) * half + 64 * v + 4 * VL * part);
        if (kind == Q4 || kind == WIDE) {
            quads[v] = lookup(table, bytes & 15);
            quads[v + 4] = lookup(table, (vb)((vi)bytes >> 4 & 0x0f0f0f0f));
        } else if (kind == EVEN) {
            quads[v] = bytes & 15, quads[v + 4] = bytes & 0xf0;
        } else if (kind == FLAT) {
            quads[v] = bytes & 15, quads[v + 4] = (vb)((vi)bytes >> 4 & 0x0f0f0f0f);
        } else if (kind == NARROW) {
            quads[v] = bytes - 96;
        } else {
            quads[v] = bytes ^ (BIASED ? 0 : 128);
        }
    }
}

INLINE vb load_table(const uint8_t *entries) {
    vb table;
    for (int i = 0; i < 4 * VL; i += 16) memcpy((char *)&table + i, entries, 16);
    return table ^ (BIASED ? 0 : 128);
}
