/* norm_avx2.c - RMSNorm and the head norm on AVX2 and FMA; the arithmetic is in norm.h. */
#include "simd_avx2.h"

#include "norm.h"

void rmsnorm_avx2(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    rmsnorm_body(x, w, eps, n, dim, y);
}

void head_norm_avx2(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    head_norm_body(q, eps, n, dim, bf16);
}
