/* attention_avx2.c - windowed and compressed attention with a sink on AVX2 and FMA; the arithmetic
 * is in attention.h. */
#include "simd_avx2.h"

#include "attention.h"

bool attention_avx2(const dsv4_attention_args *a, float *out)
{
    return attention_body(a, out);
}
