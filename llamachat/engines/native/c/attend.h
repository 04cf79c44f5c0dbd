/* Attention over keys and values as they are kept, and the narrowing of numbers to what is kept. */

/* Short texts lie apart, so that processors do not foresee what is read next: while keys are read, the values are fetched that
   are read after them, line by line; and while these are read, what is read next. */
INLINE ptrdiff_t between(const void *read, const void *next) { return (ptrdiff_t)((uintptr_t)next - (uintptr_t)read); }

/* Of a row of numbers, and another `second` further on, as much as is read of them: 64 bytes, unless they are wide. */
INLINE void fetch_rows(int kind, const void *b, int k, size_t step, size_t second, ptrdiff_t far) {
    int both = kind == F32, apart = second != VL;
    if (both || !apart || k % 2 == 0) __builtin_prefetch((const char *)offset(kind, b, k * step) + far);
    if (both || (apart && k % 2)) __builtin_prefetch((const char *)offset(kind, b, k * step + second) + far);
}

/* out[r][0 or 1] += sum over k of a[r][k] * b[k], b a row of one or two vectors. Everything but a, b, n is a constant. */
INLINE void outer(int rows, int vectors, int kind, const float *const *a, const void *b, size_t step, size_t second, int n,
                  ptrdiff_t far, vf out[ROWS][2]) {
    for (int k = 0; k < n; k++) {
        fetch_rows(kind, b, k, step, second, far);
        vf x = load_as(kind, b, k * step), y = vectors == 2 ? load_as(kind, b, k * step + second) : x;
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
    ptrdiff_t far = between(keys->k, keys->v);
    for (int s = 0; s < slots; s += 2 * VL) {  /* two vectors of slots; a block holds 16 */
        vf out[ROWS][2];
        UNROLL
        for (int r = 0; r < rows; r++) out[r][0] = out[r][1] = splat(0);
        const void *k = offset(kind, keys->k, s / LANES * block + s % LANES);
        outer(rows, 2, kind, q, k, LANES, VL == LANES ? block : VL, keys->dim, far, out);
        UNROLL
        for (int r = 0; r < rows; r++) store(scores[r] + s, out[r][0]), store(scores[r] + s + VL, out[r][1]);
    }
}

INLINE void values_of(int rows, int kind, const Keys *keys, const float *const *weights, int slots, float *part) {
    int d = 0, size = PART + keys->dim;
    ptrdiff_t far = between(keys->v, keys->next);
    for (; d < keys->dim; d += 2 * VL) {
        int two = d + VL < keys->dim;
        vf out[ROWS][2];
        UNROLL
        for (int r = 0; r < rows; r++) out[r][0] = out[r][1] = splat(0);
        const void *v = offset(kind, keys->v, d);
        if (two) outer(rows, 2, kind, weights, v, keys->dim, VL, slots, far, out);
        else outer(rows, 1, kind, weights, v, keys->dim, VL, slots, far, out);
        UNROLL
        for (int r = 0; r < rows; r++) {
            store(part + r * size + PART + d, out[r][0]);
            if (two) store(part + r * size + PART + d + VL, out[r][1]);
        }
    }
}

/* out[r][v] = sum over k of a[r][k] * code k, of one or two vectors of VL rows of codes, four of a row side by side. */
INLINE void outer_integers(int rows, int vectors, const Integers *a, const int8_t *codes, size_t step, size_t second, int n,
                           ptrdiff_t far, vf out[ROWS][2]) {
    vi above[ROWS][2], below[ROWS][2];
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < vectors; v++) above[r][v] = splat_int(a[r].bias[0]), below[r][v] = splat_int(a[r].bias[1]);
    for (int k = 0; k < n; k += 4, codes += step)
        UNROLL
        for (int v = 0; v < vectors; v++) {
            vb quads = *(const vb_u *)(codes + v * second) ^ (BIASED ? 128 : 0);
            __builtin_prefetch(codes + v * second + far);
            UNROLL
            for (int r = 0; r < rows; r++) {
                above[r][v] = dot4(above[r][v], quads, splat_quad(a[r].high + k));
                below[r][v] = dot4(below[r][v], quads, splat_quad(a[r].low + k));
            }
        }
    UNROLL
    for (int r = 0; r < rows; r++)
        UNROLL
        for (int v = 0; v < vectors; v++) out[r][v] = (to_float(above[r][v]) * 256.0f + to_float(below[r][v])) * a[r].scale;
}

