/* IEEE half precision, for compilers and processors that have no type for it. */
#ifndef LLAMACHAT_HALF_H
#define LLAMACHAT_HALF_H
#include <stdint.h>
#include <string.h>

static inline float half_to_float(uint16_t h) {
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float x;
    memcpy(&x, &bits, 4);
    x *= 0x1p112f;
    memcpy(&bits, &x, 4);
    bits |= (uint32_t)(h & 0x8000) << 16;
    memcpy(&x, &bits, 4);
    return x;
}
static inline uint16_t float_to_half(float x) {  /* to nearest even; saturates */
    uint32_t bits, sign;
    memcpy(&bits, &x, 4);
    sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    if (bits > 0x477fe000) bits = 0x477fe000;
    if (bits < 0x38800000) {  /* subnormal: let the adder round at 2^-24 */
        memcpy(&x, &bits, 4);
        x += 0.5f;
        memcpy(&bits, &x, 4);
        return (uint16_t)(sign | (bits - 0x3f000000));
    }
    return (uint16_t)(sign | ((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13));
}
#endif
