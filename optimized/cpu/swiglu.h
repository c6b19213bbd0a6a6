/* swiglu.h - silu(min(gate, L)) * clamp(up, -L, L). */
#ifndef DSV4_CPU_SWIGLU_H
#define DSV4_CPU_SWIGLU_H

#include <math.h>

#include "cpu.h"
#include "simd_math.h"

static inline vf swiglu_lanes(vf g, vf u, vf limit)
{
    g = vf_min(limit, g);
    u = vf_max(vf_sub(vf_zero(), limit), vf_min(limit, u));
    vf e = vf_exp(vf_sub(vf_zero(), g));
    return vf_mul(vf_div(g, vf_add(vf_set(1.0f), e)), u);
}

static inline void swiglu_body(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    vf L = vf_set(limit > 0 ? limit : INFINITY);
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(h + i, swiglu_lanes(vf_load(gate + i), vf_load(up + i), L));
    if (i < n)
        vf_store_n(h + i, swiglu_lanes(vf_load_n(gate + i, n - i), vf_load_n(up + i, n - i), L),
                   n - i);
}

#endif
