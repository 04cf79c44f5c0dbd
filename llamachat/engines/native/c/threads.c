/* Threads: how they wait for each other, how they share work, and how many of them there are. */
#include <stdatomic.h>
#include <time.h>
#if defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "threads.h"

enum { CUT = 4, CUT_OF_MANY = 2 };  /* strips that kernels like to have side by side, for few tokens and for more; at least those
                                       of a group of activations' columns */
enum { MANY_STRIPS = 64 };  /* of a thread */
enum { SPINS = 1000 };  /* some 10 to 50 microseconds */

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

#if defined(__linux__)
/* Until the round is over, or sooner. */
static void sleep_in(Team *team, int round) {
    double start = now();
    atomic_fetch_add(&team->sleepers, 1);
    syscall(SYS_futex, &team->round, FUTEX_WAIT_PRIVATE, round, NULL, NULL, 0);
    atomic_fetch_sub(&team->sleepers, 1);
    atomic_fetch_add_explicit(&team->slept, (long long)(1e9 * (now() - start)), memory_order_relaxed);
}
#endif

/* What a thread reads next: streams side by side, of so many bytes each, one behind the other. */
typedef struct { const uint8_t *data; size_t bytes; int streams; } Coming;

static inline void fetch_line(const Coming *c, size_t at) {
    for (int i = 0; i < c->streams; i++) __builtin_prefetch(c->data + i * c->bytes + at, 0, 2);
}

/* A barrier: all threads wait for each other. Barriers are microseconds apart, so threads spin, and meanwhile fetch what they
   read next; but only so long: when another program has a core, the thread that waits must sleep, so that the one waited for can
   have it. */
static void wait_for_all(Team *team, int threads, Coming next) {
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
    size_t at = 0;
    for (int spins = 0; atomic_load_explicit(&team->round, memory_order_acquire) == round; spins++) {
        if (at < next.bytes) fetch_line(&next, at), at += 64;
        relax();
#if defined(__linux__)
        if (spins >= SPINS) sleep_in(team, round);
#endif
    }
}

static int cut_of(const Task *t) { return t->s->tokens > FEW ? CUT_OF_MANY : CUT; }

/* Of so many strips each thread has some to itself; the rest goes to who comes first: a quarter, or where there are few strips as
   little as can be, for with each part a thread waits for memory anew. */
static int own_share(const Task *t, int strips) {
    int rest = strips < MANY_STRIPS * t->threads ? strips / 16 : strips / 4;
    return (strips - rest) / t->threads / cut_of(t) * cut_of(t);
}

void barrier_before(const Task *t, const Matrix *next, int strips) {
    int own = own_share(t, strips), first = least(own * t->thread, strips_of(next)), end = least(first + own, strips_of(next));
    int streams = t->e->fetching.streams;
    size_t each = strip_bytes(next), bytes = t->alone && streams ? (end - first) / streams * each : 0;
    wait_for_all(&t->e->team, t->threads, (Coming){next->data + each * first, bytes, streams});
}

void barrier(const Task *t) { wait_for_all(&t->e->team, t->threads, (Coming){0}); }

void barrier_unless_alone(const Task *t) {
    if (!t->alone) barrier(t);
}

/* As take_units, of `total` equal pieces of work, of which each thread has `own` to itself. Parts are multiples of `cut` and
   shrink, so that threads end together although one may have been interrupted, or runs on a slower core. */
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

int take_strips(const Task *t, int total, int *lo, int *hi) { return take(t, total, own_share(t, total), cut_of(t), lo, hi); }
int take_units(const Task *t, int total, int *lo, int *hi) { return take(t, total, 0, 1, lo, hi); }

/* ---- how many threads ----

   When another program keeps a core busy, the thread that shares it comes late to every barrier, and all others wait: often it is
   faster to leave that core alone. So where threads sleep at barriers for much of the time, a stretch of steps is tried with one
   thread less, and now and then one with one more, and what is faster stays. No result depends on it. */

enum { STEPS = 4 };                  /* of a stretch, at least */
enum { PATIENCE = 8 };               /* stretches between trials, at most */
enum { PROMPT = 32 };                /* tokens that begin anew */
static const double STRETCH = 0.05;  /* seconds, at least */
static const double IDLE = 0.2;      /* the part of their time that threads sleep for a trial */
static const double GAIN = 0.95;     /* what a step of it may take */

/* How weights are best fetched ahead depends on the processor: the first steps try the ways in turn, and that of the shortest
   stays. */
enum { TRIED = 8 * FETCHINGS };

static void try_fetching(Engine *e) {
    if (e->fetching.steps < TRIED) e->fetching.streams = e->k->fetch(e->fetching.steps % FETCHINGS);
}

static void fetching_tried(Engine *e, double seconds) {
    Fetching *f = &e->fetching;
    int way = f->steps % FETCHINGS, best = 0;
    if (f->steps >= TRIED) return;
    if (f->steps < FETCHINGS || seconds < f->least[way]) f->least[way] = seconds;
    if (++f->steps < TRIED) return;
    for (int i = 1; i < FETCHINGS; i++)
        if (f->least[i] < f->least[best]) best = i;
    f->streams = e->k->fetch(best);
}

int threads_of(Engine *e, int tokens) {
    Pace *p = &e->pace;
    if (!p->threads || tokens >= PROMPT) *p = (Pace){.threads = e->m.threads, .patience = 1};
    if (tokens > 1) return e->m.threads;  /* work between barriers is long then, and shared as it comes */
    if (!p->steps) atomic_store(&e->team.slept, 0);
    try_fetching(e);
    p->began = now();
    return p->threads;
}

/* The trial's end: keeps what was tried, or goes back, and waits longer for the next trial. */
static void judge(Pace *p, double mean) {
    int kept = mean < GAIN * p->mean;
    p->patience = kept ? 2 : least(2 * p->patience, PATIENCE);
    if (!kept) p->threads = p->before;
    p->before = p->since = 0;
}

static void try(Pace *p, int threads) { p->before = p->threads, p->threads = threads; }

void step_ended(Engine *e, int tokens) {
    Pace *p = &e->pace;
    if (tokens > 1) return;
    double seconds = now() - p->began;
    fetching_tried(e, seconds);
    p->seconds += seconds;
    if (++p->steps < STEPS || p->seconds < STRETCH) return;
    double mean = p->seconds / p->steps, slept = 1e-9 * (double)atomic_load(&e->team.slept) / p->threads;
    if (p->before) judge(p, mean);
    else {
        p->mean = mean;
        int due = ++p->since >= p->patience;
        if (due && p->threads > 1 && slept > IDLE * p->seconds) try(p, p->threads - 1);
        else if (due && p->threads < e->m.threads) try(p, p->threads + 1);
        else if (due) p->patience = 1;
    }
    p->steps = 0, p->seconds = 0;
}
