/* A decoder's forward pass: who computes what, and in which order. The arithmetic is in kernels.c.

   One parallel region runs all layers; its threads meet at barriers. With one token, each thread repeats the small work
   (norms, quantizing) on a copy of its own rather than wait for another; with more, tokens are dealt out. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif
#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "engine.h"

/* Rounding activations to 8 bits costs SmolLM2 (Q4_1) a mean KL divergence of 0.0030, of which the head's share is 0.0010,
   that of query, key and value 0.0009. These two are a small part of all multiplications; with 15 bits there it is 0.0012. */
enum { FINE_QKV = 1, FINE_HEAD = 1 };

enum { FEW = 64 };  /* so many tokens' keys are turned sooner than another thread is woken */
enum { CUT = 4 };  /* strips: what kernels like to have side by side, and a group of activations' columns */
enum { SPINS = 1000 };  /* some 10 to 50 microseconds */

typedef struct { int base, chunks; size_t at; } Text;  /* the chunks of slots it may see, from the base-th; from the at-th of `seen` */
typedef struct { int first, end, text, unit; } Run;    /* its work in attention starts with this unit */

typedef struct {
    _Alignas(64) atomic_int arrived, sleepers;
    _Alignas(64) atomic_int round;
    _Alignas(64) atomic_int taken;  /* how much of the work since the last meeting has been taken */
} Team;

typedef struct { Acts acts; float *x, *part; void *unpacked; } Own;  /* what each thread has to itself */

typedef struct {
    Model m;
    const Kernels *k;
    int hidden, inner, attn, qkv, dim, cap;  /* padded: columns of activations, of the fused query-key-value row, head_dim, slots */
    Own *own;
    Acts acts, mlp;                          /* of a batch */
    float *x, *out, *qkv_out, *gate, *cosine, *sine, *parts;
    Text *texts;                             /* of this step; and for the chunks of each, one text after the other: */
    int32_t *seen, *first, *last;            /* position of each slot or INT32_MAX; the least and largest seen of each block */
    size_t texts_room, chunks_room;
    Run *runs;
    int units, chunks;                       /* of all runs; of the text that has most */
    int64_t *position;                       /* of each slot */
    char *kv;                                /* [chunks][layers][kv_heads][2][CHUNK * dim] */
    float *kv_scale;                         /* [layers][2][kv_heads][cap] */
    size_t kv_bytes;
    Team team;
} Engine;

/* ---- memory ---- */

static void *zeroed(size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 64 + 63) / 64 * 64);
    return p ? memset(p, 0, bytes + 64) : NULL;
}

/* What an engine holds besides keys and values is claimed piece by piece; or only counted, to know what it will be. */
typedef struct { size_t bytes; int counting, failed; } Claims;

static void *claim(Claims *c, size_t bytes) {
    c->bytes += bytes;
    if (c->counting || c->failed) return NULL;
    void *p = zeroed(bytes);
    c->failed = !p;
    return p;
}

/* Pages come when they are first written, so that a long context costs what is used of it. */
static void *reserve(size_t bytes) {
#if defined(__linux__)
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) return NULL;
    madvise(p, bytes, MADV_HUGEPAGE);
    return p;
#else
    return calloc(1, bytes);
#endif
}

static void release(void *p, size_t bytes) {
#if defined(__linux__)
    if (p) munmap(p, bytes);
#else
    (void)bytes;
    free(p);
#endif
}

static Acts claim_acts(Claims *c, int tokens, int width) {
    size_t groups = (size_t)tokens * width / GROUP;
    return (Acts){width, 1, claim(c, groups * GROUP * 4), claim(c, groups * GROUP), claim(c, groups * GROUP), claim(c, groups * 4),
                  claim(c, groups * 4), claim(c, groups * 8), claim(c, groups * 4), claim(c, groups * 8)};
}

static void free_acts(Acts *a) {
    free(a->x), free(a->high), free(a->low), free(a->scale), free(a->sum32), free(a->sum16), free(a->mass32), free(a->mass16);
}

static size_t element(int kind) { return kind == F32 ? 4 : kind == Q8 ? 1 : 2; }
static size_t part_size(const Engine *e) { return PART + e->dim; }
static int group_rows(const Engine *e) { return e->m.heads / e->m.kv_heads; }
static int most(int a, int b) { return a > b ? a : b; }
static int least(int a, int b) { return a < b ? a : b; }

/* Work on a few queries is cut along the slots too: up to so many units, and always that on one token. */
static int cut_units(const Engine *e) { return most(e->m.kv_heads * (up(group_rows(e), ROWS) / ROWS), 4 * e->m.threads); }

