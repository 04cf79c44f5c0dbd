/* Products of packed matrices and activations: one strip or several abreast, times one token or a few. */

enum { ABREAST = VL == 16 ? 4 : 2 };  /* strips side by side */
enum { AHEAD = 1152, ALONE = 1536 };  /* bytes of weights fetched ahead of use, of several streams and of one */

INLINE void finish(const Matrix *w, int strip, int part, vf sum, float *y) {
    sum *= splat(w->unit);
    if (w->bias) sum += load(w->bias + strip * LANES + part * VL);
    store(y + strip * LANES + part * VL, sum);
}

/* What half a tile is multiplied with: some tokens' activations in two groups of columns. See Acts. */
typedef struct { const int8_t *high, *low; const float *scale, *mass; const int32_t *bias; size_t lanes; } Inputs;

/* Half of one strip's tile times some tokens; or the low bytes of it, whose table that is then. All but the pointers and `half` are
   constants once inlined. */
INLINE void half_tile(int kind, int subs, int minimum, int tokens, int fine, int low, const Matrix *w, vb table, const uint8_t *tile,
                      int half, const Inputs *in, vf sums[8][PARTS]) {
    int per = subs / 2, pairs = kind == NARROW || kind == FLAT, first = w->table[0] - 128;  /* of EVEN: what code 0 stands for */
    size_t lanes = in->lanes;
    UNROLL
    for (int part = 0; part < PARTS; part++) {
        vb quads[8];
        unpack(kind, table, tile + 32 * subs * (1 + minimum), half, part, quads);
        UNROLL
        for (int sub = 0; sub < per; sub++) {
            int scales = half * per + sub;
            vf weight = load_half(tile + 32 * scales + 2 * VL * part), lowest = splat(0);
            if (minimum && !low) lowest = load_half(tile + 32 * (subs + scales) + 2 * VL * part);
            if (low) weight *= 0x1p-8f;
            UNROLL
            for (int i = 0; i < tokens; i++) {
                size_t group = half * lanes + i, at = scales * lanes + i;
                int32_t lift = in->bias[at];
                vi sum[2] = {splat_int(0), splat_int(0)}, above[2] = {splat_int(0), splat_int(0)};
                if (BIASED) sum[0] = splat_int(kind == EVEN ? (lift >> 7) * -first : lift);
                if (pairs) sum[0] = splat_int(kind == FLAT ? (lift >> 7) * -first : lift >> 2);
                UNROLL
                for (int v = 8 / per * sub; pairs && v < 8 / per * (sub + 1); v += 2) {
                    const int8_t *high = in->high + group * GROUP + 4 * v, *x = fine ? in->low + group * GROUP + 4 * v : high;
                    vi *to = above + v / 4;
                    if (fine) *to = dot4_twice(*to, quads[v], splat_quad(high), quads[v + 1], splat_quad(high + 4));
                    to = sum + v / 4;
                    *to = dot4_twice(*to, quads[v], splat_quad(x), quads[v + 1], splat_quad(x + 4));
                }
                UNROLL
                for (int v = 8 / per * sub; !pairs && v < 8 / per * (sub + 1); v++) {
                    if (fine) above[v / 4] = dot4(above[v / 4], quads[v], splat_quad(in->high + group * GROUP + 4 * v));
                    sum[v / 4] = dot4(sum[v / 4], quads[v], splat_quad((fine ? in->low : in->high) + group * GROUP + 4 * v));
                }
                if (fine) sum[0] += above[0] * 256, sum[1] += above[1] * 256;
                if (kind == EVEN) sum[1] >>= 4;
                sums[i][part] = plus(sums[i][part], weight * splat(in->scale[group]), to_float(sum[0] + sum[1]));
                if (minimum && !low) sums[i][part] = plus(sums[i][part], lowest, splat(in->mass[at]));
            }
        }
    }
}

/* `count` times `abreast` strips side by side, `count` strips apart, times `tokens` tokens. Each of those abreast is a stream of
   weights of its own: memory gives more to several. */
