/* A decoder's forward pass: who computes what, and in which order. The arithmetic is in kernels.c, attention in attention.c.

   One parallel region runs all layers; its threads meet at barriers. With one token, each thread repeats the small work
   (norms, quantizing) on a copy of its own rather than wait for another; with more, tokens are dealt out. */
#include <stdatomic.h>
#include <string.h>

#include "attention.h"
#include "faults.h"
#include "kv.h"
#include "lowrank.h"
#include "mixture.h"
#include "alloc.h"
#include "threads.h"

/* ---- steps of the forward pass ---- */

/* Products of the same activations with some matrices, as if these were one: threads take strips of all of them. */
static void multiply(const Task *t, const Acts *a, int fine, const Product *products, int count) {
    int total = 0, lo, hi = 0;
    for (int i = 0; i < count; i++) total += strips_of(products[i].w);
    start_added(t, a, products, count, total);
    while (take_strips(t, total, &lo, &hi))
        for (int i = 0, start = 0; i < count; start += strips_of(products[i++].w)) {
            const Product *p = &products[i];
            int from = most(lo - start, 0), to = least(hi - start, strips_of(p->w));
            if (from >= to) continue;
            t->e->k->matmul(p->w, a, fine, 0, p->tokens, p->y, p->stride, from, to - from, t->local->scratch);
            add_added(t, p, i, from, to - from);
        }
}

static int qkv_strips(const Matrix *w) { return strips_of(w + QUERY) + strips_of(w + KEY) + strips_of(w + VALUE); }

/* The tokens' rows of the embedding become the residual stream x [tokens][hidden]; beside it, what RoPE rotates by and queries
   are scaled by. */
static void embed(const Task *t) {
    const Engine *e = t->e;
    EACH_TOKEN(t, i) {
        e->k->dequantize_row(e->m.embed, t->s->ids[i], t->x + (size_t)i * e->hidden);
        add_to_row(e, t->s->ids[i], t->x + (size_t)i * e->hidden);
    }
    for (int i = t->thread; i < t->tokens; i += t->threads) e->query_scale[i] = query_scale(e, t->s->positions[i]);
    for (int i = t->thread; i < t->tokens * e->m.ropes; i += t->threads) {
        const Rope *rope = e->m.rope + i / t->tokens;
        size_t at = angles_at(e, i / t->tokens, i % t->tokens);
        rotation_angles(rope, (double)t->s->positions[i % t->tokens], rope->factor, e->cosine + at, e->sine + at);
    }
}

/* x += out [tokens][hidden], or what a norm makes of out, which is only noted: rms_norm always follows, and adds while it
   reads. */
static void add_residual(Task *t, const float *norm) { t->residual = t->e->out, t->residual_norm = norm; }

/* x += add, if there is any; out = x. */
static void add_up(float *x, const float *add, int n, float *out) {
    for (int i = 0; add && i < n; i++) x[i] += add[i];
    memcpy(out, x, n * 4);
}

/* x / sqrt(mean(x^2) + eps) * weight [tokens][hidden], as floats and, for the products that follow, as integers. Without a
   weight, x itself. */
static void rms_norm(Task *t, const float *weight, int products) {
    const Engine *e = t->e;
    int n = e->m.hidden, fine = is_fine(e, products);
    EACH_TOKEN(t, i) {
        size_t row = (size_t)i * e->hidden;
        float *x = t->x + row, *out = t->acts->x + (size_t)i * t->acts->width, *add = t->residual ? t->residual + row : NULL;
        if (add && t->residual_norm) {
            e->k->rmsnorm(add, NULL, t->residual_norm, n, e->m.eps, out);
            add = out;
        }
        if (weight) e->k->rmsnorm(x, add, weight, n, e->m.eps, out);
        else add_up(x, add, e->hidden, out);
        e->k->quantize(t->acts, i, 0, e->hidden, fine);
    }
    t->residual = NULL;
    barrier_unless_alone(t);
}

/* Queries [tokens][heads * head_dim] of the tokens that are still needed; keys and values [tokens][kv_heads * head_dim] of all.
   */
static void project_qkv(const Task *t, int layer) {
    const Engine *e = t->e;
    const Matrix *w = e->m.layer[layer].attention;
    int all = t->s->tokens;
    Product qkv[] = {{w + QUERY, t->tokens, e->qkv_out, e->qkv},
                     {w + KEY, all, e->qkv_out + key_column(e), e->qkv},
                     {w + VALUE, all, e->qkv_out + value_column(e), e->qkv}};
    fetch_slot(t, layer);
    multiply(t, t->acts, is_fine(e, FINE_QKV), qkv, 3);
    barrier_before(t, w + OUTPUT, strips_of(w + OUTPUT));
}