/* For what so many texts see, so many chunks of slots in all. */
static int make_room(Engine *e, size_t texts, size_t chunks) {
    if (texts > e->texts_room) {
        free(e->texts);
        e->texts_room = (e->texts = zeroed(texts * sizeof *e->texts)) ? texts : 0;
    }
    if (chunks > e->chunks_room) {
        free(e->seen), free(e->first), free(e->last);
        e->seen = zeroed(chunks * CHUNK * 4);
        e->first = zeroed(chunks * CHUNK / LANES * 4), e->last = zeroed(chunks * CHUNK / LANES * 4);
        e->chunks_room = e->seen && e->first && e->last ? chunks : 0;
    }
    return texts <= e->texts_room && chunks <= e->chunks_room;
}

void engine_free(Engine *e) {
    if (!e) return;
    for (int t = 0; e->own && t < e->m.threads; t++) {
        free_acts(&e->own[t].acts);
        free(e->own[t].x), free(e->own[t].part), free(e->own[t].unpacked);
    }
    free_acts(&e->acts), free_acts(&e->mlp);
    free(e->own), free(e->x), free(e->out), free(e->qkv_out), free(e->gate), free(e->cosine), free(e->sine), free(e->parts);
    free(e->texts), free(e->seen), free(e->first), free(e->last), free(e->runs), free(e->position), free(e->kv_scale);
    release(e->kv, e->kv_bytes);
    free(e);
}

static void claim_all(Engine *e, Claims *c) {
    const Model *m = &e->m;
    size_t batch = up(m->batch, LANES), chunks = e->cap / CHUNK;
    int width = most(e->hidden, e->attn);
    e->acts = claim_acts(c, batch, width);
    e->mlp = claim_acts(c, batch, e->inner);
    e->own = claim(c, m->threads * sizeof *e->own);
    for (int t = 0; t < m->threads; t++) {
        Own own = {claim_acts(c, 1, width), claim(c, (size_t)e->hidden * 4), claim(c, 2 * ROWS * part_size(e) * 4), claim(c, SCRATCH)};
        if (e->own) e->own[t] = own;
    }
    e->x = claim(c, batch * e->hidden * 4);
    e->out = claim(c, batch * e->hidden * 4);
    e->qkv_out = claim(c, batch * e->qkv * 4);
    e->gate = claim(c, batch * 2 * e->inner * 4);
    e->cosine = claim(c, batch * m->head_dim * 2);
    e->sine = claim(c, batch * m->head_dim * 2);
    e->parts = claim(c, (size_t)cut_units(e) * ROWS * chunks * part_size(e) * 4);
    e->runs = claim(c, batch * sizeof *e->runs);
    e->position = claim(c, (size_t)e->cap * 8);
}

/* An engine of this shape that holds nothing yet. */
static Engine shaped(const Model *m) {
    return (Engine){
        .m = *m,
        .hidden = up(m->hidden, TILE),
        .inner = up(m->inner, TILE),
        .attn = up(m->heads * m->head_dim, TILE),
        .qkv = up((m->heads + 2 * m->kv_heads) * m->head_dim, LANES) + 2 * LANES,  /* each of the three is padded to a strip */
        .dim = up(m->head_dim, LANES),
        .cap = up(m->slots, CHUNK),
    };
}

/* Bytes that an engine of these sizes holds besides weights, keys and values; only for a model without fault. */
size_t engine_workspace(const Model *m) {
    Engine e = shaped(m);
    Claims counted = {.counting = 1};
    claim_all(&e, &counted);
    return counted.bytes;
}

/* NULL where it cannot be; then `why` says so, unless memory is what it lacks. */
Engine *engine_new(const Model *m, const char *kernels, const char **why) {
    const Kernels *k = select_kernels(kernels);
    Claims claims = {0};
    *why = model_fault(m);
    if (!*why) *why = weights_fault(m);
    if (!*why && !k) *why = "kernels that this processor cannot run";
    Engine *e = *why ? NULL : zeroed(sizeof *e);
    if (!e) return NULL;
    *e = shaped(m);
    e->k = k;
    claim_all(e, &claims);
    size_t heads = (size_t)m->layers * 2 * m->kv_heads;
    e->kv_bytes = heads * e->cap * e->dim * element(m->kv_kind);
    int ok = !claims.failed && make_room(e, 1, e->cap / CHUNK) && (e->kv = reserve(e->kv_bytes)) &&
             (e->kv_scale = zeroed(m->kv_kind == Q8 ? heads * e->cap * 4 : 0));
    if (!ok) {
        engine_free(e);
        return NULL;
    }
    for (int slot = 0; slot < e->cap; slot++) e->position[slot] = INT32_MAX;  /* not yet written: later than every query */
    return e;
}

/* ---- threads ---- */

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* All threads wait for each other. Meetings are microseconds apart, so they spin, and meanwhile fetch what they read next; but
   only so long: when another program has a core, the thread that waits must sleep, so that the one waited for can have it. */
static void meet(Team *team, int threads, const uint8_t *next, const uint8_t *end) {
    int round = atomic_load_explicit(&team->round, memory_order_relaxed);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == threads) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->taken, 0, memory_order_relaxed);
        atomic_store(&team->round, round + 1);
