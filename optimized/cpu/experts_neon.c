/* experts_neon.c - the routed experts on NEON; the arithmetic is in experts.h. */
#include "simd_neon.h"

#include "experts.h"

bool experts_neon(const dsv4_experts_args *a, float *out)
{
    return experts_body(a, out);
}
