/* Queries and weights of attention as integers, to be multiplied with keys and values that are. */

/* Numbers as integers of 15 bits, x ~ (256 * high + low) * scale, as activations are when fine. bias: takes back 128 added to
   each code. */
typedef struct { int8_t high[DIM], low[DIM]; float scale; int32_t bias[2]; } Integers;

/* n is a multiple of 16. */
INLINE void to_integers(const float *x, int n, Integers *to) {
    vi sums[2] = {splat_int(0), splat_int(0)}, most = splat_int(0);
    for (int i = 0; i < n; i += VL) most = larger_int(most, magnitude_bits(load(x + i)));
    float top = from_bits(largest_int(most)) / 127.0f, inverse = top > 0x1p-126f ? 1.0f / top : 0.0f;
    for (int i = 0; i < n; i += VL) {
        vf scaled = rounded(clamp(load(x + i) * inverse, 127.0f));
        vi above = nearest(scaled);
        vi below = nearest(clamp((scaled - to_float(above)) * 256.0f, 127.0f));
        *(vc_u *)(to->high + i) = to_bytes(above);
        *(vc_u *)(to->low + i) = to_bytes(below);
        sums[0] += above, sums[1] += below;
    }
    to->scale = top * 0x1p-8f;
    for (int i = 0; i < 2; i++) to->bias[i] = BIASED ? -128 * sum_ints(sums[i]) : 0;
}