#if defined(__linux__)
        if (atomic_load(&team->sleepers)) syscall(SYS_futex, &team->round, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
#endif
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round; spins++) {
        for (int i = 0; i < 4 && next < end; i++, next += 64) __builtin_prefetch(next, 0, 2);
        relax();
#if defined(__linux__)
        if (spins < SPINS) continue;
        atomic_fetch_add(&team->sleepers, 1);
        syscall(SYS_futex, &team->round, FUTEX_WAIT_PRIVATE, round, NULL, NULL, 0);
        atomic_fetch_sub(&team->sleepers, 1);
#endif
    }
}

/* What a thread knows of the step it works on. */
typedef struct {
    Engine *e;
    const Step *s;
    int thread, threads, tokens; /* tokens: so many of the first ones are still needed */
    int alone;                   /* one token: norms and quantizing are repeated by each thread */
    Own *own;
    Acts *acts;
    float *x;                    /* residual stream [tokens][hidden] */
} Task;

static int strips_of(const Matrix *w) { return up(w->rows, LANES) / LANES; }

/* Of so many strips each thread has some to itself; the rest, a quarter, goes to who comes first. */
static int own_share(const Task *t, int strips) { return strips * 3 / (4 * t->threads) / CUT * CUT; }

/* Before the next product, of so many strips, whose first matrix this is. */
static void meet_before(const Task *t, const Matrix *next, int strips) {
    int own = own_share(t, strips), first = least(own * t->thread, strips_of(next)), end = least(first + own, strips_of(next));
    if (!t->alone) first = end;
    meet(&t->e->team, t->threads, next->data + strip_bytes(next) * first, next->data + strip_bytes(next) * end);
}
static void meet_all(const Task *t) { meet(&t->e->team, t->threads, NULL, NULL); }
static int qkv_strips(const Matrix *w) { return strips_of(w + QUERY) + strips_of(w + KEY) + strips_of(w + VALUE); }
static void meet_tokens(const Task *t) { if (!t->alone) meet_all(t); }

/* The tokens that this thread works on one by one: neighbours, for the activations of neighbours share lines of the cache. */
static int first_token(const Task *t, int thread) { return t->alone ? 0 : (int)((int64_t)t->tokens * thread / t->threads); }
static int end_token(const Task *t) { return t->alone ? t->tokens : first_token(t, t->thread + 1); }
#define EACH_TOKEN(t, i) for (int i = first_token(t, (t)->thread); i < end_token(t); i++)

typedef struct { const Matrix *w; int tokens; float *y; size_t stride; } Product;

/* Takes the next part [lo, hi) of `total` equal pieces of work since the last meeting, *hi being 0 at first, and each thread
   having `own` to itself; 0 when all is taken. Parts are multiples of `cut` and shrink, so that threads end together although
   one may have been interrupted, or runs on a slower core. */
static int take(const Task *t, int total, int own, int cut, int *lo, int *hi) {
    atomic_int *taken = &t->e->team.taken;
    if (*hi == 0 && own) {
        *lo = own * t->thread, *hi = *lo + own;
        return 1;
    }
    int start = atomic_load_explicit(taken, memory_order_relaxed), size, left;
    do {
        left = total - own * t->threads - start;
        if (left <= 0) return 0;
        size = least(left, up(most(1, left * 3 / (4 * t->threads)), cut));
    } while (!atomic_compare_exchange_weak_explicit(taken, &start, start + size, memory_order_relaxed, memory_order_relaxed));
    *lo = own * t->threads + start, *hi = *lo + size;
    return 1;
}

static int take_strips(const Task *t, int total, int *lo, int *hi) { return take(t, total, own_share(t, total), CUT, lo, hi); }
static int take_units(const Task *t, int total, int *lo, int *hi) { return take(t, total, 0, 1, lo, hi); }

/* Products of the same activations. */
static void multiply(const Task *t, const Acts *a, int fine, const Product *products, int count) {
    int total = 0, lo, hi = 0;
    for (int i = 0; i < count; i++) total += strips_of(products[i].w);
    while (take_strips(t, total, &lo, &hi))
        for (int i = 0, start = 0; i < count; start += strips_of(products[i++].w)) {
            const Product *p = &products[i];
            int from = most(lo - start, 0), to = least(hi - start, strips_of(p->w));
            if (from < to)
                t->e->k->matmul(p->w, a, fine, 0, p->tokens, p->y, p->stride, from, to - from, t->own->unpacked);
        }
}

/* ---- keys and values ---- */

/* Of one head's keys or values; see `place` for where in it. Slots lie chunk by chunk, so that few of them take little memory;
   in a chunk, what a layer's attention reads lies in the order of reading. */
static char *plane(const Engine *e, int layer, int value, int head) {
    size_t index = ((size_t)layer * e->m.kv_heads + head) * 2 + value;
    return e->kv + index * CHUNK * e->dim * element(e->m.kv_kind);
}

