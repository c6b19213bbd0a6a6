/* swiglu_avx512.c - the clamped SwiGLU on AVX-512; the arithmetic is in swiglu.h. */
#include "simd_avx512.h"

#include "swiglu.h"

void swiglu_avx512(const float *gate, const float *up, float limit, int64_t n, float *h)
{
    swiglu_body(gate, up, limit, n, h);
}
