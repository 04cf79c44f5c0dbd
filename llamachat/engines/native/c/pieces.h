/* Pieces of strips that many tokens are multiplied with. */

enum { PIECE = 1024, OPENED = 512 };  /* columns of STRIPS strips, whose codes, packed or not, stay in the first-level cache */

/* Blocks [from, to) of STRIPS strips, `apart` from each other, to be multiplied with some tokens. y [tokens][rows] has the sums
   of the blocks before. */
typedef struct {
    const Matrix *w;
    const Acts *a;
    size_t stride, ahead;    /* ahead: what lies so many bytes further on is fetched; 0: nothing */
    int strip, apart, from, to, turn, turns;  /* of `turns` products of a piece with tokens the turn-th; each fetches a part */
} Piece;

INLINE float *rows_at(const Piece *p, float *y, int i, int j) {
    return y + i * p->stride + (p->strip + j / PARTS * p->apart) * LANES + j % PARTS * VL;
}

INLINE void start_totals(const Piece *p, int n, float *y, vf totals[MANY][VECTORS]) {
    UNROLL
    for (int i = 0; i < MANY; i++)
        UNROLL
        for (int j = 0; j < VECTORS; j++) totals[i][j] = p->from && i < n ? load(rows_at(p, y, i, j)) : splat(0);
}

INLINE void end_totals(const Piece *p, int n, float *y, vf totals[MANY][VECTORS]) {
    int last = p->to == column_blocks(p->w);
    UNROLL
    for (int i = 0; i < MANY; i++) {
        if (i >= n) break;
        UNROLL
        for (int j = 0; j < VECTORS; j++)
            if (last) finish(p->w, p->strip + j / PARTS * p->apart, j % PARTS, totals[i][j], y + i * p->stride);
            else store(rows_at(p, y, i, j), totals[i][j]);
    }
}

INLINE const uint8_t *blocks_at(const Piece *p, int strip) {
    return p->w->data + strip_bytes(p->w) * (p->strip + strip * p->apart) + block_bytes(p->w) * p->from;
}

INLINE void fetch(const uint8_t *p, size_t ahead, size_t bytes) {
    for (size_t i = 0; ahead && i < bytes; i += 64) __builtin_prefetch(p + ahead + i);
}

/* Opens a piece, and multiplies it with what turns there are of `tokens` tokens; scratch has room for it. */
#pragma GCC visibility push(hidden)
void OF_SET(times_opened)(const Piece *p, int fine, int token, int tokens, float *y, void *scratch);
#pragma GCC visibility pop