static float *scales(const Engine *e, int layer, int value, int head) {
    return e->kv_scale + (((size_t)layer * 2 + value) * e->m.kv_heads + head) * e->cap;
}

/* Where element d of a slot's key or value lies. */
static inline size_t place(const Engine *e, int value, int64_t slot, int d) {
    size_t planes = (size_t)e->m.layers * 2 * e->m.kv_heads, chunk = slot / CHUNK * planes * CHUNK * e->dim, at = slot % CHUNK;
    int four = e->m.kv_kind == Q8 ? 4 : 1;  /* elements of a row side by side */
    if (value) return chunk + (at / four * e->dim + d) * four + at % four;
    return chunk + (at / LANES * e->dim + d / four * four) * LANES + at % LANES * four + d % four;
}

/* n elements of `bytes` bytes (1, 2 or 4), `four` of them side by side every `step` elements, out to a row or back in. */
static inline __attribute__((always_inline)) void stride(size_t bytes, char *held, char *row, int n, int four, size_t step, int out) {
    for (int d = 0; d < n; d += four)
        for (int i = 0; i < four && d + i < n; i++) {
            char *at = held + (d / four * step + i) * bytes, *here = row + (d + i) * bytes;
            memcpy(out ? here : at, out ? at : here, bytes);
        }
}

/* A slot's key or value out to a row of elements, or back in. */
static void copy(const Engine *e, int layer, int value, int head, int64_t slot, char *row, int out) {
    size_t bytes = element(e->m.kv_kind);
    char *held = plane(e, layer, value, head) + place(e, value, slot, 0) * bytes;
    int n = e->m.head_dim;
    if (bytes == 1 && value) stride(1, held, row, n, 1, 4, out);
    else if (bytes == 1) stride(1, held, row, n, 4, 4 * LANES, out);
    else if (value) memcpy(out ? row : held, out ? held : row, n * bytes);
    else if (bytes == 2) stride(2, held, row, n, 1, LANES, out);
    else stride(4, held, row, n, 1, LANES, out);
}

static void keep(const Engine *e, int layer, int value, int head, int64_t slot, const float *x) {
    _Alignas(64) char narrow[4 * DIM];
    float scale = e->k->narrow(e->m.kv_kind, x, narrow, e->m.head_dim);
    if (e->m.kv_kind == Q8) scales(e, layer, value, head)[slot] = scale;
    copy(e, layer, value, head, slot, narrow, 0);
}

static void angles(const Engine *e, double position, float factor, float *cosine, float *sine) {
    for (int i = 0; i < e->m.head_dim / 2; i++) {
        cosine[i] = (float)cos(position * e->m.frequency[i]) * factor;
        sine[i] = (float)sin(position * e->m.frequency[i]) * factor;
    }
}

/* Rotates queries and keys and stores keys and values. Heads are dealt out with runs of tokens: a block of keys has 16 slots. */
static void remember(const Task *t, int layer) {
    const Engine *e = t->e;
    int heads = e->m.heads, groups = e->m.kv_heads, dim = e->m.head_dim, tokens = t->s->tokens;
    int work = (heads + 2 * groups) * tokens, lo = (int)((int64_t)work * t->thread / t->threads);
    int hi = (int)((int64_t)work * (t->thread + 1) / t->threads), keys = up(heads * dim, LANES), values = keys + up(groups * dim, LANES);
    for (int i = lo; i < hi; i++) {
        int head = i / tokens, token = i % tokens;
        float *row = e->qkv_out + (size_t)token * e->qkv;
        const float *cosine = e->cosine + (size_t)token * (dim / 2), *sine = e->sine + (size_t)token * (dim / 2);
        int64_t slot = t->s->slots[token];
        if (head < heads) {
            if (token < t->tokens) e->k->rotate(row + head * dim, cosine, sine, dim / 2, 1.0f / sqrtf((float)dim));
        } else if (head < heads + groups) {
            float *x = row + keys + (head - heads) * dim;
            e->k->rotate(x, cosine, sine, dim / 2, 1.0f);
            keep(e, layer, 0, head - heads, slot, x);
        } else {
            keep(e, layer, 1, head - heads - groups, slot, row + values + (head - heads - groups) * dim);
        }
    }
}

/* ---- attention ---- */

/* The rows of queries (token by token of a run, heads of a group within) that one call attends with. */
typedef struct {
    const float *q[ROWS];
    float *out[ROWS];
    int32_t position[ROWS];
    const Text *text;
    int rows, group, low, high;
} Queries;

static const Run *run_of(const Engine *e, int runs, int unit) {
    int low = 0, high = runs;
    while (high - low > 1) {
        int middle = (low + high) / 2;
        if (e->runs[middle].unit <= unit) low = middle;
        else high = middle;
    }
    return e->runs + low;
}

