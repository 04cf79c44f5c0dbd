/* The code made for each way of coding: for one token, or (SEVERAL) for up to FEW, which is compiled beside it. */

#define READ(tokens, how) strips_coded(kind, scaling, subs, minimum, coding, fine, tokens, how, f)
INLINE void stream(int kind, int scaling, int subs, int minimum, int coding, int fine, int fetching, const Streams *f) {
    if (!SEVERAL && ABREAST > PAIR && fetching == FETCH_PAIR) READ(1, reading_of(PAIR, FETCH_PAIR));
    else if (!SEVERAL) READ(1, reading_of(ABREAST, fetching));
    else if (f->tokens == 2) READ(2, reading_of(PAIR, FETCH_PAIR));
    else READ(FEW, reading_of(STRIPS, fetching));
}
#undef READ

#define STREAM(k, scales, n, low, c)                                                        \
    static void stream_##k##scales##n##low##c(const Streams *f, int fine, int fetching) {   \
        if (fine) stream(k, scales, n, low, c, 1, fetching, f);                             \
        else stream(k, scales, n, low, c, 0, fetching, f);                                  \
    }
WAYS(STREAM)
#undef STREAM
typedef void Stream(const Streams *f, int fine, int fetching);

#define NAMED(k, scales, n, low, c) stream_##k##scales##n##low##c,
static Stream *const stream_of[] = {WAYS(NAMED)};  /* by way_of */
#undef NAMED

/* y[t][row] for the rows of `strips` strips; 0: there is no such code, and nothing was done. */
static int streamed(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                    int strips) {
    int way = way_of(w), fetching = OF_SET(fetching);
    int abreast = SEVERAL ? tokens == 2 ? PAIR : STRIPS : abreast_for(fetching), count = strips / abreast;
    Streams f = {w, a, y, stride, token, tokens, strip, count, count};
    if (way < 0) return 0;
    stream_of[way](&f, fine, fetching);
    f.strip += count * abreast, f.count = 1, f.apart = 0;  /* what is left, the same abreast */
    for (; f.strip < strip + strips; f.strip++) stream_of[way](&f, fine, fetching);
    return 1;
}
