/* The engine of one model: what it holds, and what a thread knows of the step it works on. */
#ifndef LLAMACHAT_ENGINE_H
#define LLAMACHAT_ENGINE_H
#include <stdatomic.h>

#include "kernels.h"
#include "model.h"
#if defined(_OPENMP)
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
#endif

typedef struct { int base, chunks; size_t at; } Text;  /* the chunks of slots it may see, from the base-th; the at-th of `mask` */
typedef struct { int first, end, text, unit; } Run;    /* its work in attention starts with this unit */

/* Where threads meet, and take work from. */
typedef struct {
    _Alignas(64) atomic_int arrived, sleepers;
    _Alignas(64) atomic_int round;
    _Alignas(64) atomic_int taken;  /* how much of the work since the last barrier has been taken */
    _Alignas(64) atomic_llong slept;  /* nanoseconds that threads slept at barriers, all together */
} Team;

/* How many threads run a step of one token, and how well that goes: see threads.c. */
typedef struct {
    int threads, before;           /* now; and before the trial that is going on, or 0 */
    int steps, since, patience;    /* of this stretch of steps; stretches since the last trial, and to wait for the next */
    double seconds, mean, began;   /* of this stretch; a step of the last stretch without a trial; when this step began */
} Pace;

/* How weights are fetched ahead (see Kernels.fetch), which is tried by the first steps of one token: so many, the shortest of
   each way, and the streams in which a thread reads now. */
typedef struct { int steps, streams; double least[FETCHINGS]; } Fetching;

/* An expert that a token is sent to, its share in the token's result, and the row of the experts' activations that is theirs. */
typedef struct { int expert, row; float share; } Pick;
typedef struct { int expert, first, rows; } Group;      /* the rows of one expert */
typedef struct { Pick *picks; Group *groups; int count; } Route;  /* [tokens][picked], by expert; and so many groups */

/* y [tokens][rows of w], whose rows lie `stride` floats apart, of the activations from the token-th on. What is added to it is
   kept in the row-th row of the engine's and those after. */
typedef struct { const Matrix *w; int tokens; float *y; size_t stride; int token, row; } Product;

typedef struct { Acts acts; float *x, *part; void *scratch; Route route; } Local;  /* what each thread has to itself */

typedef struct Engine {
    Model m;
    const Kernels *k;
    int hidden, inner, attn, qkv, dim, cap;  /* padded: columns of activations, of the fused query-key-value row, head_dim,
                                                slots */
    int expert_inner, scored;                /* padded: columns of an expert's activations, of the router's scores */
    int fine;                                /* the model's; and FINE_MLP where a router is coded */
    Local *local;                            /* [threads] */
    Acts acts, mlp;                          /* of a batch: what products read; and what the down projection reads */
    float *x;                                /* residual stream [batch][hidden] */
    float *out;                              /* of attention and MLP, to be added to it [batch][hidden] */
    float *qkv_out;                          /* queries, keys and values [batch][qkv], see key_column */
    float *gate;                             /* gate and up [batch][2][inner] */
    float *cosine, *sine;                    /* of the tokens' angles [ropes][batch][head_dim / 2], see angles_at */
    float *query_scale;                      /* of the tokens [batch] */
    float *scores;                           /* the router's [batch][scored] */
    Route route;                             /* of a batch; that of one token is each thread's own */
    int *expert_row;                         /* [experts], while tokens are grouped */
    Acts gathered, expert_acts;              /* of the experts' rows: what gate and up read; and what down reads */
    float *expert_gate, *expert_out;         /* gate and up [rows][2][expert_inner]; down [rows][hidden] */
    float *parts;                            /* attention partials of units that are cut along the slots */
    Text *texts;                             /* of this step; and for the chunks of each, one text after the other: */
    int32_t *mask;                           /* position of each slot, INT32_MAX: masked */
    int32_t *first, *last;                   /* least and largest position of each block of 16 slots */
    size_t texts_room, chunks_room;
    Run *runs;
    int units, chunks;                       /* of all runs; of the text that has most */
    int64_t *position;                       /* of each slot */
    char *kv;                                /* [chunks][layers][kv_heads][2][CHUNK / 16] blocks; see kv_at */
    float *kv_scale;                         /* [layers][1 or 2][kv_heads][cap], see kv_scales */
    size_t kv_bytes;
    char *work;                              /* where all that has no other place of its own lies */
    size_t work_bytes;
    float *low;                              /* sums of low-rank additions [3 products][low_rows][low_width]; see lowrank.c */
    float *low_inputs;                       /* and what they are multiplied with [threads][tokens][low_rank] */
    size_t low_rows, low_width;
    int low_rank;                            /* the largest; 0: there are none */
    Pace pace;
    Fetching fetching;
    Team team;
} Engine;

/* What a thread knows of the step it works on. */
typedef struct {
    Engine *e;
    const Step *s;
    int thread, threads, tokens; /* tokens: so many of the first ones are still needed */
    int alone;                   /* one token: norms and quantizing are repeated by each thread */
    Local *local;
    Acts *acts;                  /* what the layers' products read */
    float *x;                    /* residual stream [tokens][hidden] */
    float *residual;             /* what the next norm adds to it first [tokens][hidden], or NULL */
    const float *residual_norm;  /* and by which norm that goes before, or NULL */
} Task;

static inline int most(int a, int b) { return a > b ? a : b; }
static inline int least(int a, int b) { return a < b ? a : b; }
static inline size_t larger(size_t a, size_t b) { return a > b ? a : b; }
static inline size_t part_size(const Engine *e) { return PART + e->dim; }
static inline int queries_per_key(const Engine *e) { return e->m.heads / e->m.kv_heads; }

/* Where a token's keys and values lie in its row of qkv_out; queries come first. */
static inline int key_column(const Engine *e) { return up(e->m.heads * e->m.head_dim, LANES); }
static inline int value_column(const Engine *e) { return key_column(e) + up(e->m.kv_heads * e->m.head_dim, LANES); }

/* Attention of a few queries is cut along the slots too: up to so many units, and always that on one token. */
static inline int cut_units(const Engine *e) {
    return most(e->m.kv_heads * (up(queries_per_key(e), ROWS) / ROWS), 4 * e->m.threads);
}

/* Rows of experts' activations that a batch may need: an expert's rows begin with a whole block of tokens. */
static inline int expert_rows(const Model *m) {
    int picks = up(m->batch, LANES) * m->picked;
    return up(picks + least(m->experts, picks) * (LANES - 1), LANES);
}

/* Where the cosines and sines of a token lie, for one way to rotate. */
static inline size_t angles_at(const Engine *e, int rope, int token) {
    return ((size_t)rope * e->m.batch + token) * (e->m.head_dim / 2);
}

/* Whether the activations of these products are fine. */
static inline int is_fine(const Engine *e, int products) { return (e->fine & products) != 0; }

/* The tokens that a thread works on one by one: neighbours, for the activations of neighbours share lines of the cache. */
static inline int first_token(const Task *t, int thread) {
    return t->alone ? 0 : (int)((int64_t)t->tokens * thread / t->threads);
}
static inline int end_token(const Task *t) { return t->alone ? t->tokens : first_token(t, t->thread + 1); }
#define EACH_TOKEN(t, i) for (int i = first_token(t, (t)->thread); i < end_token(t); i++)
#endif
