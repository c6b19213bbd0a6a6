/* experts_avx2.c - the routed experts on AVX2 and FMA; the arithmetic is in experts.h. */
#include "simd_avx2.h"

#include "experts.h"

bool experts_avx2(const dsv4_experts_args *a, float *out)
{
    return experts_body(a, out);
}
