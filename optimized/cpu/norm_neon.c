/* norm_neon.c - RMSNorm and the head norm on NEON; the arithmetic is in norm.h. */
#include "simd_neon.h"

#include "norm.h"

void rmsnorm_neon(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    rmsnorm_body(x, w, eps, n, dim, y);
}

void head_norm_neon(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    head_norm_body(q, eps, n, dim, bf16);
}
