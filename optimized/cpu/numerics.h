/* numerics.h - rounding of activations to bf16, FP8 and FP4, and the Walsh-Hadamard transform: the
 * reference's values, bit for bit. */
#ifndef DSV4_CPU_NUMERICS_H
#define DSV4_CPU_NUMERICS_H

#include <math.h>

#include "cpu.h"
#include "simd_math.h"

static inline void round_bf16_body(float *x, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(x + i, vf_bf16(vf_load(x + i)));
    if (i < n)
        vf_store_n(x + i, vf_bf16(vf_load_n(x + i, n - i)), n - i);
}

/* The largest magnitude; NaN does not count. */
static inline float round_largest(const float *x, int64_t n)
{
    vf max = vf_zero();
    int64_t i = 0;
    for (; i + VL <= n; i += VL) {
        vf a = vf_abs(vf_load(x + i));
        max = vf_select(vf_less(max, a), a, max);
    }
    if (i < n) {
        vf a = vf_abs(vf_load_n(x + i, n - i));
        max = vf_select(vf_less(max, a), a, max);
    }
    return vf_largest(max);
}

static inline vf round_sign_of(vf magnitude, vf sign)
{
    return vi_float(vi_or(vf_bits(magnitude), vi_and(vf_bits(sign), vi_set((int32_t)0x80000000u))));
}

/* y to the e4m3 grid, to nearest even, saturating at 448. */
static inline vf round_e4m3(vf y)
{
    vf a = vf_abs(y);
    /* Below 2^-6 the step is 2^-9: adding and taking away 2^14 rounds to it. */
    vf small = vf_sub(vf_add(a, vf_set(0x1p14f)), vf_set(0x1p14f));
    vi b = vf_bits(a);
    vi carry = vi_add(vi_set(0x7ffff), vi_and(vi_right(b, 20), vi_set(1)));
    vf normal = vi_float(vi_and(vi_add(b, carry), vi_set((int32_t)0xfff00000u)));
    vf v = vf_select(vf_less(a, vf_set(0x1p-6f)), small, normal);
    v = vf_select(vf_less(a, vf_set(448.0f)), v, vf_set(448.0f));
    v = vf_select(vf_is_nan(y), vi_float(vi_set(0x7fc00000)), v);
    return round_sign_of(v, y);
}

/* y to the e2m1 grid: midpoints go to the even code, so the comparisons alternate; NaN is 6. */
static inline vf round_e2m1(vf y)
{
    vf a = vf_abs(y), v = vf_set(6.0f);
    v = vf_select(vf_at_most(a, vf_set(5.0f)), vf_set(4.0f), v);
    v = vf_select(vf_less(a, vf_set(3.5f)), vf_set(3.0f), v);
    v = vf_select(vf_at_most(a, vf_set(2.5f)), vf_set(2.0f), v);
    v = vf_select(vf_less(a, vf_set(1.75f)), vf_set(1.5f), v);
    v = vf_select(vf_at_most(a, vf_set(1.25f)), vf_set(1.0f), v);
    v = vf_select(vf_less(a, vf_set(0.75f)), vf_set(0.5f), v);
    v = vf_select(vf_at_most(a, vf_set(0.25f)), vf_zero(), v);
    return round_sign_of(v, y);
}

static inline vf round_fp8_lanes(vf x, vf scale)
{
    return vf_mul(round_e4m3(vf_div(x, scale)), scale);
}

static inline vf round_fp4_lanes(vf x, vf scale)
{
    /* e2m1 has no NaN: it passes through */
    return vf_select(vf_is_nan(x), x, vf_mul(round_e2m1(vf_div(x, scale)), scale));
}

static inline void round_fp8_body(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t at = 0; at < dim; at += block) {
            float *b = x + i * ld + at;
            int64_t len = dim - at < block ? dim - at : block, k = 0;
            vf scale = vf_set(dsv4_fp8_scale(round_largest(b, len)));
            for (; k + VL <= len; k += VL)
                vf_store(b + k, round_fp8_lanes(vf_load(b + k), scale));
            if (k < len)
                vf_store_n(b + k, round_fp8_lanes(vf_load_n(b + k, len - k), scale), len - k);
        }
}

static inline void round_fp4_body(float *x, int64_t n, int64_t dim, int block)
{
    for (int64_t i = 0; i < n; i++)
        for (int64_t at = 0; at < dim; at += block) {
            float *b = x + i * dim + at;
            int64_t len = dim - at < block ? dim - at : block, k = 0;
            vf scale = vf_set(dsv4_fp4_scale(round_largest(b, len)));
            for (; k + VL <= len; k += VL)
                vf_store(b + k, round_fp4_lanes(vf_load(b + k), scale));
            if (k < len)
                vf_store_n(b + k, round_fp4_lanes(vf_load_n(b + k, len - k), scale), len - k);
        }
}

static inline void hadamard_body(float *x, int64_t n, int dim)
{
    float norm = (float)(1.0 / sqrt((double)dim));
    for (int64_t i = 0; i < n; i++) {
        float *v = x + i * dim;
        /* Butterflies narrower than a register one by one, the others VL at a time: the same sums
         * in the same order either way. */
        for (int half = 1; half < dim; half *= 2)
            for (int start = 0; start < dim; start += 2 * half) {
                if (half < VL) {
                    for (int k = start; k < start + half; k++) {
                        float a = v[k], b = v[k + half];
                        v[k] = a + b;
                        v[k + half] = a - b;
                    }
                    continue;
                }
                for (int k = start; k < start + half; k += VL) {
                    vf a = vf_load(v + k), b = vf_load(v + k + half);
                    vf_store(v + k, vf_add(a, b));
                    vf_store(v + k + half, vf_sub(a, b));
                }
            }
        vf_multiply(v, norm, dim);
    }
}

#endif
