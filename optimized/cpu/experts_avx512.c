/* experts_avx512.c - the routed experts on AVX-512; the arithmetic is in experts.h. */
#include "simd_avx512.h"

#include "experts.h"

bool experts_avx512(const dsv4_experts_args *a, float *out)
{
    return experts_body(a, out);
}
