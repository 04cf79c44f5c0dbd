#ifndef LLAMACHAT_ATTENTION_H
#define LLAMACHAT_ATTENTION_H
#include "engine.h"

#pragma GCC visibility push(hidden)
/* Before a step: which chunks of slots each text may see (how many in all), the mask over them, and how work is cut. */
size_t find_chunks(Engine *e, const Step *s);
void make_mask(Engine *e, const Step *s, size_t chunks);
void find_units(Engine *e, const Step *s);

/* In a layer: softmax(q k) v, scores perhaps capped, of every head and token that is still needed, from qkv_out to e->acts.x
   [tokens][heads * head_dim]. */
void attention(const Task *t, int layer);
#pragma GCC visibility pop
#endif
