/* wrong_rounding.c - activation roundings that make the mistakes of a trial (hypotheses.h), for
 * trials and for single rows. */
#include <math.h>

#include "hypotheses.h"

static _Thread_local const trial *now;
static const dsv4_ops *ref(void)
{
    return dsv4_ops_reference();
}

/* A block scaled to [-limit, limit], rounded by `rule` at a scale of one power of two. */
static void round_scaled(float *x, int64_t n, double limit, bool fp8, bool down, bool truncated)
{
    double most = 0;
    for (int64_t k = 0; k < n; k++)
        most = fmax(most, fabs((double)x[k]));
    double scale = fmax(most, fp8 ? 1e-4 : limit * ldexp(1, -126)) / limit;
    if (down)
        scale = exp2(floor(log2(scale)));
    else if (truncated)
        scale = exp2(ceil(log2(scale)));
    for (int64_t k = 0; k < n; k++) {
        double v = fmin(fabs((double)x[k]) / scale, limit);
        int low = fp8 ? -6 : 0, bits = fp8 ? 3 : 1, exponent = v > 0 ? ilogb(v) : low;
        double step = ldexp(1, (exponent < low ? low : exponent) - bits);
        v = (truncated ? floor(v / step) : nearbyint(v / step)) * step;
        x[k] = (float)copysign(fmin(v, limit) * scale, (double)x[k]);
    }
}

static void wrong_fp8(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    const mistake *m = &now->m;
    for (int64_t i = 0; i < n && m->fp8 != FP8_NOT; i++)
        for (int64_t k = 0; k < dim; k += block)
            round_scaled(x + i * ld + k, dim - k < block ? dim - k : block, 448, true,
                         m->fp8 == FP8_DOWN, m->fp8 == FP8_TRUNCATED);
}

static void wrong_fp4(float *x, int64_t n, int64_t dim, int block)
{
    const mistake *m = &now->m;
    if (m->fp4 == FP4_BLOCK_128) {
        ref()->round_fp4(x, n, dim, 128);
        return;
    }
    if (m->fp4 == FP4_FIRST_HEAD)
        ref()->round_fp4(x, 1, dim, block);
    for (int64_t k = 0; k < n * dim && m->fp4 == FP4_FLOAT_SCALE; k += block)
        round_scaled(x + k, block, 6, false, false, false);
}

/* Rows come one at a time, queries by heads. */
static void wrong_hadamard(float *x, int64_t n, int dim)
{
    if ((now->m.hadamard == HADAMARD_QUERY && n > 1) ||
        (now->m.hadamard == HADAMARD_ROWS && n == 1))
        ref()->hadamard(x, n, dim);
}

void wrong_rounding(const mistake *m, dsv4_rounding kind, float *x, int64_t heads, int64_t dim,
                    int block)
{
    static const trial nobody;
    trial t = nobody;
    const trial *keep = now;
    t.m = *m;
    now = &t;
    if (kind == DSV4_ROUND_FP8)
        wrong_fp8(x, heads, dim, dim, block);
    else
        wrong_fp4(x, heads, dim, block);
    now = keep;
}

void wrong_rounding_install(trial *t)
{
    const mistake *m = &t->m;
    now = t;
    if (m->fp8 != FP8_RIGHT)
        t->ops.round_fp8 = wrong_fp8;
    if (m->fp4 != FP4_RIGHT)
        t->ops.round_fp4 = wrong_fp4;
    if (m->hadamard != HADAMARD_BOTH)
        t->ops.hadamard = wrong_hadamard;
}
