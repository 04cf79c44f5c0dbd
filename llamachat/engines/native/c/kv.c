/* Keys and values: rotated and stored as they are computed, saved and loaded for Python, rotated anew for a pinned block. */
#include <math.h>
#include <string.h>

#include "faults.h"
#include "kv.h"

enum { HANDFUL = 64 };  /* so many tokens' keys are rotated sooner than another thread is woken */

/* n elements of `bytes` bytes (1, 2 or 4), `four` of them side by side every `step` elements, out to a row or back in. */
static inline __attribute__((always_inline)) void stride(size_t bytes, char *held, char *row, int n, int four, size_t step,
                                                         int out) {
    for (int d = 0; d < n; d += four)
        for (int i = 0; i < four && d + i < n; i++) {
            char *at = held + (d / four * step + i) * bytes, *here = row + (d + i) * bytes;
            memcpy(out ? here : at, out ? at : here, bytes);
        }
}

/* A slot's value in 4 bits out of its block to a row (see kernels.h), or back in. */
static void copy_nibbles(const Engine *e, char *block, int lane, char *row, int out) {
    int spans = spans_of(e->dim);
    char *codes = block + 64 * spans + 64 * (lane / 4) + lane % 4;
    stride(2, block + 2 * lane, row, 2 * spans, 1, LANES, out);
    for (int i = 0; i < e->dim / 32; i++) stride(1, codes + 256 * i, row + 4 * spans + 16 * i, 16, 1, 4, out);
}

/* A slot's key or value out to a row of elements [head_dim] as it is kept, or back in. */
static void copy_vector(const Engine *e, int layer, int value, int head, int64_t slot, char *row, int out) {
    size_t bytes = kv_element(key_kind(e));
    char *block = kv_at(e, layer, value, head, slot), *held = block + kv_offset(e, value, slot, 0) * bytes;
    int n = e->m.head_dim;
    if (value && e->m.kv_kind == Q4) copy_nibbles(e, block, slot % LANES, row, out);
    else if (bytes == 1 && value) stride(1, held, row, n, 1, 4, out);
    else if (bytes == 1) stride(1, held, row, n, 4, 4 * LANES, out);
    else if (value) memcpy(out ? row : held, out ? held : row, n * bytes);
    else if (bytes == 2) stride(2, held, row, n, 1, LANES, out);
    else stride(4, held, row, n, 1, LANES, out);
}

/* A head's key or value [head_dim], in the type that they are kept in, to its slot. */
static void store_vector(const Engine *e, int layer, int value, int head, int64_t slot, const float *x) {
    _Alignas(64) char narrow[4 * DIM];
    _Alignas(64) float rotated[DIM] = {0};
    if (e->m.kv_kind == Q4) {
        e->k->hadamard(memcpy(rotated, x, e->m.head_dim * 4), e->m.head_dim);
        x = rotated;
    }
    if (value && e->m.kv_kind == Q4) {
        e->k->narrow_values(rotated, e->dim, (uint8_t *)narrow);
    } else {
        float scale = e->k->narrow(key_kind(e), x, narrow, e->m.head_dim), *scales = kv_scales(e, layer, value, head);
        if (scales) scales[slot] = scale;
    }
    copy_vector(e, layer, value, head, slot, narrow, 0);
}

/* A slot's key [head_dim]. */
static void load_key(const Engine *e, int layer, int head, int64_t slot, float *x) {
    _Alignas(64) char row[4 * DIM];
    const float *scales = kv_scales(e, layer, 0, head);
    copy_vector(e, layer, 0, head, slot, row, 1);
    for (int d = 0; d < e->m.head_dim; d++) x[d] = e->k->widen(key_kind(e), row, d) * (scales ? scales[slot] : 1.0f);
    if (e->m.kv_kind == Q4) e->k->hadamard(x, e->m.head_dim);
}

void rotation_angles(const Rope *rope, double position, float factor, float *cosine, float *sine) {
    for (int i = 0; i < rope->dim / 2; i++) {
        cosine[i] = (float)cos(position * rope->frequency[i]) * factor;
        sine[i] = (float)sin(position * rope->frequency[i]) * factor;
    }
}

float query_scale(const Engine *e, int64_t position) {
    int64_t spans = e->m.query_span ? position / e->m.query_span : 0;
    return e->m.query_scale * (float)(1.0 + e->m.query_growth * log1p((double)spans));
}

/* A head of a token's queries or keys: normed, rotated by its position, as far as the layer does these, and times `scale`. */
static void norm_and_rotate(const Engine *e, const Layer *l, const float *norm, int token, float scale, float *x) {
    int dim = e->m.head_dim, rotated = 0;
    if (norm && !e->m.whole_norms) e->k->normalize(x, norm, dim, e->m.eps);
    if (l->rope >= 0) {
        size_t angle = angles_at(e, l->rope, token);
        rotated = e->m.rope[l->rope].dim;
        e->k->rotate(x, e->cosine + angle, e->sine + angle, rotated / 2, scale);
    }
    if (scale != 1.0f)
        for (int d = rotated; d < dim; d++) x[d] *= scale;
}

