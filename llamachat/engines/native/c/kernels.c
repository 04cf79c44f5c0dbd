/* The kernels, written once and compiled for each instruction set (see simd.h and build.py).

   A matrix product sums, for each output, group after group of columns, fma(weight scale * activation scale, integer sum,
   so far): whatever the number of tokens and the instructions, the result is the same to the last bit, so that decoding,
   prefill in chunks of any size and the verification of drafts agree. */
#include "model.h"
#include "simd.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define KERNELS JOIN(kernels_, ISA)
#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

static int least(int a, int b) { return a < b ? a : b; }

static float half_value(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, 2);
    return half_to_float(h);
}

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

/* n up to a multiple of 64: x, add and weight are zero from there on, and out becomes so. It may be `add`. */
static void rmsnorm(float *x, const float *add, const float *weight, int n, float eps, float *out) {
    vf squares = splat(0);
    int end = up(n, TILE);
    for (int i = 0; i < end; i += VL) {
        if (add) store(x + i, load(x + i) + load(add + i));
        squares += load(x + i) * load(x + i);
    }
    vf scale = splat(1.0f / sqrtf(sum_lanes(squares) / (float)n + eps));
    for (int i = 0; i < end; i += VL) store(out + i, load(x + i) * scale * load(weight + i));
}

static void normalize(float *x, const float *weight, int n, float eps) {
    vf squares = splat(0);
    float rest = 0.0f;
    int whole = n / VL * VL;
    for (int i = 0; i < whole; i += VL) squares += load(x + i) * load(x + i);
    for (int i = whole; i < n; i++) rest += x[i] * x[i];
    float scale = 1.0f / sqrtf((sum_lanes(squares) + rest) / (float)n + eps);
    for (int i = 0; i < whole; i += VL) store(x + i, load(x + i) * scale * load(weight + i));
    for (int i = whole; i < n; i++) x[i] *= scale * weight[i];
}

/* RoPE of one head, whose two halves are each other's partners. */
static void rotate(float *x, const float *cosine, const float *sine, int half, float scale) {
    int i = 0;
    for (; i + VL <= half; i += VL) {
        vf a = load(x + i), b = load(x + i + half), c = load(cosine + i), s = load(sine + i);
        store(x + i, (rounded(a * c) - rounded(b * s)) * scale);
        store(x + i + half, (rounded(b * c) + rounded(a * s)) * scale);
    }
    for (; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = (a * cosine[i] - b * sine[i]) * scale;
        x[i + half] = (b * cosine[i] + a * sine[i]) * scale;
    }
}

/* Codes of one group: x times 1 / scale; and the sums over its halves of high, or of 256 * high + low if fine. */
INLINE void quantize_group(const float *x, float inverse, int fine, int8_t *high, int8_t *low, int32_t halves[2]) {
    UNROLL
    for (int half = 0; half < 2; half++) {
        vi sums = splat_int(0);
        UNROLL
        for (int i = 16 * half; i < 16 * half + 16; i += VL) {
            vf scaled = rounded(clamp(load(x + i) * inverse, 127.0f));
            vi codes = nearest(scaled);
            *(vc_u *)(high + i) = __builtin_convertvector(codes, vc);
            if (fine) {
                vi below = nearest(clamp((scaled - to_float(codes)) * 256.0f, 127.0f));
                *(vc_u *)(low + i) = __builtin_convertvector(below, vc);
                codes = codes * 256 + below;
            }
            sums += codes;
        }
        halves[half] = sum_ints(sums);
    }
}

INLINE void quantize_as(int fine, const Acts *a, int token, int first, int last) {
    const float *x = a->x + (size_t)token * a->width;
    size_t lanes = a->lanes, g = group_of(a, token, first / GROUP), at = half_of(a, token, first / GROUP, 0);
    for (int c = first; c < last; c += GROUP, g += lanes, at += 2 * lanes) {
        vi most = splat_int(0);  /* of all; what is not finite makes the scale so, and in the end the logits: it is never lost */
        for (int i = 0; i < GROUP; i += VL) most = larger_int(most, magnitude_bits(load(x + c + i)));
        float scale = from_bits(largest_int(most)) / 127.0f, inverse = scale > 0x1p-126f ? 1.0f / scale : 0.0f;
        int32_t halves[2];
        quantize_group(x + c, inverse, fine, a->high + g * GROUP, a->low + g * GROUP, halves);
        if (fine) scale *= 0x1p-8f;
        a->scale[g] = scale;
        a->sum32[g] = -128 * (halves[0] + halves[1]);
        a->mass32[g] = scale * (float)(halves[0] + halves[1]);
        for (int half = 0; half < 2; half++) {
            a->sum16[at + half * lanes] = -128 * halves[half];
            a->mass16[at + half * lanes] = scale * (float)halves[half];
        }
    }
}

