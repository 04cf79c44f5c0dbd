/* The code made for each way of coding: for one token, or (SEVERAL) for up to FEW, which is compiled beside it. */

#define STREAM(k, scales, n, low, c)                                                       \
    static void stream_##k##scales##n##low##c(const Streams *f, int fine) {                \
        if (!SEVERAL && fine) strips_coded(k, scales, n, low, c, 1, 1, f);                 \
        else if (!SEVERAL) strips_coded(k, scales, n, low, c, 0, 1, f);                    \
        else if (f->tokens == 2 && fine) strips_coded(k, scales, n, low, c, 1, 2, f);      \
        else if (f->tokens == 2) strips_coded(k, scales, n, low, c, 0, 2, f);              \
        else if (fine) strips_coded(k, scales, n, low, c, 1, FEW, f);                      \
        else strips_coded(k, scales, n, low, c, 0, FEW, f);                                \
    }
WAYS(STREAM)
#undef STREAM
typedef void Stream(const Streams *f, int fine);

#define NAMED(k, scales, n, low, c) stream_##k##scales##n##low##c,
static Stream *const stream_of[] = {WAYS(NAMED)};  /* by way_of */
#undef NAMED

/* y[t][row] for the rows of `strips` strips; 0: there is no such code, and nothing was done. */
static int streamed(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                    int strips) {
    int way = way_of(w);
    int abreast = abreast_of(tokens <= 2 ? tokens : FEW), count = strips / abreast;
    Streams f = {w, a, y, stride, token, tokens, strip, count, count};
    if (way < 0) return 0;
    stream_of[way](&f, fine);
    f.strip += count * abreast, f.count = 1, f.apart = 0;  /* what is left, the same abreast */
    for (; f.strip < strip + strips; f.strip++) stream_of[way](&f, fine);
    return 1;
}
