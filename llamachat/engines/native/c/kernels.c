/* The kernels, written once and compiled for each instruction set: a set of them (see set.h).

   A matrix product sums, for each output, group after group of columns, fma(weight scale * activation scale, integer sum,
   so far): whatever the number of tokens and the instructions, the result is the same to the last bit, so that decoding,
   prefill in chunks of any size and the verification of drafts agree. */
#include "set.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

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

INLINE int32_t pair(const int32_t sums[2]) { return (int32_t)(((uint32_t)sums[1] << 16) | (uint16_t)sums[0]); }

/* Codes of one group: x times 1 / scale; and their sums over its halves, of low if fine. */
INLINE void quantize_group(const float *x, float inverse, int fine, int8_t *high, int8_t *low, int32_t sums[2],
                           int32_t low_sums[2]) {
    UNROLL
    for (int half = 0; half < 2; half++) {
        vi sum = splat_int(0), low_sum = splat_int(0);
        UNROLL
        for (int i = 16 * half; i < 16 * half + 16; i += VL) {
            vf scaled = rounded(clamp(load(x + i) * inverse, 127.0f));
            vi codes = nearest(scaled);
            *(vc_u *)(high + i) = __builtin_convertvector(codes, vc);
            sum += codes;
            if (fine) {
                vi rest = nearest(clamp((scaled - to_float(codes)) * 256.0f, 127.0f));
                *(vc_u *)(low + i) = __builtin_convertvector(rest, vc);
                low_sum += rest;
            }
        }
        sums[half] = sum_ints(sum);
        if (fine) low_sums[half] = sum_ints(low_sum);
    }
}

INLINE void quantize_as(int fine, const Acts *a, int token, int first, int last) {
    const float *x = a->x + (size_t)token * a->width;
    size_t lanes = a->lanes, g = group_of(a, token, first / GROUP);
    for (int c = first; c < last; c += GROUP, g += lanes) {
        vi most = splat_int(0);  /* of all; what is not finite makes the scale so, and in the end the logits: it is never lost */
        for (int i = 0; i < GROUP; i += VL) most = larger_int(most, magnitude_bits(load(x + c + i)));
        float scale = from_bits(largest_int(most)) / 127.0f, inverse = scale > 0x1p-126f ? 1.0f / scale : 0.0f;
        int32_t sums[2], low_sums[2] = {0, 0};
        quantize_group(x + c, inverse, fine, a->high + g * GROUP, a->low + g * GROUP, sums, low_sums);
        if (fine) scale *= 0x1p-8f;
        a->scale[g] = scale;
        a->sum32[g] = (fine ? 256 : 1) * (sums[0] + sums[1]) + low_sums[0] + low_sums[1];
        a->mass32[g] = scale * (float)a->sum32[g];
        a->pair_high[g] = pair(sums), a->pair_low[g] = pair(low_sums);
    }
}

static void quantize(const Acts *a, int token, int first, int last, int fine) {
    if (fine) quantize_as(1, a, token, first, last);
    else quantize_as(0, a, token, first, last);
}

#include "activations.h"
#include "integers.h"
#include "attend.h"

float OF_SET(widen)(int kind, const void *p, size_t i) { return widen(kind, p, i); }

int OF_SET(fetching) = FETCH_OUTER;
static int fetch_weights(int fetching) {
    OF_SET(fetching) = fetching;
    return abreast_for(fetching);
}

const Kernels OF_SET(kernels) = {
    TEXT(ISA), OF_SET(dequantize_row), rmsnorm, normalize, rotate, quantize, activate, soften, OF_SET(matmul), OF_SET(low_sums),
    OF_SET(low_add), OF_SET(low_row), attend, merge, narrow, narrow_values, hadamard, widen, fetch_weights, OF_SET(enter),
    OF_SET(leave)};
