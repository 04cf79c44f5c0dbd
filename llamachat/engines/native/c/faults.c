/* Whether what comes from Python is what the code is right for. Every bound that keeps a read or a write inside its array is
   checked here, or in pack.c, whatever Python has checked before. */
#include "faults.h"
#include "kernels.h"

static int within(int64_t value, int64_t low, int64_t high) { return low <= value && value <= high; }

/* Whether this is a way of coding that kernels know. */
static int is_coding(const Matrix *w) {
    int four = w->kind == Q4, flat = w->subs == 2;
    switch (w->scaling) {
    case HALVES: return w->kind == Q8 || four || (w->kind == Q5 && flat);
    case EXPONENTS: return four && flat && w->tabled && !w->wide && !w->minimum;
    case BYTES:
        if (!flat) return w->kind == Q6 && !w->minimum;
        return (four && !w->wide && w->minimum == !w->tabled) || (w->kind == Q5 && w->minimum);
    case NIBBLES: return w->kind == Q2 && !flat && w->minimum;
    case SIXES: return w->kind == Q3 && !flat && !w->minimum;
    default: return 0;
    }
}

static int is_short(const uint8_t table[16]) {
    for (int i = 0; i < 16; i++)
        if (table[i] > 31) return 0;
    return 1;
}

/* Why it cannot be a matrix, in words; NULL: it can. Its data, if there is any, must be all there. */
const char *matrix_fault(const Matrix *w) {
    if (!within(w->kind, F32, Q6)) return "a kind of weights that is not known";
    if (!within(w->rows, 1, MAX_VOCAB) || !within(w->columns, 1, MAX_INNER)) return "a matrix of impossible size";
    if (w->subs != 2 && w->subs != 4) return "scales for neither 16 nor 32 columns";
    if (!within(w->minimum, 0, 1) || !within(w->tabled, 0, w->kind == Q4) || !within(w->wide, 0, w->tabled))
        return "a flag that is none";
    if (w->wide && w->subs != 2) return "a table of its own for groups of 16 columns";
    if (!within(w->first, -128, 127)) return "codes that begin beyond 8 bits";
    if (w->kind > BF16 && !is_coding(w)) return "a way of coding that is not known";
    if (w->scaling == EXPONENTS && !is_short(w->table)) return "a table of too large numbers";
    if (w->scaling >= BYTES && w->columns % SUPER) return "columns that 256 does not divide";
    if (w->data && ((uintptr_t)w->data % TILE || w->bytes < matrix_bytes(w)))
        return "packed weights that are cut off or not aligned";
    return NULL;
}

/* Why a model of these sizes cannot be run, in words; NULL: it can. Looks at the numbers only. */
const char *model_fault(const Model *m) {
    if (!within(m->head_dim, 2, DIM)) return "heads of more than 1024 elements";
    if (m->head_dim % 2) return "heads of an odd number of elements";
    if (!within(m->hidden, 1, MAX_HIDDEN)) return "a hidden size above 2^20";
    if (!within(m->inner, m->experts ? 0 : 1, MAX_INNER) || !within(m->expert_inner, m->experts ? 1 : 0, MAX_INNER))
        return "an intermediate size above 2^22";
    if (!within(m->vocab, 1, MAX_VOCAB)) return "a vocabulary above 2^24";
    if (!within(m->outputs, 0, MAX_VOCAB)) return "a head of more than 2^24 rows";
    if (!within(m->layers, 1, MAX_LAYERS)) return "more than 1024 layers";
    if (!within(m->heads, 1, MAX_HEADS) || !within(m->kv_heads, 1, MAX_HEADS)) return "more than 4096 heads";
    if (m->heads % m->kv_heads) return "heads that do not share keys evenly";
    if (!within(m->kv_kind, F32, Q4)) return "keys of a type that is not known";
    if (!within(m->threads, 1, MAX_THREADS)) return "more than 1024 threads";
    if (!within(m->slots, 1, MAX_SLOTS)) return "a context above 2^30 tokens";
    if (!within(m->batch, 1, MAX_BATCH)) return "batches of more than 4096 tokens";
    if (!within(m->activation, SILU, ACTIVATIONS - 1)) return "an activation function that is not known";
    if (!within(m->ropes, 0, MAX_ROPES)) return "more than two ways to rotate";
    if (!within(m->experts, 0, MAX_EXPERTS)) return "more than 4096 experts";
    if (!within(m->picked, m->experts ? 1 : 0, m->experts)) return "more experts a token than there are";
    if (!within(m->query_span, 0, INT32_MAX)) return "a span of positions that is none";
    if (!within(m->fine, 0, FINE_ALL) || !within(m->whole_norms, 0, 1) || !within(m->whole_softmax, 0, 1))
        return "a flag that is none";
    int64_t units = (int64_t)m->kv_heads * up(m->heads / m->kv_heads, ROWS) / ROWS, chunks = up(m->slots, CHUNK) / CHUNK;
    if ((units > 4 * m->threads ? units : 4 * m->threads) * chunks > INT32_MAX) return "too many heads for so long a context";
    return NULL;
}

static int is_shaped(const Matrix *w, int rows, int columns) {
    return w && w->data && w->rows == rows && w->columns == columns && !matrix_fault(w);
}

static int are_shaped(const Matrix *w, int count, const int shapes[][2]) {
    for (int i = 0; i < count; i++)
        if (!w || !is_shaped(w + i, shapes[i][0], shapes[i][1])) return 0;
    return 1;
}

