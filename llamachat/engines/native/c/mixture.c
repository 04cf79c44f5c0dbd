/* A mixture of experts in place of the MLP: a router picks a few experts for each token, and only those are read.

   Experts work on rows: a token's activations, once for each expert it goes to. The rows of one expert lie together, so that each
   expert is one product whatever the batch. A token's results are added up in the order of the experts' numbers. */
#include <math.h>
#include <string.h>

#include "lowrank.h"
#include "mixture.h"
#include "threads.h"

static const Route *route_of(const Task *t) { return t->alone ? &t->local->route : &t->e->route; }

/* The `picked` largest scores, by the experts' numbers; of equal ones the first. What is not a number is picked like any
   other. */
static void pick_experts(const Engine *e, const float *scores, Pick *picks) {
    int k = e->m.picked, n = 0;
    for (int expert = 0; expert < e->m.experts; expert++) {
        if (n == k && !(scores[expert] > picks[k - 1].share)) continue;
        int at = n < k ? n++ : k - 1;
        for (; at && scores[expert] > picks[at - 1].share; at--) picks[at] = picks[at - 1];
        picks[at] = (Pick){expert, 0, scores[expert]};
    }
}

/* Scores become shares: a softmax over those picked, or over all experts. */
static void share_out(const Engine *e, const float *scores, Pick *picks) {
    float most = picks[0].share, total = 0.0f;
    for (int i = 0; i < e->m.picked; i++) picks[i].share = expf(picks[i].share - most);
    if (e->m.whole_softmax) for (int i = 0; i < e->m.experts; i++) total += expf(scores[i] - most);
    else for (int i = 0; i < e->m.picked; i++) total += picks[i].share;
    for (int i = 0; i < e->m.picked; i++) picks[i].share /= total;
}

static void sort_by_expert(Pick *picks, int count) {
    for (int i = 1; i < count; i++) {
        Pick pick = picks[i];
        int at = i;
        for (; at && picks[at - 1].expert > pick.expert; at--) picks[at] = picks[at - 1];
        picks[at] = pick;
    }
}

static void route_token(const Engine *e, const float *scores, Pick *picks) {
    pick_experts(e, scores, picks);
    share_out(e, scores, picks);
    sort_by_expert(picks, e->m.picked);
}

/* One token's experts: a row for each, of its activations as they are. */
static void route_alone(const Task *t) {
    Route *r = &t->local->route;
    route_token(t->e, t->e->scores, r->picks);
    for (int i = 0; i < t->e->m.picked; i++) r->picks[i].row = i, r->groups[i] = (Group){r->picks[i].expert, i, 1};
    r->count = t->e->m.picked;
}

/* Gives every pick its row. An expert's rows begin with a whole block of tokens, as products want them (see Acts). */
static void group_tokens(Engine *e, int tokens) {
    int picks = tokens * e->m.picked, row = 0, *next = e->expert_row;
    Route *r = &e->route;
    memset(next, 0, e->m.experts * sizeof *next);
    for (int i = 0; i < picks; i++) next[r->picks[i].expert]++;
    r->count = 0;
    for (int expert = 0; expert < e->m.experts; expert++) {
        int rows = next[expert];
        if (rows) r->groups[r->count++] = (Group){expert, row, rows};
        next[expert] = row;
        row += up(rows, e->gathered.lanes);
    }
    for (int i = 0; i < picks; i++) r->picks[i].row = next[r->picks[i].expert]++;
}

static void gather(const Task *t) {
    const Engine *e = t->e;
    EACH_TOKEN(t, i)
        for (int k = 0; k < e->m.picked; k++) {
            int row = e->route.picks[(size_t)i * e->m.picked + k].row;
            memcpy(e->gathered.x + (size_t)row * e->hidden, e->acts.x + (size_t)i * e->acts.width, e->hidden * 4);
            e->k->quantize(&e->gathered, row, 0, e->hidden, is_fine(e, FINE_MLP));
        }
}

void route(const Task *t, const Layer *l) {
    Engine *e = t->e;
    const Product product = {l->router, t->tokens, e->scores, e->scored};
    start_added(t, t->acts, &product, 1, strips_of(l->router));
    for (int lo, hi = 0; take_strips(t, strips_of(l->router), &lo, &hi);) {
        e->k->matmul(l->router, t->acts, is_fine(e, FINE_MLP), 0, t->tokens, e->scores, e->scored, lo, hi - lo,
                     t->local->scratch);
        add_added(t, &product, 0, lo, hi - lo);
    }
    barrier(t);
    if (t->alone) {
        route_alone(t);
        return;
    }
    EACH_TOKEN(t, i) route_token(e, e->scores + (size_t)i * e->scored, e->route.picks + (size_t)i * e->m.picked);
    barrier(t);
    if (t->thread == 0) group_tokens(e, t->tokens);
    barrier(t);
    gather(t);
    barrier(t);
}

