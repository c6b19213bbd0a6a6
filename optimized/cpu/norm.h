/* norm.h - RMSNorm of rows and of heads. */
#ifndef DSV4_CPU_NORM_H
#define DSV4_CPU_NORM_H

#include <math.h>

#include "cpu.h"
#include "simd_math.h"

static inline void rmsnorm_body(const float *x, const float *w, float eps, int64_t n, int64_t dim,
                                float *y)
{
    for (int64_t i = 0; i < n; i++) {
        const float *in = x + i * dim;
        float *out = y + i * dim;
        vf scale = vf_set(inverse_rms(in, dim, eps));
        int64_t k = 0;
        for (; k + VL <= dim; k += VL) {
            vf unit = vf_mul(vf_load(in + k), scale);
            vf_store(out + k, w != NULL ? vf_mul(vf_load(w + k), unit) : unit);
        }
        if (k < dim) {
            vf unit = vf_mul(vf_load_n(in + k, dim - k), scale);
            vf_store_n(out + k, w != NULL ? vf_mul(vf_load_n(w + k, dim - k), unit) : unit,
                       dim - k);
        }
    }
}

/* Deployed numerics: every step of the norm is rounded to bf16. */
static inline void head_norm_bf16(float *head, float eps, int64_t dim)
{
    vf sum = vf_zero();
    int64_t k = 0;
    for (; k + VL <= dim; k += VL) {
        vf v = vf_load(head + k);
        sum = vf_add(sum, vf_bf16(vf_mul(v, v)));
    }
    if (k < dim) {
        vf v = vf_load_n(head + k, dim - k);
        sum = vf_add(sum, vf_bf16(vf_mul(v, v)));
    }
    float mean = dsv4_bf16(dsv4_bf16((float)((double)vf_sum(sum) / (double)dim)) + eps);
    vf scale = vf_set(dsv4_bf16((float)(1.0 / sqrt((double)mean))));
    for (k = 0; k + VL <= dim; k += VL)
        vf_store(head + k, vf_bf16(vf_mul(vf_load(head + k), scale)));
    if (k < dim)
        vf_store_n(head + k, vf_bf16(vf_mul(vf_load_n(head + k, dim - k), scale)), dim - k);
}

static inline void head_norm_body(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    if (!bf16) {
        rmsnorm_body(q, NULL, eps, n, dim, q);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        head_norm_bf16(q + i * dim, eps, dim);
}

#endif
