/* The memory of an engine: made with it, freed with it. */
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "faults.h"
#include "kv.h"
#include "alloc.h"

#if defined(__SANITIZE_ADDRESS__)  /* a line behind each piece, which nobody may touch */
#include <sanitizer/asan_interface.h>
enum { GUARD = 64 };
#else
enum { GUARD = 0 };
#define ASAN_POISON_MEMORY_REGION(p, bytes) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(p, bytes) ((void)0)
#endif

static size_t lines_of(size_t bytes) { return (bytes + 64 + 63) / 64 * 64; }  /* and a line more, which may be read */

static void *zeroed(size_t bytes) {
    void *p = aligned_alloc(64, lines_of(bytes));
    return p ? memset(p, 0, bytes + 64) : NULL;
}

void *claim(Claims *c, size_t bytes) {
    size_t at = c->bytes;
    c->bytes += lines_of(bytes) + GUARD;
    if (c->counting || c->failed) return NULL;
    void *p = c->from ? c->from + at : zeroed(bytes);
    if (c->from) ASAN_POISON_MEMORY_REGION(c->from + at + lines_of(bytes), GUARD);
    c->failed = !p;
    return p;
}

/* Pages come when they are first written, so that a start costs what a short prompt needs; and a long context what is used of it,
   for which there need not be memory (`sparse`). */
static void *reserve(size_t bytes, int sparse) {
#if defined(__linux__)
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | (sparse ? MAP_NORESERVE : 0), -1, 0);
    if (p == MAP_FAILED) return NULL;
    if (sparse) madvise(p, bytes, MADV_HUGEPAGE);
    return p;
#else
    (void)sparse;
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

Acts claim_acts(Claims *c, int tokens, int width) {
    size_t groups = (size_t)tokens * width / GROUP;
    return (Acts){width, 1, claim(c, groups * GROUP * 4), claim(c, groups * GROUP), claim(c, groups * GROUP),
                  claim(c, groups * 4), claim(c, groups * 4), claim(c, groups * 4), claim(c, groups * 4),
                  claim(c, groups * 4)};
}

static Route claim_route(Claims *c, const Model *m, size_t tokens) {
    size_t picks = tokens * m->picked;
    return (Route){claim(c, picks * sizeof(Pick)), claim(c, picks * sizeof(Group)), 0};
}

void free_acts(Acts *a) {
    free(a->x), free(a->high), free(a->low), free(a->scale);
    free(a->sum32), free(a->mass32), free(a->pair_high), free(a->pair_low);
}

int make_room(Engine *e, size_t texts, size_t chunks) {
    if (texts > e->texts_room) {
        free(e->texts);
        e->texts_room = (e->texts = zeroed(texts * sizeof *e->texts)) ? texts : 0;
    }
    if (chunks > e->chunks_room) {
        free(e->mask), free(e->first), free(e->last);
        e->mask = zeroed(chunks * CHUNK * 4);
        e->first = zeroed(chunks * CHUNK / LANES * 4), e->last = zeroed(chunks * CHUNK / LANES * 4);
        e->chunks_room = e->mask && e->first && e->last ? chunks : 0;
    }
    return texts <= e->texts_room && chunks <= e->chunks_room;
}

void engine_free(Engine *e) {
    if (!e) return;
    free(e->low), free(e->low_inputs), free(e->texts), free(e->mask), free(e->first), free(e->last);
    if (e->work) ASAN_UNPOISON_MEMORY_REGION(e->work, e->work_bytes);
    release(e->work, e->work_bytes), release(e->kv, e->kv_bytes);
    free(e);
}

static void claim_experts(Engine *e, Claims *c) {
    size_t rows = expert_rows(&e->m);
    e->scores = claim(c, (size_t)up(e->m.batch, LANES) * e->scored * 4);
    e->route = claim_route(c, &e->m, up(e->m.batch, LANES));
    e->expert_row = claim(c, e->m.experts * sizeof *e->expert_row);
    e->gathered = claim_acts(c, rows, e->hidden);
    e->expert_acts = claim_acts(c, rows, e->expert_inner);
    e->expert_gate = claim(c, rows * 2 * e->expert_inner * 4);
    e->expert_out = claim(c, rows * e->hidden * 4);
}

