/* Q4, the narrowest way to keep a head's keys and values: both are rotated by a Hadamard matrix, which spreads what is large in
   one element over many; then keys are kept as Q8, whose error decides what is looked at, and values in 4 bits (see kernels.h).
   */

/* x times a matrix of +1 and -1 over the root of its size, which is its own inverse, in place: in blocks of `dim`'s largest power
   of two (Sylvester's construction). */
static void hadamard(float *x, int dim) {
    int block = dim & -dim;
    float norm = 1.0f / sqrtf((float)block);
    for (int half = 1; half < block; half *= 2)
        for (int i = 0; i < dim; i += 2 * half)
            for (int j = i; j < i + half; j++) {
                float a = x[j], b = x[j + half];
                x[j] = a + b, x[j + half] = a - b;
            }
    for (int i = 0; i < dim; i++) x[i] *= norm;
}

/* The least and the largest of n elements, a multiple of 16. */
INLINE void find_range(const float *x, int n, float *low, float *high) {
    vf below = splat(-INFINITY), above = below;
    for (int i = 0; i < n; i += VL) above = larger(above, load(x + i)), below = larger(below, -load(x + i));
    *low = -largest_lane(below), *high = largest_lane(above);
}

/* 32 elements to codes of 4 bits, two to a byte: the i-th and the (i + 16)-th. */
INLINE void to_nibbles(const float *x, float low, float scale, uint8_t *out) {
    _Alignas(64) int8_t codes[32];
    for (int i = 0; i < 32; i += VL) {
        vf steps = (load(x + i) - low) / scale;  /* of no scale: whatever the codes, the value is the minimum */
        *(vc_u *)(codes + i) = to_bytes(nearest(larger(clamp(steps, 15.0f), splat(0))));
    }
    for (int i = 0; i < 16; i++) out[i] = (uint8_t)(codes[i] | codes[i + 16] << 4);
}

/* Values [dim], a multiple of 32, to a row: fp16 scale and minimum of each 64 elements, then the codes of each 32. x is changed
   where it is beyond fp16. */
static void narrow_values(float *x, int dim, uint8_t *row) {
    uint8_t *codes = row + 4 * spans_of(dim);
    for (int d = 0; d < dim; d += SPAN, row += 4) {
        int n = least(SPAN, dim - d);
        float low, high;
        for (int i = d; i < d + n; i += VL) store(x + i, clamp(load(x + i), 65504.0f));
        find_range(x + d, n, &low, &high);
        uint16_t halves[2] = {float_to_half((high - low) / 15.0f), float_to_half(low)};
        memcpy(row, halves, 4);
        for (int i = d; i < d + n; i += 32, codes += 16)
            to_nibbles(x + i, half_to_float(halves[1]), half_to_float(halves[0]), codes);
    }
}

/* out[r][0 or 1] = sum over slots of a[r] * code, of VL elements (0: low nibbles) and those 16 further on (1), less bias. */
INLINE void outer_nibbles(int rows, int high, const Integers *a, const uint8_t *codes, size_t step, int slots, vf *out) {
    vi above[ROWS], below[ROWS];
    UNROLL
    for (int r = 0; r < rows; r++) above[r] = below[r] = splat_int(0);
    for (int s = 0; s < slots; s += LANES, codes += step) {
        vb quads[4];
        UNROLL
        for (int i = 0; i < 4; i++) {
            vb bytes = *(const vb_u *)(codes + 64 * i);
            quads[i] = high ? (vb)((vi)bytes >> 4 & 0x0f0f0f0f) : (vb)(bytes & 15);
        }
        UNROLL
        for (int r = 0; r < rows; r++) {
            above[r] = dot4_four(above[r], quads, a[r].high + s);
            below[r] = dot4_four(below[r], quads, a[r].low + s);
        }
    }
    UNROLL
    for (int r = 0; r < rows; r++) out[r] = (to_float(above[r]) * 256.0f + to_float(below[r])) * a[r].scale;
}

/* Weights of slots times the scales of one span of their values, as integers; returns the weights' sum over the minima. */
INLINE float fold_scales(const float *weights, const uint8_t *halves, size_t step, int slots, Integers *to) {
    _Alignas(64) float scaled[CHUNK];
    vf minima = splat(0);
    for (int s = 0; s < slots; s += VL) {
        const uint8_t *at = halves + s / LANES * step + s % LANES * 2;
        store(scaled + s, load(weights + s) * load_half(at));
        minima += load(weights + s) * load_half(at + 2 * LANES);
    }
    to_integers(scaled, slots, to);
    return sum_lanes(minima);
}

INLINE void values_of_nibbles(int rows, const Keys *keys, const float *const *weights, int slots, float *part) {
    size_t step = values_block(keys->dim);
    const uint8_t *halves = keys->v, *codes = halves + 64 * spans_of(keys->dim);
    Integers a[ROWS];
    float minima[ROWS];
    vf out[ROWS];
    for (int d = 0; d < keys->dim; d += 32, codes += 256) {
        for (int r = 0; d % SPAN == 0 && r < rows; r++)
            minima[r] = fold_scales(weights[r], halves + d / SPAN * 64, step, slots, a + r);
        for (int at = 0; at < 32; at += VL) {
            if (at < 16) outer_nibbles(rows, 0, a, codes + 4 * at, step, slots, out);
            else outer_nibbles(rows, 1, a, codes + 4 * (at - 16), step, slots, out);
            UNROLL
            for (int r = 0; r < rows; r++) store(part + r * (PART + keys->dim) + PART + d + at, out[r] + minima[r]);
        }
    }
}
