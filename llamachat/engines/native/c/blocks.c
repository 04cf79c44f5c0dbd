/* From ggml's blocks (the ggml project, ggml-common.h), as they lie in a file, to the layout of packed.h, bit for bit. */
#include "faults.h"
#include "pack.h"

#define INLINE static inline __attribute__((always_inline))

/* A block taken apart: its codes, halves (scale and minimum, as they are), and the integers of its groups. */
typedef struct { uint8_t codes[SUPER]; uint16_t d, low; int8_t scales[16], lows[8]; } Parts;

INLINE uint16_t half_at(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

INLINE void nibbles(const uint8_t *from, int count, uint8_t *low, uint8_t *high) {
    for (int i = 0; i < count; i++) low[i] = from[i] & 15, high[i] = from[i] >> 4;
}

INLINE void q4_0(const uint8_t *b, Parts *p) {  /* and IQ4_NL */
    p->d = half_at(b);
    nibbles(b + 2, 16, p->codes, p->codes + 16);
}
INLINE void q4_1(const uint8_t *b, Parts *p) {
    p->d = half_at(b), p->low = half_at(b + 2);
    nibbles(b + 4, 16, p->codes, p->codes + 16);
}
/* Eight bits as the lowest of eight bytes. */
INLINE uint64_t spread(uint8_t bits) {
    uint64_t each = bits * 0x0101010101010101u & 0x8040201008040201u;
    return (each + 0x00406070787c7e7fu) >> 7 & 0x0101010101010101u;
}
INLINE void fifth_bits(const uint8_t *word, Parts *p) {
    typedef uint64_t Sixteen __attribute__((vector_size(16), may_alias, aligned(1)));
    for (int i = 0; i < 2; i++) *(Sixteen *)(p->codes + 16 * i) |= (Sixteen){spread(word[2 * i]), spread(word[2 * i + 1])} << 4;
}
INLINE void q5_0(const uint8_t *b, Parts *p) {
    p->d = half_at(b);
    nibbles(b + 6, 16, p->codes, p->codes + 16);
    fifth_bits(b + 2, p);
}
INLINE void q5_1(const uint8_t *b, Parts *p) {
    p->d = half_at(b), p->low = half_at(b + 2);
    nibbles(b + 8, 16, p->codes, p->codes + 16);
    fifth_bits(b + 4, p);
}
INLINE void q8_0(const uint8_t *b, Parts *p) {
    p->d = half_at(b);
    for (int c = 0; c < GROUP; c++) p->codes[c] = b[2 + c] ^ 128;
}
INLINE void mxfp4(const uint8_t *b, Parts *p) {
    p->scales[0] = (int8_t)b[0];
    nibbles(b + 1, 16, p->codes, p->codes + 16);
}

/* 128 columns' pairs of bits in 32 bytes. */
INLINE void crumbs(const uint8_t *from, uint8_t *codes, int left) {
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 32; i++) codes[32 * k + i] |= (from[i] >> 2 * k & 3) << left;
}
INLINE void q2_k(const uint8_t *b, Parts *p) {
    memset(p->codes, 0, SUPER);
    memcpy(p->scales, b, 16);
    for (int half = 0; half < 2; half++) crumbs(b + 16 + 32 * half, p->codes + 128 * half, 0);
    p->d = half_at(b + 80), p->low = half_at(b + 82);
}
INLINE void q3_k(const uint8_t *b, Parts *p) {
    memset(p->codes, 0, SUPER);
    for (int half = 0; half < 2; half++) crumbs(b + 32 + 32 * half, p->codes + 128 * half, 0);
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < 32; i++) p->codes[32 * k + i] |= (b[i] >> k & 1) << 2;
    memcpy(p->scales, b + 96, 12);  /* six bits of each scale, as packed.h has them too */
    p->d = half_at(b + 108);
}
/* Eight scales and minima of 6 bits in 12 bytes; the last four of each lie in two pieces. */
INLINE void six_bit_pairs(const uint8_t *from, Parts *p) {
    for (int s = 0; s < 4; s++) {
        p->scales[s] = from[s] & 63, p->lows[s] = from[4 + s] & 63;
        p->scales[4 + s] = (from[8 + s] & 15) | (from[s] >> 2 & 48), p->lows[4 + s] = from[8 + s] >> 4 | (from[4 + s] >> 2 & 48);
    }
}
INLINE void q4_k(const uint8_t *b, Parts *p) {
    p->d = half_at(b), p->low = half_at(b + 2);
    six_bit_pairs(b + 4, p);
    for (int k = 0; k < 4; k++) nibbles(b + 16 + 32 * k, 32, p->codes + 64 * k, p->codes + 64 * k + 32);
}
INLINE void q5_k(const uint8_t *b, Parts *p) {
    p->d = half_at(b), p->low = half_at(b + 2);
    six_bit_pairs(b + 4, p);
    for (int k = 0; k < 4; k++) nibbles(b + 48 + 32 * k, 32, p->codes + 64 * k, p->codes + 64 * k + 32);
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < 32; i++) p->codes[32 * k + i] |= (b[16 + i] >> k & 1) << 4;
}
INLINE void q6_k(const uint8_t *b, Parts *p) {
    for (int half = 0; half < 2; half++) {
        uint8_t *codes = p->codes + 128 * half;
        nibbles(b + 64 * half, 64, codes, codes + 64);
        crumbs(b + 128 + 32 * half, codes, 4);
    }
    memcpy(p->scales, b + 192, 16);
    p->d = half_at(b + 208);
}
INLINE void iq4_xs(const uint8_t *b, Parts *p) {
    p->d = half_at(b);
    for (int s = 0; s < 8; s++)
        p->scales[s] = (int8_t)(((b[4 + s / 2] >> s % 2 * 4 & 15) | (half_at(b + 2) >> 2 * s & 3) << 4) - 32);
    for (int k = 0; k < 8; k++) nibbles(b + 8 + 16 * k, 16, p->codes + 32 * k, p->codes + 32 * k + 16);
}

