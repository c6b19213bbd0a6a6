/* rope_neon.c - the rotation on NEON; the arithmetic is in rope.h. */
#include "simd_neon.h"

#include "rope.h"

void rope_neon(float *x, int64_t n, int heads, int d, int r, const float *cos_table,
               const float *sin_table, bool inverse)
{
    rope_body(x, n, heads, d, r, cos_table, sin_table, inverse);
}