static void claim_all(Engine *e, Claims *c) {
    const Model *m = &e->m;
    size_t batch = up(m->batch, LANES), chunks = e->cap / CHUNK;
    int width = most(e->hidden, e->attn);
    e->acts = claim_acts(c, batch, width);
    e->mlp = claim_acts(c, batch, e->inner);
    e->local = claim(c, m->threads * sizeof *e->local);
    for (int t = 0; t < m->threads; t++) {
        Local local = {claim_acts(c, 1, width), claim(c, (size_t)e->hidden * 4), claim(c, 2 * ROWS * part_size(e) * 4),
                       claim(c, SCRATCH), claim_route(c, m, 1)};
        if (e->local) e->local[t] = local;
    }
    e->x = claim(c, batch * e->hidden * 4);
    e->out = claim(c, batch * e->hidden * 4);
    e->qkv_out = claim(c, batch * e->qkv * 4);
    e->gate = claim(c, batch * 2 * e->inner * 4);
    e->cosine = claim(c, batch * m->ropes * m->head_dim * 2);
    e->sine = claim(c, batch * m->ropes * m->head_dim * 2);
    e->query_scale = claim(c, batch * 4);
    e->parts = claim(c, (size_t)cut_units(e) * ROWS * chunks * part_size(e) * 4);
    e->runs = claim(c, batch * sizeof *e->runs);
    e->position = claim(c, (size_t)e->cap * 8);
    if (m->experts) claim_experts(e, c);
}

/* An engine of this shape that holds nothing yet. */
static Engine shaped(const Model *m) {
    return (Engine){
        .m = *m,
        .hidden = up(m->hidden, TILE),
        .inner = up(m->inner, TILE),
        .attn = up(m->heads * m->head_dim, TILE),
        .qkv = up((m->heads + 2 * m->kv_heads) * m->head_dim, LANES) + 2 * LANES,  /* each of the three is padded to a strip */
        .dim = up(m->head_dim, m->kv_kind == Q4 ? 32 : LANES),
        .cap = up(m->slots, CHUNK),
        .expert_inner = up(m->expert_inner, TILE),
        .scored = up(m->experts, LANES),
        .fine = m->fine,
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
    *why = model_fault(m);
    if (!*why) *why = weights_fault(m);
    if (!*why && !k) *why = "kernels that this processor cannot run";
    Engine *e = *why ? NULL : zeroed(sizeof *e);
    if (!e) return NULL;
    *e = shaped(m);
    e->k = k;
    for (int layer = 0; layer < m->layers; layer++)
        if (m->layer[layer].router && m->layer[layer].router->kind >= Q8) e->fine |= FINE_MLP;  /* which experts, is felt most */
    e->work_bytes = engine_workspace(m) + 64;
    size_t heads = (size_t)m->layers * m->kv_heads;
    size_t codes = lines_of(heads * (e->cap / LANES) * (kv_block(e, 0) + kv_block(e, 1)));
    e->kv_bytes = codes + kv_scaled(e) * heads * e->cap * 4;
    int ok = (e->work = reserve(e->work_bytes, 0)) && (e->kv = reserve(e->kv_bytes, 1)) && make_room(e, 1, e->cap / CHUNK);
    if (!ok) {
        engine_free(e);
        return NULL;
    }
    Claims claims = {.from = e->work + (-(uintptr_t)e->work & 63)};
    claim_all(e, &claims);
    e->kv_scale = (float *)(e->kv + codes);
    for (int slot = 0; slot < e->cap; slot++) e->position[slot] = INT32_MAX;  /* not yet written: later than every query */
    return e;
}