/* ggml's types: their numbers, columns and bytes of a block; and how a matrix of them is packed. */
typedef struct { int type, columns, bytes, kind, scaling, subs, minimum; } Type;
#define TYPES(X)                                                                                                      \
    X(2, 32, 18, Q4, HALVES, 2, 0, q4_0) X(3, 32, 20, Q4, HALVES, 2, 1, q4_1) X(6, 32, 22, Q5, HALVES, 2, 0, q5_0)     \
    X(7, 32, 24, Q5, HALVES, 2, 1, q5_1) X(8, 32, 34, Q8, HALVES, 2, 0, q8_0) X(10, 256, 84, Q2, NIBBLES, 4, 1, q2_k)  \
    X(11, 256, 110, Q3, SIXES, 4, 0, q3_k) X(12, 256, 144, Q4, BYTES, 2, 1, q4_k)                                      \
    X(13, 256, 176, Q5, BYTES, 2, 1, q5_k) X(14, 256, 210, Q6, BYTES, 4, 0, q6_k) X(20, 32, 18, Q4, HALVES, 2, 0, q4_0) \
    X(23, 256, 136, Q4, BYTES, 2, 0, iq4_xs) X(39, 32, 17, Q4, EXPONENTS, 2, 0, mxfp4)
#define TYPE(number, columns, bytes, kind, scaling, subs, minimum, take_apart) \
    {number, columns, bytes, kind, scaling, subs, minimum},
static const Type types[] = {TYPES(TYPE)};

static const Type *type_of(int number) {
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (types[i].type == number) return types + i;
    return NULL;
}

static void put_half(uint8_t *out, int lane, uint16_t half) { memcpy(out + 2 * lane, &half, 2); }

/* Scales of the one or two groups that a 32-column type has in a block of 64. */
INLINE void put_small_scales(Type t, const Parts *p, int g, uint8_t *block, int lane) {
    if (t.scaling == EXPONENTS) {
        block[LANES * g + lane] = (uint8_t)p->scales[0];
        return;
    }
    put_half(block + 32 * g, lane, p->d);
    if (t.minimum) put_half(block + 32 * (2 + g), lane, p->low);
}

