/* swiglu_avx2.c - the clamped SwiGLU on AVX2 and FMA; the arithmetic is in swiglu.h. */
#include "simd_avx2.h"

#include "swiglu.h"

void swiglu_avx2(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    swiglu_body(gate, up, limit, n, h);
}
