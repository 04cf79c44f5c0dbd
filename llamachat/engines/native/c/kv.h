/* Keys and values in memory: where they lie, and how they come there. */
#ifndef LLAMACHAT_KV_H
#define LLAMACHAT_KV_H
#include "engine.h"

static inline size_t kv_element(int kind) { return kind == F32 ? 4 : kind == Q8 ? 1 : 2; }

/* Of one head's keys or values; see kv_offset for where in it. Slots lie chunk by chunk, so that few of them take little memory;
   in a chunk, what a layer's attention reads lies in the order of reading. */
static inline char *kv_plane(const Engine *e, int layer, int value, int head) {
    size_t index = ((size_t)layer * e->m.kv_heads + head) * 2 + value;
    return e->kv + index * CHUNK * e->dim * kv_element(e->m.kv_kind);
}

static inline float *kv_scales(const Engine *e, int layer, int value, int head) {
    return e->kv_scale + (((size_t)layer * 2 + value) * e->m.kv_heads + head) * e->cap;
}

/* Where element d of a slot's key or value lies, in elements. */
static inline size_t kv_offset(const Engine *e, int value, int64_t slot, int d) {
    size_t planes = (size_t)e->m.layers * 2 * e->m.kv_heads, chunk = slot / CHUNK * planes * CHUNK * e->dim, at = slot % CHUNK;
    int four = e->m.kv_kind == Q8 ? 4 : 1;  /* elements of a row side by side */
    if (value) return chunk + (at / four * e->dim + d) * four + at % four;
    return chunk + (at / LANES * e->dim + d / four * four) * LANES + at % LANES * four + d % four;
}

#pragma GCC visibility push(hidden)
/* cos and sin [dim / 2], times `factor`, of the angles by which RoPE rotates at a position. */
void rotation_angles(const Rope *rope, double position, float factor, float *cosine, float *sine);
/* What a query at a position is multiplied by: the scale of attention's scores, which may grow. */
float query_scale(const Engine *e, int64_t position);
/* In a step: norms queries and keys in qkv_out, where a norm is of all heads together. */
void norm_projections(const Task *t, const Layer *l);
/* In a step: norms, where each head has a norm, and rotates queries and keys, and stores keys and values in the tokens' slots. */
void rotate_and_store(const Task *t, int layer);
#pragma GCC visibility pop
#endif
