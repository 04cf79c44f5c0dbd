#ifndef LLAMACHAT_PACK_H
#define LLAMACHAT_PACK_H
#include <string.h>

#include "packed.h"

static inline void put(uint8_t *group, int vector, int lane, uint32_t quad) { memcpy(group + 64 * vector + 4 * lane, &quad, 4); }

/* The codes of a row in 32 columns, into the planes of a group. */
static inline void place(int kind, const uint8_t codes[GROUP], uint8_t *group, int lane) {
    uint16_t two[16];
    uint32_t quad[8], bits = 0;
    memcpy(two, codes, GROUP);
    for (int v = 0; v < 8; v++) quad[v] = two[v] | (uint32_t)two[8 + v] << 16;
    if (kind == Q8) {
        for (int v = 0; v < 8; v++) put(group, v, lane, quad[v]);
    } else if (kind == Q2 || kind == Q3) {
        for (int i = 0; i < 2; i++) {
            uint32_t all = 0;
            for (int k = 0; k < 4; k++) all |= (quad[i + 2 * k] & 0x03030303) << 2 * k;
            put(group, i, lane, all);
        }
        for (int v = 0; v < 8; v++) bits |= (quad[v] >> 2 & 0x01010101) << v;
        if (kind == Q3) put(group, 2, lane, bits);
    } else {
        for (int i = 0; i < 4; i++) put(group, i, lane, (quad[i] & 0x0f0f0f0f) | (quad[i + 4] & 0x0f0f0f0f) << 4);
        for (int v = 0; v < 8; v++) bits |= (quad[v] >> 4 & 0x01010101) << v;
        if (kind == Q5) put(group, 4, lane, bits);
        for (int i = 0; kind == Q6 && i < 2; i++) {
            uint32_t all = 0;
            for (int k = 0; k < 4; k++) all |= (quad[i + 2 * k] >> 4 & 0x03030303) << 2 * k;
            put(group, 4 + i, lane, all);
        }
    }
}
#endif