static void quantize(const Acts *a, int token, int first, int last, int fine) {
    if (fine) quantize_as(1, a, token, first, last);
    else quantize_as(0, a, token, first, last);
}

/* ---- activation functions: what is not a number stays none ---- */

INLINE vf at_most(vf x, float most) { return choose(x > most, splat(most), x); }
INLINE vf at_least(vf x, float least) { return choose(x < least, splat(least), x); }

/* x / (1 + e^-y): x times the logistic function of y. */
INLINE vf gated_by(vf x, vf y) { return x / (1.0f + exponential(-larger(y, splat(-88.0f)))); }

INLINE vf tangent(vf x) {  /* hyperbolic, to 1e-7 */
    vf value = 1.0f - 2.0f / (exponential(2.0f * at_most(x, 44.0f)) + 1.0f);
    return choose(x == x, value, x);
}

/* x times the normal distribution up to x, which is half of erfc(z), z = |x| / sqrt(2), or what that lacks of 1. erfc(z) is
   t e^(p(t) - z^2) with t = 1 / (1 + z / 2); p was fitted to 6e-8. */
INLINE vf gelu(vf x) {
    vf z = (vf)((vi)x & 0x7fffffff) * 0.70710678f, t = 1.0f / (1.0f + 0.5f * z);
    vf p = splat(0.157751009f);
    p = p * t - 0.750181556f;
    p = p * t + 1.31865299f;
    p = p * t - 0.909740686f;
    p = p * t + 0.0943214297f;
    p = p * t - 0.0902556628f;
    p = p * t + 0.0652326494f;
    p = p * t + 0.380354136f;
    p = p * t + 0.999348104f;
    p = p * t - 1.26548231f;
    vf beyond = 0.5f * t * exponential(p - z * z);
    return x * choose(x > 0.0f, 1.0f - beyond, beyond);
}

/* As gelu, with the logistic function for the distribution: x (1 + tanh y) / 2, y = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE vf gelu_tanh(vf x) { return gated_by(x, 1.59576912f * x * (1.0f + 0.044715f * x * x)); }

INLINE vf clamped_swiglu(vf gate, vf up, float limit) {
    vf g = at_most(gate, limit);
    return gated_by(g, 1.702f * g) * (at_least(at_most(up, limit), -limit) + 1.0f);
}

static void activate(int activation, float limit, const float *gate, const float *up, float *out, int n) {
    switch (activation) {
    case GELU:
        for (int i = 0; i < n; i += VL) store(out + i, gelu(load(gate + i)) * load(up + i));
        return;
    case GELU_TANH:
        for (int i = 0; i < n; i += VL) store(out + i, gelu_tanh(load(gate + i)) * load(up + i));
        return;
    case CLAMPED_SWIGLU:
        for (int i = 0; i < n; i += VL) store(out + i, clamped_swiglu(load(gate + i), load(up + i), limit));
        return;
    default:
        for (int i = 0; i < n; i += VL) store(out + i, gated_by(load(gate + i), load(gate + i)) * load(up + i));
    }
}

static void soften(float *x, int n, float cap) {
    for (int i = 0; i < n; i += VL) store(x + i, cap * tangent(load(x + i) / cap));
}

/* ---- matrix products ---- */

enum { ABREAST = VL == 16 ? 4 : 2 };  /* strips side by side */
enum { AHEAD = 1152, ALONE = 1536 };  /* bytes of weights fetched ahead of use, of several streams and of one */

