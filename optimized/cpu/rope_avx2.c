/* rope_avx2.c - the rotation on AVX2 and FMA; the arithmetic is in rope.h. */
#include "simd_avx2.h"

#include "rope.h"

void rope_avx2(float *x, int64_t n, int heads, int d, int r, const float *cos_table,
               const float *sin_table, bool inverse)
{
    rope_body(x, n, heads, d, r, cos_table, sin_table, inverse);
}
