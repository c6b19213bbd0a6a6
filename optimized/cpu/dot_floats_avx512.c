/* dot_floats_avx512.c - rows of float formats against float32 activations; the arithmetic is in
 * dot_floats.h. */
#include "simd_avx512.h"

#include "dot_floats.h"

void dot_f32_avx512(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_f32_body(w, act, y);
}

void dot_f16_avx512(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_f16_body(w, act, y);
}

void dot_bf16_avx512(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_bf16_body(w, act, y);
}

void dot_fp8_avx512(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_fp8_body(w, act, y);
}

void dot_fp4_avx512(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_fp4_body(w, act, y);
}