INLINE void strips_quant(int abreast, int kind, int subs, int minimum, int tokens, int fine, const Matrix *w, const Acts *a,
                         int token, float *y, size_t stride, int strip, int count) {
    const uint8_t *tile = w->data + strip_bytes(w) * strip;
    size_t bytes = 32 * subs * (1 + minimum) + (kind < Q4 ? 1024 : 512), next = strip_bytes(w) * count, lanes = a->lanes;
    size_t at = group_of(a, token, 0), at16 = half_of(a, token, 0, 0);
    int wide = subs == 2, tiles = up(w->columns, TILE) / TILE;
    vb table = load_table(w->table), below = load_table(w->low);
    for (int last = strip + count; strip < last; strip++) {
        Inputs in = {a->high + at * GROUP, a->low + at * GROUP, a->scale + at, wide ? a->mass32 + at : a->mass16 + at16,
                     wide ? a->sum32 + at : a->sum16 + at16, lanes};
        vf sums[ABREAST][8][PARTS];
        UNROLL
        for (int s = 0; s < abreast; s++)
            UNROLL
            for (int i = 0; i < tokens; i++)
                UNROLL
                for (int part = 0; part < PARTS; part++) sums[s][i][part] = splat(0);
        for (int t = 0; t < tiles; t++, tile += bytes) {
            UNROLL
            for (int s = 0; s < abreast; s++) {
                const uint8_t *here = tile + s * next;
                for (size_t i = 0; i < bytes; i += 64)
                    if (abreast > 1) __builtin_prefetch(here + AHEAD + i, 0, 2);
                    else __builtin_prefetch(here + ALONE + i);
                if (abreast > 1) {
                    half_tile(kind, subs, minimum, tokens, fine, 0, w, table, here, 0, &in, sums[s]);
                    half_tile(kind, subs, minimum, tokens, fine, 0, w, table, here, 1, &in, sums[s]);
                } else {  /* less code */
                    for (int half = 0; half < 2; half++) {
                        half_tile(kind, subs, minimum, tokens, fine, 0, w, table, here, half, &in, sums[s]);
                        if (kind == WIDE) half_tile(kind, subs, minimum, tokens, fine, 1, w, below, here, half, &in, sums[s]);
                    }
                }
            }
            in.high += 2 * lanes * GROUP, in.low += 2 * lanes * GROUP, in.scale += 2 * lanes;
            in.bias += subs * lanes, in.mass += subs * lanes;
        }
        UNROLL
        for (int s = 0; s < abreast; s++)
            UNROLL
            for (int i = 0; i < tokens; i++)
                UNROLL
                for (int part = 0; part < PARTS; part++) finish(w, strip + s * count, part, sums[s][i][part], y + i * stride);
    }
}

INLINE void strips_float(int kind, int tokens, const Matrix *w, const Acts *a, int token, float *y, size_t stride, int strip,
                         int count) {
    const uint8_t *tile = w->data + strip_bytes(w) * strip;
    const float *x = a->x + (size_t)token * a->width;
    for (int last = strip + count; strip < last; strip++, tile += strip_bytes(w)) {
        vf sums[8][PARTS];
        UNROLL
        for (int i = 0; i < tokens; i++)
            UNROLL
            for (int part = 0; part < PARTS; part++) sums[i][part] = splat(0);
        for (int c = 0; c < up(w->columns, TILE); c++)
            UNROLL
            for (int part = 0; part < PARTS; part++) {
                vf weights = load_as(kind, tile, (size_t)c * LANES + part * VL);
                UNROLL
                for (int i = 0; i < tokens; i++) sums[i][part] = plus(sums[i][part], weights, splat(x[(size_t)i * a->width + c]));
            }
        UNROLL
        for (int i = 0; i < tokens; i++)
            UNROLL
            for (int part = 0; part < PARTS; part++) finish(w, strip, part, sums[i][part], y + i * stride);
    }
}

/* Chooses the code made for a way of coding. Decoding, one token times strips abreast, has more of it than the rest needs, but
   none for floats and wide tables, whose strips go one by one. */
#define WAY(kind, subs, minimum) \
    strips_quant(abreast, kind, subs, minimum, tokens, fine, w, a, token, y, stride, strip, count)
