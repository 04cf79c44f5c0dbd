/* The few operations whose instructions differ; everything else is written once, on vectors of VL floats.
   `dot4` adds to each int32 lane the product of its four weights with its four activations. Where the instruction takes
   unsigned weights (BIASED) they are bytes without a sign; elsewhere with one. `plus` is sum + a * b, rounded once where the
   processor can: left to the compiler, it would be so in some copies of a loop and not in others. */
#include <math.h>
#include <string.h>

#include "half.h"
#include "kernels.h"

#define INLINE static inline __attribute__((always_inline))

static inline int least(int a, int b) { return a < b ? a : b; }

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#define VL 16
#define BIASED 1
#elif defined(__AVX2__)
#include <immintrin.h>
#define VL 8
#if defined(__AVXVNNI__)
#define BIASED 1
#else
#define BIASED 0
#endif
#else
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif
#define VL 4
#define BIASED 0
#endif

/* Early enough for arrays of vectors to become registers. */
#if VL == 4 && !defined(__ARM_NEON)
#define UNROLL
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
enum { PARTS = LANES / VL };  /* vectors to a strip */
typedef float vf __attribute__((vector_size(4 * VL), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * VL), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * VL), may_alias));
typedef uint8_t vb __attribute__((vector_size(4 * VL), may_alias));
typedef vf vf_u __attribute__((aligned(4)));
typedef vi vi_u __attribute__((aligned(4)));
typedef vb vb_u __attribute__((aligned(1)));
typedef uint16_t vh __attribute__((vector_size(2 * VL), may_alias));
typedef vh vh_u __attribute__((aligned(2)));
typedef int8_t vc __attribute__((vector_size(VL), may_alias));
typedef vc vc_u __attribute__((aligned(1)));
typedef uint8_t vn __attribute__((vector_size(VL), may_alias));
typedef vn vn_u __attribute__((aligned(1)));
typedef int8_t v2c __attribute__((vector_size(2 * VL), may_alias));
typedef v2c v2c_u __attribute__((aligned(1)));
typedef uint8_t v2n __attribute__((vector_size(2 * VL), may_alias));
typedef v2n v2n_u __attribute__((aligned(1)));
typedef int16_t vs __attribute__((vector_size(4 * VL), may_alias));

INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vi splat_int(int32_t x) { return x - (vi){0}; }
INLINE vi splat_quad(const int8_t *x) { int32_t quad; memcpy(&quad, x, 4); return splat_int(quad); }
INLINE vf load(const float *p) { return *(const vf_u *)p; }
INLINE void store(float *p, vf x) { *(vf_u *)p = x; }
INLINE vf to_float(vi x) { return __builtin_convertvector(x, vf); }
INLINE vf choose(vi mask, vf a, vf b) { return (vf)((mask & (vi)a) | (~mask & (vi)b)); }

/* Integers of 8 bits, narrowed. */
INLINE vc to_bytes(vi x) {
#if VL == 8
    __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)x), _mm256_extracti128_si256((__m256i)x, 1));
    int64_t bytes = _mm_cvtsi128_si64(_mm_packs_epi16(pairs, pairs));
    return (vc)bytes;
#else
    return __builtin_convertvector(x, vc);
#endif
}

#if VL == 16
INLINE vi dot4(vi sum, vb w, vi x) { return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x); }
INLINE vb lookup(vb table, vb index) { return (vb)_mm512_shuffle_epi8((__m512i)table, (__m512i)index); }
INLINE vf load_half(const void *p) { return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(p)); }
INLINE vf plus(vf sum, vf a, vf b) { return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum); }
INLINE vf load_bytes(const void *p) { return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p))); }
INLINE vf larger(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vi larger_int(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
#elif VL == 8
INLINE vi dot4(vi sum, vb w, vi x) {
#if BIASED
    return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#else  /* |w| * (x with w's sign): two products fit 16 bits, 128 * 127 * 2 < 2^15 */
    __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w), _mm256_sign_epi8((__m256i)x, (__m256i)w));
    return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#endif
}
INLINE vb lookup(vb table, vb index) { return (vb)_mm256_shuffle_epi8((__m256i)table, (__m256i)index); }
INLINE vf load_half(const void *p) { return (vf)_mm256_cvtph_ps(_mm_loadu_si128(p)); }
INLINE vf plus(vf sum, vf a, vf b) { return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum); }
INLINE vf load_bytes(const void *p) { return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p))); }
INLINE vf larger(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vi larger_int(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
#else
INLINE vf load_bytes(const void *p) { return __builtin_convertvector(*(const vc_u *)p, vf); }
#if defined(__ARM_NEON)
INLINE vf plus(vf sum, vf a, vf b) { return (vf)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b); }
#else
INLINE vf plus(vf sum, vf a, vf b) { return sum + a * b; }
#endif
INLINE vf larger(vf a, vf b) { return choose(a > b, a, b); }
INLINE vi larger_int(vi a, vi b) { return (vi)choose(a > b, (vf)a, (vf)b); }
INLINE vf load_half(const void *p) {  /* exact, subnormals included; infinities are not expected */
    vi bits = __builtin_convertvector(*(const vh_u *)p, vi);
    vf magnitude = (vf)((bits & 0x7fff) << 13) * 0x1p112f;
    return (vf)((vi)magnitude | (bits & 0x8000) << 16);
}
#if defined(__ARM_FEATURE_DOTPROD)
INLINE vi dot4(vi sum, vb w, vi x) { return (vi)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x); }
INLINE vb lookup(vb table, vb index) { return (vb)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index); }
#else
INLINE vi dot4(vi sum, vb w, vi x) {
    const int8_t *a = (const int8_t *)&w, *b = (const int8_t *)&x;
    for (int i = 0; i < 4 * VL; i++) sum[i / 4] += a[i] * b[i];
    return sum;
}
INLINE vb lookup(vb table, vb index) {
    vb out;
    for (int i = 0; i < 4 * VL; i++) out[i] = table[index[i]];
    return out;
}
#endif
#endif

