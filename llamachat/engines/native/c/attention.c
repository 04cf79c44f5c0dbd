/* Attention: softmax over the slots that a query sees, chunk by chunk, each chunk's partial relative to its own largest score. */
#include <math.h>
#include <string.h>

#include "attention.h"
#include "kv.h"
#include "threads.h"

/* ---- before a step ---- */

/* Which chunks of slots each text may see; returns how many in all. */
size_t find_chunks(Engine *e, const Step *s) {
    size_t all = 0;
    for (int t = 0; t < s->texts; t++) e->texts[t] = (Text){INT32_MAX, 0, 0};
    for (int r = 0; r < s->ranges; r++) {
        const int64_t *range = s->visible + 3 * r;
        Text *text = e->texts + range[2];
        text->base = least(text->base, (int)(range[0] / CHUNK));
        text->chunks = most(text->chunks, up((int)range[1], CHUNK) / CHUNK);  /* their end, for now */
    }
    e->chunks = 0;
    for (int t = 0; t < s->texts; t++) {
        Text *text = e->texts + t;
        text->chunks -= text->base;
        text->at = all;
        all += text->chunks;
        e->chunks = most(e->chunks, text->chunks);
    }
    return all;
}

/* The mask: the position of each slot in a text's chunks that the text may see, INT32_MAX of the others. */
void make_mask(Engine *e, const Step *s, size_t chunks) {
    for (size_t i = 0; i < chunks * CHUNK; i++) e->mask[i] = INT32_MAX;
    for (int r = 0; r < s->ranges; r++) {
        const int64_t *range = s->visible + 3 * r;
        const Text *text = e->texts + range[2];
        int32_t *mask = e->mask + text->at * CHUNK;
        for (int64_t slot = range[0]; slot < range[1]; slot++)
            mask[slot - (int64_t)text->base * CHUNK] = (int32_t)e->position[slot];
    }
    for (size_t block = 0; block < chunks * (CHUNK / LANES); block++) {
        e->first[block] = INT32_MAX, e->last[block] = INT32_MIN;
        for (int i = 0; i < LANES; i++) {
            int at = e->mask[block * LANES + i];
            e->first[block] = least(e->first[block], at);
            if (at != INT32_MAX) e->last[block] = most(e->last[block], at);
        }
    }
}

/* A unit is up to ROWS queries of one run and the heads of one group. */
void find_units(Engine *e, const Step *s) {
    e->units = 0;
    for (int r = 0; r < s->run_count; r++) {
        const int32_t *run = s->runs + 3 * r;
        e->runs[r] = (Run){run[0], run[1], run[2], e->units};
        e->units += up((run[1] - run[0]) * queries_per_key(e), ROWS) / ROWS * e->m.kv_heads;
    }
}

/* ---- in each layer ---- */

/* The rows of queries (token by token of a run, heads of a group within) that one call attends with. */
typedef struct {
    const float *q[ROWS];
    float *out[ROWS];
    int32_t position[ROWS];
    const Text *text;
    int head[ROWS];
    int rows, group, low, high;
} Queries;

/* The run that a unit is of, by bisection. */
static const Run *run_of(const Engine *e, int runs, int unit) {
    int low = 0, high = runs;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (e->runs[middle].unit <= unit) low = middle;
        else high = middle;
    }
    return e->runs + low;
}

/* The queries of a unit; rows is 0 where no query of the unit is still needed. */
static Queries queries_of(const Task *t, int unit) {
    const Engine *e = t->e;
    const Run *run = run_of(e, t->s->run_count, unit);
    int per = queries_per_key(e), row = (unit - run->unit) / e->m.kv_heads * ROWS;
    Queries u = {.text = e->texts + run->text, .group = (unit - run->unit) % e->m.kv_heads, .low = INT32_MAX, .high = INT32_MIN};
    for (; u.rows < ROWS && run->first + (row + u.rows) / per < least(run->end, t->tokens); u.rows++) {
        int token = run->first + (row + u.rows) / per, head = u.group * per + (row + u.rows) % per;
        u.head[u.rows] = head;
        u.q[u.rows] = e->qkv_out + (size_t)token * e->qkv + head * e->m.head_dim;
        u.out[u.rows] = e->acts.x + (size_t)token * e->acts.width + head * e->m.head_dim;
        u.position[u.rows] = (int32_t)t->s->positions[token];
        u.low = least(u.low, u.position[u.rows]);
        u.high = most(u.high, u.position[u.rows]);
    }
    return u;
}

/* Partials of nothing yet: their largest score is -infinity. */
static void start_parts(const Engine *e, float *part, int rows) {
    for (int r = 0; r < rows; r++) {
        memset(part + r * part_size(e), 0, part_size(e) * 4);
        part[r * part_size(e)] = -INFINITY;
    }
}

/* Of a chunk of slots the blocks that some of the queries see, from the at-th of the mask on. slots is 0 where they see none. */
typedef struct {
    int chunk, slots;
    size_t at;
    const char *keys, *values;
    const float *k_scale, *v_scale;
} Seen;

static Seen seen_in(const Task *t, int layer, const Queries *u, int chunk) {
    const Engine *e = t->e;
    Seen seen = {.chunk = chunk};
    if (chunk >= u->text->chunks) return seen;
    int window = e->m.layer[layer].window, lo = 0, hi = CHUNK / LANES;
    size_t at = (u->text->at + chunk) * CHUNK, slot = (size_t)(u->text->base + chunk) * CHUNK;
    const int32_t *first = e->first + at / LANES, *last = e->last + at / LANES;
    while (lo < hi && !(first[lo] <= u->high && last[lo] > u->low - window)) lo++;
    while (hi > lo && !(first[hi - 1] <= u->high && last[hi - 1] > u->low - window)) hi--;
    if (lo == hi) return seen;
    seen.slots = (hi - lo) * LANES, seen.at = at + lo * LANES, slot += lo * LANES;
    seen.keys = kv_at(e, layer, 0, u->group, slot), seen.values = kv_at(e, layer, 1, u->group, slot);
    const float *scales[2] = {kv_scales(e, layer, 0, u->group), kv_scales(e, layer, 1, u->group)};
    seen.k_scale = scales[0] ? scales[0] + slot : NULL, seen.v_scale = scales[1] ? scales[1] + slot : NULL;
    return seen;
}

