#ifndef LLAMACHAT_PACK_H
#define LLAMACHAT_PACK_H
#include <string.h>

#include "packed.h"

typedef uint32_t Quads __attribute__((vector_size(16), may_alias));
typedef Quads Quads_u __attribute__((aligned(1)));

static inline void put(uint8_t *group, int vector, int lane, uint32_t quad) { memcpy(group + 64 * vector + 4 * lane, &quad, 4); }

/* A plane of 2 bits of each code, the lowest of quads 0 to 3 and 4 to 7. */
static inline void put_two(uint8_t *group, int vector, int lane, Quads x, Quads y) {
    Quads both = (x & 0x03030303) | (y & 0x03030303) << 4;
    put(group, vector, lane, both[0] | both[2] << 2);
    put(group, vector + 1, lane, both[1] | both[3] << 2);
}
static inline void put_one(uint8_t *group, int vector, int lane, Quads x, Quads y) {
    Quads both = (x & 0x01010101) | (y & 0x01010101) << 4;
    put(group, vector, lane, both[0] | both[1] << 1 | both[2] << 2 | both[3] << 3);
}
static inline void put_words(uint8_t *group, int vector, int lane, Quads words) {
    for (int i = 0; i < 4; i++) put(group, vector + i, lane, words[i]);
}

/* The codes of a row in 32 columns, into the planes of a group. */
static inline __attribute__((always_inline)) void place(int kind, const uint8_t codes[GROUP], uint8_t *group, int lane) {
    Quads x = *(const Quads_u *)codes, y = *(const Quads_u *)(codes + 16);
    if (kind == Q8) {
        put_words(group, 0, lane, x), put_words(group, 4, lane, y);
    } else if (kind == Q2 || kind == Q3) {
        put_two(group, 0, lane, x, y);
        if (kind == Q3) put_one(group, 2, lane, x >> 2, y >> 2);
    } else {
        put_words(group, 0, lane, (x & 0x0f0f0f0f) | (y & 0x0f0f0f0f) << 4);
        if (kind == Q5) put_one(group, 4, lane, x >> 4, y >> 4);
        if (kind == Q6) put_two(group, 4, lane, x >> 4, y >> 4);
    }
}
#endif
