/* What is added to products: see LowRank. Each sum has one order, however many tokens, strips and threads there are. */

INLINE void low_sums_as(int kind, const void *a, const float *x, int columns, float *out) {
    vf sums[4][PARTS];
    UNROLL
    for (int r = 0; r < 4; r++)
        UNROLL
        for (int part = 0; part < PARTS; part++) sums[r][part] = splat(0);
    for (int c = 0; c < columns; c += LANES) {
        const char *piece = offset(kind, a, (size_t)c * 4);
        for (size_t i = 0; i < 64 * float_bytes(kind); i += 64) __builtin_prefetch(piece + ALONE + i);
        UNROLL
        for (int part = 0; part < PARTS; part++) {
            vf inputs = load(x + c + part * VL);
            UNROLL
            for (int r = 0; r < 4; r++) sums[r][part] = plus(sums[r][part], load_as(kind, piece, r * LANES + part * VL), inputs);
        }
    }
    for (int r = 0; r < 4; r++) {
        vf sum = sums[r][0];
        UNROLL
        for (int part = 1; part < PARTS; part++) sum += sums[r][part];
        out[r] = sum_lanes(sum);
    }
}

static void low_sums(int kind, const void *a, const float *x, int columns, float *out) {
    if (kind == F32) low_sums_as(F32, a, x, columns, out);
    else if (kind == F16) low_sums_as(F16, a, x, columns, out);
    else low_sums_as(BF16, a, x, columns, out);
}

INLINE void low_add_as(int kind, const LowRank *low, const float *h, float *y, int strip, int strips) {
    size_t size = (size_t)low->rank * LANES;
    const char *b = offset(kind, low->b, size * strip);
    for (int s = strip; s < strip + strips; s++, b += size * float_bytes(kind)) {
        vf sums[PARTS];
        UNROLL
        for (int part = 0; part < PARTS; part++) sums[part] = splat(0);
        for (int r = 0; r < low->rank; r++) {
            __builtin_prefetch(b + ALONE + r * LANES * float_bytes(kind));
            UNROLL
            for (int part = 0; part < PARTS; part++)
                sums[part] = plus(sums[part], load_as(kind, b, r * LANES + part * VL), splat(h[r]));
        }
        UNROLL
        for (int part = 0; part < PARTS; part++) store(y + s * LANES + part * VL, load(y + s * LANES + part * VL) + sums[part]);
    }
}

static void low_add(const LowRank *low, const float *h, float *y, int strip, int strips) {
    if (low->kind == F32) low_add_as(F32, low, h, y, strip, strips);
    else if (low->kind == F16) low_add_as(F16, low, h, y, strip, strips);
    else low_add_as(BF16, low, h, y, strip, strips);
}

static void low_row(const LowRank *low, int columns, int row, float *x) {
    size_t width = up(columns, TILE);
    for (size_t c = 0; c < width; c += VL) {
        vf sum = splat(0);
        for (int r = 0; r < low->rank; r++) {
            float h = widen(low->kind, low->b, ((size_t)(row / LANES) * low->rank + r) * LANES + row % LANES);
            size_t at = (r / 4 * width + c / LANES * LANES) * 4 + r % 4 * LANES + c % LANES;
            sum = plus(sum, load_as(low->kind, low->a, at), splat(h * low->scale));
        }
        store(x + c, load(x + c) + sum);
    }
}