INLINE void scores_of_codes(int rows, const Keys *keys, const float *const *q, int slots, float scores[][CHUNK]) {
    enum { WIDE = 2 };
    int vectors = rows <= 4 ? WIDE : 1;
    size_t block = (size_t)keys->dim * LANES;
    ptrdiff_t far = between(keys->k, keys->v);
    Integers a[ROWS];
    vf out[ROWS][2];
    for (int r = 0; r < rows; r++) to_integers(q[r], keys->dim, a + r);
    for (int s = 0; s < slots; s += vectors * VL) {
        const int8_t *k = (const int8_t *)keys->k + s / LANES * block + s % LANES * 4;
        outer_integers(rows, vectors, a, k, 4 * LANES, VL == LANES ? block : 4 * VL, keys->dim, far, out);
        UNROLL
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < vectors; v++) store(scores[r] + s + v * VL, out[r][v]);
    }
}

INLINE void values_of_codes(int rows, const Keys *keys, const float *const *weights, int slots, float *part) {
    int size = PART + keys->dim, vectors = rows <= 4 ? 2 : 1;
    ptrdiff_t far = between(keys->v, keys->next);
    Integers a[ROWS];
    vf out[ROWS][2];
    for (int r = 0; r < rows; r++) to_integers(weights[r], slots, a + r);
    for (int d = 0, n; d < keys->dim; d += n * VL) {
        const int8_t *v = (const int8_t *)keys->v + 4 * d;
        n = least(vectors, (keys->dim - d) / VL);
        if (n == 2) outer_integers(rows, 2, a, v, 4 * keys->dim, 4 * VL, slots, far, out);
        else outer_integers(rows, 1, a, v, 4 * keys->dim, 0, slots, far, out);
        UNROLL
        for (int r = 0; r < rows; r++) {
            store(part + r * size + PART + d, out[r][0]);
            if (n == 2) store(part + r * size + PART + d + VL, out[r][1]);
        }
    }
}

#include "nibbles.h"

/* Values are used once scores are known; they lie in short runs, which processors do not foresee. */
INLINE void fetch_values(const Keys *keys, int slots) {
    const char *v = keys->v;
    for (size_t i = 0; i < values_block(keys->dim) * (slots / LANES); i += 64) __builtin_prefetch(v + i);
}

/* Scores to exponentials, in place; the largest score and the sum go to part. A slot that is masked weighs exactly 0. */
static void softmax(const Keys *keys, int position, int slots, float *scores, float *part) {
    vf most = splat(-INFINITY), total = splat(0);
    for (int s = 0; s < slots; s += VL) {
        vi at = *(const vi_u *)(keys->position + s);
        vi mask = (at <= position) & (at > position - keys->window);
        vf score = load(scores + s);
        if (keys->kind >= Q8) score *= load(keys->k_scale + s);
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
    if (kind == Q4) fetch_values(keys, slots);
    if (kind >= Q8) scores_of_codes(rows, keys, q, slots, scores);
    else scores_of(rows, kind, keys, q, slots, scores);
    for (int r = 0; r < rows; r++) {
        softmax(keys, position[r], slots, scores[r], part + r * (PART + keys->dim));
        weights[r] = scores[r];
    }
    if (kind == Q4) values_of_nibbles(rows, keys, weights, slots, part);
    else if (kind == Q8) values_of_codes(rows, keys, weights, slots, part);
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
ATTEND(Q4)

/* Softmax-weighted sums of values over `slots` slots (whole blocks of one chunk), for up to 8 queries of one head's group. */
static void attend(const Keys *keys, const float *const *q, const int32_t *position, int rows, int slots, float *part) {
    switch (keys->kind) {
    case F32: attend_F32(keys, q, position, rows, slots, part); return;
    case F16: attend_F16(keys, q, position, rows, slots, part); return;
    case BF16: attend_BF16(keys, q, position, rows, slots, part); return;
    case Q8: attend_Q8(keys, q, position, rows, slots, part); return;
    default: attend_Q4(keys, q, position, rows, slots, part);
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
        else if (kind == Q8) *(vc_u *)((int8_t *)out + i) = to_bytes(nearest(clamp(part / scale, 127.0f)));
        else *(vh_u *)((uint16_t *)out + i) = kind == F16 ? to_half(part) : to_bfloats(part);
    }
    return scale;
}

static float widen(int kind, const void *p, size_t i) {
    _Alignas(64) char lanes[4 * VL] = {0};
    memcpy(lanes, offset(kind, p, i), kind == F32 ? 4 : kind == Q8 ? 1 : 2);
    return load_as(kind, lanes, 0)[0];
}
