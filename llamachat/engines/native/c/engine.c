/* A decoder's forward pass: who computes what, and in which order. The arithmetic is in kernels.c, attention in attention.c.

   One parallel region runs all layers; its threads meet at barriers. With one token, each thread repeats the small work
   (norms, quantizing) on a copy of its own rather than wait for another; with more, tokens are dealt out. */
#include <stdatomic.h>
#include <string.h>

#include "attention.h"
#include "faults.h"
#include "kv.h"
#include "alloc.h"
#include "threads.h"

/* Rounding activations to 8 bits costs SmolLM2 (Q4_1) a mean KL divergence of 0.0030, of which the head's share is 0.0010,
   that of query, key and value 0.0009. These two are a small part of all multiplications; with 15 bits there it is 0.0012. */
enum { FINE_QKV = 1, FINE_MLP = 0, FINE_HEAD = 1 };

/* ---- steps of the forward pass ---- */

/* y [tokens][rows of w], whose rows lie `stride` floats apart. */
typedef struct { const Matrix *w; int tokens; float *y; size_t stride; } Product;

/* Products of the same activations with some matrices, as if these were one: threads take strips of all of them. */
static void multiply(const Task *t, const Acts *a, int fine, const Product *products, int count) {
    int total = 0, lo, hi = 0;
    for (int i = 0; i < count; i++) total += strips_of(products[i].w);
    while (take_strips(t, total, &lo, &hi))
        for (int i = 0, start = 0; i < count; start += strips_of(products[i++].w)) {
            const Product *p = &products[i];
            int from = most(lo - start, 0), to = least(hi - start, strips_of(p->w));
            if (from < to)
                t->e->k->matmul(p->w, a, fine, 0, p->tokens, p->y, p->stride, from, to - from, t->local->scratch);
        }
}

static int qkv_strips(const Matrix *w) { return strips_of(w + QUERY) + strips_of(w + KEY) + strips_of(w + VALUE); }

/* The tokens' rows of the embedding become the residual stream x [tokens][hidden]; beside it, what RoPE rotates by. */
static void embed(const Task *t) {
    const Engine *e = t->e;
    EACH_TOKEN(t, i) e->k->dequantize_row(e->m.embed, t->s->ids[i], t->x + (size_t)i * e->hidden);
    int half = e->m.head_dim / 2;
    for (int i = t->thread; i < t->tokens; i += t->threads) {
        size_t row = (size_t)i * half;
        rotation_angles(e, (double)t->s->positions[i], e->m.rope_factor, e->cosine + row, e->sine + row);
    }
}

/* x += out [tokens][hidden], which is only noted: a norm always follows, and adds what is noted while it reads x. */
static void add_residual(Task *t) { t->residual = t->e->out; }

/* The i-th norm's weight [hidden]: two of each layer, before attention and before the MLP, then the final one. */
static const float *norm_weight(const Engine *e, int i) { return e->m.norms + (size_t)i * e->hidden; }

/* x / sqrt(mean(x^2) + eps) * weight [tokens][hidden], as floats and, for the products that follow, as integers. */
static void rms_norm(Task *t, const float *weight, int fine) {
    const Engine *e = t->e;
    EACH_TOKEN(t, i) {
        size_t row = (size_t)i * e->hidden;
        const float *add = t->residual ? t->residual + row : NULL;
        e->k->rmsnorm(t->x + row, add, weight, e->m.hidden, e->m.eps, t->acts->x + (size_t)i * t->acts->width);
        e->k->quantize(t->acts, i, 0, e->hidden, fine);
    }
    t->residual = NULL;
    barrier_unless_alone(t);
}

/* Queries [tokens][heads * head_dim] of the tokens that are still needed; keys and values [tokens][kv_heads * head_dim] of all. */
static void project_qkv(const Task *t, const Matrix *w) {
    const Engine *e = t->e;
    int all = t->s->tokens;
    Product qkv[] = {{w + QUERY, t->tokens, e->qkv_out, e->qkv},
                     {w + KEY, all, e->qkv_out + key_column(e), e->qkv},
                     {w + VALUE, all, e->qkv_out + value_column(e), e->qkv}};
    multiply(t, t->acts, FINE_QKV, qkv, 3);
    barrier_before(t, w + OUTPUT, strips_of(w + OUTPUT));
}

/* Rotates queries and keys by their positions, and stores keys and values in their slots. */
static void rotate_and_store_kv(const Task *t, const Matrix *w, int layer) {
    rotate_and_store(t, layer);
    barrier_before(t, w + OUTPUT, strips_of(w + OUTPUT));
}

/* What the heads gave [tokens][heads * head_dim], rounded to integers, times the output matrix: out [tokens][hidden]. */
static void project_output(const Task *t, const Matrix *w) {
    const Engine *e = t->e;
    EACH_TOKEN(t, i) {
        if (t->alone) memcpy(t->acts->x, e->acts.x, e->attn * 4);
        e->k->quantize(t->acts, i, 0, e->attn, 0);
    }
    barrier_unless_alone(t);
    multiply(t, t->acts, 0, &(Product){w + OUTPUT, t->tokens, e->out, e->hidden}, 1);
    barrier_before(t, w + GATE, e->inner / LANES);
}