/* rows is 0 where no query of the unit is still needed. */
static Queries queries_of(const Task *t, int unit) {
    const Engine *e = t->e;
    const Run *run = run_of(e, t->s->run_count, unit);
    int per = group_rows(e), row = (unit - run->unit) / e->m.kv_heads * ROWS;
    Queries u = {.text = e->texts + run->text, .group = (unit - run->unit) % e->m.kv_heads, .low = INT32_MAX, .high = INT32_MIN};
    for (; u.rows < ROWS && run->first + (row + u.rows) / per < least(run->end, t->tokens); u.rows++) {
        int token = run->first + (row + u.rows) / per, head = u.group * per + (row + u.rows) % per;
        u.q[u.rows] = e->qkv_out + (size_t)token * e->qkv + head * e->m.head_dim;
        u.out[u.rows] = e->acts.x + (size_t)token * e->acts.width + head * e->m.head_dim;
        u.position[u.rows] = (int32_t)t->s->positions[token];
        u.low = least(u.low, u.position[u.rows]);
        u.high = most(u.high, u.position[u.rows]);
    }
    return u;
}

static void start_parts(const Engine *e, float *part, int rows) {
    for (int r = 0; r < rows; r++) {
        memset(part + r * part_size(e), 0, part_size(e) * 4);
        part[r * part_size(e)] = -INFINITY;
    }
}

/* One of the chunks of slots that the queries' text has; returns 0 if nobody sees any of it. */
static int attend_chunk(const Task *t, int layer, const Queries *u, int chunk, float *part) {
    const Engine *e = t->e;
    if (chunk >= u->text->chunks) return 0;
    int window = e->m.window[layer], lo = 0, hi = CHUNK / LANES, quantized = e->m.kv_kind == Q8;
    size_t at = (u->text->at + chunk) * CHUNK, slot = (size_t)(u->text->base + chunk) * CHUNK;
    const int32_t *first = e->first + at / LANES, *last = e->last + at / LANES;
    while (lo < hi && !(first[lo] <= u->high && last[lo] > u->low - window)) lo++;
    while (hi > lo && !(first[hi - 1] <= u->high && last[hi - 1] > u->low - window)) hi--;
    if (lo == hi) return 0;
    at += lo * LANES, slot += lo * LANES;
    size_t bytes = place(e, 1, slot, 0) * element(e->m.kv_kind);
    Keys keys = {plane(e, layer, 0, u->group) + bytes, plane(e, layer, 1, u->group) + bytes,
                 quantized ? scales(e, layer, 0, u->group) + slot : NULL, quantized ? scales(e, layer, 1, u->group) + slot : NULL,
                 e->seen + at, e->m.kv_kind, e->dim, window};
    e->k->attend(&keys, u->q, u->position, u->rows, (hi - lo) * LANES, part);
    return 1;
}

static void merge_rows(const Engine *e, float *into, const float *part, int rows) {
    for (int r = 0; r < rows; r++) e->k->merge(into + r * part_size(e), part + r * part_size(e), e->dim);
}

/* Softmax-weighted values to the activations that the output projection reads. */
static void put_rows(const Engine *e, const Queries *u, const float *part) {
    for (int r = 0; r < u->rows; r++, part += part_size(e))
        for (int d = 0; d < e->m.head_dim; d++) u->out[r][d] = part[PART + d] / part[1];
}

static void attend(const Task *t, int layer) {
    const Engine *e = t->e;
    const Matrix *next = e->m.linears + layer * LINEARS + OUTPUT;
    int units = e->units, chunks = e->chunks;
    float *mine = t->own->part, *part = mine + ROWS * part_size(e);
    if (units > cut_units(e) || chunks == 1) {
        for (int lo, hi = 0; take_units(t, units, &lo, &hi);)
            for (int unit = lo; unit < hi; unit++) {
                Queries u = queries_of(t, unit);
                start_parts(e, mine, u.rows);
                for (int chunk = 0; u.rows && chunk < u.text->chunks; chunk++)
                    if (attend_chunk(t, layer, &u, chunk, part)) merge_rows(e, mine, part, u.rows);
                put_rows(e, &u, mine);
            }
        meet_before(t, next, strips_of(next));
        return;
    }
    for (int lo, hi = 0; take_units(t, units * chunks, &lo, &hi);)
        for (int i = lo; i < hi; i++) {
            Queries u = queries_of(t, i % units);
            float *to = e->parts + (size_t)i * ROWS * part_size(e);
            if (!attend_chunk(t, layer, &u, i / units, to)) start_parts(e, to, u.rows);
        }
    meet_before(t, next, strips_of(next));
    for (int unit = t->thread; unit < units; unit += t->threads) {
        Queries u = queries_of(t, unit);
        start_parts(e, mine, u.rows);
        for (int chunk = 0; chunk < chunks; chunk++)
            merge_rows(e, mine, e->parts + ((size_t)chunk * units + unit) * ROWS * part_size(e), u.rows);
        put_rows(e, &u, mine);
    }
    meet_before(t, next, strips_of(next));
}