INLINE void finish(const Matrix *w, int strip, int part, vf sum, float *y) {
    sum *= splat(w->unit);
    if (w->bias) sum += load(w->bias + strip * LANES + part * VL);
    store(y + strip * LANES + part * VL, sum);
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

/* ---- attention ---- */

enum { FAR = 2048 };  /* bytes of keys and values fetched ahead of use */

INLINE const void *offset(int kind, const void *p, size_t elements) {
    return (const char *)p + elements * (kind == F32 ? 4 : kind == Q8 ? 1 : 2);
}

INLINE vf load_ahead(int kind, const void *p, size_t i) {
    __builtin_prefetch((const char *)offset(kind, p, i) + FAR);
    return load_as(kind, p, i);
}

/* out[r][0 or 1] += sum over k of a[r][k] * b[k], b a row of one or two vectors. Everything but a, b, n is a constant. */
INLINE void outer(int rows, int vectors, int kind, const float *const *a, const void *b, size_t step, size_t second, int n,
                  vf out[ROWS][2]) {
    for (int k = 0; k < n; k++) {
        vf x = load_ahead(kind, b, k * step), y = vectors == 2 ? load_ahead(kind, b, k * step + second) : x;
        UNROLL
        for (int r = 0; r < rows; r++) {
            vf scalar = splat(a[r][k]);
            out[r][0] += scalar * x;
            if (vectors == 2) out[r][1] += scalar * y;
        }
    }
}

INLINE void scores_of(int rows, int kind, const Keys *keys, const float *const *q, int slots, float scores[][CHUNK]) {
    size_t block = (size_t)keys->dim * LANES;
    for (int s = 0; s < slots; s += 2 * VL) {  /* two vectors of slots; a block holds 16 */
        vf out[ROWS][2];
        UNROLL
        for (int r = 0; r < rows; r++) out[r][0] = out[r][1] = splat(0);
        const void *k = offset(kind, keys->k, s / LANES * block + s % LANES);
        outer(rows, 2, kind, q, k, LANES, VL == LANES ? block : VL, keys->dim, out);
        UNROLL
        for (int r = 0; r < rows; r++) store(scores[r] + s, out[r][0]), store(scores[r] + s + VL, out[r][1]);
    }
}

INLINE void values_of(int rows, int kind, const Keys *keys, const float *const *weights, int slots, float *part) {
    int d = 0, size = PART + keys->dim;
    for (; d < keys->dim; d += 2 * VL) {
        int two = d + VL < keys->dim;
        vf out[ROWS][2];
        UNROLL
        for (int r = 0; r < rows; r++) out[r][0] = out[r][1] = splat(0);
        const void *v = offset(kind, keys->v, d);
        if (two) outer(rows, 2, kind, weights, v, keys->dim, VL, slots, out);
        else outer(rows, 1, kind, weights, v, keys->dim, VL, slots, out);
        UNROLL
        for (int r = 0; r < rows; r++) {
            store(part + r * size + PART + d, out[r][0]);
            if (two) store(part + r * size + PART + d + VL, out[r][1]);
        }
    }
}

/* Numbers as integers of 15 bits, x ~ (256 * high + low) * scale, as activations are when fine. */
typedef struct { int8_t high[DIM], low[DIM]; float scale; int32_t bias[2]; } Integers;  /* bias: takes back 128 added to each code */

/* n is a multiple of 16. */
INLINE void to_integers(const float *x, int n, Integers *to) {
    vi sums[2] = {splat_int(0), splat_int(0)}, most = splat_int(0);
    for (int i = 0; i < n; i += VL) most = larger_int(most, magnitude_bits(load(x + i)));
    float top = from_bits(largest_int(most)) / 127.0f, inverse = top > 0x1p-126f ? 1.0f / top : 0.0f;
    for (int i = 0; i < n; i += VL) {
        vf scaled = rounded(clamp(load(x + i) * inverse, 127.0f));
        vi above = nearest(scaled);
        vi below = nearest(clamp((scaled - to_float(above)) * 256.0f, 127.0f));
        *(vc_u *)(to->high + i) = __builtin_convertvector(above, vc);
        *(vc_u *)(to->low + i) = __builtin_convertvector(below, vc);
        sums[0] += above, sums[1] += below;
    }
    to->scale = top * 0x1p-8f;
    for (int i = 0; i < 2; i++) to->bias[i] = BIASED ? -128 * sum_ints(sums[i]) : 0;
}

/* out[r][v] = sum over k of a[r][k] * code k, of one or two vectors of VL rows of codes, four of a row side by side. */
INLINE void outer_integers(int rows, int vectors, const Integers *a, const int8_t *codes, size_t step, size_t second, int n,
                           vf out[ROWS][2]) {
    vi above[ROWS][2], below[ROWS][2];
    UNROLL
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) above[r][v] = splat_int(a[r].bias[0]), below[r][v] = splat_int(a[r].bias[1]);
    for (int k = 0; k < n; k += 4, codes += step)
        UNROLL
        for (int v = 0; v < vectors; v++) {
            vb quads = *(const vb_u *)(codes + v * second) ^ (BIASED ? 128 : 0);
            __builtin_prefetch(codes + v * second + FAR);
            UNROLL
            for (int r = 0; r < rows; r++) {
                above[r][v] = dot4(above[r][v], quads, splat_quad(a[r].high + k));
                below[r][v] = dot4(below[r][v], quads, splat_quad(a[r].low + k));
            }
        }
    UNROLL
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) out[r][v] = (to_float(above[r][v]) * 256.0f + to_float(below[r][v])) * a[r].scale;
}