/* Adds four dot4 of weights 0..15 with 16 activations: eight products fit 16 bits, 15 * 127 * 8 < 2^15. */
INLINE vi dot4_four(vi sum, const vb *w, const int8_t *x) {
#if VL == 8
    __m256i pairs = _mm256_maddubs_epi16((__m256i)w[0], (__m256i)splat_quad(x));
    UNROLL
    for (int i = 1; i < 4; i++)
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16((__m256i)w[i], (__m256i)splat_quad(x + 4 * i)));
    return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
    UNROLL
    for (int i = 0; i < 4; i++) sum = dot4(sum, w[i], splat_quad(x + 4 * i));
    return sum;
#endif
}

/* Pairs: two numbers of 16 bits in each lane. */
INLINE vi load_pairs(const int8_t *p) { return (vi)__builtin_convertvector(*(const v2c_u *)p, vs); }
INLINE vi load_pairs_unsigned(const uint8_t *p) { return (vi)__builtin_convertvector(*(const v2n_u *)p, vs); }
#if VL == 16
INLINE vi madd(vi a, vi b) { return (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b); }
#elif VL == 8
INLINE vi madd(vi a, vi b) { return (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b); }
#else
INLINE vi madd(vi a, vi b) { return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16); }
#endif

/* Where there is no 4-way product, numbers of less than 8 bits are multiplied two by two, and these are summed up in 16 bits. */
#if VL == 8 && !BIASED
#define PAIRED 1
INLINE vs maddubs(vb w, vi x) { return (vs)_mm256_maddubs_epi16((__m256i)w, (__m256i)x); }
#else
#define PAIRED 0
INLINE vs maddubs(vb w, vi x) { return (vs)((vi)w & x); }  /* never used */
#endif

/* How many products with weights of so many bits, two by two, 16 bits hold the sum of: 15 * 127 * 2 * 8 < 2^15. */
INLINE int quads_at_once(int bits) { return bits <= 4 ? 8 : bits == 5 ? 4 : 2; }

/* Adds the products of so many quads with as many activations, where these are paired. */
INLINE vi dot_paired(int bits, const vb *quads, int count, const int8_t *x, vi sum) {
    int at_once = least(quads_at_once(bits), count);
    UNROLL
    for (int v = 0; v < count; v += at_once) {
        vs both = maddubs(quads[v], splat_quad(x + 4 * v));
        UNROLL
        for (int i = 1; i < at_once; i++) both += maddubs(quads[v + i], splat_quad(x + 4 * (v + i)));
        sum += madd((vi)both, splat_int(0x10001));
    }
    return sum;
}

/* Adds a group's numbers times activations x [32] to two sums, of 16 columns each, in turn: a chain alone would have to wait.
   Numbers of 8 bits come without a sign, 128 added. */
INLINE void dot_halves(int bits, const vb quads[8], const int8_t *x, vi sums[2]) {
    UNROLL
    for (int half = 0; PAIRED && bits < 8 && half < 2; half++)
        sums[half] = dot_paired(bits, quads + 4 * half, 4, x + 16 * half, sums[half]);
    if (PAIRED && bits < 8) return;
    UNROLL
    for (int k = 0; k < 8; k++) {
        int v = k % 2 * 4 + k / 2;
        vb quad = quads[v] ^ (uint8_t)(bits == 8 && !BIASED ? 128 : 0);
        sums[k % 2] = dot4(sums[k % 2], quad, splat_quad(x + 4 * v));
    }
}

INLINE vi dot_group(int bits, const vb quads[8], const int8_t *x) {
    vi sums[2] = {splat_int(0), splat_int(0)};
    if (PAIRED && bits < 8) return dot_paired(bits, quads, 8, x, sums[0]);
    dot_halves(bits, quads, x, sums);
    return sums[0] + sums[1];
}

