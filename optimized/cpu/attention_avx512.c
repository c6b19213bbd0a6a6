/* attention_avx512.c - windowed and compressed attention with a sink on AVX-512; the arithmetic is
 * in attention.h. */
#include "simd_avx512.h"

#include "attention.h"

bool attention_avx512(const dsv4_attention_args *a, float *out)
{
    return attention_body(a, out);
}
