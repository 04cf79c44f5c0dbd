/* The boundary to Python: how the structures that both sides fill lie in memory, so that abi.py can compare. */
#include <stddef.h>

#include "kernels.h"
#include "model.h"

#define FIELD(type, name) {#type, #name, offsetof(type, name), sizeof(((type *)0)->name)}
#define WHOLE(type) {#type, "", 0, sizeof(type)}
static const struct { const char *type, *name; size_t offset, size; } fields[] = {
    WHOLE(Matrix), FIELD(Matrix, data), FIELD(Matrix, bytes), FIELD(Matrix, bias), FIELD(Matrix, rows), FIELD(Matrix, columns),
    FIELD(Matrix, kind), FIELD(Matrix, scaling), FIELD(Matrix, subs), FIELD(Matrix, minimum), FIELD(Matrix, first),
    FIELD(Matrix, unit), FIELD(Matrix, table), FIELD(Matrix, low), FIELD(Matrix, tabled), FIELD(Matrix, wide),
    FIELD(Matrix, added),
    WHOLE(LowRank), FIELD(LowRank, a), FIELD(LowRank, b), FIELD(LowRank, a_bytes), FIELD(LowRank, b_bytes), FIELD(LowRank, next),
    FIELD(LowRank, rank), FIELD(LowRank, kind), FIELD(LowRank, scale),
    WHOLE(Rope), FIELD(Rope, frequency), FIELD(Rope, factor), FIELD(Rope, dim),
    WHOLE(Layer), FIELD(Layer, attention_in), FIELD(Layer, attention_out), FIELD(Layer, mlp_in), FIELD(Layer, mlp_out),
    FIELD(Layer, q_norm), FIELD(Layer, k_norm), FIELD(Layer, sinks), FIELD(Layer, attention), FIELD(Layer, mlp),
    FIELD(Layer, router), FIELD(Layer, window), FIELD(Layer, rope),
    WHOLE(Model), FIELD(Model, vocab), FIELD(Model, hidden), FIELD(Model, inner), FIELD(Model, layers), FIELD(Model, heads),
    FIELD(Model, kv_heads), FIELD(Model, head_dim), FIELD(Model, slots), FIELD(Model, kv_kind), FIELD(Model, threads),
    FIELD(Model, batch), FIELD(Model, outputs), FIELD(Model, activation), FIELD(Model, ropes), FIELD(Model, fine),
    FIELD(Model, whole_norms), FIELD(Model, experts), FIELD(Model, picked), FIELD(Model, expert_inner),
    FIELD(Model, whole_softmax), FIELD(Model, query_span), FIELD(Model, query_growth), FIELD(Model, eps),
    FIELD(Model, query_scale), FIELD(Model, softcap), FIELD(Model, logit_softcap), FIELD(Model, swiglu_limit),
    FIELD(Model, rope), FIELD(Model, layer), FIELD(Model, norm), FIELD(Model, embed), FIELD(Model, head),
    WHOLE(Step), FIELD(Step, ids), FIELD(Step, slots), FIELD(Step, positions), FIELD(Step, visible), FIELD(Step, runs),
    FIELD(Step, tokens), FIELD(Step, texts), FIELD(Step, ranges), FIELD(Step, run_count), FIELD(Step, wanted),
    FIELD(Step, hidden), FIELD(Step, logits),
    WHOLE(Source), FIELD(Source, codes), FIELD(Source, scale), FIELD(Source, minimum), FIELD(Source, codes_bytes),
    FIELD(Source, scales), FIELD(Source, group), FIELD(Source, half), FIELD(Source, factor), FIELD(Source, offset),
    WHOLE(Blocks), FIELD(Blocks, data), FIELD(Blocks, order), FIELD(Blocks, bytes), FIELD(Blocks, stored), FIELD(Blocks, type),
    WHOLE(Keys), FIELD(Keys, k), FIELD(Keys, v), FIELD(Keys, next), FIELD(Keys, k_scale), FIELD(Keys, v_scale),
    FIELD(Keys, position), FIELD(Keys, kind), FIELD(Keys, dim), FIELD(Keys, window), FIELD(Keys, softcap),
};

/* The i-th field of all structures: its structure's name, its own (empty: the structure itself), where it lies and its bytes;
   0 behind the last. */
int abi_field(int i, const char **type, const char **name, size_t *offset, size_t *size) {
    if (i < 0 || (size_t)i >= sizeof fields / sizeof *fields) return 0;
    *type = fields[i].type, *name = fields[i].name, *offset = fields[i].offset, *size = fields[i].size;
    return 1;
}
