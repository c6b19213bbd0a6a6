/* numerics_avx2.c - roundings and the Hadamard transform on AVX2 and FMA; the arithmetic is in
 * numerics.h. */
#include "simd_avx2.h"

#include "numerics.h"

void round_bf16_avx2(float *x, int64_t n)
{
    round_bf16_body(x, n);
}

void round_fp8_avx2(float *x, int64_t n, int64_t ld, int64_t dim, int block)
{
    round_fp8_body(x, n, ld, dim, block);
}

void round_fp4_avx2(float *x, int64_t n, int64_t dim, int block)
{
    round_fp4_body(x, n, dim, block);
}

void hadamard_avx2(float *x, int64_t n, int dim)
{
    hadamard_body(x, n, dim);
}