/* Gate (UP: up) of one expert's rows, whose activations are the token's own where there is but one. */
static Product gate_of(const Task *t, const Matrix *w, const Group *g, int which) {
    const Engine *e = t->e;
    size_t stride = 2 * (size_t)e->expert_inner;
    float *y = e->expert_gate + g->first * stride + which * e->expert_inner;
    return (Product){w + which, g->rows, y, stride, t->alone ? 0 : g->first, g->first};
}

static Product down_of(const Engine *e, const Matrix *w, const Group *g) {
    return (Product){w + DOWN, g->rows, e->expert_out + (size_t)g->first * e->hidden, e->hidden, g->first, g->first};
}

/* Strips [lo, hi) of gate and up for one expert's rows, 32 rows or a multiple, and the next product's activations of them. */
static void gate_up(const Task *t, const Matrix *w, const Group *g, int lo, int hi) {
    const Engine *e = t->e;
    const Acts *acts = t->alone ? t->acts : &e->gathered;
    int count = least(hi, strips_of(w + GATE)) - lo, from = lo * LANES, to = hi * LANES;
    Product products[] = {gate_of(t, w, g, GATE), gate_of(t, w, g, UP)};
    for (int i = 0; count > 0 && i < 2; i++) {
        const Product *p = products + i;
        e->k->matmul(p->w, acts, is_fine(e, FINE_MLP), p->token, p->tokens, p->y, p->stride, lo, count, t->local->scratch);
        add_added(t, p, i, lo, count);
    }
    for (int i = 0; i < g->rows; i++) {
        const float *gate = products[0].y + i * products[0].stride, *upper = products[1].y + i * products[1].stride;
        float *out = e->expert_acts.x + (size_t)(g->first + i) * e->expert_inner;
        e->k->activate(e->m.activation, e->m.swiglu_limit, gate + from, upper + from, out + from, to - from);
        e->k->quantize(&e->expert_acts, g->first + i, from, to, is_fine(e, FINE_DOWN));
    }
}

/* Of one token, threads take strips of all its experts, as if these were one matrix. Of a batch, whose experts have unlike
   numbers of rows, they take the same strips of every expert. */
void gate_up_experts(const Task *t, const Layer *l) {
    const Engine *e = t->e;
    const Route *r = route_of(t);
    int strips = e->expert_inner / LANES, apart = t->alone ? strips : 0, added = 0, turn = 0;
    for (int i = 0; i < 2 * r->count; i++) {
        const Group *g = r->groups + i / 2;
        const Product product = gate_of(t, l->mlp + g->expert * GATED, g, i % 2);
        added |= sum_added(t, t->alone ? t->acts : &e->gathered, &product, i % 2, &turn);
    }
    if (added) barrier(t);
    for (int lo, hi = 0; take_strips(t, strips + apart * (r->count - 1), &lo, &hi);)
        for (int i = 0; i < r->count; i++) {
            int from = most(lo - i * apart, 0), to = least(hi - i * apart, strips);
            if (from < to) gate_up(t, l->mlp + r->groups[i].expert * GATED, r->groups + i, from, to);
        }
    barrier(t);
}

/* Columns [from, to) of a token's results. */
static void add_shares(const Engine *e, const Pick *picks, float *out, int from, int to) {
    for (int c = from; c < to; c++) out[c] = 0.0f;
    for (int k = 0; k < e->m.picked; k++) {
        const float *row = e->expert_out + (size_t)picks[k].row * e->hidden;
        for (int c = from; c < to; c++) out[c] += picks[k].share * row[c];
    }
}

void project_down_experts(const Task *t, const Layer *l) {
    const Engine *e = t->e;
    const Route *r = route_of(t);
    int added = 0, turn = 0;
    for (int i = 0; i < r->count; i++) {
        const Product product = down_of(e, l->mlp + r->groups[i].expert * GATED, r->groups + i);
        added |= sum_added(t, &e->expert_acts, &product, 0, &turn);
    }
    if (added) barrier(t);
    for (int lo, hi = 0; take_strips(t, up(e->m.hidden, LANES) / LANES, &lo, &hi);) {
        for (int i = 0; i < r->count; i++) {
            const Product p = down_of(e, l->mlp + r->groups[i].expert * GATED, r->groups + i);
            e->k->matmul(p.w, &e->expert_acts, is_fine(e, FINE_DOWN), p.token, p.tokens, p.y, p.stride, lo, hi - lo,
                         t->local->scratch);
            add_added(t, &p, 0, lo, hi - lo);
        }
        for (int i = 0; i < t->tokens; i++)
            add_shares(e, r->picks + (size_t)i * e->m.picked, e->out + (size_t)i * e->hidden, lo * LANES, hi * LANES);
    }
}