/* ---- layers ---- */

static void normalize(const Task *t, const float *weight, int residual, int fine) {
    const Engine *e = t->e;
    EACH_TOKEN(t, i) {
        float *x = t->x + (size_t)i * e->hidden, *h = t->acts->x + (size_t)i * t->acts->width;
        e->k->rmsnorm(x, residual ? e->out + (size_t)i * e->hidden : NULL, weight, e->m.hidden, e->m.eps, h);
        e->k->quantize(t->acts, i, 0, e->hidden, fine);
    }
    meet_tokens(t);
}

static void attention(Task *t, int layer) {
    const Engine *e = t->e;
    const Matrix *w = e->m.linears + layer * LINEARS;
    int all = t->s->tokens, keys = up(e->m.heads * e->m.head_dim, LANES), values = keys + up(e->m.kv_heads * e->m.head_dim, LANES);
    if (layer == e->m.layers - 1) t->tokens = t->s->wanted;  /* beyond the keys only what is asked for */
    Product qkv[] = {{w + QUERY, t->tokens, e->qkv_out, e->qkv}, {w + KEY, all, e->qkv_out + keys, e->qkv},
                     {w + VALUE, all, e->qkv_out + values, e->qkv}};
    multiply(t, t->acts, FINE_QKV, qkv, 3);
    meet_before(t, w + OUTPUT, strips_of(w + OUTPUT));
    remember(t, layer);
    meet_before(t, w + OUTPUT, strips_of(w + OUTPUT));
    if (!t->tokens) return;
    attend(t, layer);
    EACH_TOKEN(t, i) {
        if (t->alone) memcpy(t->acts->x, e->acts.x, e->attn * 4);
        e->k->quantize(t->acts, i, 0, e->attn, 0);
    }
    meet_tokens(t);
    multiply(t, t->acts, 0, &(Product){w + OUTPUT, t->tokens, e->out, e->hidden}, 1);
    meet_before(t, w + GATE, e->inner / LANES);
}

/* Gate and up share cuts of 64 rows, so that who computes them turns them into the next product's activations. */
static void feed_forward(const Task *t, int layer) {
    const Engine *e = t->e;
    const Matrix *w = e->m.linears + layer * LINEARS;
    int tokens = t->tokens, strips = strips_of(w + GATE);
    float *gate = e->gate, *upper = gate + e->inner;
    for (int lo, hi = 0; take_strips(t, e->inner / LANES, &lo, &hi);) {
        int count = least(hi, strips) - lo, from = lo * LANES, to = hi * LANES;
        e->k->matmul(w + GATE, t->acts, 0, 0, tokens, gate, 2 * e->inner, lo, count, t->own->unpacked);
        e->k->matmul(w + UP, t->acts, 0, 0, tokens, upper, 2 * e->inner, lo, count, t->own->unpacked);
        for (int i = 0; i < tokens; i++) {
            size_t row = (size_t)i * 2 * e->inner + from;
            e->k->swiglu(gate + row, upper + row, e->mlp.x + (size_t)i * e->inner + from, to - from);
            e->k->quantize(&e->mlp, i, from, to, 0);
        }
    }
    meet_before(t, w + DOWN, strips_of(w + DOWN));
    multiply(t, &e->mlp, 0, &(Product){w + DOWN, t->tokens, e->out, e->hidden}, 1);
    if (layer + 1 < e->m.layers) meet_before(t, w + LINEARS + QUERY, qkv_strips(w));
    else meet_before(t, e->m.head, strips_of(e->m.head));
}

static void begin(const Task *t) {
    const Engine *e = t->e;
    EACH_TOKEN(t, i) e->k->fetch(e->m.embed, t->s->ids[i], t->x + (size_t)i * e->hidden);
    int half = e->m.head_dim / 2;
    for (int i = t->thread; i < t->tokens; i += t->threads)
        angles(e, (double)t->s->positions[i], e->m.rope_factor, e->cosine + (size_t)i * half, e->sine + (size_t)i * half);
}

static void run(Engine *e, const Step *s, int thread, int threads) {
    Task t = {e, s, thread, threads, s->tokens, s->tokens == 1, &e->own[thread], &e->acts, e->x};
    if (t.alone) t.acts = &t.own->acts, t.x = t.own->x;
    if (s->tokens > 1) e->k->enter();
    begin(&t);
    for (int layer = 0; layer < e->m.layers; layer++) {
        const float *norms = e->m.norms + (size_t)2 * layer * e->hidden;
        normalize(&t, norms, layer > 0, FINE_QKV);
        attention(&t, layer);
        if (!t.tokens) break;
        normalize(&t, norms + e->hidden, 1, 0);
        feed_forward(&t, layer);
    }
    if (t.tokens) {
        normalize(&t, e->m.norms + (size_t)2 * e->m.layers * e->hidden, 1, FINE_HEAD);
        multiply(&t, t.acts, FINE_HEAD, &(Product){e->m.head, t.tokens, s->logits, up(e->m.vocab, LANES)}, 1);
    }
    if (s->tokens > 1) e->k->leave();
}

