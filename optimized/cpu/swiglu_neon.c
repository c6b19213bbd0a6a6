/* swiglu_neon.c - the clamped SwiGLU on NEON; the arithmetic is in swiglu.h. */
#include "simd_neon.h"

#include "swiglu.h"

void swiglu_neon(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    swiglu_body(gate, up, limit, n, h);
}