/* The scale of attention's scores is that of the queries; they are rotated as the keys are kept. */
static void rotate_query(const Engine *e, const Layer *l, int token, int head) {
    float *x = e->qkv_out + (size_t)token * e->qkv + head * e->m.head_dim;
    norm_and_rotate(e, l, l->q_norm, token, e->query_scale[token], x);
    if (e->m.kv_kind == Q4) e->k->hadamard(x, e->m.head_dim);
}

static void rotate_and_store_key(const Engine *e, int layer, int token, int head, int64_t slot) {
    const Layer *l = e->m.layer + layer;
    float *x = e->qkv_out + (size_t)token * e->qkv + key_column(e) + head * e->m.head_dim;
    norm_and_rotate(e, l, l->k_norm, token, 1.0f, x);
    store_vector(e, layer, 0, head, slot, x);
}

static void store_value(const Engine *e, int layer, int token, int head, int64_t slot) {
    store_vector(e, layer, 1, head, slot, e->qkv_out + (size_t)token * e->qkv + value_column(e) + head * e->m.head_dim);
}

/* Each token's queries, and each token's keys, are a piece of work. */
void norm_projections(const Task *t, const Layer *l) {
    const Engine *e = t->e;
    for (int i = t->thread; i < 2 * t->s->tokens; i += t->threads) {
        float *row = e->qkv_out + (size_t)(i / 2) * e->qkv;
        if (i % 2) e->k->normalize(row + key_column(e), l->k_norm, e->m.kv_heads * e->m.head_dim, e->m.eps);
        else if (i / 2 < t->tokens) e->k->normalize(row, l->q_norm, e->m.heads * e->m.head_dim, e->m.eps);
    }
}

/* Of queries, of keys and of values, each thread has as many, as numbers of head * tokens + token: for keys take longest. It has
   runs of tokens, for a block of keys has 16 slots; of one token, heads in turn, beginning with the first thread or the last. */
typedef struct { int first, end, step; } Share;

static Share share_of(const Task *t, int heads, int from_last) {
    int64_t work = (int64_t)heads * t->s->tokens;
    if (t->alone) return (Share){from_last ? t->threads - 1 - t->thread : t->thread, heads, t->threads};
    return (Share){(int)(work * t->thread / t->threads), (int)(work * (t->thread + 1) / t->threads), 1};
}
static Share keys_of(const Task *t) { return share_of(t, t->e->m.kv_heads, 0); }
static Share values_of(const Task *t) { return share_of(t, t->e->m.kv_heads, 1); }

void fetch_slot(const Task *t, int layer) {
    const Engine *e = t->e;
    for (int value = 0; t->alone && value < 2; value++) {
        Share share = value ? values_of(t) : keys_of(t);
        for (int head = share.first; head < share.end; head += share.step) {
            const char *block = kv_at(e, layer, value, head, t->s->slots[0]);
            for (size_t at = 0; at < kv_block(e, value); at += 64) __builtin_prefetch(block + at, 1);
        }
    }
}

void rotate_and_store(const Task *t, int layer) {
    const Engine *e = t->e;
    const int64_t *slots = t->s->slots;
    int tokens = t->s->tokens;
    Share queries = share_of(t, e->m.heads, 0), keys = keys_of(t), values = values_of(t);
    for (int i = queries.first; i < queries.end; i += queries.step)
        if (i % tokens < t->tokens) rotate_query(e, e->m.layer + layer, i % tokens, i / tokens);
    for (int i = keys.first; i < keys.end; i += keys.step)
        rotate_and_store_key(e, layer, i % tokens, i / tokens, slots[i % tokens]);
    for (int i = values.first; i < values.end; i += values.step)
        store_value(e, layer, i % tokens, i / tokens, slots[i % tokens]);
}

void note_positions(Engine *e, const int64_t *slots, const int64_t *positions, int count) {
    for (int i = 0; i < count; i++) e->position[slots[i]] = positions[i];
}

/* ---- for Python; each returns what was wrong, or NULL ---- */

/* Notes the positions of slots: all of a prompt's before its first chunk, so that its later tokens are not taken for old ones. A
   step notes those of its own tokens. */
const char *engine_set_positions(Engine *e, const int64_t *slots, const int64_t *positions, int count) {
    const char *fault = places_fault(e->m.slots, slots, positions, count);
    if (!fault) note_positions(e, slots, positions, count);
    return fault;
}

