/* Low-rank additions to matrices' products, y += scale * b (a x): LoRA (arXiv 2106.09685), beside weights that stay as they are.

   a x is summed in blocks of columns, whose number depends on the matrix alone; threads share groups of 4 rows and blocks. Who
   computes a strip of y adds the blocks up, always in the same order. So neither threads nor chunks change a bit. */
#include <stdlib.h>

#include "alloc.h"
#include "faults.h"
#include "lowrank.h"
#include "threads.h"

enum { PRODUCTS = 3 };           /* at most of the same activations: query, key and value */
enum { PANEL = 32 };             /* tokens whose inputs are at hand together */
enum { BLOCK = 512, BLOCKS = 16 };  /* least columns of a block, most blocks */

static int block_of(int columns) { return most(BLOCK, up((up(columns, TILE) + BLOCKS - 1) / BLOCKS, TILE)); }
static int blocks_of(int columns) { return up(up(columns, TILE), block_of(columns)) / block_of(columns); }
static size_t sums_of(const LowRank *low, int columns) { return (size_t)up(low->rank, 4) * blocks_of(columns); }

static float *row_of(const Engine *e, const Product *p, int part) {
    return e->low + ((size_t)part * e->low_rows + p->row) * e->low_width;
}

/* Some tokens' sums over one block of one group of rows; `to` is the first token's. */
static void sum_block(const Engine *e, const Acts *a, const Product *p, const LowRank *low, int first, int end, int group,
                      int block, float *to) {
    int width = up(p->w->columns, TILE), from = block * block_of(p->w->columns);
    int columns = least(block_of(p->w->columns), width - from);
    const char *rows = (const char *)low->a + ((size_t)group * width + from) * 4 * float_bytes(low->kind);
    for (int i = first; i < end; i++)
        e->k->low_sums(low->kind, rows, a->x + (size_t)(p->token + i) * a->width + from, columns,
                       to + i * e->low_width + (size_t)block * up(low->rank, 4) + group * 4);
}

int sum_added(const Task *t, const Acts *a, const Product *p, int part, int *turn) {
    const Engine *e = t->e;
    if (!e->low_rank || !p->w->added) return 0;
    float *to = row_of(e, p, part);
    for (const LowRank *low = p->w->added; low; to += sums_of(low, p->w->columns), low = low->next)
        for (int first = 0; first < p->tokens; first += PANEL)
            for (int group = 0; group < up(low->rank, 4) / 4; group++)
                for (int block = 0; block < blocks_of(p->w->columns); block++)
                    if ((*turn)++ % t->threads == t->thread)
                        sum_block(e, a, p, low, first, least(first + PANEL, p->tokens), group, block, to);
    return 1;
}

void start_added(const Task *t, const Acts *a, const Product *products, int count, int strips) {
    int any = 0, turn = 0;
    for (int i = 0; i < count; i++) any |= sum_added(t, a, products + i, i, &turn);
    if (any) barrier_before(t, products->w, strips);
}

/* What `b` is multiplied with, of one token: scale * a x, the blocks added up. */
static void add_blocks(const LowRank *low, int blocks, const float *sums, float *out) {
    for (int r = 0; r < low->rank; r++) {
        float sum = 0.0f;
        for (int block = 0; block < blocks; block++) sum += sums[(size_t)block * up(low->rank, 4) + r];
        out[r] = sum * low->scale;
    }
}

void add_added(const Task *t, const Product *p, int part, int strip, int strips) {
    const Engine *e = t->e;
    if (!e->low_rank || !p->w->added) return;
    const float *sums = row_of(e, p, part);
    float *inputs = e->low_inputs + (size_t)t->thread * PANEL * e->low_rank;
    for (const LowRank *low = p->w->added; low; sums += sums_of(low, p->w->columns), low = low->next)
        for (int first = 0; first < p->tokens; first += PANEL) {
            int count = least(PANEL, p->tokens - first), each = count == 1 ? strips : 1;
            for (int i = 0; i < count; i++)
                add_blocks(low, blocks_of(p->w->columns), sums + (first + i) * e->low_width, inputs + (size_t)i * e->low_rank);
            for (int s = strip; s < strip + strips; s += each)
                for (int i = 0; i < count; i++)
                    e->k->low_add(low, inputs + (size_t)i * e->low_rank, p->y + (first + i) * p->stride, s, each);
        }
}

void add_to_row(const Engine *e, int row, float *x) {
    if (!e->low_rank) return;
    for (const LowRank *low = e->m.embed->added; low; low = low->next) e->k->low_row(low, e->m.hidden, row, x);
}

/* ---- which additions there are ---- */

typedef struct { size_t width; int rank, experts; } Sizes;  /* experts: whether an expert has some */

static void measure(Sizes *to, const Matrix *w, int expert) {
    size_t width = 0;
    for (const LowRank *low = w->added; low; low = low->next) {
        width += sums_of(low, w->columns);
        to->rank = most(to->rank, low->rank);
        to->experts |= expert;
    }
    to->width = larger(to->width, width);
}

static Sizes measured(const Model *m) {
    Sizes sizes = {0};
    measure(&sizes, m->embed, 0);
    if (m->head) measure(&sizes, m->head, 0);
    for (int layer = 0; layer < m->layers; layer++) {
        const Layer *l = m->layer + layer;
        for (int i = 0; i < PROJECTIONS; i++) measure(&sizes, l->attention + i, 0);
        for (int i = 0; i < GATED * (l->router ? m->experts : 1); i++) measure(&sizes, l->mlp + i, l->router != NULL);
        if (l->router) measure(&sizes, l->router, 0);
    }
    return sizes;
}

/* Takes note of what is added to the model's matrices now; to be called when that has become other, before the next step. Returns
   what was wrong, in which case the matrices must be as they were before; NULL: nothing. */
const char *engine_adapt(Engine *e) {
    const char *fault = low_ranks_fault(&e->m);
    if (fault) return fault;
    Sizes sizes = measured(&e->m);
    Claims claims = {0};
    size_t rows = larger(up(e->m.batch, LANES), sizes.experts ? expert_rows(&e->m) : 0);
    float *sums = claim(&claims, PRODUCTS * rows * sizes.width * 4);
    float *inputs = claim(&claims, (size_t)e->m.threads * PANEL * sizes.rank * 4);
    if (claims.failed) {
        free(sums), free(inputs);
        return NO_MEMORY;
    }
    free(e->low), free(e->low_inputs);
    e->low = sums, e->low_inputs = inputs, e->low_rows = rows, e->low_width = sizes.width, e->low_rank = sizes.rank;
    return NULL;
}
