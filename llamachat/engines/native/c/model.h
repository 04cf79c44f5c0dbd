/* A model and a step of it, as Python describes them. These structures, Matrix, Source and Keys are declared in abi.py as well;
   abi.c lets Python compare the two. */
#ifndef LLAMACHAT_MODEL_H
#define LLAMACHAT_MODEL_H
#include "packed.h"

/* The largest model whose products of sizes fit 32 bits wherever the code has them in an int; see model_fault. */
enum {
    MAX_HIDDEN = 1 << 20, MAX_INNER = 1 << 22, MAX_VOCAB = 1 << 24, MAX_LAYERS = 1024, MAX_HEADS = 4096, MAX_THREADS = 1024,
    MAX_SLOTS = 1 << 30, MAX_BATCH = 1 << 12, MAX_ROPES = 2, MAX_EXPERTS = 1 << 12, MAX_RANK = 1 << 12, MAX_ADDED = 64
};

enum attention_matrix { QUERY, KEY, VALUE, OUTPUT, PROJECTIONS };
enum mlp_matrix { GATE, UP, DOWN, GATED };
enum activation { SILU, GELU, GELU_TANH, CLAMPED_SWIGLU, ACTIVATIONS };
/* Products whose activations are rounded to 15 bits instead of 8, for twice the multiplications: bits of `fine`. */
enum fine { FINE_QKV = 1, FINE_OUTPUT = 2, FINE_MLP = 4, FINE_DOWN = 8, FINE_HEAD = 16, FINE_ALL = 31 };

/* A way to rotate: the first `dim` elements of a head, as pairs (i, i + dim / 2). */
typedef struct {
    const double *frequency;  /* [dim / 2] */
    float factor;             /* of cosines and sines */
    int32_t dim;
} Rope;

/* Norms are [hidden up to 64]; NULL where the layer has none. */
typedef struct {
    const float *attention_in, *attention_out, *mlp_in, *mlp_out;
    const float *q_norm, *k_norm;  /* [head_dim], or of whole projections [heads * head_dim] and [kv_heads * head_dim]; or NULL */
    const float *sinks;            /* [heads], or NULL */
    const Matrix *attention;       /* [PROJECTIONS] */
    const Matrix *mlp;             /* [GATED]; of a mixture [experts][GATED] */
    const Matrix *router;          /* of a mixture, else NULL */
    int32_t window, rope;          /* window: INT32_MAX: none; rope: number of a way to rotate, -1: not at all */
} Layer;

typedef struct {
    int32_t vocab, hidden, inner, layers, heads, kv_heads, head_dim;  /* inner: of layers without experts, 0: there is none */
    int32_t slots, kv_kind, threads, batch;  /* batch: most tokens a call */
    int32_t outputs;                         /* rows of the head, 0: it has none */
    int32_t activation, ropes, fine;
    int32_t whole_norms;                     /* q_norm and k_norm are of whole projections */
    int32_t experts, picked, expert_inner;   /* picked: experts a token; experts 0: there is no mixture */
    int32_t whole_softmax;                   /* experts' shares are of a softmax over all of them, else over those picked */
    int32_t query_span;                      /* query_scale grows with the position p: */
    float query_growth;                      /* times 1 + query_growth * ln(1 + p / query_span); query_span 0: it does not */
    float eps, query_scale, softcap, logit_softcap, swiglu_limit;  /* softcap: of scores; 0: none */
    const Rope *rope;                        /* [ropes] */
    const Layer *layer;                      /* [layers] */
    const float *norm;                       /* the final one [hidden up to 64] */
    const Matrix *embed, *head;              /* head: NULL without outputs */
} Model;

/* Pieces of one or more texts. A run is tokens of one text that lie side by side; it sees the slots of its text's ranges. */
typedef struct {
    const int32_t *ids;
    const int64_t *slots, *positions, *visible;  /* visible: [ranges][first slot, end, text] */
    const int32_t *runs;                         /* [runs][first token, end, text] */
    int32_t tokens, texts, ranges, run_count, wanted;  /* wanted: how many tokens, the first ones, want logits */
    int32_t hidden;                              /* not logits, but what the head is given */
    float *logits;                               /* [wanted][outputs up to 16]; or of hidden [wanted][hidden] */
} Step;
#endif