INLINE void strips_times(int abreast, int tokens, int fine, const Matrix *w, const Acts *a, int token, float *y, size_t stride,
                         int strip, int count) {
    int kind = coding(w), decoding = abreast > 1;
    if (!decoding && kind == F32) strips_float(F32, tokens, w, a, token, y, stride, strip, count);
    else if (!decoding && kind == F16) strips_float(F16, tokens, w, a, token, y, stride, strip, count);
    else if (!decoding && kind == BF16) strips_float(BF16, tokens, w, a, token, y, stride, strip, count);
    else if (NARROWS && kind == NARROW && w->subs == 4) WAY(NARROW, 4, w->minimum);
    else if (NARROWS && kind == NARROW) WAY(NARROW, 2, w->minimum);
    else if (kind == Q8 && w->subs == 4) WAY(Q8, 4, w->minimum);
    else if (decoding && kind == Q8 && !w->minimum) WAY(Q8, 2, 0);
    else if (kind == Q8) WAY(Q8, 2, w->minimum);
    else if (!decoding && kind == WIDE) WAY(WIDE, 2, w->minimum);
    else if (w->subs == 4) WAY(Q4, 4, w->minimum);
    else if (NARROWS && kind == FLAT) WAY(FLAT, 2, w->minimum);
    else if (decoding && kind == EVEN && w->minimum) WAY(EVEN, 2, 1);
    else if (decoding && kind == EVEN) WAY(EVEN, 2, 0);
    else if (decoding && !w->minimum) WAY(Q4, 2, 0);
    else WAY(Q4, 2, w->minimum);
}

#define STRIPS(name, abreast, tokens)                                                                                  \
    static void strips_##name(const Matrix *w, const Acts *a, int fine, int token, float *y, size_t stride, int strip, \
                              int count) {                                                                             \
        if (fine) strips_times(abreast, tokens, 1, w, a, token, y, stride, strip, count);                              \
        else strips_times(abreast, tokens, 0, w, a, token, y, stride, strip, count);                                   \
    }
STRIPS(1, 1, 1)
STRIPS(2, 1, 2)
STRIPS(4, 1, 4)
#if VL == 16
STRIPS(8, 1, 8)
#endif
STRIPS(abreast, ABREAST, 1)

/* One strip times any number of tokens. */
static void strip_tokens(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip) {
    int n;
    for (int i = 0; i < tokens; i += n) {
        float *to = y + (size_t)i * stride;
        int left = tokens - i;
#if VL == 16
        if (left >= 8) { n = 8; strips_8(w, a, fine, token + i, to, stride, strip, 1); continue; }
#endif
        if (left >= 4) n = 4, strips_4(w, a, fine, token + i, to, stride, strip, 1);
        else if (left >= 2) n = 2, strips_2(w, a, fine, token + i, to, stride, strip, 1);
        else n = 1, strips_1(w, a, fine, token + i, to, stride, strip, 1);
    }
}

#include "tiles.h"

/* y[t][row] for `tokens` tokens and the rows of `strips` strips. Tokens go in panels whose activations stay in the cache. */
static void matmul(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip, int strips,
                   void *scratch) {
    int panel = w->columns < 1 << 20 ? up((1 << 20) / w->columns, LANES) : LANES;
    (void)scratch;
    if (tokens == 1) {
        int count = w->kind >= Q8 && !w->wide ? strips / ABREAST : 0, rest = strips - count * ABREAST;
        if (count) strips_abreast(w, a, fine, token, y, stride, strip, count);
        if (rest) strips_1(w, a, fine, token, y, stride, strip + count * ABREAST, rest);
        return;
    }
    for (int first = 0; first < tokens; first += panel) {
        int n = tokens - first < panel ? tokens - first : panel;
        for (int s = strip; s < strip + strips; s++) {
            float *to = y + (size_t)first * stride;
#if defined(__AMX_INT8__)
            if (n >= 12 && w->kind >= Q8 && !w->wide) { strip_tiles(w, a, fine, token + first, n, to, stride, s, scratch); continue; }
#endif
            strip_tokens(w, a, fine, token + first, n, to, stride, s);
        }
    }
}