/* Norms of queries and keys, of all heads together; where each head has one, it goes with the rotation. */
static void norm_queries_and_keys(const Task *t, const Layer *l) {
    norm_projections(t, l);
    barrier(t);
}

/* Rotates queries and keys by their positions, and stores keys and values in their slots. */
static void rotate_and_store_kv(const Task *t, int layer) {
    const Matrix *output = t->e->m.layer[layer].attention + OUTPUT;
    rotate_and_store(t, layer);
    barrier_before(t, output, strips_of(output));
}

/* What the heads gave [tokens][heads * head_dim], rounded to integers, times the output matrix: out [tokens][hidden]. */
static void project_output(const Task *t, const Layer *l) {
    const Engine *e = t->e;
    const Matrix *w = l->attention + OUTPUT, *next = l->router ? l->router : l->mlp + GATE;
    EACH_TOKEN(t, i) {
        float *x = t->acts->x + (size_t)i * t->acts->width;
        if (t->alone) memcpy(x, e->acts.x, e->attn * 4);
        for (int d = w->columns; d < e->attn; d++) x[d] = 0.0f;
        e->k->quantize(t->acts, i, 0, e->attn, is_fine(e, FINE_OUTPUT));
    }
    barrier_unless_alone(t);
    multiply(t, t->acts, is_fine(e, FINE_OUTPUT), &(Product){w, t->tokens, e->out, e->hidden}, 1);
    barrier_before(t, next, up(next->rows, TILE) / LANES);
}

/* act(gate) * up [tokens][inner], where gate and up are products [tokens][inner] of the same activations. A thread computes the
   same rows of both, 32 or a multiple, so that it can make of them the next product's activations at once. */
static void gate_up(const Task *t, const Matrix *w) {
    const Engine *e = t->e;
    int tokens = t->tokens, strips = strips_of(w + GATE), fine = is_fine(e, FINE_MLP);
    float *gate = e->gate, *upper = gate + e->inner;
    const Product products[] = {{w + GATE, tokens, gate, 2 * e->inner}, {w + UP, tokens, upper, 2 * e->inner}};
    start_added(t, t->acts, products, 2, e->inner / LANES);
    for (int lo, hi = 0; take_strips(t, e->inner / LANES, &lo, &hi);) {
        int count = least(hi, strips) - lo, from = lo * LANES, to = hi * LANES;
        for (int i = 0; count > 0 && i < 2; i++) {
            const Product *p = products + i;
            e->k->matmul(p->w, t->acts, fine, 0, tokens, p->y, p->stride, lo, count, t->local->scratch);
            add_added(t, p, i, lo, count);
        }
        for (int i = 0; i < tokens; i++) {
            size_t row = (size_t)i * 2 * e->inner + from;
            float *out = e->mlp.x + (size_t)i * e->inner + from;
            e->k->activate(e->m.activation, e->m.swiglu_limit, gate + row, upper + row, out, to - from);
            e->k->quantize(&e->mlp, i, from, to, is_fine(e, FINE_DOWN));
        }
    }
    barrier_before(t, w + DOWN, strips_of(w + DOWN));
}

/* out [tokens][hidden] */
static void project_down(const Task *t, const Matrix *w) {
    const Engine *e = t->e;
    multiply(t, &e->mlp, is_fine(e, FINE_DOWN), &(Product){w + DOWN, t->tokens, e->out, e->hidden}, 1);
}

/* The next weights to be read are the next layer's, or the head's. */
static void end_layer(const Task *t, int layer) {
    const Engine *e = t->e;
    const Matrix *next = layer < e->m.layers - 1 ? e->m.layer[layer + 1].attention : NULL;
    if (next) barrier_before(t, next, qkv_strips(next));
    else if (t->s->hidden) barrier(t);
    else barrier_before(t, e->m.head, strips_of(e->m.head));
}

/* What the head would be given [tokens][hidden], in the place of logits. */
static void keep_hidden(const Task *t) {
    int n = t->e->m.hidden;
    for (int i = t->thread; i < t->tokens; i += t->threads)
        memcpy(t->s->logits + (size_t)i * n, t->acts->x + (size_t)i * t->acts->width, (size_t)n * sizeof(float));
}

