/* From the bit layout of llamachat/tensors.py to that of engine.h. */
#include <string.h>

#include "engine.h"

typedef struct {
    const void *codes;           /* float data of the matrix's kind; int8 [rows][columns]; or nibbles [rows][columns / 2] */
    const void *scale, *minimum; /* [rows][columns / group], of one type; minimum may be NULL */
    int32_t group, half;         /* half: scales are fp16, else fp32 */
    float factor, offset;        /* value = scale * (factor * table[code] + offset) + minimum */
} Source;

static float entry(const void *p, int half, size_t i) { return half ? half_to_float(((const uint16_t *)p)[i]) : ((const float *)p)[i]; }

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

static void pack_row(const Matrix *w, const Source *s, int row, uint8_t *strip) {
    int lane = row % LANES, tiles = up(w->columns, TILE) / TILE;
    size_t width = w->kind == F32 ? 4 : 2;
    for (int t = 0; t < tiles; t++, strip += tile_bytes(w)) {
        int columns = w->columns - t * TILE < TILE ? w->columns - t * TILE : TILE;
        if (w->kind <= BF16) {
            const uint8_t *from = (const uint8_t *)s->codes + ((size_t)row * w->columns + t * TILE) * width;
            for (int c = 0; c < columns; c++) memcpy(strip + (c * LANES + lane) * width, from + c * width, width);
            continue;
        }
        uint8_t *codes = strip + 32 * w->subs * (w->minimum ? 2 : 1);
        pack_scales(w, s, row, t, strip, lane);
        if (w->kind == Q4) {
            const uint8_t *from = (const uint8_t *)s->codes + ((size_t)row * w->columns + t * TILE) / 2;
            for (int v = 0; v < columns / 8; v++) memcpy(codes + 64 * v + 4 * lane, from + 4 * v, 4);
        } else {
            const uint8_t *from = (const uint8_t *)s->codes + (size_t)row * w->columns + t * TILE;
            for (int c = 0; c < columns; c++) codes[c / 4 * 64 + 4 * lane + c % 4] = from[c] ^ 128;
        }
    }
}

/* Fills a matrix's data, which must be zero before. */
void pack_matrix(const Matrix *w, const Source *s, uint8_t *out) {
    size_t bytes = strip_bytes(w);
    #pragma omp parallel for schedule(static)
    for (int strip = 0; strip < (w->rows + LANES - 1) / LANES; strip++)
        for (int row = strip * LANES; row < (strip + 1) * LANES && row < w->rows; row++) pack_row(w, s, row, out + bytes * strip);
}

size_t packed_bytes(const Matrix *w) { return strip_bytes(w) * (up(w->rows, LANES) / LANES); }