INLINE void scores_of_codes(int rows, const Keys *keys, const float *const *q, int slots, float scores[][CHUNK]) {
    enum { WIDE = 2 };
    int vectors = rows <= 4 ? WIDE : 1;
    size_t block = (size_t)keys->dim * LANES;
    Integers a[ROWS];
    vf out[ROWS][2];
    for (int r = 0; r < rows; r++) to_integers(q[r], keys->dim, a + r);
    for (int s = 0; s < slots; s += vectors * VL) {
        const int8_t *k = (const int8_t *)keys->k + s / LANES * block + s % LANES * 4;
        outer_integers(rows, vectors, a, k, 4 * LANES, VL == LANES ? block : 4 * VL, keys->dim, out);
        UNROLL
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) store(scores[r] + s + v * VL, out[r][v]);
    }
}

INLINE void values_of_codes(int rows, const Keys *keys, const float *const *weights, int slots, float *part) {
    int size = PART + keys->dim, vectors = rows <= 4 ? 2 : 1;
    Integers a[ROWS];
    vf out[ROWS][2];
    for (int r = 0; r < rows; r++) to_integers(weights[r], slots, a + r);
    for (int d = 0, n; d < keys->dim; d += n * VL) {
        const int8_t *v = (const int8_t *)keys->v + 4 * d;
        n = least(vectors, (keys->dim - d) / VL);
        if (n == 2) outer_integers(rows, 2, a, v, 4 * keys->dim, 4 * VL, slots, out);
        else outer_integers(rows, 1, a, v, 4 * keys->dim, 0, slots, out);
        UNROLL
        for (int r = 0; r < rows; r++) {
            store(part + r * size + PART + d, out[r][0]);
            if (n == 2) store(part + r * size + PART + d + VL, out[r][1]);
        }
    }
}

/* Scores to exponentials, in place; the largest score and the sum go to part. A slot that is masked weighs exactly 0. */
static void softmax(const Keys *keys, int position, int slots, float *scores, float *part) {
    vf most = splat(-INFINITY), total = splat(0);
    for (int s = 0; s < slots; s += VL) {
        vi at = *(const vi_u *)(keys->position + s);
        vi mask = (at <= position) & (at > position - keys->window);
        vf score = load(scores + s);
        if (keys->kind == Q8) score *= load(keys->k_scale + s);
        if (keys->softcap > 0.0f) score = keys->softcap * tangent(score / keys->softcap);
        score = choose(mask, score, splat(-INFINITY));
        store(scores + s, score);
        most = larger(most, score);
    }
    float top = largest_lane(most);
    for (int s = 0; s < slots; s += VL) {
        vf score = load(scores + s), weight = choose(score > -INFINITY, exponential(score - top), splat(0));
        total += weight;
        if (keys->kind == Q8) weight *= load(keys->v_scale + s);
        store(scores + s, weight);
    }
    part[0] = top;
    part[1] = sum_lanes(total);
}

INLINE void attend_rows(int rows, int kind, const Keys *keys, const float *const *q, const int32_t *position, int slots,
                        float *part) {
    _Alignas(64) float scores[ROWS][CHUNK];
    const float *weights[ROWS];
    if (kind == Q8) scores_of_codes(rows, keys, q, slots, scores);
    else scores_of(rows, kind, keys, q, slots, scores);
    for (int r = 0; r < rows; r++) {
        softmax(keys, position[r], slots, scores[r], part + r * (PART + keys->dim));
        weights[r] = scores[r];
    }
    if (kind == Q8) values_of_codes(rows, keys, weights, slots, part);
    else values_of(rows, kind, keys, weights, slots, part);
}

