/* dot_floats_avx2.c - rows of float formats against float32 activations; the arithmetic is in
 * dot_floats.h. */
#include "simd_avx2.h"

#include "dot_floats.h"

void dot_f32_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_f32_body(w, act, y);
}

void dot_f16_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_f16_body(w, act, y);
}

void dot_bf16_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_bf16_body(w, act, y);
}

void dot_fp8_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_fp8_body(w, act, y);
}

void dot_fp4_avx2(const dsv4_dot_rows *w, const void *act, float *y)
{
    dot_fp4_body(w, act, y);
}