/* silu(gate) * up [tokens][inner], where gate and up are products [tokens][inner] of the same activations. A thread computes the
   same rows of both, 64 or a multiple, so that it can make of them the next product's activations at once. */
static void gate_up_silu(const Task *t, const Matrix *w) {
    const Engine *e = t->e;
    int tokens = t->tokens, strips = strips_of(w + GATE);
    float *gate = e->gate, *upper = gate + e->inner;
    for (int lo, hi = 0; take_strips(t, e->inner / LANES, &lo, &hi);) {
        int count = least(hi, strips) - lo, from = lo * LANES, to = hi * LANES;
        e->k->matmul(w + GATE, t->acts, FINE_MLP, 0, tokens, gate, 2 * e->inner, lo, count, t->local->scratch);
        e->k->matmul(w + UP, t->acts, FINE_MLP, 0, tokens, upper, 2 * e->inner, lo, count, t->local->scratch);
        for (int i = 0; i < tokens; i++) {
            size_t row = (size_t)i * 2 * e->inner + from;
            e->k->swiglu(gate + row, upper + row, e->mlp.x + (size_t)i * e->inner + from, to - from);
            e->k->quantize(&e->mlp, i, from, to, 0);
        }
    }
    barrier_before(t, w + DOWN, strips_of(w + DOWN));
}

/* out [tokens][hidden]. The next weights to be read are the next layer's, or the head's. */
static void project_down(const Task *t, const Matrix *w, int is_last) {
    const Engine *e = t->e;
    multiply(t, &e->mlp, 0, &(Product){w + DOWN, t->tokens, e->out, e->hidden}, 1);
    if (is_last) barrier_before(t, e->m.head, strips_of(e->m.head));
    else barrier_before(t, w + LINEARS + QUERY, qkv_strips(w));
}

/* Logits [tokens][vocab]. */
static void project_head(const Task *t) {
    const Matrix *head = t->e->m.head;
    multiply(t, t->acts, FINE_HEAD, &(Product){head, t->tokens, t->s->logits, up(head->rows, LANES)}, 1);
}

/* ---- the forward pass ---- */

/* What each thread runs, side by side with the others; a step ends with a barrier where the next one reads what others wrote.
   x is the residual stream [tokens][hidden]. */
static void forward(Task *t) {
    const Engine *e = t->e;
    int last = e->m.layers - 1;

    /* embedding: x [tokens][hidden] */
    embed(t);

    for (int layer = 0; layer <= last; layer++) {
        const Matrix *w = e->m.linears + layer * LINEARS;

        /* attention norm [tokens][hidden] */
        rms_norm(t, norm_weight(e, 2 * layer), FINE_QKV);
        if (layer == last) t->tokens = t->s->wanted;  /* of the others, only keys and values are still needed */

        /* queries [tokens][heads * head_dim], keys and values [tokens][kv_heads * head_dim] */
        project_qkv(t, w);

        /* RoPE of queries and keys; keys and values to their slots in the cache */
        rotate_and_store_kv(t, w, layer);
        if (!t->tokens) return;

        /* softmax(q k) v [tokens][heads * head_dim] */
        attention(t, layer);

        /* output projection [tokens][hidden], and the residual connection around attention */
        project_output(t, w);
        add_residual(t);

        /* MLP norm [tokens][hidden] */
        rms_norm(t, norm_weight(e, 2 * layer + 1), FINE_MLP);

        /* gate and up, silu(gate) * up [tokens][inner] */
        gate_up_silu(t, w);

        /* down projection [tokens][hidden], and the residual connection around the MLP */
        project_down(t, w, layer == last);
        add_residual(t);
    }

    /* final norm [tokens][hidden] */
    rms_norm(t, norm_weight(e, 2 * e->m.layers), FINE_HEAD);

    /* head: logits [tokens][vocab] */
    project_head(t);
}

/* One thread's part of a step. */
static void run(Engine *e, const Step *s, int thread, int threads) {
    Task t = {e, s, thread, threads, s->tokens, s->tokens == 1, &e->local[thread], &e->acts, e->x, NULL};
    if (t.alone) t.acts = &t.local->acts, t.x = t.local->x;
    if (s->tokens > 1) e->k->enter();
    forward(&t);
    if (s->tokens > 1) e->k->leave();
}

/* Returns what was wrong with the step, in which case nothing was done; NULL: nothing. */
const char *engine_forward(Engine *e, const Step *s) {
    const char *fault = step_fault(&e->m, s);
    if (fault) return fault;
    if (!make_room(e, s->texts, 0)) return NO_MEMORY;
    size_t chunks = find_chunks(e, s);
    if (!make_room(e, 0, chunks)) return NO_MEMORY;
    make_mask(e, s, chunks);
    find_units(e, s);
    atomic_store(&e->team.taken, 0);
    e->acts.lanes = e->mlp.lanes = least(s->tokens, LANES);
    #pragma omp parallel num_threads(e->m.threads)
    run(e, s, omp_get_thread_num(), omp_get_num_threads());
    return NULL;
}
