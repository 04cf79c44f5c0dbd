/* Measuring: how fast memory can be read, and which part of a step takes how long. Nothing else needs this file. */
#include <string.h>
#include <time.h>
#if defined(_OPENMP)
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#include "kernels.h"

/* ---- reading memory ---- */

typedef uint64_t Line __attribute__((vector_size(64), aligned(64), may_alias));

/* As so many streams side by side, each over its own part of the lines, fetched so many bytes ahead (0: as the processor
   guesses). */
static inline __attribute__((always_inline)) uint64_t add_up(const Line *p, size_t lines, int streams, int ahead) {
    Line sums[4] = {{0}};
    size_t each = lines / streams;
    for (size_t at = 0; at < each; at += 4)
        for (int s = 0; s < streams; s++)
            for (int i = 0; i < 4; i++) {
                const Line *line = p + s * each + at + i;
                if (ahead) __builtin_prefetch((const char *)line + ahead);
                sums[i] += *line;
            }
    sums[0] += sums[1] + sums[2] + sums[3];
    uint64_t total = 0;
    for (int i = 0; i < 8; i++) total += sums[0][i];
    return total;
}

typedef uint64_t Reader(const Line *, size_t);
#define READER(name, target, streams, ahead) \
    target static uint64_t name(const Line *p, size_t lines) { return add_up(p, lines, streams, ahead); }
#define READERS(name, target)                                                                              \
    READER(one_##name, target, 1, 2048) READER(two_##name, target, 2, 0) READER(four_##name, target, 4, 0) \
    READER(far_##name, target, 4, 1024)                                                                    \
    static Reader *const name##_ways[] = {one_##name, two_##name, four_##name, far_##name};
READERS(plain, )
#if defined(__x86_64__)
READERS(wide, __attribute__((target("avx512f"))))
#endif

/* Reads all of it once (64-byte aligned, a multiple of 1024 bytes for each thread) in the way-th of four ways, of which another
   is the fastest on each processor; returns the sum of its words. */
uint64_t read_memory(const void *data, size_t bytes, int threads, int way) {
    Reader *read = plain_ways[way & 3];
    uint64_t total = 0;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) read = wide_ways[way & 3];
#endif
    #pragma omp parallel num_threads(threads) reduction(+ : total)
    {
        size_t thread = omp_get_thread_num(), count = omp_get_num_threads(), blocks = bytes / 1024;
        size_t first = blocks * thread / count, end = blocks * (thread + 1) / count;
        total += read((const Line *)data + 16 * first, 16 * (end - first));
    }
    return total;
}

/* ---- where a step's time goes ----

   A table of kernels that time themselves stands in for the real one while profiling is on; an engine made meanwhile uses
   it. What is left of a thread's time is spent on what lies between kernels: RoPE, storing keys, waiting for the others. */

enum { PARTS = 16, THREADS = 256 };  /* a part: matrices of one number, which abi.py gives, then these */
enum { HEAD = 8, NORM, QUANTIZE, ACTIVATE, ATTEND, OTHER, STEP };

static const Kernels *real;
static Kernels timed;
static const Matrix *matrices;
static const uint8_t *part_of;
static int count;
static struct { _Alignas(64) double seconds[PARTS]; } spent[THREADS];
static double begun;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void add(int part, double start) { spent[omp_get_thread_num() % THREADS].seconds[part] += now() - start; }

#define TIMED(part, call) double start = now(); call; add(part, start)

static void dequantize_row(const Matrix *w, int row, float *out) {
    double start = now();
    if (omp_get_thread_num() == 0) begun = start;
    real->dequantize_row(w, row, out);
    add(OTHER, start);
}
static void rmsnorm(float *x, const float *added, const float *weight, int n, float eps, float *out) {
    TIMED(NORM, real->rmsnorm(x, added, weight, n, eps, out));
}
static void quantize(const Acts *a, int token, int first, int last, int fine) {
    TIMED(QUANTIZE, real->quantize(a, token, first, last, fine));
}
static void normalize(float *x, const float *weight, int n, float eps) { TIMED(NORM, real->normalize(x, weight, n, eps)); }
static void activate(int activation, float limit, const float *gate, const float *upper, float *out, int n) {
    TIMED(ACTIVATE, real->activate(activation, limit, gate, upper, out, n));
}
static void soften(float *x, int n, float cap) { TIMED(ACTIVATE, real->soften(x, n, cap)); }
static void matmul(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                   int strips, void *scratch) {
    int part = w >= matrices && w < matrices + count ? part_of[w - matrices] : HEAD;
    TIMED(part, real->matmul(w, a, fine, token, tokens, y, stride, strip, strips, scratch));
    if (part == HEAD && omp_get_thread_num() == 0) spent[0].seconds[STEP] += now() - begun, begun = now();
}
static void attend(const Keys *keys, const float *const *q, const int32_t *position, int rows, int slots, float *part) {
    TIMED(ATTEND, real->attend(keys, q, position, rows, slots, part));
}
static void merge(float *into, const float *part, int dim) { TIMED(ATTEND, real->merge(into, part, dim)); }
static float narrow(int kind, const float *x, void *out, int n) {
    double start = now();
    float scale = real->narrow(kind, x, out, n);
    add(OTHER, start);
    return scale;
}

/* Engines made from now on time themselves, or (0) no longer do. */
static int profiling;
void profile(int on) { profiling = on; }

const Kernels *kernels_timed(const Kernels *kernels) {
    if (!profiling || !kernels) return kernels;
    real = kernels, timed = *kernels;
    timed.dequantize_row = dequantize_row, timed.rmsnorm = rmsnorm, timed.quantize = quantize, timed.activate = activate;
    timed.normalize = normalize, timed.soften = soften;
    timed.matmul = matmul, timed.attend = attend, timed.merge = merge, timed.narrow = narrow;
    return &timed;
}

/* Starts counting anew, for the engine with these matrices: so many, and the part (below HEAD) of each, which must outlive it. */
void profile_start(const Matrix *first, const uint8_t *parts, int number) {
    matrices = first, part_of = parts, count = number;
    memset(spent, 0, sizeof spent);
}

/* Seconds that one thread spent on each part since. */
void profile_read(int thread, double *out) { memcpy(out, spent[(unsigned)thread % THREADS].seconds, sizeof spent[0].seconds); }