/* What is added to `first` so that it takes the 128 back where dot_group does not. */
INLINE int signed_by(int bits) { return bits == 8 && !BIASED ? 128 : 0; }

INLINE const void *offset(int kind, const void *p, size_t elements) {
    return (const char *)p + elements * (kind == F32 ? 4 : kind == Q8 ? 1 : 2);
}
INLINE vf load_bfloat(const void *p) { return (vf)(__builtin_convertvector(*(const vh_u *)p, vi) << 16); }
INLINE vf load_as(int kind, const void *p, size_t i) {  /* VL elements from the i-th */
    switch (kind) {
    case F32: return load((const float *)p + i);
    case F16: return load_half((const uint16_t *)p + i);
    case BF16: return load_bfloat((const uint16_t *)p + i);
    default: return load_bytes((const int8_t *)p + i);
    }
}
INLINE vh to_bfloats(vf x) {  /* to nearest even */
    vu bits = (vu)x;
    return __builtin_convertvector((bits + 0x7fff + (bits >> 16 & 1)) >> 16, vh);
}
INLINE vh to_half(vf x) {  /* as float_to_half */
#if VL == 16
    __m512 most = _mm512_set1_ps(65504.0f), inside = _mm512_max_ps(_mm512_min_ps((__m512)x, most), -most);
    return (vh)_mm512_cvtps_ph(inside, _MM_FROUND_TO_NEAREST_INT);
#elif VL == 8
    __m256 most = _mm256_set1_ps(65504.0f), inside = _mm256_max_ps(_mm256_min_ps((__m256)x, most), -most);
    return (vh)_mm256_cvtps_ph(inside, _MM_FROUND_TO_NEAREST_INT);
#else
    vh out;
    for (int i = 0; i < VL; i++) out[i] = float_to_half(x[i]);
    return out;
#endif
}
/* Keeps the compiler from fusing what made x with what uses it, where every processor must round alike. */
INLINE vf rounded(vf x) {
#if defined(__x86_64__)
    __asm__("" : "+v"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
    return x;
}
/* Keeps the compiler from computing all terms of a sum before it adds them up, for which there are too few registers. */
INLINE vi one_by_one(vi x) { return (vi)rounded((vf)x); }
#define TO(i, by) ((i) + (by)) % VL
#if VL == 16
#define SHIFTED(x, by) __builtin_shufflevector(x, x, TO(0, by), TO(1, by), TO(2, by), TO(3, by), TO(4, by), TO(5, by), \
    TO(6, by), TO(7, by), TO(8, by), TO(9, by), TO(10, by), TO(11, by), TO(12, by), TO(13, by), TO(14, by), TO(15, by))
#elif VL == 8
#define SHIFTED(x, by) \
    __builtin_shufflevector(x, x, TO(0, by), TO(1, by), TO(2, by), TO(3, by), TO(4, by), TO(5, by), TO(6, by), TO(7, by))
#else
#define SHIFTED(x, by) __builtin_shufflevector(x, x, TO(0, by), TO(1, by), TO(2, by), TO(3, by))
#endif
/* Combines all lanes in a fixed order: halves, quarters... */
#define REDUCE(x, combine)                        \
    if (VL > 8) x = combine(x, SHIFTED(x, 8));     \
    if (VL > 4) x = combine(x, SHIFTED(x, 4));     \
    x = combine(x, SHIFTED(x, 2));                 \
    return combine(x, SHIFTED(x, 1))[0]
#define PLUS(a, b) ((a) + (b))
INLINE int32_t sum_ints(vi x) { REDUCE(x, PLUS); }
INLINE float sum_lanes(vf x) { REDUCE(x, PLUS); }
INLINE float largest_lane(vf x) { REDUCE(x, larger); }
INLINE int32_t largest_int(vi x) { REDUCE(x, larger_int); }
INLINE vi magnitude_bits(vf x) { return (vi)x & 0x7fffffff; }  /* in the order of |x|, infinity and then NaN behind all else */
INLINE float from_bits(int32_t bits) { float x; memcpy(&x, &bits, 4); return x; }
/* Into -most..most; what is not a number becomes -most. */
INLINE vf clamp(vf x, float most) { return -larger(-larger(x, splat(-most)), splat(-most)); }
/* The nearest integer of |x| < 2^22: adding 1.5 * 2^23 leaves it in the low bits. */
INLINE vi nearest(vf x) { return (vi)(x + 12582912.0f) - 0x4b400000; }
/* e^x for x <= 88, to about 1 unit in the last place; 2^-126 below. Cody-Waite reduction, Cephes' polynomial. */
INLINE vf exponential(vf x) {
    x = larger(x, splat(-87.0f));
    vi n = nearest(x * 1.44269504f);
    vf k = to_float(n), r = x - k * 0.693359375f - k * -2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (p * r * r + r + 1.0f) * (vf)((n + 127) << 23);
}
