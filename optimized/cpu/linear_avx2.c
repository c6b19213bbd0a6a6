/* linear_avx2.c - embed, linear and hc_mix on AVX2 and FMA; the arithmetic is in linear.h. */
#include "simd_avx2.h"

#include "linear.h"

void embed_avx2(const dsv4_tensor *table, const int32_t *ids, int64_t n, float *x)
{
    embed_body(table, ids, n, x);
}

void linear_avx2(const dsv4_tensor *w, const float *x, int64_t ldx, int64_t n, float *y,
                 int64_t ldy)
{
    linear_body(w, x, ldx, n, y, ldy);
}

void hc_mix_avx2(const dsv4_tensor *fn, const float *streams, float eps, int64_t n, float *m)
{
    hc_mix_body(fn, streams, eps, n, m);
}