static const char *block_fault(const Engine *e, int first, int count, int64_t start) {
    if (first < 0 || count < 1 || count > e->m.slots - first) return "a block of slots that are not there";
    return start < 0 || start > INT32_MAX - 1 - count ? "a position of 2^31 or more" : NULL;
}

/* What rotates keys of one position, in each of the model's ways. */
typedef struct { float cosine[MAX_ROPES][DIM / 2], sine[MAX_ROPES][DIM / 2]; } Angles;

static void find_angles(const Engine *e, double position, Angles *a) {
    for (int i = 0; i < e->m.ropes; i++) rotation_angles(e->m.rope + i, position, 1.0f, a->cosine[i], a->sine[i]);
}

static void rotate_key(const Engine *e, int layer, const Angles *a, float *x) {
    int rope = e->m.layer[layer].rope;
    if (rope >= 0) e->k->rotate(x, a->cosine[rope], a->sine[rope], e->m.rope[rope].dim / 2, 1.0f);
}

/* The keys of `count` slots without their rotation: out is [layers][kv_heads][count][head_dim]. */
const char *engine_unrotated_keys(const Engine *e, int first, int count, float *out) {
    int dim = e->m.head_dim, heads = e->m.kv_heads;
    const char *fault = block_fault(e, first, count, 0);
    if (fault) return fault;
    #pragma omp parallel for num_threads(e->m.threads) if (count > HANDFUL)
    for (int i = 0; i < count; i++) {
        Angles angles;
        find_angles(e, -(double)e->position[first + i], &angles);
        for (int p = 0; p < e->m.layers * heads; p++) {
            float *x = out + ((size_t)p * count + i) * dim;
            load_key(e, p / heads, p % heads, first + i, x);
            rotate_key(e, p / heads, &angles, x);
        }
    }
    return NULL;
}

/* Stores such keys in `count` slots, rotated to the positions from `start` on. */
const char *engine_rotate_keys(Engine *e, int first, int count, int64_t start, const float *keys) {
    int dim = e->m.head_dim, heads = e->m.kv_heads;
    const char *fault = block_fault(e, first, count, start);
    if (fault) return fault;
    #pragma omp parallel for num_threads(e->m.threads) if (count > HANDFUL)
    for (int i = 0; i < count; i++) {
        Angles angles;
        _Alignas(64) float x[DIM];
        find_angles(e, (double)(start + i), &angles);
        for (int p = 0; p < e->m.layers * heads; p++) {
            memcpy(x, keys + ((size_t)p * count + i) * dim, dim * 4);
            rotate_key(e, p / heads, &angles, x);
            store_vector(e, p / heads, 0, p % heads, first + i, x);
        }
        e->position[first + i] = start + i;
    }
    return NULL;
}

/* What is stored of these slots, out to kv [layers][2][kv_heads][count][head_dim] and, if Q8, scale [layers][2][kv_heads][count];
   or back in. Q4 has kv [layers][kv_heads][count][head_dim bytes of the key, then the value's row] and scale, of keys,
   [layers][kv_heads][count]. */
static const char *transfer(Engine *e, int out, const int64_t *slots, int count, char *kv, float *scale) {
    const char *fault = places_fault(e->m.slots, slots, NULL, count);
    if (fault) return fault;
    int planes = e->m.layers * 2 * e->m.kv_heads, together = e->m.kv_kind == Q4;
    size_t bytes = e->m.head_dim * kv_element(key_kind(e)), step = together ? bytes + values_row(e->dim) : bytes;
    #pragma omp parallel for num_threads(e->m.threads)
    for (int i = 0; i < planes; i++) {
        int layer = i / (2 * e->m.kv_heads), value = i / e->m.kv_heads % 2, head = i % e->m.kv_heads;
        int plane = together ? layer * e->m.kv_heads + head : i;
        char *rows = kv + (size_t)plane * count * step + (together && value ? bytes : 0);
        float *factors = kv_scales(e, layer, value, head), *saved = scale ? scale + (size_t)plane * count : NULL;
        for (int s = 0; s < count; s++) {
            copy_vector(e, layer, value, head, slots[s], rows + s * step, out);
            if (factors && saved && out) saved[s] = factors[slots[s]];
            else if (factors && saved) factors[slots[s]] = saved[s];
        }
    }
    return NULL;
}

/* Copies keys and values of these slots to arrays as `transfer` has them. */
const char *engine_save_kv(Engine *e, const int64_t *slots, int count, char *kv, float *scale) {
    return transfer(e, 1, slots, count, kv, scale);
}

/* Copies such arrays, which are not written to, into these slots. No other slot's memory is touched. */
const char *engine_load_kv(Engine *e, const int64_t *slots, int count, char *kv, float *scale) {
    return transfer(e, 0, slots, count, kv, scale);
}