/* In the first of the chunks from this one on in which they see any. */
static Seen seen_from(const Task *t, int layer, const Queries *u, int chunk) {
    Seen seen = {0};
    while (u->rows && !seen.slots && chunk < u->text->chunks) seen = seen_in(t, layer, u, chunk++);
    return seen;
}

/* Attention over what the queries see in a chunk, to a partial of each [rows][PART + dim]; `next` is read after it. */
static void attend_seen(const Task *t, int layer, const Queries *u, const Seen *seen, const Seen *next, float *part) {
    const Engine *e = t->e;
    const void *then = next->slots ? next->keys : seen->keys;
    Keys keys = {seen->keys, seen->values, then, seen->k_scale, seen->v_scale, e->mask + seen->at, e->m.kv_kind, e->dim,
                 e->m.layer[layer].window, e->m.softcap};
    e->k->attend(&keys, u->q, u->position, u->rows, seen->slots, part);
}

/* Adds the partials of one chunk to those of the chunks before. */
static void merge_rows(const Engine *e, float *into, const float *part, int rows) {
    for (int r = 0; r < rows; r++) e->k->merge(into + r * part_size(e), part + r * part_size(e), e->dim);
}

/* Divides the weighted sums of values by softmax's denominator, which a sink adds to: the activations that the output projection
   reads. A sink far above all scores makes it infinite, and leaves nothing of the values. Values that are
   kept rotated are rotated back. */
static void finish_softmax(const Engine *e, int layer, const Queries *u, const float *part) {
    const float *sinks = e->m.layer[layer].sinks;
    for (int r = 0; r < u->rows; r++, part += part_size(e)) {
        float sum = part[1] + (sinks ? expf(sinks[u->head[r]] - part[0]) : 0.0f);
        for (int d = 0; d < e->m.head_dim; d++) u->out[r][d] = part[PART + d] / sum;
        if (e->m.kv_kind == Q4) e->k->hadamard(u->out[r], e->m.head_dim);
    }
}

/* Each unit over all of its chunks, whose partials are merged as they come. */
static void attend_units(const Task *t, int layer) {
    const Engine *e = t->e;
    float *all = t->local->part, *part = all + ROWS * part_size(e);
    for (int lo, hi = 0; take_units(t, e->units, &lo, &hi);) {
        Queries queries[2] = {queries_of(t, lo), {0}};
        Seen seen = seen_from(t, layer, queries, 0);
        for (int unit = lo; unit < hi; unit++) {
            const Queries *u = queries + (unit - lo) % 2;
            Queries *coming = queries + (unit - lo + 1) % 2;
            if (unit + 1 < hi) *coming = queries_of(t, unit + 1);
            else coming->rows = 0;
            Seen first = seen_from(t, layer, coming, 0);
            start_parts(e, all, u->rows);
            while (seen.slots) {
                Seen later = seen_from(t, layer, u, seen.chunk + 1);
                attend_seen(t, layer, u, &seen, later.slots ? &later : &first, part);
                merge_rows(e, all, part, u->rows);
                seen = later;
            }
            finish_softmax(e, layer, u, all);
            seen = first;
        }
    }
}

/* Each unit and chunk by itself, its partial kept in e->parts [chunks][units][ROWS][PART + dim]. */
static void attend_cuts(const Task *t, int layer) {
    const Engine *e = t->e;
    for (int lo, hi = 0; take_units(t, e->units * e->chunks, &lo, &hi);) {
        Queries coming = queries_of(t, lo % e->units);
        Seen next = seen_in(t, layer, &coming, lo / e->units);
        for (int i = lo; i < hi; i++) {
            Queries u = coming;
            Seen seen = next;
            if (i + 1 < hi) coming = queries_of(t, (i + 1) % e->units), next = seen_in(t, layer, &coming, (i + 1) / e->units);
            float *to = e->parts + (size_t)i * ROWS * part_size(e);
            if (u.rows && seen.slots) attend_seen(t, layer, &u, &seen, &next, to);
            else start_parts(e, to, u.rows);
        }
    }
}

/* What attend_cuts left, merged in the same order as attend_units has. */
static void merge_cuts(const Task *t, int layer) {
    const Engine *e = t->e;
    float *all = t->local->part;
    for (int unit = t->thread; unit < e->units; unit += t->threads) {
        Queries u = queries_of(t, unit);
        start_parts(e, all, u.rows);
        for (int chunk = 0; chunk < e->chunks; chunk++)
            merge_rows(e, all, e->parts + ((size_t)chunk * e->units + unit) * ROWS * part_size(e), u.rows);
        finish_softmax(e, layer, &u, all);
    }
}

/* Few queries, such as those of one token, are cut along the slots as well, so that all threads have work. */
void attention(const Task *t, int layer) {
    const Engine *e = t->e;
    const Matrix *next = e->m.layer[layer].attention + OUTPUT;
    if (e->units > cut_units(e) || e->chunks == 1) {
        attend_units(t, layer);
    } else {
        attend_cuts(t, layer);
        barrier_before(t, next, strips_of(next));
        merge_cuts(t, layer);
    }
    barrier_before(t, next, strips_of(next));
}
