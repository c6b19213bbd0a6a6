/* simd_math.h - what every operator shares, in the vocabulary of simd_<isa>.h, which must be
 * included first: dot products, sums of squares, the exponential. */
#ifndef DSV4_SIMD_MATH_H
#define DSV4_SIMD_MATH_H

#include <math.h>
#include <stdint.h>

static inline vf vf_abs(vf a)
{
    return vi_float(vi_and(vf_bits(a), vi_set(0x7fffffff)));
}

/* e^x to about one unit in the last place; 0 below the subnormals, infinity above float32, NaN
 * for NaN. */
static inline vf vf_exp(vf x)
{
    /* x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts, the first short enough that n times it
     * is exact. */
    x = vf_max(vf_set(-105.0f), vf_min(vf_set(90.0f), x));
    vf n = vf_round(vf_mul(x, vf_set(1.44269504f)));
    vf r = vf_fma(n, vf_set(-0.693359375f), x);
    r = vf_fma(n, vf_set(2.12194440e-4f), r);
    vf p = vf_set(1.0f / 5040);
    p = vf_fma(p, r, vf_set(1.0f / 720));
    p = vf_fma(p, r, vf_set(1.0f / 120));
    p = vf_fma(p, r, vf_set(1.0f / 24));
    p = vf_fma(p, r, vf_set(1.0f / 6));
    p = vf_fma(p, r, vf_set(0.5f));
    p = vf_fma(vf_mul(p, r), r, r);
    return vf_scale(vf_add(p, vf_set(1.0f)), n);
}

/* Sum of a[i] b[i], in four running sums of VL lanes. */
static inline float vf_dot(const float *a, const float *b, int64_t n)
{
    vf s0 = vf_zero(), s1 = vf_zero(), s2 = vf_zero(), s3 = vf_zero();
    int64_t i = 0;
    for (; i + 4 * VL <= n; i += 4 * VL) {
        s0 = vf_fma(vf_load(a + i), vf_load(b + i), s0);
        s1 = vf_fma(vf_load(a + i + VL), vf_load(b + i + VL), s1);
        s2 = vf_fma(vf_load(a + i + 2 * VL), vf_load(b + i + 2 * VL), s2);
        s3 = vf_fma(vf_load(a + i + 3 * VL), vf_load(b + i + 3 * VL), s3);
    }
    for (; i + VL <= n; i += VL)
        s0 = vf_fma(vf_load(a + i), vf_load(b + i), s0);
    if (i < n)
        s1 = vf_fma(vf_load_n(a + i, n - i), vf_load_n(b + i, n - i), s1);
    return vf_sum(vf_add(vf_add(s0, s1), vf_add(s2, s3)));
}

/* 1 / sqrt(mean(x^2) + eps), rounded where the reference rounds. */
static inline float inverse_rms(const float *x, int64_t n, float eps)
{
    float mean = (float)((double)vf_dot(x, x, n) / (double)n);
    return (float)(1.0 / sqrt((double)(mean + eps)));
}

/* x = x * factor, n elements. */
static inline void vf_multiply(float *x, float factor, int64_t n)
{
    vf f = vf_set(factor);
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(x + i, vf_mul(vf_load(x + i), f));
    if (i < n)
        vf_store_n(x + i, vf_mul(vf_load_n(x + i, n - i), f), n - i);
}

/* bf16 rounding of every lane, to nearest even; NaN stays NaN, quiet, as dsv4_f32_to_bf16 has it.
 */
static inline vf vf_bf16(vf x)
{
    vi b = vf_bits(x);
    vi even = vi_and(vi_right(b, 16), vi_set(1));
    vi rounded = vi_add(b, vi_add(even, vi_set(0x7fff)));
    vi quiet = vi_or(b, vi_set(0x00400000));
    vi high = vi_set((int32_t)0xffff0000u);
    return vi_float(vi_and(vi_select(vf_is_nan(x), quiet, rounded), high));
}

#endif
