/* numerics.c - what the release simulates on activations: bf16, FP8 e4m3 and FP4 e2m1 with
 * power-of-two block scales, and the Walsh-Hadamard transform before FP4. */
#include <math.h>

#include "formats/formats.h"
#include "scalar.h"

float dsv4_bf16(float x)
{
    return dsv4_bf16_to_f32(dsv4_f32_to_bf16(x));
}

void ref_round_bf16(float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = dsv4_bf16(x[i]);
}

/* 2^ceil(log2(v)) for a positive normal v: read from the exponent, not from a rounded logarithm. */
static float next_power_of_two(float v)
{
    int exponent;
    /* An infinite scale makes the whole block NaN: no infinity is saturated away. */
    if (!isfinite(v))
        return v;
    float mantissa = frexpf(v, &exponent); /* v = mantissa * 2^exponent, 0.5 <= mantissa < 1 */
    return ldexpf(1.0f, mantissa == 0.5f ? exponent - 1 : exponent);
}

float dsv4_fp8_scale(float amax)
{
    return next_power_of_two(fmaxf(amax, 1e-4f) / 448.0f);
}

float dsv4_fp4_scale(float amax)
{
    return next_power_of_two(fmaxf(amax, 6.0f * ldexpf(1.0f, -126)) / 6.0f);
}

static float largest(const float *x, int64_t n)
{
    float amax = 0;
    for (int64_t i = 0; i < n; i++)
        amax = fmaxf(amax, fabsf(x[i]));
    return amax;
}

void ref_round_fp8(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t at = 0; at < dim; at += block) {
            float *b = x + i * ld + at;
            int64_t len = dim - at < block ? dim - at : block;
            float scale = dsv4_fp8_scale(largest(b, len));
            for (int64_t k = 0; k < len; k++)
                b[k] = dsv4_e4m3_to_f32(dsv4_f32_to_e4m3(b[k] / scale)) * scale;
        }
}

void ref_round_fp4(float *x, int64_t n, int64_t dim, int block)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t at = 0; at < dim; at += block) {
            float *b = x + i * dim + at;
            int64_t len = dim - at < block ? dim - at : block;
            float scale = dsv4_fp4_scale(largest(b, len));
            for (int64_t k = 0; k < len; k++)
                if (b[k] == b[k]) /* e2m1 has no NaN: it passes through */
                    b[k] = dsv4_e2m1_to_f32(dsv4_f32_to_e2m1(b[k] / scale)) * scale;
        }
}

/* Distance of |x| (in units of the block's scale) to the nearest midpoint of the grid. */
static double midpoint_distance(dsv4_rounding kind, double x)
{
    if (kind == DSV4_ROUND_FP4) {
        static const double mid[] = {0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0};
        double best = INFINITY;
        for (int i = 0; i < 7; i++)
            best = fmin(best, fabs(x - mid[i]));
        return best;
    }
    /* e4m3: eight steps a binade, subnormal step 2^-9 below 2^-6. */
    int exponent;
    frexp(x, &exponent);
    double step = ldexp(1.0, exponent - 1 - 3 < -9 ? -9 : exponent - 1 - 3);
    double cells = x / step;
    return fabs(cells - floor(cells) - 0.5) * step;
}

double dsv4_rounding_margin(dsv4_rounding kind, int block, const float *before, size_t n)
{
    double power = 0, best = INFINITY;
    for (size_t i = 0; i < n; i++)
        power += (double)before[i] * (double)before[i];
    if (!(power > 0) || kind == DSV4_ROUND_BF16)
        return INFINITY;
    double rms = sqrt(power / (double)n);
    for (size_t at = 0; at < n; at += (size_t)block) {
        size_t len = n - at < (size_t)block ? n - at : (size_t)block;
        float amax = largest(before + at, (int64_t)len);
        float scale = kind == DSV4_ROUND_FP8 ? dsv4_fp8_scale(amax) : dsv4_fp4_scale(amax);
        double top = kind == DSV4_ROUND_FP8 ? 448.0 : 6.0;
        /* The scale doubles above top * scale and halves at or below half of that. */
        best = fmin(best, fabs((double)amax - top * (double)scale));
        best = fmin(best, fabs((double)amax - top * (double)scale / 2));
        for (size_t k = at; k < at + len; k++)
            best = fmin(best, midpoint_distance(kind, fabs((double)before[k]) / (double)scale) *
                                  (double)scale);
    }
    return best / rms;
}

void ref_hadamard(float *x, int64_t n, int dim)
{
    float norm = (float)(1.0 / sqrt((double)dim));
    for (int64_t i = 0; i < n; i++) {
        float *v = x + i * dim;
        for (int half = 1; half < dim; half *= 2)
            for (int start = 0; start < dim; start += 2 * half)
                for (int k = start; k < start + half; k++) {
                    float a = v[k], b = v[k + half];
                    v[k] = a + b;
                    v[k + half] = a - b;
                }
        for (int k = 0; k < dim; k++)
            v[k] *= norm;
    }
}
