/* The code made for each way of coding: for one token, or (SEVERAL) for up to FEW, which is compiled beside it. */

#define READ(tokens, near) strips_coded(kind, scaling, subs, minimum, coding, fine, tokens, reading_of(tokens, near), f)
INLINE void stream(int kind, int scaling, int subs, int minimum, int coding, int fine, int near, const Streams *f) {
    if (!SEVERAL && near) READ(1, 1);
    else if (!SEVERAL) READ(1, 0);
    else if (f->tokens > 2) READ(FEW, near);
    else if (near) READ(2, 1);
    else READ(2, 0);
}
#undef READ

#define STREAM(k, scales, n, low, c)                                                    \
    static void stream_##k##scales##n##low##c(const Streams *f, int fine, int near) {   \
        if (fine) stream(k, scales, n, low, c, 1, near, f);                             \
        else stream(k, scales, n, low, c, 0, near, f);                                  \
    }
WAYS(STREAM)
#undef STREAM
typedef void Stream(const Streams *f, int fine, int near);

#define NAMED(k, scales, n, low, c) stream_##k##scales##n##low##c,
static Stream *const stream_of[] = {WAYS(NAMED)};  /* by way_of */
#undef NAMED

/* y[t][row] for the rows of `strips` strips; 0: there is no such code, and nothing was done. */
static int streamed(const Matrix *w, const Acts *a, int fine, int token, int tokens, float *y, size_t stride, int strip,
                    int strips) {
    int way = way_of(w), near = OF_SET(near), abreast = reading_of(tokens, near).abreast, count = strips / abreast;
    Streams f = {w, a, y, stride, token, tokens, strip, count, count};
    if (way < 0) return 0;
    stream_of[way](&f, fine, near);
    f.strip += count * abreast, f.count = 1, f.apart = 0;  /* what is left, the same abreast */
    for (; f.strip < strip + strips; f.strip++) stream_of[way](&f, fine, near);
    return 1;
}
