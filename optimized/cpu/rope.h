/* rope.h - rotates the last r dims of every head, interleaved pairs. */
#ifndef DSV4_CPU_ROPE_H
#define DSV4_CPU_ROPE_H

#include "cpu.h"
#include "simd_math.h"

static inline void rope_body(float *x, int64_t n, int heads, int d, int r, const float *cos_table,
                             const float *sin_table, bool inverse)
{
    int half = r / 2;
    vf sign = vf_set(inverse ? -1.0f : 1.0f);
    for (int64_t i = 0; i < n; i++) {
        const float *c = cos_table + i * half, *s = sin_table + i * half;
        for (int h = 0; h < heads; h++) {
            float *tail = x + (i * heads + h) * d + (d - r);
            int k = 0;
            for (; 2 * k + VL <= 2 * half; k += VL / 2) {
                /* (a, b) -> (a c - b s, b c + a s) */
                vf v = vf_load(tail + 2 * k);
                vf cross = vf_mul(vf_swap_pairs(v), vf_mul(vf_load_pairs(s + k), sign));
                vf_store(tail + 2 * k, vf_fma_alternate(v, vf_load_pairs(c + k), cross));
            }
            for (; k < half; k++) {
                float a = tail[2 * k], b = tail[2 * k + 1], sine = inverse ? -s[k] : s[k];
                tail[2 * k] = a * c[k] - b * sine;
                tail[2 * k + 1] = a * sine + b * c[k];
            }
        }
    }
}

#endif
