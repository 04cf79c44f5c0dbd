/* Activation functions: what is not a number stays none. */

INLINE vf at_most(vf x, float most) { return choose(x > most, splat(most), x); }
INLINE vf at_least(vf x, float least) { return choose(x < least, splat(least), x); }

/* x / (1 + e^-y): x times the logistic function of y. */
INLINE vf gated_by(vf x, vf y) { return x / (1.0f + exponential(-larger(y, splat(-88.0f)))); }

INLINE vf tangent(vf x) {  /* hyperbolic, to 1e-7 */
    vf value = 1.0f - 2.0f / (exponential(2.0f * at_most(x, 44.0f)) + 1.0f);
    return choose(x == x, value, x);
}

/* x times the normal distribution up to x, which is half of erfc(z), z = |x| / sqrt(2), or what that lacks of 1. erfc(z) is
   t e^(p(t) - z^2) with t = 1 / (1 + z / 2); p was fitted to 6e-8. */
INLINE vf gelu(vf x) {
    vf z = (vf)((vi)x & 0x7fffffff) * 0.70710678f, t = 1.0f / (1.0f + 0.5f * z);
    vf p = splat(0.157751009f);
    p = p * t - 0.750181556f;
    p = p * t + 1.31865299f;
    p = p * t - 0.909740686f;
    p = p * t + 0.0943214297f;
    p = p * t - 0.0902556628f;
    p = p * t + 0.0652326494f;
    p = p * t + 0.380354136f;
    p = p * t + 0.999348104f;
    p = p * t - 1.26548231f;
    vf beyond = 0.5f * t * exponential(p - z * z);
    return x * choose(x > 0.0f, 1.0f - beyond, beyond);
}

/* As gelu, with the logistic function for the distribution: x (1 + tanh y) / 2, y = sqrt(2 / pi) (x + 0.044715 x^3). */
INLINE vf gelu_tanh(vf x) { return gated_by(x, 1.59576912f * x * (1.0f + 0.044715f * x * x)); }

INLINE vf clamped_swiglu(vf gate, vf up, float limit) {
    vf g = at_most(gate, limit);
    return gated_by(g, 1.702f * g) * (at_least(at_most(up, limit), -limit) + 1.0f);
}

static void activate(int activation, float limit, const float *gate, const float *up, float *out, int n) {
    switch (activation) {
    case GELU:
        for (int i = 0; i < n; i += VL) store(out + i, gelu(load(gate + i)) * load(up + i));
        return;
    case GELU_TANH:
        for (int i = 0; i < n; i += VL) store(out + i, gelu_tanh(load(gate + i)) * load(up + i));
        return;
    case CLAMPED_SWIGLU:
        for (int i = 0; i < n; i += VL) store(out + i, clamped_swiglu(load(gate + i), load(up + i), limit));
        return;
    default:
        for (int i = 0; i < n; i += VL) store(out + i, gated_by(load(gate + i), load(gate + i)) * load(up + i));
    }
}

static void soften(float *x, int n, float cap) {
    for (int i = 0; i < n; i += VL) store(x + i, cap * tangent(load(x + i) / cap));
}
