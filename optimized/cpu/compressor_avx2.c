/* compressor_avx2.c - the pooled row of a window on AVX2 and FMA; the arithmetic is in
 * compressor.h. */
#include "simd_avx2.h"

#include "compressor.h"

void compressor_pool_avx2(const float *prev_kv, const float *prev_z, const float *kv,
                          const float *z, int ratio, int lanes, int dim, float *c)
{
    compressor_pool_body(prev_kv, prev_z, kv, z, ratio, lanes, dim, c);
}
