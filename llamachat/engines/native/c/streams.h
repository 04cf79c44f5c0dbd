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

/* NULL: floats, and what is rare, go token by token and strip by strip. */
static Stream *stream_of(const Matrix *w) {
    int coding = coding_of(w);
    if (w->kind <= BF16 || w->wide) return NULL;
#define CHOOSE(k, scales, n, low, c) \
    if (w->kind == k && w->scaling == scales && w->subs == n && w->minimum == low && coding == c) \
        return stream_##k##scales##n##low##c;
    WAYS(CHOOSE)
#undef CHOOSE
    return NULL;
}

/* y[t][row] for the rows of `strips` strips; 0: there is no such code, and nothing was done. */
static int streamed(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                    int strips) {
    Stream *stream = stream_of(w);
    int abreast = abreast_of(tokens <= 2 ? tokens : FEW), count = strips / abreast;
    Streams f = {w, a, y, stride, token, tokens, strip, count, count};
    if (!stream) return 0;
    stream(&f, fine);
    f.strip += count * abreast, f.count = 1, f.apart = 0;  /* what is left, the same abreast */
    for (; f.strip < strip + strips; f.strip++) stream(&f, fine);
    return 1;
}