/* Logits [tokens][outputs], perhaps capped: those of a strip by the thread that computed it. */
static void project_head(const Task *t) {
    const Engine *e = t->e;
    const Matrix *head = e->m.head;
    size_t stride = up(head->rows, LANES);
    const Product product = {head, t->tokens, t->s->logits, stride};
    start_added(t, t->acts, &product, 1, strips_of(head));
    for (int lo, hi = 0; take_strips(t, strips_of(head), &lo, &hi);) {
        e->k->matmul(head, t->acts, is_fine(e, FINE_HEAD), 0, t->tokens, t->s->logits, stride, lo, hi - lo, t->local->scratch);
        add_added(t, &product, 0, lo, hi - lo);
        for (int i = 0; e->m.logit_softcap > 0.0f && i < t->tokens; i++)
            e->k->soften(t->s->logits + i * stride + (size_t)lo * LANES, (hi - lo) * LANES, e->m.logit_softcap);
    }
}

/* ---- the forward pass ---- */

/* A mixture of experts in place of the MLP. */
static void mixture(Task *t, const Layer *l) {
    /* router [tokens][experts]: which experts run which tokens */
    route(t, l);

    /* gate and up, act(gate) * up [rows][expert_inner]: a row is a token in one of its experts */
    gate_up_experts(t, l);

    /* down projections [rows][hidden], added up to [tokens][hidden] */
    project_down_experts(t, l);
}

static void mlp(Task *t, const Layer *l) {
    /* gate and up, act(gate) * up [tokens][inner] */
    gate_up(t, l->mlp);

    /* down projection [tokens][hidden] */
    project_down(t, l->mlp);
}

/* What each thread runs, side by side with the others; a step ends with a barrier where the next one reads what others wrote.
   x is the residual stream [tokens][hidden]. */
static void forward(Task *t) {
    const Engine *e = t->e;
    int last = e->m.layers - 1;

    /* embedding: x [tokens][hidden] */
    embed(t);

    for (int layer = 0; layer <= last; layer++) {
        const Layer *l = e->m.layer + layer;

        /* attention norm [tokens][hidden] */
        rms_norm(t, l->attention_in, FINE_QKV);
        if (layer == last) t->tokens = t->s->wanted;  /* of the others, only keys and values are still needed */

        /* queries [tokens][heads * head_dim], keys and values [tokens][kv_heads * head_dim] */
        project_qkv(t, layer);

        /* norms of queries and keys; RoPE; keys and values to their slots in the cache */
        if (l->q_norm && e->m.whole_norms) norm_queries_and_keys(t, l);
        rotate_and_store_kv(t, layer);
        if (!t->tokens) return;

        /* softmax(q k) v [tokens][heads * head_dim] */
        attention(t, layer);

        /* output projection [tokens][hidden], and the residual connection around attention */
        project_output(t, l);
        add_residual(t, l->attention_out);

        /* MLP norm [tokens][hidden] */
        rms_norm(t, l->mlp_in, FINE_MLP);

        /* the MLP, or the experts in its place [tokens][hidden], and the residual connection around it */
        if (l->router) mixture(t, l);
        else mlp(t, l);
        end_layer(t, layer);
        add_residual(t, l->mlp_out);
    }

    /* final norm [tokens][hidden] */
    rms_norm(t, e->m.norm, FINE_HEAD);

    /* head: logits [tokens][outputs]; or what it would be given [tokens][hidden] */
    if (t->s->hidden) keep_hidden(t);
    else project_head(t);
}

/* One thread's part of a step. */
static void run(Engine *e, const Step *s, int thread, int threads) {
    Task t = {e, s, thread, threads, s->tokens, s->tokens == 1, &e->local[thread], &e->acts, e->x, NULL, NULL};
    if (t.alone) t.acts = &t.local->acts, t.x = t.local->x;
    if (s->tokens > 1) e->k->enter();
    forward(&t);
    if (s->tokens > 1) e->k->leave();
}

/* Returns what was wrong with the step, in which case nothing was done; NULL: nothing. */
const char *engine_forward(Engine *e, const Step *s) {
    const char *fault = step_fault(&e->m, s);
    if (fault) return fault;
    note_positions(e, s->slots, s->positions, s->tokens);
    if (!make_room(e, s->texts, 0)) return NO_MEMORY;
    size_t chunks = find_chunks(e, s);
    if (!make_room(e, 0, chunks)) return NO_MEMORY;
    make_mask(e, s, chunks);
    find_units(e, s);
    atomic_store(&e->team.taken, 0);
    e->acts.lanes = e->mlp.lanes = e->gathered.lanes = e->expert_acts.lanes = least(s->tokens, LANES);
    int threads = threads_of(e, s->tokens);
    #pragma omp parallel num_threads(threads)
    run(e, s, omp_get_thread_num(), omp_get_num_threads());
    step_ended(e, s->tokens);
    return NULL;
}
