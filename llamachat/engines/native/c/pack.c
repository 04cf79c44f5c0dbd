/* From the bit layout of llamachat/core/tensors.py to that of packed.h. */
#include <string.h>

#include "faults.h"
#include "half.h"
#include "pack.h"

static float entry(const void *p, int half, size_t i) {
    return half ? half_to_float(((const uint16_t *)p)[i]) : ((const float *)p)[i];
}

static void pack_scales(const Matrix *w, const Source *s, int row, int tile, uint8_t *out, int lane) {
    int groups = (w->columns + s->group - 1) / s->group;
    for (int sub = 0; sub < w->subs; sub++) {
        int column = tile * TILE + sub * (TILE / w->subs);
        if (column >= w->columns) break;
        size_t at = (size_t)row * groups + column / s->group;
        float scale = entry(s->scale, s->half, at), low = s->minimum ? entry(s->minimum, s->half, at) : 0.0f;
        uint16_t h = float_to_half(scale * s->factor / w->unit), m = float_to_half((low + scale * s->offset) / w->unit);
        memcpy(out + 32 * sub + 2 * lane, &h, 2);
        if (w->minimum) memcpy(out + 32 * (w->subs + sub) + 2 * lane, &m, 2);
    }
}

/* Up to 32 columns of a row from the at-th code on. */
static void pack_group(const Matrix *w, const Source *s, size_t at, int columns, uint8_t *group, int lane) {
    const uint8_t *from = (const uint8_t *)s->codes + (w->kind == Q4 ? at / 2 : at);
    uint8_t codes[GROUP] = {0};
    if (w->kind == Q4) for (int c = 0; c < 16; c++) codes[c] = from[c] & 15, codes[16 + c] = from[c] >> 4;
    else for (int c = 0; c < columns && c < GROUP; c++) codes[c] = from[c] ^ 128;
    if (w->kind == Q4) place(Q4, codes, group, lane);
    else place(Q8, codes, group, lane);
}

static int is_finite(int kind, const uint8_t *p) {
    uint32_t bits = 0, exponent = kind == F32 ? 0x7f800000 : kind == F16 ? 0x7c00 : 0x7f80;
    memcpy(&bits, p, kind == F32 ? 4 : 2);
    return (bits & exponent) != exponent;
}

/* Returns 0 where a float is not finite: one such weight would spoil every answer. */
static int pack_row(const Matrix *w, const Source *s, int row, uint8_t *strip) {
    int lane = row % LANES, tiles = up(w->columns, TILE) / TILE, finite = 1;
    size_t width = w->kind == F32 ? 4 : 2;
    for (int t = 0; t < tiles; t++, strip += block_bytes(w)) {
        int columns = w->columns - t * TILE < TILE ? w->columns - t * TILE : TILE;
        if (w->kind <= BF16) {
            const uint8_t *from = (const uint8_t *)s->codes + ((size_t)row * w->columns + t * TILE) * width;
            for (int c = 0; c < columns; c++) {
                memcpy(strip + (c * LANES + lane) * width, from + c * width, width);
                finite &= is_finite(w->kind, from + c * width);
            }
            continue;
        }
        uint8_t *codes = strip + scales_bytes(HALVES, w->subs, w->minimum);
        pack_scales(w, s, row, t, strip, lane);
        for (int c = 0; c < columns; c += GROUP) {
            size_t first = (size_t)row * w->columns + t * TILE + c;
            pack_group(w, s, first, columns - c, codes + group_bytes(w->kind) * (c / GROUP), lane);
        }
    }
    return finite;
}

static const char *source_fault(const Matrix *w, const Source *s) {
    const char *fault = matrix_fault(w);
    size_t columns = w->columns, rows = w->rows;
    if (fault) return fault;
    size_t row_bytes = w->kind == F32 ? 4 * columns : w->kind <= BF16 ? 2 * columns : w->kind == Q8 ? columns : columns / 2;
    if (!s->codes || s->codes_bytes != rows * row_bytes) return "codes of another size";
    if (w->kind <= BF16) return NULL;
    if (w->kind != Q8 && w->kind != Q4) return "codes of as many bits as only ggml has";
    if (w->scaling != HALVES) return "scales that only ggml has";
    if (w->kind == Q4 && columns % GROUP) return "4 bits in columns that 32 does not divide";
    if (s->group < 1 || !s->scale || s->scales != rows * ((columns + s->group - 1) / s->group)) return "scales of another size";
    if ((size_t)s->group < columns && s->group % (TILE / w->subs)) return "groups of columns that 16 does not divide";
    return NULL;
}

/* Fills a matrix's data, w->bytes at `out`, which must be zero before; returns what was wrong, or NULL. */
const char *pack_matrix(const Matrix *w, const Source *s, uint8_t *out) {
    const char *fault = source_fault(w, s);
    int finite = 1;
    if (fault) return fault;
    if (w->bytes < matrix_bytes(w)) return "no room for the packed weights";
    size_t bytes = strip_bytes(w);
    #pragma omp parallel for schedule(static) reduction(&& : finite)
    for (int strip = 0; strip < strips_of(w); strip++)
        for (int row = strip * LANES; row < (strip + 1) * LANES && row < w->rows; row++)
            finite = pack_row(w, s, row, out + bytes * strip) && finite;
    return finite ? NULL : "values that are not finite";
}

/* Bytes of a matrix's data, for Python. */
size_t packed_bytes(const Matrix *w) { return matrix_bytes(w); }