/* Notes the positions of slots: all of a prompt's before its first chunk, so that its later tokens are not taken for old ones. */
const char *engine_place(Engine *e, const int64_t *slots, const int64_t *positions, int count) {
    const char *fault = places_fault(e->m.slots, slots, positions, count);
    for (int i = 0; !fault && i < count; i++) e->position[slots[i]] = positions[i];
    return fault;
}

/* Which chunks of slots each text may see; returns how many in all. */
static size_t find_chunks(Engine *e, const Step *s) {
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

static void find_seen(Engine *e, const Step *s, size_t chunks) {
    for (size_t i = 0; i < chunks * CHUNK; i++) e->seen[i] = INT32_MAX;
    for (int r = 0; r < s->ranges; r++) {
        const int64_t *range = s->visible + 3 * r;
        const Text *text = e->texts + range[2];
        int32_t *seen = e->seen + text->at * CHUNK;
        for (int64_t slot = range[0]; slot < range[1]; slot++) seen[slot - (int64_t)text->base * CHUNK] = (int32_t)e->position[slot];
    }
    for (size_t block = 0; block < chunks * (CHUNK / LANES); block++) {
        e->first[block] = INT32_MAX, e->last[block] = INT32_MIN;
        for (int i = 0; i < LANES; i++) {
            int at = e->seen[block * LANES + i];
            e->first[block] = least(e->first[block], at);
            if (at != INT32_MAX) e->last[block] = most(e->last[block], at);
        }
    }
}

/* A unit is up to ROWS queries of one run and the heads of one group. */
static void find_units(Engine *e, const Step *s) {
    e->units = 0;
    for (int r = 0; r < s->run_count; r++) {
        const int32_t *run = s->runs + 3 * r;
        e->runs[r] = (Run){run[0], run[1], run[2], e->units};
        e->units += up((run[1] - run[0]) * group_rows(e), ROWS) / ROWS * e->m.kv_heads;
    }
}

static const char NO_MEMORY[] = "no memory";

/* Returns what was wrong with the step, in which case nothing was done; NULL: nothing. */
const char *engine_forward(Engine *e, const Step *s) {
    const char *fault = step_fault(&e->m, s);
    if (fault) return fault;
    if (!make_room(e, s->texts, 0)) return NO_MEMORY;
    size_t chunks = find_chunks(e, s);
    if (!make_room(e, 0, chunks)) return NO_MEMORY;
    find_seen(e, s, chunks);
    find_units(e, s);
    atomic_store(&e->team.taken, 0);
    e->acts.lanes = e->mlp.lanes = least(s->tokens, LANES);
    #pragma omp parallel num_threads(e->m.threads)
    run(e, s, omp_get_thread_num(), omp_get_num_threads());
    return NULL;
}

static const char *block_fault(const Engine *e, int first, int count, int64_t start) {
    if (first < 0 || count < 1 || count > e->m.slots - first) return "a block of slots that are not there";
    return start < 0 || start > INT32_MAX - 1 - count ? "a position of 2^31 or more" : NULL;
}

/* Reads the keys of `count` slots, turned back by their positions: out is [layers][kv_heads][count][head_dim]. */
const char *engine_read_keys(const Engine *e, int first, int count, float *out) {
    int dim = e->m.head_dim, kind = e->m.kv_kind, heads = e->m.kv_heads;
    const char *fault = block_fault(e, first, count, 0);
    if (fault) return fault;
    #pragma omp parallel for num_threads(e->m.threads) if (count > FEW)
    for (int i = 0; i < count; i++) {
        float cosine[dim / 2 + 1], sine[dim / 2 + 1];
        angles(e, -(double)e->position[first + i], 1.0f, cosine, sine);
        for (int p = 0; p < e->m.layers * heads; p++) {
            const char *from = plane(e, p / heads, 0, p % heads);
            float scale = kind == Q8 ? scales(e, p / heads, 0, p % heads)[first + i] : 1.0f, *x = out + ((size_t)p * count + i) * dim;
            for (int d = 0; d < dim; d++) x[d] = e->k->widen(kind, from, place(e, 0, first + i, d)) * scale;
            e->k->rotate(x, cosine, sine, dim / 2, 1.0f);
        }
    }
    return NULL;
}

/* Writes such keys back, turned to the positions from `start` on. */
const char *engine_write_keys(Engine *e, int first, int count, int64_t start, const float *keys) {
    int dim = e->m.head_dim, heads = e->m.kv_heads;
    const char *fault = block_fault(e, first, count, start);
    if (fault) return fault;
    #pragma omp parallel for num_threads(e->m.threads) if (count > FEW)
    for (int i = 0; i < count; i++) {
        float cosine[dim / 2 + 1], sine[dim / 2 + 1], x[dim + LANES];
        angles(e, (double)(start + i), 1.0f, cosine, sine);
        for (int p = 0; p < e->m.layers * heads; p++) {
            memcpy(x, keys + ((size_t)p * count + i) * dim, dim * 4);
            e->k->rotate(x, cosine, sine, dim / 2, 1.0f);
            keep(e, p / heads, 0, p % heads, first + i, x);
        }
        e->position[first + i] = start + i;
    }
    return NULL;
}

/* Copies what is stored of these slots out to kv [layers][2][kv_heads][count][head_dim] and, if Q8, to scale
   [layers][2][kv_heads][count]; or back in. No other slot's memory is touched. */
const char *engine_transfer(Engine *e, int out, const int64_t *slots, int count, char *kv, float *scale) {
    const char *fault = places_fault(e->m.slots, slots, NULL, count);
    if (fault) return fault;
    int dim = e->m.head_dim, planes = e->m.layers * 2 * e->m.kv_heads;
    size_t bytes = element(e->m.kv_kind);
    #pragma omp parallel for num_threads(e->m.threads)
    for (int i = 0; i < planes; i++) {
        int layer = i / (2 * e->m.kv_heads), value = i / e->m.kv_heads % 2, head = i % e->m.kv_heads;
        char *rows = kv + (size_t)i * count * dim * bytes;
        float *factors = scale ? scales(e, layer, value, head) : NULL, *saved = scale ? scale + (size_t)i * count : NULL;
        for (int s = 0; s < count; s++) {
            copy(e, layer, value, head, slots[s], rows + s * dim * bytes, out);
            if (scale && out) saved[s] = factors[slots[s]];
            else if (scale) factors[slots[s]] = saved[s];
        }
    }
    return NULL;
}

/* ---- one operation at a time, for tests and measurements ---- */

/* y[tokens][rows up to 16] = x[tokens][columns] times the matrix; returns what was wrong, or NULL. */
const char *single_product(const char *kernels, const Matrix *w, const float *x, int tokens, int fine, int threads, float *y) {
    const Kernels *k = select_kernels(kernels);
    const char *fault = matrix_fault(w);
    if (fault) return fault;
    if (!k || !w->data || tokens < 1 || tokens > MAX_BATCH || threads < 1 || threads > MAX_THREADS) return "an impossible product";
    int width = up(w->columns, TILE), strips = up(w->rows, LANES) / LANES;
    Claims claims = {0};
    char *scratch = claim(&claims, (size_t)SCRATCH * threads);
    Acts a = claim_acts(&claims, up(tokens, LANES), width);
    a.lanes = least(tokens, LANES);
    if (!claims.failed) {
        for (int i = 0; i < tokens; i++) {
            memcpy(a.x + (size_t)i * width, x + (size_t)i * w->columns, w->columns * 4);
            k->quantize(&a, i, 0, width, fine);
        }
        #pragma omp parallel num_threads(threads)
        {
            int t = omp_get_thread_num(), n = omp_get_num_threads(), lo = strips * t / n, hi = strips * (t + 1) / n;
            k->enter();
            if (lo < hi) k->matmul(w, &a, fine, 0, tokens, y, strips * LANES, lo, hi - lo, scratch + (size_t)SCRATCH * t);
            k->leave();
        }
    }
    free_acts(&a);
    free(scratch);
    return claims.failed ? NO_MEMORY : NULL;
}

/* out[count][columns up to 64]: rows of a matrix as floats. */
const char *single_rows(const char *kernels, const Matrix *w, const int32_t *rows, int count, float *out) {
    const Kernels *k = select_kernels(kernels);
    const char *fault = matrix_fault(w);
    if (fault) return fault;
    for (int i = 0; i < count; i++) {
        if (!k || !w->data || rows[i] < 0 || rows[i] >= w->rows) return "a row that is not there";
        k->fetch(w, rows[i], out + (size_t)i * up(w->columns, TILE));
    }
    return NULL;
}

/* Attention over `slots` slots as Keys says, q[rows][dim]; part as in engine.h. */
const char *single_attend(const char *kernels, const Keys *keys, const float *q, const int32_t *position, int rows, int slots,
                          float *part) {
    const float *each[ROWS];
    const Kernels *k = select_kernels(kernels);
    if (!k || rows < 1 || rows > ROWS || slots < 1 || slots > CHUNK || slots % LANES) return "more than a chunk of slots";
    if (keys->dim < 1 || keys->dim > DIM || keys->dim % LANES || keys->kind < F32 || keys->kind > Q8) return "impossible keys";
    for (int r = 0; r < rows; r++) each[r] = q + (size_t)r * keys->dim;
    k->attend(keys, each, position, rows, slots, part);
    return NULL;
}
