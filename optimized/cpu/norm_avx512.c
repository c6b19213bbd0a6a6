/* norm_avx512.c - RMSNorm and the head norm on AVX-512; the arithmetic is in norm.h. */
#include "simd_avx512.h"

#include "norm.h"

void rmsnorm_avx512(const float *x, const float *w, float eps, int64_t n, int64_t dim, float *y)
{
    rmsnorm_body(x, w, eps, n, dim, y);
}

void head_norm_avx512(float *q, float eps, int64_t n, int64_t dim, bool bf16)
{
    head_norm_body(q, eps, n, dim, bf16);
}
