/* elementwise.h - the operators that touch each element once: add, index_weights. */
#ifndef DSV4_CPU_ELEMENTWISE_H
#define DSV4_CPU_ELEMENTWISE_H

#include <math.h>

#include "cpu.h"
#include "simd_math.h"

static inline void add_body(float *x, const float *y, int64_t n)
{
    int64_t i = 0;
    for (; i + VL <= n; i += VL)
        vf_store(x + i, vf_add(vf_load(x + i), vf_load(y + i)));
    if (i < n)
        vf_store_n(x + i, vf_add(vf_load_n(x + i, n - i), vf_load_n(y + i, n - i)), n - i);
}

static inline void index_weights_body(float *w, int64_t n, int heads, int dim)
{
    vf_multiply(w, (float)(1.0 / sqrt((double)dim) / sqrt((double)heads)), n * heads);
}

#endif
