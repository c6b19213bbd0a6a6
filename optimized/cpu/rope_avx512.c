/* rope_avx512.c - the rotation on AVX-512; the arithmetic is in rope.h. */
#include "simd_avx512.h"

#include "rope.h"

void rope_avx512(float *x, int64_t n, int heads, int d, int r, const float *cos_table,
                 const float *sin_table, bool inverse)
{
    rope_body(x, n, heads, d, r, cos_table, sin_table, inverse);
}