static const char *mixture_fault(const Model *m, const Layer *l) {
    const int expert[GATED][2] = {{m->expert_inner, m->hidden}, {m->expert_inner, m->hidden}, {m->hidden, m->expert_inner}};
    if (!m->experts || !is_shaped(l->router, m->experts, m->hidden)) return "a router of another model";
    for (int i = 0; i < m->experts; i++)
        if (!l->mlp || !are_shaped(l->mlp + i * GATED, GATED, expert)) return "experts of another model";
    return NULL;
}

static const char *layer_fault(const Model *m, const Layer *l) {
    int attn = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const int attention[PROJECTIONS][2] = {{attn, m->hidden}, {kv, m->hidden}, {kv, m->hidden}, {m->hidden, attn}};
    const int gated[GATED][2] = {{m->inner, m->hidden}, {m->inner, m->hidden}, {m->hidden, m->inner}};
    if (!within(l->rope, -1, m->ropes - 1)) return "a way to rotate that is not there";
    if (l->window < 1) return "a window of nothing";
    if (!l->q_norm != !l->k_norm) return "a norm of queries or keys alone";
    if (!are_shaped(l->attention, PROJECTIONS, attention)) return "weights of another model";
    if (l->router) return mixture_fault(m, l);
    return are_shaped(l->mlp, GATED, gated) ? NULL : "weights of another model";
}

/* Why these weights are not those of such a model; NULL: they are. */
const char *weights_fault(const Model *m) {
    if (!m->norm || !m->layer || (m->ropes && !m->rope)) return "weights that are missing";
    for (int i = 0; i < m->ropes; i++)
        if (!m->rope[i].frequency || !within(m->rope[i].dim, 2, m->head_dim) || m->rope[i].dim % 2)
            return "an impossible rotation";
    if (!is_shaped(m->embed, m->vocab, m->hidden)) return "an embedding of another model";
    if (m->outputs ? !is_shaped(m->head, m->outputs, m->hidden) : m->head != NULL) return "a head of another model";
    for (int layer = 0; layer < m->layers; layer++) {
        const char *fault = layer_fault(m, m->layer + layer);
        if (fault) return fault;
    }
    return NULL;
}

static const char *low_rank_fault(const Matrix *w) {
    int count = 0;
    for (const LowRank *low = w->added; low; low = low->next) {
        if (!within(low->kind, F32, BF16) || !within(low->rank, 1, MAX_RANK) || ++count > MAX_ADDED)
            return "an addition of impossible rank or kind";
        size_t size = float_bytes(low->kind);
        size_t a = (size_t)up(low->rank, 4) * up(w->columns, TILE), b = (size_t)low->rank * up(w->rows, LANES);
        if (!low->a || !low->b || (uintptr_t)low->a % TILE || (uintptr_t)low->b % TILE) return "an addition that is not aligned";
        if (low->a_bytes < a * size || low->b_bytes < b * size) return "an addition that is cut off";
    }
    return NULL;
}

/* Why what is added to the matrices of a model without fault cannot be; NULL: it can. */
const char *low_ranks_fault(const Model *m) {
    const char *fault = low_rank_fault(m->embed);
    if (!fault && m->head) fault = low_rank_fault(m->head);
    for (int layer = 0; layer < m->layers; layer++) {
        const Layer *l = m->layer + layer;
        for (int i = 0; !fault && i < PROJECTIONS; i++) fault = low_rank_fault(l->attention + i);
        for (int i = 0; !fault && i < GATED * (l->router ? m->experts : 1); i++) fault = low_rank_fault(l->mlp + i);
        if (!fault && l->router) fault = low_rank_fault(l->router);
    }
    return fault;
}

/* Why these cannot be slots and positions of an engine with so many slots; NULL: they can. */
const char *places_fault(int slots, const int64_t *slot, const int64_t *position, int count) {
    for (int i = 0; i < count; i++) {
        if (!within(slot[i], 0, slots - 1)) return "a slot that is not there";
        if (position && !within(position[i], 0, INT32_MAX - 1)) return "a position of 2^31 or more";
    }
    return NULL;
}

/* Why a step cannot be run; NULL: it can. Ranges and runs lie text by text, and every text has some of the former. */
const char *step_fault(const Model *m, const Step *s) {
    if (!within(s->tokens, 1, m->batch) || !within(s->wanted, 0, s->tokens)) return "too many tokens in a step";
    if (!within(s->hidden, !m->outputs, 1)) return "a step for logits of a model without a head";
    if (!within(s->texts, 1, m->slots)) return "a step of no text";
    for (int i = 0; i < s->tokens; i++)
        if (!within(s->ids[i], 0, m->vocab - 1)) return "a token that is not in the vocabulary";
    int64_t text = -1;
    for (int i = 0; i < s->ranges; i++) {
        const int64_t *range = s->visible + 3 * i;
        if (!within(range[0], 0, range[1] - 1) || range[1] > m->slots) return "a range of slots that are not there";
        if (!within(range[2], text < 0 ? 0 : text, text + 1) || range[2] >= s->texts) return "a range of slots of no text";
        text = range[2];
    }
    if (text != s->texts - 1) return "a text that sees nothing";
    int end = 0;
    for (int i = 0; i < s->run_count; i++) {
        const int32_t *run = s->runs + 3 * i;
        if (run[0] != end || run[1] <= end || run[1] > s->tokens || !within(run[2], 0, s->texts - 1)) return "a run of no tokens";
        end = run[1];
    }
    if (end != s->tokens) return "tokens of no run";
    return places_fault(m->slots, s->slots, s->positions, s->tokens);
}
