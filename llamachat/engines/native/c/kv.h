/* Keys and values in memory: where they lie, and how they come there. */
#ifndef LLAMACHAT_KV_H
#define LLAMACHAT_KV_H
#include "engine.h"

/* What keys are kept as: those beside values in 4 bits have 8. */
static inline int key_kind(const Engine *e) { return e->m.kv_kind == Q4 ? Q8 : e->m.kv_kind; }
static inline size_t kv_element(int kind) { return kind == F32 ? 4 : kind == Q8 ? 1 : 2; }

/* Bytes of 16 slots of one head. */
static inline size_t kv_block(const Engine *e, int value) {
    if (value && e->m.kv_kind == Q4) return values_block(e->dim);
    return (size_t)LANES * e->dim * kv_element(key_kind(e));
}

/* The block that a slot of one head's keys or values is in. Slots lie chunk by chunk, so that few of them take little memory;
   in a chunk, what a layer's attention reads lies in the order of reading. */
static inline char *kv_at(const Engine *e, int layer, int value, int head, int64_t slot) {
    size_t plane = ((size_t)(slot / CHUNK) * e->m.layers + layer) * e->m.kv_heads + head, keys = kv_block(e, 0);
    size_t first = CHUNK / LANES * (plane * (keys + kv_block(e, 1)) + value * keys);
    return e->kv + first + slot % CHUNK / LANES * kv_block(e, value);
}

/* Where in its block element d of a slot lies, in elements; but for values in 4 bits. */
static inline size_t kv_offset(const Engine *e, int value, int64_t slot, int d) {
    size_t at = slot % LANES;
    int four = e->m.kv_kind >= Q8 ? 4 : 1;  /* elements of a row side by side */
    if (value) return (at / four * e->dim + d) * four + at % four;
    return (size_t)(d / four * four) * LANES + at * four + d % four;
}

/* Keys and values have a scale for each slot (2), or keys only (1), or neither. */
static inline int kv_scaled(const Engine *e) { return e->m.kv_kind == Q8 ? 2 : e->m.kv_kind == Q4; }
static inline float *kv_scales(const Engine *e, int layer, int value, int head) {
    if (value >= kv_scaled(e)) return NULL;
    return e->kv_scale + (((size_t)layer * kv_scaled(e) + value) * e->m.kv_heads + head) * e->cap;
}

#pragma GCC visibility push(hidden)
/* cos and sin [dim / 2], times `factor`, of the angles by which RoPE rotates at a position. */
void rotation_angles(const Rope *rope, double position, float factor, float *cosine, float *sine);
/* What a query at a position is multiplied by: the scale of attention's scores, which may grow. */
float query_scale(const Engine *e, int64_t position);
/* Which positions the tokens in these slots have. */
void note_positions(Engine *e, const int64_t *slots, const int64_t *positions, int count);
/* In a step: norms queries and keys in qkv_out, where a norm is of all heads together. */
void norm_projections(const Task *t, const Layer *l);
/* In a step of one token: fetches the blocks that this thread's rotate_and_store will write to. */
void fetch_slot(const Task *t, int layer);
/* In a step: norms, where each head has a norm, and rotates queries and keys, and stores keys and values in the tokens' slots. */
void rotate_and_store(const Task *t, int layer);
#pragma GCC visibility pop
#endif