#define ATTEND(kind)                                                                                                     \
    static void attend_##kind(const Keys *keys, const float *const *q, const int32_t *position, int rows, int slots,     \
                              float *part) {                                                                             \
        switch (rows) {                                                                                                  \
        case 1: attend_rows(1, kind, keys, q, position, slots, part); return;                                      \
        case 2: attend_rows(2, kind, keys, q, position, slots, part); return;                                      \
        case 3: attend_rows(3, kind, keys, q, position, slots, part); return;                                      \
        case 4: attend_rows(4, kind, keys, q, position, slots, part); return;                                      \
        case 5: attend_rows(5, kind, keys, q, position, slots, part); return;                                      \
        case 6: attend_rows(6, kind, keys, q, position, slots, part); return;                                      \
        case 7: attend_rows(7, kind, keys, q, position, slots, part); return;                                      \
        default: attend_rows(8, kind, keys, q, position, slots, part);                                             \
        }                                                                                                                \
    }
ATTEND(F32)
ATTEND(F16)
ATTEND(BF16)
ATTEND(Q8)

/* Softmax-weighted sums of values over `slots` slots (whole blocks of one chunk), for up to 8 queries of one head's group. */
static void attend(const Keys *keys, const float *const *q, const int32_t *position, int rows, int slots, float *part) {
    switch (keys->kind) {
    case F32: attend_F32(keys, q, position, rows, slots, part); return;
    case F16: attend_F16(keys, q, position, rows, slots, part); return;
    case BF16: attend_BF16(keys, q, position, rows, slots, part); return;
    default: attend_Q8(keys, q, position, rows, slots, part);
    }
}

/* Adds one chunk's partial to the running one, both relative to their own largest score. */
static void merge(float *into, const float *part, int dim) {
    if (part[1] == 0) return;  /* nothing seen in this chunk */
    float top = into[0] > part[0] ? into[0] : part[0];
    vf old = exponential(splat(into[0] - top)), new = exponential(splat(part[0] - top));
    if (into[1] == 0) old = splat(0);
    into[0] = top;
    into[1] = into[1] * old[0] + part[1] * new[0];
    for (int d = PART; d < PART + dim; d += VL) store(into + d, load(into + d) * old + load(part + d) * new);
}

/* n floats (room for a multiple of 16 in both arrays) to the type that keys and values are kept in. The narrower ones have no
   infinity: a key that every query may see must not spoil those that do not. */
static float narrow(int kind, const float *x, void *out, int n) {
    float scale = 1.0f;
    if (kind == Q8) {
        int32_t most = 0;
        for (int i = 0; i < n; i++) {
            int32_t bits;
            memcpy(&bits, x + i, 4);
            bits = least(bits & 0x7fffffff, 0x7f7fffff);
            if (bits > most) most = bits;
        }
        scale = from_bits(most) > 0x1p-119f ? from_bits(most) / 127.0f : 0x1p-126f;
    }
    for (int i = 0; i < n; i += VL) {
        vf part = load(x + i);
        if (kind == F32) store((float *)out + i, part);
        else if (kind == Q8) *(vc_u *)((int8_t *)out + i) = __builtin_convertvector(nearest(clamp(part / scale, 127.0f)), vc);
        else *(vh_u *)((uint16_t *)out + i) = kind == F16 ? to_half(part) : to_bfloats(part);
    }
    return scale;
}

static float widen(int kind, const void *p, size_t i) {
    _Alignas(64) char lanes[4 * VL] = {0};
    memcpy(lanes, offset(kind, p, i), kind == F32 ? 4 : kind == Q8 ? 1 : 2);
    return load_as(kind, lanes, 0)[0];
}

/* ---- what is added to products: see LowRank. Each sum has one order, however many tokens, strips and threads there are ---- */

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

const Kernels KERNELS = {TEXT(ISA), dequantize_row, rmsnorm, normalize, rotate, quantize, activate, soften,
                         matmul, low_sums, low_add, low_row, attend, merge, narrow, widen, enter, leave};
