/* A model and a step of it, as Python describes them. These structures, Matrix, Source and Keys are declared in abi.py as well;
   abi.c lets Python compare the two. */
#ifndef LLAMACHAT_MODEL_H
#define LLAMACHAT_MODEL_H
#include "packed.h"

/* The largest model whose products of sizes fit 32 bits wherever the code has them in an int; see model_fault. */
enum {
    MAX_HIDDEN = 1 << 20, MAX_INNER = 1 << 22, MAX_VOCAB = 1 << 24, MAX_LAYERS = 1024, MAX_HEADS = 4096, MAX_THREADS = 1024,
    MAX_SLOTS = 1 << 30, MAX_BATCH = 1 << 12
};

enum linear { QUERY, KEY, VALUE, OUTPUT, GATE, UP, DOWN, LINEARS };

typedef struct {
    int32_t vocab, hidden, inner, layers, heads, kv_heads, head_dim, slots, kv_kind, threads, batch;  /* batch: most tokens a call */
    float eps, rope_factor;
    const double *frequency;  /* [head_dim / 2] */
    const int32_t *window;    /* [layers], INT32_MAX: none */
    const float *norms;       /* [2 * layers + 1][hidden up to 64] */
    const Matrix *embed, *head, *linears;  /* linears: [layers][LINEARS] */
} Model;

/* Pieces of one or more texts. A run is tokens of one text that lie side by side; it sees the slots of its text's ranges. */
typedef struct {
    const int32_t *ids;
    const int64_t *slots, *positions, *visible;  /* visible: [ranges][first slot, end, text] */
    const int32_t *runs;                         /* [runs][first token, end, text] */
    int32_t tokens, texts, ranges, run_count, wanted;  /* wanted: how many tokens, the first ones, want logits */
    float *logits;                               /* [wanted][vocab up to 16] */
} Step;
#endif