INLINE void put_integers(Type t, const Parts *p, uint8_t *integers, int lane) {
    int pairs = t.scaling == SIXES ? 12 : t.subs == 4 ? 16 : 0;
    for (int s = 0; s < pairs; s++) integers[32 * (s / 2) + 2 * lane + s % 2] = (uint8_t)p->scales[s];
    if (pairs) return;
    for (int s = 0; s < 8; s++) integers[LANES * s + lane] = (uint8_t)p->scales[s];
    for (int s = 0; t.minimum && s < 8; s++) integers[LANES * (8 + s) + lane] = (uint8_t)p->lows[s];
}

static int is_finite_half(uint16_t half) { return (half & 0x7c00) != 0x7c00; }

/* A row's block, taken apart, into the block of a strip (of 64 columns, g: which half of it); 0 where a scale is not finite. */
INLINE int put_block(Type t, const Parts *p, int g, uint8_t *block, int lane) {
    uint8_t *codes = block + scales_bytes(t.scaling, t.subs, t.minimum) + group_bytes(t.kind) * g;
    for (int i = 0; i < t.columns / GROUP; i++) place(t.kind, p->codes + GROUP * i, codes + group_bytes(t.kind) * i, lane);
    if (t.columns == GROUP) {
        put_small_scales(t, p, g, block, lane);
    } else {
        put_half(block, lane, p->d);
        if (t.minimum) put_half(block + 32, lane, p->low ^ 0x8000);
        put_integers(t, p, block + integers_at(t.minimum), lane);
    }
    return is_finite_half(p->d) && is_finite_half(p->low);
}

/* Sixteen rows; all of the type is a constant once inlined. */
INLINE int strip_of(Type t, void (*take_apart)(const uint8_t *, Parts *), const Matrix *w, const Blocks *b, int strip,
                    uint8_t *out) {
    int each = block_columns(t.scaling) / t.columns, finite = 1, first = strip * LANES, count = w->columns / t.columns;
    int rows = w->rows - first < LANES ? w->rows - first : LANES;
    Parts p = {.d = 0, .low = 0};
    for (int i = 0; i < count; i++, out += i % each ? 0 : block_bytes(w))
        for (int lane = 0; lane < rows; lane++) {
            size_t row = b->order ? (size_t)b->order[first + lane] : (size_t)(first + lane);
            take_apart((const uint8_t *)b->data + (row * count + i) * t.bytes, &p);
            finite &= put_block(t, &p, i % each, out, lane);
        }
    return finite;
}

static int pack_strip(const Matrix *w, const Blocks *b, int strip, uint8_t *out) {
    switch (b->type) {
#define CASE(number, columns, bytes, kind, scaling, subs, minimum, take_apart) \
    case number: return strip_of((Type){number, columns, bytes, kind, scaling, subs, minimum}, take_apart, w, b, strip, out);
        TYPES(CASE)
    default: return 0;
    }
}

static const char *blocks_fault(const Matrix *w, const Blocks *b, const Type *t) {
    const char *fault = matrix_fault(w);
    if (fault) return fault;
    if (!t || w->kind != t->kind || w->scaling != t->scaling || w->subs != t->subs || w->minimum != t->minimum || w->wide)
        return "blocks of another type";
    if (w->columns % t->columns) return "columns that blocks do not divide";
    if (!b->data || b->stored < 1 || b->bytes != (uint64_t)b->stored * (w->columns / t->columns) * t->bytes)
        return "blocks of another size";
    if (!b->order && b->stored != w->rows) return "another number of rows";
    for (int i = 0; b->order && i < w->rows; i++)
        if (b->order[i] < 0 || b->order[i] >= b->stored) return "rows that are not there";
    return NULL;
}

/* Fills a matrix's data, w->bytes at `out`, which must be zero before; returns what was wrong, or NULL. */
const char *pack_blocks(const Matrix *w, const Blocks *b, uint8_t *out) {
    const Type *t = type_of(b->type);
    const char *fault = blocks_fault(w, b, t);
    int finite = 1;
    if (fault) return fault;
    if (w->bytes < matrix_bytes(w)) return "no room for the packed weights";
    size_t bytes = strip_bytes(w);
    #pragma omp parallel for schedule(static) reduction(&& : finite)
    for (int strip = 0; strip < strips_of(w); strip++) finite = pack_strip(w, b, strip, out + bytes * strip) && finite;
    return finite ? NULL : "values that are not finite";
}
