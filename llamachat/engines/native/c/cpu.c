/* Which kernels this processor can run. */
#include <string.h>

#include "kernels.h"
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif
#if defined(__x86_64__)
#include <cpuid.h>

static int leaf7(unsigned sub, unsigned reg, int bit) {
    unsigned r[4] = {0};
    return __get_cpuid_count(7, sub, &r[0], &r[1], &r[2], &r[3]) && (r[reg] >> bit & 1);
}
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
static int has_avxvnni(void) { return has_avx2() && leaf7(1, 0, 4); }
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
}
/* Linux hands out the tiles' 8 KiB of state on request only. */
static int has_amx(void) {
#if defined(__linux__)
    enum { REQUEST = 0x1023, TILES = 18 };
    return has_avx512() && leaf7(0, 3, 24) && leaf7(0, 3, 25) && syscall(SYS_arch_prctl, REQUEST, TILES) == 0;
#else
    return 0;
#endif
}
#endif
#if defined(__aarch64__)
static int has_neon(void) {
#if defined(__linux__)
    return (getauxval(AT_HWCAP) >> 20 & 1) != 0;  /* HWCAP_ASIMDDP */
#else
    return 1;  /* every Apple processor */
#endif
}
#endif

static int has_portable(void) { return 1; }
/* KERNEL_SETS, from build.py: X(name) of each that was compiled, best first. */
#define X(name) extern const Kernels kernels_##name;
KERNEL_SETS
#undef X
#define X(name) {&kernels_##name, has_##name},
static const struct { const Kernels *kernels; int (*usable)(void); } known[] = {KERNEL_SETS};
#undef X

const Kernels *kernels_timed(const Kernels *kernels);  /* probe.c */

const Kernels *select_kernels(const char *name) {
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if ((!name || !strcmp(name, known[i].kernels->name)) && known[i].usable())
            return kernels_timed(known[i].kernels);
    return NULL;
}

/* The i-th best set of kernels that can be used here, or NULL. */
const char *usable_kernels(int i) {
    for (size_t j = 0; j < sizeof known / sizeof *known; j++)
        if (known[j].usable() && i-- == 0) return known[j].kernels->name;
    return NULL;
}
